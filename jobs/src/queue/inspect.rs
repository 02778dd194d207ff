//! Reading the queue as operators see it: live and parked jobs, history, attempts, counts, and what changed since a look.
//!
//! All of it runs as `reeve_ops`, whose policy lets it read every tenant's rows; a caller that shows them to a tenant
//! must filter by that tenant. Nothing here changes a row (see [`super::operate`]), and a lease token never comes out:
//! whoever has one can settle the job.
use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{PgPool, Row, postgres::PgRow};

use crate::{
    job::{JobId, State},
    tenant::TenantId,
};

/// Where a job's row is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// `reeve.jobs`: live jobs, and parked (dead, quarantined) ones.
    Live,
    /// `reeve.job_history`: what is over.
    History,
}

/// Which jobs are meant; an empty filter means all.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub tenant: Option<TenantId>,
    /// As stored: may be a kind that this build does not know.
    pub kind: Option<String>,
    pub state: Option<State>,
}

/// A job without its payload.
#[derive(Debug, Clone, Serialize)]
pub struct JobSummary {
    pub id: JobId,
    pub tenant: TenantId,
    pub kind: String,
    pub queue: String,
    pub region: String,
    pub state: State,
    pub priority: i16,
    pub attempt: i32,
    pub attempts_max: i32,
    pub run_at: DateTime<Utc>,
    pub created_at: DateTime<Utc>,
    /// When its latest attempt began.
    pub attempted_at: Option<DateTime<Utc>>,
    pub finished_at: Option<DateTime<Utc>>,
    pub worker: Option<String>,
    pub last_error: Option<String>,
}

/// All there is to know of one job.
#[derive(Debug, Clone, Serialize)]
pub struct JobDetail {
    #[serde(rename = "where")]
    pub place: Place,
    #[serde(flatten)]
    pub job: JobSummary,
    /// Leases that ended without a settlement.
    pub rescues: i32,
    pub lease_expires_at: Option<DateTime<Utc>>,
    /// An operator asked it to stop; its worker is told with its next renewal.
    pub cancel_reason: Option<String>,
    pub dedupe_key: Option<String>,
    pub traceparent: Option<String>,
    pub payload: serde_json::Value,
    /// Of the attempt that runs now.
    pub progress: Option<Progress>,
    /// Attempts that did not finish the job, oldest first.
    pub attempts: Vec<Attempt>,
}

/// How far a running job has come, as its handler said last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Progress {
    pub step: String,
    pub done: i64,
    /// `None` where the handler cannot know.
    pub total: Option<i64>,
    pub reported_at: DateTime<Utc>,
}

/// A running job that reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Progressing {
    pub id: JobId,
    pub tenant: TenantId,
    pub kind: String,
    pub progress: Progress,
}

#[derive(Debug, Clone, Serialize)]
pub struct Attempt {
    pub attempt: i32,
    pub outcome: String,
    pub worker: Option<String>,
    pub started_at: Option<DateTime<Utc>>,
    pub ended_at: DateTime<Utc>,
    pub error: Option<String>,
}

/// How many live and parked jobs a tenant has of one kind in one state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct JobCount {
    pub state: State,
    pub kind: String,
    pub jobs: i64,
}

fn parsed<T: std::str::FromStr>(row: &PgRow, column: &str) -> sqlx::Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    row.try_get::<&str, _>(column)?.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))
}

fn summary(row: &PgRow) -> sqlx::Result<JobSummary> {
    Ok(JobSummary {
        id: row.try_get("id")?,
        tenant: parsed(row, "tenant_id")?,
        kind: row.try_get("kind")?,
        queue: row.try_get("queue")?,
        region: row.try_get("region")?,
        state: parsed(row, "state")?,
        priority: row.try_get("priority")?,
        attempt: row.try_get("attempt")?,
        attempts_max: row.try_get("attempts_max")?,
        run_at: row.try_get("run_at")?,
        created_at: row.try_get("created_at")?,
        attempted_at: row.try_get("attempted_at")?,
        finished_at: row.try_get("finished_at")?,
        worker: row.try_get("worker")?,
        last_error: row.try_get("last_error")?,
    })
}

const LIST_LIVE: &str = "-- inspect.list
SELECT j.id, j.tenant_id, j.kind, j.queue, j.region, j.state, j.priority, j.attempt, j.attempts_max, j.run_at,
       j.created_at, j.attempted_at, NULL::timestamptz AS finished_at, j.worker, j.last_error
