//! Section `[scheduler]` of the configuration.
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use reeve_jobs::{
    audit::{AuditKey, AuditKeyError},
    kinds::Kind,
    program,
    queue::window::{self, InvalidRedisUrl},
    redact::Redacted,
};
use serde::Deserialize;

use crate::{relay::Relay, signer::Signer};

/// The section's name, and so the prefix of its environment variables: `REEVE_SCHEDULER__…`.
const SECTION: &str = "scheduler";

/// See [`Config::load`]. Fields are public for programs that embed the services; call [`Config::validate`] then.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// PostgreSQL, as role `reeve_scheduler`.
    pub database_url: Redacted<String>,
    /// How often due jobs are made available: the delay that a retry or a job with `run_at` may see on top.
    #[serde(default = "default::tick_ms")]
    pub tick_ms: i32,
    /// How often expired leases are looked for, and openings of break-glass whose time is over.
    #[serde(default = "default::rescue_secs")]
    pub rescue_secs: i32,
    /// How often schedules are looked at.
    #[serde(default = "default::slots_secs")]
    pub slots_secs: i32,
    /// How often old rows are pruned and partitions kept up; also done at start.
    #[serde(default = "default::upkeep_secs")]
    pub upkeep_secs: i32,
    /// Ended jobs are kept this long.
    #[serde(default = "default::history_keep_days")]
    pub history_keep_days: i32,
    /// Partitions are made for so many days to come: how long the scheduler may be down before history falls into the
    /// default partition.
    #[serde(default = "default::history_days_ahead")]
    pub history_days_ahead: i32,
    /// Dead and quarantined jobs wait this long for an operator before they become history.
    #[serde(default = "default::parked_keep_days")]
    pub parked_keep_days: i32,
    /// Records of attempts that did not finish their job are kept this long.
    #[serde(default = "default::attempt_keep_days")]
    pub attempt_keep_days: i32,
    /// Redis; with it ready jobs are held out to the workers there, without it the workers look for them in PostgreSQL.
    pub redis_url: Option<Redacted<String>>,
    /// Queues whose jobs are held out; all where none is named. Those of kinds with a deadline never are.
    #[serde(default)]
    pub window_queues: Vec<String>,
    /// How often the windows are looked after.
    #[serde(default = "default::relay_ms")]
    pub relay_ms: i32,
    /// 32 bytes in base64; with it the ends of the audit chains are signed, without it they are not. The same as
    /// `[ops] audit_key`, and not where the database's administrator could read it.
    pub audit_key: Option<Redacted<String>>,
    /// Each checkpoint is appended to this file as a line of JSON before it is stored; ship it to another machine.
    pub audit_checkpoint_file: Option<PathBuf>,
    /// How often chains that have grown are signed; also done at start.
    #[serde(default = "default::audit_checkpoint_secs")]
    pub audit_checkpoint_secs: i32,
}

/// The user's mistakes.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(transparent)]
    Load(#[from] program::config::ConfigError),
    #[error(
        "[{SECTION}] {key} = {found} is out of range: it must be {min} to {max}; set it in the file under [{SECTION}] or as {env}"
    )]
    OutOfRange { key: &'static str, found: i32, min: i32, max: i32, env: String },
    #[error(
        "[{SECTION}] database_url is empty; set it in the file under [{SECTION}] or as REEVE_SCHEDULER__DATABASE_URL"
    )]
    NoDatabase,
    #[error("[{SECTION}] {0}")]
    Redis(#[from] InvalidRedisUrl),
    #[error("[{SECTION}] window_queues: no such queue {found:?}; queues are {known}")]
    NoQueue { found: String, known: String },
    #[error("[{SECTION}] audit_key: {0}")]
    AuditKey(#[from] AuditKeyError),
    #[error(
        "[{SECTION}] audit_checkpoint_file is set and audit_key is not: nothing would be signed; set REEVE_SCHEDULER__AUDIT_KEY too"
    )]
    FileWithoutKey,
}

