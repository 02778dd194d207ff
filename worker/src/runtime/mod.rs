//! What every duty shares.

pub mod backoff;
