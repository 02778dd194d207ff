//! The claims of `jobs::testing::queue_suite`, over each store of jobs.
use reeve_jobs::{
    JobId, State, TenantId,
    queue::{Lane, PostgresQueue},
    testing::queue_suite::{self, Driver, NewJob, Rules},
};
use sqlx::PgPool;

use crate::support::Town;

macro_rules! over_postgres {
    ($($claim:ident),+ $(,)?) => { mod postgres { $(
        #[tokio::test]
        async fn $claim() {
            super::queue_suite::$claim(&super::Postgres::new().await).await;
        }
    )+ } };
}
reeve_jobs::each_queue_claim!(over_postgres);

struct Postgres {
    town: Town,
    queue: PostgresQueue,
    scheduler: PgPool,
}

impl Postgres {
    async fn new() -> Self {
        let town = Town::new().await;
        // So that the suite's limit is this kind's too.
        sqlx::query("UPDATE reeve.kinds SET payload_bytes_max = 65536 WHERE name = 'fleet.probe'")
            .execute(&town.db.admin)
            .await
            .expect("changed");
        Self { queue: PostgresQueue::new(town.worker.clone()), scheduler: town.db.pool("reeve_scheduler").await, town }
    }

    async fn on_job(&self, sql: &'static str, job: JobId) {
        sqlx::query(sql).bind(job).execute(&self.town.db.admin).await.expect(sql);
    }
}

impl Driver for Postgres {
    type Queue = PostgresQueue;

    fn queue(&self) -> &PostgresQueue {
        &self.queue
    }

    fn lane(&self) -> Lane {
        Lane { queue: "probes".to_owned(), region: "default".to_owned() }
    }

    async fn tenant(&self, id: &str, rules: Rules) -> TenantId {
        let tenant = self.town.db.tenant(id).await;
        sqlx::query("UPDATE reeve.tenants SET weight = $2, running_max = $3, paused = $4 WHERE id = $1")
            .bind(id)
            .bind(rules.weight)
            .bind(rules.running_max)
            .bind(rules.paused)
            .execute(&self.town.db.admin)
            .await
            .expect("rules");
        tenant
    }

    async fn enqueue(&self, tenant: &TenantId, job: &NewJob) -> Result<JobId, String> {
        let mut tx = self.town.app.begin().await.expect("begin");
        reeve_jobs::client::set_tenant(&mut tx, tenant).await.expect("context");
        let id = sqlx::query_scalar(
            "SELECT reeve.enqueue('fleet.probe', $1, dedupe_key => $2, run_at => now() + make_interval(secs => $3),
                                  priority => nullif($4, 0))",
        )
        .bind(serde_json::json!({"note": job.note}))
        .bind(&job.unique_key)
        .bind(f64::from(job.delay_secs))
        .bind(i32::from(job.priority))
        .fetch_one(&mut *tx)
        .await
        .map_err(|error| error.to_string())?;
        tx.commit().await.expect("commit");
        Ok(id)
    }

    async fn pause_queue(&self, pause: bool) {
        sqlx::query("SELECT reeve.pause_queue('probes', $1, 'test', 'to see')")
            .bind(pause)
            .execute(&self.town.db.admin)
            .await
            .expect("paused");
    }

    async fn pass(&self, secs: i64) {
        sqlx::query(
            "UPDATE reeve.jobs SET run_at = run_at - make_interval(secs => $1),
                                   lease_expires_at = lease_expires_at - make_interval(secs => $1)",
        )
        .bind(secs as f64)
        .execute(&self.town.db.admin)
        .await
        .expect("time passes");
    }

    async fn upkeep(&self) {
        sqlx::query("SELECT reeve.promote(100)").execute(&self.scheduler).await.expect("promoted");
        sqlx::query("SELECT count(*) FROM reeve.rescue(100)").execute(&self.scheduler).await.expect("rescued");
    }

    async fn cancel(&self, job: JobId) {
        self.on_job("SELECT reeve.cancel_job($1, 'test', 'to see')", job).await;
    }

    async fn redrive(&self, job: JobId) {
        self.on_job("SELECT reeve.retry_job($1, 'test', 'to see')", job).await;
    }

    async fn state(&self, job: JobId) -> State {
        self.town.state(job).await.parse().expect("a state")
    }

    async fn spoil(&self, job: JobId) {
        // Deeper than a reader follows, but fit for jsonb.
        self.on_job(
            "UPDATE reeve.jobs SET payload = ('{\"a\":' || repeat('[', 500) || repeat(']', 500) || '}')::jsonb
             WHERE id = $1",
            job,
        )
        .await;
    }

    async fn lease_left(&self, job: JobId) -> f64 {
        sqlx::query_scalar(
            "SELECT extract(epoch FROM lease_expires_at - clock_timestamp())::float8 FROM reeve.jobs WHERE id = $1",
        )
        .bind(job)
        .fetch_one(&self.town.db.admin)
        .await
        .expect("a lease")
    }
}
