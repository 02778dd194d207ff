//! `reeve-dev`: the development stack from the command line. Thin: what it does is in the library.

use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand};
use reeve_dev::lock::{self, Holder};
use reeve_dev::os::{self, Signal};
use reeve_dev::postgres::{Flavour, Postgres, PostgresOptions};
use reeve_dev::process::{self, Daemon};
use reeve_dev::redis::Redis;
use reeve_dev::stack::{ENV_FILE, Stack};
use reeve_dev::supervisor::{Program, Supervisor};
use reeve_dev::{files, secrets, terminal, tour};
use tokio::signal::unix::{Signal as SignalStream, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Reeve's development stack: a private PostgreSQL and Redis, S3 and a mail sink, and Reeve's programs on top.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the stack and Reeve's programs; Ctrl-C stops everything. The data stay.
    Up {
        /// Where the stack keeps its data, logs and secrets.
        #[arg(long, default_value = ".reeve")]
        dir: PathBuf,
        /// Stop as soon as the tour is over.
        #[arg(long)]
        once: bool,
        /// Where reeve-worker and reeve-scheduler are; by default beside this program.
        #[arg(long)]
        programs_dir: Option<PathBuf>,
    },
    /// Run a command with a throw-away PostgreSQL and Redis (REEVE_TEST_ADMIN_URL, REEVE_TEST_REDIS_URL).
    TestCluster {
        /// Where to put the throw-away directory; by default the system's temporary directory.
        #[arg(long)]
        dir: Option<PathBuf>,
        /// Write to disk as in production (fsync on), for measuring; by default nothing survives a crash of the machine.
        #[arg(long)]
        durable: bool,
        /// The command and its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<String>,
    },
    /// Say whether a stack runs; the exit status is 0 when one does, else 3.
    Status {
        /// The stack's directory.
        #[arg(long, default_value = ".reeve")]
        dir: PathBuf,
    },
    /// Stop a stack that runs elsewhere.
    Stop {
        /// The stack's directory.
        #[arg(long, default_value = ".reeve")]
        dir: PathBuf,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    run(Arguments::parse().command).await.unwrap_or_else(|error| {
        // Without a terminal to tell it to, the exit status has to do.
        let _ = writeln!(std::io::stderr(), "reeve-dev: {}", in_one_line(&error));
        ExitCode::FAILURE
    })
}

/// The error and its causes, less those its own message quotes already. No backtrace: the messages are for users.
fn in_one_line(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| {
        if text.is_empty() {
            cause
        } else if text.contains(&cause) {
            text
        } else {
            format!("{text}: {cause}")
        }
    })
}

async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Up { dir, once, programs_dir } => up(&dir, once, programs_dir).await,
        Command::TestCluster { dir, durable, command } => {
            test_cluster(dir, if durable { Flavour::Dev } else { Flavour::Test }, &command).await
        }
        Command::Status { dir } => status(&dir),
        Command::Stop { dir } => stop(&dir).await,
    }
}

/// The programs kept running beside the stack, and the variables each is given.
const PROGRAMS: [(&str, &str); 2] = [("reeve-worker", "REEVE_WORKER__"), ("reeve-scheduler", "REEVE_SCHEDULER__")];

async fn up(dir: &Path, once: bool, programs_dir: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    let programs_dir = programs_dir.map_or_else(beside_this_program, Ok)?;
    let mut signals = Signals::listen()?;
    let mut stack = tokio::select! {
        stack = Stack::start(dir, Flavour::Dev) => stack?,
        name = signals.next() => bail!("{name} while the stack was starting"),
    };
    let programs_stop = CancellationToken::new();
    let mut supervisor = None;
    let mut outcome = tokio::select! {
        outcome = begin(&stack, &programs_dir, &programs_stop, &mut supervisor) => outcome.map(|()| !once),
        name = signals.next() => stopping(name).map(|()| false),
    };
    if let Ok(true) = outcome {
        outcome = tokio::select! {
            name = signals.next() => stopping(name).map(|()| false),
            broken = stack.broken() => Err(anyhow::Error::msg(broken)),
        };
    }
    let end = async {
        programs_stop.cancel();
        if let Some(supervisor) = supervisor {
            supervisor.stopped().await;
        }
        stack.stop().await.context("the stack did not stop in order")
    };
    tokio::select! {
        ended = end => ended?,
        // What still runs is told to end when dropped, and by the kernel when this process is gone.
        name = signals.next() => bail!("{name} while stopping: not waiting any longer"),
    }
    outcome.map(|_| ExitCode::SUCCESS)
}

async fn begin(
    stack: &Stack,
    programs_dir: &Path,
    programs_stop: &CancellationToken,
    supervisor: &mut Option<Supervisor>,
) -> anyhow::Result<()> {
    // migrate, load the sample, tour
    tour::prepare(stack).await?;
    let programs = PROGRAMS.map(|(name, prefix)| Program {
        name: name.to_owned(),
        path: programs_dir.join(name),
        args: Vec::new(),
        env: stack.env_of(prefix),
    });
    *supervisor = Some(Supervisor::start(&stack.dir, programs.into(), programs_stop)?);
    tour::run(stack, programs_dir).await?;
    Ok(())
}

fn stopping(name: &str) -> anyhow::Result<()> {
    Ok(terminal::line(format_args!("{name}: stopping"))?)
}

fn beside_this_program() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe().context("cannot tell where this program is; use --programs-dir")?;
    Ok(program.parent().context("this program is in no directory; use --programs-dir")?.to_owned())
}

