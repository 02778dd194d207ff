//! A private Redis (7 or later) or Valkey: own directory, Unix socket and free loopback port, a password, a log of every
//! write.
//!
//! Data flow: find the server, write `redis.conf` (mode 0600, so the password is in no command line), start, wait until
//! it answers PING. Stopping is SIGTERM, on which it writes everything out.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::process::Command;

use crate::files::{self, SocketDir};
use crate::os::Signal;
use crate::process::{self, Daemon};

mod users;

const SOCKET_NAME: &str = "redis.sock";
/// How long it may take to read its data back before it answers.
const READY_WITHIN: Duration = Duration::from_secs(60);
const MAJOR_MIN: u32 = 7;

/// Why Redis did not start or stop.
#[derive(Debug, thiserror::Error)]
pub enum RedisError {
    /// Neither Redis nor Valkey is installed.
    #[error(
        "no redis-server (7 or later) or valkey-server in PATH or the usual places; install the package \
         redis-server (Debian, Ubuntu), valkey (Fedora, Arch) or redis (Homebrew)"
    )]
    Missing,
    /// What is installed is too old.
    #[error("{path} is version {major}, but {MAJOR_MIN} or later is needed; install a newer redis-server or valkey")]
    TooOld {
        /// The program found.
        path: PathBuf,
        /// Its major version.
        major: u32,
    },
    /// A file, directory or process could not be used.
    #[error("Redis: cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// It ended or did not answer.
    #[error("Redis did not start: {reason}; the end of {log} says:\n{tail}")]
    NotReady {
        /// How it failed.
        reason: String,
        /// Its log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
}

fn cannot(what: impl Into<String>) -> impl FnOnce(io::Error) -> RedisError {
    let what = what.into();
    move |source| RedisError::Io { what, source }
}

/// What makes a server another one than the stack's.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options<'a> {
    /// The port it must have; a free one if `None`.
    pub port: Option<u16>,
    /// More lines of `redis.conf`, which win over the usual ones; `{port}` stands for its port, `{other_port}` for one
    /// more that is free.
    pub settings: &'a str,
    /// Watch over servers in place of being one.
    pub sentinel: bool,
}

/// A running Redis. Stop it with [`Redis::stop`]; when dropped it is told to end, but not waited for.
pub struct Redis {
    daemon: Daemon,
    port: u16,
    password: String,
    sockets: SocketDir,
}

impl Redis {
    /// Starts a server with its data in `dir` and its output appended to `log`. `password` must be letters and digits.
    ///
    /// # Errors
    /// [`RedisError`]; among others when no server is installed.
    pub async fn start(dir: &Path, log: &Path, password: &str) -> Result<Self, RedisError> {
        Self::start_with(dir, log, password, Options::default()).await
    }

    /// Like [`Redis::start`], with these options.
    ///
    /// # Errors
    /// The same.
    pub async fn start_with(dir: &Path, log: &Path, password: &str, options: Options<'_>) -> Result<Self, RedisError> {
        let server = find()?;
        files::private_dir(dir).map_err(cannot(format!("make {}", dir.display())))?;
        let dir = dir.canonicalize().map_err(cannot(format!("find {}", dir.display())))?;
        let configuration = dir.join("redis.conf");
        let pid_file = dir.join("redis.pid");
        if let Some(pid) = std::fs::read_to_string(&pid_file).ok().and_then(|text| text.trim().parse().ok()) {
            let marker = configuration.to_string_lossy();
            process::end_leftover(pid, &marker, Signal::Terminate).await.map_err(cannot("end an earlier server"))?;
        }
        let sockets = SocketDir::make(&dir, SOCKET_NAME).map_err(cannot("make the socket's directory"))?;
        let mut tries = 0;
        loop {
            tries += 1;
            let port = options.port.map_or_else(process::free_port, Ok).map_err(cannot("find a free port"))?;
            let mut text = configuration_text(&dir, sockets.path(), &pid_file, port, password);
            let other = process::free_port().map_err(cannot("find a free port"))?;
            let settings = options.settings.replace("{port}", &port.to_string());
            text.push_str(&settings.replace("{other_port}", &other.to_string()));
            files::write_private(&configuration, text.as_bytes()).map_err(cannot("write redis.conf"))?;
            let begin = std::fs::metadata(log).map_or(0, |log| log.len());
            let mut daemon = launch(&server, &configuration, &dir, log, options.sentinel).await?;
            match ready(&mut daemon, &sockets.path().join(SOCKET_NAME), password).await {
                Ok(()) => return Ok(Self { daemon, port, password: password.to_owned(), sockets }),
                Err(reason) => {
                    let tail = log_tail(log, begin);
                    // Somebody may have taken the port since it was looked for.
                    if tries < 5 && tail.contains("Address already in use") {
                        continue;
                    }
                    return Err(RedisError::NotReady { reason, log: log.to_owned(), tail });
                }
            }
        }
    }

