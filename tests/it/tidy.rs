//! Rules of the house that no compiler knows, checked over the text of the tree.
//!
//! Each rule is a function over files that returns offences as `path:line: what`, and is tried on a planted offender. Words
//! that a rule looks for are put together from pieces, so that this file is not its own offender.
use std::path::{Path, PathBuf};

const LINES_MAX: usize = 600;
/// Not of the tree: what is built, installed or kept by tools.
const SKIPPED: [&str; 6] = ["target", ".reeve", ".git", "node_modules", "__pycache__", ".venv"];
/// What the programs and the contract crate are made of; `ops/dev` and `tests` are not shipped.
const SHIPPED: [&str; 4] = ["jobs/src/", "worker/src/", "scheduler/src/", "ops/src/"];
const DUTIES: [&str; 6] = ["webhook", "export", "retention", "breach", "backup", "rekey"];

struct File {
    /// From the root, with `/`.
    path: String,
    text: String,
}

impl File {
    fn is(&self, extensions: &[&str]) -> bool {
        Path::new(&self.path).extension().is_some_and(|found| extensions.iter().any(|wanted| found == *wanted))
    }

    fn is_shipped(&self) -> bool {
        self.is(&["rs"]) && SHIPPED.iter().any(|place| self.path.starts_with(place))
    }

    fn is_test(&self) -> bool {
        self.path.contains("/tests/") || self.path.ends_with("tests.rs")
    }

    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(index, line)| (index + 1, line))
    }
}

