//! One connection for every way to run Redis: a server, the primary that Sentinel names, a cluster, each with or without TLS.
//!
//! Data flow: [`open`] reads the URL (`address` has its forms), connects once, and fails when that fails. After
//! that the connection mends itself. A single server and a primary share one path (`Mending`): what was cut, refused,
//! silent or demoted is dropped, and the next call opens anew, at the primary that Sentinel names then. A cluster is
//! redis-rs' own client, which follows moved slots and reopens nodes.
//!
//! **Bounds.** No command waits without end: one on a server ends within [`ANSWER_WITHIN`] when it has a connection, else
//! after one attempt to open it as well, [`BACKOFF_MAX`] and [`OPEN_WITHIN`] at most; one on a cluster, with all that it
//! follows and repeats, within [`CALL_WITHIN`]. The back-off doubles from [`BACKOFF_MIN`], is random, and is waited by
//! one call alone: the others that come meanwhile share its outcome, so that a server which comes back is not stormed.
//!
//! **What it does not do.** It repeats no call on a server: whether a lost answer was carried out is for the caller to
//! settle, by fences and ids. A cluster's client does repeat what was cut off, and so a claim there may lease jobs whose
//! answer nobody reads: they come back when the lease ends. On a cluster it does not notice a middlebox that swallows bytes
//! which it has confirmed; the kernel notices a path that drops packets. It reads from primaries only. The file of
//! certificates is read once.
mod address;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ::redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo, Pipeline,
    RedisConnectionInfo, RedisError, RedisFuture, RedisResult, ServerErrorKind, TlsCertificates, TlsMode, Value,
    aio::{ConnectionLike, MultiplexedConnection},
    cluster::ClusterClientBuilder,
    cluster_async::ClusterConnection,
    cluster_routing::{Route, RoutingInfo, SingleNodeRoutingInfo, SlotAddr},
    io::tcp::TcpSettings,
    sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType},
};
use tokio::time::timeout;

pub use self::address::InvalidAddress;
use self::address::{Address, Kind, Login};

/// For one server to take a connection.
pub const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// For one server to answer a call.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// To find the primary and connect to it.
pub const OPEN_WITHIN: Duration = Duration::from_secs(5);
/// For a cluster's answer, with its moved slots, repetitions and reopened nodes.
pub const CALL_WITHIN: Duration = Duration::from_secs(5);
/// Before the first attempt after one that failed.
pub const BACKOFF_MIN: Duration = Duration::from_millis(50);
pub const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// As many as fit into [`CALL_WITHIN`].
const CLUSTER_RETRIES: u32 = 16;

/// Whether this is an address, without opening anything. What is said of a wrong one repeats nothing secret.
pub fn check(url: &str) -> Result<(), InvalidAddress> {
    url.parse::<Address>().map(drop)
}

/// Why no connection could be opened.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    #[error(transparent)]
    Address(#[from] InvalidAddress),
    #[error("cannot read the certificates of ca_file={}: {source}", path.display())]
    CaFile { path: std::path::PathBuf, source: std::io::Error },
    #[error("ca_file={} has no certificate in PEM form that can be used", path.display())]
    NoCertificate { path: std::path::PathBuf },
    #[error("cannot connect to Redis at {to}: {source}")]
    Connect { to: String, source: RedisError },
}

/// See the module's head. Clones share what is below.
#[derive(Clone)]
pub struct Connection {
    to: Arc<str>,
    link: Link,
}

#[derive(Clone)]
enum Link {
    Server(Arc<Mending>),
    Cluster(ClusterConnection),
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("to", &self.to).finish_non_exhaustive()
    }
}

