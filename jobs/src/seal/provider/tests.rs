//! Keys of this machine: what they open and refuse, which files may hold them, and what is printed.
use std::{
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
};

use super::{local::LocalProvider, *};
use crate::seal::{self, Header, KeyScope, Purpose};

/// Variables of the tests, so that none changes the environment of others: `PATH` is there and is no key.
const NOT_A_KEY: &str = "env:PATH";
const A: &str = "QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE=";
const B: &str = "QkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkI=";

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, mode: u32, text: &str) -> KeyRef {
        let path = self.path(name);
        // One that is there with 0400 takes no writing, unless by root.
        let _ = std::fs::remove_file(&path);
        std::fs::write(&path, text).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("its mode");
        reference(&path)
    }

    fn provider(&self, name: &str, text: &str, version: u32) -> LocalProvider {
        LocalProvider::open(&self.write(name, 0o400, text), version).expect("a provider")
    }
}

fn reference(path: &Path) -> KeyRef {
    format!("file:{}", path.display()).parse().expect("a reference")
}

fn tenant(id: &str) -> TenantId {
    id.parse().expect("an id")
}

fn said(reference: &KeyRef) -> String {
    let error = LocalProvider::open(reference, 1).expect_err("refused");
    assert!(matches!(error, ProviderError::Refused { class: Refusal::Settings, .. }), "{error:?}");
    assert!(!error.is_transient());
    error.to_string()
}

