//! Who may know whom, as Cargo resolves it: the arrows between the crates, and what each pulls in.
//!
//! Declarations come from `cargo metadata --no-deps` (all targets, all kinds of dependency); what is really linked comes
//! from `cargo tree` of one package on this machine. Each rule is a function over their text that returns violations, and
//! is tried on an offender.
use std::{collections::BTreeSet, path::Path, process::Command};

use serde_json::{Value, json};

const PROGRAMS: [&str; 3] = ["reeve-worker", "reeve-scheduler", "reeve-ops"];
/// A web app that depends on `reeve-jobs` asks for none of these.
const NOT_IN_JOBS: [&str; 9] =
    ["rustls", "aws-lc-rs", "sentry", "aws-sdk-s3", "reqwest", "axum", "apalis", "lettre", "zip"];
/// One TLS library, one provider, one database; nothing that needs a C library of the system.
const NOWHERE: [&str; 9] =
    ["openssl", "openssl-sys", "native-tls", "ring", "libsqlite3-sys", "sqlx-mysql", "sqlx-sqlite", "rsa", "async-std"];

fn cargo(arguments: &[&str]) -> String {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(arguments)
        .args(["--locked", "--offline"])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .output()
        .expect("cargo starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo {}: {said}", arguments.join(" "));
    String::from_utf8(output.stdout).expect("cargo writes UTF-8")
}

fn metadata() -> Value {
    serde_json::from_str(&cargo(&["metadata", "--format-version", "1", "--no-deps"])).expect("JSON")
}

/// Names of what is linked into a package, itself included.
fn linked(package: &str, edges: &str) -> BTreeSet<String> {
    names(&cargo(&["tree", "--package", package, "--edges", edges, "--prefix", "none"]))
}

fn names(tree: &str) -> BTreeSet<String> {
    tree.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

fn banned(linked: &BTreeSet<String>, banned: &[&str]) -> Vec<String> {
    banned.iter().filter(|name| linked.contains(**name)).map(|name| (*name).to_owned()).collect()
}

/// `package → dependency` of each declaration, with the features it asks for; targets and kinds make no difference.
fn declared(metadata: &Value) -> Vec<(&str, &str, Vec<&str>)> {
    metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|package| {
            let name = package["name"].as_str().expect("a package has a name");
            package["dependencies"].as_array().into_iter().flatten().map(move |dependency| {
                let features = dependency["features"].as_array().into_iter().flatten().filter_map(Value::as_str);
                (name, dependency["name"].as_str().expect("a dependency has a name"), features.collect())
            })
        })
        .collect()
}

/// Programs meet in the database, not in the linker; the contract crate stands below all; development and tests above all.
fn wrong_arrows(metadata: &Value) -> Vec<String> {
    let is_wrong = |from: &str, to: &str| {
        (PROGRAMS.contains(&from) && to.starts_with("reeve-") && to != "reeve-jobs")
            || (from == "reeve-jobs" && to.starts_with("reeve-"))
            || (from == "reeve-dev" && PROGRAMS.contains(&to))
            || to == "reeve-tests"
    };
    declared(metadata)
        .iter()
        .filter(|(from, to, _)| is_wrong(from, to))
        .map(|(from, to, _)| format!("{from} depends on {to}"))
        .collect()
}

/// Only the worker opens sealed secrets; development and tests play the key's owner.
fn wrong_key_holders(metadata: &Value) -> Vec<String> {
    declared(metadata)
        .iter()
        .filter(|(from, to, features)| {
            *to == "reeve-jobs"
                && (features.contains(&"seal") || features.contains(&"redis"))
                && !["reeve-worker", "reeve-dev", "reeve-tests"].contains(from)
        })
        .map(|(from, ..)| format!("{from} turns on what opens seals"))
        .collect()
}

/// Nothing calls out but the worker.
fn wrong_callers(metadata: &Value) -> Vec<String> {
    declared(metadata)
        .iter()
        .filter(|(from, to, _)| (*to == "reqwest" || to.starts_with("aws-")) && *from != "reeve-worker")
        .map(|(from, to, _)| format!("{from} depends on {to}"))
        .collect()
}