FROM reeve.jobs j
WHERE ($1::text IS NULL OR j.tenant_id = $1) AND ($2::text IS NULL OR j.kind = $2) AND ($3::text IS NULL OR j.state = $3)
ORDER BY j.id DESC LIMIT $4";

const LIST_HISTORY: &str = "-- inspect.list_history
SELECT h.id, h.tenant_id, h.kind, h.queue, h.region, h.state, h.priority, h.attempt, h.attempts_max, h.run_at,
       h.created_at, h.attempted_at, h.finished_at, h.worker, h.last_error
FROM reeve.job_history h
WHERE ($1::text IS NULL OR h.tenant_id = $1) AND ($2::text IS NULL OR h.kind = $2) AND ($3::text IS NULL OR h.state = $3)
  AND h.finished_at >= now() - make_interval(days => $5)
ORDER BY h.finished_at DESC, h.id DESC LIMIT $4";

/// Days of history that a list looks at: first a day, so that most lists touch one or two partitions, then all.
const HISTORY_DAYS: [i32; 2] = [1, 36_500];

/// The newest jobs first: by id (which sorts by creation) where they are live, by end where they are history.
pub async fn list(pool: &PgPool, place: Place, filter: &Filter, limit: i64) -> sqlx::Result<Vec<JobSummary>> {
    let tenant = filter.tenant.as_ref().map(TenantId::as_str);
    let state = filter.state.map(State::as_str);
    if place == Place::Live {
        let rows = sqlx::query(LIST_LIVE)
            .bind(tenant)
            .bind(filter.kind.as_deref())
            .bind(state)
            .bind(limit)
            .fetch_all(pool)
            .await?;
        return rows.iter().map(summary).collect();
    }
    let mut found = Vec::new();
    for days in HISTORY_DAYS {
        let rows = sqlx::query(LIST_HISTORY)
            .bind(tenant)
            .bind(filter.kind.as_deref())
            .bind(state)
            .bind(limit)
            .bind(days)
            .fetch_all(pool)
            .await?;
        found = rows.iter().map(summary).collect::<sqlx::Result<_>>()?;
        if i64::try_from(found.len()).is_ok_and(|n| n >= limit) {
            break;
        }
    }
    Ok(found)
}

const FIND_LIVE: &str = "-- inspect.find
SELECT j.id, j.tenant_id, j.kind, j.queue, j.region, j.state, j.priority, j.attempt, j.attempts_max, j.run_at,
       j.created_at, j.attempted_at, NULL::timestamptz AS finished_at, j.worker, j.last_error,
       j.rescues, j.lease_expires_at, j.cancel_reason, j.unique_key, j.traceparent, j.payload
FROM reeve.jobs j WHERE j.id = $1";

/// History's index leads with the tenant, whom the caller may not know; so the days before the job was made are left
/// out by the time in its id, and the rest is read through.
const FIND_HISTORY: &str = "-- inspect.find_history
SELECT h.id, h.tenant_id, h.kind, h.queue, h.region, h.state, h.priority, h.attempt, h.attempts_max, h.run_at,
       h.created_at, h.attempted_at, h.finished_at, h.worker, h.last_error,
       h.rescues, NULL::timestamptz AS lease_expires_at, NULL::text AS cancel_reason, h.unique_key, h.traceparent, h.payload
FROM reeve.job_history h
WHERE h.id = $1 AND h.finished_at >= to_timestamp($2) - interval '1 hour'
ORDER BY h.finished_at DESC LIMIT 1";

/// One job wherever it is, with its attempts.
pub async fn find(pool: &PgPool, id: JobId) -> sqlx::Result<Option<JobDetail>> {
    let (place, row) = match sqlx::query(FIND_LIVE).bind(id).fetch_optional(pool).await? {
        Some(row) => (Place::Live, row),
        None => {
            let made_secs = id.0.get_timestamp().map_or(0.0, |at| {
                let (secs, nanos) = at.to_unix();
                std::time::Duration::new(secs, nanos).as_secs_f64()
            });
            match sqlx::query(FIND_HISTORY).bind(id).bind(made_secs).fetch_optional(pool).await? {
                Some(row) => (Place::History, row),
                None => return Ok(None),
            }
        }
    };
    let job = summary(&row)?;
    let attempts = attempts(pool, &job.tenant, id).await?;
    let progress = progress(pool, &Filter::default(), Some(id)).await?.pop().map(|one| one.progress);
    Ok(Some(JobDetail {
        place,
        job,
        rescues: row.try_get("rescues")?,
        lease_expires_at: row.try_get("lease_expires_at")?,
        cancel_reason: row.try_get("cancel_reason")?,
        dedupe_key: row.try_get("unique_key")?,
        traceparent: row.try_get("traceparent")?,
        payload: row.try_get("payload")?,
        progress,
        attempts,
    }))
}

