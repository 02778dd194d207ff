//! Other people's verifiers judge the deliveries: the npm and the PyPI package `standardwebhooks`, each in a receiver of
//! its own language (`tests/peers/`), as a web app would run it.
//!
//! Flow: an event emitted in SQL → the fleet in this process → the receiver's verdict, read from its stdout. The refusals
//! are here so that an acceptance means something.
//!
//! `tests/peers/install` installs the packages. Without them these tests fail: a skipped judge would pass everything.
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use reeve_worker::duties::webhooks::{
    endpoints::{self, NewEndpoint},
    sign::SigningSecret,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    net::TcpStream,
    process::{Child, ChildStdout, Command},
};
use uuid::Uuid;

use crate::support::{Receiver, Running, Seen, Town, until};

/// The files that `install` copies together, in its order.
const MANIFESTS: [&str; 4] = ["package.json", "package-lock.json", ".npmrc", "requirements.txt"];

#[derive(Debug, Clone, Copy)]
enum Language {
    Node,
    Python,
}

/// Where the packages are, after making sure that they are there and are the ones asked for.
pub fn installed() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let place = std::env::var_os("REEVE_TEST_PEERS").map_or_else(|| tests.join("../.reeve/peers"), PathBuf::from);
    let wanted: String = MANIFESTS
        .iter()
        .map(|name| std::fs::read_to_string(tests.join("peers").join(name)).expect("a manifest of this tree"))
        .collect();
    let found = std::fs::read_to_string(place.join("manifests")).unwrap_or_default();
    assert!(
        found == wanted,
        "the foreign verifiers in {} are {}: run tests/peers/install (REEVE_TEST_PEERS names another place)",
        place.display(),
        if found.is_empty() { "not installed" } else { "of other versions" },
    );
    place.canonicalize().expect("it was just read")
}

/// A receiver in another language that knows one secret.
struct Peer {
    url: String,
    lines: Lines<BufReader<ChildStdout>>,
    /// Ends with the test; and should the test be killed, with its stdin.
    _child: Child,
}

#[derive(Debug, PartialEq, Eq, serde::Deserialize)]
struct Verdict {
    id: String,
    genuine: bool,
}

impl Peer {
    async fn start(language: Language, secret: &SigningSecret) -> Self {
        let place = installed();
        let receiver = |name| Path::new(env!("CARGO_MANIFEST_DIR")).join("peers").join(name);
        let mut command = match language {
            Language::Node => {
                let mut command = Command::new("node");
                command.arg(receiver("receiver.mjs"));
                command
            }
            Language::Python => {
                let mut command = Command::new(place.join("venv/bin/python"));
                command.arg(receiver("receiver.py"));
                command
            }
        };
        let mut child = command
            .env("REEVE_TEST_PEERS", &place)
            .env("REEVE_PEER_SECRET", secret.reveal().as_str())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{language:?} does not start: {error}"));
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut peer = Self { url: String::new(), lines, _child: child };
        let port: u16 = peer.line().await.parse().expect("the first line is the port");
        peer.url = format!("http://127.0.0.1:{port}/hook");
        peer
    }

    /// The limit only ends a test that has failed already.
    async fn line(&mut self) -> String {
        let next = tokio::time::timeout(Duration::from_secs(60), self.lines.next_line());
        let line = next.await.expect("the receiver says nothing").expect("its stdout is text");
        line.expect("the receiver ended; its stderr, above, says why")
    }

    async fn verdict(&mut self) -> Verdict {
        let line = self.line().await;
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"))
    }
}

fn new_secret() -> SigningSecret {
    SigningSecret::generate(&mut rand::rng())
}

/// An endpoint of tenant `a` with a secret that the test chose.
async fn register(town: &Town, url: &str, secret: &SigningSecret) -> Uuid {
    let env = town.environment();
    let new = NewEndpoint { url, event_types: &[], secret };
    let mut scope = town.scope(&town.a).await;
    let id = endpoints::register(&mut scope, &env.keyring, &env.url_policy, &new, "test").await.expect("registered");
    scope.commit().await.expect("committed");
    id
}

