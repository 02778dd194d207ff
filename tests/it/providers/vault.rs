//! `vault:` against a transit engine on this machine that holds tokens, versions and keys of its own.
use std::path::Path;

use reeve_jobs::seal::provider::{Outage, Refusal, WrapContext, rewrap_proven, wrap_proven};
use reeve_worker::clients::kms::{self, KmsSettings};
use serde_json::json;

use super::{
    SHORT_MS, Server, TIMEOUT_MS, assert_misanswered, away, canary_key, ends_at_the_time_out,
    moves_from_and_to_a_local_key, new_key, open, opens_only_in_its_context, refused, refuses_changed_wraps,
    server::Fault, settings, tells_nothing, tenant, vault_server::Vault,
};

const TOKEN: &str = "token-canary-hvs.CAESIJ";

async fn vault() -> (Server<Vault>, KmsSettings) {
    let server = Server::start(Vault::with_token(TOKEN)).await;
    server.protocol.make_key("reeve", 2);
    let settings = with(&server, TIMEOUT_MS);
    (server, settings)
}

fn with(server: &Server<Vault>, timeout_ms: u64) -> KmsSettings {
    settings(json!({"timeout_ms": timeout_ms, "vault": {"address": server.base, "token": TOKEN}}))
}

fn reference(version: u32) -> String {
    format!("vault:team/transit/reeve#{version}")
}

#[tokio::test]
async fn a_wrapped_key_opens_only_in_its_context() {
    let (server, settings) = vault().await;
    let provider = open(&reference(1), &settings).await;
    opens_only_in_its_context(&*provider).await;
    let asked = server.asked();
    assert_eq!((asked[0].path.as_str(), asked[0].header("x-vault-token")), ("/v1/team/transit/encrypt/reeve", TOKEN));
    let a = tenant("a");
    let bytes = WrapContext { tenant: &a, version: 3, region: "eu" }.bytes();
    let bytes = super::server::base64(&bytes);
    let [encrypt, decrypt] = [&asked[0], &asked[1]].map(super::server::Asked::json);
    assert_eq!((&encrypt["associated_data"], &encrypt["key_version"]), (&json!(bytes), &json!(1)));
    assert_eq!(decrypt["associated_data"], json!(bytes));
}

#[tokio::test]
async fn a_changed_or_cut_wrap_is_refused() {
    let (_server, settings) = vault().await;
    refuses_changed_wraps(&*open(&reference(1), &settings).await).await;
}

#[tokio::test]
async fn a_version_is_pinned_although_a_later_one_is_current() {
    let (server, settings) = vault().await;
    let (first, second) = (open(&reference(1), &settings).await, open(&reference(2), &settings).await);
    let a = tenant("a");
    let context = WrapContext { tenant: &a, version: 1, region: "eu" };
    let key = new_key();
    let wrapped = first.wrap(context, &key).await.expect("wrapped");
    assert!(wrapped.starts_with(b"vault:v1:"));
    let before = server.asked_count();
    let error = second.unwrap(context, &wrapped).await.expect_err("another version");
    assert_eq!((refused(&error), server.asked_count()), (Refusal::Version, before), "not even asked");

    let moved = rewrap_proven(&*second, &*first, context, &wrapped).await.expect("re-wrapped");
    assert!(moved.starts_with(b"vault:v2:"));
    assert_eq!(second.unwrap(context, &moved).await.expect("unwrapped").reveal(), key.reveal());
    assert!(!second.capabilities().rewraps_inside && second.capabilities().remote);

    server.protocol.set_min_decryption_version("reeve", 2);
    let error = first.unwrap(context, &wrapped).await.expect_err("retired there");
    assert_eq!(refused(&error), Refusal::Version, "{error}");
    let error = first.wrap(context, &key).await.expect_err("retired there");
    assert_eq!(refused(&error), Refusal::Version, "{error}");
    let third = open(&reference(3), &settings).await;
    assert_eq!(refused(&third.wrap(context, &key).await.expect_err("not made yet")), Refusal::Version);
    moves_from_and_to_a_local_key(&*second).await;
}

#[tokio::test]
async fn another_root_under_the_same_name_is_refused() {
    let (server, settings) = vault().await;
    let provider = open(&reference(1), &settings).await;
    let a = tenant("a");
    let context = WrapContext { tenant: &a, version: 1, region: "eu" };
    let wrapped = provider.wrap(context, &new_key()).await.expect("wrapped");
    server.protocol.make_key("reeve", 2);
    assert_eq!(refused(&provider.unwrap(context, &wrapped).await.expect_err("another root")), Refusal::Opening);
}

