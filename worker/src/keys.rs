//! The worker's way to its keys at start: the keystore, who we are in it, and the keyring over it.
//!
//! ```text
//!   keystore_url ──► its form? ──► our login there binds us? ──► ledgers of destroyed keys made equal, both ways
//!                                                              ──► each platform key proven ──► Keyring
//! ```
//! Nothing is sealed or opened before all of that. A worker that has another key under a known version's name ends here.
use std::{sync::Arc, time::Duration};

use reeve_jobs::{
    program::{db, db::DbError, migrate::MigrateError, migrate_keys},
    seal::{
        Keyring, KeyringError, RootKey, SealError,
        keyring::OpenProvider,
        keystore::{self, Keystore},
        provider::{Answer, InvalidKeyRef, KeyProvider, KeyRef},
    },
};
use sqlx::PgPool;

use crate::{
    clients::kms::{self, KmsSettings},
    config::Config,
};

/// What cannot be opened now is asked for again after this long.
pub const KEY_PAUSE: Duration = Duration::from_secs(15);

/// Keys are fetched seldom, and each time for a few milliseconds.
const CONNECTIONS: u32 = 3;

#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    #[error(transparent)]
    Db(#[from] DbError),
    #[error("the keystore: {0}")]
    Keystore(#[from] MigrateError),
    #[error("worker.keystore_url logs in as \"{0}\", {1}; let it log in as reeve_keyring")]
    Login(String, &'static str),
    #[error("worker.platform_key: {0}")]
    Reference(#[from] InvalidKeyRef),
    #[error("worker.root_key: {0}")]
    Root(#[from] SealError),
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    #[error("the ledger of destroyed keys: {0}")]
    Ledger(#[from] sqlx::Error),
}

#[derive(Debug)]
struct Opener(KmsSettings);

impl OpenProvider for Opener {
    fn open<'a>(&'a self, reference: &'a KeyRef, version: u32) -> Answer<'a, Arc<dyn KeyProvider>> {
        Box::pin(kms::open(reference, version, &self.0))
    }
}

/// Opens the keyring of this configuration. `control` is the control database, entered as the worker.
pub async fn open(config: &Config, control: &PgPool) -> Result<Keyring, KeysError> {
    let pool = db::connect("worker.keystore_url", &config.keystore_url, "reeve-worker", CONNECTIONS).await?;
    migrate_keys::check(&pool).await?;
    prove_login(&pool).await?;
    let root = config.root_key.as_ref().map(|text| RootKey::from_base64(text.reveal())).transpose()?;
    let first: Option<KeyRef> = config.platform_key.as_deref().map(str::parse).transpose()?;
    let opener = Arc::new(Opener(config.kms.clone()));
    let keyring = Keyring::new(Keystore::new(pool), opener, &config.region, root);
    let ledger = keyring.start(first.as_ref(), keystore::control_ledger(control).await?).await?;
    keystore::record_destroyed(control, &ledger).await?;
    Ok(keyring)
}

async fn prove_login(keystore: &PgPool) -> Result<(), KeysError> {
    let (role, above, owner, may): (String, bool, bool, bool) = sqlx::query_as(
        "-- keys.login
        SELECT r.rolname::text, r.rolsuper OR r.rolbypassrls OR r.rolcreaterole,
               pg_has_role(r.oid, 'reeve_keys_owner', 'MEMBER'), pg_has_role(r.oid, 'reeve_keyring', 'USAGE')
        FROM pg_roles r WHERE r.rolname = current_user",
    )
    .fetch_one(keystore)
    .await?;
    if above || owner {
        return Err(KeysError::Login(role, "who may undo the keystore's guards"));
    }
    if !may {
        return Err(KeysError::Login(role, "who has no rights there"));
    }
    Ok(())
}