impl Config {
    /// Reads the section from `file`, overridden by the environment, and checks it.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let config: Self = program::config::load(SECTION, file)?;
        config.validate()?;
        Ok(config)
    }

    /// Refuses values that the services could not work with.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.database_url.reveal().trim().is_empty() {
            return Err(ConfigError::NoDatabase);
        }
        for (key, found, min, max) in [
            ("tick_ms", self.tick_ms, 10, 60_000),
            ("relay_ms", self.relay_ms, 10, 60_000),
            ("rescue_secs", self.rescue_secs, 1, 3600),
            // Well below `reeve_jobs::queue::slots::SKIP_GRACE_SECS`, so that a running scheduler is never too late for a slot.
            ("slots_secs", self.slots_secs, 1, 30),
            ("upkeep_secs", self.upkeep_secs, 10, 86_400),
            // The ranges of reeve.history_upkeep.
            ("history_keep_days", self.history_keep_days, 1, 3650),
            ("history_days_ahead", self.history_days_ahead, 1, 60),
            ("parked_keep_days", self.parked_keep_days, 1, 3650),
            ("attempt_keep_days", self.attempt_keep_days, 1, 3650),
            ("audit_checkpoint_secs", self.audit_checkpoint_secs, 10, 86_400),
        ] {
            if !(min..=max).contains(&found) {
                let env = format!("REEVE_SCHEDULER__{}", key.to_uppercase());
                return Err(ConfigError::OutOfRange { key, found, min, max, env });
            }
        }
        if let Some(url) = &self.redis_url {
            window::check_url("redis_url", url)?;
        }
        let known = Kind::queues();
        if let Some(found) = self.window_queues.iter().find(|queue| !known.contains(&queue.as_str())) {
            return Err(ConfigError::NoQueue { found: found.clone(), known: known.join(", ") });
        }
        if self.audit_key()?.is_none() && self.audit_checkpoint_file.is_some() {
            return Err(ConfigError::FileWithoutKey);
        }
        Ok(())
    }

    fn audit_key(&self) -> Result<Option<AuditKey>, AuditKeyError> {
        self.audit_key.as_ref().map(|text| AuditKey::from_base64(text.reveal())).transpose()
    }

    pub fn tick(&self) -> Duration {
        Duration::from_millis(u64::from(self.tick_ms.unsigned_abs()))
    }

    pub fn relay_every(&self) -> Duration {
        Duration::from_millis(u64::from(self.relay_ms.unsigned_abs()))
    }

    /// `None` where there is no Redis.
    pub fn relay(&self) -> Option<Relay> {
        Some(Relay::new(self.redis_url.clone()?, self.window_queues.clone()))
    }

    pub fn rescue(&self) -> Duration {
        secs(self.rescue_secs)
    }

    pub fn slots(&self) -> Duration {
        secs(self.slots_secs)
    }

    pub fn upkeep(&self) -> Duration {
        secs(self.upkeep_secs)
    }

    pub fn audit_checkpoint(&self) -> Duration {
        secs(self.audit_checkpoint_secs)
    }

    /// `None` where there is no key. [`Config::validate`] has refused a bad one.
    pub fn signer(&self) -> Option<Signer> {
        let key = self.audit_key().ok().flatten()?;
        Some(Signer { key, file: self.audit_checkpoint_file.clone() })
    }
}

fn secs(n: i32) -> Duration {
    Duration::from_secs(u64::from(n.unsigned_abs()))
}