/// What running jobs report, the oldest job first. A report of a lease that is over is not shown.
pub async fn progress(pool: &PgPool, filter: &Filter, id: Option<JobId>) -> sqlx::Result<Vec<Progressing>> {
    let rows = sqlx::query(
        "-- inspect.progress
        SELECT j.id, j.tenant_id, j.kind, p.step, p.done, p.total, p.reported_at
        FROM reeve.job_progress p JOIN reeve.jobs j ON j.id = p.job_id AND j.lease_token = p.lease_token
        WHERE ($1::text IS NULL OR j.tenant_id = $1) AND ($2::text IS NULL OR j.kind = $2) AND ($3::uuid IS NULL OR p.job_id = $3)
        ORDER BY j.id",
    )
    .bind(filter.tenant.as_ref().map(TenantId::as_str))
    .bind(filter.kind.as_deref())
    .bind(id)
    .fetch_all(pool)
    .await?;
    let one = |row: &PgRow| {
        let progress = Progress {
            step: row.try_get("step")?,
            done: row.try_get("done")?,
            total: row.try_get("total")?,
            reported_at: row.try_get("reported_at")?,
        };
        Ok(Progressing {
            id: row.try_get("id")?,
            tenant: parsed(row, "tenant_id")?,
            kind: row.try_get("kind")?,
            progress,
        })
    };
    rows.iter().map(one).collect()
}

async fn attempts(pool: &PgPool, tenant: &TenantId, id: JobId) -> sqlx::Result<Vec<Attempt>> {
    let rows = sqlx::query(
        "-- inspect.attempts
        SELECT a.attempt, a.outcome, a.worker, a.started_at, a.ended_at, a.error FROM reeve.job_attempts a
        WHERE a.tenant_id = $1 AND a.job_id = $2 ORDER BY a.ended_at",
    )
    .bind(tenant.as_str())
    .bind(id)
    .fetch_all(pool)
    .await?;
    let attempt = |row: &PgRow| {
        Ok(Attempt {
            attempt: row.try_get(0)?,
            outcome: row.try_get(1)?,
            worker: row.try_get(2)?,
            started_at: row.try_get(3)?,
            ended_at: row.try_get(4)?,
            error: row.try_get(5)?,
        })
    };
    rows.iter().map(attempt).collect()
}

/// A tenant's live and parked jobs, counted by state and kind.
pub async fn counts(pool: &PgPool, tenant: &TenantId) -> sqlx::Result<Vec<JobCount>> {
    let rows = sqlx::query(
        "-- inspect.counts
        SELECT j.state, j.kind, count(*) AS jobs FROM reeve.jobs j WHERE j.tenant_id = $1 GROUP BY 1, 2 ORDER BY 1, 2",
    )
    .bind(tenant.as_str())
    .fetch_all(pool)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(JobCount { state: parsed(row, "state")?, kind: row.try_get("kind")?, jobs: row.try_get("jobs")? })
        })
        .collect()
}

/// What waits for an operator, or for a scheduler that is not there. For `reeve doctor`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stuck {
    pub quarantined: i64,
    pub dead: i64,
    /// Running jobs whose lease ran out more than the asked time ago.
    pub leases_expired: i64,
}

pub async fn stuck(connection: &mut sqlx::PgConnection, lease_overdue_secs: i32) -> sqlx::Result<Stuck> {
    let row = sqlx::query(
        "-- inspect.stuck
        SELECT (SELECT count(*) FROM reeve.jobs j WHERE j.state = 'quarantined'),
               (SELECT count(*) FROM reeve.jobs j WHERE j.state = 'dead'),
               (SELECT count(*) FROM reeve.jobs j
                WHERE j.state = 'running' AND j.lease_expires_at < now() - make_interval(secs => $1))",
    )
    .bind(f64::from(lease_overdue_secs))
    .fetch_one(connection)
    .await?;
    Ok(Stuck { quarantined: row.try_get(0)?, dead: row.try_get(1)?, leases_expired: row.try_get(2)? })
}