#[tokio::test]
async fn what_is_not_there_or_not_allowed_is_refused_for_good() {
    let (server, settings) = vault().await;
    let a = tenant("a");
    let context = WrapContext { tenant: &a, version: 1, region: "eu" };
    let provider = open(&reference(1), &settings).await;
    let wrapped = provider.wrap(context, &new_key()).await.expect("wrapped");
    let unknown = open("vault:team/transit/none#1", &settings).await;
    assert_eq!(refused(&unknown.unwrap(context, &wrapped).await.expect_err("no key")), Refusal::UnknownKey);
    assert_eq!(refused(&unknown.wrap(context, &new_key()).await.expect_err("no key")), Refusal::Permission);
    let unmounted = open("vault:elsewhere/reeve#1", &settings).await;
    assert_eq!(refused(&unmounted.unwrap(context, &wrapped).await.expect_err("no mount")), Refusal::UnknownKey);
    server.protocol.revoke(TOKEN);
    let before = server.asked_count();
    assert_eq!(refused(&provider.unwrap(context, &wrapped).await.expect_err("revoked")), Refusal::Permission);
    assert_eq!(server.asked_count(), before + 1, "a given token is not asked with twice");
}

#[tokio::test]
async fn a_namespace_is_sent_where_one_is_set() {
    let (server, without) = vault().await;
    "team/a".clone_into(&mut server.protocol.namespace.lock().expect("lock"));
    let value = json!({"vault": {"address": server.base, "token": TOKEN, "namespace": "team/a"}});
    let a = tenant("a");
    let context = WrapContext { tenant: &a, version: 1, region: "eu" };
    open(&reference(1), &settings(value)).await.wrap(context, &new_key()).await.expect("wrapped");
    let error = open(&reference(1), &without).await.wrap(context, &new_key()).await.expect_err("refused");
    assert_eq!(refused(&error), Refusal::Permission);
}

fn by_file(server: &Server<Vault>, file: &Path) -> KmsSettings {
    settings(json!({"timeout_ms": TIMEOUT_MS, "vault": {"address": server.base, "token_file": file}}))
}

#[tokio::test]
async fn a_token_file_is_read_again_when_its_token_is_refused() {
    let (server, _) = vault().await;
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), format!("{TOKEN}\n")).expect("written");
    let provider = open(&reference(1), &by_file(&server, file.path())).await;
    let a = tenant("a");
    let context = WrapContext { tenant: &a, version: 1, region: "eu" };
    provider.wrap(context, &new_key()).await.expect("wrapped");

    server.protocol.revoke(TOKEN);
    server.protocol.grant("the-next");
    let before = server.asked_count();
    assert_eq!(refused(&provider.wrap(context, &new_key()).await.expect_err("the old one")), Refusal::Permission);
    assert_eq!(server.asked_count(), before + 1, "the same token is not asked with twice");
    std::fs::write(file.path(), "the-next").expect("written");
    provider.wrap(context, &new_key()).await.expect("by the next token, at once");
    assert_eq!(server.asked_count(), before + 3);
    provider.wrap(context, &new_key()).await.expect("and from then on");
    assert_eq!(server.asked_count(), before + 4);

    // Refused without end: read once a call, and no loop.
    server.protocol.revoke("the-next");
    std::fs::write(file.path(), "another-bad-one").expect("written");
    assert_eq!(refused(&provider.wrap(context, &new_key()).await.expect_err("bad")), Refusal::Permission);
    assert_eq!(server.asked_count(), before + 6);
}

#[tokio::test]
async fn a_token_file_is_read_again_at_a_reload_and_a_broken_one_changes_nothing() {
    let (server, _) = vault().await;
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), TOKEN).expect("written");
    let provider = open(&reference(1), &by_file(&server, file.path())).await;
    let a = tenant("a");
    let context = WrapContext { tenant: &a, version: 1, region: "eu" };
    for broken in ["", "canary two words", "canary\u{7}"] {
        std::fs::write(file.path(), broken).expect("written");
        let error = provider.reload().expect_err("no token");
        assert!(refused(&error) == Refusal::Settings && !error.to_string().contains("canary"), "{error}");
        provider.wrap(context, &new_key()).await.expect("by the one that was read before");
    }
    server.protocol.grant("the-next");
    std::fs::write(file.path(), "the-next").expect("written");
    provider.reload().expect("reloaded");
    provider.wrap(context, &new_key()).await.expect("wrapped");
    assert_eq!(server.asked().last().expect("asked").header("x-vault-token"), "the-next");
}