/// What a web app in any language does.
async fn emit(town: &Town, event_type: &str, payload: &Value) -> String {
    let mut tx = town.app.begin().await.expect("begin");
    sqlx::query("SELECT set_config('reeve.tenant_id', $1, true)")
        .bind(town.a.as_str())
        .execute(&mut *tx)
        .await
        .expect("context");
    let id = sqlx::query_scalar("SELECT reeve.emit($1, $2)")
        .bind(event_type)
        .bind(payload)
        .fetch_one(&mut *tx)
        .await
        .expect("emitted");
    tx.commit().await.expect("committed");
    id
}

fn fleet(town: &Town) -> Running {
    town.fleet(town.duties(), 4)
}

async fn deliveries_are(town: &Town, expected: &[(&str, Option<i32>)]) {
    let expected: Vec<_> = expected.iter().map(|(state, status)| ((*state).to_owned(), *status)).collect();
    until("each delivery is recorded", async || {
        let found: Vec<(String, Option<i32>)> = sqlx::query_as(
            "SELECT state, last_status FROM reeve.webhook_deliveries WHERE attempts > 0 ORDER BY state, last_status",
        )
        .fetch_all(&town.db.admin)
        .await
        .expect("deliveries");
        found == expected
    })
    .await;
}

/// Bodies that verifiers have stumbled over: anything that is not the same bytes after decoding and encoding again.
fn events() -> Vec<(&'static str, Value)> {
    let pages: Vec<_> =
        (0..2_400).map(|n| json!({"n": n, "text": "صفحة من كتاب طويل جدا، 📖 and a line of it"})).collect();
    let large = json!({ "pages": pages });
    let bytes = large.to_string().len();
    assert!((150_000..250_000).contains(&bytes), "{bytes} bytes are not about 200 kB");
    vec![
        ("message.received", json!({"id": 1, "text": "سلام! رسالتك وصلت، \u{200f}رقم ١٢٣"})),
        ("reaction.added", json!({"emoji": "👩🏽‍🚀🇵🇸❤️‍🔥", "combining": "e\u{301}\u{327}", "😀": ["𝄞", "\u{fffd}"]})),
        ("deal.stage_changed", json!({"deal": {"path": [{"to": [[], {}, [null, true, {"deep": {"er": 0.1}}]]}]}})),
        ("deal.won", json!({"amount": 1e21, "small": -1.5e-7, "large": u64::MAX, "zero": -0.0})),
        ("note.written", json!({"quoted": "\"\\\" </script> & ' \u{1}\u{1f}\u{7f}\u{2028}\r\n\t", "": " "})),
        ("book.imported", large),
        ("workspace.emptied", json!({})),
    ]
}

async fn accepts_every_event_and_body(language: Language) {
    let town = Town::new().await;
    let secret = new_secret();
    let mut peer = Peer::start(language, &secret).await;
    register(&town, &peer.url, &secret).await;
    let mut expected = BTreeSet::new();
    for (event_type, payload) in events() {
        expected.insert(emit(&town, event_type, &payload).await);
    }
    let fleet = fleet(&town);

    let mut accepted = BTreeSet::new();
    for _ in 0..expected.len() {
        let verdict = peer.verdict().await;
        assert!(verdict.genuine, "{language:?} refused {}", verdict.id);
        accepted.insert(verdict.id);
    }
    assert_eq!(accepted, expected);
    deliveries_are(&town, &vec![("delivered", Some(204)); expected.len()]).await;
    fleet.stop().await;
}

