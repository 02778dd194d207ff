//! An operator with a login who would look and leave no trace, or see more than was approved.
use reeve_jobs::catalogue::{introspect, load, rls};

use super::*;

/// Whatever is done within the transaction that says why, no row is seen in it: it could still be taken back.
#[tokio::test]
async fn a_use_that_could_still_be_rolled_back_shows_nothing() {
    let house = House::new().await;
    let (_, login) = house.open().await;
    let mut session = house.connect(&login).await.expect("the login works");
    for (begin, end) in [
        ("BEGIN", "ROLLBACK"),
        ("BEGIN; SAVEPOINT s", "ROLLBACK TO s; ROLLBACK"),
        ("BEGIN; SAVEPOINT s", "RELEASE s; ROLLBACK"),
        ("BEGIN ISOLATION LEVEL REPEATABLE READ", "ROLLBACK"),
        ("BEGIN ISOLATION LEVEL SERIALIZABLE", "ROLLBACK"),
        ("BEGIN; CREATE TEMP TABLE first_an_id ()", "ROLLBACK"),
        ("BEGIN; SAVEPOINT s; SAVEPOINT t", "ROLLBACK"),
    ] {
        do_in(&mut session, begin).await.expect(begin);
        do_in(&mut session, BEGIN).await.expect("begun");
        assert_eq!(count(&mut session, JOBS).await, 0, "{begin}");
        do_in(&mut session, "SAVEPOINT later").await.expect("a savepoint");
        assert_eq!(count(&mut session, JOBS).await, 0, "{begin}, in a later savepoint");
        do_in(&mut session, end).await.expect(end);
        assert_eq!(count(&mut session, JOBS).await, 0, "{begin}, after {end}");
    }
    // A block that an error takes back, and several statements sent as one.
    do_in(
        &mut session,
        "DO $$ BEGIN PERFORM reeve.breakglass_begin('x'); RAISE 'no'; EXCEPTION WHEN raise_exception THEN NULL; END $$",
    )
    .await
    .expect("caught");
    assert_eq!(count(&mut session, JOBS).await, 0);
    let at_once =
        "SELECT reeve.breakglass_begin('x'); CREATE TEMP TABLE taken AS SELECT * FROM reeve.jobs; SELECT 1 / 0";
    assert_eq!(code(do_in(&mut session, at_once).await.unwrap_err()), "22012");
    let at_once = "SELECT reeve.breakglass_begin('x'); CREATE TEMP TABLE taken AS SELECT * FROM reeve.jobs";
    do_in(&mut session, at_once).await.expect("committed");
    assert_eq!(count(&mut session, "SELECT count(*) FROM taken").await, 0);
    // Now it is committed: the entry stands, and the rows are seen.
    assert!(count(&mut session, JOBS).await > 0);
    assert_eq!(house.actions().await.iter().filter(|action| *action == "breakglass.used").count(), 1);
    // To begin again and take that back takes back no more than the second entry.
    do_in(&mut session, &format!("BEGIN; {BEGIN}; ROLLBACK")).await.expect("rolled back");
    assert!(count(&mut session, JOBS).await > 0);
    house.end().await;
}

/// A prepared transaction would keep the tenant's audit log locked with nobody there to be cut.
#[tokio::test]
async fn a_use_cannot_be_parked_in_a_prepared_transaction() {
    let house = House::new().await;
    let (_, login) = house.open().await;
    let mut session = house.connect(&login).await.expect("the login works");
    do_in(&mut session, &format!("BEGIN; {BEGIN}")).await.expect("begun");
    let refused = do_in(&mut session, "PREPARE TRANSACTION 'parked'").await.unwrap_err().to_string();
    assert!(refused.contains("NOTIFY"), "{refused}");
    assert_eq!(count(&mut session, JOBS).await, 0);
    assert!(!house.actions().await.iter().any(|action| action == "breakglass.used"));
    house.end().await;
}

