//! The keyring over a real keystore: what it makes, what it refuses, and what it does when something is away.
use sqlx::Executor;

use super::*;
use crate::testing::keystore::{PLATFORM_KEY, TestKeystore};

fn tenant(id: &str) -> TenantId {
    id.parse().expect("an id")
}

fn place<'a>(tenant: &'a TenantId, row: &'a str) -> Place<'a> {
    Place { tenant, table: "contacts", column: "email", row }
}

fn destroyed(tenant: &TenantId, version: u32) -> DestroyedKey {
    DestroyedKey { tenant: tenant.to_string(), version, actor: "ann".to_owned(), reason: "closed".to_owned() }
}

async fn state(keystore: &TestKeystore, tenant: &TenantId) -> Vec<(u32, KeyState, bool)> {
    let rows = keystore.store.of_tenant(tenant).await.expect("rows");
    rows.iter().map(|row| (row.version, row.state, row.wrapped.is_some())).collect()
}

#[tokio::test]
async fn a_first_key_is_made_once_and_serves_every_process() {
    let keystore = TestKeystore::new().await;
    let a = tenant("a");
    let rings: Vec<_> = (0..8).map(|_| keystore.keyring()).collect();
    let mut making = tokio::task::JoinSet::new();
    for ring in rings.clone() {
        let a = a.clone();
        making.spawn(async move { ring.current(&a).await });
    }
    let made = making.join_all().await;
    assert!(made.iter().all(|key| key.as_ref().is_ok_and(|key| key.version == 1)), "{made:?}");
    assert_eq!(state(&keystore, &a).await, [(1, KeyState::Active, true)]);
    let sealed = rings[0].seal(Purpose::Field, &place(&a, "7"), b"hush").await.expect("sealed");
    assert_eq!(rings[7].open(Purpose::Field, &place(&a, "7"), &sealed).await.expect("opened").as_slice(), b"hush");
    let shown = format!("{:?} {:?}", rings[0], made[0]);
    assert!(shown.contains("redacted") && !shown.contains("hush"), "{shown}");
    keystore.drop_now().await;
}

#[tokio::test]
async fn a_rotation_seals_under_the_next_version_and_opens_both() {
    let keystore = TestKeystore::new().await;
    let (a, ring) = (tenant("a"), keystore.keyring());
    let old = ring.seal(Purpose::Field, &place(&a, "1"), b"old").await.expect("sealed");
    assert_eq!(ring.rotate(&a).await.expect("rotated"), 2);
    let new = ring.seal(Purpose::Field, &place(&a, "2"), b"new").await.expect("sealed");
    assert_eq!(Header::read(&old).map(|header| header.version), Ok(1));
    assert_eq!(Header::read(&new).map(|header| header.version), Ok(2));
    assert_eq!(ring.open(Purpose::Field, &place(&a, "1"), &old).await.expect("opened").as_slice(), b"old");
    assert_eq!(state(&keystore, &a).await, [(1, KeyState::Retiring, true), (2, KeyState::Active, true)]);
    let error = ring.open(Purpose::Webhook, &place(&a, "1"), &old).await.expect_err("for another purpose");
    assert_eq!(error.reason(), "wrong key or wrong row");
    keystore.drop_now().await;
}

/// The operator changed the value behind the same name. Nothing may be written under it.
#[tokio::test]
async fn another_key_under_a_known_versions_name_is_refused_before_anything_is_sealed() {
    let keystore = TestKeystore::new().await;
    let a = tenant("a");
    keystore.keys.set(PLATFORM_KEY, [9; 32]);
    let ring = keystore.keyring();
    let error = ring.start(None, Vec::new()).await.expect_err("refused");
    assert!(matches!(error, KeyringError::OtherKey { version: 1, .. }) && !error.is_transient(), "{error}");
    let error = ring.seal(Purpose::Field, &place(&a, "1"), b"hush").await.expect_err("refused");
    assert!(matches!(error, KeyringError::OtherKey { .. }), "{error}");
    assert!(state(&keystore, &a).await.is_empty(), "no key was made");
    keystore.drop_now().await;
}

