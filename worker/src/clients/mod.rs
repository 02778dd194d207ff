//! The only outbound doors. A duty that needs the network goes through one of these, never through a client of its own.

pub mod address;
pub mod http;
pub mod kms;
