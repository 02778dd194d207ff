//! Webhook delivery: how a message is signed, and when a failed delivery is tried again.

pub mod schedule;
pub mod sign;