/// Connects to the Redis of this URL.
pub async fn open(url: &str) -> Result<Connection, ConnectionError> {
    let address: Address = url.parse()?;
    let certificates = certificates(&address)?;
    if address.tls.is_some() {
        // An error only says that the program has installed it already.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    }
    let hosts: Vec<_> = address.hosts.iter().map(|(host, port)| format!("{host}:{port}")).collect();
    let to: Arc<str> = hosts.join(",").into();
    let link = match timeout(OPEN_WITHIN, connect(&address, certificates)).await {
        Ok(link) => link,
        Err(_) => Err(late()),
    };
    match link {
        Ok(link) => Ok(Connection { to, link }),
        Err(source) => Err(ConnectionError::Connect { to: to.to_string(), source }),
    }
}

fn certificates(address: &Address) -> Result<Option<TlsCertificates>, ConnectionError> {
    let Some(path) = address.tls.as_ref().and_then(|tls| tls.ca_file.clone()) else { return Ok(None) };
    let root_cert = match std::fs::read(&path) {
        Ok(pem) => pem,
        Err(source) => return Err(ConnectionError::CaFile { path, source }),
    };
    // An empty file would otherwise be found out as a refusal of each server.
    if !root_cert.windows(BEGIN.len()).any(|window| window == BEGIN) {
        return Err(ConnectionError::NoCertificate { path });
    }
    Ok(Some(TlsCertificates { client_tls: None, root_cert: Some(root_cert) }))
}

const BEGIN: &[u8] = b"-----BEGIN CERTIFICATE-----";

async fn connect(address: &Address, certificates: Option<TlsCertificates>) -> RedisResult<Link> {
    let source = match &address.kind {
        Kind::Cluster => return cluster(address, certificates).await.map(Link::Cluster),
        Kind::Server => Source::Server(Box::new(server(address, certificates)?)),
        Kind::Sentinel { master, login } => {
            Source::Sentinel(Box::new(tokio::sync::Mutex::new(sentinel(address, master, login, certificates)?)))
        }
    };
    let mending = Mending { source, db: address.db, now: Mutex::default(), opening: tokio::sync::Mutex::default() };
    mending.live().await?;
    Ok(Link::Server(Arc::new(mending)))
}

fn settings(login: &Login, db: i64) -> RedisConnectionInfo {
    let mut settings = RedisConnectionInfo::default().set_db(db);
    if let Some(user) = &login.user {
        settings = settings.set_username(user);
    }
    if let Some(password) = &login.password {
        settings = settings.set_password(password.reveal());
    }
    settings
}

fn places(address: &Address) -> Vec<ConnectionAddr> {
    let place = |(host, port): &(String, u16)| match address.tls {
        Some(_) => ConnectionAddr::TcpTls { host: host.clone(), port: *port, insecure: false, tls_params: None },
        None => ConnectionAddr::Tcp(host.clone(), *port),
    };
    address.hosts.iter().map(place).collect()
}

fn infos(address: &Address) -> RedisResult<Vec<ConnectionInfo>> {
    let settings = settings(&address.login, address.db);
    let info = |place: ConnectionAddr| {
        Ok(place.into_connection_info()?.set_redis_settings(settings.clone()).set_tcp_settings(tcp()))
    };
    places(address).into_iter().map(info).collect()
}

fn tcp() -> TcpSettings {
    // Calls are small and wait for each other: none is held back to be sent with the next.
    let settings = TcpSettings::default().set_nodelay(true);
    // A cluster's client keeps a connection on which nothing is answered. The kernel gives it up when nothing arrives.
    #[cfg(target_os = "linux")]
    let settings = settings.set_user_timeout(CALL_WITHIN);
    settings
}

fn server(address: &Address, certificates: Option<TlsCertificates>) -> RedisResult<Client> {
    let info = infos(address)?.pop().ok_or((ErrorKind::InvalidClientConfig, "no host"))?;
    match certificates {
        Some(certificates) => Client::build_with_tls(info, certificates),
        None => Client::open(info),
    }
}

fn sentinel(
    address: &Address,
    master: &str,
    login: &Login,
    certificates: Option<TlsCertificates>,
) -> RedisResult<SentinelClient> {
    let mut builder = SentinelClientBuilder::new(places(address), master, SentinelServerType::Master)?
        .set_client_to_redis_db(address.db)
        .set_client_to_redis_tcp_settings(tcp())
        .set_client_to_sentinel_tcp_settings(tcp());
    if address.tls.is_some() {
        builder =
            builder.set_client_to_redis_tls_mode(TlsMode::Secure).set_client_to_sentinel_tls_mode(TlsMode::Secure);
    }
    if let Some(certificates) = certificates {
        builder = builder
            .set_client_to_redis_certificates(certificates.clone())
            .set_client_to_sentinel_certificates(certificates);
    }
    if let Some(user) = &address.login.user {
        builder = builder.set_client_to_redis_username(user);
    }
    if let Some(password) = &address.login.password {
        builder = builder.set_client_to_redis_password(password.reveal());
    }
    if let Some(user) = &login.user {
        builder = builder.set_client_to_sentinel_username(user);
    }
    if let Some(password) = &login.password {
        builder = builder.set_client_to_sentinel_password(password.reveal());
    }
    builder.build()
}

async fn cluster(address: &Address, certificates: Option<TlsCertificates>) -> RedisResult<ClusterConnection> {
    let mut builder = ClusterClientBuilder::new(infos(address)?)
        .tcp_settings(tcp())
        .connection_timeout(CONNECT_WITHIN)
        .response_timeout(ANSWER_WITHIN)
        .overall_response_timeout(Some(CALL_WITHIN))
        .retries(CLUSTER_RETRIES)
        .min_retry_wait(millis(BACKOFF_MIN))
        .max_retry_wait(millis(BACKOFF_MAX) / 4)
        .retry_wait_formula(millis(BACKOFF_MIN), 2);
    if let Some(certificates) = certificates {
        builder = builder.certs(certificates);
    }
    builder.build()?.get_async_connection().await
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn late() -> RedisError {
    std::io::Error::new(std::io::ErrorKind::TimedOut, "no connection in time").into()
}

/// Where connections to one server come from.
enum Source {
    Server(Box<Client>),
    Sentinel(Box<tokio::sync::Mutex<SentinelClient>>),
}

impl Source {
    async fn open(&self) -> RedisResult<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_WITHIN))
            .set_response_timeout(Some(ANSWER_WITHIN));
        match self {
            Self::Server(client) => client.get_multiplexed_async_connection_with_config(&config).await,
            Self::Sentinel(client) => client.lock().await.get_async_connection_with_config(&config).await,
        }
    }
}

