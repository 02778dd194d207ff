//! Keeps Reeve's programs running: starts each, appends its output to a log, starts it again when it ends.
//!
//! Data flow: one task per program loops "start, wait, pause" until the token is cancelled; then it sends SIGTERM, waits,
//! and kills. The pauses double from 0.2 s to 5 s while a program keeps dying and begin anew after a life of 30 s.
//!
//! Deliberately not here: dependencies between programs. Each must bear that another is not there yet.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tokio::process::Command;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::files;
use crate::os::Signal;
use crate::process::Daemon;

const PAUSE_FIRST: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A program that lived this long is taken to be well.
const LIFE_WELL: Duration = Duration::from_secs(30);
/// How long a program may take to finish its work after SIGTERM.
const DRAIN: Duration = Duration::from_secs(20);

/// Why the programs cannot be supervised.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// The program is not there.
    #[error("{path} is missing; build all programs with: cargo build --release --locked --bins --workspace")]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// Two programs of one name would share a log.
    #[error("two programs are named {name}")]
    Twice {
        /// The name.
        name: String,
    },
    /// The log cannot be written.
    #[error("cannot write the log {path}: {source}")]
    Log {
        /// The log.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A program to keep running.
#[derive(Clone)]
pub struct Program {
    /// Its name, also of its log.
    pub name: String,
    /// The file to run.
    pub path: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// What is added to this process's environment.
    pub env: Vec<(String, String)>,
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.env.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("Program")
            .field("name", &self.name)
            .field("path", &self.path)
            .field("args", &self.args)
            .field("env", &names)
            .finish()
    }
}

#[derive(Debug, Default)]
struct State {
    /// 0 while it does not run.
    pid: AtomicU32,
    starts: AtomicU32,
}

/// Programs under supervision. When dropped they are killed; [`Supervisor::stopped`] is the orderly way.
#[derive(Debug)]
pub struct Supervisor {
    states: BTreeMap<String, Arc<State>>,
    tasks: JoinSet<()>,
}

impl Supervisor {
    /// Starts all programs, with their logs in `<dir>/log/<name>.log`, until `stop` is cancelled.
    ///
    /// # Errors
    /// [`SupervisorError`], before anything was started.
    pub fn start(dir: &Path, programs: Vec<Program>, stop: &CancellationToken) -> Result<Self, SupervisorError> {
        let logs = dir.join("log");
        files::private_dir(&logs).map_err(|source| SupervisorError::Log { path: logs.clone(), source })?;
        let mut states = BTreeMap::new();
        for program in &programs {
            if !program.path.is_file() {
                return Err(SupervisorError::Missing { path: program.path.clone() });
            }
            let log = logs.join(format!("{}.log", program.name));
            files::open_log(&log).map_err(|source| SupervisorError::Log { path: log, source })?;
            if states.insert(program.name.clone(), Arc::new(State::default())).is_some() {
                return Err(SupervisorError::Twice { name: program.name.clone() });
            }
        }
        let mut tasks = JoinSet::new();
        for program in programs {
            let log = logs.join(format!("{}.log", program.name));
            let state = Arc::clone(&states[&program.name]);
            tasks.spawn(keep_running(program, log, state, stop.clone()));
        }
        Ok(Self { states, tasks })
    }

    /// The pid of a program, while it runs.
    pub fn pid(&self, name: &str) -> Option<u32> {
        let pid = self.states.get(name)?.pid.load(Ordering::Relaxed);
        (pid != 0).then_some(pid)
    }

    /// How often a program has been started.
    pub fn starts(&self, name: &str) -> u32 {
        self.states.get(name).map_or(0, |state| state.starts.load(Ordering::Relaxed))
    }

    /// Waits until all have ended, which they do once the token is cancelled: SIGTERM, up to 20 s, SIGKILL.
    pub async fn stopped(mut self) {
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "the supervision of a program broke off");
            }
        }
    }
}

/// The pauses between the lives of one program.
#[derive(Debug)]
struct Pauses {
    next: Duration,
}

impl Pauses {
    fn new() -> Self {
        Self { next: PAUSE_FIRST }
    }

    /// How long to wait after a life of `lived`.
    fn after(&mut self, lived: Duration) -> Duration {
        if lived >= LIFE_WELL {
            self.next = PAUSE_FIRST;
        }
        let pause = self.next;
        self.next = (pause * 2).min(PAUSE_MAX);
        pause
    }
}

