//! `aws-kms:` against a KMS on this machine that verifies signatures, binds the context and holds keys of its own.
use reeve_jobs::seal::provider::{KeyProvider, Outage, Refusal, WrapContext, rewrap_proven, wrap_proven};
use reeve_worker::clients::kms::{self, KmsSettings};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    SHORT_MS, Server, TIMEOUT_MS, assert_misanswered, away, canary_key, ends_at_the_time_out,
    kms_server::{KeyState, Kms, REGION},
    moves_from_and_to_a_local_key, new_key, open, opens_only_in_its_context, refused, refuses_changed_wraps,
    server::{Asked, Fault},
    settings,
    sigv4::Login,
    tells_nothing, tenant,
};

const SECRET: &str = "secret-canary-wJalrXUtnFEMI/K7MDENG+bPxRfiCYEX";
const SESSION: &str = "session-canary-FwoGZXIvYXdzE";

fn login() -> Login {
    Login { id: "AKIDEXAMPLE".to_owned(), secret: SECRET.to_owned(), session_token: Some(SESSION.to_owned()) }
}

async fn kms() -> (Server<Kms>, KmsSettings) {
    let server = Server::start(Kms::new(login())).await;
    let settings = with(&server, &login(), TIMEOUT_MS);
    (server, settings)
}

fn with(server: &Server<Kms>, login: &Login, timeout_ms: u64) -> KmsSettings {
    settings(json!({
        "timeout_ms": timeout_ms,
        "aws": {
            "endpoint": server.base, "access_key_id": login.id, "secret_access_key": login.secret,
            "session_token": login.session_token,
        },
    }))
}

fn reference(arn: &str) -> String {
    format!("aws-kms:{arn}")
}

#[tokio::test]
async fn a_wrapped_key_opens_only_in_its_context() {
    let (server, settings) = kms().await;
    let arn = server.protocol.make_key();
    let provider = open(&reference(&arn), &settings).await;
    opens_only_in_its_context(&*provider).await;
    let asked = server.asked();
    let [encrypt, decrypt] = [&asked[0], &asked[1]].map(Asked::json);
    let context = json!({"tenant": "a", "version": "3", "region": "eu"});
    assert_eq!((&encrypt["KeyId"], &encrypt["EncryptionContext"]), (&json!(arn), &context));
    assert_eq!((&decrypt["KeyId"], &decrypt["EncryptionContext"]), (&json!(arn), &context), "the key is pinned");
}

#[tokio::test]
async fn a_changed_or_cut_wrap_is_refused() {
    let (server, settings) = kms().await;
    let provider = open(&reference(&server.protocol.make_key()), &settings).await;
    refuses_changed_wraps(&*provider).await;
}

#[tokio::test]
async fn another_key_is_refused_under_its_own_and_under_the_same_name() {
    let (server, settings) = kms().await;
    let (arn, other) = (server.protocol.make_key(), server.protocol.make_key());
    let (provider, another) = (open(&reference(&arn), &settings).await, open(&reference(&other), &settings).await);
    let a = tenant("a");
    let context = WrapContext { tenant: &a, version: 1, region: "eu" };
    let wrapped = provider.wrap(context, &new_key()).await.expect("wrapped");
    let error = another.unwrap(context, &wrapped).await.expect_err("another key");
    assert!(refused(&error) == Refusal::Opening && error.to_string().contains("another key"), "{error}");
    server.protocol.swap_material(&arn);
    let error = provider.unwrap(context, &wrapped).await.expect_err("another root under the same name");
    assert_eq!(refused(&error), Refusal::Opening);
}

