//! Where a Redis is: one URL for every way to run it.
//!
//! ```text
//! redis://[user:password@]host[:port][/db]                     one server
//! redis+sentinel://[user:password@]host[:port],…/master[/db]   whichever server Sentinel says is the primary
//! redis+cluster://[user:password@]host[:port],…                a cluster, from any of its nodes
//! ```
//!
//! With `rediss` in place of `redis` all of it goes over TLS, to the Sentinels as well. `?ca_file=PATH` names the
//! certificates (PEM) to trust in place of the system's; `sentinel_user` and `sentinel_password` log in at the Sentinels,
//! which are not given the servers' password. Special characters in names and passwords are written as `%XX`.
//!
//! Unknown settings are refused, and nothing is guessed: a slip must not end in a connection without TLS. Errors name
//! places by host and never repeat what stands before the `@` or behind the `?`.
use std::path::PathBuf;

use crate::redact::Redacted;

const PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;
const FORMS: &str = "write redis://host:port/db, redis+sentinel://host:port,host:port/master/db or \
                     redis+cluster://host:port,host:port, each with `rediss` for TLS";

/// What is wrong with a URL, and what to write.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the Redis URL {at} cannot be used: {what}")]
pub struct InvalidAddress {
    /// The URL without what may be secret.
    at: String,
    what: String,
}

/// A parsed URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    pub kind: Kind,
    pub hosts: Vec<(String, u16)>,
    pub login: Login,
    pub db: i64,
    pub tls: Option<Tls>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Server,
    /// The name of the primary, and how to log in where one asks for it.
    Sentinel {
        master: String,
        login: Login,
    },
    Cluster,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Login {
    pub user: Option<String>,
    pub password: Option<Redacted<String>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tls {
    /// The system's certificates if `None`.
    pub ca_file: Option<PathBuf>,
}

/// A URL cut into its pieces.
struct Parts<'a> {
    scheme: &'a str,
    login: Option<&'a str>,
    hosts: &'a str,
    path: &'a str,
    query: &'a str,
}

impl<'a> Parts<'a> {
    fn of(url: &'a str) -> Option<Self> {
        let (scheme, rest) = url.split_once("://")?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        // The last `@`, so that no piece of a password that was not escaped is taken for a host and printed.
        let (login, rest) = rest.rsplit_once('@').map_or((None, rest), |(login, rest)| (Some(login), rest));
        let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
        Some(Self { scheme, login, hosts, path, query })
    }

    fn shown(&self) -> String {
        let slash = if self.path.is_empty() { "" } else { "/" };
        format!("{}://{}{slash}{}", self.scheme, self.hosts, self.path)
    }
}

impl std::str::FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(url: &str) -> Result<Self, InvalidAddress> {
        let unreadable = || InvalidAddress { at: "(not shown)".to_owned(), what: format!("it has no `://`; {FORMS}") };
        let parts = Parts::of(url.trim()).ok_or_else(unreadable)?;
        parse(&parts).map_err(|what| InvalidAddress { at: parts.shown(), what })
    }
}

