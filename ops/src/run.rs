//! Runs one command: configuration, connection, service, output; and says with which exit code it ended.
use std::{
    io::{self, Read, Write},
    time::Duration,
};

use reeve_jobs::{
    audit::{AuditKeyError, shipped::ShippedError},
    clock::SystemClock,
    program::{config::ConfigError, db, db::DbError},
    queue::{
        inspect::{Filter, Place},
        operate::Act,
    },
    redact::Redacted,
};
use serde_json::json;
use sqlx::{Connection, PgConnection, PgPool, postgres::PgConnectOptions};

use crate::{
    audit,
    bars::Bars,
    breakglass, bulk,
    cli::{self, Cli, Noun},
    config::Config,
    history, output, placement, queues, schedules,
    service::{self, ServiceError, catalogue, catalogue::CatalogueError, doctor, flags, jobs, jobs::Tail},
    tenants,
};

/// Where a command reads and writes, and for whom it acts. Tests bring their own.
#[allow(missing_debug_implementations, reason = "streams have none")]
pub struct Terminal<'a> {
    /// Data.
    pub out: &'a mut dyn Write,
    /// Messages.
    pub messages: &'a mut dyn Write,
    pub input: &'a mut dyn Read,
    /// The operator's name, as the audit log is to have it.
    pub user: Option<String>,
    /// Whether data goes to a terminal, where bars can be drawn.
    pub is_terminal: bool,
}

/// How a command ended that could be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Done,
    CheckFailed,
}

