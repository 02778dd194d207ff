//! The keepers of the platform's keys: ours against servers of both remote protocols on this machine ([`aws`], [`vault`]),
//! and against other people's ([`real`]): OpenBao itself, and moto's KMS.
//!
//! `env:` and `file:` have their tests beside their code. What is told apart here are the three classes of an error, for
//! they decide whether a job waits or gives up; and no class may let a key, a token or a remote party's words out.
mod aws;
mod kms_server;
mod real;
mod server;
mod sigv4;
mod vault;
mod vault_server;

use std::{
    io,
    sync::{Arc, Mutex},
};

use reeve_jobs::{
    TenantId,
    seal::{
        DataKey,
        provider::{KeyProvider, Outage, ProviderError, Refusal, WrapContext, local::LocalProvider, wrap_proven},
    },
};
use reeve_worker::clients::kms::{self, KmsSettings};
use serde_json::Value;
use server::{Fault, Protocol, REMOTE_CANARY, Server};
use zeroize::Zeroizing;

/// Long enough for any answer of a server on this machine, unless it never comes.
const TIMEOUT_MS: u64 = 20_000;
/// For those that never come.
const SHORT_MS: u64 = 300;

fn settings(value: Value) -> KmsSettings {
    serde_json::from_value(value).expect("settings")
}

async fn open(reference: &str, settings: &KmsSettings) -> Arc<dyn KeyProvider> {
    kms::open(&reference.parse().expect("a reference"), 1, settings).await.expect("a provider")
}

fn tenant(id: &str) -> TenantId {
    id.parse().expect("an id")
}

fn new_key() -> DataKey {
    DataKey::random(&mut rand::rng())
}

fn refused(error: &ProviderError) -> Refusal {
    match error {
        ProviderError::Refused { class, .. } => *class,
        other => panic!("not refused: {other:?}"),
    }
}

fn away(error: &ProviderError) -> Outage {
    match error {
        ProviderError::Unavailable { class, .. } => *class,
        other => panic!("not unavailable: {other:?}"),
    }
}

/// Wraps and unwraps while the server is silent. The limit only ends a test that has failed already.
async fn ends_at_the_time_out(provider: &dyn KeyProvider, wrapped: &[u8]) {
    let a = tenant("a");
    let context = WrapContext { tenant: &a, version: 1, region: "eu" };
    let limit = std::time::Duration::from_secs(60);
    let key = new_key();
    let wrap = tokio::time::timeout(limit, provider.wrap(context, &key)).await.expect("its own time-out");
    assert_eq!(away(&wrap.expect_err("silent")), Outage::TimedOut);
    let unwrap = tokio::time::timeout(limit, provider.unwrap(context, wrapped)).await.expect("its own time-out");
    assert_eq!(away(&unwrap.expect_err("silent")), Outage::TimedOut);
}

fn assert_misanswered(error: &ProviderError, fault: Fault) {
    assert!(matches!(error, ProviderError::Misanswered { .. }) && error.is_transient(), "{fault:?}: {error:?}");
}

/// All that is logged in this thread, at any level, by anybody.
#[derive(Clone, Default)]
struct Logged(Arc<Mutex<Vec<u8>>>);

impl io::Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic while it was held").extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Logged {
    fn start() -> (Self, tracing::subscriber::DefaultGuard) {
        let logged = Self::default();
        let writer = logged.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        (logged, tracing::subscriber::set_default(subscriber))
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("no panic while it was held")).into_owned()
    }
}

/// A key whose bytes are found in any text: raw, in base64 and in hex.
fn canary_key() -> (DataKey, [String; 3]) {
    let bytes = *b"key-canary-key-canary-key-canary";
    let hex = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let spelt = [String::from_utf8(bytes.to_vec()).expect("text"), server::base64(&bytes), hex];
    (DataKey::from_bytes(Zeroizing::new(bytes)), spelt)
}

