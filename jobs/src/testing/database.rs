//! A fresh, migrated database for each test, copied from a template.
//!
//! `REEVE_TEST_ADMIN_URL` names a cluster that tests may fill (`./ops/test` and `reeve-dev test-cluster` set it). The
//! first test makes the template, others wait for it; each test then gets a copy in some tens of milliseconds. Databases
//! are dropped by [`TestDatabase::drop_now`], and otherwise go with the throw-away cluster.
use std::str::FromStr;

use sqlx::{Connection, Executor, PgConnection, PgPool, postgres::PgConnectOptions};
use uuid::Uuid;

use crate::{
    program,
    tenant::{Proof, TenantContext, TenantId},
};

/// Set by `./ops/test mutants`: the migrations are read from this directory, and the cluster is its mutant's alone.
pub(super) const MIGRATIONS: &str = "REEVE_TEST_MIGRATIONS";
/// Roles are shared by the whole cluster; tests log in to them with this password.
pub(super) const PASSWORD: &str = "test";
const ROLES: [&str; 4] = ["reeve_app", "reeve_worker", "reeve_scheduler", "reeve_ops"];

/// See the module's head.
#[derive(Debug, Clone)]
pub struct TestDatabase {
    pub name: String,
    admin_options: PgConnectOptions,
    /// As the cluster's superuser: row-level security does not bind it. For arranging and looking only.
    pub admin: PgPool,
}

pub(super) fn cluster() -> PgConnectOptions {
    let url = std::env::var("REEVE_TEST_ADMIN_URL").unwrap_or_else(|_| {
        panic!("REEVE_TEST_ADMIN_URL is not set: run `./ops/test`, or `reeve-dev test-cluster -- cargo nextest run`")
    });
    PgConnectOptions::from_str(&url).unwrap_or_else(|error| panic!("REEVE_TEST_ADMIN_URL: {error}"))
}

impl TestDatabase {
    /// A migrated database of its own.
    pub async fn new() -> Self {
        Self::on(cluster()).await
    }

    /// A migrated database on another server, as its superuser: for tests that kill theirs.
    pub async fn on(server: PgConnectOptions) -> Self {
        let mut admin = PgConnection::connect_with(&server).await.expect("the test cluster answers");
        let template = template(&mut admin, &server).await;
        Self::copy(&mut admin, server, &template).await
    }

    /// A database without any of Reeve's schema; the roles are there, as in every database of the cluster.
    pub async fn empty() -> Self {
        let mut admin = PgConnection::connect_with(&cluster()).await.expect("the test cluster answers");
        // For the roles, which belong to the cluster, and their passwords.
        template(&mut admin, &cluster()).await;
        Self::copy(&mut admin, cluster(), "template1").await
    }

    async fn copy(admin: &mut PgConnection, server: PgConnectOptions, template: &str) -> Self {
        let name = format!("reeve_test_{}", Uuid::now_v7().simple());
        execute(admin, format!("CREATE DATABASE {name} TEMPLATE {template}")).await;
        let admin_options = server.database(&name);
        let admin = program::db::pool(admin_options.clone(), 5).await.expect("a copy");
        Self { name, admin_options, admin }
    }

    /// Connection options of the cluster's superuser in this database.
    pub fn admin_options(&self) -> &PgConnectOptions {
        &self.admin_options
    }

    /// Connection options of one of the program roles, or of any other role with the tests' password.
    pub fn options(&self, role: &str) -> PgConnectOptions {
        self.admin_options.clone().username(role).password(PASSWORD)
    }

    /// A pool of a program role, made by the one pool constructor.
    pub async fn pool(&self, role: &str) -> PgPool {
        program::db::pool(self.options(role), 10).await.expect("the role may connect")
    }

    /// The URL of a program role, as it would stand in a configuration.
    pub fn url(&self, role: &str) -> String {
        url_of(&self.admin_options, role, &self.name)
    }

    /// The superuser's URL of this database.
    pub fn admin_url(&self) -> String {
        let url = std::env::var("REEVE_TEST_ADMIN_URL").unwrap_or_default();
        let (base, query) = url.split_once('?').map_or((url.as_str(), String::new()), |(b, q)| (b, format!("?{q}")));
        let base = base.rsplit_once('/').map_or(base, |(b, _)| b);
        format!("{base}/{}{query}", self.name)
    }

    /// Registers a tenant and returns its id.
    pub async fn tenant(&self, id: &str) -> TenantId {
        sqlx::query("-- testing.tenant\nSELECT reeve.register_tenant($1, 'Tenant ' || $1)")
            .bind(id)
            .execute(&self.admin)
            .await
            .expect("a tenant");
        id.parse().expect("a tenant id")
    }

