//! What the suites share: a database with tenants, the fleet in this process or as the real program, and a receiver.
use std::{
    collections::HashMap,
    convert::Infallible,
    path::PathBuf,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{HeaderMap, Request, Response, StatusCode, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use reeve_jobs::{
    TenantContext, TenantId,
    clock::SystemClock,
    job::JobId,
    queue::{PostgresQueue, Queue},
    tenant::{Directory, Scope},
    testing::{TestDatabase, TestKeystore},
};
use reeve_worker::{
    clients::{
        address::AddressPolicy,
        http::{HttpPolicy, UrlPolicy, WebhookClient},
    },
    duties::{
        Duties,
        rekey::sweep::Settings,
        webhooks::{
            endpoints::{self, NewEndpoint},
            sign::SigningSecret,
        },
    },
    environment::Environment,
    runtime::{Fleet, FleetConfig, Handler, fleet::Slots},
};
use sqlx::{PgConnection, PgPool};
use tokio::{net::TcpListener, process::Child};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use reeve_jobs::testing::keystore::ROOT_KEY;

/// A migrated database with two tenants, `a` and `b`, and the pools of the roles that programs and apps use.
pub struct Town {
    pub db: TestDatabase,
    pub app: PgPool,
    pub worker: PgPool,
    pub keystore: TestKeystore,
    pub a: TenantId,
    pub b: TenantId,
}

impl Town {
    pub async fn new() -> Self {
        Self::in_database(TestDatabase::new().await).await
    }

    pub async fn in_database(db: TestDatabase) -> Self {
        reeve_jobs::program::install_tls_provider();
        let (app, worker) = (db.pool("reeve_app").await, db.pool("reeve_worker").await);
        let (a, b) = (db.tenant("a").await, db.tenant("b").await);
        Self { db, app, worker, keystore: TestKeystore::shared().await, a, b }
    }

    pub fn directory(&self) -> Directory {
        Directory::new(self.worker.clone())
    }

    /// What the real worker would have, with receivers on this machine allowed.
    pub fn environment(&self) -> Environment {
        let address = AddressPolicy { loopback_allowed: true };
        Environment {
            directory: self.directory(),
            keyring: self.keystore.keyring(),
            webhooks: WebhookClient::new(HttpPolicy { address, ..HttpPolicy::default() }).expect("a client"),
            url_policy: Arc::new(UrlPolicy { http_allowed: true, address, ..UrlPolicy::default() }),
            webhook_keep_days: 30,
            catalogue: Arc::new(reeve_jobs::catalogue::load::own().expect("Reeve's own catalogue")),
            rekey: Settings { writers_learn: Duration::ZERO, ..Settings::default() },
            clock: Arc::new(SystemClock),
        }
    }

    pub fn duties(&self) -> Duties {
        Duties { environment: self.environment() }
    }

    pub async fn context(&self, tenant: &TenantId) -> TenantContext {
        TenantContext::new(tenant.clone(), "default", self.db.proof(tenant).await)
    }

    /// Lets a transaction of the worker's login speak for this tenant, past `Scope`.
    pub async fn hold(&self, tx: &mut PgConnection, tenant: &TenantId) {
        self.db.hold(tx, tenant).await;
    }

    pub async fn scope(&self, tenant: &TenantId) -> Scope {
        Scope::open(&self.directory(), &self.context(tenant).await).await.expect("a scope")
    }

    /// Registers an endpoint of this tenant and returns its id and secret (`whsec_…`).
    pub async fn endpoint(&self, tenant: &TenantId, url: &str) -> (Uuid, String) {
        let env = self.environment();
        let secret = SigningSecret::generate(&mut rand::rng());
        let mut scope = self.scope(tenant).await;
        let new = NewEndpoint { url, event_types: &[], secret: &secret };
        let id =
            endpoints::register(&mut scope, &env.keyring, &env.url_policy, &new, "test").await.expect("registered");
        scope.commit().await.expect("committed");
        (id, secret.reveal().to_string())
    }

    /// A fleet in this process, over all queues; see [`Running::stop`].
    pub fn fleet(&self, handler: impl Handler, slots: usize) -> Running {
        self.fleet_with(handler, |config| config.queues.iter_mut().for_each(|q| q.slots = slots))
    }

    pub fn fleet_with(&self, handler: impl Handler, change: impl FnOnce(&mut FleetConfig)) -> Running {
        self.fleet_over(PostgresQueue::new(self.worker.clone()), handler, change)
    }

    pub fn fleet_over(
        &self,
        queue: impl Queue,
        handler: impl Handler,
        change: impl FnOnce(&mut FleetConfig),
    ) -> Running {
        let mut config = FleetConfig {
            name: format!("test-{}", Uuid::new_v4().simple()),
            region: "default".into(),
            queues: reeve_jobs::Kind::queues().into_iter().map(|q| Slots { queue: q.to_owned(), slots: 4 }).collect(),
            lease: Duration::from_secs(30),
            poll: Duration::from_millis(200),
            grace: Duration::from_secs(10),
        };
        change(&mut config);
        let fleet = Fleet { config, queue, pool: self.worker.clone(), directory: self.directory(), handler };
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        Running { stop, fleet: tokio::spawn(fleet.run(async move { stopped.cancelled().await })) }
    }

    /// The real worker program on this database.
    pub fn worker_program(&self) -> Child {
        self.worker_program_with(&[])
    }

    pub fn worker_program_with(&self, env: &[(&str, &str)]) -> Child {
        tokio::process::Command::new(program("reeve-worker"))
            .env("REEVE_WORKER__DATABASE_URL", self.db.url("reeve_worker"))
            .envs(self.keystore.env())
            .env("REEVE_WORKER__WEBHOOKS__HTTP_ALLOWED", "true")
            .env("REEVE_WORKER__WEBHOOKS__LOOPBACK_ALLOWED", "true")
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("the worker starts")
    }

    /// State of a job, wherever it is now.
    pub async fn state(&self, job: JobId) -> String {
        sqlx::query_scalar(
            "SELECT state FROM reeve.jobs WHERE id = $1 UNION ALL SELECT state FROM reeve.job_history WHERE id = $1",
        )
        .bind(job)
        .fetch_one(&self.db.admin)
        .await
        .expect("the job is somewhere")
    }

    pub async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(&self.db.admin).await.expect("a count")
    }
}

/// A fleet that runs in this process.
pub struct Running {
    stop: CancellationToken,
    fleet: tokio::task::JoinHandle<Result<(), reeve_worker::runtime::fleet::FleetError>>,
}

impl Running {
    /// Stops it in order and asserts that it ended well.
    pub async fn stop(self) {
        self.stop.cancel();
        self.fleet.await.expect("no panic").expect("an orderly end");
    }
}

/// A program of this build: beside the directory of this test binary.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("this test has a path");
    let path = test.parent().and_then(|deps| deps.parent()).expect("target/<profile>/deps").join(name);
    assert!(path.exists(), "{} is not built: run `cargo build --workspace --bins` first", path.display());
    path
}

