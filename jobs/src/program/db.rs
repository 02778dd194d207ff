//! The one way to make a pool of database connections.
//!
//! A connection goes back into its pool only when it is proven idle. When a future is dropped while a transaction opens,
//! sqlx can hand the connection back inside the open transaction, with the dropped tenant's context still set; the next
//! user would then read that tenant's rows. So each release runs a block that PostgreSQL refuses inside a transaction,
//! open or failed, and that refuses a left-over context; a connection that fails it is closed.
use std::{str::FromStr, time::Duration};

use sqlx::{
    Connection, Executor, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use crate::redact::Redacted;

/// `ROLLBACK` inside `DO` is allowed outside a transaction block only. No bound parameter, so a simple query.
pub(crate) const PROVE_IDLE: &str = "-- db.prove_idle
DO $$ BEGIN
  ROLLBACK;
  IF nullif(current_setting('reeve.tenant_id', true), '') IS NOT NULL
     OR nullif(current_setting('reeve.context', true), '') IS NOT NULL THEN
    RAISE EXCEPTION 'reeve: a tenant context outlived its transaction';
  END IF;
END $$";

#[derive(Debug, thiserror::Error)]
pub enum DbError {
    #[error("{key} is not a PostgreSQL URL (postgres://user:password@host:port/database)")]
    Url { key: &'static str },
    #[error("cannot connect to the database of {key}: {source}; is PostgreSQL running, and is the address right?")]
    Connect { key: &'static str, source: sqlx::Error },
}

/// What a URL says; `None` when it is not one of PostgreSQL's.
pub fn options(url: &Redacted<String>) -> Option<PgConnectOptions> {
    let text = url.reveal();
    let is_ours = text.starts_with("postgres://") || text.starts_with("postgresql://");
    if is_ours { PgConnectOptions::from_str(text).ok() } else { None }
}

/// Connects to `url`, the value of configuration key `key`, with at most `connections_max` connections.
pub async fn connect(
    key: &'static str,
    url: &Redacted<String>,
    name: &str,
    connections_max: u32,
) -> Result<PgPool, DbError> {
    let options = options(url).ok_or(DbError::Url { key })?.application_name(name);
    // A pool would try for its whole time-out and then report that; one connection says at once what is wrong.
    let first = PgConnection::connect_with(&options).await.map_err(|source| DbError::Connect { key, source })?;
    drop(first);
    pool(options, connections_max).await.map_err(|source| DbError::Connect { key, source })
}

/// The pool itself, for callers that have options already (tests).
#[allow(clippy::disallowed_methods, reason = "this is the one constructor")]
pub async fn pool(options: PgConnectOptions, connections_max: u32) -> sqlx::Result<PgPool> {
    PgPoolOptions::new()
        .max_connections(connections_max)
        .acquire_timeout(Duration::from_secs(10))
        // A connection is proven when it is released; a second trip before each use would prove nothing more.
        .test_before_acquire(false)
        .after_release(|connection, _| {
            Box::pin(async move {
                match connection.execute(PROVE_IDLE).await {
                    Ok(_) => Ok(true),
                    Err(error) => {
                        tracing::warn!(%error, "a connection came back inside a transaction and was closed");
                        Ok(false)
                    }
                }
            })
        })
        .connect_with(options)
        .await
}
