//! Dedicated databases: whose rows are where, what is refused, and what one that is down may stop.
use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
    sync::{Arc, Mutex},
    task::Poll,
    time::Duration,
};

use reeve_jobs::{
    TenantContext, TenantId, client,
    job::{ClaimedJob, JobId, Outcome},
    kinds::{ProbeFleet, Work},
    queue::operate::Act,
    redact::Redacted,
    seal::{Place, RootKey, placement::seal_url},
    tenant::{
        Directory, Rows, Scope, ScopeError,
        databases::{Databases, Limits},
        placements, session,
    },
    testing::TestDatabase,
};
use reeve_worker::{
    placement::{self, NewPlacement, PlacementError},
    runtime::{Handler, Progress},
};
use sqlx::{Connection, Executor, PgConnection, PgPool};
use tokio::net::{TcpListener, TcpStream, UnixStream};

use crate::support::{ROOT_KEY, Town, until};

pub const WHO: Act<'static> = Act { actor: "cli:ann", reason: "its own house" };

/// A town with operators, and ways to dedicated databases.
pub struct Estate {
    pub town: Town,
    pub ops: PgPool,
    pub databases: Databases,
    pub directory: Directory,
}

impl Estate {
    pub async fn new() -> Self {
        Self::with(Limits { wait: Duration::from_secs(120), ..Limits::default() }).await
    }

    pub async fn with(limits: Limits) -> Self {
        let town = Town::new().await;
        let ops = town.db.pool("reeve_ops").await;
        let databases = Databases::new(limits, Arc::new(town.keystore.keyring()));
        let directory = town.directory().with_dedicated(databases.clone());
        Self { town, ops, databases, directory }
    }

    /// A database prepared for the tenant's next placing.
    pub async fn prepared(&self, tenant: &TenantId, region: &str) -> TestDatabase {
        let db = TestDatabase::new().await;
        let mut admin = PgConnection::connect_with(db.admin_options()).await.expect("its administrator");
        placements::prepare(&self.ops, &mut admin, tenant, region, WHO).await.expect("prepared");
        db
    }

    /// Moves the tenant to this URL, whatever database is there.
    pub async fn place_at(&self, tenant: &TenantId, region: &str, url: &str) {
        placements::begin_move(&self.ops, tenant, WHO).await.expect("moving");
        let epoch = placements::find(&self.ops, tenant).await.expect("found").expect("registered").epoch + 1;
        let url = Redacted::new(url.to_owned());
        let sealed = seal_url(&self.town.keystore.keyring(), tenant, epoch, &url).await.expect("sealed");
        placements::place(&self.ops, tenant, &sealed, region, epoch, WHO).await.expect("placed");
        self.end_move(tenant).await;
    }

    /// As if workers had had their time to forget the old place.
    pub async fn end_move(&self, tenant: &TenantId) {
        self.time_passes().await;
        placements::end_move(&self.ops, tenant, WHO).await.expect("the move ends");
    }

    pub async fn time_passes(&self) {
        sqlx::query("UPDATE reeve.placements SET updated_at = updated_at - interval '1 minute'")
            .execute(&self.town.db.admin)
            .await
            .expect("time passes");
    }

    /// The tenant in a database of its own, with a table of marks there as an app would have it.
    pub async fn dedicated(&self, tenant: &TenantId) -> TestDatabase {
        let db = self.prepared(tenant, "default").await;
        marks(&db).await;
        self.place_at(tenant, "default", &db.url("reeve_worker")).await;
        db
    }

    /// An operator's context, which holds in the dedicated database as well.
    pub async fn context(&self, tenant: &TenantId) -> TenantContext {
        let proof = session::open(&self.ops, tenant, WHO).await.expect("a session");
        TenantContext::new(tenant.clone(), "default", proof)
    }

    pub async fn probe(&self, tenant: &TenantId) -> JobId {
        client::enqueue_alone(&self.town.app, tenant, &ProbeFleet::default()).await.expect("enqueued")
    }

