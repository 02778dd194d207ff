//! `[worker.kms]`: how the keepers of keys are reached. Which keys there are is the keystore's to say.
use std::{path::PathBuf, time::Duration};

use reeve_jobs::redact::Redacted;
use serde::Deserialize;
use url::{Host, Url};

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KmsSettings {
    /// For one answer of a remote keeper, retries included.
    pub timeout_ms: u64,
    pub aws: AwsSettings,
    pub vault: VaultSettings,
}

impl Default for KmsSettings {
    fn default() -> Self {
        Self { timeout_ms: 5_000, aws: AwsSettings::default(), vault: VaultSettings::default() }
    }
}

/// The region is not here: the key's ARN says it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AwsSettings {
    /// Instead of the region's own address.
    pub endpoint: Option<String>,
    /// Without them, credentials are looked for as AWS's own tools do: environment, profile, web identity, container,
    /// instance.
    pub access_key_id: Option<String>,
    pub secret_access_key: Option<Redacted<String>>,
    pub session_token: Option<Redacted<String>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VaultSettings {
    pub address: Option<String>,
    pub token: Option<Redacted<String>>,
    /// Instead of `token`: read at start, on SIGHUP, and whenever the token is refused.
    pub token_file: Option<PathBuf>,
    pub namespace: Option<String>,
    /// PEM; with it, no other authority is trusted.
    pub ca_file: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    #[error("kms.timeout_ms: {0} is not between 100 and 60000")]
    Timeout(u64),
    #[error("{0}: not a URL of https:, without user, query and fragment (http: is for this machine alone)")]
    Address(&'static str),
    #[error("kms.aws: access_key_id and secret_access_key go together, and a session_token needs both")]
    AwsCredentials,
    #[error("kms.vault: no address; set it to that of your Vault or OpenBao, as in https://vault.example:8200")]
    VaultAddress,
    #[error("kms.vault: give one of token and token_file")]
    VaultToken,
    #[error("kms.vault.namespace: not a namespace: visible ASCII alone")]
    VaultNamespace,
}

impl KmsSettings {
    /// Whether what is given makes sense. What a kind of provider must have is asked when one is opened.
    pub fn check(&self) -> Result<(), SettingsError> {
        if !(100..=60_000).contains(&self.timeout_ms) {
            return Err(SettingsError::Timeout(self.timeout_ms));
        }
        self.aws.endpoint()?;
        self.aws.credentials()?;
        let vault = &self.vault;
        if vault.address.is_some() {
            vault.address()?;
        }
        if vault.token.is_some() && vault.token_file.is_some() {
            return Err(SettingsError::VaultToken);
        }
        let is_visible = |text: &String| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
        if vault.namespace.as_ref().is_some_and(|namespace| !is_visible(namespace)) {
            return Err(SettingsError::VaultNamespace);
        }
        Ok(())
    }

    pub(super) fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }
}

impl AwsSettings {
    pub(super) fn endpoint(&self) -> Result<Option<Url>, SettingsError> {
        self.endpoint.as_deref().map(|text| address("kms.aws.endpoint", text)).transpose()
    }

    /// Id, secret and session token, if they are given here.
    #[allow(clippy::type_complexity, reason = "three parts, taken apart at once by the one caller")]
    pub(super) fn credentials(
        &self,
    ) -> Result<Option<(&String, &Redacted<String>, Option<&Redacted<String>>)>, SettingsError> {
        match (&self.access_key_id, &self.secret_access_key, &self.session_token) {
            (Some(id), Some(secret), token) => Ok(Some((id, secret, token.as_ref()))),
            (None, None, None) => Ok(None),
            _ => Err(SettingsError::AwsCredentials),
        }
    }
}

impl VaultSettings {
    pub(super) fn address(&self) -> Result<Url, SettingsError> {
        address("kms.vault.address", self.address.as_deref().ok_or(SettingsError::VaultAddress)?)
    }
}

fn address(key: &'static str, text: &str) -> Result<Url, SettingsError> {
    let url = Url::parse(text).map_err(|_| SettingsError::Address(key))?;
    let is_here = match url.host() {
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    };
    let is_private = url.scheme() == "https" || (url.scheme() == "http" && is_here);
    let is_bare = url.username().is_empty() && url.password().is_none() && url.query().is_none();
    if is_private && is_bare && url.fragment().is_none() { Ok(url) } else { Err(SettingsError::Address(key)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(value: serde_json::Value) -> KmsSettings {
        serde_json::from_value(value).expect("settings")
    }

    #[test]
    fn settings_that_make_no_sense_are_refused_and_not_repeated() {
        use serde_json::json;
        for (value, says) in [
            (json!({"timeout_ms": 0}), "timeout_ms"),
            (json!({"timeout_ms": 600_000}), "timeout_ms"),
            (json!({"aws": {"endpoint": "http://kms.canary.example"}}), "kms.aws.endpoint"),
            (json!({"aws": {"endpoint": "kms.canary.example"}}), "kms.aws.endpoint"),
            (json!({"aws": {"access_key_id": "canary"}}), "go together"),
            (json!({"aws": {"secret_access_key": "canary"}}), "go together"),
            (json!({"aws": {"session_token": "canary"}}), "go together"),
            (json!({"vault": {"address": "http://10.0.0.1:8200"}}), "kms.vault.address"),
            (json!({"vault": {"address": "http://127.0.0.1.canary.example"}}), "kms.vault.address"),
            (json!({"vault": {"address": "https://u:canary@vault.example"}}), "kms.vault.address"),
            (json!({"vault": {"address": "https://vault.example/?t=canary"}}), "kms.vault.address"),
            (json!({"vault": {"token": "canary", "token_file": "/canary"}}), "one of token"),
            (json!({"vault": {"namespace": "a\nX-Vault-Token: canary"}}), "namespace"),
        ] {
            let said = settings(value.clone()).check().expect_err("refused").to_string();
            assert!(said.contains(says) && !said.contains("canary"), "{value}: {said}");
        }
        for value in [
            json!({}),
            json!({"aws": {"endpoint": "https://vpce-1.kms.eu-west-1.vpce.amazonaws.com"}}),
            json!({"aws": {"access_key_id": "a", "secret_access_key": "b", "session_token": "c"}}),
            json!({"vault": {"address": "http://[::1]:8200", "token": "t", "namespace": "team/a"}}),
            json!({"vault": {"address": "https://vault.example:8200/bao", "token_file": "/run/token"}}),
        ] {
            assert_eq!(settings(value.clone()).check(), Ok(()), "{value}");
        }
    }

    #[test]
    fn an_unknown_key_is_refused_and_secrets_are_not_printed() {
        for value in [r#"{"time_out": 3}"#, r#"{"aws": {"region": "x"}}"#, r#"{"vault": {"cafile": "x"}}"#] {
            let said = serde_json::from_str::<KmsSettings>(value).expect_err("refused").to_string();
            assert!(said.contains("unknown field"), "{said}");
        }
        let shown = format!(
            "{:?}",
            settings(serde_json::json!({
                "aws": {"access_key_id": "id", "secret_access_key": "canary-1", "session_token": "canary-2"},
                "vault": {"token": "canary-3"},
            }))
        );
        assert!(!shown.contains("canary"), "{shown}");
    }
}