/// Waits for something to become true; the limit only ends a test that has failed already.
pub async fn until(what: &str, mut check: impl AsyncFnMut() -> bool) {
    for _ in 0..3_000 {
        if check().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("never happened: {what}");
}

/// A request as a receiver saw it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Seen {
    pub fn header(&self, name: &str) -> String {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    }
}

/// A receiver on this machine that keeps what it sees and answers as it is told, by path (204 otherwise).
#[derive(Clone)]
pub struct Receiver {
    pub base: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    answers: Arc<Mutex<HashMap<String, StatusCode>>>,
    pub delay: Arc<Mutex<Duration>>,
}

impl Receiver {
    pub async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let base = format!("http://{}", listener.local_addr().expect("an address"));
        let receiver = Self { base, seen: Arc::default(), answers: Arc::default(), delay: Arc::default() };
        let serving = receiver.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let receiver = serving.clone();
                tokio::spawn(async move {
                    let service = service_fn(|request| receiver.clone().answer(request));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        receiver
    }

    pub fn answer_with(&self, path: &str, status: u16) {
        let status = StatusCode::from_u16(status).expect("a status");
        self.answers.lock().expect("lock").insert(path.to_owned(), status);
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("lock").clone()
    }

    pub fn seen_count(&self) -> usize {
        self.seen.lock().expect("lock").len()
    }

    async fn answer(self, request: Request<Incoming>) -> Result<Response<Empty<Bytes>>, Infallible> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let path = head.uri.path().to_owned();
        let delay = *self.delay.lock().expect("lock");
        self.seen.lock().expect("lock").push(Seen { path: path.clone(), headers: head.headers, body });
        tokio::time::sleep(delay).await;
        let mut response = Response::new(Empty::new());
        *response.status_mut() =
            self.answers.lock().expect("lock").get(&path).copied().unwrap_or(StatusCode::NO_CONTENT);
        Ok(response)
    }
}