    /// Job's state, attempts counted, and last error.
    pub async fn job(&self, job: JobId) -> (String, i32, String) {
        sqlx::query_as(
            "SELECT state, attempt, coalesce(last_error, '') FROM reeve.jobs WHERE id = $1
             UNION ALL SELECT state, attempt, coalesce(last_error, '') FROM reeve.job_history WHERE id = $1",
        )
        .bind(job)
        .fetch_one(&self.town.db.admin)
        .await
        .expect("the job is somewhere")
    }

    /// Audit entries of this action about this tenant.
    pub async fn audited(&self, tenant: &TenantId, action: &str) -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM reeve.audit_log WHERE tenant_id = $1 AND action = $2")
            .bind(tenant.as_str())
            .bind(action)
            .fetch_one(&self.town.db.admin)
            .await
            .expect("a count")
    }

    pub fn marker(&self) -> Marker {
        Marker { directory: self.directory.clone(), seen: Arc::default() }
    }
}

/// A table of the app's.
pub async fn marks(db: &TestDatabase) {
    db.admin
        .execute(
            "CREATE TABLE public.marks (tenant_id text NOT NULL, database text NOT NULL DEFAULT current_database());
             ALTER TABLE public.marks ENABLE ROW LEVEL SECURITY;
             CREATE POLICY held ON public.marks TO reeve_worker USING (tenant_id = (SELECT reeve.held_tenant()));
             GRANT SELECT, INSERT ON public.marks TO reeve_worker",
        )
        .await
        .expect("a table");
}

pub async fn marked(db: &TestDatabase) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM public.marks").fetch_one(&db.admin).await.expect("a count")
}

/// A duty that writes one row of its tenant's, and remembers in which database.
#[derive(Clone)]
pub struct Marker {
    directory: Directory,
    pub seen: Arc<Mutex<BTreeMap<String, BTreeSet<String>>>>,
}

impl Marker {
    async fn mark(&self, context: &TenantContext) -> Result<(), ScopeError> {
        let mut scope = Scope::open(&self.directory, context).await?;
        let tenant = context.tenant.as_str().to_owned();
        let insert = "INSERT INTO public.marks (tenant_id) VALUES ($1) RETURNING tenant_id";
        scope.write(sqlx::query_scalar(insert).bind(tenant.clone()), Rows::Exactly(1)).await?;
        let here: String = scope.fetch_value(sqlx::query_scalar("SELECT current_database()::text")).await?;
        scope.commit().await?;
        self.seen.lock().expect("lock").entry(tenant).or_default().insert(here);
        Ok(())
    }

    pub fn databases_of(&self, tenant: &TenantId) -> Vec<String> {
        let seen = self.seen.lock().expect("lock");
        seen.get(tenant.as_str()).into_iter().flatten().cloned().collect()
    }
}

impl Handler for Marker {
    async fn handle(&self, _: &ClaimedJob, context: TenantContext, _: Work, _: &Progress) -> Outcome {
        self.mark(&context).await.map_or_else(ScopeError::into_outcome, |()| Outcome::Done)
    }
}

#[tokio::test]
async fn a_tenants_rows_are_where_it_is_placed_and_reeves_own_in_the_control_database() {
    let estate = Estate::new().await;
    let (a, b) = (&estate.town.a, &estate.town.b);
    marks(&estate.town.db).await;
    let own = estate.dedicated(a).await;
    let marker = estate.marker();
    let fleet = estate.town.fleet(marker.clone(), 4);
    for tenant in [a, b] {
        let job = estate.probe(tenant).await;
        until("it is done", async || estate.job(job).await.0 == "completed").await;
    }
    fleet.stop().await;
    assert_eq!(marker.databases_of(a), [own.name.as_str()]);
    assert_eq!(marker.databases_of(b), [estate.town.db.name.as_str()]);
    assert_eq!((marked(&own).await, marked(&estate.town.db).await), (1, 1));
    // The duty that looks at both places, with the programs' own wiring.
    let mut duties = estate.town.duties();
    duties.environment.directory = estate.directory.clone();
    let fleet = estate.town.fleet(duties, 4);
    let job = estate.probe(a).await;
    until("it is over", async || estate.job(job).await.0 != "available" && estate.job(job).await.0 != "running").await;
    fleet.stop().await;
    assert_eq!(estate.job(job).await.0, "completed");
    let mut control = Scope::open_control(&estate.directory, &estate.context(a).await).await.expect("a scope");
    let here: String =
        control.fetch_value(sqlx::query_scalar("SELECT current_database()::text")).await.expect("a name");
    assert_eq!(here, estate.town.db.name);
    // A program without ways to dedicated databases refuses; it does not look into the shared one.
    let refused = Scope::open(&estate.town.directory(), &estate.context(a).await).await;
    assert!(refused.is_err_and(|error| error.to_string().contains("no way to it")));
}