#[tokio::test]
async fn a_platform_rotation_wraps_anew_and_the_old_version_is_retired_by_proof_alone() {
    let keystore = TestKeystore::new().await;
    let ring = keystore.keyring();
    let tenants: Vec<_> = (0..5).map(|n| tenant(&format!("t{n}"))).collect();
    for tenant in &tenants {
        ring.current(tenant).await.expect("a key");
    }
    keystore.keys.set("env:REEVE_TEST_NEXT", [3; 32]);
    let next: KeyRef = "env:REEVE_TEST_NEXT".parse().expect("a reference");
    assert_eq!(ring.add_platform(&next).await.expect("added"), 2);
    assert_eq!(ring.add_platform(&next).await.expect("known"), 2, "the same reference is the same version");
    let store = ring.store();
    store.fence_platform(2).await.expect("fenced");
    assert!(store.retire_platform_below(2).await.is_err(), "five keys are left below the fence");
    // A writer that began before the fence is refused by the database.
    let late = keystore.admin.execute(
        "INSERT INTO keys.tenant_keys (tenant_id, version, platform_version, wrapped, region)
         VALUES ('late', 1, 1, decode(repeat('00', 60), 'hex'), 'default')",
    );
    assert!(late.await.is_err_and(|error| error.to_string().contains("platform_floor")));
    let (mut after, mut moved) = ((String::new(), 0), 0);
    loop {
        let batch = store.to_rewrap(2, (&after.0, after.1), 2).await.expect("a batch");
        let Some(last) = batch.last() else { break };
        after = (last.tenant.clone(), last.version);
        for key in &batch {
            assert!(ring.rewrap(key, 2).await.expect("re-wrapped"));
            assert!(!ring.rewrap(key, 2).await.expect("raced"), "what was wrapped anew meanwhile stays");
            moved += 1;
        }
    }
    assert_eq!((moved, store.wrapped_by(1).await.expect("a count")), (5, 0));
    assert_eq!(store.retire_platform_below(2).await.expect("retired"), 1);
    // The old key is gone, and every tenant's key opens in a process that never had it.
    keystore.keys.remove(PLATFORM_KEY);
    let fresh = keystore.keyring();
    fresh.start(None, Vec::new()).await.expect("the retired version is not asked for");
    for tenant in &tenants {
        fresh.version(tenant, 1).await.expect("opened by the new version");
    }
    let old: KeyRef = PLATFORM_KEY.parse().expect("a reference");
    assert!(matches!(ring.add_platform(&old).await, Err(KeyringError::Retired(1))));
    keystore.drop_now().await;
}

#[tokio::test]
async fn a_destroyed_key_is_gone_and_does_not_come_back_with_a_restored_keystore() {
    let keystore = TestKeystore::new().await;
    let (a, b, ring) = (tenant("a"), tenant("b"), keystore.keyring());
    let sealed = ring.seal(Purpose::Field, &place(&a, "1"), b"hush").await.expect("sealed");
    ring.current(&b).await.expect("a key");
    // As a backup of the keystore has it.
    keystore.admin.execute("CREATE TABLE public.backup AS SELECT * FROM keys.tenant_keys").await.expect("copied");
    assert!(ring.store().destroy(&destroyed(&a, 1)).await.expect("destroyed"));
    ring.forget(&a);
    let error = ring.open(Purpose::Field, &place(&a, "1"), &sealed).await.expect_err("shredded");
    assert!(matches!(error, KeyringError::Destroyed { version: 1, .. }), "{error}");
    assert!(
        matches!(ring.current(&a).await, Err(KeyringError::Shredded(_))),
        "no new key is made without being asked for"
    );
    let ledger = ring.store().ledger().await.expect("a ledger");

    // Put back, the ledger with it: the keystore knows nothing any more of the destruction.
    for sql in [
        "ALTER TABLE keys.tenant_keys DISABLE TRIGGER ALL",
        "ALTER TABLE keys.destroyed DISABLE TRIGGER ALL",
        "DELETE FROM keys.destroyed",
        "DELETE FROM keys.tenant_keys",
        "INSERT INTO keys.tenant_keys SELECT * FROM public.backup",
        "ALTER TABLE keys.tenant_keys ENABLE TRIGGER ALL",
        "ALTER TABLE keys.destroyed ENABLE TRIGGER ALL",
    ] {
        keystore.admin.execute(sql).await.expect(sql);
    }
    let restored = keystore.keyring();
    assert_eq!(restored.start(None, ledger.clone()).await.expect("replayed"), ledger);
    assert_eq!(state(&keystore, &a).await, [(1, KeyState::Destroyed, false)]);
    let error = restored.open(Purpose::Field, &place(&a, "1"), &sealed).await.expect_err("still shredded");
    assert!(matches!(error, KeyringError::Destroyed { .. }), "{error}");
    restored.version(&b, 1).await.expect("b's key is untouched");
    keystore.drop_now().await;
}

#[tokio::test]
async fn without_its_keystore_what_is_cached_serves_and_nothing_else() {
    let keystore = TestKeystore::new().await;
    let (a, b, ring) = (tenant("a"), tenant("b"), keystore.keyring());
    let sealed = ring.seal(Purpose::Field, &place(&a, "1"), b"hush").await.expect("sealed");
    ring.store().pool().close().await;
    ring.open(Purpose::Field, &place(&a, "1"), &sealed).await.expect("from the cache");
    ring.seal(Purpose::Field, &place(&a, "2"), b"x").await.expect("by the cached key");
    let error = ring.seal(Purpose::Field, &place(&b, "1"), b"x").await.expect_err("no key of b's");
    assert!(error.is_transient() && error.reason() == "keystore", "{error}");
    ring.cache().keys.values_mut().for_each(|(_, at)| *at -= KEPT_FOR);
    let error = ring.open(Purpose::Field, &place(&a, "1"), &sealed).await.expect_err("its time is up");
    assert!(error.is_transient(), "{error}");
    keystore.drop_now().await;
}

