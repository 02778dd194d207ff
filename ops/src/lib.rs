//! Who watches: the operators' command line, and the service layer that console and API will share with it.
//!
//! ```text
//!   arguments ──► cli (clap) ──► run ──► service::{jobs, tenants, catalogue, doctor, migrate} ──► output ──► stdout
//!                                 └── config: section [ops]      └── queue SQL lives in reeve-jobs
//! ```
//! Data goes to standard output and every message to standard error; the exit code says how it ended
//! ([`cli::EXIT_CODES`]). This crate never claims or settles a job and never opens a tenant's scope: it reads as
//! `reeve_ops`, and acts through SQL functions that write the audit log themselves.
mod audit;
pub mod bars;
mod breakglass;
pub mod bulk;
pub mod cli;
pub mod config;
pub mod history;
pub mod output;
pub mod placement;
pub mod queues;
pub mod run;
pub mod schedules;
pub mod service;
mod tenants;
#[cfg(test)]
mod tests;

pub use cli::Cli;
pub use run::{Failure, Outcome, Terminal, run};
