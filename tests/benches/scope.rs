//! Bench `scope`: what tenancy costs. The sample app's biggest table, read by key and by tenant, bare and through a `Scope`;
//! the opening of a scope beside a bare transaction; and the directory's memory.
//!
//! `CMD CONTACTS ROUNDS`, with `DATABASE_URL` (a superuser's, of an empty database) in the environment. Each round does
//! everything once, in turns, so that a slow minute hits all alike; printed are medians, `name=value` a line, in
//! microseconds a statement as the program sees it. Three variants of each read:
//!
//! - `bare`: the superuser, whom no policy binds, with the same statement
//! - `rls`: the worker in a scope, contexts not verified (`reeve.settings.context_verified`)
//! - `proof`: the same with the context verified, as it is by default
use std::{
    collections::BTreeMap,
    io::Write,
    str::FromStr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use reeve_dev::crm::{self, Shape};
use reeve_jobs::{
    TenantContext, TenantId,
    catalogue::{draft, draft_text, introspect, load, rls},
    program::{db, migrate},
    tenant::{Directory, Proof, Scope, TenantRow},
};
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool, postgres::PgConnectOptions};

const TENANTS: u32 = 20;
/// Statements of one kind in a row.
const KEYS: i64 = 1_000;
const SCANS: usize = 20;
const OPENINGS: usize = 300;

const BY_KEY: &str = "SELECT workspace_id::text AS tenant_id, length(body)::bigint AS n FROM crm.messages
                      WHERE workspace_id = $1 AND id = $2";
const BY_TENANT: &str = "SELECT workspace_id::text AS tenant_id, sum(length(body))::bigint AS n FROM crm.messages
                         WHERE workspace_id = $1 GROUP BY workspace_id";

#[derive(sqlx::FromRow)]
struct Message {
    tenant_id: String,
    n: i64,
}

impl TenantRow for Message {
    fn tenant_id(&self) -> &str {
        &self.tenant_id
    }
}

struct Bench {
    admin: PgPool,
    directory: Directory,
    tenant: TenantId,
    workspace: i64,
    first_message: i64,
    proof: Proof,
    spent: BTreeMap<&'static str, Vec<Duration>>,
}

impl Bench {
    async fn prepare(contacts: u32) -> Result<Self> {
        let url = std::env::var("DATABASE_URL").context("DATABASE_URL is not set")?;
        let options = PgConnectOptions::from_str(&url).context("DATABASE_URL")?;
        let mut one = PgConnection::connect_with(&options).await.context("DATABASE_URL")?;
        migrate::run(&mut one).await?;
        let admin = db::pool(options.clone(), 2).await?;
        let loaded = crm::load(&admin, Shape { tenants: TENANTS, rows: contacts, seed: 1 }).await?;
        sqlx::raw_sql(AssertSqlSafe(policies(&admin).await?)).execute(&mut one).await.context("the policies")?;
        sqlx::raw_sql("VACUUM ANALYZE crm.messages").execute(&mut one).await?;
        let tenant: TenantId = loaded.tenants[TENANTS as usize / 2].id.parse()?;
        let workspace: i64 = tenant.as_str().parse().context("the sample's ids are numbers")?;
        let first_message = sqlx::query_scalar("SELECT min(id) FROM crm.messages WHERE workspace_id = $1")
            .bind(workspace)
            .fetch_one(&admin)
            .await?;
        let proof: String = sqlx::query_scalar("SELECT reeve.open_session($1, 'bench', 'to measure', 60)")
            .bind(tenant.as_str())
            .fetch_one(&admin)
            .await?;
        let proof = Proof::new(&proof);
        let directory = Directory::new(db::pool(options.options([("role", "reeve_worker")]), 2).await?);
        Ok(Self { admin, directory, tenant, workspace, first_message, proof, spent: BTreeMap::new() })
    }

    fn note(&mut self, name: &'static str, spent: Duration, statements: u32) {
        self.spent.entry(name).or_default().push(spent / statements);
    }

    fn context(&self, proof: Proof) -> TenantContext {
        TenantContext::new(self.tenant.clone(), "default", proof)
    }

    async fn verify(&self, on: bool) -> Result<()> {
        sqlx::query("UPDATE reeve.settings SET context_verified = $1").bind(on).execute(&self.admin).await?;
        Ok(())
    }

