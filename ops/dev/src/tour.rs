//! What `reeve-dev up` does with a fresh stack: make it ready before the programs start, then show it at work.
//!
//! The tour plays a web app and its customers. The sample app does its own work in its own transactions, and its SQL
//! emits events and enqueues jobs; the fleet does them; a receiver with a foreign verifier judges each signature. Every
//! job is shown from enqueue to settled, and the tour succeeds only if all of them did and every event was verified.
mod receiver;
mod table;

use std::{io, path::Path, process::Stdio, time::Duration};

use receiver::Receiver;
use reeve_jobs::{
    program::{db, migrate, migrate_keys},
    redact::Redacted,
};
use sqlx::{PgPool, Row as _};
use table::{Row, Table};
use tokio::time::Instant;

use crate::{
    crm::{self, AppClient, ContactChange, CrmError, MessageStatus},
    stack::{Stack, StackError},
    terminal,
};

/// Why the tour broke off.
#[derive(Debug, thiserror::Error)]
pub enum TourError {
    #[error(transparent)]
    Stack(#[from] StackError),
    #[error(transparent)]
    Connect(#[from] db::DbError),
    #[error(transparent)]
    Migrate(#[from] migrate::MigrateError),
    #[error("the sample app: {0}")]
    Sample(#[from] CrmError),
    #[error("the tour's database work: {0}")]
    Database(#[from] sqlx::Error),
    #[error("an endpoint could not be registered: {0}")]
    Endpoint(String),
    #[error("the tour failed: {0}")]
    Failed(String),
    #[error("cannot print or listen: {0}")]
    Io(#[from] io::Error),
}

/// The sample: three workspaces of two hundred contacts.
const SHAPE: crm::Shape = crm::Shape { tenants: 3, rows: 200, seed: 7 };
/// Far beyond what a healthy machine needs.
const PATIENCE: Duration = Duration::from_secs(90);

/// Before the programs start: migrations, passwords, the sample app and its data.
///
/// # Errors
/// [`TourError`].
pub async fn prepare(stack: &Stack) -> Result<(), TourError> {
    let admin = admin(stack).await?;
    let mut connection = admin.acquire().await?;
    let migrated = migrate::run(&mut connection).await?;
    drop(connection);
    let keystore = Redacted::new(stack.variable("REEVE_OPS__KEYSTORE_ADMIN_URL"));
    let keystore = db::connect("REEVE_OPS__KEYSTORE_ADMIN_URL", &keystore, "reeve-dev", 1).await?;
    migrate_keys::run(&mut *keystore.acquire().await?).await?;
    keystore.close().await;
    stack.set_role_passwords().await?;
    let loaded = crm::load(&admin, SHAPE).await?;
    stack.set_sample_password().await?;
    let rows: u64 = loaded.rows.values().sum();
    terminal::line(format_args!("The stack is up in {}", stack.dir.display()))?;
    terminal::line(format_args!("  schema      migrations {} → {}", migrated.from, migrated.to))?;
    terminal::line(format_args!("  sample app  {} workspaces, {rows} rows", loaded.tenants.len()))?;
    Ok(())
}

/// The administrator's pool, for what an operator of a real installation does by hand.
async fn admin(stack: &Stack) -> Result<PgPool, TourError> {
    let url = Redacted::new(stack.variable("REEVE_OPS__ADMIN_DATABASE_URL"));
    Ok(db::connect("REEVE_OPS__ADMIN_DATABASE_URL", &url, "reeve-dev", 4).await?)
}

/// Once the programs run: the tour itself, then where everything is. `programs` holds the program `reeve-worker`.
///
/// # Errors
/// [`TourError::Failed`] when a job did not succeed or a signature was not accepted.
pub async fn run(stack: &Stack, programs: &Path) -> Result<(), TourError> {
    let admin = admin(stack).await?;
    let receiver = Receiver::start().await?;
    let tenants = crm::load(&admin, SHAPE).await?.tenants;
    retire_earlier_endpoints(&admin).await?;
    terminal::line("")?;
    terminal::line("The tour: the sample app works, its SQL emits events and enqueues jobs, the fleet does them.")?;
    for (i, tenant) in tenants.iter().enumerate() {
        let path = format!("/tour/{}", tenant.id);
        let secret = register(stack, programs, &tenant.id, &receiver.url(&path)).await?;
        // One receiver is busy at first, so that a retry is seen.
        receiver.expect(&path, &secret, i == 0);
    }
    let since: chrono::DateTime<chrono::Utc> = sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(&admin).await?;
    let url = Redacted::new(stack.variable("REEVE_DEV_CRM_DATABASE_URL"));
    let app = AppClient::new(db::connect("REEVE_DEV_CRM_DATABASE_URL", &url, "sample-crm", 4).await?);
    for tenant in &tenants {
        work_a_day(&app, &tenant.id).await?;
    }
    let rows = watch(&admin, &receiver, since).await?;
    verdict(&rows, &receiver)?;
    places(stack, programs)
}

/// Endpoints of earlier tours lead to ports that nobody listens on any more.
async fn retire_earlier_endpoints(admin: &PgPool) -> sqlx::Result<()> {
    sqlx::query(
        "-- tour.retire_endpoints
        UPDATE reeve.webhook_endpoints SET state = 'disabled', disabled_reason = 'an earlier tour''s'
        WHERE url LIKE 'http://127.0.0.1:%/tour/%' AND state = 'enabled'",
    )
    .execute(admin)
    .await
    .map(drop)
}

/// Registers an endpoint as an operator would, and returns its secret.
async fn register(stack: &Stack, programs: &Path, tenant: &str, url: &str) -> Result<String, TourError> {
    let output = tokio::process::Command::new(programs.join("reeve-worker"))
        .args(["endpoint", "add", "--tenant", tenant, "--url", url])
        .envs(stack.env_of("REEVE_WORKER__"))
        .stdin(Stdio::null())
        .output()
        .await?;
    if !output.status.success() {
        return Err(TourError::Endpoint(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    let answer: serde_json::Value =
        serde_json::from_slice(&output.stdout).map_err(|error| TourError::Endpoint(error.to_string()))?;
    answer["secret"].as_str().map(str::to_owned).ok_or_else(|| TourError::Endpoint("no secret was printed".to_owned()))
}

/// What a tenant's people do in the app, each in a transaction of the app's own; and one job the app enqueues itself.
async fn work_a_day(app: &AppClient, tenant: &str) -> Result<(), TourError> {
    let mut request = app.in_tenant(tenant).await?;
    let (conversations, contacts) = (request.open_conversations(2).await?, request.contacts(1).await?);
    request.commit().await?;
    let ([first, .., last], [contact]) = (conversations.as_slice(), contacts.as_slice()) else {
        return Err(TourError::Failed(format!("the sample has too few conversations or contacts for tenant {tenant}")));
    };
    let message = app.receive_message(tenant, *first, "Is the order on its way? هل الطلب في الطريق؟").await?;
    app.message_status(tenant, message, MessageStatus::Read).await?;
    app.end_conversation(tenant, *last).await?;
    let mut request = app.in_tenant(tenant).await?;
    // Another value at each tour: an unchanged contact would emit nothing.
    let phone: String = sqlx::query_scalar("SELECT '+1 555-01' || lpad((random() * 99)::int::text, 2, '0')")
        .fetch_one(request.connection())
        .await?;
    request.update_contact(*contact, ContactChange { phone: Some(&phone), ..ContactChange::default() }).await?;
    sqlx::query("SELECT reeve.enqueue('fleet.probe', jsonb_build_object('note', 'tour'))")
        .execute(request.connection())
        .await?;
    Ok(request.commit().await?)
}

/// Draws until every job has settled.
async fn watch(
    admin: &PgPool,
    receiver: &Receiver,
    since: chrono::DateTime<chrono::Utc>,
) -> Result<Vec<Row>, TourError> {
    let mut table = Table::default();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let rows = jobs(admin, receiver, since).await?;
        table.draw(&rows)?;
        let live = rows.iter().filter(|row| !row.state.parse().is_ok_and(reeve_jobs::State::is_settled)).count();
        if live == 0 {
            return Ok(rows);
        }
        if Instant::now() > deadline {
            return Err(TourError::Failed(format!("{live} jobs have not settled within {} s", PATIENCE.as_secs())));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn jobs(
    admin: &PgPool,
    receiver: &Receiver,
    since: chrono::DateTime<chrono::Utc>,
) -> Result<Vec<Row>, TourError> {
    let rows = sqlx::query(
        "-- tour.jobs
        SELECT j.id::text, t.name, j.kind, j.state, j.attempt, j.last_error, d.event_id,
               (extract(epoch FROM j.attempted_at - j.created_at) * 1000)::float8 AS waited_ms,
               (extract(epoch FROM j.finished_at - j.attempted_at) * 1000)::float8 AS took_ms
        FROM (SELECT id, tenant_id, kind, state, attempt, last_error, payload, created_at, attempted_at,
                     NULL::timestamptz AS finished_at FROM reeve.jobs
              UNION ALL
              SELECT id, tenant_id, kind, state, attempt, last_error, payload, created_at, attempted_at, finished_at
              FROM reeve.job_history) j
        JOIN reeve.tenants t ON t.id = j.tenant_id
        LEFT JOIN reeve.webhook_deliveries d
          ON d.tenant_id = j.tenant_id AND d.id::text = j.payload ->> 'delivery_id'
        WHERE j.created_at >= $1 AND j.kind IN ('webhook.deliver', 'fleet.probe') ORDER BY j.id",
    )
    .bind(since)
    .fetch_all(admin)
    .await?;
    let row = |row: &sqlx::postgres::PgRow| -> sqlx::Result<Row> {
        let event: Option<String> = row.try_get("event_id")?;
        let error: Option<String> = row.try_get("last_error")?;
        let note = match (event, error) {
            (Some(event), _) if receiver.has_verified(&event) => "signature accepted".to_owned(),
            (_, Some(error)) => error,
            _ => String::new(),
        };
        Ok(Row {
            id: row.try_get("id")?,
            tenant: row.try_get("name")?,
            kind: row.try_get("kind")?,
            state: row.try_get("state")?,
            attempt: row.try_get("attempt")?,
            waited_ms: row.try_get("waited_ms")?,
            took_ms: row.try_get("took_ms")?,
            note,
        })
    };
    Ok(rows.iter().map(row).collect::<sqlx::Result<_>>()?)
}

fn verdict(rows: &[Row], receiver: &Receiver) -> Result<(), TourError> {
    let (verified, refused) = receiver.seen();
    let deliveries = rows.iter().filter(|row| row.kind == "webhook.deliver").count();
    let done = rows.iter().filter(|row| row.state == "completed").count();
    terminal::line("")?;
    terminal::line(format_args!(
        "{done} of {} jobs completed; {verified} of {deliveries} deliveries accepted by the crate standardwebhooks, {refused} refused",
        rows.len()
    ))?;
    if done == rows.len() && verified == deliveries && refused == 0 && deliveries > 0 {
        Ok(())
    } else {
        Err(TourError::Failed("not every job completed with its signature accepted; see the table".to_owned()))
    }
}

fn places(stack: &Stack, programs: &Path) -> Result<(), TourError> {
    terminal::line("")?;
    terminal::line(format_args!("  PostgreSQL  127.0.0.1:{}, database reeve", stack.postgres.port()))?;
    terminal::line(format_args!("  Redis       127.0.0.1:{}", stack.redis.port()))?;
    terminal::line(format_args!("  S3          {}", stack.s3.endpoint))?;
    terminal::line(format_args!("  SMTP        {}, mails in {}", stack.mail.address, stack.mail.dir.display()))?;
    terminal::line(format_args!("  Logs        {}", stack.dir.join("log").display()))?;
    let reeve = programs.join("reeve");
    terminal::line(format_args!(
        "  Try         . {} && {} jobs list --history",
        stack.env_file().display(),
        reeve.display()
    ))?;
    Ok(())
}