async fn test_cluster(parent: Option<PathBuf>, flavour: Flavour, words: &[String]) -> anyhow::Result<ExitCode> {
    let parent = parent.unwrap_or_else(std::env::temp_dir);
    let mode = if os::is_root() { 0o711 } else { 0o700 };
    let dir = files::fresh_dir(&parent, "reeve-test", mode)
        .with_context(|| format!("cannot make a throw-away directory in {}", parent.display()))?;
    let status = with_servers(&dir, flavour, words).await;
    let removed = remove_cluster(&dir).with_context(|| format!("cannot remove {}", dir.display()));
    let status = status?;
    removed?;
    // A shell's convention for a command that a signal ended.
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

async fn with_servers(dir: &Path, flavour: Flavour, words: &[String]) -> anyhow::Result<ExitStatus> {
    let mut signals = Signals::listen()?;
    let (postgres_log, redis_log) = (dir.join("postgres.log"), dir.join("redis.log"));
    let options = PostgresOptions {
        dir: dir.join("postgres"),
        log: postgres_log,
        flavour,
        admin_password: secrets::random_text(32),
    };
    let redis_password = secrets::random_text(32);
    let redis_dir = dir.join("redis");
    let servers =
        async { tokio::join!(Postgres::start(options), Redis::start(&redis_dir, &redis_log, &redis_password)) };
    let (postgres, redis) = tokio::select! {
        servers = servers => servers,
        name = signals.next() => bail!("{name} while the servers were starting"),
    };
    let (postgres, redis) = (postgres?, redis?);
    let status = run_command(words, &postgres, &redis, &mut signals).await;
    redis.stop().await?;
    postgres.stop().await?;
    status
}

async fn run_command(
    words: &[String],
    postgres: &Postgres,
    redis: &Redis,
    signals: &mut Signals,
) -> anyhow::Result<ExitStatus> {
    let (program, arguments) = words.split_first().context("no command given")?;
    let mut command = tokio::process::Command::new(program);
    command.args(arguments);
    command.env("REEVE_TEST_ADMIN_URL", postgres.admin_url("postgres")).env("REEVE_TEST_REDIS_URL", redis.url());
    let mut running = Daemon::spawn_in_foreground(command).await.with_context(|| format!("cannot run {program}"))?;
    let ended = tokio::select! {
        ended = running.wait() => ended,
        name = signals.next() => {
            // A terminal's Ctrl-C has reached the command as well; whoever signals only this program means both.
            let patience = Duration::from_secs(if name == "Ctrl-C" { 5 } else { 0 });
            match tokio::time::timeout(patience, running.wait()).await {
                Ok(ended) => ended,
                Err(_) => running.stop(&[(Signal::Terminate, Duration::from_secs(10))]).await,
            }
        }
    };
    ended.with_context(|| format!("cannot wait for {program}"))
}

/// Removes a throw-away directory, and the directory elsewhere its cluster may have been moved to.
fn remove_cluster(dir: &Path) -> std::io::Result<()> {
    let cluster = dir.join("postgres");
    if cluster.is_symlink() {
        std::fs::remove_dir_all(cluster.canonicalize()?)?;
    }
    std::fs::remove_dir_all(dir)
}

fn status(dir: &Path) -> anyhow::Result<ExitCode> {
    let pid = match lock::holder(dir)? {
        Holder::Nobody => {
            terminal::line(format_args!("no stack runs in {}", dir.display()))?;
            return Ok(ExitCode::from(3));
        }
        Holder::Unknown => "not known yet".to_owned(),
        Holder::Process(pid) => pid.to_string(),
    };
    let env = dir.join(ENV_FILE);
    let ready = if env.exists() { "its variables are in" } else { "it is starting or stopping; no" };
    terminal::line(format_args!("a stack runs in {} (pid {pid}); {ready} {}", dir.display(), env.display()))?;
    Ok(ExitCode::SUCCESS)
}

async fn stop(dir: &Path) -> anyhow::Result<ExitCode> {
    let pid = match lock::holder(dir)? {
        Holder::Process(pid) => pid,
        Holder::Unknown => bail!("a stack is just starting in {}; try again", dir.display()),
        Holder::Nobody => {
            terminal::line(format_args!("no stack runs in {}", dir.display()))?;
            return Ok(ExitCode::SUCCESS);
        }
    };
    // The lock is held, but the number in its file may be wrong: nothing else is ever signalled.
    let line = os::command_line(pid).unwrap_or_default();
    let program = line.split(' ').next().and_then(|path| Path::new(path).file_name()).unwrap_or_default();
    if program != "reeve-dev" {
        bail!("{} says pid {pid}, which is not a reeve-dev; stop it by hand", dir.join(lock::FILE_NAME).display());
    }
    os::send(pid, Signal::Terminate).with_context(|| format!("cannot stop process {pid}"))?;
    let free = || matches!(lock::holder(dir), Ok(Holder::Nobody));
    if !process::wait_until(Duration::from_secs(60), free).await {
        bail!("process {pid} has not stopped within 60 s; its logs are in {}", dir.join("log").display());
    }
    terminal::line(format_args!("stopped (pid {pid})"))?;
    Ok(ExitCode::SUCCESS)
}

/// What asks this program to stop. Listened to from the start on, so that none ends it before it has tidied up.
struct Signals {
    interrupt: SignalStream,
    terminate: SignalStream,
    hang_up: SignalStream,
}

impl Signals {
    fn listen() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    /// Waits for the next one and says what it was.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "Ctrl-C",
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.hang_up.recv() => "SIGHUP",
        }
    }
}
