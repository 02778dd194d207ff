//! Regions: what a worker claims to be in, where rows and buckets may be, and what is refused before a byte is written.
use std::{
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use reeve_jobs::{
    TenantContext, TenantId,
    client::EnqueueError,
    job::{ClaimedJob, Outcome},
    kinds::Work,
    tenant::{Directory, Scope, ScopeError, placements, region},
};
use reeve_worker::runtime::{Handler, Progress};
use sqlx::Executor;

use crate::{
    placements::{Estate, WHO, marks},
    support::{program, until},
};

/// Starts the worker, which must refuse, and returns what it said.
async fn refused_at_start(url: &str, region: &str) -> String {
    let run = tokio::process::Command::new(program("reeve-worker"))
        .env_remove("REEVE_CONFIG")
        .env("REEVE_WORKER__DATABASE_URL", url)
        .envs(reeve_jobs::testing::TestKeystore::shared().await.env())
        .env("REEVE_WORKER__REGION", region)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    // One that does start would run for ever.
    let output = tokio::time::timeout(Duration::from_secs(60), run).await.expect("it refuses").expect("it runs");
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn a_worker_of_an_undeclared_region_or_on_a_tenants_own_database_does_not_start() {
    let estate = Estate::new().await;
    let said = refused_at_start(&estate.town.db.url("reeve_worker"), "mars").await;
    assert!(said.contains("\"mars\" is not declared") && said.contains("reeve regions declare mars"), "{said}");
    assert!(said.contains("one of default"), "{said}");
    let own = estate.dedicated(&estate.town.a).await;
    let said = refused_at_start(&own.url("reeve_worker"), "default").await;
    assert!(said.contains("a tenant's own"), "{said}");
}

#[tokio::test]
async fn a_tenant_is_registered_in_a_declared_region_alone() {
    let estate = Estate::new().await;
    let register = async |id: &'static str, region: &'static str| {
        sqlx::query_scalar::<_, String>("SELECT reeve.register_tenant($1, 'T', $2)")
            .bind(id)
            .bind(region)
            .fetch_one(&estate.town.app)
            .await
    };
    let refused = EnqueueError::from(register("m", "mars").await.expect_err("undeclared"));
    let EnqueueError::Refused { code, hint, .. } = &refused else { panic!("{refused}") };
    assert!(code == "RV031" && hint.as_deref().is_some_and(|hint| hint.contains("reeve regions declare mars")));
    // The default region declares itself, also one that an installation chose later.
    sqlx::query("UPDATE reeve.settings SET default_region = 'home'").execute(&estate.town.db.admin).await.expect("set");
    register("h", "home").await.expect("registered");
    // A region whose rows may not be here: the tenant waits for its own database, and nothing of it runs before.
    placements::declare_region(&estate.ops, "eu", false, WHO).await.expect("declared");
    register("e", "eu").await.expect("registered");
    let e: TenantId = "e".parse().expect("an id");
    assert!(placements::find(&estate.ops, &e).await.expect("found").expect("registered").moving);
    let kept = placements::cancel_move(&estate.ops, &e, WHO).await.expect_err("not here").to_string();
    assert!(kept.contains("may not be in the shared database"), "{kept}");
    let kept = placements::place_shared(&estate.ops, &e, "eu", WHO).await.expect_err("not here").to_string();
    assert!(kept.contains("may not hold rows of region \"eu\""), "{kept}");
}

#[tokio::test]
async fn the_shared_database_serves_no_region_that_it_may_not_hold() {
    let estate = Estate::new().await;
    marks(&estate.town.db).await;
    let refused = placements::declare_region(&estate.ops, "default", false, WHO).await.expect_err("tenants are here");
    assert!(refused.to_string().contains("holds rows of 2 tenants"), "{refused}");
    // As if somebody had, past the function.
    sqlx::query("UPDATE reeve.regions SET holds_shared_rows = false")
        .execute(&estate.town.db.admin)
        .await
        .expect("planted");
    let marker = estate.marker();
    let fleet = estate.town.fleet(marker.clone(), 2);
    let job = estate.probe(&estate.town.a).await;
    until("it is quarantined", async || estate.job(job).await.0 == "quarantined").await;
    fleet.stop().await;
    assert!(estate.job(job).await.2.contains("may not hold rows of region default"));
    assert_eq!(estate.audited(&estate.town.a, "job.quarantined").await, 1);
    assert_eq!(estate.town.count("SELECT count(*) FROM public.marks").await, 0);
}

#[tokio::test]
async fn a_control_scope_is_refused_on_a_tenants_own_database() {
    let estate = Estate::new().await;
    let a = &estate.town.a;
    let own = estate.dedicated(a).await;
    let context = estate.context(a).await;
    // A worker that was pointed at it, and at a row that looks as the control database's would: the proof is good there.
    own.admin.execute("UPDATE reeve.tenants SET placement = 'shared'").await.expect("planted");
    let misled = Directory::new(own.pool("reeve_worker").await);
    let refused = Scope::open_control(&misled, &context).await.expect_err("refused");
    assert!(refused.to_string().contains("not the control database"), "{refused}");
    assert!(matches!(refused, ScopeError::Mismatch(_)));
}

/// A duty that writes to a bucket, behind its guard.
#[derive(Clone)]
struct Exporter {
    directory: Directory,
    bucket: &'static str,
    written: Arc<AtomicUsize>,
}

impl Handler for Exporter {
    async fn handle(&self, _: &ClaimedJob, context: TenantContext, _: Work, _: &Progress) -> Outcome {
        if let Err(error) = region::require_bucket(self.directory.control(), &context, self.bucket).await {
            return error.into_outcome();
        }
        self.written.fetch_add(1, Ordering::Relaxed);
        Outcome::Done
    }
}

#[tokio::test]
async fn a_bucket_of_another_region_or_of_none_is_refused_and_audited_before_a_byte_is_written() {
    let estate = Estate::new().await;
    placements::declare_region(&estate.ops, "eu", true, WHO).await.expect("declared");
    assert!(placements::declare_bucket(&estate.ops, "exports-eu", "eu", WHO).await.expect("declared"));
    assert!(placements::declare_bucket(&estate.ops, "exports-home", "default", WHO).await.expect("declared"));
    assert!(!placements::declare_bucket(&estate.ops, "exports-eu", "eu", WHO).await.expect("again"));
    let moved = placements::declare_bucket(&estate.ops, "exports-eu", "default", WHO).await.expect_err("it stays");
    assert!(moved.to_string().contains("stays there"), "{moved}");
    for (bucket, ends, says, audited) in [
        ("exports-eu", "quarantined", "is in region eu", 1),
        ("exports-nowhere", "quarantined", "declared for no region", 2),
        ("exports-home", "completed", "", 2),
    ] {
        let directory = estate.directory.clone();
        let exporter = Exporter { directory, bucket, written: Arc::default() };
        let fleet = estate.town.fleet(exporter.clone(), 2);
        let job = estate.probe(&estate.town.a).await;
        until("it is over", async || estate.job(job).await.0 == ends).await;
        fleet.stop().await;
        assert!(estate.job(job).await.2.contains(says));
        assert_eq!(exporter.written.load(Ordering::Relaxed), usize::from(ends == "completed"), "{bucket}");
        assert_eq!(estate.audited(&estate.town.a, "job.quarantined").await, audited, "{bucket}");
    }
}