/// Each is planted in the database that the tenant is placed in.
const WRONG: [(&str, &str); 6] = [
    ("UPDATE reeve.identity SET epoch = 7", "epoch 7 and not at 1"),
    ("UPDATE reeve.identity SET epoch = 1, region = 'eu'", "in region eu, and not in default"),
    ("UPDATE reeve.identity SET region = 'default', tenant_id = 'mallory'", "another tenant's"),
    ("DELETE FROM reeve.identity", "no identity"),
    ("DROP FUNCTION reeve.database_facts", "no Reeve schema"),
    ("DROP SCHEMA reeve CASCADE", "no Reeve schema"),
];

#[tokio::test]
async fn a_wrong_database_is_refused_audited_and_its_job_quarantined_before_a_row_is_written() {
    let estate = Estate::new().await;
    let a = &estate.town.a;
    let own = estate.dedicated(a).await;
    let marker = estate.marker();
    let fleet = estate.town.fleet(marker.clone(), 2);
    for (n, (planted, says)) in (1..).zip(WRONG) {
        // An open connection as well as a new one: it is asked at each checkout.
        own.admin.execute(planted).await.expect(planted);
        let job = estate.probe(a).await;
        until("it is quarantined", async || estate.job(job).await.0 == "quarantined").await;
        let (_, _, error) = estate.job(job).await;
        assert!(error.contains(says) && !error.contains("mallory"), "{planted}: {error}");
        assert_eq!(estate.audited(a, "job.quarantined").await, n);
    }
    fleet.stop().await;
    assert!(marker.databases_of(a).is_empty());
    assert_eq!(marked(&own).await, 0);
}

#[tokio::test]
async fn another_tenants_database_and_another_tenants_url_are_refused() {
    let estate = Estate::new().await;
    let (a, b) = (&estate.town.a, &estate.town.b);
    let of_b = estate.dedicated(b).await;
    let of_a = estate.dedicated(a).await;
    // A wrong URL, sealed as it should be: b's database.
    estate.prepared(a, "default").await;
    estate.place_at(a, "default", &of_b.url("reeve_worker")).await;
    let refused = Scope::open(&estate.directory, &estate.context(a).await).await.expect_err("refused");
    assert!(matches!(&refused, ScopeError::Mismatch(why) if why.contains("another tenant's")), "{refused}");
    // And its sealed URL, copied into a's row.
    sqlx::query(
        "UPDATE reeve.placements a SET url_sealed = b.url_sealed, epoch = b.epoch FROM reeve.placements b
         WHERE a.tenant_id = 'a' AND b.tenant_id = 'b'",
    )
    .execute(&estate.town.db.admin)
    .await
    .expect("copied");
    let directory = estate.town.directory().with_dedicated(estate.databases.clone());
    let refused = Scope::open(&directory, &estate.context(a).await).await.expect_err("refused");
    assert!(refused.to_string().contains("does not open"), "{refused}");
    assert!(matches!(refused.into_outcome(), Outcome::Quarantine { .. }));
    assert_eq!((marked(&of_a).await, marked(&of_b).await), (0, 0));
}