#[test]
fn programs_know_the_contract_crate_and_not_each_other() {
    let metadata = metadata();
    assert_eq!(wrong_arrows(&metadata), Vec::<String>::new());
    let arrows = declared(&metadata);
    for program in PROGRAMS {
        assert!(arrows.iter().any(|(from, to, _)| (*from, *to) == (program, "reeve-jobs")), "{program} is not seen");
    }
}

#[test]
fn an_arrow_the_wrong_way_is_named() {
    let package = |name: &str, to: &str| json!({"name": name, "dependencies": [{"name": to, "features": []}]});
    for (from, to) in [
        ("reeve-ops", "reeve-worker"),
        ("reeve-scheduler", "reeve-ops"),
        ("reeve-worker", "reeve-dev"),
        ("reeve-jobs", "reeve-worker"),
        ("reeve-dev", "reeve-worker"),
        ("reeve-dev", "reeve-tests"),
    ] {
        let planted = json!({"packages": [package("reeve-tests", "reeve-worker"), package(from, to)]});
        assert_eq!(wrong_arrows(&planted), [format!("{from} depends on {to}")]);
    }
}

#[test]
fn the_contract_crate_is_light_without_features() {
    let linked = linked("reeve-jobs", "normal");
    assert!(linked.contains("sqlx"), "this is not its tree");
    assert_eq!(banned(&linked, &NOT_IN_JOBS), Vec::<String>::new());
}

#[test]
fn only_the_worker_opens_sealed_secrets() {
    assert_eq!(wrong_key_holders(&metadata()), Vec::<String>::new());
    assert!(linked("reeve-worker", "normal").contains("aes-gcm"), "the crate that seals has another name now");
    for program in ["reeve-scheduler", "reeve-ops"] {
        assert_eq!(banned(&linked(program, "normal"), &["aes-gcm"]), Vec::<String>::new(), "{program}");
    }
}

#[test]
fn another_key_holder_is_named() {
    let holder = |name: &str, feature: &str| json!({"name": name, "dependencies": [{"name": "reeve-jobs", "features": ["program", feature]}]});
    let planted = json!({"packages": [holder("reeve-worker", "seal"), holder("reeve-ops", "seal"), holder("reeve-scheduler", "redis"), holder("reeve-dev", "testing")]});
    assert_eq!(
        wrong_key_holders(&planted),
        ["reeve-ops turns on what opens seals", "reeve-scheduler turns on what opens seals"]
    );
}

#[test]
fn of_the_programs_only_the_worker_calls_out() {
    assert_eq!(wrong_callers(&metadata()), Vec::<String>::new());
    assert!(linked("reeve-worker", "normal").contains("reqwest"), "the one outbound client has another name now");
    for program in ["reeve-scheduler", "reeve-ops"] {
        let found = banned(&linked(program, "normal"), &["reqwest", "hyper", "ureq", "apalis", "aws-sdk-kms"]);
        assert_eq!(found, Vec::<String>::new(), "{program}");
    }
}

#[test]
fn another_caller_is_named() {
    for client in ["reqwest", "aws-sdk-kms"] {
        let planted = json!({"packages": [{"name": "reeve-ops", "dependencies": [{"name": client, "features": []}]}]});
        assert_eq!(wrong_callers(&planted), [format!("reeve-ops depends on {client}")]);
    }
}

#[test]
fn banned_crates_are_linked_nowhere() {
    let all = names(&cargo(&["tree", "--workspace", "--edges", "normal,build,dev", "--prefix", "none"]));
    assert!(all.contains("rustls") && all.contains("aws-lc-rs"), "this is not the whole tree");
    assert_eq!(banned(&all, &NOWHERE), Vec::<String>::new());
}

#[test]
fn a_banned_crate_is_named() {
    let tree = "reeve-jobs v0.1.0 (a place)\nsqlx v0.9.0\n\nring v0.17.14 (*)\nstring v1.0.0\nlibz-sys v1.0.0\n";
    assert_eq!(banned(&names(tree), &NOWHERE), ["ring"]);
    assert_eq!(banned(&names(tree), &NOT_IN_JOBS), Vec::<String>::new());
}