mod default {
    pub fn tick_ms() -> i32 {
        500
    }
    pub fn relay_ms() -> i32 {
        100
    }
    pub fn rescue_secs() -> i32 {
        5
    }
    pub fn slots_secs() -> i32 {
        1
    }
    pub fn upkeep_secs() -> i32 {
        3600
    }
    pub fn history_keep_days() -> i32 {
        30
    }
    pub fn history_days_ahead() -> i32 {
        3
    }
    pub fn parked_keep_days() -> i32 {
        90
    }
    pub fn attempt_keep_days() -> i32 {
        30
    }
    pub fn audit_checkpoint_secs() -> i32 {
        3600
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
    fn a_url_is_enough() {
        let config = read("[scheduler]\ndatabase_url = 'postgres://x'").expect("defaults");
        assert_eq!((config.tick(), config.rescue()), (Duration::from_millis(500), Duration::from_secs(5)));
        assert_eq!((config.slots(), config.upkeep()), (Duration::from_secs(1), Duration::from_secs(3600)));
        let days = (config.history_keep_days, config.history_days_ahead, config.parked_keep_days);
        assert_eq!((days, config.attempt_keep_days), ((30, 3, 90), 30));
    }

    #[test]
    fn a_value_out_of_range_says_key_range_and_place() {
        for (key, value) in [("tick_ms", 0), ("slots_secs", 61), ("history_keep_days", 0), ("parked_keep_days", -1)] {
            let said = read(&format!("[scheduler]\ndatabase_url = 'x'\n{key} = {value}")).unwrap_err().to_string();
            let env = format!("REEVE_SCHEDULER__{}", key.to_uppercase());
            assert!(said.contains(&format!("{key} = {value}")) && said.contains(&env), "{said}");
        }
    }

    #[test]
    fn an_unknown_key_or_no_url_is_refused() {
        let said = read("[scheduler]\ndatabase_url = 'x'\ntick_sec = 1").unwrap_err().to_string();
        assert!(said.contains("`tick_sec`") && said.contains("tick_ms"), "{said}");
        let said = read("[scheduler]\ntick_ms = 100").unwrap_err().to_string();
        assert!(said.contains("REEVE_SCHEDULER__DATABASE_URL"), "{said}");
        let said = read("[scheduler]\ndatabase_url = ''").unwrap_err().to_string();
        assert!(said.contains("REEVE_SCHEDULER__DATABASE_URL"), "{said}");
    }

    #[test]
    fn neither_the_url_nor_the_key_is_printed() {
        let key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
        let config = read(&format!("[scheduler]\ndatabase_url = 'postgres://u:hunter2@h/d'\naudit_key = '{key}'"));
        let shown = format!("{:?}", config.expect("valid"));
        assert!(!shown.contains("hunter2") && !shown.contains("AAEC"), "{shown}");
    }

    #[test]
    fn a_redis_that_is_none_or_a_queue_that_no_kind_uses_is_refused() {
        let said = |rest: &str| read(&format!("[scheduler]\ndatabase_url = 'x'\n{rest}")).unwrap_err().to_string();
        let wrong = said("redis_url = 'http://u:hunter2@h'");
        assert!(wrong.contains("redis_url") && wrong.contains("redis://") && !wrong.contains("hunter2"), "{wrong}");
        let wrong = said("window_queues = ['probe']");
        assert!(wrong.contains("\"probe\"") && wrong.contains("probes"), "{wrong}");
        let config = read("[scheduler]\ndatabase_url = 'x'\nredis_url = 'redis://u:hunter2@h'").expect("valid");
        assert!(config.relay().is_some() && !format!("{config:?}").contains("hunter2"));
    }

    #[test]
    fn a_bad_key_or_a_file_without_one_is_refused() {
        let said = |rest: &str| read(&format!("[scheduler]\ndatabase_url = 'x'\n{rest}")).unwrap_err().to_string();
        let bad = said("audit_key = 'AAEC'");
        assert!(bad.contains("audit_key: ") && bad.contains("openssl rand") && !bad.contains("AAEC"), "{bad}");
        let lonely = said("audit_checkpoint_file = 'checkpoints.jsonl'");
        assert!(lonely.contains("REEVE_SCHEDULER__AUDIT_KEY"), "{lonely}");
    }
}
