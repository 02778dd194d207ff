//! The writers' race: clients change rows of all kinds of isolation while the sweep goes over them and is killed.
//!
//! Each client owns a share of the rows and counts, in what is sealed, how often it wrote each; so an update that is lost
//! is a row whose count is behind. `REEVE_TEST_REKEY_ROWS` sets how many rows there are.
use std::{collections::HashMap, sync::Arc, time::Duration};

use rand::RngExt;
use reeve_jobs::{
    TenantId,
    seal::{Header, Keyring, Place, Purpose},
};
use reeve_scheduler::rescuer;
use reeve_worker::duties::rekey::{
    renew::{Renewer, Turned},
    rows::{Statements, Stored},
    sealed::row_of,
    sweep::{self, Ended, Settings},
};
use sqlx::{PgPool, postgres::PgConnection};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::Archive;
use crate::support::{Town, until};

const CLIENTS: i64 = 3;

fn rows() -> i64 {
    std::env::var("REEVE_TEST_REKEY_ROWS").ok().and_then(|rows| rows.parse().ok()).unwrap_or(20_000)
}

/// One of the app's clients: it reads a note, and writes it with the count that it has now.
struct Client {
    pool: PgPool,
    keyring: Keyring,
    tenant: TenantId,
    rows: i64,
    share: i64,
    isolation: &'static str,
}

impl Client {
    /// Writes until it is told to stop. How often it wrote each row.
    async fn write(self, stop: CancellationToken) -> HashMap<i64, u64> {
        let mut counts = HashMap::new();
        while !stop.is_cancelled() {
            let id = rand::rng().random_range(0..self.rows / CLIENTS) * CLIENTS + self.share;
            let count = counts.get(&id).copied().unwrap_or(0) + 1;
            let mut connection = self.pool.acquire().await.expect("a connection");
            match self.one(&mut connection, id, count).await {
                Ok(()) => {
                    counts.insert(id, count);
                }
                Err(error) => {
                    // Only a snapshot can be too old for its row, and only at this level.
                    let code = error.as_database_error().and_then(|db| db.code().map(|code| code.to_string()));
                    assert_eq!((self.isolation, code.as_deref()), ("REPEATABLE READ", Some("40001")), "{error}");
                    sqlx::query("ROLLBACK").execute(&mut *connection).await.expect("rolled back");
                }
            }
        }
        counts
    }

    async fn one(&self, connection: &mut PgConnection, id: i64, count: u64) -> sqlx::Result<()> {
        let begin = format!("BEGIN ISOLATION LEVEL {}", self.isolation);
        sqlx::query(sqlx::AssertSqlSafe(begin)).execute(&mut *connection).await?;
        let stored: Vec<u8> =
            sqlx::query_scalar("SELECT body FROM notes WHERE id = $1").bind(id).fetch_one(&mut *connection).await?;
        let row = id.to_string();
        let place = Place { tenant: &self.tenant, table: "public.notes", column: "body", row: &row };
        self.keyring.open(Purpose::Field, &place, &stored).await.expect("it opens at every moment");
        let sealed = self.keyring.seal(Purpose::Field, &place, &count.to_be_bytes()).await.expect("sealed");
        let update = sqlx::query("UPDATE notes SET body = $2 WHERE id = $1").bind(id).bind(sealed);
        update.execute(&mut *connection).await?;
        sqlx::query("COMMIT").execute(connection).await?;
        Ok(())
    }
}

async fn filled(rows: i64) -> Archive {
    let archive = Archive::new().await;
    let key = archive.current().await;
    for chunk in (0..rows).collect::<Vec<_>>().chunks(5_000) {
        let seal = |id: &i64| {
            let row = id.to_string();
            let place = Place { tenant: archive.tenant(), table: "public.notes", column: "body", row: &row };
            key.seal(Purpose::Field, &place, &0_u64.to_be_bytes(), &mut rand::rng()).expect("sealed")
        };
        sqlx::query("INSERT INTO notes (org, id, body) SELECT 'a', v.* FROM unnest($1::bigint[], $2::bytea[]) v")
            .bind(chunk)
            .bind(chunk.iter().map(seal).collect::<Vec<_>>())
            .execute(&archive.town.db.admin)
            .await
            .expect("notes");
    }
    archive.run("ANALYZE notes").await;
    archive
}