    async fn reads_in_scope(&mut self, names: [&'static str; 2], proof: Proof) -> Result<()> {
        let mut scope = Scope::open(&self.directory, &self.context(proof)).await?;
        let begun = Instant::now();
        for i in 0..KEYS {
            let query = sqlx::query_as::<_, Message>(BY_KEY).bind(self.workspace).bind(self.first_message + i);
            scope.fetch_optional(query).await?;
        }
        self.note(names[0], begun.elapsed(), KEYS as u32);
        let begun = Instant::now();
        for _ in 0..SCANS {
            let sum = scope.fetch_optional(sqlx::query_as::<_, Message>(BY_TENANT).bind(self.workspace)).await?;
            if sum.is_none_or(|sum| sum.n == 0) {
                bail!("the tenant has no messages: nothing was measured");
            }
        }
        self.note(names[1], begun.elapsed(), SCANS as u32);
        Ok(())
    }

    async fn reads_bare(&mut self) -> Result<()> {
        #[allow(clippy::disallowed_methods, reason = "the bare transaction that a scope is compared with")]
        let mut tx = self.admin.begin().await?;
        let begun = Instant::now();
        for i in 0..KEYS {
            let query = sqlx::query_as::<_, Message>(BY_KEY).bind(self.workspace).bind(self.first_message + i);
            query.fetch_optional(&mut *tx).await?;
        }
        let keys = begun.elapsed();
        let begun = Instant::now();
        for _ in 0..SCANS {
            sqlx::query_as::<_, Message>(BY_TENANT).bind(self.workspace).fetch_optional(&mut *tx).await?;
        }
        let scans = begun.elapsed();
        drop(tx);
        self.note("key_bare", keys, KEYS as u32);
        self.note("tenant_bare", scans, SCANS as u32);
        Ok(())
    }

    /// One statement in a transaction of its own: BEGIN, the statement, COMMIT, against a scope that is opened, used and
    /// committed.
    async fn openings(&mut self) -> Result<()> {
        let begun = Instant::now();
        for i in 0..OPENINGS as i64 {
            #[allow(clippy::disallowed_methods, reason = "the bare transaction that a scope is compared with")]
            let mut tx = self.admin.begin().await?;
            let query = sqlx::query_as::<_, Message>(BY_KEY).bind(self.workspace).bind(self.first_message + i);
            query.fetch_optional(&mut *tx).await?;
            tx.commit().await?;
        }
        self.note("transaction_bare", begun.elapsed(), OPENINGS as u32);
        let context = self.context(self.proof.clone());
        let begun = Instant::now();
        for i in 0..OPENINGS as i64 {
            let mut scope = Scope::open(&self.directory, &context).await?;
            let query = sqlx::query_as::<_, Message>(BY_KEY).bind(self.workspace).bind(self.first_message + i);
            scope.fetch_optional(query).await?;
            scope.commit().await?;
        }
        self.note("transaction_scope", begun.elapsed(), OPENINGS as u32);
        Ok(())
    }

    async fn round(&mut self) -> Result<()> {
        self.reads_bare().await?;
        self.verify(false).await?;
        self.reads_in_scope(["key_rls", "tenant_rls"], Proof::none()).await?;
        self.verify(true).await?;
        self.reads_in_scope(["key_proof", "tenant_proof"], self.proof.clone()).await?;
        self.openings().await
    }
}

/// What an operator would run: the drafted catalogue's own policies.
async fn policies(admin: &PgPool) -> Result<String> {
    let schema = introspect::introspect(admin, false).await?;
    let samples = draft::sample(admin, &schema).await;
    let guess = draft::scopes(&schema, &samples, None);
    // What the draft leaves to a person: here it is what is the same for every tenant.
    let drafted = draft_text::write(&schema, &samples, &guess).replace("scope = \"?\"", "scope = \"reference\"");
    let catalogue = load::text_of("drafted", &drafted)?;
    Ok(rls::sql(&catalogue, &schema)?.replace(" CONCURRENTLY", ""))
}

#[tokio::main]
async fn main() -> Result<()> {
    reeve_jobs::program::install_tls_provider();
    reeve_jobs::program::telemetry::start()?;
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [contacts, rounds] = args.as_slice() else { bail!("usage: CMD CONTACTS ROUNDS") };
    let mut bench = Bench::prepare(contacts.parse().context("CONTACTS")?).await?;
    let messages: i64 = sqlx::query_scalar("SELECT count(*) FROM crm.messages").fetch_one(&bench.admin).await?;
    for _ in 0..rounds.parse::<usize>().context("ROUNDS")? {
        bench.round().await?;
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "messages={messages}")?;
    for (name, spent) in &mut bench.spent {
        spent.sort_unstable();
        writeln!(out, "{name}={:.1}", spent[spent.len() / 2].as_secs_f64() * 1e6)?;
    }
    Ok(())
}