async fn keep_running(program: Program, log: PathBuf, state: Arc<State>, stop: CancellationToken) {
    let mut pauses = Pauses::new();
    while !stop.is_cancelled() {
        let began = Instant::now();
        let end = match launch(&program, &log).await {
            Ok(daemon) => live(daemon, &state, &stop).await,
            Err(error) => format!("could not be started: {error}"),
        };
        state.pid.store(0, Ordering::Relaxed);
        if stop.is_cancelled() {
            note(&log, &format!("{} stopped: {end}", program.name));
            return;
        }
        let pause = pauses.after(began.elapsed());
        let text = format!("{} {end}; starting it again in {:.1} s", program.name, pause.as_secs_f64());
        tracing::warn!(log = %log.display(), "{text}");
        note(&log, &text);
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// One life: until it ends by itself or is stopped. Says how it ended.
async fn live(mut daemon: Daemon, state: &State, stop: &CancellationToken) -> String {
    state.pid.store(daemon.pid().unwrap_or(0), Ordering::Relaxed);
    state.starts.fetch_add(1, Ordering::Relaxed);
    let ended = tokio::select! {
        ended = daemon.wait() => ended,
        () = stop.cancelled() => daemon.stop(&[(Signal::Terminate, DRAIN)]).await,
    };
    match ended {
        Ok(status) => format!("ended ({status})"),
        Err(error) => format!("cannot be waited for: {error}"),
    }
}

async fn launch(program: &Program, log: &Path) -> io::Result<Daemon> {
    let output = files::open_log(log)?;
    let mut command = Command::new(&program.path);
    command.args(&program.args).envs(program.env.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::null()).stderr(output.try_clone()?).stdout(output);
    // Killed, not asked, when the stack is killed: its database goes at the same moment, so there is nothing to finish.
    Daemon::spawn(command, Signal::Kill, Signal::Kill).await
}

/// Writes a line of the supervisor's own into the program's log.
fn note(log: &Path, text: &str) {
    let now = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
    // A full disk must not end the supervision; the same text goes to the stack's own log.
    let _ = files::open_log(log).and_then(|mut log| writeln!(log, "{now} supervisor: {text}"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os;
    use crate::process::wait_until;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn shell(name: &str, script: &str) -> Program {
        Program {
            name: name.to_owned(),
            path: "/bin/sh".into(),
            args: vec!["-c".to_owned(), script.to_owned()],
            env: vec![("REEVE_WORKER__ROOT_KEY".to_owned(), "hidden".to_owned())],
        }
    }

    #[tokio::test]
    async fn a_dying_program_is_started_again_and_its_output_kept() {
        let dir = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        let script = "echo alive; echo trouble >&2; exit 3";
        let supervisor = Supervisor::start(dir.path(), vec![shell("short", script)], &stop).unwrap();
        assert!(wait_until(PATIENCE, || supervisor.starts("short") >= 3).await);
        stop.cancel();
        supervisor.stopped().await;
        let log = std::fs::read_to_string(dir.path().join("log/short.log")).unwrap();
        assert!(log.matches("alive\n").count() >= 2, "{log}");
        assert!(log.contains("trouble\n") && log.contains("exit status: 3"), "{log}");
    }

    #[tokio::test]
    async fn a_killed_program_comes_back_under_a_new_pid_and_leaves_with_the_supervisor() {
        let dir = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        let supervisor = Supervisor::start(dir.path(), vec![shell("long", "exec sleep 600")], &stop).unwrap();
        assert!(wait_until(PATIENCE, || supervisor.pid("long").is_some()).await);
        let first = supervisor.pid("long").unwrap();
        os::send(first, Signal::Kill).unwrap();
        assert!(wait_until(PATIENCE, || supervisor.pid("long").is_some_and(|pid| pid != first)).await);
        let second = supervisor.pid("long").unwrap();
        stop.cancel();
        supervisor.stopped().await;
        assert_eq!(os::command_line(first), None);
        assert_eq!(os::command_line(second), None);
    }

    #[tokio::test]
    async fn a_program_may_finish_its_work_when_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let stop = CancellationToken::new();
        let (ready, done) = (dir.path().join("ready"), dir.path().join("done"));
        let script = format!(
            "trap ': > \"{}\"; exit 0' TERM; : > '{}'; while :; do sleep 0.05; done",
            done.display(),
            ready.display()
        );
        let supervisor = Supervisor::start(dir.path(), vec![shell("polite", &script)], &stop).unwrap();
        assert!(wait_until(PATIENCE, || ready.exists()).await);
        stop.cancel();
        supervisor.stopped().await;
        assert!(done.exists());
    }

    #[tokio::test]
    async fn a_missing_program_is_named_before_anything_starts() {
        let dir = tempfile::tempdir().unwrap();
        let mut missing = shell("gone", "");
        missing.path = dir.path().join("reeve-worker");
        let error = Supervisor::start(dir.path(), vec![missing], &CancellationToken::new()).unwrap_err();
        assert!(error.to_string().contains("reeve-worker is missing"), "{error}");
    }

    #[test]
    fn pauses_double_to_a_limit_and_begin_anew_after_a_long_life() {
        let mut pauses = Pauses::new();
        let short: Vec<u128> = (0..7).map(|_| pauses.after(Duration::from_secs(1)).as_millis()).collect();
        assert_eq!(short, [200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(pauses.after(LIFE_WELL), PAUSE_FIRST);
        assert_eq!(pauses.after(Duration::ZERO), PAUSE_FIRST * 2);
    }

    #[test]
    fn debug_of_a_program_hides_the_values_of_its_environment() {
        let shown = format!("{:?}", shell("any", ""));
        assert!(shown.contains("REEVE_WORKER__ROOT_KEY") && !shown.contains("hidden"), "{shown}");
    }
}
