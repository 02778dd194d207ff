//! The whole stack in one directory: started, described and stopped as one.
//!
//! Data flow: lock the directory, read or make the secrets, start PostgreSQL, Redis, S3 and the mail sink, make the
//! database, write the addresses into `env`. Stopping goes the other way round and removes `env`.
//!
//! Layout of the directory: `stack.lock`, `secrets.json`, `env`, `log/`, `postgres/` (or a symlink, see
//! [`crate::postgres::place`]), `redis/`, `s3/` with one directory per bucket, `mail/` with one .eml file per mail.
//!
//! Deliberately not here: schema and roles. They are the migrations'; [`Stack::set_role_passwords`] comes after them.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use reeve_jobs::queue::window;

use crate::files;
use crate::lock::{LockError, StackLock};
use crate::mail::{MailError, MailSink};
use crate::os;
pub use crate::postgres::Flavour;
use crate::postgres::{Postgres, PostgresError, PostgresOptions};
use crate::redis::{Redis, RedisError};
use crate::s3::{S3, S3Error};
use crate::secrets::{Secrets, SecretsError, random_text};

/// The database all of Reeve lives in.
pub const DATABASE: &str = "reeve";
/// The database of the keystore, of which no backup of the other has anything.
pub const KEYSTORE: &str = "reeve_keys";
/// The file with the addresses, for `source`.
const PLATFORM_KEY_FILE: &str = "platform.key";
pub const ENV_FILE: &str = "env";