fn parse(parts: &Parts<'_>) -> Result<Address, String> {
    let (tls, plain) = match parts.scheme.strip_prefix("rediss") {
        Some(form) => (Some(Tls::default()), form),
        None => (None, parts.scheme.strip_prefix("redis").unwrap_or("?")),
    };
    let path: Vec<&str> = parts.path.split('/').filter(|piece| !piece.is_empty()).collect();
    let (kind, default_port, db) = match (plain, path.as_slice()) {
        ("", []) => (Kind::Server, PORT, "0"),
        ("", [db]) => (Kind::Server, PORT, *db),
        ("+cluster", [] | ["0"]) => (Kind::Cluster, PORT, "0"),
        ("+cluster", _) => return Err("a cluster has no databases but 0; leave out what follows the hosts".to_owned()),
        ("+sentinel", [master]) => (sentinel(master)?, SENTINEL_PORT, "0"),
        ("+sentinel", [master, db]) => (sentinel(master)?, SENTINEL_PORT, *db),
        ("+sentinel", _) => return Err("name the primary after the hosts: …/master or …/master/db".to_owned()),
        ("", _) => return Err("only the number of a database may follow the host".to_owned()),
        _ => return Err(format!("its scheme is unknown; {FORMS}")),
    };
    let db = db.parse().ok().filter(|db| *db >= 0).ok_or("the number of a database must follow the last `/`")?;
    let hosts = parts.hosts.split(',').map(|host| host_and_port(host, default_port)).collect::<Result<Vec<_>, _>>()?;
    if hosts.len() > 1 && kind == Kind::Server {
        return Err("several hosts need redis+sentinel:// or redis+cluster://".to_owned());
    }
    let mut address = Address { kind, hosts, login: login(parts.login.unwrap_or_default())?, db, tls };
    settings(&mut address, parts.query)?;
    Ok(address)
}

fn sentinel(master: &str) -> Result<Kind, String> {
    Ok(Kind::Sentinel { master: unescaped(master)?, login: Login::default() })
}

fn login(text: &str) -> Result<Login, String> {
    let (user, password) = text.split_once(':').unwrap_or((text, ""));
    let user = Some(unescaped(user)?).filter(|user| !user.is_empty());
    let password = Some(unescaped(password)?).filter(|password| !password.is_empty()).map(Redacted::new);
    if user.is_some() && password.is_none() {
        return Err("a user needs a password: user:password@host, or :password@host for the default user".to_owned());
    }
    Ok(Login { user, password })
}

