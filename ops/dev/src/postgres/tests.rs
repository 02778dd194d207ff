//! A real server, from the programs installed here.

use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::os;

fn runs(pid: u32) -> bool {
    os::command_line(pid).is_some()
}

/// A directory other users can pass through, as the server's user must when the tests run as root.
pub(crate) fn open_dir() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    dir
}

fn options(dir: &Path) -> PostgresOptions {
    PostgresOptions {
        dir: dir.join("postgres"),
        log: dir.join("postgres.log"),
        flavour: Flavour::Test,
        admin_password: "Adm1n".to_owned(),
    }
}

async fn ask(url: &str, query: &'static str) -> Result<String, sqlx::Error> {
    let mut connection = PgConnection::connect(url).await?;
    sqlx::query_scalar(query).fetch_one(&mut connection).await
}

#[tokio::test]
async fn a_server_starts_restarts_and_starts_again_on_the_same_data() {
    let dir = open_dir();
    let mut server = Postgres::start(options(dir.path())).await.unwrap();
    server.create_database("reeve").await.unwrap();
    server.create_database("reeve").await.unwrap();
    let url = server.admin_url("reeve");
    PgConnection::connect(&url)
        .await
        .unwrap()
        .execute("CREATE TABLE kept AS SELECT 'yes'::text AS value")
        .await
        .unwrap();

    let before = server.pid().unwrap();
    server.restart().await.unwrap();
    assert_ne!(server.pid().unwrap(), before);
    assert_eq!(ask(&url, "SELECT value FROM kept").await.unwrap(), "yes");
    let last = server.pid().unwrap();
    server.stop().await.unwrap();
    assert!(!runs(last));

    let server = Postgres::start(options(dir.path())).await.unwrap();
    assert_eq!(ask(&server.admin_url("reeve"), "SELECT value FROM kept").await.unwrap(), "yes");
    server.stop().await.unwrap();
}

#[tokio::test]
async fn tcp_wants_the_password_and_only_the_loopback_is_listened_on() {
    let dir = open_dir();
    let server = Postgres::start(options(dir.path())).await.unwrap();
    assert!(ask(&server.url(ADMIN, "wrong", "postgres"), "SELECT 'in'").await.is_err());
    let url = server.admin_url("postgres");
    assert_eq!(ask(&url, "SELECT 'in'").await.unwrap(), "in");
    assert_eq!(ask(&url, "SELECT current_setting('listen_addresses')").await.unwrap(), "127.0.0.1");
    assert_eq!(ask(&url, "SELECT current_setting('server_encoding')").await.unwrap(), "UTF8");
    assert_eq!(ask(&url, "SELECT current_setting('max_connections')").await.unwrap(), "400");
    let sockets = std::fs::metadata(server.socket_dir()).unwrap();
    assert_eq!(sockets.permissions().mode() & 0o777, 0o700);
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_stale_pid_file_does_not_keep_the_server_from_starting() {
    let dir = open_dir();
    let server = Postgres::start(options(dir.path())).await.unwrap();
    let data = server.data_dir();
    let pid_file = data.join("postmaster.pid");
    let left = std::fs::read_to_string(&pid_file).unwrap();
    server.stop().await.unwrap();
    // The pid of a process that lives and belongs to the server's user is what PostgreSQL alone would stumble over.
    let mut sleeper = Command::new("/bin/sleep");
    sleeper.arg("600");
    if let Some(user) = Place::prepare(&options(dir.path()).dir).unwrap().user() {
        sleeper.uid(user.uid).gid(user.gid);
    }
    let mut sleeper = Daemon::spawn(sleeper, Signal::Kill, Signal::Kill).await.unwrap();
    let (_, rest) = left.split_once('\n').unwrap();
    std::fs::write(&pid_file, format!("{}\n{rest}", sleeper.pid().unwrap())).unwrap();

    let server = Postgres::start(options(dir.path())).await.unwrap();
    assert_eq!(sleeper.exited().unwrap(), None, "the process under the stale pid was touched");
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_killed_server_is_recovered_at_the_next_start() {
    let dir = open_dir();
    let mut server = Postgres::start(options(dir.path())).await.unwrap();
    let url = server.admin_url("postgres");
    PgConnection::connect(&url)
        .await
        .unwrap()
        .execute("CREATE TABLE kept AS SELECT 'yes'::text AS value")
        .await
        .unwrap();
    PgConnection::connect(&url).await.unwrap().execute("CHECKPOINT").await.unwrap();
    os::send(server.pid().unwrap(), Signal::Kill).unwrap();
    server.exited().await.unwrap();
    let server = Postgres::start(options(dir.path())).await.unwrap();
    assert_eq!(ask(&server.admin_url("postgres"), "SELECT value FROM kept").await.unwrap(), "yes");
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_server_left_by_a_killed_stack_is_ended_before_the_next_starts() {
    let dir = open_dir();
    let first = Postgres::start(options(dir.path())).await.unwrap();
    let left = first.pid().unwrap();
    let second = Postgres::start(options(dir.path())).await.unwrap();
    assert!(!runs(left));
    second.stop().await.unwrap();
}

#[tokio::test]
async fn an_unknown_role_is_told_and_the_password_stays_out_of_the_log() {
    let dir = open_dir();
    let server = Postgres::start(options(dir.path())).await.unwrap();
    let error = server.set_password("reeve_app", "Hidden1").await.unwrap_err();
    assert!(error.to_string().contains("migrations"), "{error}");
    assert!(!error.to_string().contains("Hidden1"), "{error}");
    assert!(matches!(server.set_password(ADMIN, "it's").await, Err(PostgresError::Password)));
    assert!(!format!("{server:?}").contains("Adm1n"));
    server.stop().await.unwrap();
    assert!(!std::fs::read_to_string(dir.path().join("postgres.log")).unwrap().contains("Hidden1"));
}

#[test]
fn a_url_escapes_what_would_end_a_part_of_it() {
    assert_eq!(escaped("a/b@c:d"), "a%2Fb%40c%3Ad");
    assert_eq!(escaped("reeve_app-1"), "reeve_app-1");
}
