//! Re-encryption: a tenant's sealed columns come under the newest version of its key while the app goes on; nothing is
//! lost, what does not open is told and left alone, and a sweep that dies goes on where it was.
mod jobs;
mod race;

use std::time::Duration;

use reeve_jobs::{
    TenantContext, TenantId,
    catalogue::{self, Catalogue, rls},
    seal::{Header, Keyring, Place, Purpose, keyring::TenantKey, text},
    tenant::Directory,
    testing::TestKeystore,
};
use reeve_worker::{
    duties::rekey::{
        RekeyError,
        ledger::{self, SweepId},
        pace::Pace,
        sealed::{self, Route, SealedTable},
        sweep::{self, Ended, Settings, Sweep},
    },
    runtime::Progress,
};
use sqlx::{AssertSqlSafe, Executor};
use tokio::time::Instant;
use uuid::Uuid;

use crate::support::{Town, until};

const NOTES: &str = "CREATE TABLE notes (org text NOT NULL, id bigint PRIMARY KEY, body bytea, memo text, doc jsonb,
  touched integer NOT NULL DEFAULT 0);
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF current_setting('reeve.rekey', true) = 'on' THEN RETURN NEW; END IF;
  NEW.touched := OLD.touched + 1;
  RETURN NEW;
END $$;
CREATE TRIGGER touch BEFORE UPDATE ON notes FOR EACH ROW EXECUTE FUNCTION touch();";

