//! The real `reeve` program, as two operators use it.
use std::process::Stdio;

use serde_json::Value;
use tokio::process::Command;

use super::*;
use crate::support::program;

struct Ran {
    code: Option<i32>,
    out: String,
    messages: String,
}

async fn reeve(house: &House, login: &str, arguments: &[&str]) -> Ran {
    let output = Command::new(program("reeve"))
        .args(arguments)
        .env_remove("REEVE_CONFIG")
        .env("REEVE_OPS__DATABASE_URL", house.town.db.url(login))
        .env("REEVE_ACTOR", "someone")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .expect("it runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ran { code: output.status.code(), out: text(&output.stdout), messages: text(&output.stderr) }
}

#[tokio::test]
async fn two_operators_open_look_and_close_with_the_program() {
    let house = House::new().await;
    let (ann, bob) = (login_of(&house.town, "ann"), login_of(&house.town, "bob"));
    let open = ["breakglass", "open", "--tenant", "a", "--minutes", "15", "--reason", "a customer called"];
    let refused = reeve(&house, "reeve_ops", &open).await;
    assert_eq!(refused.code, Some(4), "{}", refused.messages);
    assert!(refused.messages.contains("RV040") && refused.messages.contains("CREATE ROLE ann"), "{}", refused.messages);
    let asked = reeve(&house, &ann, &open).await;
    assert_eq!(asked.code, Some(0), "{}", asked.messages);
    let id = asked.out.trim().to_owned();
    assert!(asked.messages.contains(&format!("reeve breakglass approve {id}")), "{}", asked.messages);

    let approve = ["breakglass", "approve", &id, "--reason", "I know of it"];
    let refused = reeve(&house, &ann, &approve).await;
    assert_eq!(refused.code, Some(4), "{}", refused.messages);
    assert!(
        refused.messages.contains("RV041") && refused.messages.contains("another operator"),
        "{}",
        refused.messages
    );
    let early = reeve(&house, &ann, &["breakglass", "login", &id]).await;
    assert!(early.code == Some(4) && early.messages.contains("RV042"), "{}", early.messages);
    let approved = reeve(&house, &bob, &approve).await;
    assert_eq!(approved.code, Some(0), "{}", approved.messages);
    assert!(approved.out.contains("tenant a for 15 min: a customer called"), "{}", approved.out);

    let given = reeve(&house, &ann, &["--json", "breakglass", "login", &id]).await;
    assert_eq!(given.code, Some(0), "{}", given.messages);
    let given: Value = serde_json::from_str(&given.out).expect("JSON");
    let text = |key: &str| given[key].as_str().expect("text").to_owned();
    assert_eq!(text("database"), house.town.db.name);
    let options = house.town.db.options(&text("user")).password(&text("password"));
    let wrong = PgConnection::connect_with(&options.clone().password("wrong")).await.unwrap_err();
    assert_eq!(code(wrong), "28P01");
    let mut session = PgConnection::connect_with(&options).await.expect("the login works");
    do_in(&mut session, BEGIN).await.expect("begun");
    assert!(count(&mut session, JOBS).await > 0);
    let again = reeve(&house, &ann, &["breakglass", "login", &id]).await;
    assert!(again.code == Some(4) && !again.out.contains("password"), "{}{}", again.out, again.messages);

    let listed = reeve(&house, &bob, &["breakglass", "list", "--tenant", "a"]).await;
    assert!(listed.out.starts_with("ID ") && listed.out.contains("  open  "), "{}", listed.out);
    assert!(!listed.out.contains(&text("password")), "{}", listed.out);
    let close = ["breakglass", "close", &id, "--reason", "seen enough"];
    let closed = reeve(&house, &bob, &close).await;
    assert_eq!((closed.code, closed.out.trim()), (Some(0), format!("{id}  closed").as_str()), "{}", closed.messages);
    assert!(do_in(&mut session, "SELECT 1").await.is_err(), "the session was cut");
    let again = reeve(&house, &bob, &close).await;
    assert_eq!((again.code, again.out.trim()), (Some(1), format!("{id}  closed before").as_str()));

    let unknown = reeve(&house, &bob, &["breakglass", "close", &Uuid::nil().to_string(), "--reason", "r"]).await;
    assert!(unknown.code == Some(1) && unknown.messages.contains("reeve breakglass list"), "{}", unknown.messages);
    let verified = reeve(&house, &bob, &["audit", "verify", "--tenant", "a"]).await;
    assert_eq!(verified.code, Some(0), "{}", verified.out);
    let trail = reeve(&house, &bob, &["audit", "search", "--action", "breakglass.", "--json"]).await;
    assert_eq!(trail.out.matches("\"action\": \"breakglass.").count(), 6, "{}", trail.out);
    house.end().await;
}