/// Everything there is to see of a provider in all its troubles must name none of `canaries`.
async fn tells_nothing<P: Protocol>(
    server: &Server<P>,
    provider: &dyn KeyProvider,
    faults: &[Fault],
    canaries: &[&str],
) {
    let (logged, guard) = Logged::start();
    let (key, spelt) = canary_key();
    let a = tenant("a");
    let context = WrapContext { tenant: &a, version: 1, region: "eu" };
    let wrapped = wrap_proven(provider, context, &key).await.expect("wrapped");
    let mut shown = format!("{provider:?} {key:?}");
    for fault in faults {
        server.always(*fault);
        for error in [provider.wrap(context, &key).await.err(), provider.unwrap(context, &wrapped).await.err()]
            .into_iter()
            .flatten()
        {
            shown.push_str(&format!("{error} {error:?} {}\n", error.reason()));
        }
    }
    server.always(None);
    drop(guard);
    let logged = logged.text();
    assert!(!logged.is_empty() && shown.len() > faults.len() * 40, "there was something to look at");
    for canary in spelt.iter().map(String::as_str).chain(canaries.iter().copied()) {
        let line = |text: &str| text.lines().find(|line| line.contains(canary)).map(str::to_owned);
        assert_eq!(line(&shown), None, "{canary} in what is shown");
        assert_eq!(line(&logged), None, "{canary} in the log");
    }
    // Libraries may log a remote party's words at their finest; ours do not show them.
    assert!(!shown.contains(REMOTE_CANARY), "{shown}");
}

/// What each provider must do while its server is well.
async fn opens_only_in_its_context(provider: &dyn KeyProvider) {
    let (a, b) = (tenant("a"), tenant("b"));
    let home = WrapContext { tenant: &a, version: 3, region: "eu" };
    let key = new_key();
    let wrapped = wrap_proven(provider, home, &key).await.expect("wrapped");
    assert_eq!(provider.unwrap(home, &wrapped).await.expect("unwrapped").reveal(), key.reveal());
    for elsewhere in
        [WrapContext { tenant: &b, ..home }, WrapContext { version: 4, ..home }, WrapContext { region: "us", ..home }]
    {
        let error = provider.unwrap(elsewhere, &wrapped).await.expect_err("another context");
        assert_eq!(refused(&error), Refusal::Opening, "{elsewhere:?}: {error}");
    }
}

/// Cut anywhere, changed anywhere: refused, and never taken for an outage.
async fn refuses_changed_wraps(provider: &dyn KeyProvider) {
    let a = tenant("a");
    let context = WrapContext { tenant: &a, version: 1, region: "eu" };
    let wrapped = provider.wrap(context, &new_key()).await.expect("wrapped");
    for at in 0..wrapped.len() {
        let mut changed = wrapped.clone();
        changed[at] ^= 1;
        for bad in [&changed[..], &wrapped[..at]] {
            let error = provider.unwrap(context, bad).await.expect_err("changed");
            assert!(matches!(error, ProviderError::Refused { .. }), "at {at}: {error:?}");
        }
    }
}

/// From and to a key of this machine.
async fn moves_from_and_to_a_local_key(provider: &dyn KeyProvider) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("key");
    std::fs::write(&path, server::base64(&[9; 32])).expect("written");
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o400);
    std::fs::set_permissions(&path, private).expect("its mode");
    let local = format!("file:{}", path.display()).parse().expect("a reference");
    let local = LocalProvider::open(&local, 1).expect("a provider");
    let a = tenant("a");
    let context = WrapContext { tenant: &a, version: 1, region: "eu" };
    let key = new_key();
    let here = local.wrap(context, &key).await.expect("wrapped");
    let there = provider.rewrap(&local, context, &here).await.expect("re-wrapped");
    let back = local.rewrap(provider, context, &there).await.expect("re-wrapped");
    assert_eq!(local.unwrap(context, &back).await.expect("unwrapped").reveal(), key.reveal());
}
