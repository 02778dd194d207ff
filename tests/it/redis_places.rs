//! What the Redis suites share: servers of their own (one, a cluster, a watched pair), with TLS or not, a proxy that goes
//! silent, and the short words of a queue's user.
//!
//! All run on loopback with their data in a temporary directory, and end with the test.
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use redis::{FromRedisValue, RedisResult};
use reeve_dev::redis::{Options, Redis as Server};
use reeve_jobs::{
    JobId, Kind, TenantId,
    job::ClaimedJob,
    queue::{
        Claim, Lane, Queue, QueueError, Settlement,
        redis::{Connection, NewJob, QueueKey, RedisQueue, RedisQueueError, open},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
};

use crate::support::{ROOT_KEY, until};

pub const LEASE: Duration = Duration::from_secs(30);
const PASSWORD: &str = "pass1";

/// A server of this test's own, with its data in a directory that outlives it.
pub struct Place {
    pub dir: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a directory") }
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("redis")
    }

    pub async fn start(&self) -> Server {
        self.start_with("redis", Options::default()).await
    }

    pub async fn start_with(&self, name: &str, options: Options<'_>) -> Server {
        let log = self.dir.path().join(format!("{name}.log"));
        Server::start_with(&self.dir.path().join(name), &log, PASSWORD, options).await.expect("a server")
    }
}

pub fn lane(queue: &str) -> Lane {
    Lane { queue: queue.to_owned(), region: "default".to_owned() }
}

pub async fn queue(url: &str, name: &str) -> RedisQueue {
    queue_over(open(url).await.expect("the server answers"), name)
}

pub fn queue_over(connection: Connection, name: &str) -> RedisQueue {
    RedisQueue::new(connection, QueueKey::from_root(ROOT_KEY).expect("32 bytes"), lane(name)).expect("a lane")
}

pub fn tenant(id: &str) -> TenantId {
    id.parse().expect("an id")
}

pub async fn try_enqueue(queue: &RedisQueue, id: JobId, of: &str) -> Result<JobId, RedisQueueError> {
    let new = NewJob {
        id,
        tenant: &tenant(of),
        kind: Kind::FleetProbe,
        payload: serde_json::json!({"note": "canary"}),
        unique_key: None,
        delay: Duration::ZERO,
        priority: None,
        traceparent: None,
    };
    queue.enqueue(&new).await
}

pub async fn enqueue(queue: &RedisQueue, of: &str) -> JobId {
    try_enqueue(queue, JobId(uuid::Uuid::now_v7()), of).await.expect("enqueued")
}

pub async fn claim(queue: &RedisQueue, name: &str) -> Claim {
    queue.claim(&lane(name), 10, "w", "", LEASE).await.expect("a claim")
}

pub fn done(job: &ClaimedJob) -> Settlement {
    Settlement { job: job.id, token: job.lease_token, outcome: "completed", delay: Duration::ZERO, error: None }
}

