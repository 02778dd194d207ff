//! A private PostgreSQL (15 or later): own cluster, own Unix socket, a free port of 127.0.0.1, stopped with its owner.
//!
//! Data flow: [`place`] makes the directory ready, [`binaries`] finds the programs, `initdb` makes a cluster once, and
//! [`Postgres::start`] runs the server until [`Postgres::stop`]. The superuser `reeve_admin` is trusted on the socket,
//! whose directory is closed to others, and needs its password over TCP, as everybody does.
//!
//! Deliberately not here: databases and roles of Reeve's own ([`crate::stack`], and the migrations), and downloads.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};
use tokio::process::Command;

use crate::files::{self, SocketDir};
use crate::os::Signal;
use crate::process::{self, Daemon};
use crate::redis::log_tail;

pub mod binaries;
pub mod place;

use binaries::Binaries;
use place::Place;

/// The superuser of the cluster.
pub const ADMIN: &str = "reeve_admin";
/// How long a server may take to recover from a crash before it answers.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How often a start is tried again when the port is taken or an earlier server still ends.
const START_TRIES: u32 = 20;

/// Why PostgreSQL did not start or stop.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// It is not installed.
    #[error(
        "no PostgreSQL found in PATH or the usual places; install version {min} or later (Debian, Ubuntu: postgresql; \
         Fedora: postgresql-server; Homebrew: postgresql@17), or name the directory of its programs in {variable}",
        min = binaries::MAJOR_MIN,
        variable = binaries::VARIABLE
    )]
    Missing,
    /// Only old versions are installed.
    #[error("PostgreSQL {newest} is too old: install version {min} or later", min = binaries::MAJOR_MIN)]
    TooOld {
        /// The newest found.
        newest: u32,
    },
    /// The cluster needs a version that is not installed.
    #[error(
        "the cluster is of PostgreSQL version {cluster}, but found was only: {versions}; install version {cluster}, name \
         its programs in {variable}, or remove the stack's directory to begin anew",
        variable = binaries::VARIABLE
    )]
    OtherVersion {
        /// The cluster's major version.
        cluster: u32,
        /// Those found.
        versions: String,
    },
    /// The variable does not lead to the programs.
    #[error("{variable} is {dir}, which has no working `postgres` and `initdb` in it", variable = binaries::VARIABLE)]
    Variable {
        /// What the variable says.
        dir: PathBuf,
    },
    /// Running as root, with nobody to run the server as.
    #[error(
        "PostgreSQL refuses to run as root, and there is no user `postgres` or `nobody` to run it as; use another user"
    )]
    NoUser,
    /// The server's user cannot enter a directory.
    #[error(
        "user {uid}, who must run PostgreSQL, cannot reach {dir}: every directory above it needs the permission x for \
         others; open them, or use --dir"
    )]
    Unreachable {
        /// The directory.
        dir: PathBuf,
        /// The user.
        uid: u32,
    },
    /// A directory belongs to the wrong user.
    #[error(
        "{dir} belongs to user {owner}, but must belong to user {wanted}: start the stack as the user who made it, or use --dir"
    )]
    Owner {
        /// The directory.
        dir: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Whose it must be.
        wanted: u32,
    },
    /// A file, directory or process could not be used.
    #[error("PostgreSQL: cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// `initdb` failed.
    #[error("initdb failed; the end of {log} says:\n{tail}")]
    Init {
        /// The log.
        log: PathBuf,
        /// Its last lines.
        tail: String,
    },
    /// The server ended or did not answer.
    #[error("PostgreSQL did not start: {reason}; the end of {log} says:\n{tail}")]
    NotReady {
        /// How it failed.
        reason: String,
        /// The log.
        log: PathBuf,
        /// Its last lines.
        tail: String,
    },
    /// A statement of the stack's own failed.
    #[error("PostgreSQL: cannot {what}: {source}")]
    Sql {
        /// What was tried.
        what: &'static str,
        /// What the server said.
        source: sqlx::Error,
    },
    /// A password that would have to be escaped.
    #[error("the password of a role of the stack must be ASCII letters and digits")]
    Password,
}

pub(crate) fn cannot(what: impl Into<String>) -> impl FnOnce(io::Error) -> PostgresError {
    let what = what.into();
    move |source| PostgresError::Io { what, source }
}

/// What a cluster is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// Development: as durable as in production.
    Dev,
    /// Tests: fast, for many connections, and nothing survives a crash of the machine.
    Test,
}

