//! What operators do to a tenant: in force for the next claim, rung for, audited by name, and refused where it is wrong.
use reeve_jobs::{
    Kind, TenantId,
    client::EnqueueError,
    queue::operate::{self, Act},
    tenant::operate as tenants,
};
use serde_json::{Map, Value, json};
use sqlx::{PgPool, postgres::PgListener};

use crate::support::Town;

const WHO: Act<'static> = Act { actor: "cli:ann", reason: "asked by phone" };

fn object(value: Value) -> Map<String, Value> {
    value.as_object().expect("an object").clone()
}

async fn set(ops: &PgPool, tenant: &TenantId, changes: Value) -> Vec<String> {
    tenants::change(ops, tenant, &object(changes), WHO).await.expect("changed")
}

/// The tenant's row, without what cannot be changed here.
async fn row(town: &Town, tenant: &TenantId) -> Value {
    sqlx::query_scalar(
        "SELECT to_jsonb(t) - ARRAY['id', 'region', 'placement', 'state', 'created_at', 'kinds_off'] FROM reeve.tenants t
         WHERE id = $1",
    )
    .bind(tenant.as_str())
    .fetch_one(&town.db.admin)
    .await
    .expect("a row")
}

async fn claimed(town: &Town, n: i32) -> i64 {
    sqlx::query_scalar("SELECT count(id) FROM reeve.claim('probes', 'default', $1, 'w', '', 30)")
        .bind(n)
        .fetch_one(&town.worker)
        .await
        .expect("a claim")
}

async fn probes(town: &Town, tenant: &TenantId, n: usize) {
    for _ in 0..n {
        operate::enqueue(&town.db.admin, tenant, Kind::FleetProbe, &json!({}), WHO).await.expect("a job");
    }
}

#[tokio::test]
async fn each_field_is_set_and_taken_away_and_only_what_differs_counts() {
    let town = Town::new().await;
    let ops = town.db.pool("reeve_ops").await;
    let before = row(&town, &town.b).await;
    let all = json!({"weight": 7, "running_max": 3, "plan": "pro", "name": "Zürich AG", "locale": "de-CH",
      "time_zone": "Europe/Zurich", "security_contact": "sec@example.com"});
    let names = ["locale", "name", "plan", "running_max", "security_contact", "time_zone", "weight"];
    assert_eq!(set(&ops, &town.a, all.clone()).await, names);
    let now = row(&town, &town.a).await;
    assert!(object(all.clone()).iter().all(|(name, value)| now[name] == *value), "{now}");
    assert_eq!(set(&ops, &town.a, all).await, [""; 0], "all of it is so already");
    assert_eq!(set(&ops, &town.a, json!({"weight": 7, "name": "Zurich"})).await, ["name"]);
    let away = json!({"running_max": null, "plan": null, "security_contact": null});
    assert_eq!(set(&ops, &town.a, away).await, ["plan", "running_max", "security_contact"]);
    let now = row(&town, &town.a).await;
    assert_eq!(
        (&now["running_max"], &now["plan"], &now["security_contact"]),
        (&Value::Null, &Value::Null, &Value::Null)
    );
    assert_eq!(row(&town, &town.b).await, before, "the neighbour's row is as it was");
}

#[tokio::test]
async fn a_pause_and_a_cap_hold_for_the_next_claim_until_they_are_taken_back() {
    let town = Town::new().await;
    let ops = town.db.pool("reeve_ops").await;
    probes(&town, &town.a, 4).await;
    assert!(tenants::pause(&ops, &town.a, true, WHO).await.expect("paused"));
    assert!(!tenants::pause(&ops, &town.a, true, WHO).await.expect("answered"), "it was paused before");
    assert_eq!(claimed(&town, 10).await, 0);
    set(&ops, &town.a, json!({"running_max": 1})).await;
    assert!(tenants::pause(&ops, &town.a, false, WHO).await.expect("resumed"));
    assert_eq!(claimed(&town, 10).await, 1);
    assert_eq!(claimed(&town, 10).await, 0, "one runs, and one may");
    set(&ops, &town.a, json!({"running_max": 3})).await;
    assert_eq!(claimed(&town, 10).await, 2);
    set(&ops, &town.a, json!({"running_max": null})).await;
    assert_eq!(claimed(&town, 10).await, 1);
}

