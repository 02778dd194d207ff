//! The stack's secrets: made once, kept in `secrets.json` (mode 0600), the same at every later start.
//!
//! Deliberately not here: rotation. Removing the directory makes a new stack with new secrets.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rand::RngExt as _;
use serde::{Deserialize, Serialize};

use crate::files;

/// Why the secrets could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    /// The file cannot be read or written.
    #[error("cannot read or write the secrets in {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file is there, but is not what this program wrote.
    #[error(
        "{path} is damaged (line {line}, column {column}): restore it, or remove the whole directory to begin anew \
         (its database cannot be used without these secrets)"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where reading stopped. The parser's own message is left out: it may quote a secret.
        line: usize,
        /// Where in the line.
        column: usize,
    },
}

/// Passwords and keys of one stack. All are ASCII letters and digits (and so need no escaping), but for the base64 key.
#[derive(Clone, Serialize, Deserialize)]
pub struct Secrets {
    /// Password of the superuser `reeve_admin` over TCP.
    pub admin_password: String,
    /// Password of the role `reeve_app`.
    pub app_password: String,
    /// Password of the role `reeve_worker`.
    pub worker_password: String,
    /// Password of the role `reeve_scheduler`.
    pub scheduler_password: String,
    /// Password of the role `reeve_ops`.
    pub ops_password: String,
    /// Password of the role `reeve_keyring`. Stacks of earlier releases have none yet.
    #[serde(default = "password")]
    pub keyring_password: String,
    /// 32 random bytes in base64: the platform's key, which wraps all others.
    pub root_key: String,
    /// Redis' one password.
    pub redis_password: String,
    /// S3 access key.
    pub s3_access_key: String,
    /// S3 secret key.
    pub s3_secret_key: String,
}

impl Secrets {
    /// New random secrets.
    pub fn generate() -> Self {
        Self {
            admin_password: random_text(32),
            app_password: random_text(32),
            worker_password: random_text(32),
            scheduler_password: random_text(32),
            ops_password: random_text(32),
            keyring_password: password(),
            root_key: STANDARD.encode(rand::random::<[u8; 32]>()),
            redis_password: random_text(32),
            s3_access_key: random_text(20).to_uppercase(),
            s3_secret_key: random_text(40),
        }
    }

    /// Reads the secrets at `path`; makes and keeps new ones when there is no such file.
    ///
    /// # Errors
    /// [`SecretsError`]; a damaged file is never overwritten.
    pub fn load_or_create(path: &Path) -> Result<Self, SecretsError> {
        let failed = |source| SecretsError::Io { path: path.to_owned(), source };
        match std::fs::read(path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| SecretsError::Damaged {
                path: path.to_owned(),
                line: error.line(),
                column: error.column(),
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let secrets = Self::generate();
                let text = serde_json::to_vec_pretty(&secrets).map_err(|error| failed(error.into()))?;
                files::write_private(path, &text).map_err(failed)?;
                Ok(secrets)
            }
            Err(error) => Err(failed(error)),
        }
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets(redacted)")
    }
}

fn password() -> String {
    random_text(32)
}

/// Random ASCII letters and digits, from the generator that is fit for secrets.
pub fn random_text(length: usize) -> String {
    rand::rng().sample_iter(rand::distr::Alphanumeric).take(length).map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn secrets_are_made_once_and_only_the_owner_reads_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secrets.json");
        let first = Secrets::load_or_create(&path).unwrap();
        let second = Secrets::load_or_create(&path).unwrap();
        assert_eq!(first.root_key, second.root_key);
        assert_eq!(first.app_password, second.app_password);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(STANDARD.decode(&first.root_key).unwrap().len(), 32);
    }

    #[test]
    fn a_damaged_file_is_refused_kept_and_not_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secrets.json");
        std::fs::write(&path, r#"{"admin_password": hunter2}"#).unwrap();
        let message = Secrets::load_or_create(&path).unwrap_err().to_string();
        assert!(message.contains("damaged") && !message.contains("hunter2"), "{message}");
        assert!(std::fs::read_to_string(&path).unwrap().contains("hunter2"));
    }

    #[test]
    fn debug_shows_no_secret() {
        let secrets = Secrets::generate();
        assert!(!format!("{secrets:?}").contains(&secrets.admin_password));
    }
}
