//! Where a cluster lives and whom it belongs to.
//!
//! PostgreSQL refuses to run as root. When the stack does, the server runs as `postgres`, or as `nobody` where there is no
//! such user, and that user must be able to reach its directory. Where it cannot (in the home of root, say), the cluster
//! is put into a directory of its own below /var/tmp, and a symlink stands in its place: the data survive a reboot as
//! well, the stack's directory shows where they are, and removing it makes the next start begin anew.
//!
//! Layout: `data` is the cluster, `data.new` a cluster being made, `sock` the Unix socket.

use std::io;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use super::{PostgresError, cannot};
use crate::files::{self, SocketDir};
use crate::os;

/// The users tried, in this order, when the stack runs as root.
const USERS: [&str; 2] = ["postgres", "nobody"];

/// The user the server runs as, when it is not the user who runs the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerUser {
    /// Its user id.
    pub uid: u32,
    /// Its group id.
    pub gid: u32,
}

/// The directory of one cluster.
#[derive(Clone, Debug)]
pub struct Place {
    home: PathBuf,
    user: Option<ServerUser>,
}

impl Place {
    /// Makes `dir`, or the directory below /var/tmp it links to, ready to hold a cluster.
    ///
    /// # Errors
    /// [`PostgresError`] when it cannot be made, or cannot be reached by the user the server must run as.
    pub fn prepare(dir: &Path) -> Result<Self, PostgresError> {
        if !os::is_root() {
            files::private_dir(dir).map_err(cannot(format!("make {}", dir.display())))?;
            let home = dir.canonicalize().map_err(cannot(format!("find {}", dir.display())))?;
            return Self { home, user: None }.owned();
        }
        files::dir_with_mode(dir, 0o711).map_err(cannot(format!("make {}", dir.display())))?;
        let mut home = dir.canonicalize().map_err(cannot(format!("find {}", dir.display())))?;
        let mut user = server_user()?;
        if let Ok(data) = std::fs::metadata(home.join("data")) {
            // An existing cluster may be of a user who ran the stack before; only its owner can run it.
            if data.uid() != 0 {
                user = ServerUser { uid: data.uid(), gid: data.gid() };
            }
        }
        if !reaches(user, &home) {
            if home.join("data").exists() {
                return Err(PostgresError::Unreachable { dir: home, uid: user.uid });
            }
            home = move_to_var_tmp(dir)?;
            if !reaches(user, &home) {
                return Err(PostgresError::Unreachable { dir: home, uid: user.uid });
            }
        }
        Self { home, user: Some(user) }.owned()
    }

    /// Refuses a directory or cluster of somebody else, who could then change what the server runs.
    fn owned(self) -> Result<Self, PostgresError> {
        let mine = os::effective_uid();
        for (path, wanted) in [(self.home.clone(), mine), (self.data(), self.user.map_or(mine, |user| user.uid))] {
            match std::fs::metadata(&path) {
                Ok(found) if found.uid() != wanted => {
                    return Err(PostgresError::Owner { dir: path, owner: found.uid(), wanted });
                }
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(cannot(format!("look at {}", path.display()))(error));
                }
                _ => {}
            }
        }
        Ok(self)
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.home.join("data")
    }

    /// The user the server must run as; `None` for the present one.
    pub fn user(&self) -> Option<ServerUser> {
        self.user
    }

    /// The major version of the cluster that is there; `None` when there is none yet.
    ///
    /// # Errors
    /// [`PostgresError::Io`] when a cluster is there but its version cannot be read.
    pub fn cluster_major(&self) -> Result<Option<u32>, PostgresError> {
        let path = self.data().join("PG_VERSION");
        match std::fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().map(Some).map_err(|error| {
                cannot(format!("read the version in {}", path.display()))(io::Error::new(
                    io::ErrorKind::InvalidData,
                    error,
                ))
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(cannot(format!("read {}", path.display()))(error)),
        }
    }

    /// An empty directory to make a cluster in; what an interrupted attempt left is removed.
    ///
    /// # Errors
    /// [`PostgresError::Io`].
    pub fn begin_cluster(&self) -> Result<PathBuf, PostgresError> {
        let fresh = self.home.join("data.new");
        let failed = || cannot(format!("make {}", fresh.display()));
        match std::fs::remove_dir_all(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed()(error)),
            _ => {}
        }
        files::private_dir(&fresh).map_err(failed())?;
        self.give(&fresh)?;
        Ok(fresh)
    }

    /// Makes the finished cluster in `fresh` the one in use.
    ///
    /// # Errors
    /// [`PostgresError::Io`].
    pub fn finish_cluster(&self, fresh: &Path) -> Result<(), PostgresError> {
        std::fs::rename(fresh, self.data()).map_err(cannot(format!("make {}", self.data().display())))
    }

    /// The directory of the Unix socket.
    ///
    /// # Errors
    /// [`PostgresError::Io`].
    pub fn sockets(&self) -> Result<SocketDir, PostgresError> {
        let sockets = SocketDir::make(&self.home, ".s.PGSQL.65535").map_err(cannot("make the socket's directory"))?;
        self.give(sockets.path())?;
        Ok(sockets)
    }

    fn give(&self, path: &Path) -> Result<(), PostgresError> {
        match self.user {
            Some(user) => {
                let failed = cannot(format!("give {} to user {}", path.display(), user.uid));
                chown(path, Some(user.uid), Some(user.gid)).map_err(failed)
            }
            None => Ok(()),
        }
    }
}

