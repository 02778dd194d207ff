//! Placing a tenant in a database of its own: what takes the tenant's key, and so cannot be the console's work.
//!
//! ```text
//!   URL ──► connect ──► is it prepared for this tenant, region and epoch? ──► seal ──► reeve.place_tenant
//!                            └── no: audited, nothing changed
//! ```
//! The database is asked with the very login that jobs will use, so what it answers is what they will get. Preparing it, and
//! the steps of a move, are `reeve placement …`.
use std::time::Duration;

use reeve_jobs::{
    TenantId,
    program::{db, migrate, migrate::MigrateError},
    queue::operate::Act,
    redact::Redacted,
    seal::{Keyring, KeyringError, placement::seal_url},
    tenant::{
        Directory, DirectoryError, Placement,
        databases::{Dedicated, NotOpened, OpenUrl},
        identity::{self, Facts},
        placements::{self, Placed},
    },
};
use sqlx::{Connection, PgConnection, PgPool};

/// How long the new database may take to let us in.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum PlacementError {
    #[error("tenant \"{0}\" is not registered")]
    Unknown(TenantId),
    #[error("tenant \"{0}\" is not moving; let its jobs wait first: `reeve placement move {0}`")]
    NotMoving(TenantId),
    #[error("tenant \"{0}\" is placed in the shared database")]
    Shared(TenantId),
    #[error("REEVE_PLACEMENT_URL is not a PostgreSQL URL (postgres://user:password@host:port/database)")]
    Url,
    #[error("the placement of tenant \"{0}\" does not open: sealed under another key, or moved from its place")]
    Sealed(TenantId),
    #[error("the key to the placement of tenant \"{0}\" cannot be had now ({1}); try again")]
    Away(TenantId, &'static str),
    #[error("cannot connect to the tenant's database: {0}")]
    Connect(sqlx::Error),
    #[error("the tenant's database did not answer within {} s", CONNECT_WITHIN.as_secs())]
    NoAnswer,
    #[error("the tenant's database: {0}")]
    Schema(MigrateError),
    #[error("the tenant's database is entered as \"{0}\", {1}; log in as reeve_worker or a member of it")]
    Login(String, &'static str),
    /// Audited; nothing was changed.
    #[error("refused, and audited: {0}")]
    Mismatch(String),
    #[error(transparent)]
    Key(#[from] KeyringError),
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error("{0}")]
    Database(#[from] sqlx::Error),
}

/// Where a tenant is to be.
#[derive(Debug)]
pub struct NewPlacement<'a> {
    pub tenant: &'a TenantId,
    pub region: &'a str,
    pub url: &'a Redacted<String>,
}

/// Places a moving tenant. `ops` logs in to the control database as `reeve_ops`. Returns the epoch.
pub async fn set(ops: &PgPool, keyring: &Keyring, new: &NewPlacement<'_>, act: Act<'_>) -> Result<i32, PlacementError> {
    let NewPlacement { tenant, region, url } = *new;
    let found = placements::find(ops, tenant).await?.ok_or_else(|| PlacementError::Unknown(tenant.clone()))?;
    let Placed { moving: true, epoch, .. } = found else { return Err(PlacementError::NotMoving(tenant.clone())) };
    let epoch = epoch + 1;
    let judged = ask(url, tenant, region).await.and_then(|facts| judge(&facts, tenant, region, epoch));
    audited(ops, tenant, act.actor, judged).await?;
    let sealed = seal_url(keyring, tenant, epoch, url).await?;
    placements::place(ops, tenant, &sealed, region, epoch, act).await?;
    Ok(epoch)
}

/// Asks the database that a tenant is placed in, as a job would. Returns its epoch.
pub async fn check(
    directory: &Directory,
    ops: &PgPool,
    keyring: &Keyring,
    tenant: &TenantId,
    actor: &str,
) -> Result<i32, PlacementError> {
    let entry = directory.entry(tenant).await?;
    let Placement::Dedicated { epoch, url_sealed } = entry.placement else {
        return Err(PlacementError::Shared(tenant.clone()));
    };
    let placement = Dedicated { tenant: tenant.clone(), epoch, url_sealed };
    let url = keyring.open_url(&placement).await.map_err(|why| match why {
        NotOpened::Sealed => PlacementError::Sealed(tenant.clone()),
        NotOpened::Away(where_from) => PlacementError::Away(tenant.clone(), where_from),
    })?;
    let judged = ask(&url, tenant, &entry.region).await.and_then(|facts| judge(&facts, tenant, &entry.region, epoch));
    audited(ops, tenant, actor, judged).await?;
    Ok(epoch)
}

fn judge(facts: &Facts, tenant: &TenantId, region: &str, epoch: i32) -> Result<(), PlacementError> {
    facts.must_be_dedicated(tenant, region, epoch).map_err(PlacementError::Mismatch)
}

/// No job carries this refusal to the audit log, so it is written here.
async fn audited(
    ops: &PgPool,
    tenant: &TenantId,
    actor: &str,
    judged: Result<(), PlacementError>,
) -> Result<(), PlacementError> {
    if let Err(PlacementError::Mismatch(why)) = &judged {
        placements::audit_mismatch(ops, tenant, actor, why).await?;
    }
    judged
}

async fn ask(url: &Redacted<String>, tenant: &TenantId, region: &str) -> Result<Facts, PlacementError> {
    let options = db::options(url).ok_or(PlacementError::Url)?.application_name("reeve-worker");
    let mut connection = tokio::time::timeout(CONNECT_WITHIN, PgConnection::connect_with(&options))
        .await
        .map_err(|_| PlacementError::NoAnswer)?
        .map_err(PlacementError::Connect)?;
    let (role, above, works): (String, bool, bool) = sqlx::query_as(
        "-- placement.login
        SELECT current_user::text, r.rolsuper OR r.rolbypassrls,
               coalesce((SELECT pg_has_role(r.oid, w.oid, 'USAGE') FROM pg_roles w WHERE w.rolname = 'reeve_worker'), false)
        FROM pg_roles r WHERE r.rolname = current_user",
    )
    .fetch_one(&mut connection)
    .await?;
    if above {
        return Err(PlacementError::Login(role, "whom row-level security does not bind"));
    }
    if !works {
        return Err(PlacementError::Login(role, "who has no rights of a worker's"));
    }
    match migrate::check_on(&mut connection).await {
        Ok(()) => {}
        Err(MigrateError::Absent) => {
            return Err(PlacementError::Mismatch(format!(
                "the database was not prepared for tenant \"{tenant}\": it has no Reeve schema"
            )));
        }
        Err(error) => return Err(PlacementError::Schema(error)),
    }
    let facts = identity::ask(&mut connection, tenant, region).await?;
    // Its closing is a courtesy to the server's log.
    let _ = connection.close().await;
    Ok(facts)
}