/// A connection to one server that is opened anew when it no longer serves.
struct Mending {
    source: Source,
    db: i64,
    now: Mutex<Now>,
    /// Held by the one call that opens.
    opening: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Now {
    live: Option<MultiplexedConnection>,
    /// Which connection `live` is, so that late news of an older one do not drop it.
    generation: u64,
    /// Attempts to open it, and how the last ones failed.
    attempts: u64,
    failures: u32,
    error: Option<RedisError>,
}

impl Mending {
    fn now(&self) -> std::sync::MutexGuard<'_, Now> {
        // Nothing in there can be left half done.
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn live(&self) -> RedisResult<(MultiplexedConnection, u64)> {
        let seen = {
            let now = self.now();
            if let Some(live) = &now.live {
                return Ok((live.clone(), now.generation));
            }
            now.attempts
        };
        let _opening = self.opening.lock().await;
        let failures = {
            let now = self.now();
            if let Some(live) = &now.live {
                return Ok((live.clone(), now.generation));
            }
            if let Some(error) = now.error.as_ref().filter(|_| now.attempts != seen) {
                return Err(error.clone());
            }
            now.failures
        };
        tokio::time::sleep(pause(failures)).await;
        let opened = timeout(OPEN_WITHIN, self.source.open()).await.unwrap_or_else(|_| Err(late()));
        let mut now = self.now();
        now.attempts += 1;
        match opened {
            Ok(live) => {
                now.failures = 0;
                now.error = None;
                now.generation += 1;
                now.live = Some(live.clone());
                Ok((live, now.generation))
            }
            Err(error) => {
                now.failures = now.failures.saturating_add(1);
                now.error = Some(error.clone());
                Err(error)
            }
        }
    }

    /// Looks at how a call on this connection ended.
    fn learn<T>(&self, generation: u64, answer: &RedisResult<T>) {
        if answer.as_ref().is_err_and(is_spoilt) {
            let mut now = self.now();
            if now.generation == generation {
                now.live = None;
            }
        }
    }
}

/// Whether an answer says that another connection is needed.
fn is_spoilt(error: &RedisError) -> bool {
    // A silent one is given up as well: the path may have forgotten it, and then nothing ever comes back on it. A server
    // that writes no more has been demoted: Sentinel, or the name in the URL, knows who it is now.
    error.is_unrecoverable_error()
        || error.is_io_error()
        || error.is_timeout()
        || error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly)
}

