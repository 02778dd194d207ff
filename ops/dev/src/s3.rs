//! S3 in-process: s3s-fs over a directory, on a free port of 127.0.0.1, with one access key.
//!
//! Data flow: an accept loop in one task hands each connection to the S3 service; stopping lets running requests end.
//!
//! Deliberately not here: what s3s-fs lacks (server-side encryption, versioning, lifecycle rules). It is right for
//! development; a guarantee that rests on the store needs a second server in its tests.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::files;

/// Why S3 could not be served.
#[derive(Debug, thiserror::Error)]
pub enum S3Error {
    /// No port, or the directory cannot be made.
    #[error("cannot serve S3 from {dir}: {source}")]
    Io {
        /// The directory of the buckets.
        dir: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file store refused its directory.
    #[error("cannot serve S3 from {dir}: {reason}")]
    Store {
        /// The directory of the buckets.
        dir: PathBuf,
        /// What s3s-fs said.
        reason: String,
    },
    /// A bucket name that S3 would not allow, or that would leave the directory.
    #[error("{name:?} is no bucket name: use 3 to 63 characters of a-z, 0-9 and '-'")]
    BucketName {
        /// The name asked for.
        name: String,
    },
}

/// A running S3 server. Ends with [`S3::stop`], or when dropped.
pub struct S3 {
    /// `http://127.0.0.1:<port>`, to be used in path style.
    pub endpoint: String,
    /// The one access key.
    pub access_key: String,
    /// Its secret.
    pub secret_key: String,
    dir: PathBuf,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl S3 {
    /// Serves the buckets under `dir` (made if missing).
    ///
    /// # Errors
    /// [`S3Error`] when there is no port or the directory cannot be used.
    pub async fn start(dir: &Path, access_key: &str, secret_key: &str) -> Result<Self, S3Error> {
        let failed = |source| S3Error::Io { dir: dir.to_owned(), source };
        files::private_dir(dir).map_err(failed)?;
        let store = s3s_fs::FileSystem::new(dir)
            .map_err(|error| S3Error::Store { dir: dir.to_owned(), reason: format!("{error:?}") })?;
        let mut service = S3ServiceBuilder::new(store);
        service.set_auth(SimpleAuth::from_single(access_key, secret_key));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(failed)?;
        let endpoint = format!("http://{}", listener.local_addr().map_err(failed)?);
        let stop = CancellationToken::new();
        let task = tokio::spawn(serve(listener, service.build(), stop.clone()));
        let (access_key, secret_key) = (access_key.to_owned(), secret_key.to_owned());
        Ok(Self { endpoint, access_key, secret_key, dir: dir.to_owned(), stop, task })
    }

    /// Makes a bucket; one that exists is left as it is.
    ///
    /// # Errors
    /// [`S3Error::BucketName`] for a name S3 would refuse, [`S3Error::Io`] when it cannot be made.
    pub fn create_bucket(&self, name: &str) -> Result<(), S3Error> {
        let fits = (3..=63).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        if !fits {
            return Err(S3Error::BucketName { name: name.to_owned() });
        }
        files::private_dir(&self.dir.join(name)).map_err(|source| S3Error::Io { dir: self.dir.clone(), source })
    }

    /// Stops: takes no new connection and gives the requests under way a few seconds.
    pub async fn stop(mut self) {
        self.stop.cancel();
        // The task ends by itself within the grace below; should it have panicked, there is nothing left to stop.
        let _ = (&mut self.task).await;
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl fmt::Debug for S3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3").field("endpoint", &self.endpoint).field("dir", &self.dir).finish_non_exhaustive()
    }
}

async fn serve(listener: TcpListener, service: S3Service, stop: CancellationToken) {
    let http = Builder::new(TokioExecutor::new());
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let socket = match accepted {
            Ok((socket, _)) => socket,
            Err(error) => {
                // Most often too many open files: waiting lets some close.
                tracing::warn!(%error, "S3 cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let connection = http.serve_connection(TokioIo::new(socket), service.clone()).into_owned();
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error, "an S3 connection ended early");
            }
        });
    }
    drop(listener);
    if tokio::time::timeout(Duration::from_secs(5), graceful.shutdown()).await.is_err() {
        tracing::warn!("S3 stops with requests under way");
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;

    async fn get(s3: &S3, path: &str, header: &str) -> String {
        let address = s3.endpoint.strip_prefix("http://").unwrap();
        let mut socket = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n{header}\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn an_unsigned_request_and_a_forged_signature_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let s3 = S3::start(&dir.path().join("s3"), "KEY", "secret").await.unwrap();
        s3.create_bucket("exports").unwrap();
        std::fs::write(dir.path().join("s3/exports/report"), "of a tenant").unwrap();
        let now = chrono::Utc::now().format("%Y%m%dT%H%M%SZ").to_string();
        let forged = format!(
            "/exports/report?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=KEY%2F{}%2Fus-east-1%2Fs3%2Faws4_request\
             &X-Amz-Date={now}&X-Amz-Expires=60&X-Amz-SignedHeaders=host&X-Amz-Signature={}",
            &now[..8],
            "0".repeat(64)
        );
        for path in ["/exports/report", &forged] {
            let answer = get(&s3, path, "").await;
            assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
            assert!(!answer.contains("of a tenant"), "{answer}");
        }
        s3.stop().await;
    }

    #[tokio::test]
    async fn a_bucket_name_cannot_leave_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let s3 = S3::start(&dir.path().join("s3"), "KEY", "secret").await.unwrap();
        for name in ["../out", "ab", "Upper", "with/slash"] {
            assert!(matches!(s3.create_bucket(name), Err(S3Error::BucketName { .. })), "{name}");
        }
    }

    #[tokio::test]
    async fn after_stop_nobody_listens() {
        let dir = tempfile::tempdir().unwrap();
        let s3 = S3::start(dir.path(), "KEY", "secret").await.unwrap();
        let address = s3.endpoint.strip_prefix("http://").unwrap().to_owned();
        s3.stop().await;
        assert!(TcpStream::connect(address).await.is_err());
    }
}