/// The database's copy of the kinds table, a JSON object a kind, in the shape of [`crate::kinds::Spec`]: for comparison.
pub async fn stored_kinds(connection: &mut sqlx::PgConnection) -> sqlx::Result<Vec<serde_json::Value>> {
    sqlx::query_scalar(
        "-- inspect.stored_kinds
        SELECT to_jsonb(k) - 'paused' || jsonb_build_object('cadence', CASE WHEN s.kind IS NOT NULL THEN
                 jsonb_build_object('cron', s.cron, 'window_secs', s.window_secs) END)
        FROM reeve.kinds k LEFT JOIN reeve.schedules s ON s.kind = k.name ORDER BY k.name",
    )
    .fetch_all(connection)
    .await
}

/// Names of the kinds that the database knows, which may be more than this build's.
pub async fn kind_names(pool: &PgPool) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar("-- inspect.kind_names\nSELECT k.name FROM reeve.kinds k ORDER BY k.name").fetch_all(pool).await
}

/// A job that appeared or may have changed since the last look.
#[derive(Debug, Clone, Serialize)]
pub struct Change {
    /// When it was seen, on the database's clock.
    pub seen_at: DateTime<Utc>,
    pub id: JobId,
    pub tenant: TenantId,
    pub kind: String,
    pub state: State,
    pub attempt: i32,
    pub attempts_max: i32,
    pub worker: Option<String>,
    pub last_error: Option<String>,
}

/// What a look saw, and from where the next one starts.
#[derive(Debug, Clone)]
pub struct Look {
    pub mark: Mark,
    pub changes: Vec<Change>,
}

/// The oldest transaction that was still running at a look: everything older was seen by it.
#[derive(Debug, Clone)]
pub struct Mark {
    horizon: String,
    at: DateTime<Utc>,
}

/// Rows say by their `xmin` which transaction wrote them. Those not older than the horizon of the last look may be new;
/// some were seen already (a lease renewed, a transaction that was open then), and the caller knows which.
/// The margin on `finished_at` is for a job settled inside a handler's transaction that took that long to commit.
const CHANGES: &str = "-- inspect.changes
SELECT s.horizon, s.seen_at, c.*
FROM (SELECT pg_snapshot_xmin(pg_current_snapshot())::text AS horizon, now() AS seen_at) s
LEFT JOIN LATERAL (
  SELECT j.id, j.tenant_id, j.kind, j.state, j.attempt, j.attempts_max, j.worker, j.last_error
  FROM reeve.jobs j
  WHERE ($3::text IS NULL OR j.tenant_id = $3) AND ($4::text IS NULL OR j.kind = $4)
    AND CASE WHEN $1::text IS NULL THEN j.state = 'running' ELSE age(j.xmin) <= age($1::xid8::xid) END
  UNION ALL
  SELECT h.id, h.tenant_id, h.kind, h.state, h.attempt, h.attempts_max, h.worker, h.last_error
  FROM reeve.job_history h
  WHERE ($3::text IS NULL OR h.tenant_id = $3) AND ($4::text IS NULL OR h.kind = $4)
    AND h.finished_at > $2::timestamptz - interval '10 minutes' AND age(h.xmin) <= age($1::xid8::xid)
) c ON true
ORDER BY c.id";

/// Looks for jobs written since `since`. Without it: the running ones, whose renewals the caller must tell from news.
pub async fn changes(pool: &PgPool, filter: &Filter, since: Option<&Mark>) -> sqlx::Result<Look> {
    let rows = sqlx::query(CHANGES)
        .bind(since.map(|mark| mark.horizon.as_str()))
        .bind(since.map(|mark| mark.at))
        .bind(filter.tenant.as_ref().map(TenantId::as_str))
        .bind(filter.kind.as_deref())
        // Planned anew each time: a generic plan could not leave out the partitions of other days.
        .persistent(false)
        .fetch_all(pool)
        .await?;
    let first = rows.first().ok_or(sqlx::Error::RowNotFound)?;
    let mark = Mark { horizon: first.try_get("horizon")?, at: first.try_get("seen_at")? };
    let mut changes = Vec::new();
    for row in &rows {
        // The one row of a look without any change.
        let Some(id) = row.try_get::<Option<JobId>, _>("id")? else { continue };
        changes.push(Change {
            seen_at: mark.at,
            id,
            tenant: parsed(row, "tenant_id")?,
            kind: row.try_get("kind")?,
            state: parsed(row, "state")?,
            attempt: row.try_get("attempt")?,
            attempts_max: row.try_get("attempts_max")?,
            worker: row.try_get("worker")?,
            last_error: row.try_get("last_error")?,
        });
    }
    Ok(Look { mark, changes })
}
