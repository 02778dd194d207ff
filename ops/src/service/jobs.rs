//! Jobs as operators see and handle them: list, show, enqueue, retry, cancel, follow.
use std::collections::HashMap;

use reeve_jobs::{
    JobId, Kind, State, TenantId,
    queue::{
        inspect::{self, Change, Filter, JobDetail, JobSummary, Mark, Place, Progressing},
        operate::{self, Act},
        waits::{self, Why},
    },
};
use serde::Serialize;
use serde_json::Value;
use sqlx::PgPool;

use super::{ServiceError, require_kind, require_tenant};

/// What an act did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Acted {
    pub id: JobId,
    pub was: State,
    pub now: State,
}

async fn check_filter(pool: &PgPool, filter: &Filter) -> Result<(), ServiceError> {
    if let Some(kind) = &filter.kind {
        require_kind(pool, kind).await?;
    }
    if let Some(tenant) = &filter.tenant {
        require_tenant(pool, tenant).await?;
    }
    Ok(())
}

/// The newest jobs first, at most `limit`.
pub async fn list(pool: &PgPool, place: Place, filter: &Filter, limit: i64) -> Result<Vec<JobSummary>, ServiceError> {
    match (place, filter.state) {
        (Place::Live, Some(state @ (State::Completed | State::Cancelled))) => {
            return Err(ServiceError::WrongPlace { state, advice: "they are over, look in the history (--history)" });
        }
        (Place::History, Some(state)) if !state.is_settled() => {
            return Err(ServiceError::WrongPlace { state, advice: "they are live, leave out --history" });
        }
        _ => {}
    }
    check_filter(pool, filter).await?;
    Ok(inspect::list(pool, place, filter, limit).await?)
}

pub async fn show(pool: &PgPool, id: JobId) -> Result<JobDetail, ServiceError> {
    inspect::find(pool, id).await?.ok_or(ServiceError::NoJob(id))
}

/// What running jobs report; see [`inspect::progress`].
pub async fn progress(pool: &PgPool, filter: &Filter) -> Result<Vec<Progressing>, ServiceError> {
    Ok(inspect::progress(pool, filter, None).await?)
}

/// Why it waits; a job that is over waits for nothing.
pub async fn why(pool: &PgPool, id: JobId) -> Result<Why, ServiceError> {
    match waits::why(pool, id).await? {
        Some(why) => Ok(why),
        None => Err(not_live(pool, id).await),
    }
}

/// Enqueues one job. The payload is decoded as a worker would before anything is sent, so that a job which no handler
/// could read is refused here and not quarantined there.
pub async fn enqueue(
    pool: &PgPool,
    tenant: &TenantId,
    kind: Kind,
    payload: &str,
    act: Act<'_>,
) -> Result<JobId, ServiceError> {
    let payload: Value = serde_json::from_str(payload).map_err(ServiceError::PayloadSyntax)?;
    let shape = match &payload {
        Value::Object(_) => None,
        Value::Array(_) => Some("an array"),
        Value::String(_) => Some("a string"),
        Value::Number(_) => Some("a number"),
        Value::Bool(_) => Some("a boolean"),
        Value::Null => Some("null"),
    };
    if let Some(shape) = shape {
        return Err(ServiceError::PayloadShape(shape));
    }
    kind.decode(payload.clone()).map_err(|source| ServiceError::Payload { kind: kind.name(), source })?;
    Ok(operate::enqueue(pool, tenant, kind, &payload, act).await?)
}

pub async fn retry(pool: &PgPool, id: JobId, act: Act<'_>) -> Result<Acted, ServiceError> {
    match operate::retry(pool, id, act).await? {
        Some(was) => Ok(Acted { id, was, now: State::Available }),
        None => Err(not_live(pool, id).await),
    }
}

/// Cancels; `now` is still `running` where the worker has yet to be told.
pub async fn cancel(pool: &PgPool, id: JobId, act: Act<'_>) -> Result<Acted, ServiceError> {
    match operate::cancel(pool, id, act).await? {
        Some(State::Running) => Ok(Acted { id, was: State::Running, now: State::Running }),
        Some(was) => Ok(Acted { id, was, now: State::Cancelled }),
        None => Err(not_live(pool, id).await),
    }
}

async fn not_live(pool: &PgPool, id: JobId) -> ServiceError {
    match inspect::find(pool, id).await {
        Ok(Some(detail)) => ServiceError::JobOver { id, state: detail.job.state },
        Ok(None) => ServiceError::NoJob(id),
        Err(error) => error.into(),
    }
}

/// Follows jobs from the moment it is made. What happened between two looks shows as its end: a job that was enqueued
/// and completed in between appears once, as completed.
#[derive(Debug)]
pub struct Tail {
    filter: Filter,
    mark: Mark,
    /// What was last told of the jobs that the next look may bring again: those of the last look, and running ones,
    /// whose rows change with each renewal of their lease.
    told: HashMap<JobId, (State, i32)>,
}

impl Tail {
    pub async fn start(pool: &PgPool, filter: Filter) -> Result<Self, ServiceError> {
        check_filter(pool, &filter).await?;
        let look = inspect::changes(pool, &filter, None).await?;
        let told = look.changes.iter().map(|job| (job.id, (job.state, job.attempt))).collect();
        Ok(Self { filter, mark: look.mark, told })
    }

