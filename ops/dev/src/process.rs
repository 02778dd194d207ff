//! Child processes that cannot outlive the stack: started from one thread that never ends, stopped by their pid.
//!
//! Data flow: [`Daemon::spawn`] sends the command to the keeper thread, which starts it and answers with a [`Daemon`];
//! the owner waits for it, or stops it by signals of growing force. A dropped daemon is signalled, never left running.
//!
//! Why a keeper thread: the kernel's parent-death signal follows the *thread* that started the child, and the threads of
//! a runtime (or of a test) end long before the process does.

use std::io;
use std::process::ExitStatus;
use std::sync::OnceLock;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tokio::process::{Child, Command};
use tokio::sync::oneshot;

use crate::os::{self, Signal};

/// How often a condition that has no event to wait for is looked at again.
pub const POLL: Duration = Duration::from_millis(25);

/// A child process of the stack, in a process group of its own so that a terminal's Ctrl-C reaches only the stack.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    on_drop: Signal,
}

impl Daemon {
    /// Starts `command`. `on_parent_death` is what the kernel sends it when this process dies, `on_drop` what it is sent
    /// when the owner forgets to stop it.
    ///
    /// # Errors
    /// What starting the program said, for example that it does not exist.
    pub async fn spawn(mut command: Command, on_parent_death: Signal, on_drop: Signal) -> io::Result<Self> {
        command.process_group(0);
        os::die_with_parent(&mut command, on_parent_death);
        spawn_from_keeper(command, on_drop).await
    }

    /// Starts `command` in this process's own group, so that it can read from the terminal and gets its Ctrl-C.
    ///
    /// # Errors
    /// As [`Daemon::spawn`].
    pub async fn spawn_in_foreground(mut command: Command) -> io::Result<Self> {
        os::die_with_parent(&mut command, Signal::Terminate);
        spawn_from_keeper(command, Signal::Terminate).await
    }

    /// The process id; `None` once it has ended and been waited for, when the number may belong to somebody else.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// The exit status when it has ended.
    ///
    /// # Errors
    /// The kernel's, when the child cannot be waited for.
    pub fn exited(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Waits until it ends. May be dropped and called again.
    ///
    /// # Errors
    /// The kernel's, when the child cannot be waited for.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Sends one signal, if it still runs.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid() {
            // It may have ended this moment and wait to be collected; then there is nothing to signal.
            let _ = os::send(pid, signal);
        }
    }

    /// Sends each signal in turn and waits as long as its step says, until the process has ended; after the last step
    /// comes SIGKILL.
    ///
    /// # Errors
    /// The kernel's, when the child cannot be waited for.
    pub async fn stop(&mut self, steps: &[(Signal, Duration)]) -> io::Result<ExitStatus> {
        for (signal, patience) in steps {
            self.signal(*signal);
            if let Ok(ended) = tokio::time::timeout(*patience, self.wait()).await {
                return ended;
            }
        }
        self.signal(Signal::Kill);
        self.wait().await
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.signal(self.on_drop);
    }
}

type Task = Box<dyn FnOnce() + Send>;

fn keeper() -> &'static mpsc::Sender<Task> {
    static KEEPER: OnceLock<mpsc::Sender<Task>> = OnceLock::new();
    KEEPER.get_or_init(|| {
        let (tasks, inbox) = mpsc::channel::<Task>();
        std::thread::Builder::new()
            .name("keeper".into())
            .spawn(move || inbox.into_iter().for_each(|task| task()))
            .expect("a process that cannot start a thread has no use for a stack");
        tasks
    })
}

async fn spawn_from_keeper(mut command: Command, on_drop: Signal) -> io::Result<Daemon> {
    let runtime = tokio::runtime::Handle::current();
    let (answer, started) = oneshot::channel();
    let task: Task = Box::new(move || {
        let _entered = runtime.enter();
        // When nobody waits for the answer any more, dropping the daemon ends the child.
        let _ = answer.send(command.spawn().map(|child| Daemon { child, on_drop }));
    });
    keeper().send(task).map_err(|_| io::Error::other("the thread that starts programs has ended"))?;
    started.await.map_err(|_| io::Error::other("the thread that starts programs did not answer"))?
}

/// Waits until `done` says so; `false` when `patience` runs out first.
pub async fn wait_until(patience: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    while !done() {
        if Instant::now() >= deadline {
            return false;
        }
        tokio::time::sleep(POLL).await;
    }
    true
}