    /// Proof for a tenant that no job was claimed of: what `reeve.open_session` gives, without its audit entry.
    pub async fn proof(&self, tenant: &TenantId) -> Proof {
        let text: String = sqlx::query_scalar(
            "-- testing.proof
            SELECT h.head || '/' || reeve.context_mac(k.inner_pad, k.outer_pad, h.head, $1)
            FROM reeve.context_keys k CROSS JOIN LATERAL (
              SELECT reeve.context_head('s', s, s, (extract(epoch FROM now()) + 3600)::bigint, k.kid) AS head
              FROM gen_random_uuid() s) h
            ORDER BY k.kid DESC LIMIT 1",
        )
        .bind(tenant.as_str())
        .fetch_one(&self.admin)
        .await
        .expect("a key");
        Proof::new(&text)
    }

    /// A context as a job of this tenant would have it, with proof that the database honours.
    pub async fn context(&self, tenant: &TenantId) -> TenantContext {
        let region: String = sqlx::query_scalar("-- testing.region\nSELECT region FROM reeve.tenants WHERE id = $1")
            .bind(tenant.as_str())
            .fetch_one(&self.admin)
            .await
            .expect("the tenant is registered");
        TenantContext::new(tenant.clone(), region, self.proof(tenant).await)
    }

    /// Lets a transaction of the worker's login speak for a tenant, past `Scope`.
    pub async fn hold(&self, tx: &mut PgConnection, tenant: &TenantId) {
        let proof = self.proof(tenant).await.into_secret_text();
        sqlx::query(
            "-- testing.hold\nSELECT set_config('reeve.tenant_id', $1, true), set_config('reeve.context', $2, true)",
        )
        .bind(tenant.as_str())
        .bind(proof)
        .execute(tx)
        .await
        .expect("a context");
    }

    /// Drops the database, cutting whoever is still connected.
    pub async fn drop_now(self) {
        self.admin.close().await;
        let mut admin = PgConnection::connect_with(&cluster()).await.expect("the test cluster answers");
        execute(&mut admin, format!("DROP DATABASE {} WITH (FORCE)", self.name)).await;
    }
}

/// The URL of a role with the tests' password in a database of this server.
pub(super) fn url_of(server: &PgConnectOptions, role: &str, database: &str) -> String {
    let port = server.get_port();
    match server.get_socket() {
        Some(dir) => {
            let dir = dir.display().to_string().replace('/', "%2F");
            format!("postgres://{role}:{PASSWORD}@localhost:{port}/{database}?host={dir}")
        }
        None => format!("postgres://{role}:{PASSWORD}@{}:{port}/{database}", server.get_host()),
    }
}

/// The template of this build's schema, made once a cluster. Its name carries the migrations' checksum, so another
/// build's template is never taken.
async fn template(admin: &mut PgConnection, server: &PgConnectOptions) -> String {
    let name = format!("reeve_template_{:016x}", program::migrate::fingerprint());
    // One maker at a time; the lock goes with the connection.
    execute(admin, "SELECT pg_advisory_lock(7261)".to_owned()).await;
    let exists: bool =
        sqlx::query_scalar("-- testing.template_exists\nSELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)")
            .bind(&name)
            .fetch_one(&mut *admin)
            .await
            .expect("pg_database");
    if !exists {
        let draft = format!("{name}_draft");
        execute(admin, format!("DROP DATABASE IF EXISTS {draft}")).await;
        execute(admin, format!("CREATE DATABASE {draft}")).await;
        let mut inside = PgConnection::connect_with(&server.clone().database(&draft)).await.expect("the draft");
        migrate(&mut inside).await;
        for role in ROLES {
            execute(&mut inside, format!("ALTER ROLE {role} PASSWORD '{PASSWORD}'")).await;
        }
        inside.close().await.expect("the draft closes");
        // Renamed only when whole: a crash leaves a draft, never half a template.
        execute(admin, format!("ALTER DATABASE {draft} RENAME TO {name}")).await;
    }
    execute(admin, "SELECT pg_advisory_unlock(7261)".to_owned()).await;
    name
}

/// Brings a test's database to this build's schema, or to the one of the directory that [`MIGRATIONS`] names.
pub async fn migrate(admin: &mut PgConnection) -> program::migrate::Migrated {
    match std::env::var_os(MIGRATIONS) {
        Some(directory) => program::migrate::run_from(directory.as_ref(), admin).await.expect("migrations"),
        None => program::migrate::run(admin).await.expect("migrations"),
    }
}

/// Names here are made by these modules from hexadecimal digits and fixed words, so they need no quoting.
pub(super) async fn execute(connection: &mut PgConnection, sql: String) {
    let shown = sql.clone();
    connection.execute(sqlx::AssertSqlSafe(sql)).await.unwrap_or_else(|error| panic!("{shown}: {error}"));
}
