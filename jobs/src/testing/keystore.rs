//! Keystores for tests: one that all of a cluster's tests share, and fresh ones for those that are about keys.
//!
//! The platform's key is `env:REEVE_TEST_ROOT_KEY`: known to [`TestKeys`] in this process, and given to programs that a test
//! starts in their environment.
use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use sqlx::{Connection, PgConnection, PgPool, postgres::PgConnectOptions};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::database::{MIGRATIONS, PASSWORD, cluster, execute, url_of};
use crate::{
    program::{db, migrate_keys},
    seal::{
        DataKey, Keyring, RootKey,
        keyring::OpenProvider,
        keystore::Keystore,
        provider::{Answer, KeyProvider, KeyRef, ProviderError, Refusal, local::LocalProvider},
    },
};

/// Where the platform's key is, for tests.
pub const PLATFORM_KEY: &str = "env:REEVE_TEST_ROOT_KEY";
/// The key itself, as its variable holds it.
pub const ROOT_KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const ROLE: &str = "reeve_keyring";

/// Platform keys that this process has, by their references; `env:` and `file:` ones alone.
#[derive(Clone)]
pub struct TestKeys(Arc<Mutex<HashMap<String, [u8; 32]>>>);

impl fmt::Debug for TestKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TestKeys([redacted])")
    }
}

impl Default for TestKeys {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(HashMap::from([(PLATFORM_KEY.to_owned(), std::array::from_fn(|i| i as u8))]))))
    }
}

impl TestKeys {
    /// Gives a reference its key, or another one.
    pub fn set(&self, reference: &str, key: [u8; 32]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(reference.to_owned(), key);
    }

    /// Takes it away: its provider cannot be opened any more.
    pub fn remove(&self, reference: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(reference);
    }
}

impl OpenProvider for TestKeys {
    fn open<'a>(&'a self, reference: &'a KeyRef, version: u32) -> Answer<'a, Arc<dyn KeyProvider>> {
        let key = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&reference.to_string()).copied();
        Box::pin(async move {
            let key =
                key.ok_or_else(|| ProviderError::refused(reference, Refusal::Settings, "this test has no such key"))?;
            let provider = LocalProvider::with_key(reference, version, DataKey::from_bytes(Zeroizing::new(key)));
            Ok(Arc::new(provider) as Arc<dyn KeyProvider>)
        })
    }
}

/// A keystore's database.
#[derive(Debug, Clone)]
pub struct TestKeystore {
    pub name: String,
    /// As the cluster's superuser.
    pub admin: PgPool,
    pub store: Keystore,
    pub keys: TestKeys,
}

impl TestKeystore {
    /// A keystore of its own, whose platform key is [`PLATFORM_KEY`].
    pub async fn new() -> Self {
        let name = format!("reeve_test_keys_{}", Uuid::now_v7().simple());
        let mut admin = PgConnection::connect_with(&cluster()).await.expect("the test cluster answers");
        make(&mut admin, &cluster(), &name).await;
        Self::open(&cluster(), &name).await
    }

    /// The one that all tests share: for those that need keys and are not about them.
    pub async fn shared() -> Self {
        let server = &cluster();
        let mut admin = PgConnection::connect_with(server).await.expect("the test cluster answers");
        let name = format!("reeve_keys_{:016x}", migrate_keys::fingerprint());
        execute(&mut admin, "SELECT pg_advisory_lock(7261, 5)".to_owned()).await;
        let exists: bool = sqlx::query_scalar(
            "-- testing.keystore_exists\nSELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)",
        )
        .bind(&name)
        .fetch_one(&mut admin)
        .await
        .expect("pg_database");
        if !exists {
            let draft = format!("{name}_draft");
            execute(&mut admin, format!("DROP DATABASE IF EXISTS {draft}")).await;
            make(&mut admin, server, &draft).await;
            execute(&mut admin, format!("ALTER DATABASE {draft} RENAME TO {name}")).await;
        }
        execute(&mut admin, "SELECT pg_advisory_unlock(7261, 5)".to_owned()).await;
        Self::open(server, &name).await
    }

    async fn open(server: &PgConnectOptions, name: &str) -> Self {
        let options = server.clone().database(name);
        let pool = db::pool(options.clone().username(ROLE).password(PASSWORD), 3).await.expect("the keyring's login");
        Self {
            name: name.to_owned(),
            admin: db::pool(options, 2).await.expect("the keystore"),
            store: Keystore::new(pool),
            keys: TestKeys::default(),
        }
    }

    /// A keyring that has nothing in its cache yet, as another process has one.
    pub fn keyring(&self) -> Keyring {
        let root = RootKey::from_base64(ROOT_KEY).expect("32 bytes");
        Keyring::new(self.store.clone(), Arc::new(self.keys.clone()), "default", Some(root))
    }

    /// As it would stand in a worker's configuration, on the tests' cluster.
    pub fn url(&self) -> String {
        url_of(&cluster(), ROLE, &self.name)
    }

    /// What a worker program needs to have these keys.
    pub fn env(&self) -> Vec<(String, String)> {
        [
            ("REEVE_WORKER__KEYSTORE_URL", self.url()),
            ("REEVE_WORKER__PLATFORM_KEY", PLATFORM_KEY.to_owned()),
            ("REEVE_TEST_ROOT_KEY", ROOT_KEY.to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    /// Drops the database, cutting whoever is still connected.
    pub async fn drop_now(self) {
        self.admin.close().await;
        let mut admin = PgConnection::connect_with(&cluster()).await.expect("the test cluster answers");
        execute(&mut admin, format!("DROP DATABASE {} WITH (FORCE)", self.name)).await;
    }
}

async fn make(admin: &mut PgConnection, server: &PgConnectOptions, name: &str) {
    execute(admin, format!("CREATE DATABASE {name}")).await;
    let options = server.clone().database(name);
    let mut inside = PgConnection::connect_with(&options).await.expect("the new keystore");
    // Roles are the cluster's, and two that set one at a time fail. The lock is of the one database where all take it.
    execute(admin, "SELECT pg_advisory_lock(7261, 6)".to_owned()).await;
    match std::env::var_os(MIGRATIONS) {
        Some(directory) => migrate_keys::run_from(&std::path::Path::new(&directory).join("keys"), &mut inside).await,
        None => migrate_keys::run(&mut inside).await,
    }
    .expect("migrated");
    execute(&mut inside, format!("ALTER ROLE {ROLE} PASSWORD '{PASSWORD}'")).await;
    execute(admin, "SELECT pg_advisory_unlock(7261, 6)".to_owned()).await;
    inside.close().await.expect("closed");
    let pool = db::pool(options.username(ROLE).password(PASSWORD), 2).await.expect("the keyring's login");
    let keyring = Keyring::new(Keystore::new(pool.clone()), Arc::new(TestKeys::default()), "default", None);
    let first: KeyRef = PLATFORM_KEY.parse().expect("a reference");
    keyring.start(Some(&first), Vec::new()).await.expect("a platform key");
    pool.close().await;
}
