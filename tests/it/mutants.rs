//! The list of `./ops/test mutants` cannot rot: each guard that it takes away is still where it says, and its suite exists.
//!
//! That a suite does fail without its guard is what the command itself shows; it takes too long to be run here.
use std::{collections::BTreeSet, path::Path};

/// What stands before the first `=== ` is for people. See `tests/mutants` for the form.
fn entries(list: &str) -> Vec<(&str, &str)> {
    list.split("\n=== ").skip(1).map(|entry| entry.split_once('\n').expect("a name on a line of its own")).collect()
}

#[test]
fn every_mutants_old_text_is_in_its_file_once() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let list = std::fs::read_to_string(root.join("tests/mutants.txt")).expect("the list");
    let entries = entries(&list);
    assert!(entries.len() >= 40, "{} entries read", entries.len());
    let mut names = BTreeSet::new();
    for (name, body) in entries {
        assert!(names.insert(name), "{name}: twice");
        let (head, texts) = body.split_once("\n---\n").unwrap_or_else(|| panic!("{name}: no old text"));
        let (old, new) = texts.split_once("\n+++\n").unwrap_or_else(|| panic!("{name}: no new text"));
        assert_ne!(old, new.trim_end_matches('\n'), "{name}: changes nothing");
        let (file, tests) = head.split_once('\n').expect("two lines");
        let file = file.strip_prefix("file ").unwrap_or_else(|| panic!("{name}: no file"));
        let text = std::fs::read_to_string(root.join(file)).unwrap_or_else(|error| panic!("{name}: {file}: {error}"));
        assert_eq!(text.matches(old).count(), 1, "{name}: its old text is not in {file} once");
        let suite = tests.strip_prefix("tests ").and_then(|tests| tests.split_once(' '));
        let (package, filter) = suite.unwrap_or_else(|| panic!("{name}: no `tests PACKAGE FILTER`"));
        let known = ["reeve-tests", "reeve-jobs", "reeve-worker", "reeve-scheduler", "reeve-ops"];
        assert!(known.contains(&package), "{name}: {package} is no package with tests");
        if package == "reeve-tests" {
            let (module, start) = filter.split_once("::").unwrap_or_else(|| panic!("{name}: a filter begins module::"));
            // A suite of a suite is a file in its folder.
            let (module, start) = start
                .split_once("::")
                .map_or((module.to_owned(), start), |(inner, start)| (format!("{module}/{inner}"), start));
            let source = [format!("tests/it/{module}.rs"), format!("tests/it/{module}/mod.rs")]
                .iter()
                .find_map(|file| std::fs::read_to_string(root.join(file)).ok())
                .expect("a module of tests");
            assert!(source.contains(&format!("fn {start}")), "{name}: no test begins {filter}");
        }
    }
}
