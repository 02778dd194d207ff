//! The kernel calls that need `unsafe`, each behind a safe function; the only file of the crate with `unsafe` in it.
//!
//! Deliberately not here: policy. Which signal is sent when is decided in [`crate::process`].
#![allow(unsafe_code)] // kill, geteuid, prctl and `pre_exec` have no safe form in the standard library

use std::io;

use tokio::process::Command;

/// The signals the stack sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM: end in order.
    Terminate,
    /// SIGINT: for PostgreSQL, the fast shutdown (roll back, write out, end).
    Interrupt,
    /// SIGQUIT: for PostgreSQL, the immediate shutdown (recovery at the next start).
    Quit,
    /// SIGKILL: end now.
    Kill,
}

impl Signal {
    fn number(self) -> libc::c_int {
        match self {
            Signal::Terminate => libc::SIGTERM,
            Signal::Interrupt => libc::SIGINT,
            Signal::Quit => libc::SIGQUIT,
            Signal::Kill => libc::SIGKILL,
        }
    }
}

/// Sends `signal` to the one process `pid`.
///
/// # Errors
/// `InvalidInput` for a number that would address a group or everybody; else what the kernel says (`ESRCH`: no such process).
pub fn send(pid: u32, signal: Signal) -> io::Result<()> {
    // 0 and negative numbers address process groups, 1 is init: none of them is ever a child of ours.
    let pid = libc::pid_t::try_from(pid)
        .ok()
        .filter(|pid| *pid > 1)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{pid} is not a process to signal")))?;
    // SAFETY: kill takes two integers and touches no memory of ours.
    if unsafe { libc::kill(pid, signal.number()) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether this process runs as root.
pub fn is_root() -> bool {
    effective_uid() == 0
}

/// The effective user id of this process.
pub fn effective_uid() -> u32 {
    // SAFETY: geteuid has no arguments and cannot fail.
    unsafe { libc::geteuid() }
}

/// Makes the kernel send `signal` to the child when the thread that starts it ends, so that a `kill -9` of the stack
/// leaves nothing behind. Linux only; elsewhere it does nothing, and the next start ends what was left.
///
/// `pre_exec` hooks run after the change of user, which would otherwise clear the setting.
pub fn die_with_parent(command: &mut Command, signal: Signal) {
    #[cfg(target_os = "linux")]
    {
        let parent = std::process::id();
        let number = signal.number();
        // SAFETY: between fork and exec the hook only calls prctl and getppid, both async-signal-safe, and builds
        // errors that do not allocate.
        unsafe {
            command.pre_exec(move || {
                if libc::prctl(libc::PR_SET_PDEATHSIG, number) != 0 {
                    return Err(io::Error::last_os_error());
                }
                // The parent may have died before prctl: then the signal will never come.
                if libc::getppid().cast_unsigned() != parent {
                    return Err(io::Error::from_raw_os_error(libc::ESRCH));
                }
                Ok(())
            });
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (command, signal);
}

/// The command line of a running process, words joined by spaces; `None` when there is none, or only a zombie.
pub fn command_line(pid: u32) -> Option<String> {
    let line = if cfg!(target_os = "linux") {
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        String::from_utf8_lossy(&words).replace('\0', " ")
    } else {
        let shown = std::process::Command::new("ps").args(["-o", "command=", "-p", &pid.to_string()]).output().ok()?;
        String::from_utf8_lossy(&shown.stdout).into_owned()
    };
    let line = line.trim();
    // BSD's ps shows a zombie as "<defunct>" or "(name)".
    (!line.is_empty() && !line.contains("<defunct>") && !line.starts_with('(')).then(|| line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_never_addresses_a_group_or_init() {
        for pid in [0, 1, u32::MAX] {
            assert_eq!(send(pid, Signal::Terminate).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn command_line_shows_this_process_and_nothing_for_a_free_number() {
        assert!(command_line(std::process::id()).is_some_and(|line| line.contains("reeve_dev")));
        assert_eq!(command_line(u32::MAX), None);
    }
}