#[tokio::test]
async fn placing_asks_the_database_first_and_changes_nothing_when_it_is_wrong() {
    let estate = Estate::new().await;
    let (a, b) = (&estate.town.a, &estate.town.b);
    let (of_b, bare, unprepared) = (estate.dedicated(b).await, TestDatabase::empty().await, TestDatabase::new().await);
    let mine = estate.prepared(a, "default").await;
    placements::declare_region(&estate.ops, "eu", false, WHO).await.expect("declared");
    let set = async |region: &str, url: &str| {
        let url = Redacted::new(url.to_owned());
        placement::set(
            &estate.ops,
            &estate.town.keystore.keyring(),
            &NewPlacement { tenant: a, region, url: &url },
            WHO,
        )
        .await
    };
    let early = set("default", &mine.url("reeve_worker")).await.expect_err("not moving");
    assert!(early.to_string().contains("reeve placement move a"), "{early}");
    placements::begin_move(&estate.ops, a, WHO).await.expect("moving");
    for (n, (region, url, says)) in (1..).zip([
        ("default", of_b.url("reeve_worker"), "another tenant's"),
        ("default", unprepared.url("reeve_worker"), "no identity"),
        ("default", estate.town.db.url("reeve_worker"), "no identity"),
        ("default", bare.url("reeve_worker"), "no Reeve schema"),
        ("eu", mine.url("reeve_worker"), "in region default, and not in eu"),
    ]) {
        let refused = set(region, &url).await.expect_err(says);
        assert!(matches!(&refused, PlacementError::Mismatch(why) if why.contains(says)), "{refused}");
        assert_eq!(estate.audited(a, "placement.refused").await, n, "{says}");
    }
    for (url, says) in [
        (mine.admin_url(), "row-level security does not bind"),
        (mine.url("reeve_scheduler"), "no rights of a worker's"),
        ("mysql://w:canary@h/x".to_owned(), "not a PostgreSQL URL"),
        ("postgres://w:canary@127.0.0.1:9/x".to_owned(), "cannot connect"),
    ] {
        let refused = set("default", &url).await.expect_err(says).to_string();
        assert!(refused.contains(says) && !refused.contains("canary"), "{refused}");
    }
    let found = placements::find(&estate.ops, a).await.expect("found").expect("registered");
    assert_eq!((found.placement.as_str(), found.epoch, found.placed), ("shared", 0, false));
    // The right one, and its copy from before the move after it.
    assert_eq!(set("default", &mine.url("reeve_worker")).await.expect("placed"), 1);
    let again = set("default", &mine.url("reeve_worker")).await.expect_err("the next epoch is 2");
    assert!(again.to_string().contains("epoch 1 and not at 2"), "{again}");
}

/// A door to the test cluster that can be shut: nobody listens then.
struct Door {
    port: u16,
    open: Option<tokio::task::JoinHandle<()>>,
}

impl Door {
    async fn shut() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        Self { port: listener.local_addr().expect("an address").port(), open: None }
    }

    async fn open(&mut self, db: &TestDatabase) {
        let listener = TcpListener::bind(("127.0.0.1", self.port)).await.expect("the same port");
        let to = db.admin_options().clone();
        self.open = Some(tokio::spawn(async move {
            while let Ok((mut from, _)) = listener.accept().await {
                let to = to.clone();
                tokio::spawn(async move {
                    let _ = match to.get_socket() {
                        Some(dir) => {
                            let path = dir.join(format!(".s.PGSQL.{}", to.get_port()));
                            let mut to = UnixStream::connect(path).await.expect("the cluster");
                            tokio::io::copy_bidirectional(&mut from, &mut to).await
                        }
                        None => {
                            let mut to = TcpStream::connect((to.get_host(), to.get_port())).await.expect("the cluster");
                            tokio::io::copy_bidirectional(&mut from, &mut to).await
                        }
                    };
                });
            }
        }));
    }

    fn url(&self, db: &TestDatabase) -> String {
        format!("postgres://reeve_worker:test@127.0.0.1:{}/{}?sslmode=disable", self.port, db.name)
    }
}