/// Every text file of the tree.
fn tree() -> Vec<File> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let (mut files, mut left) = (Vec::new(), vec![PathBuf::new()]);
    while let Some(relative) = left.pop() {
        for entry in std::fs::read_dir(root.join(&relative)).expect("a directory of the tree") {
            let entry = entry.expect("an entry");
            let name = entry.file_name().into_string().expect("a name in UTF-8");
            let kind = entry.file_type().expect("a kind");
            if SKIPPED.contains(&name.as_str()) {
                continue;
            }
            let path = relative.join(&name);
            if kind.is_dir() {
                left.push(path);
            } else if kind.is_file()
                && let Ok(text) = std::fs::read_to_string(root.join(&path))
            {
                files.push(File { path: path.to_str().expect("UTF-8").replace('\\', "/"), text });
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files
}

fn too_long(files: &[File]) -> Vec<String> {
    files
        .iter()
        .filter(|file| file.is(&["rs", "sql"]))
        .map(|file| (file, file.text.lines().count()))
        .filter(|(_, lines)| *lines > LINES_MAX)
        .map(|(file, lines)| format!("{}:{lines}: more than {LINES_MAX} lines", file.path))
        .collect()
}

fn without_head(files: &[File]) -> Vec<String> {
    files
        .iter()
        .filter(|file| file.is(&["rs"]))
        .filter(|file| file.path.contains("/src/") || file.path.starts_with("tests/"))
        .filter(|file| !file.text.starts_with("//!"))
        .map(|file| format!("{}:1: no `//!` that says what it is for", file.path))
        .collect()
}

/// Time is passed in, so that tests can hold it.
fn wall_clocks(files: &[File]) -> Vec<String> {
    let clocks = ["Utc", "SystemTime", "Local"].map(|clock| format!("{clock}::{}", "now"));
    offences(files.iter().filter(|file| file.is_shipped() && file.path != "jobs/src/clock.rs"), |line| {
        let clock = clocks.iter().find(|clock| line.contains(clock.as_str()))?;
        Some(format!("{clock} outside jobs/src/clock.rs"))
    })
}

/// The scheduler is mechanism: what becomes due is rows to it.
fn duties_in_the_scheduler(files: &[File]) -> Vec<String> {
    offences(files.iter().filter(|file| file.path.starts_with("scheduler/src/")), |line| {
        let line = line.to_lowercase();
        let duty = DUTIES.iter().find(|duty| line.contains(**duty))?;
        Some(format!("the scheduler names a duty: {duty}"))
    })
}

/// What a queue cannot promise. A document may name the phrase to reject it: by its path and a piece of that line.
fn impossible_promises(files: &[File], allowed: &[(&str, &str)]) -> Vec<String> {
    let phrase = format!("exactly{}once", ' ');
    let plain =
        |text: &str| text.trim_start_matches([' ', '/', '!', '-', '*', '#', '>']).to_lowercase().replace('-', " ");
    let mut found = Vec::new();
    for file in files.iter().filter(|file| file.is(&["rs", "sql", "md"])) {
        // A line and the next one: prose is wrapped anywhere.
        let lines: Vec<_> = file.text.lines().collect();
        for (index, line) in lines.iter().enumerate() {
            let next = lines.get(index + 1).map(|next| plain(next)).unwrap_or_default();
            let both = format!("{} {next}", plain(line).trim_end());
            let allowed = allowed.iter().any(|(path, piece)| file.path == *path && line.contains(piece));
            if both.contains(&phrase) && !next.contains(&phrase) && !allowed {
                found.push(format!("{}:{}: promises `{phrase}`", file.path, index + 1));
            }
        }
    }
    found
}

/// A name at the head of each statement is what an operator sees in pg_stat_activity and the logs. Tests are watched by
/// nobody, and may do without.
fn nameless_statements(files: &[File]) -> Vec<String> {
    let mut found = Vec::new();
    for file in files.iter().filter(|file| file.is_shipped() && !file.is_test()) {
        let code = file.text.split_once("#[cfg(test)]\nmod tests {").map_or(file.text.as_str(), |(code, _)| code);
        for (at, _) in code.match_indices("sqlx::query").chain(code.match_indices("sqlx::raw_sql")) {
            // What is not a literal is a name defined elsewhere.
            let argument = argument(&code[at..]).trim_start().trim_start_matches(['r', '#']);
            let Some(sql) = argument.strip_prefix('"') else { continue };
            if !is_named(sql.trim_start_matches(['\\', '\n', ' '])) {
                let line = code[..at].matches('\n').count() + 1;
                found.push(format!("{}:{line}: a statement without its `-- name`", file.path));
            }
        }
    }
    found
}

/// What follows the call's opening parenthesis; those of its generics (`::<(i64, i64)>`) are passed over.
fn argument(call: &str) -> &str {
    let mut depth = 0;
    let open = call.find(|c: char| {
        depth += i32::from(c == '<') - i32::from(c == '>');
        c == '(' && depth == 0
    });
    open.map_or("", |open| &call[open + 1..])
}

/// Whether the source of a literal begins with `-- some.name` and a line's end, without which all of it were a comment.
fn is_named(sql: &str) -> bool {
    sql.strip_prefix("-- ").is_some_and(|rest| {
        let name = rest.trim_start_matches(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_.".contains(c));
        name.len() < rest.len() && (name.starts_with('\n') || name.starts_with("\\n"))
    })
}

fn paths_of_a_machine(files: &[File]) -> Vec<String> {
    let homes = ["work", "root", "home"].map(|top| format!("/{top}/"));
    // The one place of that form which is the same everywhere.
    let brew = format!("{}linuxbrew/", homes[2]);
    offences(files.iter(), |line| {
        let line = line.replace(&brew, "");
        // `ops/home/`, `$HOME/work/` and `https://a.example/work/` are not paths of the root.
        let starts = |at: usize| !line[..at].ends_with(|c: char| c.is_alphanumeric() || "_.-~}*>".contains(c));
        let home = homes.iter().find(|home| line.match_indices(home.as_str()).any(|(at, _)| starts(at)))?;
        Some(format!("a path of one machine: {home}"))
    })
}

fn offences<'a>(files: impl Iterator<Item = &'a File>, judge: impl Fn(&str) -> Option<String>) -> Vec<String> {
    files
        .flat_map(|file| {
            let judged = file.lines().filter_map(|(number, line)| judge(line).map(|fault| (number, fault)));
            judged.map(|(number, fault)| format!("{}:{number}: {fault}", file.path)).collect::<Vec<_>>()
        })
        .collect()
}

/// Lines that name the phrase to reject it.
const ALLOWED: &[(&str, &str)] = &[];

#[test]
fn the_tree_is_tidy() {
    let files = tree();
    for known in ["Cargo.toml", "migrations/0001_roles.sql", "jobs/src/lib.rs", "tests/it/tidy.rs", "ops/up"] {
        assert!(files.iter().any(|file| file.path == known), "the walk missed {known}");
    }
    let offences: Vec<_> = [
        too_long(&files),
        without_head(&files),
        wall_clocks(&files),
        duties_in_the_scheduler(&files),
        impossible_promises(&files, ALLOWED),
        nameless_statements(&files),
        paths_of_a_machine(&files),
    ]
    .concat();
    assert!(offences.is_empty(), "\n{}", offences.join("\n"));
}

#[cfg(test)]
mod planted {
    use super::*;

    fn file(path: &str, text: &str) -> [File; 1] {
        [File { path: path.to_owned(), text: text.to_owned() }]
    }

    /// The rule names this line of the file, and nothing in the other texts.
    fn names(
        rule: impl Fn(&[File]) -> Vec<String>,
        path: &str,
        offender: &str,
        line: usize,
        innocents: &[(&str, &str)],
    ) {
        let found = rule(&file(path, offender));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with(&format!("{path}:{line}: ")), "{found:?}");
        for (path, text) in innocents {
            assert_eq!(rule(&file(path, text)), Vec::<String>::new(), "{path}: {text}");
        }
    }

    #[test]
    fn a_file_of_601_lines() {
        let (long, just) = ("\n".repeat(601), "\n".repeat(600));
        names(too_long, "jobs/src/a.rs", &long, 601, &[("jobs/src/a.rs", &just), ("Cargo.lock", &long)]);
        names(too_long, "migrations/1.sql", &long, 601, &[]);
    }

    #[test]
    fn a_file_without_a_head() {
        let innocents = [("ops/src/a.rs", "//! What.\nfn main() {}"), ("ops/build.rs", "fn main() {}")];
        names(without_head, "ops/dev/src/a.rs", "fn main() {}", 1, &innocents);
        names(without_head, "tests/it/a.rs", "\n//! Late.", 1, &[]);
    }

    #[test]
    fn a_wall_clock() {
        for clock in ["chrono::Utc", "std::time::SystemTime", "Local"] {
            let text = format!("//! A.\nlet at = {clock}::{}();", "now");
            let innocents =
                [("jobs/src/clock.rs", text.as_str()), ("ops/dev/src/a.rs", &text), ("jobs/src/a.rs", "clock.now()")];
            names(wall_clocks, "worker/src/a.rs", &text, 2, &innocents);
        }
    }

    #[test]
    fn a_duty_in_the_scheduler() {
        let innocents = [("worker/src/a.rs", "// webhooks"), ("scheduler/src/a.rs", "// what is due")];
        for duty in DUTIES {
            names(duties_in_the_scheduler, "scheduler/src/a.rs", &format!("\n\n// {duty}s first"), 3, &innocents);
        }
        names(duties_in_the_scheduler, "scheduler/src/tests/a.rs", "\"Webhook.deliver\"", 1, &[]);
    }

    #[test]
    fn an_impossible_promise() {
        let rule = |files: &[File]| impossible_promises(files, &[("DESIGN.md", "| never say")]);
        let innocents =
            [("a.md", "Exactly.\n\nOnce more."), ("a.md", "at least once"), ("a.rs", "// exactly one\n// once")];
        for (first, second) in [("Exactly", " once"), ("EXACTLY", "-Once"), ("exactly", "\n/// once")] {
            names(rule, "jobs/src/a.rs", &format!("\n/// runs {first}{second}, always"), 2, &innocents);
        }
        let rejected = format!("| never say | exactly{}once |", '-');
        names(rule, "README.md", &rejected, 1, &[("DESIGN.md", &rejected)]);
    }

    #[test]
    fn a_nameless_statement() {
        let innocents = [
            ("ops/src/a.rs", "sqlx::query(\"-- a.b\\nSELECT 1\")"),
            ("ops/src/a.rs", "sqlx::query_scalar::<_, i64>(\n    \"-- a.b\n  SELECT 1\")"),
            ("ops/src/a.rs", "sqlx::query_as(r#\"-- a.b\n SELECT \"x\"\"#)"),
            ("ops/src/a.rs", "sqlx::query(FIND).bind(\"SELECT\")"),
            ("ops/src/a.rs", "sqlx::query(sqlx::AssertSqlSafe(sql))"),
            ("ops/dev/src/a.rs", "sqlx::query(\"SELECT 1\")"),
            ("ops/src/a/tests.rs", "sqlx::query(\"SELECT 1\")"),
            ("ops/src/a.rs", "#[cfg(test)]\nmod tests {\n    sqlx::query(\"SELECT 1\")"),
        ];
        for offender in [
            "\nsqlx::query(\"SELECT 1\")",
            "\nsqlx::query_as::<_, (i64, Vec<u8>)>(\n  r\"SELECT 1\")",
            "\nsqlx::query_scalar(\"\\\n  SELECT 1\")",
            "\nsqlx::raw_sql(\"--SELECT 1\")",
            "\nsqlx::query(\"-- a.b SELECT 1\")",
            "\nsqlx::query(\"-- \\nSELECT 1\")",
        ] {
            names(nameless_statements, "jobs/src/a.rs", offender, 2, &innocents);
        }
    }

    #[test]
    fn a_path_of_a_machine() {
        let innocents = [
            ("ops/up", "/homes/x ~/WORK/ $HOME/WORK/ https://a.example/WORK/ ops/WORK/"),
            ("ops/up", "/HOME/linuxbrew/.linuxbrew/bin"),
        ]
        .map(|(path, text)| (path, text.replace("WORK", "work").replace("/HOME", "/home")));
        let innocents = innocents.each_ref().map(|(path, text)| (*path, text.as_str()));
        for top in ["work", "root", "home"] {
            names(paths_of_a_machine, "README.md", &format!("\nsee `/{top}/x`"), 2, &innocents);
            names(paths_of_a_machine, "ops/up", &format!("a=\"/{top}/x:/usr\""), 1, &[]);
        }
    }
}
