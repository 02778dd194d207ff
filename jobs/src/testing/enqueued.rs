//! What was enqueued: [`assert_enqueued!`](crate::assert_enqueued) and its opposite.
//!
//! Both look at live jobs as they are committed; a job that a drain has run is no longer one of them.
use super::TestDatabase;
use crate::{kinds::Kind, tenant::TenantId};

/// Live jobs of this tenant and kind whose payload contains `part`, and for the message all of the tenant's live jobs.
pub async fn enqueued(
    db: &TestDatabase,
    tenant: &TenantId,
    kind: Kind,
    part: &serde_json::Value,
) -> (i64, Vec<String>) {
    let states = "('scheduled', 'available', 'running', 'retryable')";
    let count = format!(
        "-- testing.enqueued\nSELECT count(*) FROM reeve.jobs
        WHERE tenant_id = $1 AND kind = $2 AND payload @> $3 AND state IN {states}"
    );
    let found = sqlx::query_scalar(sqlx::AssertSqlSafe(count))
        .bind(tenant.as_str())
        .bind(kind.name())
        .bind(part)
        .fetch_one(&db.admin)
        .await
        .expect("a count");
    let all = format!(
        "-- testing.enqueued_all\nSELECT kind || ' ' || payload FROM reeve.jobs
        WHERE tenant_id = $1 AND state IN {states} ORDER BY id LIMIT 20"
    );
    let there = sqlx::query_scalar(sqlx::AssertSqlSafe(all)).bind(tenant.as_str()).fetch_all(&db.admin).await;
    (found, there.expect("the tenant's jobs"))
}

/// Asserts that a live job of a tenant and kind is there, whose payload contains the given fields (`{}` for any).
///
/// ```
/// use reeve_jobs::{Kind, assert_enqueued, assert_not_enqueued, client, kinds::ProbeFleet, testing::{self, TestDatabase}};
/// # testing::block_on(async {
/// let db = TestDatabase::new().await;
/// let (acme, other) = (db.tenant("acme").await, db.tenant("other").await);
/// let probe = ProbeFleet { note: Some("nightly".into()), sleep_ms: 5 };
/// client::enqueue_alone(&db.pool("reeve_app").await, &acme, &probe).await.unwrap();
/// assert_enqueued!(&db, &acme, Kind::FleetProbe, { "note": "nightly" });
/// assert_enqueued!(&db, &acme, Kind::FleetProbe, {});
/// assert_not_enqueued!(&db, &acme, Kind::FleetProbe, { "note": "hourly" });
/// assert_not_enqueued!(&db, &other, Kind::FleetProbe, {});
/// # db.drop_now().await;
/// # });
/// ```
#[macro_export]
macro_rules! assert_enqueued {
    ($db:expr, $tenant:expr, $kind:expr, $($part:tt)+) => {{
        let part = $crate::testing::json!($($part)+);
        let (found, there) = $crate::testing::enqueued($db, $tenant, $kind, &part).await;
        assert!(found > 0, "no live {} with {part} of tenant {}; it has {there:#?}", $kind, $tenant);
    }};
}

/// Asserts that no live job of a tenant and kind has a payload that contains the given fields (`{}` for any). See
/// [`assert_enqueued!`](crate::assert_enqueued).
#[macro_export]
macro_rules! assert_not_enqueued {
    ($db:expr, $tenant:expr, $kind:expr, $($part:tt)+) => {{
        let part = $crate::testing::json!($($part)+);
        let (found, there) = $crate::testing::enqueued($db, $tenant, $kind, &part).await;
        assert!(found == 0, "{found} live {} with {part} of tenant {}; it has {there:#?}", $kind, $tenant);
    }};
}