/// Why the stack did not start or stop; each message says what to do.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each variant is one part's error, which documents itself")]
pub enum StackError {
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Secrets(#[from] SecretsError),
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    #[error(transparent)]
    Redis(#[from] RedisError),
    #[error(transparent)]
    S3(#[from] S3Error),
    #[error(transparent)]
    Mail(#[from] MailError),
    #[error("cannot use the stack's directory {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

/// A running stack. Stop it with [`Stack::stop`]; when dropped, all of it is told to end, but not waited for.
#[derive(Debug)]
pub struct Stack {
    /// Where it is, as an absolute path.
    pub dir: PathBuf,
    /// The database server.
    pub postgres: Postgres,
    /// The Redis server.
    pub redis: Redis,
    /// The object store.
    pub s3: S3,
    /// The mail sink.
    pub mail: MailSink,
    secrets: Secrets,
    /// Of both logins of the window, for this run.
    window_password: String,
    _env: EnvFile,
    // Last, so that the directory is free only when everything above has been told to end.
    _lock: StackLock,
}

impl Stack {
    /// Starts everything in `dir`, which is made if missing.
    ///
    /// # Errors
    /// [`StackError`]; [`LockError::Held`] when a stack runs there already. What was started is then told to end.
    pub async fn start(dir: &Path, flavour: Flavour) -> Result<Self, StackError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| StackError::Io { path, source }
        };
        // As root, the database's own user must be able to pass through; what is inside is closed file by file.
        let mode = if os::is_root() { 0o711 } else { 0o700 };
        files::dir_with_mode(dir, mode).map_err(failed(dir))?;
        let dir = dir.canonicalize().map_err(failed(dir))?;
        let lock = StackLock::acquire(&dir)?;
        let secrets = Secrets::load_or_create(&dir.join("secrets.json"))?;
        let logs = dir.join("log");
        files::private_dir(&logs).map_err(failed(&logs))?;

        let postgres = Postgres::start(PostgresOptions {
            dir: dir.join("postgres"),
            log: logs.join("postgres.log"),
            flavour,
            admin_password: secrets.admin_password.clone(),
        })
        .await?;
        postgres.create_database(DATABASE).await?;
        postgres.create_database(KEYSTORE).await?;
        let platform_key = dir.join(PLATFORM_KEY_FILE);
        files::write_private(&platform_key, secrets.root_key.as_bytes()).map_err(failed(&platform_key))?;
        let redis = Redis::start(&dir.join("redis"), &logs.join("redis.log"), &secrets.redis_password).await?;
        let window_password = random_text(32);
        redis.set_users(window::USERS, &window_password).await?;
        let s3 = S3::start(&dir.join("s3"), &secrets.s3_access_key, &secrets.s3_secret_key).await?;
        let mail = MailSink::start(&dir.join("mail")).await?;

        let env = EnvFile { path: dir.join(ENV_FILE) };
        let stack = Self { dir, postgres, redis, s3, mail, secrets, window_password, _env: env, _lock: lock };
        let path = stack.env_file();
        files::write_private(&path, env_text(&stack.env()).as_bytes()).map_err(failed(&path))?;
        Ok(stack)
    }

    /// The file with the addresses: one `export NAME='value'` a line, mode 0600, there while the stack runs.
    pub fn env_file(&self) -> PathBuf {
        self.dir.join(ENV_FILE)
    }

    /// The environment every program of the stack together needs; it contains all secrets.
    pub fn env(&self) -> Vec<(String, String)> {
        let role = |role, password: &str| self.postgres.url(role, password, DATABASE);
        let secrets = &self.secrets;
        let window = |user| self.redis.url_of(user, &self.window_password);
        [
            ("REEVE_OPS__ADMIN_DATABASE_URL", self.postgres.admin_url(DATABASE)),
            ("REEVE_OPS__KEYSTORE_ADMIN_URL", self.postgres.admin_url(KEYSTORE)),
            ("REEVE_OPS__DATABASE_URL", role("reeve_ops", &secrets.ops_password)),
            ("REEVE_OPS__REDIS_URL", window("reeve_window_worker")),
            ("REEVE_WORKER__DATABASE_URL", role("reeve_worker", &secrets.worker_password)),
            ("REEVE_WORKER__OPS_DATABASE_URL", role("reeve_ops", &secrets.ops_password)),
            ("REEVE_WORKER__KEYSTORE_URL", self.postgres.url("reeve_keyring", &secrets.keyring_password, KEYSTORE)),
            ("REEVE_WORKER__PLATFORM_KEY", format!("file:{}", self.dir.join(PLATFORM_KEY_FILE).display())),
            // What a stack of an earlier release sealed with.
            ("REEVE_WORKER__ROOT_KEY", secrets.root_key.clone()),
            ("REEVE_WORKER__REDIS_URL", window("reeve_window_worker")),
            // The sample's receivers are on this machine, in clear text.
            ("REEVE_WORKER__WEBHOOKS__HTTP_ALLOWED", "true".to_owned()),
            ("REEVE_WORKER__WEBHOOKS__LOOPBACK_ALLOWED", "true".to_owned()),
            ("REEVE_SCHEDULER__DATABASE_URL", role("reeve_scheduler", &secrets.scheduler_password)),
            ("REEVE_SCHEDULER__REDIS_URL", window("reeve_window_relay")),
            ("REEVE_DEV_APP_DATABASE_URL", role("reeve_app", &secrets.app_password)),
            ("REEVE_DEV_CRM_DATABASE_URL", role(crate::crm::APP_ROLE, &secrets.app_password)),
            ("REEVE_DEV_REDIS_URL", self.redis.url()),
            ("REEVE_DEV_S3_ENDPOINT", self.s3.endpoint.clone()),
            ("REEVE_DEV_S3_ACCESS_KEY", self.s3.access_key.clone()),
            ("REEVE_DEV_S3_SECRET_KEY", self.s3.secret_key.clone()),
            ("REEVE_DEV_SMTP_ADDRESS", self.mail.address.clone()),
            ("REEVE_DEV_MAIL_DIR", self.mail.dir.display().to_string()),
            ("REEVE_DEV_PG_BIN", self.postgres.bin_dir().display().to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    /// What one program needs: the variables whose names begin with `prefix`, such as `REEVE_WORKER__`. A program that
    /// is given no more cannot leak the others' passwords, nor the root key.
    pub fn env_of(&self, prefix: &str) -> Vec<(String, String)> {
        self.env().into_iter().filter(|(name, _)| name.starts_with(prefix)).collect()
    }

    /// Gives the login roles their passwords. To be called after the migrations, which make the roles without any.
    ///
    /// # Errors
    /// [`PostgresError::Sql`] when a role is missing.
    pub async fn set_role_passwords(&self) -> Result<(), StackError> {
        let secrets = &self.secrets;
        for (role, password) in [
            ("reeve_app", &secrets.app_password),
            ("reeve_worker", &secrets.worker_password),
            ("reeve_scheduler", &secrets.scheduler_password),
            ("reeve_ops", &secrets.ops_password),
            ("reeve_keyring", &secrets.keyring_password),
        ] {
            self.postgres.set_password(role, password).await?;
        }
        Ok(())
    }

    /// Lets the sample app log in. To be called after it was loaded, which makes its role.
    ///
    /// # Errors
    /// [`PostgresError::Sql`] when the role is missing.
    pub async fn set_sample_password(&self) -> Result<(), StackError> {
        Ok(self.postgres.set_password(crate::crm::APP_ROLE, &self.secrets.app_password).await?)
    }

    /// One variable of [`Self::env`]; empty when there is none of that name.
    pub fn variable(&self, name: &str) -> String {
        self.env().into_iter().find(|(n, _)| n == name).map(|(_, value)| value).unwrap_or_default()
    }

    /// Waits until PostgreSQL or Redis ends although nobody stopped it, and says which and how.
    pub async fn broken(&mut self) -> String {
        let (name, ended) = tokio::select! {
            ended = self.postgres.exited() => ("postgres", ended),
            ended = self.redis.exited() => ("redis", ended),
        };
        let how = ended.map_or_else(|error| error.to_string(), |status| status.to_string());
        format!("{name} ended by itself ({how}); see {}", self.dir.join(format!("log/{name}.log")).display())
    }

    /// Stops everything and waits for it. The data stay for the next start.
    ///
    /// # Errors
    /// The first one met; the rest is stopped all the same.
    pub async fn stop(self) -> Result<(), StackError> {
        tokio::join!(self.s3.stop(), self.mail.stop());
        let redis = self.redis.stop().await;
        let postgres = self.postgres.stop().await;
        redis?;
        postgres?;
        Ok(())
    }
}

/// Removes the file with the addresses, which are no longer good, with the stack.
#[derive(Debug)]
struct EnvFile {
    path: PathBuf,
}

impl Drop for EnvFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "the stack's env file could not be removed");
        }
    }
}

/// Lines a shell can read; a value may hold anything, a path with a quote in it for one.
fn env_text(variables: &[(String, String)]) -> String {
    let mut text =
        String::from("# Written by reeve-dev, good while the stack runs. Contains every secret of the stack.\n");
    for (name, value) in variables {
        let value = value.replace('\'', r"'\''");
        writeln!(text, "export {name}='{value}'").expect("writing to a String cannot fail");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use sqlx::{Connection as _, Executor as _, PgConnection};

    use super::*;
    use crate::os::{Signal, command_line};

    fn open_dir() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        dir
    }

    fn value(env: &[(String, String)], name: &str) -> String {
        env.iter().find(|(key, _)| key == name).unwrap_or_else(|| panic!("{name} is missing")).1.clone()
    }

    #[tokio::test]
    async fn a_stack_refuses_a_second_one_keeps_its_secrets_and_leaves_nothing_running() {
        let dir = open_dir();
        let home = dir.path().join("stack");
        let stack = Stack::start(&home, Flavour::Test).await.unwrap();
        let refused = Stack::start(&home, Flavour::Test).await.unwrap_err().to_string();
        assert!(refused.contains("a stack is already running here"), "{refused}");
        let first = stack.env();
        let text = std::fs::read_to_string(stack.env_file()).unwrap();
        assert!(text.contains(&format!("export REEVE_DEV_MAIL_DIR='{}'\n", stack.mail.dir.display())), "{text}");
        assert_eq!(std::fs::metadata(stack.env_file()).unwrap().permissions().mode() & 0o777, 0o600);
        let shown = format!("{stack:?}");
        for secret in ["REEVE_WORKER__ROOT_KEY", "REEVE_DEV_S3_SECRET_KEY"] {
            assert!(!shown.contains(&value(&first, secret)), "{shown}");
        }
        let children = [stack.postgres.pid().unwrap(), stack.redis.pid().unwrap()];
        let env_file = stack.env_file();
        stack.stop().await.unwrap();
        assert!(!env_file.exists());
        assert!(children.iter().all(|pid| command_line(*pid).is_none()));

        let again = Stack::start(&home, Flavour::Test).await.unwrap();
        assert_eq!(value(&again.env(), "REEVE_WORKER__ROOT_KEY"), value(&first, "REEVE_WORKER__ROOT_KEY"));
        again.stop().await.unwrap();
    }

    #[tokio::test]
    async fn the_login_roles_get_in_once_they_exist_and_have_their_passwords() {
        let dir = open_dir();
        let stack = Stack::start(dir.path(), Flavour::Test).await.unwrap();
        assert!(stack.set_role_passwords().await.is_err(), "there are no roles yet");
        let admin = value(&stack.env(), "REEVE_OPS__ADMIN_DATABASE_URL");
        let mut admin = PgConnection::connect(&admin).await.unwrap();
        let roles = ["reeve_app", "reeve_worker", "reeve_scheduler", "reeve_ops"];
        admin.execute("CREATE ROLE reeve_app LOGIN; CREATE ROLE reeve_worker LOGIN; CREATE ROLE reeve_scheduler LOGIN; CREATE ROLE reeve_ops LOGIN; CREATE ROLE reeve_keyring LOGIN").await.unwrap();
        stack.set_role_passwords().await.unwrap();
        let names = [
            "REEVE_DEV_APP_DATABASE_URL",
            "REEVE_WORKER__DATABASE_URL",
            "REEVE_SCHEDULER__DATABASE_URL",
            "REEVE_OPS__DATABASE_URL",
        ];
        for (role, name) in roles.iter().zip(names) {
            let mut connection = PgConnection::connect(&value(&stack.env(), name)).await.unwrap();
            let who: String = sqlx::query_scalar("SELECT current_user::text || ' in ' || current_database()")
                .fetch_one(&mut connection)
                .await
                .unwrap();
            assert_eq!(who, format!("{role} in reeve"));
        }
        stack.stop().await.unwrap();
    }

    #[tokio::test]
    async fn a_database_that_dies_is_noticed() {
        let dir = open_dir();
        let mut stack = Stack::start(dir.path(), Flavour::Test).await.unwrap();
        os::send(stack.redis.pid().unwrap(), Signal::Kill).unwrap();
        let message = stack.broken().await;
        assert!(message.contains("redis ended by itself") && message.contains("redis.log"), "{message}");
        stack.stop().await.unwrap();
    }

    #[tokio::test]
    async fn a_program_is_given_its_own_variables_only() {
        let dir = open_dir();
        let stack = Stack::start(dir.path(), Flavour::Test).await.unwrap();
        let names: Vec<String> = stack.env_of("REEVE_SCHEDULER__").into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["REEVE_SCHEDULER__DATABASE_URL", "REEVE_SCHEDULER__REDIS_URL"]);
        stack.stop().await.unwrap();
    }

    #[test]
    fn a_value_with_a_quote_stays_one_word_for_the_shell() {
        let text = env_text(&[("NAME".to_owned(), "it's; echo pwned".to_owned())]);
        let shown =
            std::process::Command::new("/bin/sh").args(["-c", &format!("{text}printf %s \"$NAME\"")]).output().unwrap();
        assert_eq!(String::from_utf8(shown.stdout).unwrap(), "it's; echo pwned");
    }
}
