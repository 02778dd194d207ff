//! The stores under test, as the model needs them beyond `queue_suite::Driver`: emptied for each case, looked at whole.
use std::collections::{BTreeMap, HashMap};

use reeve_jobs::{
    JobId, State, TenantId,
    job::LeaseToken,
    testing::queue_suite::{Driver, Rules},
};
use uuid::Uuid;

use super::reference::Seen;
use crate::conformance::{Postgres, Redis};

pub trait Store: Driver {
    /// An empty store with these tenants.
    async fn fresh(&mut self) -> Vec<TenantId>;
    /// The former state; `None` when it was over. An error is a refusal.
    async fn cancelled(&self, job: JobId) -> Result<Option<State>, String>;
    async fn redriven(&self, job: JobId) -> Result<Option<State>, String>;
    /// All jobs that there are, or what is wrong inside the store.
    async fn seen(&self, jobs: &[JobId]) -> Result<Vec<Seen>, String>;
}

const TENANTS: [&str; 2] = ["t1", "t2"];

async fn tenants(driver: &impl Driver) -> Vec<TenantId> {
    let mut made = Vec::new();
    for id in TENANTS {
        made.push(driver.tenant(id, Rules::default()).await);
    }
    made
}

fn state(word: &str) -> Result<State, String> {
    word.parse().map_err(|error: reeve_jobs::job::UnknownState| error.to_string())
}

impl Postgres {
    async fn operated(&self, sql: &'static str, job: JobId) -> Result<Option<State>, String> {
        let former: Option<String> = sqlx::query_scalar(sql)
            .bind(job)
            .fetch_one(&self.town.db.admin)
            .await
            .map_err(|error| error.to_string())?;
        former.as_deref().map(state).transpose()
    }
}

type Row = (JobId, String, i32, i32, i32, Option<LeaseToken>);

impl Store for Postgres {
    async fn fresh(&mut self) -> Vec<TenantId> {
        // DELETE, which of a few rows is quicker than TRUNCATE.
        for sql in ["DELETE FROM reeve.jobs", "DELETE FROM reeve.job_attempts", "DELETE FROM reeve.job_history"] {
            sqlx::query(sql).execute(&self.town.db.admin).await.expect(sql);
        }
        tenants(self).await
    }

    async fn cancelled(&self, job: JobId) -> Result<Option<State>, String> {
        self.operated("SELECT reeve.cancel_job($1, 'test', 'to see')", job).await
    }

    async fn redriven(&self, job: JobId) -> Result<Option<State>, String> {
        self.operated("SELECT reeve.retry_job($1, 'test', 'to see')", job).await
    }

    async fn seen(&self, _: &[JobId]) -> Result<Vec<Seen>, String> {
        let jobs: Vec<Row> = sqlx::query_as(
            "SELECT id, state, attempt, attempts_max, rescues, lease_token FROM reeve.jobs UNION ALL
             SELECT id, state, attempt, attempts_max, 0, NULL FROM reeve.job_history",
        )
        .fetch_all(&self.town.db.admin)
        .await
        .expect("the jobs");
        let logged: Vec<(JobId, String)> =
            sqlx::query_as("SELECT job_id, outcome FROM reeve.job_attempts ORDER BY ended_at, attempt")
                .fetch_all(&self.town.db.admin)
                .await
                .expect("the attempts");
        let mut logs: HashMap<JobId, Vec<String>> = HashMap::new();
        for (job, outcome) in logged {
            logs.entry(job).or_default().push(outcome);
        }
        let one = |(job, word, attempt, attempts_max, rescues, holder): Row| {
            let log = Some(logs.get(&job).cloned().unwrap_or_default());
            Ok(Seen { job, state: state(&word)?, attempt, attempts_max, rescues, holder, log })
        };
        jobs.into_iter().map(one).collect()
    }
}

impl Store for Redis {
    async fn fresh(&mut self) -> Vec<TenantId> {
        self.move_to_a_lane_of_its_own();
        tenants(self).await
    }

    async fn cancelled(&self, job: JobId) -> Result<Option<State>, String> {
        self.queue.cancel(job, "to see").await.map_err(|error| error.to_string())
    }

    async fn redriven(&self, job: JobId) -> Result<Option<State>, String> {
        self.queue.retry(job, 3).await.map_err(|error| error.to_string())
    }

    async fn seen(&self, jobs: &[JobId]) -> Result<Vec<Seen>, String> {
        let (mut seen, mut places) = (Vec::new(), BTreeMap::new());
        for (key, read) in [("delayed", "ZRANGE"), ("leases", "ZRANGE"), ("parked", "SMEMBERS")] {
            self.place(key, read, key, &mut places).await;
        }
        for tenant in TENANTS {
            self.place("ready", "ZRANGE", &format!("ready:{tenant}"), &mut places).await;
            self.place("run", "SMEMBERS", &format!("run:{tenant}"), &mut places).await;
        }
        for job in jobs {
            let fields: BTreeMap<String, String> = self.hash(&format!("j:{job}")).await;
            let Some(word) = fields.get("state") else { continue };
            let number = |name: &str| fields.get(name).and_then(|text| text.parse().ok()).unwrap_or_default();
            let state = state(word)?;
            let over = matches!(state, State::Completed | State::Cancelled);
            let stands = places.remove(&job.to_string()).unwrap_or_default();
            let meant: &[&str] = match state {
                State::Scheduled | State::Retryable => &["delayed"],
                State::Available => &["ready"],
                State::Running => &["leases", "run"],
                State::Dead | State::Quarantined => &["parked"],
                State::Completed | State::Cancelled => &[],
            };
            if stands != meant {
                return Err(format!("a job that is {state} stands in {stands:?} and not in {meant:?}"));
            }
            seen.push(Seen {
                job: *job,
                state,
                attempt: number("attempt"),
                attempts_max: number("max"),
                rescues: if over { 0 } else { number("rescues") },
                holder: fields.get("tok").and_then(|token| token.parse::<Uuid>().ok()).map(LeaseToken),
                log: None,
            });
        }
        if places.is_empty() { Ok(seen) } else { Err(format!("nobody's jobs stand in {places:?}")) }
    }
}

impl Redis {
    /// Notes where each job stands.
    async fn place(&self, name: &'static str, read: &str, key: &str, places: &mut BTreeMap<String, Vec<&'static str>>) {
        let range: &[&str] = if read == "ZRANGE" { &["0", "-1"] } else { &[] };
        for id in self.raw::<Vec<String>>(read, key, range).await {
            places.entry(id).or_default().push(name);
        }
    }

    async fn hash(&self, key: &str) -> BTreeMap<String, String> {
        // Of text alone: the envelope is not.
        let names = ["state", "attempt", "max", "rescues", "tok"];
        let values: Vec<Option<String>> = self.raw("HMGET", key, &names).await;
        names.iter().zip(values).filter_map(|(name, value)| Some(((*name).to_owned(), value?))).collect()
    }
}