#[tokio::test]
async fn a_database_that_is_down_stops_only_its_tenant_and_costs_its_jobs_no_attempt() {
    let estate = Estate::new().await;
    let (a, b) = (&estate.town.a, &estate.town.b);
    marks(&estate.town.db).await;
    let c = estate.town.db.tenant("c").await;
    let own = estate.prepared(a, "default").await;
    marks(&own).await;
    let mut door = Door::shut().await;
    estate.place_at(a, "default", &door.url(&own)).await;
    let of_c = estate.dedicated(&c).await;
    let marker = estate.marker();
    let fleet = estate.town.fleet(marker.clone(), 2);
    let mut waiting = Vec::new();
    for _ in 0..6 {
        waiting.push(estate.probe(a).await);
    }
    // The others go on, round after round, while a's are put off.
    for round in 0..4 {
        let (one, two) = (estate.probe(b).await, estate.probe(&c).await);
        until("b's and c's are done", async || {
            estate.job(one).await.0 == "completed" && estate.job(two).await.0 == "completed"
        })
        .await;
        if round == 0 {
            until("a's are put off", async || {
                let mut off = 0;
                for job in &waiting {
                    off += usize::from(estate.job(*job).await.0 == "scheduled");
                }
                off == waiting.len()
            })
            .await;
        }
        estate.town.count("SELECT reeve.promote(100)::bigint").await;
    }
    for job in &waiting {
        let (state, attempt, error) = estate.job(*job).await;
        assert!(["scheduled", "available", "running"].contains(&state.as_str()), "{state}");
        assert!(attempt <= 1, "at most the one that is under way");
        assert!(error.contains("cannot be reached") || error.contains("is down"), "{error}");
        assert!(!error.contains("reeve_worker") && !error.contains("127.0.0.1"), "{error}");
    }
    assert!(marker.databases_of(a).is_empty());
    // It comes back: they run, each in its first attempt.
    door.open(&own).await;
    for job in &waiting {
        until("a's are done", async || {
            estate.town.count("SELECT reeve.promote(100)::bigint").await;
            estate.job(*job).await.0 == "completed"
        })
        .await;
        assert_eq!(estate.job(*job).await.1, 1);
    }
    fleet.stop().await;
    assert_eq!((marked(&own).await, marked(&of_c).await), (6, 4));
}

#[tokio::test]
async fn a_scope_that_is_dropped_half_way_leaves_nothing_in_a_dedicated_database() {
    let estate = Estate::with(Limits { connections: 1, per_database: 1, ..Limits::default() }).await;
    let own = estate.dedicated(&estate.town.a).await;
    let context = estate.context(&estate.town.a).await;
    let marker = estate.marker();
    for n in 1.. {
        let ended = {
            let mut work = pin!(marker.mark(&context));
            let mut waits = 0;
            std::future::poll_fn(|cx| {
                if work.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(true);
                }
                waits += 1;
                if waits == n { Poll::Ready(false) } else { Poll::Pending }
            })
            .await
        };
        // The one connection, or its successor: it serves the next scope as if nothing had been.
        let mut next = Scope::open(&estate.directory, &context).await.expect("a scope");
        let seen: i64 =
            next.fetch_value(sqlx::query_scalar("SELECT count(*) FROM public.marks")).await.expect("a count");
        drop(next);
        if ended {
            assert_eq!(seen, 1);
            break;
        }
        // Nothing of it is there, unless its commit was under way.
        assert!(seen <= 1, "{seen} rows of scopes that were dropped");
        own.admin.execute("DELETE FROM public.marks").await.expect("cleared");
    }
}

#[tokio::test]
async fn a_url_is_readable_nowhere_but_by_the_tenants_key() {
    let estate = Estate::new().await;
    let own = estate.prepared(&estate.town.a, "default").await;
    let url = own.url("reeve_worker").replace(":test@", ":canary-7261@");
    estate.place_at(&estate.town.a, "default", &url).await;
    let everything: String = sqlx::query_scalar(
        "SELECT string_agg(x, ' ') FROM (SELECT p::text AS x FROM reeve.placements p
         UNION ALL SELECT encode(p.url_sealed, 'escape') FROM reeve.placements p
         UNION ALL SELECT l::text FROM reeve.audit_log l UNION ALL SELECT b::text FROM reeve.audit_bodies b) all_of_it",
    )
    .fetch_one(&estate.town.db.admin)
    .await
    .expect("rows");
    assert!(everything.contains("placement.dedicated") && !everything.contains("canary"), "{everything}");
    // Nor can a login read the row; a worker is given it sealed, by tenant.
    for role in ["reeve_worker", "reeve_ops", "reeve_app", "reeve_scheduler"] {
        let refused = sqlx::query("SELECT * FROM reeve.placements").execute(&estate.town.db.pool(role).await).await;
        assert!(refused.is_err_and(|error| error.to_string().contains("permission denied")), "{role}");
    }
    // A password that is not right is a database that is down, in words that say no more. (The test cluster may let
    // anybody in; then there is nothing to say.)
    if let Err(error) = Scope::open(&estate.directory, &estate.context(&estate.town.a).await).await {
        assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
    }
    assert!(!format!("{:?} {:?}", estate.databases, estate.directory).contains("canary"));
}

