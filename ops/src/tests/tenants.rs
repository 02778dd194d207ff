//! `reeve tenants …`: what is told of an act, and what never is.
use super::*;

#[tokio::test]
async fn a_tenant_is_registered_changed_paused_and_resumed() {
    let db = TestDatabase::new().await;
    let register = ["tenants", "register", "acme", "--name", "Acme"];
    assert_eq!(reeve(&db, &register).await.out, "registered\n");
    let again = reeve(&db, &register).await;
    assert_eq!((again.code, again.out.as_str()), (0, "was registered before; left as it is\n"));
    let set = ["tenants", "set", "acme", "--reason", "r"];
    let all =
        ["--weight", "5", "--running-max", "3", "--plan", "pro", "--locale", "de", "--time-zone", "Europe/Zurich"];
    let ran = reeve(&db, &[&set[..], &all].concat()).await;
    assert_eq!(ran.out, "changed: locale, plan, running_max, time_zone, weight\n", "{}", ran.messages);
    let shown = reeve(&db, &["--json", "tenants", "show", "acme"]).await.json();
    assert_eq!((&shown["weight"], &shown["running_max"], &shown["plan"]), (&5.into(), &3.into(), &"pro".into()));
    let none = reeve(&db, &[&["--json"], &set[..], &["--running-max", "none", "--plan", "none"]].concat()).await.json();
    assert_eq!(none["changed"], serde_json::json!(["plan", "running_max"]));
    let idle = reeve(&db, &[&set[..], &["--weight", "5"]].concat()).await;
    assert_eq!((idle.code, idle.out.as_str()), (0, "it is so already; nothing was changed\n"));
    for (verb, paused) in [("pause", true), ("resume", false)] {
        assert_eq!(reeve(&db, &["tenants", verb, "acme", "--reason", "r"]).await.out, "changed: paused\n");
        assert_eq!(reeve(&db, &["--json", "tenants", "show", "acme"]).await.json()["paused"], paused);
    }
    assert_eq!(count(&db, "audit_log").await, 5, "each act that changed something");
    db.drop_now().await;
}

#[tokio::test]
async fn a_security_contact_is_stored_and_never_told() {
    let db = TestDatabase::new().await;
    db.tenant("acme").await;
    let set = ["tenants", "set", "acme", "--reason", "r", "--security-contact"];
    let contact = "whistle@example.com";
    let cli = Cli::try_parse_from([&["reeve"], &set[..], &[contact]].concat()).expect("arguments");
    assert!(!format!("{cli:?}").contains("whistle"), "{cli:?}");
    for (argument, stdin) in [(contact, ""), ("-", "whistle@example.org\n")] {
        for format in [&[][..], &["--json"]] {
            let ran = run_with(&config(&db), &[format, &set[..], &[argument]].concat(), stdin, Some("ann")).await;
            assert!(ran.code == 0 && !ran.out.contains("whistle"), "{}{}", ran.out, ran.messages);
        }
        let stored: String = sqlx::query_scalar("SELECT security_contact FROM reeve.tenants WHERE id = 'acme'")
            .fetch_one(&db.admin)
            .await
            .expect("a contact");
        assert_eq!(stored, if argument == "-" { stdin.trim() } else { argument });
    }
    let bad = format!("whistle{}", "x".repeat(400));
    let ran = reeve(&db, &[&set[..], &[&bad]].concat()).await;
    assert!(ran.code == 4 && ran.messages.contains("security_contact takes"), "{}", ran.messages);
    assert!(!ran.messages.contains("whistle"), "{}", ran.messages);
    for shown in [&["tenants", "show", "acme"][..], &["--json", "tenants", "list"], &["audit", "csv"]] {
        assert!(!reeve(&db, shown).await.out.contains("whistle"), "{shown:?}");
    }
    db.drop_now().await;
}

#[tokio::test]
async fn what_cannot_be_is_refused_with_what_would_be_right() {
    let db = TestDatabase::new().await;
    db.tenant("acme").await;
    for (arguments, code, says) in [
        (
            &["set", "acme", "--reason", "r", "--weight", "0"][..],
            4,
            "(RV005): weight takes a whole number from 1 to 100",
        ),
        (&["set", "acme", "--reason", "r", "--weight", "-1"], 4, "weight takes"),
        (&["set", "acme", "--reason", "r", "--time-zone", "Mars/Base"], 4, "such as Europe/Zurich"),
        (&["set", "nobody", "--reason", "r", "--weight", "2"], 4, "hint: `reeve tenants list`"),
        (&["pause", "nobody", "--reason", "r"], 4, "\"nobody\" is not registered"),
        (&["register", "new", "--name", "N", "--region", "EU!"], 4, "a region has 1 to 32"),
    ] {
        let ran = reeve(&db, &[&["tenants"], arguments].concat()).await;
        assert!(
            ran.code == code && ran.messages.contains(says) && ran.out.is_empty(),
            "{arguments:?}: {}",
            ran.messages
        );
    }
    let said = |arguments: &[&str]| {
        let error = Cli::try_parse_from([&["reeve", "tenants"], arguments].concat()).expect_err("bad arguments");
        error.to_string()
    };
    assert!(said(&["set", "acme", "--reason", "r"]).contains("required arguments"), "one field at least");
    assert!(said(&["set", "acme", "--weight", "2"]).contains("--reason"));
    assert!(said(&["set", "acme", "--reason", "r", "--running-max", "all"]).contains("or none for no cap"));
    assert!(said(&["pause", "acme"]).contains("--reason"));
    assert_eq!(count(&db, "audit_log").await, 0);
    db.drop_now().await;
}
