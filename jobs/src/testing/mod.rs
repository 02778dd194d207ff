//! Fresh databases and fixtures for tests: Reeve's own, and those of apps that use it.
//!
//! Not for production code: nothing in the three programs turns this feature on.
pub mod database;
pub mod queue_suite;

pub use crate::clock::ManualClock;
pub use database::TestDatabase;
