//! A schema taken all the way, as a newcomer would: drafted, decided, checked, its rows asked, guarded and deleted from. As
//! an ordinary role that owns the tables, and with rows of two tenants; what is expected is counted by hand.
use std::collections::BTreeSet;

use sqlx::{Connection, Executor, PgConnection, PgPool};

use super::{
    Catalogue, Schema,
    check::{self, Severity},
    draft, draft_text,
    fixtures::table,
    introspect, load,
    order::{self, Action},
    rls, rows,
};
use crate::{program, testing::TestDatabase};

/// Owns the tables.
pub const OWNER: &str = "reeve_test_owner";
/// Uses them.
pub const APP: &str = "reeve_test_app";

/// How the rows of a table stand to tenants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// Each row is one tenant's.
    Own,
    /// The same, told by the row that points here: one that nothing points at yet may be made.
    Reverse,
    /// Seen by those that share it, changed by none.
    Shared,
    /// Everybody's to read.
    Same,
    /// Not granted.
    Kept,
}

/// A table, and how many rows each of the two tenants sees as its own, all see, and nobody sees. Of shared rows: how many
/// each sees, and in the last place how many there are.
pub type Expected = (&'static str, Kind, i64, i64, i64);

pub struct Proof {
    pub sql: &'static str,
    /// Rows made once, then after a line `-- each tenant` those made for each, `{t}` being its id and `{n}` 1 or 2.
    pub rows: &'static str,
    pub tenants: [&'static str; 2],
    /// Told to `init`, where it does not find it.
    pub told: Option<&'static str>,
    /// What a person must decide, all of it.
    pub decided: &'static [(&'static str, &'static str)],
    /// What a person corrects in the draft.
    pub corrected: &'static [(&'static str, &'static str)],
    /// How often `rls` refuses and says what to run first.
    pub refusals: usize,
    pub expected: &'static [Expected],
}

pub struct Proved {
    pub draft: String,
    /// The right catalogue.
    pub text: String,
    pub catalogue: Catalogue,
    pub schema: Schema,
    /// What `rls` said when it refused.
    pub refused: Vec<String>,
}

impl Proof {
    pub async fn run(&self) -> Proved {
        let db = TestDatabase::new().await;
        let owner = owned(&db).await;
        run(&owner, self.sql).await;
        let (once, each) = self.rows.split_once("-- each tenant\n").unwrap_or((self.rows, ""));
        run(&owner, once).await;
        for (tenant, n) in self.tenants.iter().zip(["1", "2"]) {
            run(&owner, &each.replace("{t}", tenant).replace("{n}", n)).await;
        }
        let mut proved = self.declared(&db, &owner).await;
        self.guarded(&db, &owner, &mut proved).await;
        self.isolated(&db, &proved.schema).await;
        self.deleted(&db, &owner, &proved).await;
        owner.close().await;
        db.drop_now().await;
        proved
    }

    /// Drafted, decided and accepted, by the rows too.
    async fn declared(&self, db: &TestDatabase, owner: &PgPool) -> Proved {
        let schema = introspect(owner, false).await.expect("a schema");
        let samples = draft::sample(owner, &schema).await;
        let told = self.told.map(table);
        let guess = draft::scopes(&schema, &samples, told.as_ref());
        let draft = draft_text::write(&schema, &samples, &guess);
        let mut text = draft.clone();
        for (name, scope) in self.decided {
            let open = format!("[table.\"{name}\"]\nscope = \"?\"\n");
            assert!(text.contains(&open), "{name} was not left to a person:\n{draft}");
            text = text.replace(&open, &format!("[table.\"{name}\"]\nscope = {scope}\n"));
        }
        assert!(!text.contains("\nscope = \"?\""), "more was left to a person:\n{text}");
        for (from, to) in self.corrected {
            assert!(text.contains(from), "{from}:\n{text}");
            text = text.replace(from, to);
        }
        let catalogue = load::text_of("catalogue.toml", &text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        let found = check::check(&catalogue, &schema);
        let errors: Vec<_> = found.iter().filter(|f| f.severity == Severity::Error).map(ToString::to_string).collect();
        assert_eq!(errors, Vec::<String>::new(), "{text}");
        let mut connection = login(db).await;
        let questions = rows::questions(&catalogue, &schema).unwrap_or_else(|error| panic!("{error}"));
        let found = rows::count(&mut connection, questions).await.unwrap_or_else(|error| panic!("{error}"));
        assert!(found.is_empty(), "{found:#?}");
        Proved { draft, text, catalogue, schema, refused: Vec::new() }
    }

    /// The script is run by the owner, after what it advised first.
    async fn guarded(&self, db: &TestDatabase, owner: &PgPool, proved: &mut Proved) {
        let script = loop {
            match rls::sql(&proved.catalogue, &proved.schema) {
                Ok(script) => break script,
                Err(error) => {
                    let said = error.to_string();
                    let starts = ["CREATE POLICY", "ALTER POLICY"];
                    let advised = said.lines().map(str::trim).filter(|l| starts.iter().any(|s| l.starts_with(s)));
                    let advised: Vec<_> = advised.collect();
                    assert!(!advised.is_empty() && proved.refused.len() < self.refusals, "{said}");
                    run(owner, &advised.join("\n")).await;
                    proved.schema = introspect(owner, false).await.expect("a schema");
                    proved.refused.push(said);
                }
            }
        };
        assert_eq!(proved.refused.len(), self.refusals, "{:#?}", proved.refused);
        for statement in statements(&script) {
            run(owner, &statement).await;
        }
        let granted = "SELECT DISTINCT table_schema || '.' || table_name FROM information_schema.role_table_grants
             WHERE grantee = 'reeve_worker' AND privilege_type = 'SELECT' AND table_schema <> 'reeve'";
        let granted: Vec<String> = sqlx::query_scalar(granted).fetch_all(&db.admin).await.expect("grants");
        let open = self.expected.iter().filter(|e| e.1 != Kind::Kept).map(|e| e.0.to_owned());
        assert_eq!(granted.into_iter().collect::<BTreeSet<_>>(), open.collect(), "what the worker was granted");
    }

    async fn isolated(&self, db: &TestDatabase, schema: &Schema) {
        let mut worker = PgConnection::connect_with(&db.options("reeve_worker")).await.expect("the worker");
        for expected in self.expected {
            let (name, kind, own, everyones, _) = *expected;
            let from = from(schema, name);
            if kind == Kind::Kept {
                let denied = texts(&mut worker, &format!("SELECT to_jsonb(t)::text FROM {from} t")).await;
                assert!(denied.is_err(), "{name} is not granted");
                continue;
            }
            let sql = format!("SELECT to_jsonb(t)::text FROM {from} t");
            let nobodys = texts(&mut worker, &sql).await.unwrap_or_else(|error| panic!("{name}: {error}")).len();
            assert_eq!(count(nobodys), everyones, "{name} without a tenant");
            let mut seen = Vec::new();
            for tenant in self.tenants {
                let mut tx = speak_for(db, &mut worker, tenant).await;
                let rows = texts(&mut tx, &sql).await.unwrap_or_else(|error| panic!("{name}: {error}"));
                assert_eq!(count(rows.len()), own + everyones, "{name} as {tenant}");
                seen.push(rows.into_iter().collect::<BTreeSet<_>>());
            }
            if kind != Kind::Shared {
                let both = seen[0].intersection(&seen[1]).count();
                assert_eq!(count(both), everyones, "{name}: seen by both");
            }
            // Read with its heirs, it shows theirs as its own policy does.
            let all = format!("SELECT to_jsonb(t)::text FROM {} t", table(name).sql());
            for (tenant, theirs) in [(self.tenants[0], &seen[1]), (self.tenants[1], &seen[0])] {
                let mut tx = speak_for(db, &mut worker, tenant).await;
                let rows = texts(&mut tx, &all).await.unwrap_or_else(|error| panic!("{name}: {error}"));
                let heirs = schema.tables[&table(name)].has_heirs;
                assert!((count(rows.len()) > own + everyones) == heirs, "{name}: {rows:?}");
                let theirs = rows.iter().filter(|row| theirs.contains(*row)).count();
                assert!(kind == Kind::Shared || count(theirs) == everyones, "{name}: the other tenant's");
            }
            for (tenant, theirs) in [(self.tenants[0], &seen[1]), (self.tenants[1], &seen[0])] {
                self.unchangeable(db, &mut worker, schema, expected, tenant, theirs).await;
            }
        }
    }

    /// Changes its own rows and no others; a row of the other tenant can neither be made nor taken over.
    async fn unchangeable(
        &self,
        db: &TestDatabase,
        worker: &mut PgConnection,
        schema: &Schema,
        expected: &Expected,
        tenant: &str,
        theirs: &BTreeSet<String>,
    ) {
        let (name, kind, own, ..) = *expected;
        let from = from(schema, name);
        let written = |c: &&super::introspect::Column| !c.generated && !c.identity;
        let columns = &schema.tables[&table(name)].columns;
        let first = super::name::ident(&columns.iter().find(written).expect("a column").name);
        let mut tx = speak_for(db, worker, tenant).await;
        let changed = execute(&mut tx, &format!("UPDATE {from} SET {first} = {first}")).await;
        if matches!(kind, Kind::Shared | Kind::Same) {
            assert!(changed.is_err(), "{name} may only be read");
            return;
        }
        assert_eq!(changed.unwrap_or_else(|error| panic!("{name}: {error}")), own.cast_unsigned(), "{name}: changed");
        tx.rollback().await.expect("a rollback");
        let Some(row) = theirs.iter().next_back().filter(|_| kind == Kind::Own) else { return };
        let target = table(name).sql();
        let names: Vec<_> = columns.iter().filter(|c| !c.generated).map(|c| c.name.as_str()).collect();
        let names = super::name::idents(&names);
        let sql = format!(
            "INSERT INTO {target} ({names}) OVERRIDING SYSTEM VALUE SELECT {names} FROM jsonb_populate_record(NULL::{target}, {}::jsonb)",
            super::name::literal(row)
        );
        let mut tx = speak_for(db, worker, tenant).await;
        let made = execute(&mut tx, &sql).await.expect_err(name).to_string();
        assert!(made.contains("row-level security"), "{name}: {made}");
    }

    async fn deleted(&self, db: &TestDatabase, owner: &PgPool, proved: &Proved) {
        let [gone, stays] = self.tenants;
        let id = gone.replace("''", "'").parse().expect("a tenant's id");
        let mut plan = order::plan(&proved.catalogue, &proved.schema).unwrap_or_else(|error| panic!("{error}"));
        order::count(owner, &id, &mut plan).await.expect("counts");
        let before = self.seen(db, &proved.schema, stays).await;
        let mut connection = login(db).await;
        let mut tx = connection.begin().await.expect("a transaction");
        for step in &plan.steps {
            let sql = step.sql.replace("$1", &format!("'{gone}'"));
            let changed = execute(&mut tx, &sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
            let known = step.rows.is_none_or(|rows| rows.cast_unsigned() == changed || step.action == Action::Remember);
            assert!(known, "{} changed {changed}, {:?} were counted", step.sql, step.rows);
        }
        // Foreign keys that wait for the end are looked at here.
        tx.commit().await.expect("a commit");
        for (name, kind, own, everyones, rest) in self.expected {
            let sql = format!("SELECT count(*) FROM {}", from(&proved.schema, name));
            let left: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(&db.admin).await.expect("a count");
            let kept = match kind {
                Kind::Own | Kind::Reverse => own + everyones + rest,
                Kind::Same => *everyones,
                Kind::Shared | Kind::Kept => *rest,
            };
            assert_eq!(left, kept, "{name} after the deletion");
        }
        assert_eq!(self.seen(db, &proved.schema, stays).await, before, "the other tenant's rows");
        let none = self.seen(db, &proved.schema, gone).await;
        let owned = self.expected.iter().filter(|e| matches!(e.1, Kind::Own | Kind::Reverse));
        for (name, _, _, everyones, _) in owned {
            assert_eq!(count(none.iter().filter(|(of, _)| of == name).count()), *everyones, "{name}: left behind");
        }
    }

    /// All that the worker sees of the granted tables as that tenant.
    async fn seen(&self, db: &TestDatabase, schema: &Schema, tenant: &str) -> BTreeSet<(&'static str, String)> {
        let mut worker = PgConnection::connect_with(&db.options("reeve_worker")).await.expect("the worker");
        let mut tx = speak_for(db, &mut worker, tenant).await;
        let mut all = BTreeSet::new();
        for (name, ..) in self.expected.iter().filter(|e| e.1 != Kind::Kept) {
            let sql = format!("SELECT to_jsonb(t)::text FROM {} t", from(schema, name));
            let rows = texts(&mut tx, &sql).await.unwrap_or_else(|error| panic!("{name}: {error}"));
            all.extend(rows.into_iter().map(|row| (*name, row)));
        }
        all
    }
}

impl Proved {
    /// A piece of the right catalogue, what stands there instead, and what `check` says about it.
    pub fn faults(&self, mistakes: &[(&str, &str, &str)]) {
        for (from, to, says) in mistakes {
            assert!(self.text.contains(from), "{from}:\n{}", self.text);
            let text = self.text.replacen(from, to, 1);
            let catalogue = load::text_of("catalogue.toml", &text).unwrap_or_else(|error| panic!("{error}"));
            let found: Vec<_> = check::check(&catalogue, &self.schema).iter().map(ToString::to_string).collect();
            assert!(found.iter().any(|f| f.starts_with("catalogue.toml:") && f.contains(says)), "{says}: {found:#?}");
        }
    }
}

/// A pool of the role that owns the app's tables: no superuser, and in `reeve_app` as the documents say.
pub async fn owned(db: &TestDatabase) -> PgPool {
    let roles = format!(
        "SELECT pg_advisory_lock(7262);
         DO $$ BEGIN
           IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{OWNER}') THEN
             CREATE ROLE {OWNER} LOGIN PASSWORD 'test'; CREATE ROLE {APP} LOGIN PASSWORD 'test'; GRANT reeve_app TO {OWNER};
           END IF;
         END $$;
         SELECT pg_advisory_unlock(7262);
         GRANT CREATE ON DATABASE {} TO {OWNER}; GRANT CREATE, USAGE ON SCHEMA public TO {OWNER};",
        db.name
    );
    let mut admin = PgConnection::connect_with(db.admin_options()).await.expect("the administrator");
    admin.execute(sqlx::AssertSqlSafe(roles)).await.unwrap_or_else(|error| panic!("{error}"));
    program::db::pool(db.options(OWNER), 2).await.expect("the owner")
}

async fn login(db: &TestDatabase) -> PgConnection {
    PgConnection::connect_with(&db.options(OWNER)).await.expect("the owner")
}

pub async fn run(owner: &PgPool, sql: &str) {
    owner.execute(sqlx::AssertSqlSafe(sql.to_owned())).await.unwrap_or_else(|error| panic!("{error}\n{sql}"));
}

/// The transaction as one string, then each index alone, as psql would send them.
pub fn statements(script: &str) -> Vec<String> {
    let (first, rest) = script.split_once("COMMIT;\n").expect("a transaction");
    let rest = rest.lines().filter(|line| line.starts_with("CREATE")).map(str::to_owned);
    std::iter::once(format!("{first}COMMIT;")).chain(rest).collect()
}

pub async fn speak_for<'c>(
    db: &TestDatabase,
    worker: &'c mut PgConnection,
    tenant: &str,
) -> sqlx::Transaction<'c, sqlx::Postgres> {
    let mut tx = worker.begin().await.expect("a transaction");
    db.hold(&mut tx, &tenant.replace("''", "'").parse().expect("an id")).await;
    tx
}

fn from(schema: &Schema, name: &str) -> String {
    schema.tables[&table(name)].from_sql()
}

fn count(n: usize) -> i64 {
    i64::try_from(n).expect("few rows")
}

async fn texts(connection: &mut PgConnection, sql: &str) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql.to_owned())).fetch_all(connection).await
}

async fn execute(connection: &mut PgConnection, sql: &str) -> Result<u64, sqlx::Error> {
    Ok(connection.execute(sqlx::AssertSqlSafe(sql.to_owned())).await?.rows_affected())
}