/// A worker that sleeps until it is rung; which acts ring, and which have no reason to.
#[tokio::test]
async fn what_lets_jobs_be_claimed_rings_the_workers_that_wait() {
    let town = Town::new().await;
    let ops = town.db.pool("reeve_ops").await;
    let mut listener = PgListener::connect_with(&town.worker).await.expect("a listener");
    listener.listen("reeve_jobs").await.expect("listening");
    sqlx::query("SELECT reeve.wait_for_jobs('probes', 'default', 3600)").execute(&town.worker).await.expect("waiting");
    reeve_jobs::tenant::flags::set(
        &ops,
        "kind.fleet.probe",
        &reeve_jobs::tenant::flags::Level::Plan("small".to_owned()),
        &json!(false),
        WHO,
    )
    .await
    .expect("a flag");
    for (what, changes, rings) in [
        ("a lower cap", json!({"running_max": 2}), false),
        ("a pause", json!({"paused": true}), false),
        ("its end", json!({"paused": false}), true),
        ("a raised cap", json!({"running_max": 5}), true),
        ("no cap", json!({"running_max": null}), true),
        ("a name", json!({"name": "Other"}), false),
        ("another plan", json!({"plan": "pro"}), true),
    ] {
        match changes.get("paused").and_then(Value::as_bool) {
            Some(paused) => assert!(tenants::pause(&ops, &town.a, paused, WHO).await.expect(what)),
            None => assert_eq!(set(&ops, &town.a, changes).await.len(), 1, "{what}"),
        }
        // Notices come in the order of commits, so this one comes after the ring, if there is one.
        sqlx::query("SELECT pg_notify('reeve_jobs', 'end')").execute(&town.db.admin).await.expect("a notice");
        let mut heard = Vec::new();
        loop {
            match listener.recv().await.expect("a notice").payload() {
                "end" => break,
                other => heard.push(other.to_owned()),
            }
        }
        let expected: &[&str] = if rings { &["probes@default"] } else { &[] };
        assert_eq!(heard, expected, "{what}");
    }
}

#[tokio::test]
async fn each_change_is_audited_by_name_and_never_by_value() {
    let town = Town::new().await;
    let ops = town.db.pool("reeve_ops").await;
    set(&ops, &town.a, json!({"security_contact": "whistle@example.com", "name": "Secret Sauce"})).await;
    set(&ops, &town.a, json!({"name": "Secret Sauce"})).await;
    tenants::pause(&ops, &town.a, true, WHO).await.expect("paused");
    tenants::pause(&ops, &town.a, false, WHO).await.expect("resumed");
    let new: TenantId = "c".parse().expect("an id");
    sqlx::query("INSERT INTO reeve.regions VALUES ('eu', true)").execute(&town.db.admin).await.expect("declared");
    assert!(tenants::register(&ops, &new, "Third", Some("eu"), WHO.actor, Some(WHO.reason)).await.expect("registered"));
    assert!(!tenants::register(&ops, &new, "Other", None, WHO.actor, None).await.expect("answered"));
    let log: Vec<(String, String, String, String, String, String)> = sqlx::query_as(
        "SELECT l.tenant_id, l.actor, l.action, l.target, b.reason, array_to_string(b.fields, ' ')
         FROM reeve.audit_log l JOIN reeve.audit_bodies b ON b.tenant_id = l.tenant_id AND b.seq = l.seq ORDER BY l.at",
    )
    .fetch_all(&town.db.admin)
    .await
    .expect("the log");
    let entry = |tenant: &str, action: &str, fields: &str| {
        let target = format!("tenant:{tenant}");
        (tenant.into(), WHO.actor.into(), action.into(), target, WHO.reason.into(), fields.into())
    };
    assert_eq!(
        log,
        [
            entry("a", "tenant.changed", "name security_contact"),
            entry("a", "tenant.paused", "paused"),
            entry("a", "tenant.resumed", "paused"),
            entry("c", "tenant.registered", "name region"),
        ]
    );
    let leaked = "SELECT count(*) FROM reeve.audit_log l JOIN reeve.audit_bodies b USING (tenant_id, seq)
                  WHERE (l, b)::text ~ 'whistle|Sauce|Third'";
    assert_eq!(town.count(leaked).await, 0);
    let kept: (String, String) = sqlx::query_as("SELECT name, region FROM reeve.tenants WHERE id = 'c'")
        .fetch_one(&town.db.admin)
        .await
        .expect("the third");
    assert_eq!(kept, ("Third".to_owned(), "eu".to_owned()));
}

