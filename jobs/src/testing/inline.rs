//! Inline mode: a handler run at once on a payload, in this task, with a tenant's context that the test's database honours.
//!
//! The payload goes to JSON and back as it would through the queue, and is held against its kind's limit, so that what a worker
//! could not read fails here too. No job is made, nothing is claimed or settled, and nothing is retried.
use std::future::Future;

use super::TestDatabase;
use crate::{
    job::Outcome,
    kinds::Payload,
    tenant::{TenantContext, TenantId},
};

/// Runs `handler` on `payload` for `tenant` and returns its outcome.
///
/// ```
/// use reeve_jobs::{Outcome, kinds::ProbeFleet, testing::{self, TestDatabase}};
/// # testing::block_on(async {
/// let db = TestDatabase::new().await;
/// let acme = db.tenant("acme").await;
/// let probe = ProbeFleet { note: Some("hello".into()), sleep_ms: 0 };
/// let outcome = testing::inline(&db, &acme, &probe, async |context, probe| {
///     assert_eq!(context.tenant.as_str(), "acme");
///     if probe.note.is_some() { Outcome::Done } else { Outcome::dead("nothing to say") }
/// })
/// .await;
/// assert_eq!(outcome, Outcome::Done);
/// # db.drop_now().await;
/// # });
/// ```
///
/// # Panics
/// When the payload does not survive JSON, or is larger than its kind allows: the queue would refuse it.
pub async fn inline<P: Payload, F: Future<Output = Outcome>>(
    db: &TestDatabase,
    tenant: &TenantId,
    payload: &P,
    handler: impl FnOnce(TenantContext, P) -> F,
) -> Outcome {
    let kind = P::KIND;
    let stored = serde_json::to_value(payload).unwrap_or_else(|error| panic!("the payload of {kind}: {error}"));
    let size = stored.to_string().len();
    let most = usize::try_from(kind.spec().payload_bytes_max).unwrap_or_default();
    assert!(size <= most, "the payload of {kind} has {size} bytes, more than its limit of {most}");
    let read = serde_json::from_value(stored).unwrap_or_else(|error| panic!("the payload of {kind}: {error}"));
    handler(db.context(tenant).await, read).await
}
