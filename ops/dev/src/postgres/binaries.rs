//! Finding an installed PostgreSQL, version 15 or later.
//!
//! Order: `REEVE_PG_BIN` alone when it is set, else PATH (symlinks resolved, since a link to `postgres` alone does not say
//! where its libraries are), else the usual places of Debian, Fedora and Homebrew, newest version first. Nothing is
//! downloaded.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use super::PostgresError;

/// The variable that names the directory of the programs.
pub const VARIABLE: &str = "REEVE_PG_BIN";
/// The oldest version that will do.
pub const MAJOR_MIN: u32 = 15;

/// Where the usual packages put the programs; `*` is anything within one name.
const USUAL: [&str; 7] = [
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/home/linuxbrew/.linuxbrew/opt/postgresql@*/bin",
    "/opt/homebrew/opt/postgresql/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
];

/// The programs of one installed version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binaries {
    /// The directory that holds `postgres` and `initdb`.
    pub dir: PathBuf,
    /// The major version.
    pub major: u32,
}

impl Binaries {
    /// Finds a version that will do: `major` itself when a cluster of that version exists, else the first found.
    ///
    /// # Errors
    /// [`PostgresError::Missing`], [`PostgresError::TooOld`], [`PostgresError::OtherVersion`] or
    /// [`PostgresError::Variable`], each of which says what to do.
    pub fn find(major: Option<u32>) -> Result<Self, PostgresError> {
        let found = match std::env::var_os(VARIABLE).filter(|value| !value.is_empty()) {
            Some(dir) => {
                let dir = PathBuf::from(dir);
                vec![Self::at(&dir).ok_or(PostgresError::Variable { dir })?]
            }
            None => {
                let path = std::env::var_os("PATH").unwrap_or_default();
                candidates(&path).iter().filter_map(|dir| Self::at(dir)).collect()
            }
        };
        choose(found, major)
    }

    /// The programs in `dir`, if they are there and answer.
    fn at(dir: &Path) -> Option<Self> {
        let server = dir.join("postgres").canonicalize().ok()?;
        let dir = server.parent()?.to_owned();
        if !dir.join("initdb").is_file() {
            return None;
        }
        let shown = std::process::Command::new(&server).arg("--version").stdin(Stdio::null()).output().ok()?;
        let major = parse_major(&String::from_utf8_lossy(&shown.stdout))?;
        Some(Self { dir, major })
    }

    /// The path of one of the programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

fn choose(found: Vec<Binaries>, major: Option<u32>) -> Result<Binaries, PostgresError> {
    let newest = found.iter().map(|binaries| binaries.major).max().ok_or(PostgresError::Missing)?;
    if newest < MAJOR_MIN {
        return Err(PostgresError::TooOld { newest });
    }
    let fits = |binaries: &Binaries| major.map_or(binaries.major >= MAJOR_MIN, |major| binaries.major == major);
    let versions = found.iter().map(|binaries| binaries.major.to_string()).collect::<Vec<_>>().join(", ");
    found.into_iter().find(fits).ok_or(PostgresError::OtherVersion { cluster: major.unwrap_or(MAJOR_MIN), versions })
}

/// The directories to look into, best first, each once.
fn candidates(path: &OsStr) -> Vec<PathBuf> {
    let mut usual: Vec<PathBuf> = USUAL.iter().flat_map(|pattern| matches(pattern)).collect();
    usual.sort_by_key(|dir| std::cmp::Reverse(version_in(dir)));
    let mut seen = HashSet::new();
    let resolve = |dir: PathBuf| Some(dir.join("postgres").canonicalize().ok()?.parent()?.to_owned());
    std::env::split_paths(path).chain(usual).filter_map(resolve).filter(|dir| seen.insert(dir.clone())).collect()
}

/// The directories that match a pattern with at most one `*`.
fn matches(pattern: &str) -> Vec<PathBuf> {
    let Some((head, tail)) = pattern.split_once('*') else {
        return vec![PathBuf::from(pattern)];
    };
    let (parent, prefix) = head.rsplit_once('/').unwrap_or(("", head));
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with(prefix)).map(|name| PathBuf::from(format!("{parent}/{name}{tail}"))).collect()
}

/// The version a path speaks of: 15 in `/usr/lib/postgresql/15/bin`.
fn version_in(dir: &Path) -> u32 {
    let name =
        dir.parent().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    leading_number(name.trim_start_matches(|letter: char| !letter.is_ascii_digit())).unwrap_or(0)
}

/// From "postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)"; a beta is "18beta1".
fn parse_major(shown: &str) -> Option<u32> {
    leading_number(shown.split_once("(PostgreSQL) ")?.1)
}

fn leading_number(text: &str) -> Option<u32> {
    text.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(versions: &[u32]) -> Vec<Binaries> {
        versions.iter().map(|major| Binaries { dir: format!("/pg/{major}/bin").into(), major: *major }).collect()
    }

    #[test]
    fn the_version_is_read_from_releases_and_betas() {
        assert_eq!(parse_major("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n"), Some(15));
        assert_eq!(parse_major("postgres (PostgreSQL) 18beta1\n"), Some(18));
        assert_eq!(parse_major("something else 15"), None);
        assert_eq!(version_in(Path::new("/opt/homebrew/opt/postgresql@17/bin")), 17);
        assert_eq!(version_in(Path::new("/usr/pgsql-16/bin")), 16);
    }

    #[test]
    fn an_existing_cluster_decides_the_version() {
        assert_eq!(choose(of(&[14, 17, 15]), None).unwrap().major, 17);
        assert_eq!(choose(of(&[17, 15]), Some(15)).unwrap().major, 15);
        let message = choose(of(&[17, 16]), Some(15)).unwrap_err().to_string();
        assert!(message.contains("version 15") && message.contains("17, 16"), "{message}");
    }

    #[test]
    fn nothing_and_too_old_are_told_apart() {
        assert!(matches!(choose(of(&[]), None), Err(PostgresError::Missing)));
        assert!(matches!(choose(of(&[13, 14]), None), Err(PostgresError::TooOld { newest: 14 })));
    }

    #[test]
    fn a_symlink_in_path_leads_to_the_real_directory() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap().join("lib/15/bin");
        std::fs::create_dir_all(&real).unwrap();
        std::fs::write(real.join("postgres"), "").unwrap();
        let linked = dir.path().join("local");
        std::fs::create_dir(&linked).unwrap();
        std::os::unix::fs::symlink(real.join("postgres"), linked.join("postgres")).unwrap();
        assert_eq!(candidates(linked.as_os_str())[0], real);
    }
}
