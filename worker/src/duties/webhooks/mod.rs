//! Signed webhook delivery, on the wire as Standard Webhooks says.
//!
//! ```text
//!   reeve.emit (app's transaction) ──► event, deliveries, one job a delivery
//!   job ──► deliver: read in a scope ─► sign with each secret in force ─► send ─► record in a scope ─► outcome
//! ```
//! No transaction is open while the receiver is waited for. A worker that dies between sending and recording sends again,
//! under the same `webhook-id`: that is the receiver's duplicate key.
pub mod deliver;
pub mod endpoints;
pub mod prune;
pub mod schedule;
pub mod secrets;
pub mod sign;
