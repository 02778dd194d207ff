//! Logins of a running Redis: made at each start with passwords of that run, from the rules that a real one would be given.
use std::io;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use super::{Redis, RedisError, cannot};

impl Redis {
    /// Makes the users of an access list, a line each (`user NAME RULE…`), all with `password`: letters and digits.
    ///
    /// # Errors
    /// [`RedisError::Io`] when the server does not take them.
    pub async fn set_users(&self, rules: &str, password: &str) -> Result<(), RedisError> {
        let mut lines = vec![format!("AUTH {}", self.password)];
        for rule in rules.lines().filter_map(|line| line.strip_prefix("user ")) {
            lines.push(format!("ACL SETUSER {rule} >{password}"));
        }
        ask(self.port, &lines).await.map_err(cannot("make the logins of Redis"))
    }

    /// [`Redis::url`] of another login.
    pub fn url_of(&self, user: &str, password: &str) -> String {
        format!("redis://{user}:{password}@127.0.0.1:{}/0", self.port)
    }
}

async fn ask(port: u16, lines: &[String]) -> io::Result<()> {
    let mut socket = BufReader::new(TcpStream::connect(("127.0.0.1", port)).await?);
    for line in lines {
        socket.write_all(format!("{line}\r\n").as_bytes()).await?;
        let mut answer = String::new();
        socket.read_line(&mut answer).await?;
        if answer != "+OK\r\n" {
            // Its words may repeat a rule, and never a password.
            return Err(io::Error::other(answer.trim_end().to_owned()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_login_gets_its_rules_and_a_wrong_rule_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let redis = Redis::start(&dir.path().join("redis"), &dir.path().join("log"), "pass1").await.unwrap();
        redis.set_users("user ann on resetkeys -@all ~a:* +get +ping\n", "pass2").await.unwrap();
        let as_ann = |command: &str| vec!["AUTH ann pass2".to_owned(), command.to_owned()];
        let refused = ask(redis.port, &as_ann("SET a:1 x")).await.unwrap_err().to_string();
        assert!(refused.contains("NOPERM"), "{refused}");
        assert!(redis.set_users("user bob on +nonsense", "pass2").await.is_err());
        assert!(redis.url_of("ann", "pass2").starts_with("redis://ann:pass2@127.0.0.1:"));
        redis.stop().await.unwrap();
    }
}