/// Lets clients write while `sweep` runs. How often they wrote, and how many of those updates are not there any more.
async fn race(archive: &Archive, rows: i64, sweep: impl Future<Output = ()>) -> (u64, u64) {
    let before = bodies(archive).await.len();
    let stop = CancellationToken::new();
    let clients: Vec<_> = ["READ COMMITTED", "READ COMMITTED", "REPEATABLE READ"]
        .into_iter()
        .zip(0..CLIENTS)
        .map(|(isolation, share)| {
            let client = Client {
                pool: archive.town.db.admin.clone(),
                keyring: archive.keyring.clone(),
                tenant: archive.tenant().clone(),
                rows,
                share,
                isolation,
            };
            tokio::spawn(client.write(stop.clone()))
        })
        .collect();
    sweep.await;
    stop.cancel();
    let mut meant = HashMap::new();
    for client in clients {
        meant.extend(client.await.expect("no panic"));
    }
    let after = bodies(archive).await;
    assert_eq!(before, after.len());
    let mut lost = 0;
    for (id, wrote) in &meant {
        lost += wrote.saturating_sub(open(archive, *id, &after[id]).await);
    }
    (meant.values().sum(), lost)
}

async fn bodies(archive: &Archive) -> HashMap<i64, Vec<u8>> {
    let all: Vec<(i64, Vec<u8>)> =
        sqlx::query_as("SELECT id, body FROM notes").fetch_all(&archive.town.db.admin).await.expect("notes");
    all.into_iter().collect()
}

