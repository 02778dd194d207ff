//! `reeve-worker`: runs the fleet's share of one process, and does by hand what takes keys, and so cannot be the console's
//! work: webhook endpoints, placements, the keys themselves.
use std::{io::Write, path::PathBuf, process::ExitCode, sync::Arc};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use reeve_jobs::{
    TenantContext, TenantId,
    clock::SystemClock,
    program::{config, db, install_tls_provider, migrate, shutdown, soundness, telemetry},
    queue::{PostgresQueue, WindowedQueue, operate::Act},
    redact::Redacted,
    seal::{self, Keyring},
    tenant::{Directory, Scope, databases::Databases, region, session},
};
use reeve_worker::{
    clients::http::WebhookClient,
    config::Config,
    duties::{
        Duties,
        webhooks::{
            endpoints::{self, NewEndpoint},
            sign::SigningSecret,
        },
    },
    environment::Environment,
    key_acts::{self, Keeper},
    keys,
    placement::{self, NewPlacement},
    runtime::Fleet,
};
use sqlx::PgPool;

#[derive(Debug, Parser)]
#[command(version, about = "Does jobs: claims them, opens their tenant's scope, runs and settles them")]
struct Cli {
    /// The configuration file; values in the environment (REEVE_WORKER__…) come before it.
    #[arg(long, env = "REEVE_CONFIG", global = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run until told to stop (the default).
    Run,
    /// A tenant's webhook endpoints.
    #[command(subcommand)]
    Endpoint(EndpointCommand),
    /// A tenant's dedicated database.
    #[command(subcommand)]
    Placement(PlacementCommand),
    /// Keys: look, rotate the platform's, try all, destroy.
    #[command(subcommand)]
    Keys(KeysCommand),
}

#[derive(Debug, Subcommand)]
enum PlacementCommand {
    /// Place a moving tenant in the database of REEVE_PLACEMENT_URL (never an argument: it holds a password), which was
    /// prepared for it. Asks that database who it is, seals the URL and stores it.
    Set {
        #[arg(long)]
        tenant: TenantId,
        #[arg(long)]
        region: String,
        /// Why; kept in the audit log.
        #[arg(long)]
        reason: String,
    },
    /// Ask the database that a tenant is placed in who it is, as a job would.
    Check {
        #[arg(long)]
        tenant: TenantId,
    },
}

#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// The platform's key versions, and a tenant's
    Status {
        #[arg(long)]
        tenant: Option<TenantId>,
    },
    /// Open every key there is; fails where one does not
    Verify,
    /// Put the platform on another key: wrap every tenant's key anew, then retire the versions before. Run it again after
    /// whatever broke it off
    RotatePlatform {
        /// env:NAME, file:/path, aws-kms:ARN or vault:MOUNT/KEY#VERSION. All workers must be able to open it already.
        #[arg(long)]
        reference: String,
        /// Why; kept in the audit log.
        #[arg(long)]
        reason: String,
    },
    /// Destroy one retired key version of a tenant
    Destroy {
        #[arg(long)]
        tenant: TenantId,
        #[arg(long)]
        version: u32,
        #[arg(long)]
        reason: String,
    },
    /// Destroy all keys of a closed tenant, for good. Prints a certificate
    Shred {
        #[arg(long)]
        tenant: TenantId,
        #[arg(long)]
        reason: String,
    },
}

#[derive(Debug, Subcommand)]
enum EndpointCommand {
    /// Register an endpoint. Prints its id and its secret as JSON: the only time that the secret is shown.
    Add {
        #[arg(long)]
        tenant: TenantId,
        #[arg(long)]
        url: String,
        /// Deliver only these types; all when left out.
        #[arg(long = "event-type")]
        event_types: Vec<String>,
        /// Take this secret (whsec_…) from the environment variable REEVE_ENDPOINT_SECRET and do not make one.
        #[arg(long)]
        secret_from_env: bool,
    },
    /// Replace an endpoint's secret. The old one signs beside the new for the overlap.
    RotateSecret {
        #[arg(long)]
        tenant: TenantId,
        #[arg(long)]
        id: uuid::Uuid,
        #[arg(long, default_value_t = 24)]
        overlap_hours: u16,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    install_tls_provider();
    quiet_panics();
    match run(Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "reeve-worker: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A panic's message may hold a tenant's data; its place does not.
fn quiet_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map_or_else(|| "unknown place".to_owned(), ToString::to_string);
        tracing::error!(place, "panic");
    }));
}