#[tokio::test]
async fn the_cache_is_bounded_and_the_oldest_goes_first() {
    let keystore = TestKeystore::new().await;
    let ring = keystore.keyring();
    for n in 0..KEPT_MAX + 10 {
        ring.keep((tenant(&format!("t{n}")), 1), Arc::new(TenantKey::new(1, DataKey::random(&mut rand::rng()))));
    }
    {
        let cache = ring.cache();
        assert_eq!(cache.keys.len(), KEPT_MAX);
        assert!(!cache.keys.contains_key(&(tenant("t0"), 1)) && cache.keys.contains_key(&(tenant("t1009"), 1)));
    }
    keystore.drop_now().await;
}

/// By its own login: it reads no table, changes none, and the guards hold against their owner.
#[tokio::test]
async fn the_login_may_call_the_functions_and_nothing_else_and_nothing_is_undone() {
    let keystore = TestKeystore::new().await;
    let (a, ring) = (tenant("a"), keystore.keyring());
    ring.current(&a).await.expect("a key");
    for sql in [
        "SELECT * FROM keys.tenant_keys",
        "UPDATE keys.tenant_keys SET state = 'active'",
        "SELECT * FROM keys.platform_keys",
        "DELETE FROM keys.destroyed",
        "CREATE TABLE public.mine ()",
    ] {
        let refused = ring.store().pool().execute(sql).await;
        assert!(refused.is_err_and(|error| error.to_string().contains("permission denied")), "{sql}");
    }
    assert!(ring.store().destroy(&destroyed(&a, 1)).await.expect("destroyed"));
    for sql in [
        "UPDATE keys.tenant_keys SET state = 'active', wrapped = decode(repeat('00', 60), 'hex')",
        "UPDATE keys.platform_keys SET check_value = decode(repeat('00', 32), 'hex')",
        "DELETE FROM keys.destroyed",
        "UPDATE keys.destroyed SET version = 9",
        "DELETE FROM keys.tenant_keys",
        "TRUNCATE keys.destroyed",
    ] {
        let refused = keystore.admin.execute(sql).await;
        assert!(refused.is_err_and(|error| error.to_string().contains("reeve:")), "{sql}");
    }
    let others: bool = sqlx::query_scalar("SELECT has_database_privilege('public', current_database(), 'CONNECT')")
        .fetch_one(&keystore.admin)
        .await
        .expect("an answer");
    assert!(!others, "anybody may enter the keystore");
    keystore.drop_now().await;
}

/// A provider that opens what it is given, and gives another key: only the check value tells.
#[tokio::test]
async fn a_check_value_that_differs_is_another_key() {
    let keystore = TestKeystore::new().await;
    for sql in [
        "ALTER TABLE keys.platform_keys DISABLE TRIGGER ALL",
        "UPDATE keys.platform_keys SET check_value = decode(repeat('00', 32), 'hex')",
    ] {
        keystore.admin.execute(sql).await.expect(sql);
    }
    let error = keystore.keyring().start(None, Vec::new()).await.expect_err("refused");
    assert!(matches!(error, KeyringError::OtherKey { version: 1, .. }), "{error}");
    keystore.drop_now().await;
}

/// A file's key is changed and read again: what was in the cache is not served any more under the other one.
#[tokio::test]
async fn a_reload_has_every_platform_key_proven_again() {
    let keystore = TestKeystore::new().await;
    let (a, ring) = (tenant("a"), keystore.keyring());
    let sealed = ring.seal(Purpose::Field, &place(&a, "1"), b"hush").await.expect("sealed");
    ring.reload().await.expect("still its own");
    ring.open(Purpose::Field, &place(&a, "1"), &sealed).await.expect("opened");
    keystore
        .admin
        .execute("ALTER TABLE keys.platform_keys DISABLE TRIGGER ALL")
        .await
        .expect("for the test's own change");
    let changed = "UPDATE keys.platform_keys SET check_value = decode(repeat('00', 32), 'hex')";
    keystore.admin.execute(changed).await.expect("changed");
    // This process has its provider's row from before; a fresh look is what the reload is for.
    ring.cache().platform.clear();
    assert!(matches!(ring.reload().await, Err(KeyringError::OtherKey { .. })));
    let error = ring.open(Purpose::Field, &place(&a, "1"), &sealed).await.expect_err("refused");
    assert!(matches!(error, KeyringError::OtherKey { .. }), "{error}");
    keystore.drop_now().await;
}
