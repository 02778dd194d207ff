//! Why a job waits, and the switches that make it: pauses of queues and kinds. Calls of the functions in
//! `migrations/0018_claim.sql`, which hold all logic; runs as `reeve_ops`.
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;

use super::operate::Act;
use crate::job::{JobId, State};

/// Everything that a claim heeds about one live job, at one moment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Why {
    pub id: JobId,
    pub tenant: String,
    pub kind: String,
    pub queue: String,
    pub region: String,
    pub state: State,
    pub due_at: DateTime<Utc>,
    pub due_in_secs: f64,
    pub deadline_at: Option<DateTime<Utc>>,
    /// Who holds it, while it runs.
    pub worker: Option<String>,
    pub last_error: Option<String>,
    pub queue_paused: bool,
    pub kind_paused: bool,
    /// By the flag `kind.<name>`, for this tenant.
    pub kind_off: bool,
    pub tenant_paused: bool,
    pub tenant_moving: bool,
    pub tenant_state: String,
    pub runs_when_closing: bool,
    /// The tenant's jobs of this queue that run now, and how many may; `None` is no cap.
    pub running: i64,
    pub running_max: Option<i64>,
    pub starts_per_min: Option<i64>,
    /// How many the tenant may start now by that rate.
    pub starts_free: Option<i64>,
    pub weight: i64,
    /// The tenant's own jobs that come before it, up to 10,000.
    pub own_ahead: Option<i64>,
    /// Tenants that share the queue with it, up to 1,000.
    pub tenants_ready: i64,
    /// A worker waits for jobs of this queue and region at this moment.
    pub workers_idle: bool,
}

impl Why {
    /// The answer in sentences, the one that must go first in front. Never empty.
    pub fn reasons(&self) -> Vec<String> {
        let mut said = Vec::new();
        match self.state {
            State::Running => return vec![format!("it runs, on {}", self.worker.as_deref().unwrap_or("a worker"))],
            State::Dead | State::Quarantined => {
                let why = self.last_error.as_deref().unwrap_or("no error was kept");
                return vec![format!("it is {} and waits for an operator: {why}", self.state)];
            }
            _ => {}
        }
        let mut tell = |holds: bool, text: String| {
            if holds {
                said.push(text);
            }
        };
        tell(self.queue_paused, format!("queue {} is paused: `reeve queues resume {}`", self.queue, self.queue));
        tell(self.kind_paused, format!("kind {} is paused: `reeve kinds resume {}`", self.kind, self.kind));
        tell(self.kind_off, format!("flag kind.{} is off for the tenant: `reeve flags list --tenant`", self.kind));
        tell(self.tenant_paused, "the tenant is paused".to_owned());
        tell(self.tenant_moving, "the tenant is being moved to another database".to_owned());
        tell(self.tenant_state == "closed", "the tenant is closed".to_owned());
        tell(
            self.tenant_state == "closing" && !self.runs_when_closing,
            format!("the tenant is closing, and {} does not run then", self.kind),
        );
        tell(self.due_in_secs > 0.0, format!("it is due in {:.0} s ({})", self.due_in_secs.ceil(), self.state));
        if let Some(max) = self.running_max {
            tell(self.running >= max, format!("the tenant's cap: {} of {max} jobs run in this queue", self.running));
        }
        if let (Some(per_min), Some(..=0)) = (self.starts_per_min, self.starts_free) {
            tell(true, format!("the tenant's rate of {per_min} starts a minute is used up for the moment"));
        }
        if said.is_empty() {
            said.push(self.place());
        }
        said
    }

    /// Nothing holds it: where it stands.
    fn place(&self) -> String {
        if self.deadline_at.is_some() {
            return "nothing holds it: its kind has a deadline, so it is claimed before all others".to_owned();
        }
        let own = self.own_ahead.unwrap_or(0);
        let others = (self.tenants_ready - 1).max(0);
        let before = own + others * (own / self.weight.max(1) + 1);
        let workers = if self.workers_idle {
            "a worker is waiting for it"
        } else {
            "every worker of its queue is busy, or none runs in its region"
        };
        format!(
            "nothing holds it: {own} of the tenant's own jobs and {others} other tenants come before it, some {before} jobs; {workers}"
        )
    }
}

/// `None`: no live job has this id.
pub async fn why(pool: &PgPool, job: JobId) -> sqlx::Result<Option<Why>> {
    let found: Option<sqlx::types::Json<Why>> =
        sqlx::query_scalar("-- waits.why\nSELECT reeve.why($1)").bind(job).fetch_one(pool).await?;
    Ok(found.map(|json| json.0))
}

/// A queue, its kinds, and what is paused of them.
#[derive(Debug, Clone, Serialize, sqlx::FromRow)]
pub struct QueueRow {
    pub queue: String,
    pub paused: bool,
    pub kinds: Vec<String>,
    pub kinds_paused: Vec<String>,
    pub available: i64,
    pub running: i64,
}

pub async fn queues(pool: &PgPool) -> sqlx::Result<Vec<QueueRow>> {
    sqlx::query_as(
        "-- waits.queues
        SELECT k.queue, EXISTS (SELECT FROM reeve.paused_queues p WHERE p.queue = k.queue) AS paused,
               array_agg(k.name ORDER BY k.name) AS kinds,
               coalesce(array_agg(k.name ORDER BY k.name) FILTER (WHERE k.paused), '{}') AS kinds_paused,
               (SELECT count(*) FROM reeve.jobs j WHERE j.queue = k.queue AND j.state = 'available') AS available,
               (SELECT count(*) FROM reeve.jobs j WHERE j.queue = k.queue AND j.state = 'running') AS running
        FROM reeve.kinds k GROUP BY k.queue ORDER BY k.queue",
    )
    .fetch_all(pool)
    .await
}

/// Whether it changed anything.
pub async fn pause_queue(pool: &PgPool, queue: &str, pause: bool, act: Act<'_>) -> sqlx::Result<bool> {
    switch(pool, "-- waits.pause_queue\nSELECT reeve.pause_queue($1, $2, $3, $4)", queue, pause, act).await
}

/// Whether it changed anything.
pub async fn pause_kind(pool: &PgPool, kind: &str, pause: bool, act: Act<'_>) -> sqlx::Result<bool> {
    switch(pool, "-- waits.pause_kind\nSELECT reeve.pause_kind($1, $2, $3, $4)", kind, pause, act).await
}

async fn switch(pool: &PgPool, sql: &'static str, name: &str, pause: bool, act: Act<'_>) -> sqlx::Result<bool> {
    sqlx::query_scalar(sql).bind(name).bind(pause).bind(act.actor).bind(act.reason).fetch_one(pool).await
}
