//! When jobs become due: mechanism only. Nothing here knows what any kind of job is for.
//!
//! ```text
//!   reeve.schedules ──enqueuer──► scheduled ──promoter──► available ◄──rescuer── running, lease expired
//!                                             parked, old ──pruner──► history ──pruner──► dropped
//! ```
//!
//! Each service is a loop around a `run_once` that is safe to run many times over and in many schedulers at a time:
//! the work itself is a function of the database, granted to this role alone, and it is decided on the database's clock.
//! This program sees no tenant's row. It runs no job, and it sends nothing anywhere.
//!
//! | question | module |
//! | --- | --- |
//! | when is the next slot of a cron expression, and what of those missed? | `reeve_jobs::queue::slots` |
//! | which schedules are due, and why is there no leader? | [`enqueuer`] |
//! | who makes waiting jobs available? | [`promoter`] |
//! | what becomes of a job whose worker vanished? | [`rescuer`] |
//! | what is thrown away, and when? | [`pruner`] |
//! | who holds ready jobs out to the workers in Redis? | [`relay`] |
//! | who works through an operator's bulk operation? | [`bulk`] |
//! | who signs the audit log, so that a change of it shows? | [`signer`] |
//! | what was opened for a time, and is over? | [`closer`] |
//! | how do these keep running? | [`service`] |
//! | what can be set? | [`config`] |
pub mod bulk;
pub mod closer;
pub mod config;
pub mod enqueuer;
pub mod promoter;
pub mod pruner;
pub mod relay;
pub mod rescuer;
pub mod service;
pub mod signer;

#[cfg(test)]
mod tests;
