//! Fresh databases and fixtures for tests: Reeve's own, and those of apps that use it.
//!
//! | question | |
//! | --- | --- |
//! | does my handler do the right thing? | [`inline`](fn@inline) runs it at once |
//! | did my code enqueue the right job? | [`assert_enqueued!`](crate::assert_enqueued), [`assert_not_enqueued!`](crate::assert_not_enqueued) |
//! | what happens when all jobs have run, with their retries? | [`Drain`] runs them, and no test waits for a time to come |
//!
//! Not for production code: nothing in the three programs turns this feature on.
pub mod database;
pub mod drain;
pub mod enqueued;
pub mod inline;
#[cfg(feature = "seal")]
pub mod keystore;
pub mod queue_suite;

pub use crate::clock::ManualClock;
pub use database::TestDatabase;
pub use drain::{Drain, Drained};
pub use enqueued::enqueued;
pub use inline::inline;
#[cfg(feature = "seal")]
pub use keystore::TestKeystore;
pub use serde_json::json;

/// Runs a future to its end on a runtime of its own: for tests and examples without an async test macro.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime can be made").block_on(future)
}