    /// `redis://` over 127.0.0.1 with the password in it. It names the user, since some clients take an empty name literally.
    pub fn url(&self) -> String {
        format!("redis://default:{}@127.0.0.1:{}/0", self.password, self.port)
    }

    /// The Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.sockets.path().join(SOCKET_NAME)
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.daemon.pid()
    }

    /// Waits until the server ends by itself. May be dropped and called again.
    ///
    /// # Errors
    /// The kernel's, when it cannot be waited for.
    pub async fn exited(&mut self) -> io::Result<ExitStatus> {
        self.daemon.wait().await
    }

    /// Writes everything out and ends.
    ///
    /// # Errors
    /// [`RedisError::Io`] when it cannot be waited for.
    pub async fn stop(mut self) -> Result<(), RedisError> {
        self.daemon.stop(&[(Signal::Terminate, Duration::from_secs(20))]).await.map_err(cannot("stop the server"))?;
        Ok(())
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis").field("pid", &self.pid()).field("port", &self.port).finish_non_exhaustive()
    }
}

/// Finds the server: `redis-server` before `valkey-server`, PATH before the usual places.
fn find() -> Result<PathBuf, RedisError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/bin", "/usr/local/bin", "/opt/homebrew/bin", "/home/linuxbrew/.linuxbrew/bin"];
    let places: Vec<PathBuf> = std::env::split_paths(&path).chain(usual.iter().map(PathBuf::from)).collect();
    let mut too_old = None;
    for name in ["redis-server", "valkey-server"] {
        for program in places.iter().map(|place| place.join(name)).filter(|program| program.is_file()) {
            match major_version(&program) {
                Some(major) if major >= MAJOR_MIN => return Ok(program),
                Some(major) => too_old = Some(RedisError::TooOld { path: program, major }),
                None => {}
            }
        }
    }
    Err(too_old.unwrap_or(RedisError::Missing))
}

fn major_version(program: &Path) -> Option<u32> {
    let shown = std::process::Command::new(program).arg("--version").stdin(Stdio::null()).output().ok()?;
    parse_major(&String::from_utf8_lossy(&shown.stdout))
}

/// From "Redis server v=7.0.15 sha=00000000:0 malloc=…".
fn parse_major(shown: &str) -> Option<u32> {
    let version = shown.split_whitespace().find_map(|word| word.strip_prefix("v="))?;
    version.split('.').next()?.parse().ok()
}

fn configuration_text(dir: &Path, sockets: &Path, pid_file: &Path, port: u16, password: &str) -> String {
    // The title is left alone because a later start recognises this server by the configuration's path in it.
    format!(
        "bind 127.0.0.1\nport {port}\nprotected-mode yes\nrequirepass {password}\n\
         unixsocket {socket}\nunixsocketperm 700\ndir {dir}\npidfile {pid_file}\n\
         daemonize no\nset-proc-title no\nappendonly yes\nappendfsync everysec\nsave \"\"\n",
        socket = quoted(&sockets.join(SOCKET_NAME)),
        dir = quoted(dir),
        pid_file = quoted(pid_file),
    )
}

/// A path as redis.conf wants it when it holds spaces or quotes.
fn quoted(path: &Path) -> String {
    format!("\"{}\"", path.to_string_lossy().replace('\\', "\\\\").replace('"', "\\\""))
}