/// Repeats a call as a worker does while its faults are passing ones.
pub async fn persist<T, E: Into<QueueError>>(mut call: impl AsyncFnMut() -> Result<T, E>) -> T {
    for _ in 0..300 {
        match call().await {
            Ok(value) => return value,
            Err(error) => {
                let error = error.into();
                assert!(error.is_passing(), "{error}: a worker would give up");
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("never answered again");
}

/// A command to one server, by an operator.
pub async fn raw<T: FromRedisValue>(url: &str, words: &[&str]) -> RedisResult<T> {
    let mut cmd = redis::Cmd::new();
    for word in words {
        cmd.arg(word);
    }
    cmd.query_async(&mut open(url).await.expect("the server answers")).await
}

/// Waits until all that a server has acknowledged is in its append-only file: while the disk is being synced, it is not.
pub async fn written(url: &str) {
    until("the log is written", async || {
        let info: String = raw(url, &["INFO", "persistence"]).await.expect("an answer");
        assert!(info.contains("aof_enabled:1"));
        info.contains("aof_buffer_length:0\r\n")
    })
    .await;
}

pub fn signal(name: &str, pid: &str) {
    let status = std::process::Command::new("kill").args([&format!("-{name}"), pid]).status().expect("kill starts");
    assert!(status.success());
}

pub fn signal_to(name: &str, server: &Server) {
    signal(name, &server.pid().expect("it runs").to_string());
}

/// An authority of this test's own, and a certificate of it for 127.0.0.1.
pub struct Certificates {
    dir: PathBuf,
}

impl Certificates {
    pub fn make(dir: &Path) -> Self {
        std::fs::create_dir_all(dir).expect("a directory");
        let openssl = |arguments: &str| {
            let made = std::process::Command::new("openssl")
                .args(arguments.split(' '))
                .current_dir(dir)
                .output()
                .expect("openssl starts: install the package openssl");
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        };
        std::fs::write(dir.join("san"), "subjectAltName=IP:127.0.0.1,DNS:localhost").expect("written");
        let key = "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
        openssl(&format!("{key} -x509 -days 2 -subj /CN=authority -keyout ca.key -out ca.pem"));
        openssl(&format!("{key} -subj /CN=server -keyout server.key -out server.csr"));
        openssl(
            "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile san -out server.pem",
        );
        Self { dir: dir.to_owned() }
    }

    pub fn ca(&self) -> String {
        self.dir.join("ca.pem").to_string_lossy().into_owned()
    }

    /// A server that speaks TLS only, with its peers as well.
    pub fn settings(&self) -> String {
        let file = |name: &str| self.dir.join(name).to_string_lossy().into_owned();
        format!(
            "port 0\ntls-port {{port}}\ntls-cert-file {}\ntls-key-file {}\ntls-ca-cert-file {}\ntls-auth-clients no\n\
             tls-replication yes\ntls-cluster yes\n",
            file("server.pem"),
            file("server.key"),
            self.ca()
        )
    }
}

/// Three servers that share the slots, without replicas.
pub struct Cluster {
    place: Place,
    pub nodes: Vec<Option<Server>>,
    ports: Vec<(u16, String)>,
    tls: Option<Certificates>,
}

const SLOTS: u16 = 16_384;

impl Cluster {
    pub async fn start() -> Self {
        Self::start_with(false).await
    }

    pub async fn start_with(tls: bool) -> Self {
        let place = Place::new();
        let tls = tls.then(|| Certificates::make(&place.dir.path().join("tls")));
        let mut cluster = Self { place, nodes: vec![], ports: vec![], tls };
        for n in 0..3 {
            let node = cluster.launch(n, None, "{other_port}").await;
            cluster.ports.push((node.port(), String::new()));
            cluster.nodes.push(Some(node));
            let (_, bus): (String, String) = cluster.on(n, &["CONFIG", "GET", "cluster-port"]).await;
            cluster.ports[n].1 = bus;
            let (from, to) = (first_slot(n), first_slot(n + 1) - 1);
            cluster.on::<()>(n, &["CLUSTER", "ADDSLOTSRANGE", &from.to_string(), &to.to_string()]).await;
            cluster.on::<()>(n, &["CLUSTER", "SET-CONFIG-EPOCH", &(n + 1).to_string()]).await;
        }
        for (from, to) in [(0, 1), (0, 2), (1, 2)] {
            let (port, bus) = &cluster.ports[to];
            cluster.on::<()>(from, &["CLUSTER", "MEET", "127.0.0.1", &port.to_string(), bus]).await;
        }
        cluster.settled().await;
        cluster
    }

    /// Waits until all nodes see all slots served.
    async fn settled(&self) {
        until("the cluster stands", async || {
            for n in 0..3 {
                let info: String = self.on(n, &["CLUSTER", "INFO"]).await;
                if !["cluster_state:ok", "cluster_slots_ok:16384", "cluster_size:3"]
                    .iter()
                    .all(|line| info.contains(line))
                {
                    return false;
                }
            }
            true
        })
        .await;
    }

    async fn launch(&self, n: usize, port: Option<u16>, bus: &str) -> Server {
        let settings = format!(
            "cluster-enabled yes\ncluster-port {bus}\ncluster-announce-ip 127.0.0.1\ncluster-node-timeout 2000\n\
             cluster-require-full-coverage no\nmasterauth {PASSWORD}\n{}",
            self.tls.as_ref().map(Certificates::settings).unwrap_or_default()
        );
        self.place.start_with(&format!("node{n}"), Options { port, settings: &settings, sentinel: false }).await
    }

    pub async fn kill(&mut self, n: usize) {
        let mut node = self.nodes[n].take().expect("it runs");
        signal_to("KILL", &node);
        node.exited().await.expect("it has ended");
    }

    /// Starts a node again that was killed.
    pub async fn restart(&mut self, n: usize) {
        let (port, bus) = self.ports[n].clone();
        self.nodes[n] = Some(self.launch(n, Some(port), &bus).await);
        self.settled().await;
    }

    fn scheme_and_query(&self) -> (&str, String) {
        match &self.tls {
            Some(tls) => ("rediss", format!("?ca_file={}", tls.ca())),
            None => ("redis", String::new()),
        }
    }

    pub fn url(&self, login: &str) -> String {
        let (scheme, query) = self.scheme_and_query();
        let hosts: Vec<_> = self.ports.iter().map(|(port, _)| format!("127.0.0.1:{port}")).collect();
        format!("{scheme}+cluster://{login}@{}{query}", hosts.join(","))
    }

    pub async fn connect(&self) -> Connection {
        open(&self.url(&format!("default:{PASSWORD}"))).await.expect("the cluster answers")
    }

    pub fn node_url(&self, n: usize) -> String {
        let (scheme, query) = self.scheme_and_query();
        format!("{scheme}://default:{PASSWORD}@127.0.0.1:{}{query}", self.ports[n].0)
    }

    pub async fn on<T: FromRedisValue>(&self, n: usize, words: &[&str]) -> T {
        raw(&self.node_url(n), words).await.unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    /// The slot of a lane and the node that has it by the first layout.
    pub async fn home(&self, queue: &RedisQueue) -> (u16, usize) {
        let slot: u16 = self.on(0, &["CLUSTER", "KEYSLOT", queue.prefix()]).await;
        (slot, (0..3).find(|n| slot < first_slot(n + 1)).expect("three nodes have all"))
    }

    /// Names of lanes of which each node has one, in the nodes' order.
    pub async fn spread(&self, connection: &Connection) -> Vec<String> {
        let mut names = vec![None; 3];
        for i in 0.. {
            let name = format!("q{i}");
            let (_, home) = self.home(&queue_over(connection.clone(), &name)).await;
            names[home].get_or_insert(name);
            if names.iter().all(Option::is_some) {
                break;
            }
        }
        names.into_iter().flatten().collect()
    }

    /// Opens the move of a slot, and moves keys until `halfway` says so (it is given how many are left).
    pub async fn begin_move(&self, slot: u16, from: usize, to: usize, mut halfway: impl FnMut(usize) -> bool) {
        let (slot, target) = (slot.to_string(), self.id(to).await);
        self.on::<()>(to, &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &self.id(from).await]).await;
        self.on::<()>(from, &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &target]).await;
        loop {
            let left: usize = self.on(from, &["CLUSTER", "COUNTKEYSINSLOT", &slot]).await;
            if left == 0 || halfway(left) {
                return;
            }
            self.move_keys(&slot, from, to).await;
        }
    }

    /// Moves what is left and hands the slot over, as `redis-cli --cluster reshard` does.
    pub async fn end_move(&self, slot: u16, from: usize, to: usize) {
        let (slot, target) = (slot.to_string(), self.id(to).await);
        while self.move_keys(&slot, from, to).await {}
        for n in [to, from, 3 - to - from] {
            self.on::<()>(n, &["CLUSTER", "SETSLOT", &slot, "NODE", &target]).await;
        }
    }

    async fn move_keys(&self, slot: &str, from: usize, to: usize) -> bool {
        let keys: Vec<String> = self.on(from, &["CLUSTER", "GETKEYSINSLOT", slot, "3"]).await;
        if keys.is_empty() {
            return false;
        }
        let port = self.ports[to].0.to_string();
        let head = ["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "AUTH", PASSWORD, "KEYS"];
        let words: Vec<&str> = head.into_iter().chain(keys.iter().map(String::as_str)).collect();
        // That a key is there already would be an error, and a job stored on both sides.
        self.on::<String>(from, &words).await;
        true
    }

    async fn id(&self, n: usize) -> String {
        self.on(n, &["CLUSTER", "MYID"]).await
    }

    pub async fn stop(self) {
        for node in self.nodes.into_iter().flatten() {
            node.stop().await.expect("stopped");
        }
    }
}

fn first_slot(node: usize) -> u16 {
    SLOTS / 3 * u16::try_from(node).expect("a node") + if node == 3 { SLOTS % 3 } else { 0 }
}

/// A primary, its replica, and a Sentinel that watches them.
pub struct Watched {
    _place: Place,
    pub servers: Vec<Server>,
    pub sentinel: Server,
    tls: Option<Certificates>,
}

impl Watched {
    pub async fn start(tls: bool) -> Self {
        let place = Place::new();
        let tls = tls.then(|| Certificates::make(&place.dir.path().join("tls")));
        let tls_lines = tls.as_ref().map(Certificates::settings).unwrap_or_default();
        let both = format!("masterauth {PASSWORD}\nrepl-diskless-sync-delay 0\n{tls_lines}");
        let first = place.start_with("first", Options { settings: &both, ..Options::default() }).await;
        let second = format!("{both}replicaof 127.0.0.1 {}\n", first.port());
        let second = place.start_with("second", Options { settings: &second, ..Options::default() }).await;
        let watch = format!(
            "{tls_lines}sentinel monitor main 127.0.0.1 {} 1\nsentinel auth-pass main {PASSWORD}\n\
             sentinel down-after-milliseconds main 1000\nsentinel failover-timeout main 5000\n",
            first.port()
        );
        let sentinel =
            place.start_with("sentinel", Options { settings: &watch, sentinel: true, ..Options::default() }).await;
        let watched = Self { _place: place, servers: vec![first, second], sentinel, tls };
        until("Sentinel knows the replica", async || {
            let sentinel = watched.server_url(&watched.sentinel);
            raw::<Vec<redis::Value>>(&sentinel, &["SENTINEL", "REPLICAS", "main"]).await.is_ok_and(|all| all.len() == 1)
        })
        .await;
        watched
    }

    fn scheme_and_query(&self) -> (&str, String) {
        match &self.tls {
            Some(tls) => ("rediss", format!("&ca_file={}", tls.ca())),
            None => ("redis", String::new()),
        }
    }

    pub fn url(&self) -> String {
        let (scheme, query) = self.scheme_and_query();
        // The first has nobody listening: Sentinels fail as well.
        format!(
            "{scheme}+sentinel://default:{PASSWORD}@127.0.0.1:1,127.0.0.1:{}/main/0?sentinel_password={PASSWORD}{query}",
            self.sentinel.port()
        )
    }

    pub fn server_url(&self, server: &Server) -> String {
        let (scheme, query) = self.scheme_and_query();
        format!("{scheme}://default:{PASSWORD}@127.0.0.1:{}?{query}", server.port())
    }

    /// Waits until the replica has all that the primary has acknowledged.
    pub async fn replicated(&self, primary: usize) {
        let url = self.server_url(&self.servers[primary]);
        until("the replica has caught up", async || {
            let info: String = raw(&url, &["INFO", "replication"]).await.expect("an answer");
            let field = |name: &str| info.split([',', '\r', '\n']).find_map(|word| word.strip_prefix(name));
            info.contains("state=online") && field("offset=") == field("master_repl_offset:")
        })
        .await;
    }

    pub async fn is_primary(&self, server: usize) -> bool {
        let url = self.server_url(&self.servers[server]);
        raw::<String>(&url, &["INFO", "replication"]).await.is_ok_and(|info| info.contains("role:master"))
    }
}

/// Stands before a server, and swallows what passes while it is told to.
pub struct Proxy {
    pub port: u16,
    silent: Arc<AtomicBool>,
}

impl Proxy {
    pub async fn before(server: &Server) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let proxy = Self { port: listener.local_addr().expect("an address").port(), silent: Arc::default() };
        let (silent, to) = (proxy.silent.clone(), server.port());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(("127.0.0.1", to)).await else { continue };
                let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
                tokio::spawn(pass(from_client, to_server, silent.clone()));
                tokio::spawn(pass(from_server, to_client, silent.clone()));
            }
        });
        proxy
    }

    pub fn silence(&self, silent: bool) {
        self.silent.store(silent, Ordering::SeqCst);
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, silent: Arc<AtomicBool>) {
    let mut bytes = vec![0; 16_384];
    while let Ok(n @ 1..) = from.read(&mut bytes).await {
        if !silent.load(Ordering::SeqCst) && to.write_all(&bytes[..n]).await.is_err() {
            return;
        }
    }
}
