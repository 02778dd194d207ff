//! Files and directories that only their owner may read.
//!
//! Deliberately not here: anything async. The files are small and written at start and stop.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// From this size on a log is put aside as `<name>.1` when it is opened.
const LOG_BYTES_MAX: u64 = 16 << 20;

/// The longest path of a Unix socket used, in bytes. The kernel's limit is 107 on Linux and 103 on macOS.
pub const SOCKET_PATH_BYTES_MAX: usize = 100;

/// Makes the directory and its missing parents with mode 0700; one that exists keeps its mode.
///
/// # Errors
/// The kernel's.
pub fn private_dir(path: &Path) -> io::Result<()> {
    dir_with_mode(path, 0o700)
}

/// Makes the directory and its missing parents with `mode`; one that exists keeps its mode.
///
/// # Errors
/// The kernel's.
pub fn dir_with_mode(path: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(mode).create(path)
}

/// Makes a new directory with a random name: `<parent>/<prefix>-<random>`. A name somebody else took first is an error,
/// so nobody can slip a directory of theirs in.
///
/// # Errors
/// The kernel's.
pub fn fresh_dir(parent: &Path, prefix: &str, mode: u32) -> io::Result<PathBuf> {
    let path = parent.join(format!("{prefix}-{}", crate::secrets::random_text(10)));
    DirBuilder::new().mode(mode).create(&path)?;
    Ok(path)
}

/// Puts `contents` at `path` with mode 0600, whole or not at all.
///
/// # Errors
/// The kernel's.
pub fn write_private(path: &Path, contents: &[u8]) -> io::Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
    // A partial file left by a crash may have another mode.
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(contents)?;
    file.sync_all()?;
    std::fs::rename(&partial, path)
}

/// Opens a log for appending, mode 0600; a big one is put aside first.
///
/// # Errors
/// The kernel's.
pub fn open_log(path: &Path) -> io::Result<File> {
    if std::fs::metadata(path).is_ok_and(|log| log.len() > LOG_BYTES_MAX) {
        let mut aside = path.as_os_str().to_owned();
        aside.push(".1");
        std::fs::rename(path, PathBuf::from(aside))?;
    }
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// A directory for a Unix socket: inside `home`, or below /tmp when the socket's path would be too long there. A
/// temporary one is removed on drop.
#[derive(Debug)]
pub struct SocketDir {
    path: PathBuf,
    temporary: bool,
}

impl SocketDir {
    /// Makes the directory with mode 0700. `socket_name` is the longest file name that will be in it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn make(home: &Path, socket_name: &str) -> io::Result<Self> {
        let path = home.join("sock");
        if path.as_os_str().len() + 1 + socket_name.len() <= SOCKET_PATH_BYTES_MAX {
            private_dir(&path)?;
            return Ok(Self { path, temporary: false });
        }
        // Not the system's temporary directory: on macOS that one is long as well.
        Ok(Self { path: fresh_dir(Path::new("/tmp"), "reeve-sock", 0o700)?, temporary: true })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketDir {
    fn drop(&mut self) {
        if self.temporary {
            // Best effort: a socket file left in /tmp harms nobody.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_file_stays_private_when_rewritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        std::fs::write(&path, "old, and open to all").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        write_private(&path, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_long_path_moves_the_socket_to_tmp_and_away_again() {
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join("x".repeat(120));
        let sockets = SocketDir::make(&long, "s").unwrap();
        let path = sockets.path().to_owned();
        assert!(path.starts_with("/tmp") && !path.starts_with(&long));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        drop(sockets);
        assert!(!path.exists());
    }
}