fn class(error: &ProviderError) -> Refusal {
    match error {
        ProviderError::Refused { class, .. } => *class,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_wrapped_key_opens_only_in_its_context() {
    let files = Files::new();
    let provider = files.provider("k", A, 7);
    let (a, b) = (tenant("a"), tenant("b"));
    let home = WrapContext { tenant: &a, version: 3, region: "eu" };
    let key = DataKey::random(&mut rand::rng());
    let wrapped = wrap_proven(&provider, home, &key).await.expect("wrapped");
    assert_eq!(Header::read(&wrapped).expect("RV1"), Header { scope: KeyScope::Platform, version: 7 });
    assert_eq!(provider.unwrap(home, &wrapped).await.expect("unwrapped").reveal(), key.reveal());
    for elsewhere in [
        WrapContext { tenant: &b, ..home },
        WrapContext { version: 4, ..home },
        WrapContext { region: "us", ..home },
        WrapContext { version: 33, region: "@eu", ..home },
    ] {
        let error = provider.unwrap(elsewhere, &wrapped).await.expect_err("another context");
        assert_eq!(class(&error), Refusal::Opening, "{elsewhere:?}: {error}");
    }
}

#[test]
fn no_two_contexts_have_the_same_bytes() {
    let (a, b) = (tenant("a"), tenant("a\u{fffd}"));
    let contexts = [(&a, 1, "eu"), (&b, 1, "eu"), (&a, 11, "eu"), (&a, 1, "1@eu"), (&a, 1, ""), (&a, 11, "@eu")];
    let bytes: std::collections::BTreeSet<_> =
        contexts.map(|(tenant, version, region)| WrapContext { tenant, version, region }.bytes()).into();
    assert_eq!(bytes.len(), contexts.len());
}

#[tokio::test]
async fn another_root_under_the_same_name_is_refused() {
    let files = Files::new();
    let a = tenant("a");
    let context = WrapContext { tenant: &a, version: 1, region: "eu" };
    let wrapped = files.provider("k", A, 1).wrap(context, &DataKey::random(&mut rand::rng())).await.expect("wrapped");
    let error = files.provider("k", B, 1).unwrap(context, &wrapped).await.expect_err("another root");
    assert_eq!(class(&error), Refusal::Opening);
    let error = files.provider("k", A, 2).unwrap(context, &wrapped).await.expect_err("another version");
    assert_eq!(class(&error), Refusal::Version);
    assert!(error.to_string().contains("version 1"), "{error}");
}

#[tokio::test]
async fn a_changed_or_cut_wrap_is_refused() {
    let files = Files::new();
    let provider = files.provider("k", A, 1);
    let a = tenant("a");
    let context = WrapContext { tenant: &a, version: 1, region: "eu" };
    let wrapped = provider.wrap(context, &DataKey::random(&mut rand::rng())).await.expect("wrapped");
    for at in 0..wrapped.len() {
        let mut changed = wrapped.clone();
        changed[at] ^= 1;
        assert!(!provider.unwrap(context, &changed).await.expect_err("changed").is_transient(), "byte {at}");
        assert!(!provider.unwrap(context, &wrapped[..at]).await.expect_err("cut").is_transient(), "at {at}");
    }
    assert!(provider.unwrap(context, &[wrapped.as_slice(), b"x"].concat()).await.is_err());
}

/// Sealed by the right key, in the right place, but no key: what else the platform key may ever seal does not unwrap.
#[tokio::test]
async fn a_sealed_value_that_is_no_wrapped_key_is_refused() {
    let files = Files::new();
    let provider = files.provider("k", A, 1);
    let a = tenant("a");
    let context = WrapContext { tenant: &a, version: 1, region: "eu" };
    let root = DataKey::from_bytes(Zeroizing::new([b'A'; 32]));
    let seal = |scope, purpose, plain: &[u8]| {
        context
            .at(|place| seal::field::seal(&root, Header { scope, version: 1 }, purpose, place, plain, &mut rand::rng()))
            .expect("sealed")
    };
    let unwrap = async |wrapped: Vec<u8>| provider.unwrap(context, &wrapped).await;
    assert!(unwrap(seal(KeyScope::Platform, Purpose::Wrap, &[1; 32])).await.is_ok(), "the test's own sealing is right");
    let error = unwrap(seal(KeyScope::Tenant, Purpose::Wrap, &[1; 32])).await.expect_err("another scope");
    assert_eq!(class(&error), Refusal::Opening);
    let error = unwrap(seal(KeyScope::Platform, Purpose::Field, &[1; 32])).await.expect_err("another purpose");
    assert_eq!(class(&error), Refusal::Opening);
    for length in [0, 31, 33] {
        let error = unwrap(seal(KeyScope::Platform, Purpose::Wrap, &vec![1; length])).await.expect_err("no key");
        assert!(matches!(error, ProviderError::Misanswered { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_key_moves_from_one_root_to_another() {
    let files = Files::new();
    let (old, new) = (files.provider("old", A, 1), files.provider("new", B, 2));
    let a = tenant("a");
    let context = WrapContext { tenant: &a, version: 1, region: "eu" };
    let key = DataKey::random(&mut rand::rng());
    let wrapped = old.wrap(context, &key).await.expect("wrapped");
    let moved = rewrap_proven(&new, &old, context, &wrapped).await.expect("re-wrapped");
    assert_eq!(new.unwrap(context, &moved).await.expect("unwrapped").reveal(), key.reveal());
    assert!(old.unwrap(context, &moved).await.is_err());
    let elsewhere = WrapContext { version: 2, ..context };
    assert!(new.rewrap(&old, elsewhere, &wrapped).await.is_err(), "re-wrapping is no way round the context");
}

#[test]
fn only_a_private_regular_file_of_this_user_or_root_holds_a_key() {
    let files = Files::new();
    for mode in [0o400, 0o600] {
        assert!(LocalProvider::open(&files.write("good", mode, &format!("{A}\n")), 1).is_ok());
    }
    for mode in [0o644, 0o640, 0o604, 0o660, 0o700, 0o4400] {
        let said = said(&files.write("open", mode, A));
        assert!(said.contains(&format!("{mode:04o}")) && said.contains("chmod 0400"), "{said}");
    }
    assert!(said(&reference(files.0.path())).contains("regular"));
    assert!(said(&reference(&files.path("missing"))).contains("not found"));
    let pipe = files.path("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo");
    assert!(made.success() && said(&reference(&pipe)).contains("regular"), "and nobody waits for a writer");

    let link = files.path("link");
    let target = files.write("target", 0o400, A);
    let KeyRef::File(target) = target else { panic!() };
    symlink(&target, &link).expect("a link");
    assert!(LocalProvider::open(&reference(&link), 1).is_ok(), "mounted secrets are links");
    if rustix::process::geteuid().is_root() {
        chown(&target, Some(65_534), None).expect("given away");
        let said = said(&reference(&link));
        assert!(said.contains("65534") && said.contains("root"), "{said}");
    }
}

#[test]
fn a_file_of_another_user_is_refused() {
    let files = Files::new();
    files.write("k", 0o400, A);
    let path = files.path("k");
    if rustix::process::geteuid().is_root() {
        chown(&path, Some(65_534), None).expect("given away");
    }
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(&path).expect("it is there"));
    let file = std::fs::File::open(&path).expect("it is there");
    assert!(local::judge(&file, owner).is_ok());
    let said = local::judge(&file, owner + 1).expect_err("another user's");
    assert!(said.contains(&owner.to_string()), "{said}");
}

#[test]
fn what_is_no_key_is_refused_with_the_way_out_and_not_repeated() {
    let files = Files::new();
    let short = "QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQQ==";
    let long = "A".repeat(100_000);
    for text in ["", "canary-hunter2", short, &format!("{A}{A}"), &long] {
        let said = said(&files.write("k", 0o400, text));
        assert!(
            said.contains("openssl rand -base64 32") && !said.contains("canary") && !said.contains("QUFB"),
            "{said}"
        );
    }
}

#[test]
fn a_variable_must_be_there_and_hold_a_key() {
    assert!(said(&"env:REEVE_TEST_NO_SUCH_KEY".parse().expect("a reference")).contains("not set"));
    let said = said(&NOT_A_KEY.parse().expect("a reference"));
    assert!(said.contains("openssl rand -base64 32") && !said.contains("/bin"), "{said}");
}

/// The environment is a process's own, so the test runs itself once more, with the variable.
#[tokio::test]
async fn a_key_of_the_environment_wraps_and_unwraps() {
    const NAME: &str = "REEVE_TEST_PROVIDER_KEY";
    if std::env::var_os(NAME).is_none() {
        let this = std::env::current_exe().expect("this test has a path");
        let mut again = std::process::Command::new(this);
        again.args(["--exact", "seal::provider::tests::a_key_of_the_environment_wraps_and_unwraps"]).env(NAME, A);
        let output = again.output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    let provider = LocalProvider::open(&format!("env:{NAME}").parse().expect("a reference"), 4).expect("a provider");
    let a = tenant("a");
    let context = WrapContext { tenant: &a, version: 1, region: "eu" };
    let key = DataKey::random(&mut rand::rng());
    let wrapped = wrap_proven(&provider, context, &key).await.expect("wrapped");
    provider.reload().expect("nothing to do");
    assert_eq!(provider.unwrap(context, &wrapped).await.expect("unwrapped").reveal(), key.reveal());
    let files = Files::new();
    let same = files.provider("k", A, 4).unwrap(context, &wrapped).await.expect("the same key in a file");
    assert_eq!(same.reveal(), key.reveal());
}

#[tokio::test]
async fn a_reload_takes_the_new_key_and_keeps_the_old_one_when_it_cannot() {
    let files = Files::new();
    let provider = files.provider("k", A, 1);
    let a = tenant("a");
    let context = WrapContext { tenant: &a, version: 1, region: "eu" };
    let wrapped = provider.wrap(context, &DataKey::random(&mut rand::rng())).await.expect("wrapped");

    files.write("k", 0o644, B);
    let error = provider.reload().expect_err("a mode that others read by");
    assert!(error.to_string().contains("0644"), "{error}");
    assert!(provider.unwrap(context, &wrapped).await.is_ok(), "what was read before is in force");
    files.write("k", 0o400, "broken");
    assert!(provider.reload().is_err() && provider.unwrap(context, &wrapped).await.is_ok());

    files.write("k", 0o400, B);
    assert!(provider.unwrap(context, &wrapped).await.is_ok(), "nothing changes before the reload");
    provider.reload().expect("reloaded");
    assert_eq!(class(&provider.unwrap(context, &wrapped).await.expect_err("another root")), Refusal::Opening);
    files.write("k", 0o400, A);
    provider.reload().expect("reloaded");
    assert!(provider.unwrap(context, &wrapped).await.is_ok());
}

#[tokio::test]
async fn keys_are_in_no_text() {
    let files = Files::new();
    let provider = files.provider("k", A, 1);
    let key = DataKey::from_bytes(Zeroizing::new([b'C'; 32]));
    let a = tenant("a");
    let context = WrapContext { tenant: &a, version: 1, region: "eu" };
    let error = provider.unwrap(context, b"CCCC").await.expect_err("no wrap");
    let shown = format!("{provider:?} {key:?} {error} {error:?}");
    for canary in ["AAAA", "QUFB", "CCCC", "65, 65", "67, 67"] {
        assert!(!shown.contains(canary), "{canary}: {shown}");
    }
}

/// A keeper that answers as it is told to.
#[derive(Debug)]
struct Told {
    reference: KeyRef,
    unwraps_to: u8,
}

impl KeyProvider for Told {
    fn reference(&self) -> &KeyRef {
        &self.reference
    }
    fn wrap<'a>(&'a self, _: WrapContext<'a>, _: &'a DataKey) -> Answer<'a, Vec<u8>> {
        Box::pin(async { Ok(vec![0; 80]) })
    }
    fn unwrap<'a>(&'a self, _: WrapContext<'a>, _: &'a [u8]) -> Answer<'a, DataKey> {
        Box::pin(async { Ok(DataKey::from_bytes(Zeroizing::new([self.unwraps_to; 32]))) })
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities { remote: false, rewraps_inside: false }
    }
}

#[tokio::test]
async fn a_wrap_that_gives_another_key_back_is_found_out_at_once() {
    let told = |unwraps_to| Told { reference: NOT_A_KEY.parse().expect("a reference"), unwraps_to };
    let a = tenant("a");
    let context = WrapContext { tenant: &a, version: 1, region: "eu" };
    let key = DataKey::from_bytes(Zeroizing::new([1; 32]));
    assert!(wrap_proven(&told(1), context, &key).await.is_ok());
    let error = wrap_proven(&told(2), context, &key).await.expect_err("another key");
    assert!(matches!(error, ProviderError::Misanswered { .. }) && error.is_transient(), "{error}");
    assert!(rewrap_proven(&told(1), &told(1), context, &[]).await.is_ok());
    let error = rewrap_proven(&told(2), &told(1), context, &[]).await.expect_err("another key");
    assert!(matches!(error, ProviderError::Misanswered { .. }), "{error}");
}

#[test]
fn a_wrap_that_shows_the_key_is_refused() {
    let (reference, key) = (NOT_A_KEY.parse().expect("a reference"), DataKey::from_bytes(Zeroizing::new([b'C'; 32])));
    assert!(check_wrapped(&reference, &key, &[0; 80]).is_ok());
    for shown in [&b""[..], &[0; 32], &[b'C'; 32], &[&[0; 9][..], &[b'C'; 32], &[0; 9]].concat()] {
        let error = check_wrapped(&reference, &key, shown).expect_err("shown");
        assert!(matches!(error, ProviderError::Misanswered { .. }) && !error.to_string().contains("CC"), "{error}");
    }
}
