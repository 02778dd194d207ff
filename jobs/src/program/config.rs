//! Configuration: one TOML file with a section a program, overridden by the environment.
//!
//! `reeve.toml` may hold `[worker]`, `[scheduler]`, `[ops]` and `[log]`; each program reads its own section and refuses a
//! key it does not know, so that a typing error is found at start and not in an incident. An environment variable is
//! named `REEVE_<SECTION>__<KEY>`, as in `REEVE_WORKER__DATABASE_URL`. There is no default for what differs between
//! installations (addresses, keys), and a missing value says where it could stand.
use std::path::Path;

use figment::{
    Figment,
    providers::{Env, Format, Toml},
};
use serde::de::DeserializeOwned;

/// Sections that a file may have.
const SECTIONS: [&str; 4] = ["worker", "scheduler", "ops", "log"];

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("the configuration file {path} does not exist")]
    NoFile { path: String },
    #[error("{place}: section [{section}] is not known; sections are [worker], [scheduler], [ops], [log]")]
    UnknownSection { place: String, section: String },
    #[error(
        "environment: {name} is no variable of Reeve's; values are named REEVE_<SECTION>__<KEY>, as in REEVE_WORKER__DATABASE_URL"
    )]
    UnknownVariable { name: String },
    #[error("{place}: no value for `{key}`; set it in the file under [{section}] or as {env}")]
    Missing { place: String, section: String, key: String, env: String },
    #[error("{place}: `{key}` is not a key of [{section}]; keys are {expected}")]
    UnknownKey { place: String, section: String, key: String, expected: String },
    #[error("{place}: {what}")]
    Wrong { place: String, what: String },
}

/// Reads section `section` for a program. `file` is optional; without it the environment alone must do.
pub fn load<T: DeserializeOwned>(section: &'static str, file: Option<&Path>) -> Result<T, ConfigError> {
    check_environment(std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()))?;
    let mut figment = Figment::new();
    if let Some(path) = file {
        if !path.is_file() {
            return Err(ConfigError::NoFile { path: path.display().to_string() });
        }
        let toml = Figment::from(Toml::file_exact(path));
        check_sections(&toml, path)?;
        figment = figment.merge(toml);
    }
    let place = file.map_or_else(|| "environment".to_owned(), |path| path.display().to_string());
    figment = figment.merge(Env::prefixed("REEVE_").filter(|key| key.as_str().contains("__")).split("__"));
    // A section that nothing sets still has defaults and, more often, something missing to be named.
    let section_figment = if figment.contains(section) { figment.focus(section) } else { Figment::new() };
    section_figment.extract().map_err(|error| explain(error, section, &place))
}

/// Names of Reeve's that are no values of a section: what is read apart, and what development and tests use.
const OTHER_NAMES: [&str; 6] = [
    "REEVE_CONFIG",
    "REEVE_LOG",
    "REEVE_ACTOR",
    "REEVE_ENDPOINT_SECRET",
    "REEVE_PLACEMENT_URL",
    "REEVE_PLACEMENT_ADMIN_URL",
];
const OTHER_PREFIXES: [&str; 5] = ["REEVE_DEV_", "REEVE_TEST_", "REEVE_BENCH_", "REEVE_PEER_", "REEVE_PG_"];

/// A misspelt variable would else be a value that nobody reads.
fn check_environment(names: impl Iterator<Item = String>) -> Result<(), ConfigError> {
    for name in names {
        let Some(rest) = name.strip_prefix("REEVE_") else { continue };
        if OTHER_NAMES.contains(&name.as_str()) || OTHER_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        let section = rest.split("__").next().unwrap_or_default();
        if rest.contains("__") && SECTIONS.contains(&section.to_lowercase().as_str()) {
            continue;
        }
        return Err(ConfigError::UnknownVariable { name });
    }
    Ok(())
}

