//! Checkpoints on a schedule, kept outside the database: what the scheduler signs, what it refuses to, and the attack that only
//! those kept outside show.
use reeve_jobs::{
    audit::{
        inspect,
        shipped::Witness,
        sign,
        verify::{verify, verify_against, verify_all_against},
    },
    testing::TestDatabase,
};
use reeve_scheduler::signer::{self, Signed};

use crate::{
    audit::{UNGUARDED, append, holds, key},
    support::program,
};

/// Takes the guards off for good, as whoever rules the database can.
async fn tamper(db: &TestDatabase, sql: &str) {
    let sql = format!("{UNGUARDED}{sql}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql.clone()))
        .execute(&db.admin)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// Ten entries of tenant t, signed by the scheduler after 4 and 8, with its file; and one entry of u.
async fn signed_log(db: &TestDatabase, file: &std::path::Path) {
    let scheduler = db.pool("reeve_scheduler").await;
    append(db, "u", "thing.done", 1).await;
    for (n, stored) in [(4, 2), (4, 1)] {
        append(db, "t", "thing.done", n).await;
        let signed = signer::run_once(&scheduler, &key(), Some(file)).await.expect("signed");
        assert_eq!(signed, Signed { stored, ..Signed::default() });
    }
    append(db, "t", "thing.done", 2).await;
}

/// Entries after the fourth, with all that is signed of them, as if they had never been.
const CUT: &str = "DELETE FROM reeve.audit_log WHERE tenant_id = 't' AND seq > 4;
  DELETE FROM reeve.audit_bodies WHERE tenant_id = 't' AND seq > 4;
  DELETE FROM reeve.audit_checkpoints WHERE tenant_id = 't' AND seq > 4;
  UPDATE reeve.audit_heads SET seq = 4, hash = (SELECT hash FROM reeve.audit_log WHERE tenant_id = 't' AND seq = 4)
  WHERE tenant_id = 't';";

#[tokio::test]
async fn a_log_cut_together_with_its_checkpoints_is_found_by_those_kept_outside() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("checkpoints.jsonl");
    for (attack, seq, why) in [
        (CUT, 5, "cut off, with its checkpoints: one kept outside has entry 8"),
        // And written on, past what was signed: entry 8 is there again, and is another.
        (
            &format!(
                "{CUT} SELECT reeve.audit_append_many(array_agg(ROW('t', 'bob', 'thing.undone', 'thing:' || i, NULL, NULL, NULL,
                   NULL, NULL, NULL)::reeve.audit_entry)) FROM generate_series(1, 6) i"
            ),
            8,
            "a checkpoint kept outside has another hash",
        ),
        (
            "DELETE FROM reeve.audit_log WHERE tenant_id = 't'; DELETE FROM reeve.audit_bodies WHERE tenant_id = 't';
             DELETE FROM reeve.audit_checkpoints WHERE tenant_id = 't'; DELETE FROM reeve.audit_heads WHERE tenant_id = 't'",
            1,
            "one kept outside has entry 8",
        ),
    ] {
        let _ = std::fs::remove_file(&file);
        let db = TestDatabase::new().await;
        signed_log(&db, &file).await;
        let witness = Witness::read(&file, &key()).expect("a witness");
        let mut look = inspect::snapshot(&db.admin).await.expect("a snapshot");
        let (untouched, _) = verify_against(&mut look, "t", Some(&key()), &witness).await.expect("a report");
        assert_eq!(untouched.broken, None, "{attack}");
        drop(look);
        tamper(&db, attack).await;
        holds(&db, "t").await; // Nothing that is left in the database tells.
        let mut look = inspect::snapshot(&db.admin).await.expect("a snapshot");
        let all = verify_all_against(&mut look, None, Some(&key()), &witness).await.expect("reports");
        drop(look);
        assert_eq!(all["u"].0.broken, None, "{attack}");
        let broken = all["t"].0.broken.clone().unwrap_or_else(|| panic!("{attack}: not found"));
        assert!(broken.seq == seq && broken.why.contains(why), "{attack}: {broken:?}");
        db.drop_now().await;
    }
}

