//! Schedules as operators see, check and change them.
//!
//! The database cannot read a cron expression, so a change is tried here before it is stored, on the database's clock and
//! together with what stays as it is.
use chrono::{DateTime, NaiveDateTime, Utc};
use reeve_jobs::{
    TenantId,
    queue::{
        operate::Act,
        schedules,
        slots::{Cadence, CatchUp},
    },
};
use serde::Serialize;
use serde_json::{Map, Value};
use sqlx::PgPool;

use super::ServiceError;

pub use schedules::ScheduleRow;

/// What an act did to a schedule: the names of the fields that are different now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Changed {
    pub kind: String,
    pub changed: Vec<String>,
}

/// What to set; `None` leaves it as it is, `Some(None)` gives the kind's own back.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    pub cron: Option<Option<String>>,
    pub time_zone: Option<String>,
    pub window_secs: Option<Option<i32>>,
    pub catch_up: Option<CatchUp>,
}

/// A slot to come, as the zone's clocks and as UTC have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NextSlot {
    pub at: DateTime<Utc>,
    pub local: NaiveDateTime,
}

/// The slots to come of one schedule.
#[derive(Debug, Clone, Serialize)]
pub struct NextSlots {
    pub kind: String,
    pub cron: String,
    pub time_zone: String,
    pub paused: bool,
    pub slots: Vec<NextSlot>,
}

pub async fn list(pool: &PgPool) -> Result<Vec<ScheduleRow>, ServiceError> {
    Ok(schedules::list(pool).await?)
}

pub async fn show(pool: &PgPool, kind: &str) -> Result<ScheduleRow, ServiceError> {
    let all = list(pool).await?;
    let known = all.iter().map(|schedule| schedule.kind.as_str()).collect::<Vec<_>>().join(", ");
    let found = all.into_iter().find(|schedule| schedule.kind == kind);
    found.ok_or_else(|| ServiceError::NoSchedule { kind: kind.to_owned(), known })
}

pub async fn pause(pool: &PgPool, kind: &str, pause: bool, act: Act<'_>) -> Result<Changed, ServiceError> {
    let changed = schedules::pause(pool, kind, pause, act).await?;
    Ok(Changed { kind: kind.to_owned(), changed: changed.then(|| "paused".to_owned()).into_iter().collect() })
}

/// Stores nothing that the scheduler could not follow.
pub async fn set(pool: &PgPool, kind: &str, changes: &Changes, act: Act<'_>) -> Result<Changed, ServiceError> {
    let stored = show(pool, kind).await?;
    let cron = match &changes.cron {
        Some(anew) => anew.as_deref().unwrap_or(&stored.cron),
        None => stored.cron_in_force(),
    };
    let zone = changes.time_zone.as_deref().unwrap_or(&stored.time_zone);
    // Also when only the window is set: whoever is at a schedule that cannot be followed is told so.
    Cadence::parse(cron, zone)?.next_after(stored.now_at)?;
    let fields = [
        ("cron_override", changes.cron.clone().map(Value::from)),
        ("time_zone", changes.time_zone.clone().map(Value::from)),
        ("window_override", changes.window_secs.map(Value::from)),
        ("catch_up", changes.catch_up.map(|policy| Value::from(policy.as_str()))),
    ];
    let fields: Map<_, _> = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
    Ok(Changed { kind: kind.to_owned(), changed: schedules::change(pool, kind, &fields, act).await? })
}

/// The next slots by the database's clock.
pub async fn next(pool: &PgPool, kind: &str, count: usize) -> Result<NextSlots, ServiceError> {
    let stored = show(pool, kind).await?;
    let cadence = Cadence::parse(stored.cron_in_force(), &stored.time_zone)?;
    let (mut at, mut slots) = (stored.now_at, Vec::with_capacity(count));
    for _ in 0..count {
        at = cadence.next_after(at)?;
        slots.push(NextSlot { at, local: cadence.wall(at) });
    }
    let cron = stored.cron_in_force().to_owned();
    Ok(NextSlots { kind: stored.kind, cron, time_zone: stored.time_zone, paused: stored.paused, slots })
}

/// Makes jobs now, outside the cadence. Returns how many: none while those of the last such run live.
pub async fn run(pool: &PgPool, kind: &str, tenant: Option<&TenantId>, act: Act<'_>) -> Result<i64, ServiceError> {
    Ok(schedules::run(pool, kind, tenant, act).await?)
}