const DECLARED: &str = "[table.\"public.notes\"]
scope = { column = \"org\" }
columns = [\"org\", \"id\", \"touched\"]
column.body = { sealed = \"rv1\" }
column.memo = { sealed = \"rv1\" }
column.doc = { sealed = \"rv1\" }
";

const COLUMNS: [&str; 3] = ["body", "memo", "doc"];

/// A database with an app's table of sealed notes, and a keystore of its own.
struct Archive {
    town: Town,
    directory: Directory,
    keyring: Keyring,
    context: TenantContext,
    table: SealedTable,
}

async fn guard(town: &Town, catalogue: &Catalogue) {
    let schema = catalogue::introspect(&town.db.admin, false).await.expect("the schema");
    let script = rls::sql(catalogue, &schema).expect("a script");
    let (policies, indexes) = script.split_once("COMMIT;\n").expect("a transaction");
    town.db.admin.execute(AssertSqlSafe(format!("{policies}COMMIT;"))).await.expect("policies");
    for index in indexes.lines().filter(|line| line.starts_with("CREATE")) {
        town.db.admin.execute(AssertSqlSafe(index.to_owned())).await.expect("an index");
    }
}

async fn town_with_keys() -> Town {
    let mut town = Town::new().await;
    town.keystore = TestKeystore::new().await;
    town
}

impl Archive {
    async fn new() -> Self {
        let town = town_with_keys().await;
        town.db.admin.execute(NOTES).await.expect("the app's table");
        let catalogue = catalogue::load::text_of("catalogue.toml", DECLARED).expect("a catalogue");
        guard(&town, &catalogue).await;
        let (directory, keyring, context) = (town.directory(), town.keystore.keyring(), town.context(&town.a).await);
        let declared = sealed::declared(&catalogue).pop().expect("the table");
        let mut scope = sweep::open(&directory, &context, Route::Tenant).await.expect("a scope");
        let table = sealed::describe(&mut scope, declared).await.expect("described").expect("it can be swept");
        drop(scope);
        Self { town, directory, keyring, context, table }
    }

    fn tenant(&self) -> &TenantId {
        &self.town.a
    }

    async fn current(&self) -> std::sync::Arc<TenantKey> {
        self.keyring.current(self.tenant()).await.expect("a key")
    }

    /// Sealed for this place under the newest key.
    async fn sealed(&self, tenant: &TenantId, column: &str, id: i64, plain: &str) -> Vec<u8> {
        let row = id.to_string();
        let place = Place { tenant, table: "public.notes", column, row: &row };
        self.keyring.seal(Purpose::Field, &place, plain.as_bytes()).await.expect("sealed")
    }

    /// A note whose three columns hold `plain`.
    async fn put(&self, tenant: &TenantId, id: i64, plain: &str) {
        let body = self.sealed(tenant, "body", id, plain).await;
        let memo = text::write(&self.sealed(tenant, "memo", id, plain).await);
        let doc = text::write(&self.sealed(tenant, "doc", id, plain).await);
        sqlx::query("INSERT INTO notes (org, id, body, memo, doc) VALUES ($1, $2, $3, $4, to_jsonb($5))")
            .bind(tenant.as_str())
            .bind(id)
            .bind(body)
            .bind(memo)
            .bind(doc)
            .execute(&self.town.db.admin)
            .await
            .expect("a note");
    }

    async fn run(&self, sql: &'static str) {
        self.town.db.admin.execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    async fn body(&self, id: i64) -> Option<Vec<u8>> {
        let body = sqlx::query_scalar("SELECT body FROM notes WHERE id = $1").bind(id);
        body.fetch_optional(&self.town.db.admin).await.expect("a note").flatten()
    }

    /// The version and the plaintext of a note's columns, each of which must open where it stands.
    async fn opened(&self, tenant: &TenantId, id: i64) -> Vec<(u32, String)> {
        let (body, memo, doc): (Vec<u8>, String, String) =
            sqlx::query_as("SELECT body, memo, doc #>> '{}' FROM notes WHERE id = $1")
                .bind(id)
                .fetch_one(&self.town.db.admin)
                .await
                .expect("a note");
        let values = [body, text::read(&memo).expect("a text"), text::read(&doc).expect("a text")];
        let mut opened = Vec::new();
        for (column, value) in COLUMNS.into_iter().zip(values) {
            let row = id.to_string();
            let place = Place { tenant, table: "public.notes", column, row: &row };
            let plain = self.keyring.open(Purpose::Field, &place, &value).await.expect("it opens");
            let version = Header::read(&value).expect("a header").version;
            opened.push((version, String::from_utf8(plain.to_vec()).expect("text")));
        }
        opened
    }

    fn settings() -> Settings {
        Settings { writers_learn: Duration::ZERO, ..Settings::default() }
    }

    async fn sweep_with(&self, target: u32, settings: Settings) -> Result<Ended, RekeyError> {
        self.sweep_as(None, target, settings).await
    }

    async fn sweep_as(&self, job: Option<Uuid>, target: u32, settings: Settings) -> Result<Ended, RekeyError> {
        let sweep = Sweep {
            directory: &self.directory,
            context: &self.context,
            keyring: &self.keyring,
            table: &self.table,
            target,
            settings,
            job,
            progress: &Progress::default(),
        };
        sweep.run(Instant::now() + Duration::from_secs(600)).await
    }

    /// A whole sweep; how many values are in quarantine after it.
    async fn sweep(&self, target: u32) -> i64 {
        match self.sweep_with(target, Self::settings()).await.expect("swept") {
            Ended::Done { quarantined } => quarantined,
            paused @ Ended::Paused(_) => panic!("{paused:?}"),
        }
    }

    async fn rotate(&self) -> u32 {
        self.keyring.rotate(self.tenant()).await.expect("a new version")
    }

    async fn counters(&self) -> (i32, i64, i64, i64) {
        sqlx::query_as(
            "SELECT pass, scanned, changed, raced FROM reeve.key_sweeps ORDER BY target_version DESC LIMIT 1",
        )
        .fetch_one(&self.town.db.admin)
        .await
        .expect("a sweep")
    }

    async fn quarantine(&self) -> Vec<(String, String, String)> {
        sqlx::query_as(
            "SELECT row_key, column_name, reason FROM reeve.key_quarantine ORDER BY row_key::bigint, column_name",
        )
        .fetch_all(&self.town.db.admin)
        .await
        .expect("the quarantine")
    }
}

#[tokio::test]
async fn every_value_of_the_tenant_comes_under_the_new_version_and_nobody_elses() {
    let archive = Archive::new().await;
    let (a, b) = (archive.town.a.clone(), archive.town.b.clone());
    for id in 1..=60 {
        archive.put(&a, id, &format!("note {id}")).await;
        archive.put(&b, 1_000 + id, &format!("note {id}")).await;
    }
    archive.run("INSERT INTO notes (org, id) VALUES ('a', 61)").await;
    let of_b = archive.body(1_001).await;
    let target = archive.rotate().await;
    assert_eq!((target, archive.sweep(target).await), (2, 0));
    for id in 1..=60 {
        let plain = format!("note {id}");
        assert_eq!(archive.opened(&a, id).await, vec![(2, plain.clone()); 3]);
        assert_eq!(archive.opened(&b, 1_000 + id).await, vec![(1, plain); 3], "another tenant's stay");
    }
    assert_eq!(archive.body(1_001).await, of_b, "to the byte");
    assert_eq!(
        archive.town.count("SELECT count(*) FROM notes WHERE id = 61 AND body IS NULL AND memo IS NULL").await,
        1
    );
    assert_eq!(archive.town.count("SELECT sum(touched) FROM notes").await, 0, "the app's trigger was told");
    // A pass that moves, and one that has nothing to do.
    assert_eq!(archive.counters().await, (2, 122, 60, 0));
    // Asked again, it looks again, and finds a value that was written under the old version since.
    let (old, row) = (archive.keyring.version(&a, 1).await.expect("a key"), "1".to_owned());
    let place = Place { tenant: &a, table: "public.notes", column: "body", row: &row };
    let late = old.seal(Purpose::Field, &place, b"late", &mut rand::rng()).expect("sealed");
    sqlx::query("UPDATE notes SET body = $1 WHERE id = 1")
        .bind(late)
        .execute(&archive.town.db.admin)
        .await
        .expect("late");
    archive.sweep(target).await;
    archive.run("UPDATE reeve.key_sweeps SET job_id = gen_random_uuid()").await;
    archive.sweep(target).await;
    assert_eq!(archive.opened(&a, 1).await[0], (2, "late".to_owned()));
}

#[tokio::test]
async fn what_does_not_open_is_told_and_left_as_it_is_and_stops_nothing() {
    let archive = Archive::new().await;
    let (a, b) = (archive.town.a.clone(), archive.town.b.clone());
    for id in 1..=12 {
        archive.put(&a, id, &format!("note {id}")).await;
    }
    archive.put(&b, 100, "of b").await;
    let target = archive.rotate().await;
    // Row 12 has the newest key already, and row 11 gets its value: the right version in the wrong place.
    archive.run("DELETE FROM notes WHERE id = 12").await;
    archive.put(&a, 12, "new").await;
    archive
        .run(
            "UPDATE notes n SET body = o.body FROM notes o WHERE (n.id, o.id) IN ((1, 2), (3, 100), (11, 12));
         UPDATE notes SET body = substr(body, 1, 70) WHERE id = 4;
         UPDATE notes SET body = set_byte(body, 7, 77) WHERE id = 5;
         UPDATE notes SET body = set_byte(body, 80, get_byte(body, 80) # 1) WHERE id = 6;
         UPDATE notes SET body = 'in the clear' WHERE id = 7;
         UPDATE notes SET memo = 'in the clear' WHERE id = 8;
         UPDATE notes SET doc = '{\"in\": \"the clear\"}' WHERE id = 9;
         UPDATE notes SET body = set_byte(body, 2, 9) WHERE id = 10",
        )
        .await;
    let all = "SELECT coalesce(sum(hashtext(n::text)), 0) FROM notes n WHERE id IN (1,3,4,5,6,7,10,11)";
    let bodies = "SELECT sum(hashtext(body::text)) FROM notes WHERE id IN (1,3,4,5,6,7,10,11)";
    let (rows, before) = (archive.town.count(all).await, archive.town.count(bodies).await);
    assert_eq!(archive.sweep(target).await, 10);
    let told = |row: &str, column: &str, reason: &str| (row.to_owned(), column.to_owned(), reason.to_owned());
    let expected = [
        told("1", "body", "wrong key or wrong row"),
        told("3", "body", "wrong key or wrong row"),
        told("4", "body", "not a sealed value"),
        told("5", "body", "unknown key version"),
        told("6", "body", "damaged bytes"),
        told("7", "body", "not a sealed value"),
        told("8", "memo", "not a sealed value"),
        told("9", "doc", "not a sealed value"),
        told("10", "body", "unknown format version"),
        told("11", "body", "wrong key or wrong row"),
    ];
    assert_eq!(archive.quarantine().await, expected);
    assert_eq!(archive.town.count(bodies).await, before, "not one byte of them");
    assert_ne!(archive.town.count(all).await, rows, "the other columns of those rows were moved");
    assert_eq!(archive.opened(&a, 2).await, vec![(2, "note 2".to_owned()); 3]);
    // Repaired or gone, they leave.
    archive.run("DELETE FROM notes WHERE id IN (1, 4, 5, 6, 7, 8, 9, 10, 11)").await;
    archive.run("UPDATE reeve.key_sweeps SET job_id = gen_random_uuid()").await;
    assert_eq!(archive.sweep(target).await, 1);
    assert_eq!(archive.quarantine().await, [told("3", "body", "wrong key or wrong row")]);
}

#[tokio::test]
async fn a_row_changed_moved_deleted_or_added_under_its_hands_is_right() {
    let archive = Archive::new().await;
    let a = archive.town.a.clone();
    for id in 1..=10 {
        archive.put(&a, id, "old").await;
    }
    let (changed, added) =
        (archive.sealed(&a, "body", 5, "changed").await, archive.sealed(&a, "body", 3_000, "added").await);
    let target = archive.rotate().await;
    let mut client = archive.town.db.admin.begin().await.expect("a client");
    sqlx::query("UPDATE notes SET body = $1 WHERE id = 5").bind(changed).execute(&mut *client).await.expect("changed");
    sqlx::query("DELETE FROM notes WHERE id = 6").execute(&mut *client).await.expect("deleted");
    sqlx::query("UPDATE notes SET id = 2000 WHERE id = 7").execute(&mut *client).await.expect("moved");
    sqlx::query("INSERT INTO notes (org, id, body) VALUES ('a', 3000, $1)")
        .bind(added)
        .execute(&mut *client)
        .await
        .expect("added");
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let commit = async {
        until("the sweep waits for the client", async || archive.town.count(waits).await > 0).await;
        client.commit().await.expect("committed");
    };
    let settings = Settings { lock_timeout: Duration::from_secs(60), ..Archive::settings() };
    let (ended, ()) = tokio::join!(archive.sweep_with(target, settings), commit);
    // A value is bound to its row's key: moved without being sealed anew, it opens no more.
    assert_eq!(ended.expect("swept"), Ended::Done { quarantined: 3 });
    assert_eq!(archive.opened(&a, 5).await[0], (2, "changed".to_owned()));
    assert_eq!(archive.body(6).await, None, "nothing comes back");
    let row = "3000".to_owned();
    let place = Place { tenant: &a, table: "public.notes", column: "body", row: &row };
    let body = archive.body(3_000).await.expect("added");
    assert_eq!(Header::read(&body).expect("a header").version, 2);
    assert_eq!(archive.keyring.open(Purpose::Field, &place, &body).await.expect("opens").as_slice(), b"added");
    assert!(archive.quarantine().await.iter().all(|(row, ..)| row == "2000"));
    let (_, _, _, raced) = archive.counters().await;
    assert_eq!(raced, 3, "changed, deleted and moved");
}

#[tokio::test]
async fn rows_that_a_client_holds_for_long_are_left_to_the_next_pass() {
    let archive = Archive::new().await;
    let a = archive.town.a.clone();
    for id in 1..=3 {
        archive.put(&a, id, "held").await;
    }
    let target = archive.rotate().await;
    let mut client = archive.town.db.admin.begin().await.expect("a client");
    sqlx::query("SELECT FROM notes WHERE id = 2 FOR UPDATE").execute(&mut *client).await.expect("held");
    let settings = Settings { lock_timeout: Duration::from_millis(1), ..Archive::settings() };
    let release = async {
        let given_up = "SELECT coalesce(max(pass), 0)::bigint FROM reeve.key_sweeps";
        until("a pass ended without it", async || archive.town.count(given_up).await > 1).await;
        client.rollback().await.expect("released");
    };
    let (ended, ()) = tokio::join!(archive.sweep_with(target, settings), release);
    assert_eq!(ended.expect("swept"), Ended::Done { quarantined: 0 });
    assert_eq!(archive.opened(&a, 2).await, vec![(2, "held".to_owned()); 3]);
}

#[tokio::test]
async fn a_sweep_that_was_killed_goes_on_behind_its_last_batch() {
    let archive = Archive::new().await;
    let a = archive.town.a.clone();
    for id in 1..=90 {
        archive.put(&a, id, "kept").await;
    }
    let target = archive.rotate().await;
    // Some rows a second, so that it is killed on its way.
    let slow =
        Settings { batch: 10, pace: Pace { rows_per_sec_max: Some(100), ..Pace::default() }, ..Archive::settings() };
    let on_its_way = async || archive.town.count("SELECT coalesce(max(scanned), 0) FROM reeve.key_sweeps").await >= 20;
    tokio::select! {
        ended = archive.sweep_with(target, slow) => panic!("{ended:?}"),
        () = until("some batches", on_its_way) => {}
    }
    let (pass, scanned, ..) = archive.counters().await;
    assert!(pass == 1 && (20..90).contains(&scanned), "{scanned}");
    archive.sweep(target).await;
    // Two passes over 90 rows, whoever did them: not one row was read for a third time.
    assert_eq!(archive.counters().await, (2, 180, 90, 0));
}

#[tokio::test]
async fn two_sweeps_of_one_tenant_do_no_harm() {
    let archive = Archive::new().await;
    let a = archive.town.a.clone();
    for id in 1..=80 {
        archive.put(&a, id, "kept").await;
    }
    let target = archive.rotate().await;
    let settings = Settings { batch: 5, ..Archive::settings() };
    let to_the_end = async || {
        let mut taken_over = 0;
        loop {
            match archive.sweep_with(target, settings).await {
                Ok(Ended::Done { quarantined: 0 }) => return taken_over,
                Err(RekeyError::TakenOver) => {
                    taken_over += 1;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                other => panic!("{other:?}"),
            }
        }
    };
    // As one job: one that lost its lease and does not know it yet.
    let (one, other) = tokio::join!(to_the_end(), to_the_end());
    assert!(one + other >= 1, "the second took the first's over, and the first found out");
    for id in 1..=80 {
        assert_eq!(archive.opened(&a, id).await, vec![(2, "kept".to_owned()); 3]);
    }
}

#[tokio::test]
async fn a_sweep_is_not_done_while_a_writer_may_still_use_the_version_before() {
    let archive = Archive::new().await;
    archive.put(&archive.town.a, 1, "kept").await;
    let target = archive.rotate().await;
    let settings = Settings { writers_learn: Duration::from_secs(3_600), ..Archive::settings() };
    for _ in 0..2 {
        // All is moved, and still it is to be looked at again.
        match archive.sweep_with(target, settings).await.expect("swept") {
            Ended::Paused(wait) => assert!(wait > Duration::from_secs(3_000), "{wait:?}"),
            done @ Ended::Done { .. } => panic!("{done:?}"),
        }
    }
    assert_eq!(archive.opened(&archive.town.a, 1).await[0], (2, "kept".to_owned()));
    archive.run("UPDATE reeve.key_sweeps SET began_at = began_at - interval '2 hours'").await;
    assert_eq!(archive.sweep_with(target, settings).await.expect("swept"), Ended::Done { quarantined: 0 });
}

#[tokio::test]
async fn with_the_policies_gone_a_sweep_still_keeps_to_its_tenant() {
    let archive = Archive::new().await;
    let (a, b) = (archive.town.a.clone(), archive.town.b.clone());
    archive.put(&a, 1, "of a").await;
    archive.put(&b, 2, "of b").await;
    archive.run("ALTER TABLE notes DISABLE ROW LEVEL SECURITY").await;
    let of_b = archive.body(2).await;
    let target = archive.rotate().await;
    assert_eq!(archive.sweep(target).await, 0, "b's note is neither changed nor told of");
    assert_eq!((archive.opened(&a, 1).await[0].0, archive.body(2).await), (2, of_b));
}

#[tokio::test]
async fn a_second_job_waits_until_the_first_is_done_or_was_silent_for_long() {
    let archive = Archive::new().await;
    for id in 1..=20 {
        archive.put(&archive.town.a, id, "kept").await;
    }
    let target = archive.rotate().await;
    let sweep = |job: u128| archive.sweep_as(Some(Uuid::from_u128(job)), target, Archive::settings());
    let (one, other) = tokio::join!(sweep(1), sweep(2));
    assert_eq!([one.expect("swept"), other.expect("swept")], [Ended::Done { quarantined: 0 }; 2]);
    // Each went through: two passes and then one.
    assert_eq!(archive.counters().await, (1, 60, 20, 0));
    archive.run("UPDATE reeve.key_sweeps SET state = 'running', holder = gen_random_uuid(), updated_at = now()").await;
    tokio::select! {
        ended = sweep(3) => panic!("{ended:?}"),
        () = tokio::time::sleep(Duration::from_secs(1)) => {}
    }
    archive.run("UPDATE reeve.key_sweeps SET updated_at = now() - interval '1 hour'").await;
    assert_eq!(sweep(4).await.expect("swept"), Ended::Done { quarantined: 0 });
}

#[tokio::test]
async fn one_who_lost_a_sweep_stores_nothing_of_it() {
    let archive = Archive::new().await;
    let id = |holder| SweepId { table: "public.notes".to_owned(), target: 2, holder: Uuid::from_u128(holder) };
    let mut scope = sweep::open(&archive.directory, &archive.context, Route::Tenant).await.expect("a scope");
    let mut first = ledger::take(&mut scope, &id(1), None).await.expect("begun");
    first.scanned = 500;
    ledger::save(&mut scope, &id(1), &first).await.expect("it is the holder");
    let second = ledger::take(&mut scope, &id(2), None).await.expect("taken over");
    assert_eq!(second, first, "it goes on where the first was");
    first.scanned = 1_000;
    for lost in [
        ledger::save(&mut scope, &id(1), &first).await,
        ledger::end_pass(&mut scope, &id(1), &first, Duration::ZERO).await.map(|_| ()),
        ledger::release(&mut scope, &id(1)).await,
    ] {
        assert!(matches!(lost, Err(RekeyError::TakenOver)), "{lost:?}");
    }
    assert_eq!(ledger::take(&mut scope, &id(2), None).await.expect("its own"), second);
}