fn check_sections(toml: &Figment, path: &Path) -> Result<(), ConfigError> {
    let wrong =
        |error: figment::Error| ConfigError::Wrong { place: path.display().to_string(), what: error.to_string() };
    let dict: figment::value::Dict = toml.extract().map_err(wrong)?;
    match dict.keys().find(|key| !SECTIONS.contains(&key.as_str())) {
        Some(key) => Err(ConfigError::UnknownSection { place: path.display().to_string(), section: key.clone() }),
        None => Ok(()),
    }
}

fn explain(error: figment::Error, section: &str, place: &str) -> ConfigError {
    use figment::error::Kind;
    let place = match &error.metadata {
        Some(metadata) if metadata.name.contains("environment") => "environment".to_owned(),
        _ => place.to_owned(),
    };
    let section = section.to_owned();
    let within = |key: &str| error.path.iter().map(String::as_str).chain([key]).collect::<Vec<_>>().join(".");
    match &error.kind {
        Kind::MissingField(key) => {
            let key = within(key);
            let env = format!("REEVE_{}__{}", section.to_uppercase(), key.to_uppercase().replace('.', "__"));
            ConfigError::Missing { place, section, key, env }
        }
        Kind::UnknownField(key, expected) => {
            // Here, and only here, the path already ends with the key.
            let key = if error.path.last() == Some(key) { error.path.join(".") } else { within(key) };
            ConfigError::UnknownKey { place, section, key, expected: expected.join(", ") }
        }
        // The value itself is not repeated: it may be a secret.
        Kind::InvalidType(_, expected) | Kind::InvalidValue(_, expected) => {
            ConfigError::Wrong { place, what: format!("[{section}] {}: expected {expected}", error.path.join(".")) }
        }
        _ => ConfigError::Wrong { place, what: format!("[{section}] {}: {}", error.path.join("."), error.kind) },
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "read through Debug and by serde")]
    struct Worker {
        database_url: String,
        #[serde(default)]
        slots: u16,
    }

    fn read(toml: &str) -> Result<Worker, ConfigError> {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        std::fs::write(file.path(), toml).expect("temporary file");
        load("worker", Some(file.path()))
    }

    #[test]
    fn a_missing_value_says_where_it_could_stand() {
        let said = read("[worker]\nslots = 3").unwrap_err().to_string();
        assert!(said.contains("`database_url`") && said.contains("REEVE_WORKER__DATABASE_URL"), "{said}");
        let said = read("").unwrap_err().to_string();
        assert!(said.contains("`database_url`"), "{said}");
    }

    #[test]
    fn an_unknown_key_is_refused_and_lists_the_known() {
        let said = read("[worker]\ndatabase_url = 'x'\nslot = 3").unwrap_err().to_string();
        assert!(said.contains("`slot`") && said.contains("slots"), "{said}");
        let said = read("[wroker]\ndatabase_url = 'x'").unwrap_err().to_string();
        assert!(said.contains("[wroker]") && said.contains("[worker]"), "{said}");
    }

    #[test]
    fn a_value_of_wrong_type_is_named_but_not_repeated() {
        let said = read("[worker]\ndatabase_url = 'x'\nslots = 'hunter2'").unwrap_err().to_string();
        assert!(said.contains("slots") && !said.contains("hunter2"), "{said}");
    }

    #[test]
    fn a_misspelt_variable_is_refused() {
        let check = |names: &[&str]| check_environment(names.iter().map(|name| (*name).to_owned()));
        assert!(check(&["PATH", "REEVE_WORKER__SLOTS", "REEVE_CONFIG", "REEVE_DEV_REDIS_URL"]).is_ok());
        for bad in ["REEVE_WROKER__LEASE_SECS", "REEVE_WORKER_LEASE_SECS", "REEVE_LGO"] {
            let said = check(&[bad]).unwrap_err().to_string();
            assert!(said.contains(bad) && said.contains("REEVE_<SECTION>__<KEY>"), "{said}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let said = load::<Worker>("worker", Some(Path::new("/nowhere/reeve.toml"))).unwrap_err().to_string();
        assert!(said.contains("/nowhere/reeve.toml"), "{said}");
    }
}