impl Flavour {
    fn settings(self) -> &'static [&'static str] {
        match self {
            Flavour::Dev => &["fsync=on", "synchronous_commit=on", "full_page_writes=on", "max_connections=200"],
            Flavour::Test => &[
                "fsync=off",
                "synchronous_commit=off",
                "full_page_writes=off",
                "max_connections=400",
                // Off by default; where an operator turns them on, they must not be a way around anything.
                "max_prepared_transactions=10",
            ],
        }
    }
}

/// How to run a cluster.
#[derive(Clone)]
pub struct PostgresOptions {
    /// Its directory, made if missing.
    pub dir: PathBuf,
    /// Where the output of the server and of `initdb` is appended.
    pub log: PathBuf,
    /// What it is for.
    pub flavour: Flavour,
    /// The superuser's password over TCP: ASCII letters and digits.
    pub admin_password: String,
}

impl fmt::Debug for PostgresOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("PostgresOptions");
        shown.field("dir", &self.dir).field("log", &self.log).field("flavour", &self.flavour).finish_non_exhaustive()
    }
}

/// A running server. Stop it with [`Postgres::stop`]; when dropped it is told to end at once, but not waited for.
pub struct Postgres {
    options: PostgresOptions,
    place: Place,
    binaries: Binaries,
    sockets: SocketDir,
    daemon: Daemon,
    port: u16,
}

impl Postgres {
    /// Starts a server on the cluster in the directory, which is made at the first start.
    ///
    /// # Errors
    /// [`PostgresError`], with the end of the server's log where that says more.
    pub async fn start(options: PostgresOptions) -> Result<Self, PostgresError> {
        if !alphanumeric(&options.admin_password) {
            return Err(PostgresError::Password);
        }
        let place = Place::prepare(&options.dir)?;
        let cluster = place.cluster_major()?;
        let binaries = Binaries::find(cluster)?;
        if cluster.is_none() {
            make_cluster(&place, &binaries, &options).await?;
        }
        end_earlier_server(&place.data()).await?;
        let sockets = place.sockets()?;
        let (daemon, port) = launch(&place, &binaries, &sockets, &options, None).await?;
        let server = Self { options, place, binaries, sockets, daemon, port };
        server.set_password(ADMIN, &server.options.admin_password).await?;
        Ok(server)
    }

    /// Stops the server: running transactions are rolled back, everything is written out.
    ///
    /// # Errors
    /// [`PostgresError::Io`] when it cannot be waited for.
    pub async fn stop(mut self) -> Result<(), PostgresError> {
        self.shut_down().await
    }

    /// Stops the server and starts it again on the same data, the same port and the same socket, so addresses stay good.
    ///
    /// # Errors
    /// As [`Postgres::start`]; the server is then stopped.
    pub async fn restart(&mut self) -> Result<(), PostgresError> {
        self.shut_down().await?;
        let port = Some(self.port);
        (self.daemon, _) = launch(&self.place, &self.binaries, &self.sockets, &self.options, port).await?;
        Ok(())
    }

    async fn shut_down(&mut self) -> Result<(), PostgresError> {
        let steps = [(Signal::Interrupt, Duration::from_secs(20)), (Signal::Quit, Duration::from_secs(5))];
        self.daemon.stop(&steps).await.map_err(cannot("stop the server"))?;
        Ok(())
    }

    /// Waits until the server ends by itself. May be dropped and called again.
    ///
    /// # Errors
    /// The kernel's, when it cannot be waited for.
    pub async fn exited(&mut self) -> io::Result<ExitStatus> {
        self.daemon.wait().await
    }

    /// The server's process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.daemon.pid()
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The directory of PostgreSQL's programs.
    pub fn bin_dir(&self) -> &Path {
        &self.binaries.dir
    }

    /// The directory of the Unix socket.
    pub fn socket_dir(&self) -> &Path {
        self.sockets.path()
    }

