//! The worker's section of the configuration: `[worker]`.
use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use reeve_jobs::{
    catalogue::{
        Catalogue,
        load::{self, LoadError},
    },
    kinds::Kind,
    program::config::ConfigError,
    queue::window,
    redact::Redacted,
    seal::{RootKey, provider::KeyRef},
    tenant::databases::Limits,
};
use serde::Deserialize;

use crate::{
    clients::{
        address::AddressPolicy,
        http::{HttpPolicy, UrlPolicy},
        kms::KmsSettings,
    },
    duties::rekey::{pace::Pace, sweep},
    runtime::{FleetConfig, fleet::Slots},
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Of role `reeve_worker`.
    pub database_url: Redacted<String>,
    /// Of role `reeve_ops`, or a member of it; for `reeve-worker endpoint` alone, which asks there for its way into a tenant.
    pub ops_database_url: Option<Redacted<String>>,
    /// The keystore's database, entered as `reeve_keyring`.
    pub keystore_url: Redacted<String>,
    /// The platform's first key, `env:NAME`, `file:/path`, `aws-kms:ARN` or `vault:MOUNT/KEY#VERSION`; of use where the keystore
    /// has none yet.
    pub platform_key: Option<String>,
    /// 32 bytes in base64: what a release before the keystore sealed with. Opens, and seals nothing.
    pub root_key: Option<Redacted<String>>,
    /// Redis; with it jobs that a scheduler holds out there are taken up without being looked for. It need not be there.
    pub redis_url: Option<Redacted<String>>,
    /// Unique among running workers; made from host and process when left out.
    pub name: Option<String>,
    #[serde(default = "default_region")]
    pub region: String,
    /// Jobs of each queue that run at one time. A queue that is not named gets [`DEFAULT_SLOTS`]; 0 leaves it alone.
    #[serde(default)]
    pub slots: BTreeMap<String, usize>,
    #[serde(default = "default_lease_secs")]
    pub lease_secs: u64,
    #[serde(default = "default_poll_ms")]
    pub poll_ms: u64,
    /// How long running jobs may go on after the signal to stop.
    #[serde(default = "default_grace_secs")]
    pub grace_secs: u64,
    #[serde(default = "default_connections")]
    pub connections_max: u32,
    /// Open connections to all dedicated databases together, idle ones included.
    #[serde(default = "default_dedicated_connections")]
    pub dedicated_connections_max: u32,
    /// Open connections to one dedicated database.
    #[serde(default = "default_dedicated_per_database")]
    pub dedicated_connections_per_database: u32,
    /// A connection to a dedicated database that nobody used for so long is closed.
    #[serde(default = "default_dedicated_idle_secs")]
    pub dedicated_idle_secs: u64,
    #[serde(default)]
    pub webhooks: Webhooks,
    /// The app's `catalogue.toml`; where none is named, Reeve's own tables alone are known.
    pub catalogue: Option<PathBuf>,
    #[serde(default)]
    pub rekey: Rekey,
    /// How the keepers of the platform's keys are reached.
    #[serde(default)]
    pub kms: KmsSettings,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Webhooks {
    /// Endpoints may be `http:`. For development.
    pub http_allowed: bool,
    /// Endpoints may be on this machine. For development.
    pub loopback_allowed: bool,
    pub timeout_secs: u64,
    pub keep_days: u16,
}

impl Default for Webhooks {
    fn default() -> Self {
        Self { http_allowed: false, loopback_allowed: false, timeout_secs: 15, keep_days: 30 }
    }
}

/// How fast values are brought under a new key.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rekey {
    /// Rows of one transaction, at most.
    pub batch: u16,
    /// 0: as many as there are.
    pub rows_per_sec_max: u32,
    /// Replicas may be so far behind, where the worker's login is shown that.
    pub lag_secs_max: u16,
}

impl Default for Rekey {
    fn default() -> Self {
        Self { batch: 500, rows_per_sec_max: 0, lag_secs_max: 2 }
    }
}

impl Rekey {
    pub fn settings(&self) -> sweep::Settings {
        let rows_per_sec_max = Some(self.rows_per_sec_max).filter(|rate| *rate > 0);
        let lag_max = Duration::from_secs(self.lag_secs_max.into());
        let pace = Pace { rows_per_sec_max, lag_max, ..Pace::default() };
        sweep::Settings { batch: self.batch.into(), pace, ..sweep::Settings::default() }
    }
}

/// Slots of a queue that the configuration does not name.
pub const DEFAULT_SLOTS: usize = 16;

fn default_region() -> String {
    "default".to_owned()
}
fn default_lease_secs() -> u64 {
    30
}
fn default_poll_ms() -> u64 {
    1_000
}
fn default_grace_secs() -> u64 {
    20
}
fn default_connections() -> u32 {
    16
}
fn default_dedicated_connections() -> u32 {
    Limits::default().connections
}
fn default_dedicated_per_database() -> u32 {
    Limits::default().per_database
}
fn default_dedicated_idle_secs() -> u64 {
    Limits::default().idle.as_secs()
}