async fn run(cli: Cli) -> Result<()> {
    telemetry::start()?;
    let backend = seal::selfcheck()?;
    let command = cli.command.unwrap_or(Command::Run);
    if matches!(command, Command::Run) {
        tracing::info!(%backend, "sealing is checked");
    }
    let config: Config = config::load("worker", cli.config.as_deref())?;
    config.check()?;
    let pool = db::connect("worker.database_url", &config.database_url, "reeve-worker", config.connections_max).await?;
    migrate::check(&pool).await?;
    soundness::check(&pool, "reeve_worker").await?;
    let environment = environment(&config, &pool).await?;
    match command {
        Command::Run => {
            region::prove(&pool, &config.region).await?;
            let fleet = config.fleet();
            tracing::info!(worker = fleet.name, region = &*fleet.region, queues = fleet.queues.len(), "worker started");
            let queue = WindowedQueue::new(PostgresQueue::new(pool.clone()), config.window());
            let directory = environment.directory.clone();
            let rereading = tokio::spawn(reread_keys(environment.keyring.clone()));
            let fleet = Fleet { config: fleet, queue, pool, directory, handler: Duties { environment } };
            fleet.run(shutdown::signal()).await?;
            rereading.abort();
            tracing::info!("worker stopped; all settled or given back");
            Ok(())
        }
        Command::Endpoint(command) => endpoint(&config, &environment, command).await,
        Command::Placement(command) => place(&config, &environment, command).await,
        Command::Keys(command) => keep_keys(&config, &environment, command).await,
    }
}

/// On SIGHUP, keys in files are read again. One that is not what it was is refused from then on.
async fn reread_keys(keyring: Keyring) -> std::io::Result<()> {
    let mut hangups = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup())?;
    while hangups.recv().await.is_some() {
        match keyring.reload().await {
            Ok(()) => tracing::info!("the platform's keys were read again"),
            Err(error) => tracing::error!(%error, "the platform's keys could not be read again"),
        }
    }
    Ok(())
}

async fn environment(config: &Config, pool: &PgPool) -> Result<Environment> {
    let keyring = keys::open(config, pool).await?;
    let dedicated = Databases::new(config.dedicated_limits(), Arc::new(keyring.clone()));
    Ok(Environment {
        directory: Directory::new(pool.clone()).with_dedicated(dedicated),
        keyring,
        webhooks: WebhookClient::new(config.http_policy())?,
        url_policy: Arc::new(config.url_policy()),
        webhook_keep_days: config.webhooks.keep_days,
        catalogue: Arc::new(config.catalogue()?),
        rekey: config.rekey.settings(),
        clock: Arc::new(SystemClock),
    })
}

async fn place(config: &Config, env: &Environment, command: PlacementCommand) -> Result<()> {
    let actor = actor();
    let ops = ops(config).await?;
    let answer = match command {
        PlacementCommand::Set { tenant, region, reason } => {
            let Ok(url) = std::env::var("REEVE_PLACEMENT_URL") else { bail!("REEVE_PLACEMENT_URL is not set") };
            let new = NewPlacement { tenant: &tenant, region: &region, url: &Redacted::new(url) };
            let epoch = placement::set(&ops, &env.keyring, &new, Act { actor: &actor, reason: &reason }).await?;
            serde_json::json!({"tenant": tenant, "region": region, "epoch": epoch})
        }
        PlacementCommand::Check { tenant } => {
            let epoch = placement::check(&env.directory, &ops, &env.keyring, &tenant, &actor).await?;
            serde_json::json!({"tenant": tenant, "epoch": epoch, "ok": true})
        }
    };
    Ok(writeln!(std::io::stdout().lock(), "{answer}")?)
}

