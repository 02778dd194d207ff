//! Nothing here: the suites are in `it/`, the benches in `benches/`.