impl Config {
    pub fn check(&self) -> Result<(), ConfigError> {
        let wrong = |what: String| Err(ConfigError::Wrong { place: "[worker]".to_owned(), what });
        if let Some(Err(error)) = self.root_key.as_ref().map(|text| RootKey::from_base64(text.reveal())) {
            return wrong(format!("root_key: {error}"));
        }
        if let Some(Err(error)) = self.platform_key.as_deref().map(str::parse::<KeyRef>) {
            return wrong(format!("platform_key: {error}"));
        }
        if let Some(Err(error)) = self.redis_url.as_ref().map(|url| window::check_url("redis_url", url)) {
            return wrong(error.to_string());
        }
        let queues = Kind::queues();
        if let Some(queue) = self.slots.keys().find(|queue| !queues.contains(&queue.as_str())) {
            return wrong(format!("slots.{queue}: no such queue; queues are {}", queues.join(", ")));
        }
        if !(4..=3_600).contains(&self.lease_secs) {
            return wrong(format!("lease_secs: {} is not between 4 and 3600", self.lease_secs));
        }
        // Else the job's budget would end the attempt before it is recorded.
        let timeout_secs_max = Kind::WebhookDeliver.spec().budget_secs - 15;
        if !(6..=timeout_secs_max).contains(&self.webhooks.timeout_secs) {
            let found = self.webhooks.timeout_secs;
            return wrong(format!("webhooks.timeout_secs: {found} is not between 6 and {timeout_secs_max}"));
        }
        if !(1..=10_000).contains(&self.rekey.batch) {
            return wrong(format!("rekey.batch: {} is not between 1 and 10000", self.rekey.batch));
        }
        if self.connections_max < 4 {
            return wrong("connections_max: at least 4, for claiming, renewing, settling and listening".to_owned());
        }
        let (all, each) = (self.dedicated_connections_max, self.dedicated_connections_per_database);
        if each == 0 || all < each {
            return wrong(format!("dedicated_connections_max: {all} is less than one database's {each}, or that is 0"));
        }
        if !(1..=3_600).contains(&self.dedicated_idle_secs) {
            return wrong(format!("dedicated_idle_secs: {} is not between 1 and 3600", self.dedicated_idle_secs));
        }
        self.kms.check().or_else(|error| wrong(error.to_string()))
    }

    pub fn fleet(&self) -> FleetConfig {
        let slots = |queue: &str| self.slots.get(queue).copied().unwrap_or(DEFAULT_SLOTS);
        FleetConfig {
            name: self.name.clone().unwrap_or_else(process_name),
            region: self.region.as_str().into(),
            queues: Kind::queues()
                .into_iter()
                .map(|queue| Slots { queue: queue.to_owned(), slots: slots(queue) })
                .filter(|queue| queue.slots > 0)
                .collect(),
            lease: Duration::from_secs(self.lease_secs),
            poll: Duration::from_millis(self.poll_ms),
            grace: Duration::from_secs(self.grace_secs),
        }
    }

    /// The app's catalogue with Reeve's own in it.
    pub fn catalogue(&self) -> Result<Catalogue, LoadError> {
        self.catalogue.as_deref().map_or_else(load::own, load::merged)
    }

    /// The way to the window; `None` where no Redis is configured.
    pub fn window(&self) -> Option<window::Link> {
        self.redis_url.clone().map(window::Link::new)
    }

    pub fn dedicated_limits(&self) -> Limits {
        Limits {
            connections: self.dedicated_connections_max,
            per_database: self.dedicated_connections_per_database,
            idle: Duration::from_secs(self.dedicated_idle_secs),
            ..Limits::default()
        }
    }

    pub fn url_policy(&self) -> UrlPolicy {
        UrlPolicy { http_allowed: self.webhooks.http_allowed, address: self.address_policy(), ..UrlPolicy::default() }
    }

    pub fn http_policy(&self) -> HttpPolicy {
        HttpPolicy {
            total_timeout: Duration::from_secs(self.webhooks.timeout_secs),
            address: self.address_policy(),
            ..HttpPolicy::default()
        }
    }

    fn address_policy(&self) -> AddressPolicy {
        AddressPolicy { loopback_allowed: self.webhooks.loopback_allowed }
    }
}

/// Host and process: enough to find it. Fencing never relies on it.
fn process_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_else(|_| "worker".to_owned());
    format!("{}-{}", host.trim(), std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(toml_slots: &[(&str, usize)], root_key: &str) -> Config {
        serde_json::from_value(serde_json::json!({
            "database_url": "postgres://x", "keystore_url": "postgres://x", "root_key": root_key,
            "slots": toml_slots.iter().copied().collect::<BTreeMap<_, _>>(),
        }))
        .expect("a configuration")
    }

    #[test]
    fn a_queue_that_no_kind_uses_is_refused() {
        let key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
        let said = config(&[("webhook", 3)], key).check().unwrap_err().to_string();
        assert!(said.contains("slots.webhook") && said.contains("webhooks"), "{said}");
        let fleet = config(&[("webhooks", 3), ("maintenance", 0)], key).fleet();
        assert!(fleet.queues.iter().any(|q| q.queue == "webhooks" && q.slots == 3));
        assert!(fleet.queues.iter().all(|q| q.queue != "maintenance"));
    }

    #[test]
    fn a_redis_that_is_none_is_refused_and_not_repeated() {
        let mut config = config(&[], "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=");
        assert!(config.check().is_ok() && config.window().is_none());
        config.redis_url = Some(Redacted::new("postgres://u:hunter2@h".to_owned()));
        let said = config.check().unwrap_err().to_string();
        assert!(said.contains("redis_url") && !said.contains("hunter2"), "{said}");
    }

    #[test]
    fn a_way_to_a_key_provider_that_makes_no_sense_is_refused() {
        let mut config = config(&[], "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=");
        assert!(config.check().is_ok());
        config.kms.vault.address = Some("http://vault.canary.example:8200".to_owned());
        let said = config.check().unwrap_err().to_string();
        assert!(said.contains("[worker]: kms.vault.address") && !said.contains("canary"), "{said}");
    }

    #[test]
    fn a_root_key_of_wrong_form_is_refused_and_not_repeated() {
        let said = config(&[], "hunter2").check().unwrap_err().to_string();
        assert!(said.contains("root_key") && !said.contains("hunter2"), "{said}");
        assert!(!format!("{:?}", config(&[], "hunter2")).contains("hunter2"));
    }
}