fn host_and_port(text: &str, default: u16) -> Result<(String, u16), String> {
    let (host, port) = match text.strip_prefix('[').map(|rest| rest.split_once(']')) {
        Some(Some((host, rest))) => (host, rest.strip_prefix(':')),
        Some(None) => return Err("an IPv6 address must end with `]`".to_owned()),
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    if host.is_empty() {
        return Err("a host is missing".to_owned());
    }
    let port = port.map_or(Ok(default), |port| port.parse::<u16>().map_err(|_| ()));
    match port {
        Ok(port) if port > 0 => Ok((host.to_owned(), port)),
        _ => Err("a port is a number from 1 to 65535 (escape `/`, `?`, `@` and `:` in a password as %XX)".to_owned()),
    }
}

fn settings(address: &mut Address, query: &str) -> Result<(), String> {
    for (n, setting) in query.split('&').filter(|setting| !setting.is_empty()).enumerate() {
        let (name, value) = setting.split_once('=').unwrap_or((setting, ""));
        let value = unescaped(value)?;
        match (name, &mut address.kind, &mut address.tls) {
            _ if value.is_empty() => return Err(format!("setting {} behind the `?` has no value", n + 1)),
            ("ca_file", _, Some(tls)) => tls.ca_file = Some(value.into()),
            ("ca_file", _, None) => return Err("ca_file is for TLS: write `rediss` in place of `redis`".to_owned()),
            ("sentinel_user", Kind::Sentinel { login, .. }, _) => login.user = Some(value),
            ("sentinel_password", Kind::Sentinel { login, .. }, _) => login.password = Some(Redacted::new(value)),
            _ => {
                // Not repeated: it may be a piece of a password that was not escaped.
                return Err(format!(
                    "setting {} behind the `?` is unknown here; there are ca_file, and for Sentinel sentinel_user and \
                     sentinel_password",
                    n + 1
                ));
            }
        }
    }
    Ok(())
}

/// `%XX` read; everything else stands for itself.
fn unescaped(text: &str) -> Result<String, String> {
    let wrong = || "a `%` must be followed by two hexadecimal digits; write `%` itself as %25".to_owned();
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let [first, tail @ ..] = rest {
        if *first != b'%' {
            bytes.push(*first);
            rest = tail;
            continue;
        }
        let digits = tail.get(..2).and_then(|digits| std::str::from_utf8(digits).ok()).ok_or_else(wrong)?;
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| wrong())?);
        rest = &tail[2..];
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(url: &str) -> Address {
        url.parse().unwrap()
    }

    fn host(name: &str, port: u16) -> (String, u16) {
        (name.to_owned(), port)
    }

    #[test]
    fn each_form_is_read() {
        let plain = read("redis://default:pass1@127.0.0.1:6380/2");
        assert_eq!((plain.kind, plain.hosts, plain.db), (Kind::Server, vec![host("127.0.0.1", 6380)], 2));
        assert_eq!(plain.login.user.as_deref(), Some("default"));
        assert_eq!(plain.login.password.unwrap().reveal(), "pass1");
        assert_eq!(plain.tls, None);
        let bare = read("rediss://[::1]");
        assert_eq!((bare.hosts, bare.db, bare.login), (vec![host("::1", 6379)], 0, Login::default()));
        assert_eq!(bare.tls, Some(Tls { ca_file: None }));

        let sentinel = read(
            "rediss+sentinel://u:p%40%2f%25@a,b:2/main/3?ca_file=%2Fetc/ca.pem&sentinel_user=s&sentinel_password=t",
        );
        assert_eq!((&sentinel.hosts[..], sentinel.db), (&[host("a", 26379), host("b", 2)][..], 3));
        assert_eq!(sentinel.login.password.unwrap().reveal(), "p@/%");
        assert_eq!(sentinel.tls.unwrap().ca_file.unwrap(), PathBuf::from("/etc/ca.pem"));
        let Kind::Sentinel { master, login } = sentinel.kind else { panic!("not a Sentinel") };
        assert_eq!((master.as_str(), login.user.as_deref()), ("main", Some("s")));
        assert_eq!(login.password.unwrap().reveal(), "t");

        let cluster = read("redis+cluster://:p@a:1,b:2,c:3/");
        assert_eq!((cluster.kind, cluster.hosts.len(), cluster.login.user), (Kind::Cluster, 3, None));
    }

    #[test]
    fn a_wrong_url_is_told_what_is_wrong_and_never_repeated_with_its_secrets() {
        for (url, says) in [
            ("hunter2", "no `://`"),
            ("http://u:hunter2@h:1", "scheme is unknown"),
            ("redis+unix://u:hunter2@h:1", "scheme is unknown"),
            ("redis://u:hunter2@h:1,h:2", "several hosts"),
            ("redis://u:hunter2@h:x", "a port is"),
            ("redis://u:hunter2@h:0", "a port is"),
            ("redis://u:hunter2@", "a host is missing"),
            ("redis://u:hunter2@[::1", "must end with `]`"),
            ("redis://hunter2@h", "a user needs a password"),
            ("redis://u:hunter2%@h", "two hexadecimal digits"),
            ("redis://u:hunter2%+1@h", "two hexadecimal digits"),
            ("redis://u:hunter2@h/x", "number of a database"),
            ("redis://u:hunter2@h/0/1", "only the number of a database"),
            ("redis://u:hunter2@h?ca_file=a", "ca_file is for TLS"),
            ("rediss://u:hunter2@h?insecure=hunter2", "setting 1 behind the `?` is unknown"),
            ("rediss://u:hunter2@h?ca_file=", "has no value"),
            ("redis://h?sentinel_password=hunter2", "unknown here"),
            ("redis+sentinel://u:hunter2@h", "name the primary"),
            ("redis+cluster://u:hunter2@h/1", "no databases but 0"),
            // Passwords that should have been escaped.
            ("redis://u:a@hunter2/@h:1/x", "number of a database"),
            ("redis://u:a?hunter2@h:1", "a port is"),
        ] {
            let error = url.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains(says), "{url}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        let address = read("redis+sentinel://u:hunter2@h/m?sentinel_password=hunter2");
        assert!(!format!("{address:?}").contains("hunter2"), "{address:?}");
    }
}