async fn either_secret_is_accepted_while_a_rotation_overlaps_and_the_old_one_refused_after_it(language: Language) {
    let town = Town::new().await;
    let (old, new) = (new_secret(), new_secret());
    let (mut not_yet_changed, mut changed) = (Peer::start(language, &old).await, Peer::start(language, &new).await);
    let env = town.environment();
    for url in [&not_yet_changed.url, &changed.url] {
        let endpoint = register(&town, url, &old).await;
        let mut scope = town.scope(&town.a).await;
        endpoints::rotate(&mut scope, &env.keyring, endpoint, &new, 24, "test").await.expect("rotated");
        scope.commit().await.expect("committed");
    }
    let fleet = fleet(&town);

    let id = emit(&town, "message.received", &json!({"text": "while both sign"})).await;
    assert_eq!(not_yet_changed.verdict().await, Verdict { id: id.clone(), genuine: true });
    assert_eq!(changed.verdict().await, Verdict { id, genuine: true });
    deliveries_are(&town, &[("delivered", Some(204)); 2]).await;

    let ended =
        "UPDATE reeve.webhook_secrets SET expires_at = now() - interval '1 second' WHERE expires_at IS NOT NULL";
    let ended = sqlx::query(ended).execute(&town.db.admin).await.expect("the overlap is over");
    assert_eq!(ended.rows_affected(), 2);
    let id = emit(&town, "message.received", &json!({"text": "after"})).await;
    assert_eq!(not_yet_changed.verdict().await, Verdict { id: id.clone(), genuine: false });
    assert_eq!(changed.verdict().await, Verdict { id, genuine: true });
    deliveries_are(
        &town,
        &[("delivered", Some(204)), ("delivered", Some(204)), ("delivered", Some(204)), ("pending", Some(401))],
    )
    .await;
    fleet.stop().await;
}

async fn a_delivery_signed_with_another_secret_is_refused(language: Language) {
    let town = Town::new().await;
    let mut peer = Peer::start(language, &new_secret()).await;
    register(&town, &peer.url, &new_secret()).await;
    let id = emit(&town, "message.received", &json!({"text": "سلام"})).await;
    let fleet = fleet(&town);
    assert_eq!(peer.verdict().await, Verdict { id, genuine: false });
    deliveries_are(&town, &[("pending", Some(401))]).await;
    fleet.stop().await;
}

/// Sends a request as it was seen elsewhere, with another body or id, and returns the status.
async fn replay(peer: &Peer, seen: &Seen, id: &str, body: &[u8]) -> u16 {
    let address = peer.url.trim_start_matches("http://").trim_end_matches("/hook");
    let mut stream = TcpStream::connect(address).await.expect("the receiver listens");
    let head = format!(
        "POST /hook HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nwebhook-id: {id}\r\nwebhook-timestamp: {}\r\nwebhook-signature: {}\r\n\r\n",
        body.len(),
        seen.header("webhook-timestamp"),
        seen.header("webhook-signature"),
    );
    stream.write_all(head.as_bytes()).await.expect("sent");
    stream.write_all(body).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("no status in {answer:?}"))
}

async fn a_genuine_delivery_with_a_changed_body_or_id_is_refused(language: Language) {
    let town = Town::new().await;
    let secret = new_secret();
    let mut peer = Peer::start(language, &secret).await;
    let between = Receiver::start().await;
    register(&town, &between.url("/hook"), &secret).await;
    let id = emit(&town, "deal.won", &json!({"amount": 100})).await;
    let fleet = fleet(&town);
    until("the delivery is seen on its way", async || between.seen().len() == 1).await;
    let [seen] = between.seen().try_into().expect("one request");
    let tampered = String::from_utf8(seen.body.to_vec()).expect("text").replace("100", "900");
    assert_ne!(tampered.as_bytes(), seen.body);

    assert_eq!(replay(&peer, &seen, &id, &seen.body).await, 204);
    assert_eq!(peer.verdict().await, Verdict { id: id.clone(), genuine: true });
    assert_eq!(replay(&peer, &seen, &id, tampered.as_bytes()).await, 401);
    assert_eq!(peer.verdict().await, Verdict { id, genuine: false });
    assert_eq!(replay(&peer, &seen, "msg_another", &seen.body).await, 401);
    assert_eq!(peer.verdict().await, Verdict { id: "msg_another".to_owned(), genuine: false });
    fleet.stop().await;
}

macro_rules! each_language {
    ($( $claim:ident ),+ $(,)?) => {
        mod node { $( #[tokio::test] async fn $claim() { super::$claim(super::Language::Node).await } )+ }
        mod python { $( #[tokio::test] async fn $claim() { super::$claim(super::Language::Python).await } )+ }
    };
}

each_language! {
    accepts_every_event_and_body,
    either_secret_is_accepted_while_a_rotation_overlaps_and_the_old_one_refused_after_it,
    a_delivery_signed_with_another_secret_is_refused,
    a_genuine_delivery_with_a_changed_body_or_id_is_refused,
}