    /// The data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.place.data()
    }

    /// `postgres://` for the superuser, over 127.0.0.1 with the password in it.
    pub fn admin_url(&self, database: &str) -> String {
        self.url(ADMIN, &self.options.admin_password, database)
    }

    /// `postgres://` for any role, over 127.0.0.1 with the password in it.
    pub fn url(&self, role: &str, password: &str, database: &str) -> String {
        let (role, password, database) = (escaped(role), escaped(password), escaped(database));
        format!("postgres://{role}:{password}@127.0.0.1:{}/{database}", self.port)
    }

    /// How the stack itself connects as superuser: over the Unix socket.
    pub fn admin_options(&self, database: &str) -> PgConnectOptions {
        admin_options(self.sockets.path(), self.port, database)
    }

    /// Makes a database unless it is there. The name must be lower-case letters, digits and `_`.
    ///
    /// # Errors
    /// [`PostgresError::Sql`].
    pub async fn create_database(&self, name: &str) -> Result<(), PostgresError> {
        let failed = |source| PostgresError::Sql { what: "make the database", source };
        let mut admin = PgConnection::connect_with(&self.admin_options("postgres")).await.map_err(failed)?;
        let known: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)")
            .bind(name)
            .fetch_one(&mut admin)
            .await
            .map_err(failed)?;
        if !known {
            // A name cannot be bound; quoting it doubles the one character that could end it.
            let statement = format!("CREATE DATABASE \"{}\"", name.replace('"', "\"\""));
            admin.execute(AssertSqlSafe(statement)).await.map_err(failed)?;
        }
        admin.close().await.map_err(failed)
    }

    /// Sets the password of a role that exists.
    ///
    /// # Errors
    /// [`PostgresError::Password`] unless it is letters and digits, [`PostgresError::Sql`] when there is no such role.
    pub async fn set_password(&self, role: &str, password: &str) -> Result<(), PostgresError> {
        if !alphanumeric(password) {
            return Err(PostgresError::Password);
        }
        let failed =
            |source| PostgresError::Sql { what: "set a role's password (are the migrations applied?)", source };
        let mut admin = PgConnection::connect_with(&self.admin_options("postgres")).await.map_err(failed)?;
        // Should the statement fail, the server would write it, password and all, into its log.
        admin.execute("SET log_min_error_statement = 'panic'").await.map_err(failed)?;
        let statement = format!("ALTER ROLE \"{}\" PASSWORD '{password}'", role.replace('"', "\"\""));
        admin.execute(AssertSqlSafe(statement)).await.map_err(failed)?;
        admin.close().await.map_err(failed)
    }
}

impl fmt::Debug for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Postgres");
        shown
            .field("options", &self.options)
            .field("pid", &self.pid())
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