/// Puts a symlink to a fresh directory below /var/tmp in the place of `dir`, which must be empty or such a link already.
fn move_to_var_tmp(dir: &Path) -> Result<PathBuf, PostgresError> {
    let failed = || cannot(format!("put the cluster of {} below /var/tmp", dir.display()));
    if dir.is_symlink() {
        std::fs::remove_file(dir).map_err(failed())?;
    } else {
        // Fails, as it should, when there is anything in it.
        std::fs::remove_dir(dir).map_err(failed())?;
    }
    let home = files::fresh_dir(Path::new("/var/tmp"), "reeve-dev", 0o711).map_err(failed())?;
    std::os::unix::fs::symlink(&home, dir).map_err(failed())?;
    tracing::info!(dir = %dir.display(), home = %home.display(), "the server's user cannot reach the directory: moved");
    Ok(home)
}

/// Whether `user` can enter `dir`: asked of the kernel, which also knows of access lists and mounts.
fn reaches(user: ServerUser, dir: &Path) -> bool {
    let mut probe = std::process::Command::new("/bin/sh");
    probe.args(["-c", "exit 0"]).uid(user.uid).gid(user.gid).current_dir(dir);
    probe.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    probe.status().is_ok_and(|status| status.success())
}

fn server_user() -> Result<ServerUser, PostgresError> {
    let users = std::fs::read_to_string("/etc/passwd").map_err(cannot("read /etc/passwd"))?;
    USERS.iter().find_map(|name| user_in(&users, name)).ok_or(PostgresError::NoUser)
}

/// The user `name` in the text of /etc/passwd; never root under another name.
fn user_in(users: &str, name: &str) -> Option<ServerUser> {
    let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut fields = line.split(':').skip(2);
    let user = ServerUser { uid: fields.next()?.parse().ok()?, gid: fields.next()?.parse().ok()? };
    (user.uid != 0).then_some(user)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/:/bin/bash\ntoor:x:0:0::/:/bin/sh\npostgres:x:101:104:x:/var:/bin/bash\n";

    #[test]
    fn the_user_is_read_from_passwd_and_is_never_root() {
        assert_eq!(user_in(PASSWD, "postgres"), Some(ServerUser { uid: 101, gid: 104 }));
        assert_eq!(user_in(PASSWD, "toor"), None);
        assert_eq!(user_in(PASSWD, "nobody"), None);
    }

    #[test]
    fn a_directory_the_servers_user_cannot_reach_is_replaced_by_a_link() {
        if !os::is_root() {
            return; // Without root the server runs as the present user, who made the directory.
        }
        let closed = tempfile::tempdir().unwrap();
        std::fs::set_permissions(closed.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let dir = closed.path().join("postgres");
        let place = Place::prepare(&dir).unwrap();
        assert!(dir.is_symlink() && place.home.starts_with("/var/tmp"), "{place:?}");
        let again = Place::prepare(&dir).unwrap();
        assert_eq!(again.home, place.home);
        std::fs::remove_dir_all(&place.home).unwrap();
    }

    #[test]
    fn a_directory_of_somebody_else_is_refused() {
        if !os::is_root() {
            return; // Only root can give a directory away.
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let foreign = dir.path().join("postgres");
        std::fs::create_dir(&foreign).unwrap();
        chown(&foreign, Some(12_345), None).unwrap();
        assert!(matches!(Place::prepare(&foreign), Err(PostgresError::Owner { owner: 12_345, .. })));
    }

    #[test]
    fn an_interrupted_attempt_is_cleared_away() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        let place = Place::prepare(&dir.path().join("postgres")).unwrap();
        std::fs::write(place.begin_cluster().unwrap().join("half"), "made").unwrap();
        assert_eq!(place.begin_cluster().unwrap().read_dir().unwrap().count(), 0);
        assert_eq!(place.cluster_major().unwrap(), None);
    }
}