async fn open(archive: &Archive, id: i64, body: &[u8]) -> u64 {
    let row = id.to_string();
    let place = Place { tenant: archive.tenant(), table: "public.notes", column: "body", row: &row };
    let plain = archive.keyring.open(Purpose::Field, &place, body).await.expect("it opens");
    u64::from_be_bytes(plain.as_slice().try_into().expect("a count"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_update_is_lost_to_a_rotation_that_is_killed_again_and_again() {
    let rows = rows();
    let archive = filled(rows).await;
    let target = archive.rotate().await;
    let mut killed = 0;
    let sweep = async {
        loop {
            // After so many kills it may end, however slow the machine.
            let patience = if killed < 25 { rand::rng().random_range(5..120) } else { 600_000 };
            let settings = Settings { batch: 200, ..Archive::settings() };
            match tokio::time::timeout(Duration::from_millis(patience), archive.sweep_with(target, settings)).await {
                Ok(ended) => break assert_eq!(ended.expect("swept"), Ended::Done { quarantined: 0 }),
                Err(_) => killed += 1,
            }
        }
    };
    let (wrote, lost) = race(&archive, rows, sweep).await;
    let (passes, scanned, changed, raced) = archive.counters().await;
    eprintln!(
        "{rows} rows, {wrote} updates by clients, {lost} lost; killed {killed} times, {passes} passes, {scanned} read, {changed} changed, {raced} raced"
    );
    assert_eq!(lost, 0);
    assert!(wrote > 0 && killed > 0, "{wrote} updates, {killed} kills");
    for (id, body) in bodies(&archive).await {
        assert_eq!(Header::read(&body).expect("a header").version, target, "row {id}");
    }
}

/// What a scheduler does for jobs whose worker is gone, and for those that wait.
fn scheduler(town: &Town) -> AbortOnDropHandle<()> {
    let pool = town.db.admin.clone();
    AbortOnDropHandle::new(tokio::spawn(async move {
        loop {
            rescuer::run_once(&pool).await.expect("rescued");
            sqlx::query("SELECT reeve.promote(100)").execute(&pool).await.expect("promoted");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_program_that_is_killed_loses_no_update_and_goes_on_where_it_was() {
    const ROWS: i64 = 3_000;
    let archive = filled(ROWS).await;
    let (town, target) = (&archive.town, archive.rotate().await);
    let directory = tempfile::tempdir().expect("a directory");
    let catalogue = directory.path().join("catalogue.toml");
    std::fs::write(&catalogue, super::DECLARED).expect("written");
    let settings = [
        ("REEVE_WORKER__CATALOGUE", catalogue.to_str().expect("UTF-8")),
        ("REEVE_WORKER__LEASE_SECS", "4"),
        ("REEVE_WORKER__REKEY__BATCH", "100"),
        ("REEVE_WORKER__REKEY__ROWS_PER_SEC_MAX", "1500"),
    ];
    let job = super::jobs::enqueue(town, serde_json::json!({})).await;
    let _scheduler = scheduler(town);
    let scanned = "SELECT coalesce(sum(scanned), 0)::bigint FROM reeve.key_sweeps WHERE table_name = 'public.notes'";
    let sweep = async {
        for killed in 1..=2 {
            let mut worker = town.worker_program_with(&settings);
            until("some batches more", async || town.count(scanned).await > 700 * killed).await;
            worker.kill().await.expect("SIGKILL");
            // These clients share the keyring that made the version, and know it.
            archive.run("UPDATE reeve.key_sweeps SET began_at = began_at - interval '1 hour'").await;
        }
        let _worker = town.worker_program_with(&settings);
        until("the job is done", async || town.state(job).await == "completed").await;
    };
    let (wrote, lost) = race(&archive, ROWS, sweep).await;
    assert!(wrote > 0);
    assert_eq!(lost, 0);
    for (id, body) in bodies(&archive).await {
        assert_eq!(Header::read(&body).expect("a header").version, target, "row {id}");
    }
    // Whole passes, and no row read twice in one, whoever read it.
    let passes = format!(
        "SELECT pass::bigint FROM reeve.key_sweeps WHERE table_name = 'public.notes' AND scanned = pass * {ROWS}"
    );
    let passes: Option<i64> =
        sqlx::query_scalar(sqlx::AssertSqlSafe(passes)).fetch_optional(&town.db.admin).await.expect("a sweep");
    assert!(passes.is_some_and(|passes| passes >= 2), "{passes:?}");
}

/// What the sweep would be without its comparison: reads, and writes back what it read.
async fn naive(archive: &Archive, target: u32) {
    let statements = Statements::of(&archive.table);
    let mut after: Option<Vec<String>> = None;
    loop {
        let mut scope = sweep::open(&archive.directory, &archive.context, archive.table.route).await.expect("a scope");
        let rows: Vec<Stored> = statements.read(&mut scope, after.as_deref(), 500).await.expect("rows");
        scope.commit().await.expect("read");
        let Some(last) = rows.last() else { return };
        after = Some(last.key.clone());
        let mut renewer = Renewer::new(&archive.keyring, archive.tenant(), target).await.expect("keys");
        let (mut ids, mut news) = (Vec::new(), Vec::new());
        for row in &rows {
            let old = row.values[0].as_deref().expect("a body");
            let turned = renewer.turn(&archive.table, &archive.table.columns[0], &row_of(&row.key), old).await;
            if let Turned::Renewed(new) = turned.expect("keys") {
                ids.push(row.key[0].parse::<i64>().expect("an id"));
                news.push(new);
            }
        }
        sqlx::query(
            "UPDATE notes t SET body = v.new FROM unnest($1::bigint[], $2::bytea[]) v (id, new) WHERE t.id = v.id",
        )
        .bind(ids)
        .bind(news)
        .execute(&archive.town.db.admin)
        .await
        .expect("written");
    }
}

/// The race can be lost: else the test above would prove nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_that_does_not_compare_the_old_value_loses_updates() {
    let rows = rows().min(3_000);
    let archive = Arc::new(filled(rows).await);
    let mut lost_in_all = 0;
    for _ in 0..40 {
        let target = archive.rotate().await;
        // Counts begin anew with each round, and rows that nobody writes keep theirs.
        let (_, lost) = race(&archive, rows, naive(&archive, target)).await;
        lost_in_all += lost;
        if lost_in_all > 0 {
            break;
        }
    }
    eprintln!("the naive sweep lost {lost_in_all} updates");
    assert!(lost_in_all > 0);
}
