//! One stack per directory: a lock the kernel drops with its holder, and the holder's pid for people.
//!
//! The pid in the file says who holds the lock, never whether: after a `kill -9` the file stays and its pid may belong
//! to anybody, but the lock is free. The file is never removed, since two starts could then lock two different files.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// The lock's file name inside the stack's directory.
pub const FILE_NAME: &str = "stack.lock";

/// Why the lock could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds it.
    #[error("a stack is already running here ({dir}, pid {pid}); stop it or use --dir", pid = pid.map_or("not known yet".to_owned(), |pid| pid.to_string()))]
    Held {
        /// The stack's directory.
        dir: PathBuf,
        /// The holder, unless it has only just begun.
        pid: Option<u32>,
    },
    /// The lock file cannot be used.
    #[error("cannot use the lock file {path}: {source}")]
    Io {
        /// The lock file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The right to run a stack in one directory, until dropped.
#[derive(Debug)]
pub struct StackLock {
    _file: File,
}

impl StackLock {
    /// Takes the lock of `dir` without waiting.
    ///
    /// # Errors
    /// [`LockError::Held`] when a stack runs there.
    pub fn acquire(dir: &Path) -> Result<Self, LockError> {
        let path = dir.join(FILE_NAME);
        let failed = |source| LockError::Io { path: path.clone(), source };
        // Not truncated on opening: until the lock is ours, the pid inside is somebody else's.
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(LockError::Held { dir: dir.to_owned(), pid: written_pid(&path) });
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(failed)?;
        Ok(Self { _file: file })
    }
}

/// Who runs a stack in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Nobody.
    Nobody,
    /// The process with this pid.
    Process(u32),
    /// Somebody who has not yet written its pid.
    Unknown,
}

/// Looks who holds the lock of `dir`.
///
/// # Errors
/// [`LockError::Io`] when the lock file is there but cannot be opened.
pub fn holder(dir: &Path) -> Result<Holder, LockError> {
    let path = dir.join(FILE_NAME);
    let failed = |source| LockError::Io { path: path.clone(), source };
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Holder::Nobody),
        Err(error) => return Err(failed(error)),
    };
    // Shared, so that two who look do not see each other.
    match file.try_lock_shared() {
        Ok(()) => Ok(Holder::Nobody),
        Err(TryLockError::WouldBlock) => Ok(written_pid(&path).map_or(Holder::Unknown, Holder::Process)),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

fn written_pid(path: &Path) -> Option<u32> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_stack_is_refused_with_the_pid_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = StackLock::acquire(dir.path()).unwrap();
        assert_eq!(holder(dir.path()).unwrap(), Holder::Process(std::process::id()));
        let message = StackLock::acquire(dir.path()).unwrap_err().to_string();
        assert!(message.contains("a stack is already running here"), "{message}");
        assert!(message.contains(&format!("pid {}", std::process::id())), "{message}");
        assert!(message.contains("stop it or use --dir"), "{message}");
        drop(first);
        assert_eq!(holder(dir.path()).unwrap(), Holder::Nobody);
        StackLock::acquire(dir.path()).unwrap();
    }

    #[test]
    fn a_lock_file_left_by_a_killed_stack_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        // Pid 1 is always alive, as a reused pid would be.
        std::fs::write(dir.path().join(FILE_NAME), "1\n").unwrap();
        assert_eq!(holder(dir.path()).unwrap(), Holder::Nobody);
        let _lock = StackLock::acquire(dir.path()).unwrap();
        assert_eq!(holder(dir.path()).unwrap(), Holder::Process(std::process::id()));
    }
}
