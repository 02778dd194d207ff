//! `reeve-scheduler`: reads its configuration, connects, refuses a database of another schema or with a guard missing, runs
//! the services.
//!
//! Exit codes: 0 stopped by a signal; 1 the database cannot be reached, or a defect; 2 wrong arguments or configuration;
//! 3 the database's schema is not this build's (`reeve migrate` was not run), or it is not safe to work in.
use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::anyhow;
use clap::Parser;
use reeve_jobs::program::{self, db::DbError, migrate::MigrateError, soundness::SoundnessError};
use reeve_scheduler::{config::Config, service};
use tokio_util::sync::CancellationToken;

const FAILED: u8 = 1;
const MISCONFIGURED: u8 = 2;
const WRONG_DATABASE: u8 = 3;

/// One for each service.
const CONNECTIONS_MAX: u32 = 8;

/// Makes jobs due: fires schedules, promotes waiting jobs, rescues lost ones, prunes old ones. Run as many as you like.
#[derive(Debug, Parser)]
#[command(
    name = "reeve-scheduler",
    version,
    after_help = "Exit codes: 0 stopped, 1 failed, 2 misconfigured, 3 wrong schema, or not safe"
)]
struct Args {
    /// Configuration file (TOML); REEVE_SCHEDULER__<KEY> in the environment overrides it
    #[arg(long, value_name = "FILE", env = "REEVE_CONFIG")]
    config: Option<PathBuf>,
}

/// What went wrong, and the exit code that says so.
struct Failure(u8, anyhow::Error);

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(FAILED, error.into())
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    match start(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure(code, error)) => {
            // Each error's text carries that of its cause already.
            eprintln!("reeve-scheduler: {error}");
            ExitCode::from(code)
        }
    }
}

fn start(args: &Args) -> Result<(), Failure> {
    program::install_tls_provider();
    program::telemetry::start().map_err(misconfigured)?;
    let config = Config::load(args.config.as_deref()).map_err(misconfigured)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| anyhow!("cannot start the async runtime: {error}"))?;
    runtime.block_on(run(&config))
}

async fn run(config: &Config) -> Result<(), Failure> {
    let pool = program::db::connect("database_url", &config.database_url, "reeve-scheduler", CONNECTIONS_MAX)
        .await
        .map_err(|error| match error {
            DbError::Url { .. } => misconfigured(error),
            DbError::Connect { .. } => error.into(),
        })?;
    program::migrate::check(&pool).await.map_err(|error| match error {
        MigrateError::Absent | MigrateError::Behind { .. } | MigrateError::Ahead { .. } => {
            Failure(WRONG_DATABASE, error.into())
        }
        MigrateError::Failed(_) | MigrateError::Database(_) => error.into(),
    })?;
    program::soundness::check(&pool, "reeve_scheduler").await.map_err(|error| match error {
        SoundnessError::Unsound(_) => Failure(WRONG_DATABASE, error.into()),
        SoundnessError::Database(_) => error.into(),
    })?;
    let stop = CancellationToken::new();
    let told = stop.clone();
    tokio::spawn(async move {
        program::shutdown::signal().await;
        told.cancel();
    });
    tracing::info!(
        tick_ms = config.tick_ms,
        rescue_secs = config.rescue_secs,
        slots_secs = config.slots_secs,
        upkeep_secs = config.upkeep_secs,
        "scheduler started"
    );
    let ended = service::run(&pool, config, &stop).await;
    // A statement that was dropped half-way may keep its connection busy; PostgreSQL undoes it when that breaks.
    let _ = tokio::time::timeout(Duration::from_secs(5), pool.close()).await;
    tracing::info!("scheduler stopped");
    Ok(ended?)
}

fn misconfigured(error: impl Into<anyhow::Error>) -> Failure {
    Failure(MISCONFIGURED, error.into())
}