async fn keep_keys(config: &Config, env: &Environment, command: KeysCommand) -> Result<()> {
    let actor = actor();
    let keyring = &env.keyring;
    let answer = match command {
        KeysCommand::Status { tenant: None } => serde_json::to_value(key_acts::platform_status(keyring).await?)?,
        KeysCommand::Status { tenant: Some(tenant) } => {
            serde_json::to_value(key_acts::key_status(keyring, &tenant).await?)?
        }
        KeysCommand::Verify => {
            let verified = key_acts::verify(keyring).await?;
            writeln!(std::io::stdout().lock(), "{}", serde_json::to_value(&verified)?)?;
            if !verified.failed.is_empty() {
                bail!("{} keys do not open", verified.failed.len());
            }
            return Ok(());
        }
        KeysCommand::RotatePlatform { reference, reason } => {
            let reference = reference.parse().context("--reference")?;
            let ops = ops(config).await?;
            let act = Act { actor: &actor, reason: &reason };
            let keeper = Keeper { keyring, directory: &env.directory, ops: &ops, act };
            let progress = |done| {
                // For people who watch; the answer is on standard output.
                let _ = writeln!(std::io::stderr(), "{done} keys wrapped anew");
            };
            serde_json::to_value(keeper.rotate_platform(&reference, progress).await?)?
        }
        KeysCommand::Destroy { tenant, version, reason } => {
            let ops = ops(config).await?;
            let act = Act { actor: &actor, reason: &reason };
            let keeper = Keeper { keyring, directory: &env.directory, ops: &ops, act };
            serde_json::to_value(keeper.destroy(&tenant, version).await?)?
        }
        KeysCommand::Shred { tenant, reason } => {
            let ops = ops(config).await?;
            let act = Act { actor: &actor, reason: &reason };
            let keeper = Keeper { keyring, directory: &env.directory, ops: &ops, act };
            serde_json::to_value(keeper.shred(&tenant).await?)?
        }
    };
    Ok(writeln!(std::io::stdout().lock(), "{answer}")?)
}

fn actor() -> String {
    format!("cli:{}", std::env::var("USER").unwrap_or_else(|_| "unknown".to_owned()))
}

/// The operators' login: what is done by hand is recorded there.
async fn ops(config: &Config) -> Result<PgPool> {
    const KEY: &str = "worker.ops_database_url";
    let Some(url) = &config.ops_database_url else {
        bail!("{KEY} is missing: let it log in as reeve_ops, which records what is done to a tenant by hand");
    };
    Ok(db::connect(KEY, url, "reeve-worker", 1).await?)
}

async fn endpoint(config: &Config, env: &Environment, command: EndpointCommand) -> Result<()> {
    let actor = actor();
    let made = SigningSecret::generate(&mut rand::rng());
    let answer = match command {
        EndpointCommand::Add { tenant, url, event_types, secret_from_env } => {
            let secret = if secret_from_env { given_secret()? } else { made };
            let mut scope = open(config, env, tenant, &actor, "register a webhook endpoint").await?;
            let new = NewEndpoint { url: &url, event_types: &event_types, secret: &secret };
            let id = endpoints::register(&mut scope, &env.keyring, &env.url_policy, &new, &actor).await?;
            scope.commit().await?;
            serde_json::json!({"id": id, "version": 1, "secret": secret.reveal().as_str()})
        }
        EndpointCommand::RotateSecret { tenant, id, overlap_hours } => {
            let mut scope = open(config, env, tenant, &actor, "rotate a webhook endpoint's secret").await?;
            let version = endpoints::rotate(&mut scope, &env.keyring, id, &made, overlap_hours, &actor).await?;
            scope.commit().await?;
            serde_json::json!({"id": id, "version": version, "secret": made.reveal().as_str()})
        }
    };
    Ok(writeln!(std::io::stdout().lock(), "{answer}")?)
}

fn given_secret() -> Result<SigningSecret> {
    let Ok(text) = std::env::var("REEVE_ENDPOINT_SECRET") else { bail!("REEVE_ENDPOINT_SECRET is not set") };
    SigningSecret::parse(&text).context("REEVE_ENDPOINT_SECRET")
}

/// A tenant's scope without a job. It takes two logins: the operators', which says who wants in and why and is given the
/// proof, and the worker's, which may use it.
async fn open(config: &Config, env: &Environment, tenant: TenantId, actor: &str, reason: &str) -> Result<Scope> {
    let ops = ops(config).await?;
    let proof = session::open(&ops, &tenant, Act { actor, reason }).await.context("no way into the tenant's scope")?;
    ops.close().await;
    Ok(Scope::open_control(&env.directory, &TenantContext::new(tenant, config.region.as_str(), proof)).await?)
}