/// Makes sure that process `pid`, left by a stack that was killed, has ended: waits for it, then sends `signal`.
/// Only a process whose command line contains `marker` counts: a pid file may be older than the pid's present holder.
///
/// # Errors
/// `TimedOut` when it does not end.
pub async fn end_leftover(pid: u32, marker: &str, signal: Signal) -> io::Result<()> {
    let gone = || !os::command_line(pid).is_some_and(|line| line.contains(marker));
    if wait_until(Duration::from_secs(5), gone).await {
        return Ok(());
    }
    tracing::warn!(pid, "ending a process left by an earlier stack");
    let _ = os::send(pid, signal);
    if wait_until(Duration::from_secs(20), gone).await {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, format!("process {pid}, left by an earlier stack, does not end")))
}

/// A port of 127.0.0.1 that was free a moment ago; whoever uses it must be ready to find it taken.
///
/// # Errors
/// The kernel's, when no port is left.
pub fn free_port() -> io::Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn a_process_that_ignores_the_first_signal_is_killed() {
        // "exec" would drop the trap, so the shell itself waits; the marker file says that the trap is set.
        let dir = tempfile::tempdir().unwrap();
        let ready = dir.path().join("ready");
        let script = format!("trap '' TERM; : > '{}'; while :; do sleep 0.1; done", ready.display());
        let mut daemon = Daemon::spawn(shell(&script), Signal::Kill, Signal::Kill).await.unwrap();
        assert!(wait_until(Duration::from_secs(20), || ready.exists()).await);
        let pid = daemon.pid().unwrap();
        let ended = daemon.stop(&[(Signal::Terminate, Duration::from_millis(200))]).await.unwrap();
        assert!(!ended.success());
        assert_eq!(os::command_line(pid), None);
        assert_eq!(daemon.pid(), None);
    }

    #[tokio::test]
    async fn a_dropped_daemon_is_ended() {
        let daemon = Daemon::spawn(shell("exec sleep 600"), Signal::Kill, Signal::Kill).await.unwrap();
        let pid = daemon.pid().unwrap();
        drop(daemon);
        assert!(wait_until(Duration::from_secs(20), || os::command_line(pid).is_none()).await);
    }

    #[tokio::test]
    async fn a_foreign_process_under_an_old_pid_is_left_alone() {
        let mut other = Daemon::spawn(shell("exec sleep 600"), Signal::Kill, Signal::Kill).await.unwrap();
        end_leftover(other.pid().unwrap(), "/somewhere/postgres", Signal::Kill).await.unwrap();
        assert_eq!(other.exited().unwrap(), None);
    }

    /// Names the file in which the process of the next test reports its child, when it is that process.
    const REPORT: &str = "REEVE_DEV_TEST_REPORT";

    #[tokio::test]
    #[cfg(target_os = "linux")]
    async fn a_child_of_a_killed_stack_ends_with_it() {
        if let Some(report) = std::env::var_os(REPORT) {
            let daemon = Daemon::spawn(shell("exec sleep 600"), Signal::Kill, Signal::Kill).await.unwrap();
            crate::files::write_private(report.as_ref(), daemon.pid().unwrap().to_string().as_bytes()).unwrap();
            std::future::pending::<()>().await;
        }
        let dir = tempfile::tempdir().unwrap();
        let report = dir.path().join("pid");
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", "process::tests::a_child_of_a_killed_stack_ends_with_it"]).env(REPORT, &report);
        let mut stack = again.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
        assert!(wait_until(Duration::from_secs(30), || report.exists()).await);
        let child: u32 = std::fs::read_to_string(&report).unwrap().parse().unwrap();
        assert!(os::command_line(child).is_some());
        stack.kill().await.unwrap();
        assert!(wait_until(Duration::from_secs(20), || os::command_line(child).is_none()).await);
    }

    #[test]
    fn a_child_outlives_the_runtime_thread_that_asked_for_it() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let thread_of_request = std::thread::spawn(move || {
            let spawned = Daemon::spawn(shell("exec sleep 600"), Signal::Kill, Signal::Kill);
            (runtime.block_on(spawned).unwrap(), runtime)
        });
        let (mut daemon, _runtime) = thread_of_request.join().unwrap();
        // The parent-death signal would have come with the end of the thread above.
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(daemon.exited().unwrap(), None);
    }
}