#[tokio::test]
async fn a_key_moves_between_two_of_kms_without_coming_out() {
    let (server, settings) = kms().await;
    let [old, new] = [server.protocol.make_key(), server.protocol.make_key()];
    let (from, to) = (open(&reference(&old), &settings).await, open(&reference(&new), &settings).await);
    assert!(to.capabilities().rewraps_inside && to.capabilities().remote);
    let a = tenant("a");
    let context = WrapContext { tenant: &a, version: 1, region: "eu" };
    let key = new_key();
    let wrapped = from.wrap(context, &key).await.expect("wrapped");
    let before = server.asked_count();
    let moved = to.rewrap(&*from, context, &wrapped).await.expect("re-wrapped");
    let [asked] = server.asked().split_off(before).try_into().expect("one call");
    assert_eq!(asked.header("x-amz-target"), "TrentService.ReEncrypt");
    assert_eq!((&asked.json()["SourceKeyId"], &asked.json()["DestinationKeyId"]), (&json!(old), &json!(new)));
    assert_eq!(to.unwrap(context, &moved).await.expect("unwrapped").reveal(), key.reveal());
    assert!(from.unwrap(context, &moved).await.is_err());
    rewrap_proven(&*to, &*from, context, &wrapped).await.expect("and proven");

    let elsewhere = WrapContext { region: "us", ..context };
    let error = to.rewrap(&*from, elsewhere, &wrapped).await.expect_err("another context");
    assert_eq!(refused(&error), Refusal::Opening, "re-wrapping is no way round the context");
    for fault in [Fault::OtherKey, Fault::Bytes(0), Fault::Bytes(32), Fault::NoBase64, Fault::HalfJson] {
        server.next(&[fault; 3]);
        assert_misanswered(&to.rewrap(&*from, context, &wrapped).await.expect_err("wrong"), fault);
        drain(&server, &*from).await;
    }
    moves_from_and_to_a_local_key(&*to).await;
}

/// Until the server is well again: faults that were not used up are.
async fn drain(server: &Server<Kms>, provider: &dyn KeyProvider) {
    let a = tenant("a");
    let context = WrapContext { tenant: &a, version: 1, region: "eu" };
    let before = server.asked_count();
    while provider.wrap(context, &new_key()).await.is_err() {
        assert!(server.asked_count() < before + 20, "it stays unwell");
    }
}

#[tokio::test]
async fn a_key_that_may_not_be_used_is_refused_for_good() {
    let (server, settings) = kms().await;
    let arn = server.protocol.make_key();
    let provider = open(&reference(&arn), &settings).await;
    let a = tenant("a");
    let context = WrapContext { tenant: &a, version: 1, region: "eu" };
    let wrapped = provider.wrap(context, &new_key()).await.expect("wrapped");
    for (state, class) in [
        (KeyState::Disabled, Refusal::Disabled),
        (KeyState::PendingDeletion, Refusal::Disabled),
        (KeyState::Forbidden, Refusal::Permission),
    ] {
        server.protocol.set_state(&arn, state);
        let before = server.asked_count();
        assert_eq!(refused(&provider.wrap(context, &new_key()).await.expect_err("refused")), class, "{state:?}");
        assert_eq!(refused(&provider.unwrap(context, &wrapped).await.expect_err("refused")), class, "{state:?}");
        assert_eq!(server.asked_count(), before + 2, "asking again would be of no use");
    }
    server.protocol.set_state(&arn, KeyState::Enabled);
    assert!(provider.unwrap(context, &wrapped).await.is_ok());
    let unknown = open(&reference(&format!("arn:aws:kms:{REGION}:111122223333:key/none")), &settings).await;
    assert_eq!(refused(&unknown.wrap(context, &new_key()).await.expect_err("refused")), Refusal::UnknownKey);
}

#[tokio::test]
async fn wrong_credentials_are_refused_for_good() {
    let (server, _) = kms().await;
    let arn = server.protocol.make_key();
    let a = tenant("a");
    let context = WrapContext { tenant: &a, version: 1, region: "eu" };
    for wrong in [
        Login { secret: "another".to_owned(), ..login() },
        Login { id: "AKIDANOTHER".to_owned(), ..login() },
        Login { session_token: Some("another".to_owned()), ..login() },
        Login { session_token: None, ..login() },
    ] {
        let provider = open(&reference(&arn), &with(&server, &wrong, TIMEOUT_MS)).await;
        let error = provider.wrap(context, &new_key()).await.expect_err("refused");
        assert_eq!(refused(&error), Refusal::Permission, "{wrong:?}: {error}");
    }
    // Signed for the region that its ARN names, the request is worth nothing in this one.
    let elsewhere = reference(&arn.replace(REGION, "us-east-1"));
    let provider = open(&elsewhere, &with(&server, &login(), TIMEOUT_MS)).await;
    assert_eq!(refused(&provider.wrap(context, &new_key()).await.expect_err("refused")), Refusal::Permission);
}