fn alphanumeric(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// Percent-escapes all but letters, digits, `_` and `-`.
fn escaped(text: &str) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    text.bytes().map(|byte| if keep(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

fn admin_options(sockets: &Path, port: u16, database: &str) -> PgConnectOptions {
    PgConnectOptions::new_without_pgpass()
        .socket(sockets)
        .port(port)
        .username(ADMIN)
        .database(database)
        .ssl_mode(PgSslMode::Disable)
}

/// One of PostgreSQL's programs as the cluster's user, with its output in the log and nothing of our environment.
fn command(place: &Place, binaries: &Binaries, program: &str, log: &Path) -> Result<Command, PostgresError> {
    let failed = || cannot(format!("write {}", log.display()));
    let output = files::open_log(log).map_err(failed())?;
    let mut command = Command::new(binaries.program(program));
    // PGDATA, PGPORT and the like would change what the arguments say; a locale decides the language of the log.
    command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("LC_ALL", "C").current_dir("/");
    command.stdin(Stdio::null()).stderr(output.try_clone().map_err(failed())?).stdout(output);
    if let Some(user) = place.user() {
        command.uid(user.uid).gid(user.gid);
    }
    Ok(command)
}

async fn make_cluster(place: &Place, binaries: &Binaries, options: &PostgresOptions) -> Result<(), PostgresError> {
    let fresh = place.begin_cluster()?;
    let begin = std::fs::metadata(&options.log).map_or(0, |log| log.len());
    let mut initdb = command(place, binaries, "initdb", &options.log)?;
    initdb.args(["--auth-local=trust", "--auth-host=scram-sha-256", "--encoding=UTF8", "--locale=C"]);
    initdb.arg(format!("--username={ADMIN}")).arg("--pgdata").arg(&fresh);
    if options.flavour == Flavour::Test {
        initdb.arg("--no-sync");
    }
    let program = binaries.program("initdb");
    let failed = || cannot(format!("run {}", program.display()));
    let mut running = Daemon::spawn(initdb, Signal::Kill, Signal::Kill).await.map_err(failed())?;
    if !running.wait().await.map_err(failed())?.success() {
        return Err(PostgresError::Init { log: options.log.clone(), tail: log_tail(&options.log, begin) });
    }
    place.finish_cluster(&fresh)
}

/// Makes sure that no server runs on `data`, and that no stale `postmaster.pid` keeps one from starting.
async fn end_earlier_server(data: &Path) -> Result<(), PostgresError> {
    let pid_file = data.join("postmaster.pid");
    let Ok(text) = std::fs::read_to_string(&pid_file) else {
        return Ok(());
    };
    let (first, rest) = text.split_once('\n').unwrap_or((&text, ""));
    if let Ok(pid) = first.trim().parse::<u32>() {
        let marker = data.to_string_lossy();
        process::end_leftover(pid, &marker, Signal::Interrupt).await.map_err(cannot("end an earlier server"))?;
    }
    if !pid_file.exists() {
        return Ok(());
    }
    // The pid may meanwhile be some other process's, or a zombie's nobody collects, and PostgreSQL would refuse to start.
    // Our own pid on the first line tells it that the file is stale (it is the server's parent) and, unlike removing the
    // file, keeps the rest: by that it notices children of a crashed server that still write.
    std::fs::write(&pid_file, format!("{}\n{rest}", std::process::id()))
        .map_err(cannot(format!("write {}", pid_file.display())))
}

/// Starts the server and waits until it answers. Without a fixed `port` a free one is used.
async fn launch(
    place: &Place,
    binaries: &Binaries,
    sockets: &SocketDir,
    options: &PostgresOptions,
    fixed_port: Option<u16>,
) -> Result<(Daemon, u16), PostgresError> {
    let mut tries = 0;
    loop {
        tries += 1;
        let port = fixed_port.map_or_else(process::free_port, Ok).map_err(cannot("find a free port"))?;
        let begin = std::fs::metadata(&options.log).map_or(0, |log| log.len());
        let server = server_command(place, binaries, sockets, options, port)?;
        let program = binaries.program("postgres");
        // SIGINT, so that a killed stack leaves a cluster that was shut down in order.
        let mut daemon = Daemon::spawn(server, Signal::Interrupt, Signal::Quit)
            .await
            .map_err(cannot(format!("start {}", program.display())))?;
        let Err(reason) = ready(&mut daemon, &admin_options(sockets.path(), port, "postgres")).await else {
            return Ok((daemon, port));
        };
        let tail = log_tail(&options.log, begin);
        // Somebody took the port, or children of a server that was killed still write: both pass.
        let passes = tail.contains("could not create any TCP/IP sockets") || tail.contains("is still in use");
        if !passes || tries >= START_TRIES {
            return Err(PostgresError::NotReady { reason, log: options.log.clone(), tail });
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

fn server_command(
    place: &Place,
    binaries: &Binaries,
    sockets: &SocketDir,
    options: &PostgresOptions,
    port: u16,
) -> Result<Command, PostgresError> {
    let mut server = command(place, binaries, "postgres", &options.log)?;
    // The setting is a list; double quotes keep a path with commas or blanks one element.
    let socket_dir = sockets.path().to_string_lossy().replace('"', "\"\"");
    let settings = [
        format!("port={port}"),
        format!("unix_socket_directories=\"{socket_dir}\""),
        "listen_addresses=127.0.0.1".to_owned(),
        "unix_socket_permissions=0700".to_owned(),
        "password_encryption=scram-sha-256".to_owned(),
        "ssl=off".to_owned(),
        "logging_collector=off".to_owned(),
        "log_timezone=UTC".to_owned(),
        "timezone=UTC".to_owned(),
    ];
    server.arg("-D").arg(place.data());
    for setting in settings.iter().map(String::as_str).chain(options.flavour.settings().iter().copied()) {
        server.args(["-c", setting]);
    }
    Ok(server)
}

/// Waits until the server answers; the error says how it failed.
async fn ready(daemon: &mut Daemon, admin: &PgConnectOptions) -> Result<(), String> {
    let deadline = Instant::now() + READY_WITHIN;
    loop {
        if let Ok(Some(status)) = daemon.exited() {
            return Err(format!("it ended at once ({status})"));
        }
        match PgConnection::connect_with(admin).await {
            // Not of interest how the connection ends: it has shown that the server answers.
            Ok(connection) => return connection.close().await.or(Ok(())),
            Err(error) if Instant::now() >= deadline => {
                return Err(format!("no answer within {} s ({error})", READY_WITHIN.as_secs()));
            }
            Err(_) => tokio::time::sleep(process::POLL).await,
        }
    }
}

#[cfg(test)]
#[path = "postgres/tests.rs"]
mod tests;
