//! Turns due slots into jobs: one per tenant.
//!
//! # Why there is no leader
//!
//! Run one scheduler or five; none is elected, none waits to take over. A leader would have to be believed by all the
//! others for as long as it acts, and a process cannot know that it is still the leader: it may have been stopped right
//! after it looked. So nothing here depends on who acts. One run is one transaction that
//!
//! 1. **locks** the due rows of `reeve.schedules` with `FOR UPDATE SKIP LOCKED`. A row that another scheduler holds is
//!    skipped, not waited for, so schedulers share the work and never queue behind each other. The rows are few,
//!    and held for the length of one run: an `INSERT … SELECT` for each due schedule;
//! 2. **moves** `next_at` by compare-and-set: `reeve.schedule_fire_slots` changes the row only while `next_at` still is what
//!    this transaction saw. What was seen and then slept upon matches nothing, and fires nothing;
//! 3. **inserts** the jobs in the same statement list, each under the **unique key** of its slot. Jobs and the moved
//!    `next_at` commit together or not at all.
//!
//! "Due" is decided on **the database's clock**, the only one that all schedulers share; a scheduler whose own clock is
//! wrong is merely a scheduler. Slots are computed from that time too (see [`reeve_jobs::queue::slots`]).
//!
//! **Paused and resumed** (a stopped container, a frozen machine, a long swap): the lock would outlive the process' pulse,
//! and this schedule would wait for it. So the transaction allows itself [`STALL_MS`] between two statements; then
//! PostgreSQL ends the session, which frees the row, and another scheduler fires the slot. When the paused one wakes up,
//! its connection is gone and its transaction undone: it changes nothing and looks again. Should it have kept only the
//! memory of the slot (a lost connection, a retry), the compare-and-set refuses it. **Killed** in the middle: the same,
//! at once. **Downtime of all**: the rows are still there with their old `next_at`, and the schedule's catch-up policy says
//! what is made up for. A schedule that was paused by an operator counts as down while it was.
//!
//! A schedule that cannot be followed (a typing error in an operator's override) is left as it is and reported once; the
//! others go on. One whose jobs PostgreSQL refuses is undone alone, by a savepoint.
use std::collections::HashMap;

use chrono::{DateTime, Utc};
use reeve_jobs::queue::slots::{Cadence, SlotError, Step};
use sqlx::{Connection, PgConnection, PgPool, Row};

use crate::service::{Service, ServiceError};

/// Milliseconds that the transaction may stand idle before PostgreSQL ends it. In a healthy scheduler only the
/// computation of a slot lies between two statements: microseconds.
pub const STALL_MS: i32 = 10_000;

/// What one run did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fired {
    /// Slots that became jobs.
    pub slots: u64,
    /// The jobs: at most one per tenant and slot.
    pub jobs: u64,
    /// Schedules that moved on without firing: seen for the first time, or too late under `skip`.
    pub moved: u64,
    /// Schedules that could not be followed and were left as they are.
    pub refused: u64,
}

/// A schedule that needs a scheduler, locked by the transaction that looked.
#[derive(Debug, Clone)]
pub(crate) struct Due {
    kind: String,
    cron: String,
    time_zone: String,
    catch_up: String,
    next_at: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
    /// How many missed slots may fire at a time.
    slots_max: i32,
}

/// See the module's head.
#[derive(Debug, Default)]
pub struct Enqueuer {
    /// What was said last of each schedule that cannot be followed: it is due again at every look, and one line is enough.
    complaints: HashMap<String, String>,
}

impl Enqueuer {
    pub fn new() -> Self {
        Self::default()
    }

