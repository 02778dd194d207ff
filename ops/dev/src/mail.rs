//! A mail sink: speaks SMTP on a free port of 127.0.0.1 and keeps every mail as an .eml file instead of sending it.
//!
//! Data flow: an accept loop starts one task per connection; a connection collects an envelope and a message, both
//! bounded, and answers 250 only after the file is there under its final name. File names sort by time of receipt.
//!
//! Deliberately not here: TLS, AUTH, relaying, and everything else a sink on the loopback does not need.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::files;

/// The longest command line, in bytes with its end.
const COMMAND_BYTES_MAX: usize = 2_048;
/// The longest line of a message, in bytes with its end.
const LINE_BYTES_MAX: usize = 64 << 10;
/// The biggest message, in bytes.
const MESSAGE_BYTES_MAX: usize = 32 << 20;
const RECIPIENTS_MAX: usize = 100;
const CONNECTIONS_MAX: usize = 64;
const IDLE_MAX: Duration = Duration::from_secs(60);

/// Why the sink could not be started.
#[derive(Debug, thiserror::Error)]
pub enum MailError {
    /// No port, or the directory cannot be made.
    #[error("cannot keep mail in {dir}: {source}")]
    Io {
        /// The directory of the mails.
        dir: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A running mail sink. Ends with [`MailSink::stop`], or when dropped.
#[derive(Debug)]
pub struct MailSink {
    /// `127.0.0.1:<port>`.
    pub address: String,
    /// Where the .eml files are.
    pub dir: PathBuf,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl MailSink {
    /// Listens, and keeps mail in `dir` (made if missing).
    ///
    /// # Errors
    /// [`MailError`] when there is no port or the directory cannot be made.
    pub async fn start(dir: &Path) -> Result<Self, MailError> {
        let failed = |source| MailError::Io { dir: dir.to_owned(), source };
        files::private_dir(dir).map_err(failed)?;
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?.to_string();
        let stop = CancellationToken::new();
        let task = tokio::spawn(serve(listener, dir.to_owned(), stop.clone()));
        Ok(Self { address, dir: dir.to_owned(), stop, task })
    }

    /// Stops and breaks open connections off: no mail answered with 250 is lost by that.
    pub async fn stop(mut self) {
        self.stop.cancel();
        // Should the task have panicked, there is nothing left to stop.
        let _ = (&mut self.task).await;
    }
}

impl Drop for MailSink {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn serve(listener: TcpListener, dir: PathBuf, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // Dropped at the end, which breaks the connections off.
    let mut connections = JoinSet::new();
    loop {
        // Waiting for a place before accepting leaves the rest in the kernel's queue.
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await.map_err(io::Error::other)?;
            Ok::<_, io::Error>((place, listener.accept().await?.0))
        };
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = next => accepted,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((place, socket)) => {
                let dir = dir.clone();
                connections.spawn(async move {
                    if let Err(error) = Session::new(socket, dir).run().await {
                        tracing::debug!(%error, "an SMTP connection ended early");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the mail sink cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

#[derive(Debug, Default)]
struct Envelope {
    from: Option<String>,
    to: Vec<String>,
}

struct Session {
    input: BufReader<OwnedReadHalf>,
    output: OwnedWriteHalf,
    dir: PathBuf,
    greeted: bool,
    envelope: Envelope,
}

impl Session {
    fn new(socket: TcpStream, dir: PathBuf) -> Self {
        let (input, output) = socket.into_split();
        Self { input: BufReader::new(input), output, dir, greeted: false, envelope: Envelope::default() }
    }

    async fn run(mut self) -> io::Result<()> {
        self.answer("220 reeve mail sink").await?;
        loop {
            let line = match within_idle(read_line(&mut self.input, COMMAND_BYTES_MAX)).await? {
                Line::End => return Ok(()),
                Line::TooLong => {
                    self.answer("500 line too long").await?;
                    continue;
                }
                Line::Whole(line) => line,
            };
            // A control character inside an address would end up in the header lines of the file.
            let Some(command) = std::str::from_utf8(&line).ok().map(str::trim_end) else {
                self.answer("501 UTF-8 only").await?;
                continue;
            };
            if command.contains(|letter: char| letter.is_control()) {
                self.answer("501 no control characters").await?;
                continue;
            }
            if self.command(command).await?.is_break() {
                return Ok(());
            }
        }
    }

    async fn command(&mut self, command: &str) -> io::Result<std::ops::ControlFlow<()>> {
        let (verb, rest) = command.split_once(' ').unwrap_or((command, ""));
        let reply = match verb.to_ascii_uppercase().as_str() {
            "EHLO" => {
                self.greeted = true;
                self.envelope = Envelope::default();
                let size = format!("250-reeve\r\n250-SIZE {MESSAGE_BYTES_MAX}\r\n250-8BITMIME\r\n250 SMTPUTF8");
                self.answer(&size).await?;
                return Ok(std::ops::ControlFlow::Continue(()));
            }
            "HELO" => {
                self.greeted = true;
                self.envelope = Envelope::default();
                "250 reeve"
            }
            "MAIL" => self.mail(rest),
            "RCPT" => self.rcpt(rest),
            "DATA" if self.envelope.to.is_empty() => "503 RCPT first",
            "DATA" => self.data().await?,
            "RSET" => {
                self.envelope = Envelope::default();
                "250 forgotten"
            }
            "NOOP" => "250 still here",
            "QUIT" => {
                self.answer("221 bye").await?;
                return Ok(std::ops::ControlFlow::Break(()));
            }
            _ => "502 not implemented",
        };
        self.answer(reply).await?;
        Ok(std::ops::ControlFlow::Continue(()))
    }

    fn mail(&mut self, rest: &str) -> &'static str {
        if !self.greeted {
            return "503 EHLO first";
        }
        if self.envelope.from.is_some() {
            return "503 one MAIL at a time";
        }
        match path_after("FROM:", rest) {
            Some((_, parameters)) if declared_size(parameters) > MESSAGE_BYTES_MAX => "552 message too big",
            Some((from, _)) => {
                self.envelope.from = Some(from.to_owned());
                "250 sender taken"
            }
            None => "501 MAIL FROM:<address>",
        }
    }

    fn rcpt(&mut self, rest: &str) -> &'static str {
        if self.envelope.from.is_none() {
            return "503 MAIL first";
        }
        if self.envelope.to.len() >= RECIPIENTS_MAX {
            return "452 too many recipients";
        }
        match path_after("TO:", rest) {
            Some((to, _)) if !to.is_empty() => {
                self.envelope.to.push(to.to_owned());
                "250 recipient taken"
            }
            _ => "501 RCPT TO:<address>",
        }
    }

    async fn data(&mut self) -> io::Result<&'static str> {
        self.answer("354 end with a dot on a line of its own").await?;
        let envelope = std::mem::take(&mut self.envelope);
        let message = match read_message(&mut self.input).await? {
            Message::Whole(message) => message,
            Message::TooBig => return Ok("552 message too big"),
            Message::LineTooLong => return Ok("554 line too long"),
            Message::BrokenOff => return Err(io::ErrorKind::UnexpectedEof.into()),
        };
        match keep(&self.dir, &envelope, &message).await {
            Ok(()) => Ok("250 kept"),
            Err(error) => {
                tracing::warn!(%error, dir = %self.dir.display(), "a mail could not be kept");
                Ok("451 cannot keep it now")
            }
        }
    }

    async fn answer(&mut self, reply: &str) -> io::Result<()> {
        self.output.write_all(format!("{reply}\r\n").as_bytes()).await
    }
}

/// The address and the parameters of `FROM:<a@b> SIZE=1`; the keyword in any case, blanks before the bracket allowed.
fn path_after<'a>(keyword: &str, rest: &'a str) -> Option<(&'a str, &'a str)> {
    let (head, tail) = rest.split_at_checked(keyword.len())?;
    if !head.eq_ignore_ascii_case(keyword) {
        return None;
    }
    tail.trim_start().strip_prefix('<')?.split_once('>')
}

fn declared_size(parameters: &str) -> usize {
    let size =
        parameters.split_whitespace().find_map(|word| word.to_ascii_uppercase().strip_prefix("SIZE=")?.parse().ok());
    size.unwrap_or(0)
}

enum Message {
    Whole(Vec<u8>),
    TooBig,
    LineTooLong,
    BrokenOff,
}

/// Reads up to the final dot, whatever is wrong on the way, so that the next command is read as one.
async fn read_message(input: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Message> {
    let mut message = Vec::new();
    let mut trouble = None;
    loop {
        match within_idle(read_line(input, LINE_BYTES_MAX)).await? {
            Line::End => return Ok(Message::BrokenOff),
            Line::TooLong => trouble = trouble.or(Some(Message::LineTooLong)),
            // Only CR LF ends a line here: taking a bare LF for the end is how mails are smuggled into one another.
            Line::Whole(line) if line == b".\r\n" => return Ok(trouble.unwrap_or(Message::Whole(message))),
            Line::Whole(line) => {
                let line = line.strip_prefix(b".").unwrap_or(&line);
                if trouble.is_none() && message.len() + line.len() > MESSAGE_BYTES_MAX {
                    trouble = Some(Message::TooBig);
                }
                if trouble.is_none() {
                    message.extend_from_slice(line);
                } else {
                    message = Vec::new();
                }
            }
        }
    }
}

async fn within_idle<T>(reading: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(IDLE_MAX, reading).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

enum Line {
    /// With its end.
    Whole(Vec<u8>),
    TooLong,
    End,
}

/// Reads up to the next LF; of a line over `bytes_max` nothing is kept, but all of it is read.
async fn read_line(input: &mut (impl AsyncBufRead + Unpin), bytes_max: usize) -> io::Result<Line> {
    let mut line = Vec::new();
    let mut too_long = false;
    loop {
        let read = input.fill_buf().await?;
        if read.is_empty() {
            return Ok(Line::End);
        }
        let end = read.iter().position(|byte| *byte == b'\n');
        let part = &read[..end.map_or(read.len(), |end| end + 1)];
        too_long |= line.len() + part.len() > bytes_max;
        if !too_long {
            line.extend_from_slice(part);
        }
        let bytes = part.len();
        input.consume(bytes);
        if end.is_some() {
            return Ok(if too_long { Line::TooLong } else { Line::Whole(line) });
        }
    }
}

async fn keep(dir: &Path, envelope: &Envelope, message: &[u8]) -> io::Result<()> {
    let mut text = format!("X-Envelope-From: <{}>\r\n", envelope.from.as_deref().unwrap_or_default()).into_bytes();
    for to in &envelope.to {
        text.extend_from_slice(format!("X-Envelope-To: <{to}>\r\n").as_bytes());
    }
    let now = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
    text.extend_from_slice(format!("X-Envelope-Received: {now}\r\n").as_bytes());
    text.extend_from_slice(message);
    let path = dir.join(format!("{}.eml", uuid::Uuid::now_v7()));
    tokio::task::spawn_blocking(move || files::write_private(&path, &text)).await.map_err(io::Error::other)?
}

#[cfg(test)]
#[path = "mail_tests.rs"]
mod tests;