/// Why a command could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("[ops] audit_key: {0}")]
    AuditKey(#[from] AuditKeyError),
    #[error(transparent)]
    Connect(#[from] DbError),
    #[error("cannot reach the database of {key}: no answer within {} s; is the address right?", CONNECT_WITHIN.as_secs())]
    NoAnswer { key: &'static str },
    #[error(transparent)]
    Service(#[from] ServiceError),
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    #[error("nobody to name in the audit log: {0}")]
    Actor(&'static str),
    #[error("the payload could not be read from standard input: {0}")]
    Input(io::Error),
    #[error("writing the result failed: {0}")]
    Output(#[from] io::Error),
}

impl Failure {
    /// See [`cli::EXIT_CODES`].
    fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::AuditKey(_) | Self::Actor(_) | Self::Input(_) | Self::Output(_) => 2,
            Self::Connect(DbError::Url { .. }) => 2,
            Self::Connect(DbError::Connect { .. }) | Self::NoAnswer { .. } => 3,
            Self::Catalogue(error) => error.exit_code(),
            Self::Service(error) => match error {
                ServiceError::NoJob(_)
                | ServiceError::NoOpening(_)
                | ServiceError::JobOver { .. }
                | ServiceError::NoTenant(_)
                | ServiceError::NoSchedule { .. }
                | ServiceError::NoFlagValue { .. } => 1,
                ServiceError::UnknownKind { .. }
                | ServiceError::Slots(_)
                | ServiceError::WrongPlace { .. }
                | ServiceError::PayloadSyntax(_)
                | ServiceError::PayloadShape(_)
                | ServiceError::Payload { .. }
                | ServiceError::Role { .. } => 2,
                ServiceError::Shipped(error) => match error {
                    ShippedError::Read { .. } => 2,
                    ShippedError::Form { .. } | ShippedError::Signature { .. } => 1,
                },
                ServiceError::Append { .. } => 2,
                ServiceError::Schema(_) | ServiceError::Unsound(_) | ServiceError::Database(_) => 3,
                ServiceError::Refused { .. } => 4,
            },
        }
    }

    /// Tells the operator, on one line, or two when there is a hint.
    pub fn tell(&self, messages: &mut dyn Write) -> io::Result<()> {
        // Whoever read our output has seen enough (`reeve jobs list | head`).
        if matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe) {
            return Ok(());
        }
        if let Self::Service(ServiceError::Refused { code, message, hint }) = self {
            writeln!(messages, "refused ({code}): {}", output::clean(message))?;
            return hint.iter().try_for_each(|hint| writeln!(messages, "hint: {}", output::clean(hint)));
        }
        let text = self.to_string();
        let mut lines = text.lines().map(output::clean);
        writeln!(messages, "error: {}", lines.next().unwrap_or_default())?;
        lines.try_for_each(|line| writeln!(messages, "{line}"))
    }
}

pub fn exit_code(ended: &Result<Outcome, Failure>) -> u8 {
    match ended {
        Ok(Outcome::Done) => 0,
        Ok(Outcome::CheckFailed) => 1,
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => 0,
        Err(failure) => failure.exit_code(),
    }
}

/// Runs what the command line says.
pub async fn run(cli: &Cli, terminal: &mut Terminal<'_>) -> Result<Outcome, Failure> {
    let config = Config::load(cli.config.as_deref())?;
    let outcome = match &cli.noun {
        Noun::Migrate(arguments) => migrate(cli, &config, arguments, terminal).await?,
        Noun::Doctor { catalogue } => {
            let pool = open(&config).await?;
            let mut report = doctor::run(&pool, &SystemClock).await?;
            if let Some(url) = config.redis_url() {
                report.checks.push(doctor::window(url).await);
            }
            if let Some(file) = catalogue {
                report.checks.push(doctor::app(&open_app(&config).await?, file).await?);
            }
            show(cli, terminal, &report, output::report)?;
            if report.status() == doctor::Status::Fail { Outcome::CheckFailed } else { Outcome::Done }
        }
        Noun::Jobs { verb } => jobs(cli, &config, verb, terminal).await?,
        Noun::Queues { verb } => {
            queues::queues(cli, &config, verb, terminal).await?;
            Outcome::Done
        }
        Noun::Kinds { verb } => {
            queues::kinds(cli, &config, verb, terminal).await?;
            Outcome::Done
        }
        Noun::Schedules { verb } => {
            schedules::run(cli, &config, verb, terminal).await?;
            Outcome::Done
        }
        Noun::Audit { verb } => audit::run(cli, &config, verb, terminal).await?,
        Noun::Breakglass { verb } => breakglass::run(cli, &config, verb, terminal).await?,
        Noun::Tenants { verb } => tenants::run(cli, &config, verb, terminal).await?,
        Noun::Catalogue(arguments) => catalogue_of(cli, &config, arguments, terminal).await?,
        Noun::Flags { verb } => {
            flags(cli, &config, verb, terminal).await?;
            Outcome::Done
        }
        Noun::Placement { verb } => {
            placement::run(cli, &config, verb, terminal).await?;
            Outcome::Done
        }
        Noun::Regions { verb } => {
            placement::regions(cli, &config, verb, terminal).await?;
            Outcome::Done
        }
    };
    terminal.out.flush()?;
    Ok(outcome)
}

/// As JSON, or for people.
pub(crate) fn show<T: serde::Serialize>(
    cli: &Cli,
    terminal: &mut Terminal<'_>,
    value: &T,
    human: impl FnOnce(&mut dyn Write, &T) -> io::Result<()>,
) -> io::Result<()> {
    if cli.json { output::json(terminal.out, value) } else { human(terminal.out, value) }
}

async fn migrate(
    cli: &Cli,
    config: &Config,
    arguments: &cli::Migrate,
    terminal: &mut Terminal<'_>,
) -> Result<Outcome, Failure> {
    let mut admin = connect("[ops] admin_database_url", config.admin_database_url()?).await?;
    let mut migrated = service::migrate::run(&mut admin, arguments.app_context_setting.as_deref()).await?;
    if let Some(url) = config.keystore_admin_url() {
        let mut keystore = connect("[ops] keystore_admin_url", url).await?;
        migrated.keystore = Some(service::migrate::run_keystore(&mut keystore).await?);
    }
    show(cli, terminal, &migrated, |out, migrated| {
        if migrated.from == migrated.to {
            writeln!(out, "schema: already at {}", migrated.to)?;
        } else {
            writeln!(out, "schema: {} → {}", migrated.from, migrated.to)?;
        }
        migrated.keystore.iter().try_for_each(|version| writeln!(out, "keystore: at {version}"))?;
        migrated.app_context_setting.iter().try_for_each(|setting| writeln!(out, "app context setting: {setting}"))
    })?;
    Ok(Outcome::Done)
}

async fn jobs(cli: &Cli, config: &Config, verb: &cli::Jobs, terminal: &mut Terminal<'_>) -> Result<Outcome, Failure> {
    match verb {
        cli::Jobs::List(arguments) => {
            let pool = open(config).await?;
            let place = if arguments.history { Place::History } else { Place::Live };
            let filter =
                Filter { tenant: arguments.tenant.clone(), kind: arguments.kind.clone(), state: arguments.state };
            let found = jobs::list(&pool, place, &filter, arguments.limit).await?;
            show(cli, terminal, &found, |out, found| output::jobs(out, found, arguments.history))?;
            if i64::try_from(found.len()).is_ok_and(|n| n == arguments.limit) {
                writeln!(terminal.messages, "the newest {}; --limit shows more", arguments.limit)?;
            }
        }
        cli::Jobs::Show { id } => {
            let pool = open(config).await?;
            show(cli, terminal, &jobs::show(&pool, *id).await?, output::job)?;
        }
        cli::Jobs::Why { id } => queues::why(cli, config, *id, terminal).await?,
        cli::Jobs::Enqueue(arguments) => {
            let actor = actor(terminal)?;
            let payload = payload(&arguments.payload, terminal.input)?;
            let pool = open_to_act(config).await?;
            let act = Act { actor: &actor, reason: &arguments.reason };
            let id = jobs::enqueue(&pool, &arguments.tenant, arguments.kind, &payload, act).await?;
            show(cli, terminal, &json!({ "id": id }), |out, _| writeln!(out, "{id}"))?;
        }
        cli::Jobs::Retry(arguments) => {
            let actor = actor(terminal)?;
            let pool = open_to_act(config).await?;
            let acted = jobs::retry(&pool, arguments.id, Act { actor: &actor, reason: &arguments.reason }).await?;
            show(cli, terminal, &acted, acted_on)?;
        }
        cli::Jobs::Cancel(arguments) => {
            let actor = actor(terminal)?;
            let pool = open_to_act(config).await?;
            let acted = jobs::cancel(&pool, arguments.id, Act { actor: &actor, reason: &arguments.reason }).await?;
            show(cli, terminal, &acted, acted_on)?;
        }
        cli::Jobs::Bulk { verb } => return bulk::run(cli, config, verb, terminal).await,
        cli::Jobs::History(verb) => return history::run(cli, config, verb, terminal).await,
        cli::Jobs::Tail(arguments) => {
            let pool = open(config).await?;
            tail(cli, &pool, arguments, terminal).await?;
        }
    }
    Ok(Outcome::Done)
}

async fn catalogue_of(
    cli: &Cli,
    config: &Config,
    arguments: &cli::Catalogue,
    terminal: &mut Terminal<'_>,
) -> Result<Outcome, Failure> {
    let pool = open_app(config).await?;
    let file = arguments.file.as_path();
    match &arguments.verb {
        cli::CatalogueVerb::Init { force, tenants } => {
            let drafted = catalogue::init(&pool, file, *force, tenants.as_ref()).await?;
            show(cli, terminal, &drafted, output::drafted)?;
        }
        cli::CatalogueVerb::Check { rows } => {
            let (key, url) = config.app_database_url()?;
            let mut connection = if *rows { Some(connect(key, url).await?) } else { None };
            let report = catalogue::check(&pool, file, connection.as_mut()).await?;
            if let Some(connection) = connection {
                let _ = connection.close().await;
            }
            show(cli, terminal, &report, output::findings)?;
            return Ok(if report.passed() { Outcome::Done } else { Outcome::CheckFailed });
        }
        cli::CatalogueVerb::Show { table } => {
            show(cli, terminal, &catalogue::show(&pool, file, table).await?, output::catalogued)?;
        }
        cli::CatalogueVerb::PlanDelete { tenant, sql } => {
            let plan = catalogue::plan_delete(&pool, file, tenant).await?;
            let human = if *sql { output::plan_sql } else { output::plan };
            show(cli, terminal, &plan, human)?;
        }
        cli::CatalogueVerb::Rls => {
            let sql = catalogue::rls(&pool, file).await?;
            show(cli, terminal, &json!({ "sql": sql }), |out, _| write!(out, "{sql}"))?;
        }
        cli::CatalogueVerb::Graph => {
            let dot = catalogue::graph(&pool, file).await?;
            show(cli, terminal, &json!({ "dot": dot }), |out, _| write!(out, "{dot}"))?;
        }
    }
    Ok(Outcome::Done)
}

fn acted_on(out: &mut dyn Write, acted: &jobs::Acted) -> io::Result<()> {
    if acted.was == acted.now {
        return writeln!(out, "{}  {}: asked to stop; its worker is told with its next renewal", acted.id, acted.was);
    }
    writeln!(out, "{}  {} → {}", acted.id, acted.was, acted.now)
}

async fn flags(cli: &Cli, config: &Config, verb: &cli::Flags, terminal: &mut Terminal<'_>) -> Result<(), Failure> {
    let changed = match verb {
        cli::Flags::List { tenant } => {
            let found = flags::list(&open(config).await?, tenant.as_ref()).await?;
            return Ok(show(cli, terminal, &found, |out, found| output::flags(out, found))?);
        }
        cli::Flags::Set { name, value, level, reason } => {
            let actor = actor(terminal)?;
            let act = Act { actor: &actor, reason };
            flags::set(&open_to_act(config).await?, name, value, &level.level(), act).await?
        }
        cli::Flags::Clear { name, level, reason } => {
            let actor = actor(terminal)?;
            flags::clear(&open_to_act(config).await?, name, &level.level(), Act { actor: &actor, reason }).await?
        }
        cli::Flags::Declare { name, value_type, default, description, reason } => {
            let actor = actor(terminal)?;
            let act = Act { actor: &actor, reason };
            flags::declare(&open_to_act(config).await?, name, value_type, default, description, act).await?
        }
    };
    show(cli, terminal, &changed, output::flag_changed)?;
    if let Some(note) = &changed.note {
        writeln!(terminal.messages, "note: {}", output::clean(note))?;
    }
    Ok(())
}

/// How often `jobs tail` looks.
const TAIL_EVERY: Duration = Duration::from_millis(300);

async fn tail(cli: &Cli, pool: &PgPool, arguments: &cli::Tail, terminal: &mut Terminal<'_>) -> Result<(), Failure> {
    let filter = Filter { tenant: arguments.tenant.clone(), kind: arguments.kind.clone(), state: None };
    let mut tail = Tail::start(pool, filter.clone()).await?;
    let mut bars = Bars::new(terminal.is_terminal, cli.json);
    let follow = async {
        loop {
            tokio::time::sleep(TAIL_EVERY).await;
            let news = tail.look(pool).await?;
            let reports = jobs::progress(pool, &filter).await?;
            bars.clear(terminal.out)?;
            for change in news {
                if cli.json {
                    output::json_line(terminal.out, &change)?;
                } else {
                    output::change(terminal.out, &change)?;
                }
            }
            bars.show(terminal.out, &reports)?;
            terminal.out.flush()?;
        }
    };
    let enough = async {
        match arguments.for_secs {
            Some(secs) => tokio::time::sleep(Duration::from_secs(secs.into())).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        ended = follow => ended,
        () = enough => Ok(()),
        // An error means that the signal cannot be caught; stopping is then the safe reading of it.
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}

/// How long the database may take to answer the first connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// One connection, told apart from a pool's because a pool answers "timed out" to everything that goes wrong.
pub(crate) async fn connect(key: &'static str, url: &Redacted<String>) -> Result<PgConnection, Failure> {
    let options: PgConnectOptions = url.reveal().parse().map_err(|_| DbError::Url { key })?;
    match tokio::time::timeout(CONNECT_WITHIN, PgConnection::connect_with(&options.application_name("reeve"))).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(source)) => Err(DbError::Connect { key, source }.into()),
        Err(_) => Err(Failure::NoAnswer { key }),
    }
}

/// A pool on the operators' database, with the schema and role checked.
pub(crate) async fn open(config: &Config) -> Result<PgPool, Failure> {
    const KEY: &str = "[ops] database_url";
    let url = config.database_url()?;
    // Its closing is a courtesy to the server's log.
    let _ = connect(KEY, url).await?.close().await;
    let pool = db::connect(KEY, url, "reeve", 2).await?;
    service::ready(&pool).await?;
    Ok(pool)
}

/// [`open`], for a command that changes something.
pub(crate) async fn open_to_act(config: &Config) -> Result<PgPool, Failure> {
    let pool = open(config).await?;
    service::sound(&pool).await?;
    Ok(pool)
}

/// A pool on the app's database.
async fn open_app(config: &Config) -> Result<PgPool, Failure> {
    let (key, url) = config.app_database_url()?;
    // Its closing is a courtesy to the server's log.
    let _ = connect(key, url).await?.close().await;
    Ok(db::connect(key, url, "reeve", 2).await?)
}

/// The audit log takes this many characters; the prefix needs four.
const USER_CHARS_MAX: usize = 196;

pub(crate) fn actor(terminal: &Terminal<'_>) -> Result<String, Failure> {
    let user = terminal.user.as_deref().unwrap_or_default().trim();
    match user.chars().count() {
        0 => Err(Failure::Actor("set REEVE_ACTOR to your name")),
        1..=USER_CHARS_MAX if !user.contains(char::is_control) => Ok(format!("cli:{user}")),
        _ => Err(Failure::Actor("REEVE_ACTOR must have at most 196 characters and no control characters")),
    }
}

/// The argument itself, or all of standard input for `-`.
pub(crate) fn payload(argument: &str, input: &mut dyn Read) -> Result<String, Failure> {
    if argument != "-" {
        return Ok(argument.to_owned());
    }
    let mut text = String::new();
    input.read_to_string(&mut text).map_err(Failure::Input)?;
    Ok(text)
}