#[tokio::test]
async fn a_mistake_is_refused_without_its_value_and_changes_nothing() {
    let town = Town::new().await;
    let ops = town.db.pool("reeve_ops").await;
    let before = row(&town, &town.a).await;
    let long = "x".repeat(400);
    for (changes, says) in [
        (json!({}), "nothing was given"),
        (json!({"state": "closed"}), "no field \"state\" that can be set"),
        (json!({"region": "eu"}), "no field \"region\""),
        (json!({"placement": "dedicated"}), "no field \"placement\""),
        (json!({"paused": true}), "no field \"paused\""),
        (json!({"kinds_off": ["x"]}), "no field \"kinds_off\""),
        (json!({"id": "b"}), "no field \"id\""),
        (json!({"weight": 0}), "weight takes a whole number from 1 to 100"),
        (json!({"weight": 101}), "weight takes"),
        (json!({"weight": 1.5}), "weight takes"),
        (json!({"weight": "7"}), "weight takes"),
        (json!({"weight": null}), "weight takes"),
        (json!({"running_max": -1}), "running_max takes a whole number from 0"),
        (json!({"running_max": 9_000_000_000_i64}), "running_max takes"),
        (json!({"name": ""}), "name takes 1 to 200"),
        (json!({"name": long}), "name takes"),
        (json!({"plan": "a\nb"}), "plan takes"),
        (json!({"locale": "not a tag"}), "locale takes a language tag"),
        (json!({"time_zone": "Europe/Atlantis"}), "time_zone takes a name of the time zone database"),
        (json!({"time_zone": "+02"}), "time_zone takes"),
        (json!({"security_contact": format!("secret\n{long}")}), "security_contact takes 3 to 320"),
        (json!({"weight": 5, "locale": "not a tag"}), "locale takes"),
    ] {
        let refused = tenants::change(&ops, &town.a, &object(changes.clone()), WHO).await.map_err(EnqueueError::from);
        let Err(EnqueueError::Refused { code, message, .. }) = &refused else { panic!("{changes}: {refused:?}") };
        assert_eq!((code.as_str(), message.contains(says)), ("RV005", true), "{changes}: {message}");
        assert!(!message.contains("secret") && !message.contains("Atlantis"), "{message}");
    }
    let nobody: TenantId = "nobody".parse().expect("an id");
    sqlx::query("UPDATE reeve.tenants SET state = 'closed' WHERE id = 'b'")
        .execute(&town.db.admin)
        .await
        .expect("closed");
    for (tenant, code) in [(&nobody, "RV003"), (&town.b, "RV006")] {
        let set = tenants::change(&ops, tenant, &object(json!({"weight": 2})), WHO).await.map(drop);
        for refused in [set, tenants::pause(&ops, tenant, true, WHO).await.map(drop)] {
            let refused = refused.map_err(EnqueueError::from);
            assert!(matches!(&refused, Err(EnqueueError::Refused { code: found, .. }) if found == code), "{refused:?}");
        }
    }
    for (name, region) in [("", None), ("Name", Some("EU!"))] {
        let refused = tenants::register(&ops, &nobody, name, region, "cli:ann", None).await.map_err(EnqueueError::from);
        assert!(matches!(&refused, Err(EnqueueError::Refused { code, .. }) if code == "RV005"), "{refused:?}");
    }
    assert_eq!(row(&town, &town.a).await, before);
    assert_eq!(town.count("SELECT count(*) FROM reeve.audit_log").await, 0);
    assert_eq!(town.count("SELECT count(*) FROM reeve.tenants").await, 2);
    for pool in [&town.app, &town.worker] {
        let act = tenants::pause(pool, &town.a, true, WHO).await.expect_err("refused").to_string();
        assert!(act.contains("permission denied"), "{act}");
    }
}

/// A plan's change and a flag's change lock in one order: were the tenant's row locked first, they would wait for each other.
#[tokio::test]
async fn a_change_of_plan_and_a_change_of_flags_do_not_lock_each_other_out() {
    let town = Town::new().await;
    let ops = town.db.pool("reeve_ops").await;
    let level = reeve_jobs::tenant::flags::Level::Plan("p0".to_owned());
    let (flags, plans) = tokio::join!(
        async {
            for n in 0..40 {
                let value = json!(n % 2 == 0);
                reeve_jobs::tenant::flags::set(&ops, "kind.fleet.probe", &level, &value, WHO).await?;
            }
            Ok::<_, sqlx::Error>(())
        },
        async {
            for n in 0..40 {
                let changes = object(json!({"plan": format!("p{}", n % 2), "weight": n % 2 + 1}));
                tenants::change(&ops, &town.a, &changes, WHO).await?;
            }
            Ok::<_, sqlx::Error>(())
        }
    );
    flags.expect("no deadlock");
    plans.expect("no deadlock");
    let stale = "SELECT count(*) FROM reeve.tenants t WHERE t.kinds_off IS DISTINCT FROM reeve.kinds_off(t.id, t.plan)";
    assert_eq!(town.count(stale).await, 0);
}