#[tokio::test]
async fn settings_that_reach_no_vault_are_refused_with_what_to_set() {
    let none = tempfile::tempdir().expect("a directory");
    let here = "http://127.0.0.1:9";
    for (vault, says) in [
        (json!({}), "kms.vault: no address"),
        (json!({"address": here}), "one of token and token_file"),
        (json!({"address": here, "token": "a", "token_file": "/b"}), "one of token and token_file"),
        (json!({"address": here, "token_file": none.path().join("none")}), "token_file"),
        (json!({"address": here, "token_file": none.path()}), "no regular file"),
        (json!({"address": here, "token": "a", "ca_file": none.path().join("none")}), "ca_file"),
        (json!({"address": here, "token": "can\nary"}), "not a token"),
        (json!({"address": "http://vault.example", "token": "a"}), "kms.vault.address"),
    ] {
        let reference = reference(1).parse().expect("a reference");
        let error = kms::open(&reference, 1, &settings(json!({"vault": vault}))).await.expect_err("refused");
        assert!(refused(&error) == Refusal::Settings && error.to_string().contains(says), "{vault}: {error}");
    }
    let pem = none.path().join("ca.pem");
    std::fs::write(&pem, "no certificate").expect("written");
    let value = json!({"vault": {"address": here, "token": "a", "ca_file": pem}});
    let error = kms::open(&reference(1).parse().expect("a reference"), 1, &settings(value)).await.expect_err("refused");
    assert!(error.to_string().contains("no certificates in PEM"), "{error}");
}

#[tokio::test]
async fn an_outage_is_told_from_a_refusal() {
    let (server, settings) = vault().await;
    let provider = open(&reference(1), &settings).await;
    let a = tenant("a");
    let context = WrapContext { tenant: &a, version: 1, region: "eu" };
    let wrapped = provider.wrap(context, &new_key()).await.expect("wrapped");
    for (fault, class) in [
        (Fault::Throttled, Outage::Throttled),
        (Fault::Internal, Outage::Failing),
        (Fault::Away, Outage::Failing),
        (Fault::Html(502), Outage::Failing),
        (Fault::Redirect, Outage::Failing),
        (Fault::HangUp, Outage::Unreachable),
        (Fault::BreakOff, Outage::Unreachable),
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
    *server.protocol.is_sealed.lock().expect("lock") = true;
    assert_eq!(away(&provider.unwrap(context, &wrapped).await.expect_err("sealed")), Outage::Failing);
    *server.protocol.is_sealed.lock().expect("lock") = false;
    assert!(provider.unwrap(context, &wrapped).await.is_ok(), "and it is well again");
}

#[tokio::test]
async fn a_passing_fault_is_tried_again_twice_and_no_more() {
    let (server, settings) = vault().await;
    let provider = open(&reference(1), &settings).await;
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
async fn a_slow_vault_ends_at_the_time_out() {
    let (server, _) = vault().await;
    let provider = open(&reference(1), &with(&server, SHORT_MS)).await;
    let a = tenant("a");
    let context = WrapContext { tenant: &a, version: 1, region: "eu" };
    let wrapped = provider.wrap(context, &new_key()).await.expect("wrapped");
    server.always(Fault::Silent);
    ends_at_the_time_out(&*provider, &wrapped).await;
}

#[tokio::test]
async fn a_wrong_answer_is_never_used() {
    let (server, settings) = vault().await;
    let provider = open(&reference(1), &settings).await;
    let a = tenant("a");
    let context = WrapContext { tenant: &a, version: 1, region: "eu" };
    let (key, _) = canary_key();
    let wrapped = wrap_proven(&*provider, context, &key).await.expect("wrapped");
    let both = [
        Fault::HalfJson,
        Fault::Html(200),
        Fault::Html(403),
        Fault::Html(404),
        Fault::NoFields,
        Fault::NoBase64,
        Fault::Bytes(0),
        Fault::Bytes(31),
        Fault::Endless,
    ];
    for fault in both.into_iter().chain([Fault::Echo, Fault::OtherKey, Fault::Bytes(32)]) {
        server.always(fault);
        assert_misanswered(&provider.wrap(context, &key).await.expect_err("wrong"), fault);
    }
    for fault in both.into_iter().chain([Fault::Bytes(33), Fault::Bytes(64)]) {
        server.always(fault);
        assert_misanswered(&provider.unwrap(context, &wrapped).await.expect_err("wrong"), fault);
    }
    server.always(Fault::Endless);
    let said = provider.unwrap(context, &wrapped).await.expect_err("wrong").to_string();
    assert!(said.contains("far too long"), "{said}");
    server.always(None);
    server.next(&[Fault::Bytes(80)]);
    assert!(wrap_proven(&*provider, context, &key).await.is_err(), "a wrap of nothing");
}

#[tokio::test]
async fn nothing_secret_is_printed() {
    let (server, settings) = vault().await;
    let provider = open(&reference(1), &settings).await;
    let faults = [
        Fault::Throttled,
        Fault::Internal,
        Fault::Denied,
        Fault::HalfJson,
        Fault::Html(200),
        Fault::Html(404),
        Fault::NoFields,
        Fault::NoBase64,
        Fault::OtherKey,
        Fault::Echo,
        Fault::Bytes(31),
        Fault::HangUp,
    ];
    tells_nothing(&server, &*provider, &faults, &[TOKEN]).await;
}