/// How long to wait before an attempt that follows this many failed ones.
fn pause(failures: u32) -> Duration {
    if failures == 0 {
        return Duration::ZERO;
    }
    let most = BACKOFF_MIN.saturating_mul(2_u32.saturating_pow(failures)).min(BACKOFF_MAX);
    rand::random_range(most / 2..=most)
}

impl Connection {
    /// Loads a script where this key is. Redis-rs would load it on all nodes of a cluster, and fail when one is down.
    pub(super) async fn load_script(&mut self, key: &str, code: &str) -> RedisResult<()> {
        let mut load = ::redis::cmd("SCRIPT");
        load.arg("LOAD").arg(code);
        let answer = match &mut self.link {
            Link::Server(_) => self.req_packed_command(&load).await,
            Link::Cluster(cluster) => {
                let route = SingleNodeRoutingInfo::SpecificNode(Route::new(slot(key), SlotAddr::Master));
                cluster.route_command(load, RoutingInfo::SingleNode(route)).await
            }
        };
        answer?.extract_error().map(drop)
    }
}

/// The slot of a key: CRC-16 (XMODEM) of its hash tag, or of all of it, modulo 16384.
fn slot(key: &str) -> u16 {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
    let hashed = tag.filter(|tag| !tag.is_empty()).unwrap_or(key);
    let mut crc = 0_u16;
    for byte in hashed.bytes() {
        crc ^= u16::from(byte) << 8;
        for _ in 0..8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
        }
    }
    crc % 16_384
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match &mut self.link {
            Link::Cluster(cluster) => cluster.req_packed_command(cmd),
            Link::Server(mending) => Box::pin(async move {
                let (mut live, generation) = mending.live().await?;
                let answer = live.req_packed_command(cmd).await.and_then(Value::extract_error);
                mending.learn(generation, &answer);
                answer
            }),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match &mut self.link {
            Link::Cluster(cluster) => cluster.req_packed_commands(pipeline, offset, count),
            Link::Server(mending) => Box::pin(async move {
                let (mut live, generation) = mending.live().await?;
                let answer = live.req_packed_commands(pipeline, offset, count).await;
                mending.learn(generation, &answer);
                answer
            }),
        }
    }

    fn get_db(&self) -> i64 {
        match &self.link {
            Link::Server(mending) => mending.db,
            Link::Cluster(_) => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_back_off_grows_and_is_bounded() {
        assert_eq!(pause(0), Duration::ZERO);
        for failures in 1..100 {
            let most = BACKOFF_MAX.min(BACKOFF_MIN * 2_u32.saturating_pow(failures));
            assert!((most / 2..=most).contains(&pause(failures)), "{failures}");
        }
    }

    #[test]
    fn a_keys_slot_is_its_hash_tags() {
        // The specification's example, and what CLUSTER KEYSLOT answers.
        assert_eq!(slot("123456789"), 0x31C3);
        assert_eq!(slot("foo"), 12_182);
        assert_eq!(slot("{foo}:bar"), 12_182);
    }

    #[tokio::test]
    async fn nobody_there_is_an_error_that_names_the_place_and_no_password() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        for form in ["redis", "redis+cluster", "rediss"] {
            let error = open(&format!("{form}://u:hunter2@{free}")).await.unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(shown.contains(&free.to_string()) && !shown.contains("hunter2"), "{shown}");
        }
        let error = open(&format!("redis+sentinel://u:hunter2@{free}/m")).await.unwrap_err().to_string();
        assert!(error.contains(&free.to_string()) && !error.contains("hunter2"), "{error}");
        let error = open("rediss://u:hunter2@h?ca_file=/nowhere").await.unwrap_err().to_string();
        assert!(error.contains("/nowhere") && !error.contains("hunter2"), "{error}");
        let error = open("rediss://u:hunter2@h?ca_file=/dev/null").await.unwrap_err().to_string();
        assert!(error.contains("no certificate"), "{error}");
    }
}