#[tokio::test]
async fn the_command_finds_a_cut_log_with_the_schedulers_file_and_not_without() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("checkpoints.jsonl");
    let db = TestDatabase::new().await;
    signed_log(&db, &file).await;
    let verify = async |with: &[&str]| {
        let output = tokio::process::Command::new(program("reeve"))
            .args(["audit", "verify"])
            .args(with)
            .env_remove("REEVE_CONFIG")
            .env("REEVE_OPS__DATABASE_URL", db.url("reeve_ops"))
            .env("REEVE_OPS__AUDIT_KEY", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")
            .output()
            .await
            .expect("the program starts");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let kept = ["--checkpoints", file.to_str().expect("UTF-8")];
    assert_eq!(verify(&kept).await.0, Some(0));
    tamper(&db, CUT).await;
    assert_eq!(verify(&[]).await.0, Some(0), "the database alone shows nothing");
    let (code, out, _) = verify(&kept).await;
    assert!(code == Some(1) && out.contains("BROKEN at 5: the end was cut off, with its checkpoints"), "{out}");
    // A line that somebody bent to fit is none of ours.
    let text = std::fs::read_to_string(&file).expect("the file").replace("\"seq\":8", "\"seq\":4");
    std::fs::write(&file, text).expect("written");
    let (code, _, said) = verify(&kept).await;
    assert!(code == Some(1) && said.contains(":3: the signature of tenant \"t\", entry 4, does not verify"), "{said}");
    let (code, _, said) = verify(&["--checkpoints", "/nowhere/checkpoints.jsonl"]).await;
    assert!(code == Some(2) && said.contains("/nowhere/checkpoints.jsonl"), "{said}");
    db.drop_now().await;
}

/// What the scheduler signs of hashes alone is what a signer that reads everything would sign.
#[tokio::test]
async fn the_scheduler_signs_the_same_checkpoint_as_one_who_reads_all() {
    let db = TestDatabase::new().await;
    let scheduler = db.pool("reeve_scheduler").await;
    for actions in [&["job.done", "thing.done"][..], &["job.done"], &["key.made", "job.done"]] {
        for action in actions {
            append(&db, "t", action, 2).await;
        }
        let mut look = inspect::snapshot(&db.admin).await.expect("a snapshot");
        let (_, next) = verify(&mut look, "t", Some(&key())).await.expect("a report");
        drop(look);
        let next = next.expect("something to sign");
        signer::run_once(&scheduler, &key(), None).await.expect("signed");
        let made: (i64, i64, Vec<u8>, Option<chrono::DateTime<chrono::Utc>>) = sqlx::query_as(
            "SELECT from_seq, seq, hash, keeps_until FROM reeve.audit_checkpoints WHERE tenant_id = 't' ORDER BY seq DESC LIMIT 1",
        )
        .fetch_one(&db.admin)
        .await
        .expect("a checkpoint");
        assert_eq!(made, (next.from_seq, next.seq, next.hash.to_vec(), next.keeps_until), "{actions:?}");
        holds(&db, "t").await;
        let again = signer::run_once(&scheduler, &key(), None).await.expect("nothing to do");
        assert_eq!(again, Signed::default());
    }
    db.drop_now().await;
}

#[tokio::test]
async fn the_scheduler_does_not_sign_a_chain_that_does_not_hold_and_signs_the_others() {
    let db = TestDatabase::new().await;
    let scheduler = db.pool("reeve_scheduler").await;
    let attacks = [
        ("UPDATE reeve.audit_log SET actor = 'bob' WHERE tenant_id = 't' AND seq = 5", 5),
        ("UPDATE reeve.audit_log SET class = '12m' WHERE tenant_id = 't' AND seq = 6", 6),
        ("DELETE FROM reeve.audit_log WHERE tenant_id = 't' AND seq = 5", 5),
        ("DELETE FROM reeve.audit_log WHERE tenant_id = 't' AND seq = 6", 6),
        ("UPDATE reeve.audit_heads SET hash = sha256('x') WHERE tenant_id = 't'", 6),
        ("UPDATE reeve.audit_heads SET seq = 3 WHERE tenant_id = 't'", 4),
        ("UPDATE reeve.audit_checkpoints SET keeps_until = now() WHERE tenant_id = 't'", 4),
        // To match a chain written anew from its first entry: only the signature tells.
        ("UPDATE reeve.audit_checkpoints SET hash = sha256('x') WHERE tenant_id = 't'", 4),
    ];
    for (n, (attack, seq)) in attacks.into_iter().enumerate() {
        let id = format!("t{n}");
        let attack = attack.replace("'t'", &format!("'{id}'"));
        append(&db, &id, "thing.done", 4).await;
        signer::run_once(&scheduler, &key(), None).await.expect("signed");
        append(&db, &id, "thing.done", 2).await;
        append(&db, "u", "thing.done", 1).await;
        tamper(&db, &attack).await;
        let signed = signer::run_once(&scheduler, &key(), None).await.expect("a run");
        assert!(signed.broken.contains(&id) && signed.stored == 1, "{attack}: {signed:?}");
        let moved = sign::moved(&scheduler, &key(), "", 100).await.expect("judged");
        let found = moved.broken.iter().find(|(tenant, _)| *tenant == id).map(|(_, broken)| broken.seq);
        assert_eq!(found, Some(seq), "{attack}: {moved:?}");
        let last: i64 = sqlx::query_scalar("SELECT max(seq) FROM reeve.audit_checkpoints WHERE tenant_id = $1")
            .bind(&id)
            .fetch_one(&db.admin)
            .await
            .expect("a checkpoint");
        assert_eq!(last, 4, "{attack}");
    }
    db.drop_now().await;
}

#[tokio::test]
async fn schedulers_that_sign_at_one_time_leave_one_chain_of_checkpoints_and_a_file_that_is_true() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("checkpoints.jsonl");
    let db = TestDatabase::new().await;
    let scheduler = db.pool("reeve_scheduler").await;
    let mut stored = 0;
    for _ in 0..5 {
        for tenant in ["t", "u", "v"] {
            append(&db, tenant, "thing.done", 3).await;
        }
        let runs = (0..4).map(|_| {
            let (pool, file) = (scheduler.clone(), file.clone());
            tokio::spawn(async move { signer::run_once(&pool, &key(), Some(&file)).await.expect("a run") })
        });
        for run in runs.collect::<Vec<_>>() {
            let signed = run.await.expect("no panic");
            assert_eq!(signed.broken, [""; 0]);
            stored += signed.stored;
        }
    }
    assert_eq!(stored, 15, "each end once");
    let witness = Witness::read(&file, &key()).expect("every line is whole and signed");
    assert_eq!(witness.torn, 0);
    let mut look = inspect::snapshot(&db.admin).await.expect("a snapshot");
    for (tenant, (report, next)) in verify_all_against(&mut look, None, Some(&key()), &witness).await.expect("reports")
    {
        assert_eq!((report.broken, report.checkpoints, next), (None, 5, None), "{tenant}");
    }
    drop(look);
    db.drop_now().await;
}

#[tokio::test]
async fn what_cannot_be_kept_outside_is_not_stored() {
    let db = TestDatabase::new().await;
    append(&db, "t", "thing.done", 3).await;
    let scheduler = db.pool("reeve_scheduler").await;
    let nowhere = std::path::Path::new("/nowhere/checkpoints.jsonl");
    let refused = signer::run_once(&scheduler, &key(), Some(nowhere)).await.expect_err("refused").to_string();
    assert!(refused.contains("/nowhere/checkpoints.jsonl") && refused.contains("none was stored"), "{refused}");
    assert_eq!(holds(&db, "t").await.checkpoints, 0);
    db.drop_now().await;
}