#[tokio::test]
async fn a_mark_of_another_session_or_of_an_earlier_process_counts_for_nothing() {
    let house = House::new().await;
    let (_, login) = house.open().await;
    let mut session = house.begun(&login).await;
    assert!(count(&mut session, JOBS).await > 0);
    let mut other = house.connect(&login).await.expect("a second session");
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut other).await.expect("a pid");
    house.run(&format!("UPDATE reeve.breakglass_sessions SET pid = {pid}")).await;
    assert_eq!(count(&mut other, JOBS).await, 0, "the same process id, begun at another time");
    assert_eq!(count(&mut session, JOBS).await, 0);
    house.end().await;
}

#[tokio::test]
async fn the_group_alone_opens_nothing() {
    let house = House::new().await;
    let (_, login) = house.open().await;
    let _begun = house.begun(&login).await;
    // Who is in the group by mistake, or a login of another opening, has no opening of its own.
    let ann = login_of(&house.town, "ann");
    house.run(&format!("REVOKE reeve_ops FROM {ann}; GRANT reeve_breakglass TO {ann}")).await;
    let mut session = PgConnection::connect_with(&house.town.db.options(&ann)).await.expect("a session");
    assert_eq!(code(do_in(&mut session, BEGIN).await.unwrap_err()), "RV043");
    for table in TABLES {
        assert_eq!(count(&mut session, &format!("SELECT count(*) FROM reeve.{table}")).await, 0, "{table}");
    }
    house.end().await;
}

const SCHEMA: &str = "CREATE SCHEMA shop;
  CREATE TABLE shop.orders (id int PRIMARY KEY, org text NOT NULL, card bytea, note text);
  CREATE TABLE shop.lines (order_id int NOT NULL REFERENCES shop.orders, what text);
  CREATE TABLE shop.everyones (org text, what text);
  CREATE INDEX ON shop.orders (org); CREATE INDEX ON shop.lines (order_id);
  INSERT INTO shop.orders VALUES (1, 'a', '\\x01', 'of a'), (2, 'b', '\\x02', 'of b');
  INSERT INTO shop.lines VALUES (1, 'tea'), (2, 'rum'), (2, 'rye')";
const CATALOGUE: &str = r#"
[table."shop.orders"]
scope = { column = "org" }
columns = ["id", "org", "note"]
column.card = { sealed = "plain" }
[table."shop.lines"]
scope = { path = [["order_id", "shop.orders"]] }
columns = ["order_id", "what"]
references = [{ columns = "order_id", table = "shop.orders" }]
[table."shop.everyones"]
scope = { ignored = "not for anybody" }
"#;

#[tokio::test]
async fn the_apps_own_rows_are_read_the_same_way_and_sealed_columns_never() {
    let house = House::new().await;
    house.run(SCHEMA).await;
    let catalogue = load::text_of("catalogue.toml", CATALOGUE).expect("a catalogue");
    // As an earlier catalogue left it, that did not know the column to be sealed.
    house.run("GRANT SELECT ON shop.orders TO reeve_breakglass").await;
    for _ in 0..2 {
        let schema = introspect(&house.town.db.admin, false).await.expect("a schema");
        house.run(&rls::sql(&catalogue, &schema).expect("a script")).await;
    }
    // A policy of the app's own that opens everything to everybody opens nothing here.
    house.run("CREATE POLICY open ON shop.lines USING (true)").await;
    let (_, login) = house.open().await;
    let mut session = house.connect(&login).await.expect("the login works");
    let (orders, lines) = ("SELECT count(*) FROM shop.orders", "SELECT count(*) FROM shop.lines");
    assert_eq!((count(&mut session, orders).await, count(&mut session, lines).await), (0, 0));
    do_in(&mut session, BEGIN).await.expect("begun");
    assert_eq!((count(&mut session, orders).await, count(&mut session, lines).await), (1, 1));
    let note: String = sqlx::query_scalar("SELECT note FROM shop.orders").fetch_one(&mut session).await.expect("a row");
    assert_eq!(note, "of a");
    for forbidden in [
        "SELECT card FROM shop.orders",
        "SELECT * FROM shop.orders",
        "SELECT FROM shop.everyones",
        "UPDATE shop.orders SET note = ''",
        "DELETE FROM shop.lines",
    ] {
        assert_eq!(code(do_in(&mut session, forbidden).await.unwrap_err()), "42501", "{forbidden}");
    }
    house.end().await;
}