/// Resident memory of this process, in bytes.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("a Linux machine");
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).expect("a number") * 4096
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_dedicated_tenants_cost_what_is_in_use() {
    let limits = Limits { connections: 5, wait: Duration::from_secs(120), ..Limits::default() };
    let estate = Estate::with(limits).await;
    let mut own = Vec::new();
    for n in 0..10 {
        let tenant = estate.town.db.tenant(&format!("own{n}")).await;
        own.push((estate.dedicated(&tenant).await, estate.context(&tenant).await));
    }
    let root = RootKey::from_base64(ROOT_KEY).expect("32 bytes");
    let (mut ids, mut urls) = (Vec::new(), Vec::new());
    for n in 0..10_000 {
        let tenant: TenantId = format!("t{n:05}").parse().expect("an id");
        let url = Redacted::new(format!("postgres://reeve_worker:secret-{n}@db-{n}.internal:5432/tenant"));
        // As a release before the keystore sealed them: ten thousand keys are not what this is about.
        let place = Place { tenant: &tenant, table: "placements", column: "url_sealed", row: "1" };
        urls.push(root.seal(&place, url.reveal().as_bytes(), &mut rand::rng()).expect("sealed"));
        ids.push(tenant);
    }
    sqlx::query(
        "WITH made AS (INSERT INTO reeve.tenants (id, name, placement) SELECT t, t, 'dedicated' FROM unnest($1) t)
         INSERT INTO reeve.placements (tenant_id, url_sealed, epoch, region, settled)
         SELECT t, u, 1, 'default', true FROM unnest($1, $2) AS x (t, u)",
    )
    .bind(ids.iter().map(|id| id.as_str().to_owned()).collect::<Vec<_>>())
    .bind(&urls)
    .execute(&estate.town.db.admin)
    .await
    .expect("registered");
    // All of them pass through the directory, as their jobs would bring them.
    let before = resident();
    for id in &ids {
        estate.directory.entry(id).await.expect("an entry");
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < 20_000_000, "{grown} bytes for ten thousand entries");
    assert_eq!(estate.databases.open_connections().saturating_sub(5), 0);
    let load: Vec<_> = (0..40)
        .map(|n: usize| {
            let (directory, context) = (estate.directory.clone(), own[n % own.len()].1.clone());
            let name = own[n % own.len()].0.name.clone();
            tokio::spawn(async move {
                for _ in 0..3 {
                    let mut scope = Scope::open(&directory, &context).await.expect("a scope");
                    let here: String =
                        scope.fetch_value(sqlx::query_scalar("SELECT current_database()::text")).await.expect("a name");
                    assert_eq!(here, name);
                }
            })
        })
        .collect();
    let names: Vec<_> = own.iter().map(|(db, _)| db.name.clone()).collect();
    let mut earlier = BTreeSet::new();
    while load.iter().any(|task| !task.is_finished()) {
        let backends: Vec<i32> = sqlx::query_scalar(
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'reeve-dedicated' AND datname = ANY ($1)",
        )
        .bind(&names)
        .fetch_all(&estate.town.db.admin)
        .await
        .expect("pg_stat_activity");
        let now: BTreeSet<_> = backends.into_iter().collect();
        // Open at both looks, so open all the time between: one that is saying goodbye counts once.
        assert!(now.intersection(&earlier).count() <= 5, "{} connections", now.len());
        earlier = now;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for task in load {
        task.await.expect("no panic");
    }
    assert!(estate.databases.known_databases() <= 10, "{}", estate.databases.known_databases());
}
