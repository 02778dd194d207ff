//! The duties, one module each.

pub mod webhooks;