/// Sends a request as it was seen, with another body, and returns the answer.
async fn replay(server: &Server<Kms>, asked: &Asked, body: &[u8]) -> String {
    let mut stream = TcpStream::connect(server.base.trim_start_matches("http://")).await.expect("it listens");
    let mut head = format!("POST {} HTTP/1.1\r\n", asked.path);
    for (name, value) in &asked.headers {
        if !["content-length", "connection"].contains(&name.as_str()) {
            head += &format!("{name}: {}\r\n", value.to_str().expect("text"));
        }
    }
    head += &format!("content-length: {}\r\nconnection: close\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await.expect("sent");
    stream.write_all(body).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    answer
}

/// The server of these tests is worth its word: it knows a genuine request from a changed and from an old one.
#[tokio::test]
async fn the_server_refuses_a_changed_body_and_a_stale_date() {
    let (server, settings) = kms().await;
    let provider = open(&reference(&server.protocol.make_key()), &settings).await;
    let a = tenant("a");
    provider.wrap(WrapContext { tenant: &a, version: 1, region: "eu" }, &new_key()).await.expect("wrapped");
    let [asked] = server.asked().try_into().expect("one call");
    assert!(replay(&server, &asked, &asked.body).await.contains("CiphertextBlob"), "the same is still good");
    let changed = String::from_utf8(asked.body.to_vec()).expect("JSON").replace("\"eu\"", "\"us\"");
    assert_ne!(changed.as_bytes(), asked.body);
    assert!(replay(&server, &asked, changed.as_bytes()).await.contains("InvalidSignatureException"));
    let mut target = asked.clone();
    target.headers.insert("x-amz-target", "TrentService.Decrypt".parse().expect("a value"));
    assert!(replay(&server, &target, &asked.body).await.contains("InvalidSignatureException"));
    for ahead in [240, 301] {
        server.set_ahead(ahead);
        let is_good = replay(&server, &asked, &asked.body).await.contains("CiphertextBlob");
        assert_eq!(is_good, ahead == 240, "{ahead} s");
    }
}

#[tokio::test]
async fn an_outage_is_told_from_a_refusal() {
    let (server, settings) = kms().await;
    let provider = open(&reference(&server.protocol.make_key()), &settings).await;
    let a = tenant("a");
    let context = WrapContext { tenant: &a, version: 1, region: "eu" };
    let wrapped = provider.wrap(context, &new_key()).await.expect("wrapped");
    for (fault, class) in [
        (Fault::Throttled, Outage::Throttled),
        (Fault::Internal, Outage::Failing),
        (Fault::Away, Outage::Failing),
        (Fault::HangUp, Outage::Unreachable),
        (Fault::BreakOff, Outage::Unreachable),
        (Fault::Html(502), Outage::Failing),
    ] {
        server.always(fault);
        for error in [provider.wrap(context, &new_key()).await.err(), provider.unwrap(context, &wrapped).await.err()] {
            let error = error.expect("it is away");
            assert!(away(&error) == class && error.is_transient(), "{fault:?}: {error:?}");
        }
    }
    server.always(Fault::Denied);
    assert_eq!(refused(&provider.unwrap(context, &wrapped).await.expect_err("refused")), Refusal::Permission);
    server.always(None);
    assert!(provider.unwrap(context, &wrapped).await.is_ok(), "and it is well again");
}

#[tokio::test]
async fn a_passing_fault_is_tried_again_twice_and_no_more() {
    let (server, settings) = kms().await;
    let provider = open(&reference(&server.protocol.make_key()), &settings).await;
    let a = tenant("a");
    let context = WrapContext { tenant: &a, version: 1, region: "eu" };
    server.next(&[Fault::Throttled, Fault::Away]);
    provider.wrap(context, &new_key()).await.expect("the third time");
    assert_eq!(server.asked_count(), 3);
    server.next(&[Fault::Throttled; 3]);
    assert_eq!(away(&provider.wrap(context, &new_key()).await.expect_err("throttled")), Outage::Throttled);
    assert_eq!(server.asked_count(), 6);
}

#[tokio::test]
async fn a_slow_kms_ends_at_the_time_out() {
    let (server, _) = kms().await;
    let provider = open(&reference(&server.protocol.make_key()), &with(&server, &login(), SHORT_MS)).await;
    let a = tenant("a");
    let context = WrapContext { tenant: &a, version: 1, region: "eu" };
    let wrapped = provider.wrap(context, &new_key()).await.expect("wrapped");
    server.always(Fault::Silent);
    ends_at_the_time_out(&*provider, &wrapped).await;
}

#[tokio::test]
async fn a_kms_that_is_not_there_is_unreachable() {
    let (server, settings) = kms().await;
    let provider = open(&reference(&server.protocol.make_key()), &settings).await;
    drop(server);
    tokio::task::yield_now().await;
    let a = tenant("a");
    let error =
        provider.wrap(WrapContext { tenant: &a, version: 1, region: "eu" }, &new_key()).await.expect_err("gone");
    assert_eq!(away(&error), Outage::Unreachable);
}

#[tokio::test]
async fn a_wrong_answer_is_never_used() {
    let (server, settings) = kms().await;
    let provider = open(&reference(&server.protocol.make_key()), &settings).await;
    let a = tenant("a");
    let context = WrapContext { tenant: &a, version: 1, region: "eu" };
    let (key, _) = canary_key();
    let wrapped = wrap_proven(&*provider, context, &key).await.expect("wrapped");
    let both = [
        Fault::HalfJson,
        Fault::Html(200),
        Fault::Html(404),
        Fault::NoFields,
        Fault::NoBase64,
        Fault::OtherKey,
        Fault::Redirect,
        Fault::Bytes(0),
        Fault::Bytes(31),
    ];
    for fault in both.into_iter().chain([Fault::Echo]) {
        server.always(fault);
        assert_misanswered(&provider.wrap(context, &key).await.expect_err("wrong"), fault);
    }
    for fault in both.into_iter().chain([Fault::Bytes(33), Fault::Bytes(64)]) {
        server.always(fault);
        assert_misanswered(&provider.unwrap(context, &wrapped).await.expect_err("wrong"), fault);
    }
    // Thirty-two bytes of nonsense are a key to anybody: only unwrapping what was wrapped shows them.
    server.always(None);
    server.next(&[Fault::Bytes(80)]);
    assert!(wrap_proven(&*provider, context, &key).await.is_err(), "a wrap of nothing");
}

#[tokio::test]
async fn half_of_a_login_is_refused_before_anything_is_asked() {
    let reference = reference(&format!("arn:aws:kms:{REGION}:111122223333:key/k")).parse().expect("a reference");
    let half = settings(json!({"aws": {"access_key_id": "AKID"}}));
    let error = kms::open(&reference, 1, &half).await.expect_err("half of a login");
    assert!(refused(&error) == Refusal::Settings && error.to_string().contains("go together"), "{error}");
}

/// The environment is a process's own, so the test runs itself once with a login there and once without. The address that
/// instances ask is switched off: nobody but this machine is asked here.
#[tokio::test]
async fn credentials_are_looked_for_where_awss_own_tools_do() {
    const CASE: &str = "REEVE_TEST_AWS_LOGIN";
    let Ok(case) = std::env::var(CASE) else {
        let home = tempfile::tempdir().expect("a directory");
        for case in ["there", "missing"] {
            let mut again = std::process::Command::new(std::env::current_exe().expect("this test has a path"));
            again
                .args(["--exact", "providers::aws::credentials_are_looked_for_where_awss_own_tools_do"])
                .env_clear()
                .env("HOME", home.path())
                .env("AWS_EC2_METADATA_DISABLED", "true")
                // Nothing listens there: an endpoint of this machine is asked without a proxy, who would see the keys.
                .env("HTTP_PROXY", "http://127.0.0.1:9")
                .env(CASE, case);
            if case == "there" {
                again.envs([("AWS_ACCESS_KEY_ID", login().id.as_str()), ("AWS_SECRET_ACCESS_KEY", SECRET)]);
                again.env("AWS_SESSION_TOKEN", SESSION);
            }
            let output = again.output().expect("it runs");
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && said.contains("1 passed"), "{case}: {said}");
        }
        return;
    };
    let (server, _) = kms().await;
    let value = json!({"timeout_ms": TIMEOUT_MS, "aws": {"endpoint": server.base}});
    let provider = open(&reference(&server.protocol.make_key()), &settings(value)).await;
    let a = tenant("a");
    let answer = provider.wrap(WrapContext { tenant: &a, version: 1, region: "eu" }, &new_key()).await;
    if case == "there" {
        answer.expect("wrapped");
    } else {
        let error = answer.expect_err("no login");
        assert!(refused(&error) == Refusal::Settings && error.to_string().contains("[worker.kms.aws]"), "{error}");
    }
}

#[tokio::test]
async fn nothing_secret_is_printed() {
    let (server, _) = kms().await;
    let provider = open(&reference(&server.protocol.make_key()), &with(&server, &login(), TIMEOUT_MS)).await;
    let faults = [
        Fault::Throttled,
        Fault::Internal,
        Fault::Denied,
        Fault::HalfJson,
        Fault::Html(200),
        Fault::NoFields,
        Fault::NoBase64,
        Fault::OtherKey,
        Fault::Echo,
        Fault::Bytes(31),
        Fault::HangUp,
    ];
    tells_nothing(&server, &*provider, &faults, &[SECRET, SESSION]).await;
}
