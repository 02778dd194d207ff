//! What an operator can ask and do, without saying how it is asked: command line, console and API share it.
//!
//! Functions take a pool that logs in as `reeve_ops` and return serializable values. SQL on jobs and tenants is in
//! `reeve-jobs`; only the doctor asks the catalogs itself. The catalogue's commands take a pool of the app's database instead.
use reeve_jobs::{
    JobId, State, TenantId,
    audit::shipped::ShippedError,
    client::EnqueueError,
    program::{self, migrate::MigrateError, soundness::SoundnessError},
    queue::{inspect, slots::SlotError},
};
use sqlx::PgPool;
use uuid::Uuid;

pub mod audit;
pub mod breakglass;
pub mod catalogue;
pub mod doctor;
pub mod flags;
pub mod jobs;
pub mod migrate;
pub mod placements;
pub mod schedules;
pub mod tenants;

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    #[error(transparent)]
    Schema(MigrateError),
    /// A function of Reeve's schema said no. `code` is `RV` and three digits.
    #[error("{message}")]
    Refused { code: String, message: String, hint: Option<String> },
    #[error("there is no job {0}, neither live nor in the history")]
    NoJob(JobId),
    #[error("job {id} is over ({state}); only live and parked jobs wait, and can be retried or cancelled")]
    JobOver { id: JobId, state: State },
    #[error("tenant \"{0}\" is not registered; `reeve tenants list` shows those that are")]
    NoTenant(TenantId),
    #[error("flag \"{name}\" has no value of its own for {of}; `reeve flags list` shows where it has")]
    NoFlagValue { name: String, of: String },
    #[error("there is no break-glass opening {0}; `reeve breakglass list` shows those there are")]
    NoOpening(Uuid),
    #[error("there is no schedule of kind {kind:?}; schedules are {known}")]
    NoSchedule { kind: String, known: String },
    #[error(transparent)]
    Slots(#[from] SlotError),
    #[error("unknown kind {name:?}; known kinds are {known}")]
    UnknownKind { name: String, known: String },
    #[error("{state} jobs are not here: {advice}")]
    WrongPlace { state: State, advice: &'static str },
    #[error("the payload is not JSON: {0}")]
    PayloadSyntax(serde_json::Error),
    #[error("the payload must be a JSON object, this is {0}")]
    PayloadShape(&'static str),
    #[error("this is no payload of {kind}: {source}")]
    Payload { kind: &'static str, source: serde_json::Error },
    #[error("{key} logs in as \"{role}\", {lacks}")]
    Role { key: &'static str, role: String, lacks: &'static str },
    #[error(transparent)]
    Unsound(SoundnessError),
    #[error(transparent)]
    Shipped(#[from] ShippedError),
    #[error("{file}: the checkpoints could not be appended, so none was stored: {source}")]
    Append { file: String, source: std::io::Error },
    #[error("the database refused or broke off: {0}")]
    Database(sqlx::Error),
}

impl ServiceError {
    fn refused(code: String, message: &str, hint: Option<String>) -> Self {
        let message = message.strip_prefix("reeve: ").unwrap_or(message).to_owned();
        Self::Refused { code, message, hint }
    }
}

impl From<sqlx::Error> for ServiceError {
    fn from(error: sqlx::Error) -> Self {
        // What an RV code means is told in one place, for apps and operators alike.
        match EnqueueError::from(error) {
            EnqueueError::Refused { code, message, hint } => Self::refused(code, &message, hint),
            EnqueueError::Database(error) => Self::Database(error),
            EnqueueError::Payload { kind, source } => Self::Payload { kind, source },
        }
    }
}

/// Asked before anything else: is this the schema of this build, and does the pool log in as one who sees the queue?
/// Under another role row-level security would answer with silent emptiness.
pub async fn ready(pool: &PgPool) -> Result<(), ServiceError> {
    program::migrate::check(pool).await.map_err(ServiceError::Schema)?;
    let (role, sees): (String, bool) =
        sqlx::query_as("-- ops.ready\nSELECT current_user::text, pg_has_role(current_user, 'reeve_ops', 'USAGE')")
            .fetch_one(pool)
            .await?;
    if sees {
        return Ok(());
    }
    let lacks = "which cannot see the queue; log in as reeve_ops or a member of it";
    Err(ServiceError::Role { key: "[ops] database_url", role, lacks })
}

/// Asked before an act, after [`ready`]: does the database still keep tenants apart? Looking is allowed all the same, since
/// it is how one finds out.
pub async fn sound(pool: &PgPool) -> Result<(), ServiceError> {
    program::soundness::check(pool, "reeve_ops").await.map_err(ServiceError::Unsound)
}

/// Refuses a kind that the database does not know: an empty answer would read as "there are none".
async fn require_kind(pool: &PgPool, name: &str) -> Result<(), ServiceError> {
    let known = inspect::kind_names(pool).await?;
    if known.iter().any(|kind| kind == name) {
        return Ok(());
    }
    Err(ServiceError::UnknownKind { name: name.to_owned(), known: known.join(", ") })
}

async fn require_tenant(pool: &PgPool, tenant: &TenantId) -> Result<(), ServiceError> {
    match reeve_jobs::tenant::inspect::find(pool, tenant).await? {
        Some(_) => Ok(()),
        None => Err(ServiceError::NoTenant(tenant.clone())),
    }
}