    /// Fires every due slot that no other scheduler is at. An error undoes the whole run; the next one begins anew.
    #[allow(clippy::disallowed_methods, reason = "schedules are no tenant's rows, and this role reads no other")]
    pub async fn run_once(&mut self, pool: &PgPool) -> sqlx::Result<Fired> {
        let mut tx = pool.begin().await?;
        let mut fired = Fired::default();
        for due in look(&mut tx, STALL_MS).await? {
            let step = match due.step() {
                Ok(step) => step,
                Err(error) => {
                    self.complain(&due.kind, error.to_string());
                    fired.refused += 1;
                    continue;
                }
            };
            match fire_alone(&mut tx, &due, &step).await? {
                Ok(Some(jobs)) => {
                    self.settle_complaint(&due.kind);
                    if let Some(slot) = step.slots.last() {
                        let slots = step.slots.len();
                        fired.slots += u64::try_from(slots).unwrap_or(u64::MAX);
                        fired.jobs += jobs;
                        tracing::info!(kind = due.kind, %slot, slots, jobs, next = %step.following, "slot fired");
                    } else {
                        fired.moved += 1;
                        tracing::info!(kind = due.kind, next = %step.following, "schedule moved on without firing");
                    }
                }
                // Unreachable while this transaction holds the row; then the other one did the work.
                Ok(None) => {}
                Err(refusal) => {
                    self.complain(&due.kind, refusal);
                    fired.refused += 1;
                }
            }
        }
        tx.commit().await?;
        Ok(fired)
    }

    fn complain(&mut self, kind: &str, what: String) {
        if self.complaints.get(kind) != Some(&what) {
            tracing::error!(kind, "the schedule of this kind cannot be followed and fires nothing: {what}");
            self.complaints.insert(kind.to_owned(), what);
        }
    }

    fn settle_complaint(&mut self, kind: &str) {
        if self.complaints.remove(kind).is_some() {
            tracing::info!(kind, "the schedule of this kind is followed again");
        }
    }

    #[cfg(test)]
    pub(crate) fn complaint(&self, kind: &str) -> Option<&str> {
        self.complaints.get(kind).map(String::as_str)
    }
}

impl Service for Enqueuer {
    const NAME: &'static str = "enqueuer";

    async fn run(&mut self, pool: &PgPool) -> Result<(), ServiceError> {
        Ok(self.run_once(pool).await.map(drop)?)
    }
}

impl Due {
    pub(crate) fn step(&self) -> Result<Step, SlotError> {
        let catch_up = self.catch_up.parse()?;
        let slots_max = usize::try_from(self.slots_max).unwrap_or(1);
        Cadence::parse(&self.cron, &self.time_zone)?.step(self.next_at, self.now, catch_up, slots_max)
    }
}

/// Locks and reads the due schedules. From here on the transaction is ended when it stalls.
pub(crate) async fn look(tx: &mut PgConnection, stall_ms: i32) -> sqlx::Result<Vec<Due>> {
    sqlx::query("-- enqueuer.stall\nSELECT set_config('idle_in_transaction_session_timeout', $1, true)")
        .bind(stall_ms.to_string())
        .execute(&mut *tx)
        .await?;
    let rows = sqlx::query(
        "-- enqueuer.due
        SELECT kind, cron, time_zone, catch_up, next_at, now_at, slots_max FROM reeve.schedules_due()",
    )
    .fetch_all(tx)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(Due {
                kind: row.try_get("kind")?,
                cron: row.try_get("cron")?,
                time_zone: row.try_get("time_zone")?,
                catch_up: row.try_get("catch_up")?,
                next_at: row.try_get("next_at")?,
                now: row.try_get("now_at")?,
                slots_max: row.try_get("slots_max")?,
            })
        })
        .collect()
}

/// Moves the schedule on and makes the slots' jobs. Returns how many, or `None` when it had moved on already.
pub(crate) async fn fire(tx: &mut PgConnection, due: &Due, step: &Step) -> sqlx::Result<Option<u64>> {
    let made: Option<i64> = sqlx::query_scalar("-- enqueuer.fire\nSELECT reeve.schedule_fire_slots($1, $2, $3, $4)")
        .bind(&due.kind)
        .bind(due.next_at)
        .bind(&step.slots)
        .bind(step.following)
        .fetch_one(tx)
        .await?;
    Ok(made.map(i64::unsigned_abs))
}

/// [`fire`] in a savepoint: what PostgreSQL refuses (`Err` within) is undone, and the transaction goes on.
async fn fire_alone(tx: &mut PgConnection, due: &Due, step: &Step) -> sqlx::Result<Result<Option<u64>, String>> {
    let mut alone = tx.begin().await?;
    match fire(&mut alone, due, step).await {
        Ok(made) => {
            alone.commit().await?;
            Ok(Ok(made))
        }
        Err(sqlx::Error::Database(error)) => {
            alone.rollback().await?;
            Ok(Err(error.message().to_owned()))
        }
        Err(error) => Err(error),
    }
}
