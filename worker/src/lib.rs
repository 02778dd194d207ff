//! How jobs are done. See `runtime::attempt` first.
pub mod runtime;