async fn launch(
    server: &Path,
    configuration: &Path,
    dir: &Path,
    log: &Path,
    sentinel: bool,
) -> Result<Daemon, RedisError> {
    let output = files::open_log(log).map_err(cannot(format!("write {}", log.display())))?;
    let errors = output.try_clone().map_err(cannot(format!("write {}", log.display())))?;
    let mut command = Command::new(server);
    command
        .arg(configuration)
        .args(sentinel.then_some("--sentinel"))
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors);
    Daemon::spawn(command, Signal::Terminate, Signal::Terminate)
        .await
        .map_err(cannot(format!("start {}", server.display())))
}

/// Waits until the server answers; the error says how it failed.
async fn ready(daemon: &mut Daemon, socket: &Path, password: &str) -> Result<(), String> {
    let deadline = Instant::now() + READY_WITHIN;
    loop {
        if let Ok(Some(status)) = daemon.exited() {
            return Err(format!("it ended at once ({status})"));
        }
        if matches!(ping(socket, password).await, Ok(true)) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(format!("no answer within {} s", READY_WITHIN.as_secs()));
        }
        tokio::time::sleep(process::POLL).await;
    }
}

/// `true` once the server takes the password and has read its data. Asked over the socket, which has no TLS to agree on.
async fn ping(socket: &Path, password: &str) -> io::Result<bool> {
    let mut socket = BufReader::new(UnixStream::connect(socket).await?);
    socket.write_all(format!("AUTH {password}\r\nPING\r\n").as_bytes()).await?;
    let (mut authenticated, mut answer) = (String::new(), String::new());
    socket.read_line(&mut authenticated).await?;
    socket.read_line(&mut answer).await?;
    Ok(authenticated == "+OK\r\n" && answer == "+PONG\r\n")
}

/// The last lines written to `log` after its byte `begin`.
pub(crate) fn log_tail(log: &Path, begin: u64) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    // The log may have been put aside meanwhile, and then be shorter.
    let text = text.get(usize::try_from(begin).unwrap_or(0)..).unwrap_or(&text);
    let text = String::from_utf8_lossy(text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;
    use crate::os;

    async fn ask(port: u16, commands: &str, lines: usize) -> Vec<String> {
        let mut socket = BufReader::new(TcpStream::connect(("127.0.0.1", port)).await.unwrap());
        socket.write_all(commands.as_bytes()).await.unwrap();
        let mut answers = Vec::new();
        for _ in 0..lines {
            let mut line = String::new();
            socket.read_line(&mut line).await.unwrap();
            answers.push(line.trim_end().to_owned());
        }
        answers
    }

    #[tokio::test]
    async fn redis_keeps_its_data_over_a_restart_and_wants_the_password() {
        let dir = tempfile::tempdir().unwrap();
        let (home, log) = (dir.path().join("redis"), dir.path().join("redis.log"));
        let redis = Redis::start(&home, &log, "pass1").await.unwrap();
        assert!(redis.socket().exists());
        assert!(ask(redis.port, "GET a\r\n", 1).await[0].starts_with("-NOAUTH"));
        assert_eq!(ask(redis.port, "AUTH pass1\r\nSET a kept\r\n", 2).await, ["+OK", "+OK"]);
        let pid = redis.pid().unwrap();
        assert!(!os::command_line(pid).unwrap().contains("pass1"));
        redis.stop().await.unwrap();
        assert_eq!(os::command_line(pid), None);

        let redis = Redis::start(&home, &log, "pass1").await.unwrap();
        assert_eq!(ask(redis.port, "AUTH pass1\r\nGET a\r\n", 3).await, ["+OK", "$4", "kept"]);
        redis.stop().await.unwrap();
    }

    #[tokio::test]
    async fn a_server_left_by_a_killed_stack_is_ended_before_the_next_starts() {
        let dir = tempfile::tempdir().unwrap();
        let (home, log) = (dir.path().join("redis"), dir.path().join("redis.log"));
        let first = Redis::start(&home, &log, "pass1").await.unwrap();
        let left = first.pid().unwrap();
        let second = Redis::start(&home, &log, "pass1").await.unwrap();
        assert_eq!(os::command_line(left), None);
        second.stop().await.unwrap();
    }

    #[test]
    fn the_version_is_read_from_both_servers() {
        assert_eq!(parse_major("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64"), Some(7));
        assert_eq!(parse_major("Valkey server v=8.1.0 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64"), Some(8));
        assert_eq!(parse_major("nonsense"), None);
    }
}
