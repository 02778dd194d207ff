//! What every party of Reeve must agree on.
//!
//! A web app depends on this crate with default features and enqueues; the three programs turn on `program`, the
//! worker `seal` as well. Nothing here does a job (`worker`), decides when one is due (`scheduler`) or shows one (`ops`).
//!
//! | question | module |
//! | --- | --- |
//! | which kinds of job are there, and what does each carry? | [`kinds`] |
//! | what is a job, and which states can it be in? | [`job`] |
//! | how does an app enqueue one in its own transaction? | [`client`] |
//! | whose job is it, and how are a tenant's rows reached? | [`tenant`] |
//! | how is a job claimed, renewed and settled? | [`queue`] |
//! | who did what? | [`audit`] |
//! | how are secrets kept at rest? | [`seal`] (feature `seal`) |
//! | how does a program start, log, connect, migrate and stop? | [`program`] (feature `program`) |
//! | what does each table of the app mean? | [`catalogue`] (feature `program`) |
//! | how is all that tested? | [`testing`] (feature `testing`) |
pub mod audit;
#[cfg(feature = "program")]
pub mod catalogue;
pub mod client;
pub mod clock;
pub mod job;
pub mod kinds;
#[cfg(feature = "program")]
pub mod program;
pub mod queue;
pub mod redact;
#[cfg(feature = "seal")]
pub mod seal;
pub mod tenant;
#[cfg(feature = "testing")]
pub mod testing;

pub use job::{JobId, Outcome, State};
pub use kinds::{Kind, Payload, Work};
pub use tenant::{TenantContext, TenantId};
