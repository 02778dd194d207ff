//! How jobs are done. Read `runtime::attempt` first: one attempt, from claim to settle.
//!
//! `runtime` is the machinery (claims, leases, layers, settlement) and knows no duty; `duties` do the jobs; `clients` are
//! the only doors to the outside; `environment` is what a duty may touch.
pub mod clients;
pub mod config;
pub mod duties;
pub mod environment;
pub mod key_acts;
pub mod keys;
pub mod placement;
pub mod runtime;
