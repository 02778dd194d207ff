//! Section `[ops]` of the configuration. Each command needs only the address it uses, so both are optional here and a
//! missing one is named by the command that wanted it.
use std::path::Path;

use reeve_jobs::{
    audit::{AuditKey, AuditKeyError},
    program::config::{self, ConfigError},
    redact::Redacted,
};
use serde::Deserialize;

use crate::run::Failure;

const SECTION: &str = "ops";

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Logs in as `reeve_ops`, or a role that is a member of it.
    database_url: Option<Redacted<String>>,
    /// Logs in as an administrator of the database; for `reeve migrate` alone.
    admin_database_url: Option<Redacted<String>>,
    /// Logs in as an administrator of the keystore's database; for `reeve migrate` alone, which leaves the keystore as it is
    /// where this is not set.
    keystore_admin_url: Option<Redacted<String>>,
    /// 32 bytes in base64; signs checkpoints of the audit log. Not where the database's administrator could read it.
    audit_key: Option<Redacted<String>>,
    /// Logs in as a role that may read the app's tables; for `reeve catalogue`. Else the administrator's address is used.
    app_database_url: Option<Redacted<String>>,
    /// The Redis of the window; for `reeve doctor`, which asks whether it is there.
    redis_url: Option<Redacted<String>>,
    /// The file all this came from, or "environment".
    #[serde(skip)]
    place: String,
}

impl Config {
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let mut config: Self = config::load(SECTION, file)?;
        config.place = file.map_or_else(|| "environment".to_owned(), |path| path.display().to_string());
        Ok(config)
    }

    pub fn database_url(&self) -> Result<&Redacted<String>, ConfigError> {
        self.database_url.as_ref().ok_or_else(|| self.missing("database_url"))
    }

    pub fn admin_database_url(&self) -> Result<&Redacted<String>, ConfigError> {
        self.admin_database_url.as_ref().ok_or_else(|| self.missing("admin_database_url"))
    }

    /// `None` when there is none.
    pub fn keystore_admin_url(&self) -> Option<&Redacted<String>> {
        self.keystore_admin_url.as_ref()
    }

    /// `None` when there is none.
    pub fn redis_url(&self) -> Option<&Redacted<String>> {
        self.redis_url.as_ref()
    }

    /// `None` when there is none.
    pub fn audit_key(&self) -> Result<Option<AuditKey>, AuditKeyError> {
        self.audit_key.as_ref().map(|text| AuditKey::from_base64(text.reveal())).transpose()
    }

    pub fn require_audit_key(&self) -> Result<AuditKey, Failure> {
        self.audit_key()?.ok_or_else(|| self.missing("audit_key").into())
    }

    /// The key, for messages, and the address.
    pub fn app_database_url(&self) -> Result<(&'static str, &Redacted<String>), ConfigError> {
        match (&self.app_database_url, &self.admin_database_url) {
            (Some(url), _) => Ok(("[ops] app_database_url", url)),
            (None, Some(url)) => Ok(("[ops] admin_database_url", url)),
            (None, None) => Err(self.missing("app_database_url")),
        }
    }

    fn missing(&self, key: &str) -> ConfigError {
        ConfigError::Missing {
            place: self.place.clone(),
            section: SECTION.to_owned(),
            key: key.to_owned(),
            env: format!("REEVE_OPS__{}", key.to_uppercase()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(toml: &str) -> Result<Config, ConfigError> {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        std::fs::write(file.path(), toml).expect("temporary file");
        Config::load(Some(file.path()))
    }

    #[test]
    fn a_missing_address_says_where_it_could_stand() {
        let config = read("[ops]\nadmin_database_url = 'postgres://x'").expect("one address is enough");
        assert!(config.admin_database_url().is_ok());
        let said = config.database_url().unwrap_err().to_string();
        assert!(said.contains("`database_url`") && said.contains("REEVE_OPS__DATABASE_URL"), "{said}");
        let said = read("").expect("an empty file").admin_database_url().unwrap_err().to_string();
        assert!(said.contains("REEVE_OPS__ADMIN_DATABASE_URL"), "{said}");
    }

    #[test]
    fn an_unknown_key_is_refused_and_lists_the_known() {
        let said = read("[ops]\ndatabase_uri = 'x'").unwrap_err().to_string();
        assert!(said.contains("`database_uri`") && said.contains("admin_database_url"), "{said}");
    }

    #[test]
    fn an_address_is_not_printed() {
        let config = read("[ops]\ndatabase_url = 'postgres://a:hunter2@h/d'").expect("a configuration");
        assert!(!format!("{config:?}").contains("hunter2"), "{config:?}");
    }
}
