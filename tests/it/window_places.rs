//! What the window's suites share: a Redis of the test's own behind a proxy, which can be cut, and lead to another server.
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering},
    },
    time::Duration,
};

use reeve_dev::redis::Redis;
use reeve_jobs::{
    queue::{
        Lane,
        window::{Link, Window},
    },
    redact::Redacted,
};
use reeve_scheduler::relay::Relay;
use sqlx::PgPool;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::task::AbortOnDropHandle;

use crate::support::until;

pub const PASSWORD: &str = "pass1";

/// Leads to a port of this machine. Cut, it takes what comes and drops it: nobody is told that nobody listens.
#[derive(Clone)]
pub struct Proxy {
    pub port: u16,
    target: Arc<AtomicU16>,
    cut: Arc<AtomicBool>,
    /// Chunks that clients sent, also while it was cut, and connections that they opened.
    heard: Arc<AtomicUsize>,
    _accepting: Arc<AbortOnDropHandle<()>>,
}

impl Proxy {
    pub async fn start(target: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let target = Arc::new(AtomicU16::new(target));
        let (cut, heard) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let accepting = {
            let (target, cut, heard) = (Arc::clone(&target), Arc::clone(&cut), Arc::clone(&heard));
            tokio::spawn(async move {
                while let Ok((client, _)) = listener.accept().await {
                    heard.fetch_add(1, Ordering::SeqCst);
                    tokio::spawn(lead(client, target.load(Ordering::SeqCst), Arc::clone(&cut), Arc::clone(&heard)));
                }
            })
        };
        Self { port, target, cut, heard, _accepting: Arc::new(AbortOnDropHandle::new(accepting)) }
    }

    pub fn cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::SeqCst);
    }

    /// For connections to come.
    pub fn lead_to(&self, port: u16) {
        self.target.store(port, Ordering::SeqCst);
    }

    pub fn heard(&self) -> usize {
        self.heard.load(Ordering::SeqCst)
    }
}

async fn lead(client: TcpStream, target: u16, cut: Arc<AtomicBool>, heard: Arc<AtomicUsize>) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await else { return };
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    // The first that ends takes the other with it.
    tokio::select! {
        () = pass(from_client, to_server, &cut, Some(&heard)) => {}
        () = pass(from_server, to_client, &cut, None) => {}
    }
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    cut: &AtomicBool,
    heard: Option<&AtomicUsize>,
) {
    let mut chunk = vec![0; 65_536];
    while let Ok(n) = from.read(&mut chunk).await {
        if n == 0 {
            return;
        }
        heard.inspect(|heard| {
            heard.fetch_add(1, Ordering::SeqCst);
        });
        if cut.load(Ordering::SeqCst) {
            // What was lost never comes: when the network is back, this connection is found broken.
            while cut.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            return;
        }
        if to.write_all(&chunk[..n]).await.is_err() {
            return;
        }
    }
}

/// A server, its data in a directory that outlives it, and the proxy through which all speak to it.
pub struct Place {
    pub dir: tempfile::TempDir,
    pub proxy: Proxy,
    server: Option<Redis>,
}

impl Place {
    /// Nobody listens yet.
    pub async fn absent() -> Self {
        Self { dir: tempfile::tempdir().expect("a directory"), proxy: Proxy::start(1).await, server: None }
    }

    pub async fn start() -> Self {
        let mut place = Self::absent().await;
        place.begin().await;
        place
    }

    pub async fn begin(&mut self) {
        let server = Redis::start(&self.data(), &self.dir.path().join("log"), PASSWORD).await.expect("a server");
        self.proxy.lead_to(server.port());
        self.server = Some(server);
    }

    pub async fn end(&mut self) {
        self.server.take().expect("it runs").stop().await.expect("stopped");
    }

    pub fn data(&self) -> std::path::PathBuf {
        self.dir.path().join("redis")
    }

    pub fn signal(&self, name: &str) {
        let pid = self.server.as_ref().and_then(Redis::pid).expect("it runs").to_string();
        let status =
            std::process::Command::new("kill").args([&format!("-{name}"), &pid]).status().expect("kill starts");
        assert!(status.success());
    }

    /// Through the proxy.
    pub fn url(&self) -> String {
        self.url_of("default", PASSWORD)
    }

    pub fn url_of(&self, user: &str, password: &str) -> String {
        format!("redis://{user}:{password}@127.0.0.1:{}/0", self.proxy.port)
    }

    pub fn relay(&self) -> Relay {
        Relay::new(Redacted::new(self.url()), Vec::new())
    }

    /// A relay that goes on through faults, as in the scheduler.
    pub fn relaying(&self, scheduler: PgPool) -> AbortOnDropHandle<()> {
        let mut relay = self.relay();
        AbortOnDropHandle::new(tokio::spawn(async move {
            loop {
                let _ = relay.run_once(&scheduler).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }))
    }

    pub async fn window(&self) -> Window {
        Window::open(&self.url()).await.expect("the server answers")
    }

    /// A worker's way here, opened.
    pub async fn link(&self) -> Link {
        let link = Link::new(Redacted::new(self.url()));
        until("the window is open", async || {
            link.pop(&lane(), 0).await;
            link.is_open()
        })
        .await;
        link
    }

    /// Past the proxy, as the server's administrator.
    pub async fn raw<T: redis::FromRedisValue>(&self, words: &[&str]) -> redis::RedisResult<T> {
        let port = self.server.as_ref().expect("it runs").port();
        raw_at(&format!("redis://default:{PASSWORD}@127.0.0.1:{port}/0"), words).await
    }
}

pub async fn raw_at<T: redis::FromRedisValue>(url: &str, words: &[&str]) -> redis::RedisResult<T> {
    let client = redis::Client::open(url).expect("a URL");
    let mut cmd = redis::Cmd::new();
    for word in words {
        cmd.arg(word);
    }
    cmd.query_async(&mut client.get_multiplexed_async_connection().await?).await
}

pub fn lane() -> Lane {
    Lane { queue: "probes".to_owned(), region: "default".to_owned() }
}
