//! `reeve jobs erase-subject`, `keep-history` and `history-rules`: a person goes and is named nowhere.
use reeve_jobs::client::{self, Enqueue};
use reeve_jobs::kinds::ProbeFleet;

use super::*;

const ANN: &str = "ann@example.org";
const ERASE: [&str; 6] = ["jobs", "erase-subject", "--tenant", "acme", "--reason", "she asked"];

async fn about(db: &TestDatabase, tenant: &TenantId, subject: &str) -> JobId {
    let mut app = PgConnection::connect_with(&db.options("reeve_app")).await.expect("the app");
    let mut tx = app.begin().await.expect("a transaction");
    client::set_tenant(&mut tx, tenant).await.expect("a context");
    let probe = ProbeFleet { note: Some("about somebody".to_owned()), sleep_ms: 0 };
    let id = client::enqueue_about(&mut tx, subject, &probe, &Enqueue::default()).await.expect("enqueued");
    tx.commit().await.expect("committed");
    id
}

async fn erase(db: &TestDatabase, format: &[&str], subject: &str) -> Ran {
    run_with(&config(db), &[format, &ERASE].concat(), subject, Some("kim")).await
}

#[tokio::test]
async fn a_person_is_erased_by_what_stands_on_standard_input_and_is_named_nowhere() {
    let db = TestDatabase::new().await;
    let (acme, other) = (db.tenant("acme").await, db.tenant("other").await);
    let mine = about(&db, &acme, ANN).await;
    let (bobs, foreign) = (about(&db, &acme, "bob").await, about(&db, &other, ANN).await);
    let ran = erase(&db, &[], "ann@example.org\n").await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "cancelled: 1, erased: 0, still running: 0\n"), "{}", ran.messages);
    let live: Vec<JobId> =
        sqlx::query_scalar("SELECT id FROM reeve.jobs ORDER BY id").fetch_all(&db.admin).await.expect("jobs");
    assert_eq!(live, [bobs, foreign]);
    let shown = reeve(&db, &["--json", "jobs", "show", &mine.to_string()]).await.json();
    assert_eq!((&shown["state"], &shown["payload"]), (&"cancelled".into(), &serde_json::json!({})));
    let again = erase(&db, &["--json"], ANN).await;
    assert_eq!(again.json(), serde_json::json!({ "cancelled": 0, "redacted": 0, "running": 0 }));
    for said in [&ran.out, &ran.messages, &again.out, &again.messages, &reeve(&db, &["audit", "csv"]).await.out] {
        assert!(!said.contains("ann@"), "{said}");
    }
    db.drop_now().await;
}

#[tokio::test]
async fn an_erasure_is_not_done_while_a_job_about_the_person_runs() {
    let db = TestDatabase::new().await;
    let acme = db.tenant("acme").await;
    about(&db, &acme, ANN).await;
    let (queue, job) = claim(&db).await;
    let ran = erase(&db, &[], ANN).await;
    assert_eq!((ran.code, ran.out.as_str()), (1, "cancelled: 0, erased: 0, still running: 1\n"));
    assert!(ran.messages.contains("call again"), "{}", ran.messages);
    settle(&queue, &job, "retry").await;
    let ran = erase(&db, &[], ANN).await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "cancelled: 0, erased: 1, still running: 0\n"));
    db.drop_now().await;
}

#[tokio::test]
async fn a_subject_that_cannot_be_is_refused_and_not_repeated() {
    let db = TestDatabase::new().await;
    db.tenant("acme").await;
    for subject in ["", "\n", &"ann".repeat(200)] {
        let ran = erase(&db, &[], subject).await;
        assert!(ran.code == 4 && ran.messages.contains("1 to 500 characters"), "{}", ran.messages);
        assert!(!ran.messages.contains("ann"), "{}", ran.messages);
    }
    // No argument takes it.
    let error = Cli::try_parse_from([&["reeve"], &ERASE[..], &[ANN]].concat()).expect_err("an argument too many");
    assert_eq!(error.exit_code(), 2);
    assert_eq!(count(&db, "audit_log").await, 0);
    db.drop_now().await;
}

#[tokio::test]
async fn a_rule_of_history_is_set_listed_changed_and_taken_away() {
    let db = TestDatabase::new().await;
    db.tenant("acme").await;
    let keep = |of: &[&'static str], days: &'static str| {
        [&["jobs", "keep-history", "--reason", "the contract", "--days", days], of].concat()
    };
    let of = ["--tenant", "acme", "--kind", "fleet.probe"];
    for (of, days, said) in [
        (&of[..], "7", "kept 7 days\n"),
        (&of[2..], "30", "kept 30 days\n"),
        (&of[..2], "90", "kept 90 days\n"),
        (&of[..2], "60", "kept 60 days\n"),
        (&of[2..], "none", "the rule is gone\n"),
    ] {
        let ran = reeve(&db, &keep(of, days)).await;
        assert_eq!(ran.out, said, "{}", ran.messages);
    }
    let listed = reeve(&db, &["--json", "jobs", "history-rules"]).await.json();
    let rule = |kind: &str, days: i32| serde_json::json!({ "tenant": "acme", "kind": kind, "keep_days": days });
    assert_eq!(listed, serde_json::json!([rule("*", 60), rule("fleet.probe", 7)]));
    assert!(reeve(&db, &["jobs", "history-rules"]).await.out.contains("fleet.probe"));
    for (of, says) in
        [(["--tenant", "nobody"], "\"nobody\" is not registered"), (["--kind", "no.kind"], "unknown kind")]
    {
        let ran = reeve(&db, &keep(&of, "1")).await;
        assert!(ran.code == 4 && ran.messages.contains(says), "{}", ran.messages);
    }
    let said = |arguments: &[&str]| {
        Cli::try_parse_from([&["reeve"], arguments].concat()).expect_err("bad arguments").to_string()
    };
    assert!(said(&keep(&[], "1")).contains("--tenant"), "of everybody is never meant");
    assert!(said(&keep(&of, "-1")).contains("--days") && said(&keep(&of, "3651")).contains("from 0 to 3650"));
    assert_eq!(count(&db, "audit_log").await, 5, "each change and no refusal");
    db.drop_now().await;
}