    /// What appeared or changed state since the last look.
    pub async fn look(&mut self, pool: &PgPool) -> Result<Vec<Change>, ServiceError> {
        let look = inspect::changes(pool, &self.filter, Some(&self.mark)).await?;
        let seen: HashMap<_, _> = look.changes.iter().map(|job| (job.id, (job.state, job.attempt))).collect();
        let news = look.changes.into_iter().filter(|job| self.told.get(&job.id) != Some(&(job.state, job.attempt)));
        let news = news.collect();
        self.told.retain(|_, (state, _)| *state == State::Running);
        self.told.extend(seen);
        self.mark = look.mark;
        Ok(news)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use reeve_jobs::{
        queue::{Lane, PostgresQueue, Queue, Settlement},
        testing::TestDatabase,
    };
    use sqlx::{Connection, PgConnection};

    use super::*;

    const LEASE: Duration = Duration::from_secs(30);
    const WHO: Act<'static> = Act { actor: "test", reason: "arranging" };

    fn lane() -> Lane {
        Lane { queue: "probes".to_owned(), region: "default".to_owned() }
    }

    async fn states(tail: &mut Tail, pool: &PgPool) -> Vec<(JobId, State)> {
        tail.look(pool).await.expect("a look").iter().map(|change| (change.id, change.state)).collect()
    }

    #[tokio::test]
    async fn the_tail_tells_each_change_of_state_once_and_no_renewal() {
        let db = TestDatabase::new().await;
        let (ops, acme) = (db.pool("reeve_ops").await, db.tenant("acme").await);
        let queue = PostgresQueue::new(db.pool("reeve_worker").await);
        let before = enqueue(&ops, &acme, Kind::FleetProbe, "{}", WHO).await.expect("a job");
        let running = queue.claim(&lane(), 1, "w", "", LEASE).await.expect("a claim").jobs.remove(0);
        let mut tail = Tail::start(&ops, Filter::default()).await.expect("a tail");
        assert_eq!(states(&mut tail, &ops).await, [], "what was there is no news");

        let id = enqueue(&ops, &acme, Kind::FleetProbe, "{}", WHO).await.expect("a job");
        assert_eq!(states(&mut tail, &ops).await, [(id, State::Available)]);
        assert_eq!(states(&mut tail, &ops).await, []);
        let job = queue.claim(&lane(), 1, "w", "", LEASE).await.expect("a claim").jobs.remove(0);
        assert_eq!(states(&mut tail, &ops).await, [(id, State::Running)]);
        for _ in 0..2 {
            let held = [(running.id, running.lease_token), (job.id, job.lease_token)];
            assert_eq!(queue.renew(&held, LEASE).await.expect("a renewal").len(), 2);
            assert_eq!(states(&mut tail, &ops).await, [], "a renewed lease is no news");
        }
        let settlement =
            Settlement { job: id, token: job.lease_token, outcome: "completed", delay: Duration::ZERO, error: None };
        queue.settle(&[settlement]).await.expect("a settlement");
        assert_eq!(states(&mut tail, &ops).await, [(id, State::Completed)]);
        assert_eq!(states(&mut tail, &ops).await, []);
        assert_eq!(before, running.id);
        db.drop_now().await;
    }

    #[tokio::test]
    async fn the_tail_misses_no_job_whose_transaction_committed_late() {
        let db = TestDatabase::new().await;
        let (ops, acme) = (db.pool("reeve_ops").await, db.tenant("acme").await);
        let mut tail = Tail::start(&ops, Filter::default()).await.expect("a tail");
        let mut app = PgConnection::connect_with(&db.options("reeve_app")).await.expect("the app");
        let mut tx = app.begin().await.expect("a transaction");
        reeve_jobs::client::set_tenant(&mut tx, &acme).await.expect("a context");
        // Inside a savepoint, so that the row carries a subtransaction's id, which no snapshot lists.
        let mut savepoint = tx.begin().await.expect("a savepoint");
        let late =
            reeve_jobs::client::enqueue(&mut savepoint, &reeve_jobs::kinds::ProbeFleet::default(), &Default::default())
                .await
                .expect("a job");
        savepoint.commit().await.expect("a savepoint");
        let other = enqueue(&ops, &acme, Kind::FleetProbe, "{}", WHO).await.expect("a later job, committed first");
        assert_eq!(states(&mut tail, &ops).await, [(other, State::Available)]);
        assert_eq!(states(&mut tail, &ops).await, []);
        tx.commit().await.expect("a commit");
        assert_eq!(states(&mut tail, &ops).await, [(late, State::Available)]);
        db.drop_now().await;
    }

    #[tokio::test]
    async fn the_tail_heeds_its_filter() {
        let db = TestDatabase::new().await;
        let (ops, acme, other) = (db.pool("reeve_ops").await, db.tenant("acme").await, db.tenant("other").await);
        let filter = Filter { tenant: Some(acme.clone()), kind: Some("fleet.probe".to_owned()), state: None };
        let mut tail = Tail::start(&ops, filter).await.expect("a tail");
        enqueue(&ops, &other, Kind::FleetProbe, "{}", WHO).await.expect("another tenant's job");
        enqueue(&ops, &acme, Kind::WebhookPrune, "{}", WHO).await.expect("another kind's job");
        let mine = enqueue(&ops, &acme, Kind::FleetProbe, "{}", WHO).await.expect("a job");
        assert_eq!(states(&mut tail, &ops).await, [(mine, State::Available)]);
        db.drop_now().await;
    }
}
