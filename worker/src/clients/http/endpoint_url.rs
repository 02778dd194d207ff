//! The URL of a tenant's endpoint, checked once, when it is parsed.
//!
//! The rules hold for the URL as the client will use it, after the parser's normalisation: `http://0x7f.1/` is judged as
//! the 127.0.0.1 that it means. Spellings that people and parsers read differently are refused outright.
//!
//! Deliberately absent: resolving the name. That happens at each send, where the answer is also what is connected to.

use std::{fmt, net::IpAddr};

use url::{Host, Url};

use crate::clients::address::{AddressPolicy, AddressRefused, judge};

/// The longest URL, as given and as normalised.
pub const URL_CHARS_MAX: usize = 2_048;

/// What an endpoint's URL may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UrlPolicy {
    /// Lets `http` through beside `https`, and port 80 with it: for development and tests.
    pub http_allowed: bool,
    pub ports_allowed: Vec<u16>,
    /// With `loopback_allowed`, a loopback host may have any port.
    pub address: AddressPolicy,
}

impl Default for UrlPolicy {
    fn default() -> Self {
        Self { http_allowed: false, ports_allowed: vec![443, 8443], address: AddressPolicy::default() }
    }
}

/// Why a URL was refused. Repeats no part of it but its scheme, port or address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlRefused {
    #[error("the URL is longer than {URL_CHARS_MAX} characters: give a shorter one")]
    TooLong,
    #[error("the URL contains a space, a control character or a backslash: percent-encode it")]
    StrayCharacter,
    #[error("the URL is not written in full: begin with `https://` and the host")]
    NotInFull,
    #[error("the URL cannot be read ({0}): give one like https://hooks.example.com/reeve")]
    NotAUrl(url::ParseError),
    #[error("the URL uses `http`, which sends messages in the clear: use `https`")]
    HttpNotAllowed,
    #[error("the URL uses the scheme `{0}`: use `https`")]
    Scheme(String),
    #[error("the URL contains a user name or password before `@`: leave it out, deliveries are signed instead")]
    UserInfo,
    #[error("the URL has a fragment (`#…`), which is never sent: leave it out")]
    Fragment,
    #[error("the URL uses port {port}: use one of {}", list(.allowed))]
    Port { port: u16, allowed: Vec<u16> },
    #[error("the URL names this machine itself: use a host that the internet can reach")]
    LoopbackName,
    #[error("the URL leads to an address that is not allowed: {0}")]
    Address(#[from] AddressRefused),
}

fn list(ports: &[u16]) -> String {
    ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// A URL that keeps the rules. `Debug` leaves out path and query, where some receivers keep a token.
#[derive(Clone, PartialEq, Eq)]
pub struct EndpointUrl {
    url: Url,
    literal: Option<IpAddr>,
}

impl EndpointUrl {
    /// Parses and checks `text`.
    ///
    /// # Errors
    /// Says which rule is broken and what to do, in words for the tenant.
    pub fn parse(text: &str, policy: &UrlPolicy) -> Result<Self, UrlRefused> {
        if text.len() > URL_CHARS_MAX {
            return Err(UrlRefused::TooLong);
        }
        if text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '\\') {
            return Err(UrlRefused::StrayCharacter);
        }
        // The parser would take `https:host` and `https:///host` for the same as `https://host`.
        let (_, rest) = text.split_once("://").ok_or(UrlRefused::NotInFull)?;
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        if authority.is_empty() {
            return Err(UrlRefused::NotInFull);
        }
        if authority.contains('@') {
            return Err(UrlRefused::UserInfo);
        }
        let url = Url::parse(text).map_err(UrlRefused::NotAUrl)?;
        if url.as_str().len() > URL_CHARS_MAX {
            return Err(UrlRefused::TooLong);
        }
        match url.scheme() {
            "https" => {}
            "http" if policy.http_allowed => {}
            "http" => return Err(UrlRefused::HttpNotAllowed),
            other => return Err(UrlRefused::Scheme(other.to_owned())),
        }
        if url.fragment().is_some() {
            return Err(UrlRefused::Fragment);
        }
        let (literal, host_is_loopback) = match url.host().ok_or(UrlRefused::NotInFull)? {
            Host::Ipv4(addr) => (Some(IpAddr::V4(addr)), addr.is_loopback()),
            Host::Ipv6(addr) => (Some(IpAddr::V6(addr)), addr.is_loopback()),
            Host::Domain(name) => (None, is_loopback_name(name)),
        };
        match literal {
            Some(addr) => judge(addr, policy.address)?,
            None if host_is_loopback && !policy.address.loopback_allowed => return Err(UrlRefused::LoopbackName),
            None => {}
        }
        // A loopback host that came this far is allowed, and so is any port of it.
        if !host_is_loopback {
            check_port(&url, policy)?;
        }
        Ok(Self { url, literal })
    }

    /// The URL, normalised.
    pub fn as_str(&self) -> &str {
        self.url.as_str()
    }

    pub(super) fn url(&self) -> &Url {
        &self.url
    }

    pub(super) fn literal(&self) -> Option<IpAddr> {
        self.literal
    }
}

impl fmt::Debug for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EndpointUrl({}/…)", self.url.origin().ascii_serialization())
    }
}

fn is_loopback_name(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    name == "localhost" || name.ends_with(".localhost")
}

fn check_port(url: &Url, policy: &UrlPolicy) -> Result<(), UrlRefused> {
    let mut allowed = policy.ports_allowed.clone();
    if url.scheme() == "http" {
        allowed.push(80);
    }
    match url.port_or_known_default() {
        Some(port) if !allowed.contains(&port) => Err(UrlRefused::Port { port, allowed }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strict(text: &str) -> Result<EndpointUrl, UrlRefused> {
        EndpointUrl::parse(text, &UrlPolicy::default())
    }

    fn lenient(text: &str) -> Result<EndpointUrl, UrlRefused> {
        let address = AddressPolicy { loopback_allowed: true };
        EndpointUrl::parse(text, &UrlPolicy { http_allowed: true, address, ..UrlPolicy::default() })
    }

    #[test]
    fn ordinary_endpoints_pass_and_are_normalised() {
        for (text, normal) in [
            ("https://hooks.example.com/in?a=b", "https://hooks.example.com/in?a=b"),
            ("HTTPS://Hooks.Example.COM", "https://hooks.example.com/"),
            ("https://hooks.example.com:443/", "https://hooks.example.com/"),
            ("https://hooks.example.com:8443/a%20b", "https://hooks.example.com:8443/a%20b"),
            ("https://hooks.example.com/?mail=a@b", "https://hooks.example.com/?mail=a@b"),
            ("https://bücher.example/", "https://xn--bcher-kva.example/"),
            ("https://8.8.8.8/", "https://8.8.8.8/"),
            ("https://[2606:4700:4700::1111]/", "https://[2606:4700:4700::1111]/"),
        ] {
            assert_eq!(strict(text).unwrap().as_str(), normal);
        }
    }

    #[test]
    fn an_address_that_is_not_public_is_refused_however_it_is_spelt() {
        for host in [
            "127.0.0.1",
            "0x7f.1",
            "0x7f000001",
            "2130706433",
            "017700000001",
            "0177.0.0.1",
            "127.1",
            "127.0.0.1.",
            "%31%32%37.0.0.1",
            "１２７.0.0.1",
            "127。0。0。1",
            "10.0.0.1",
            "0xa000001",
            "169.254.169.254",
            "2852039166",
            "0",
            "0.0.0.0",
            "[::1]",
            "[::]",
            "[0:0:0:0:0:0:0:1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "[64:ff9b::7f00:1]",
            "[fd00::1]",
            "[fe80::1]",
            "[2002:7f00:1::]",
        ] {
            let refused = strict(&format!("https://{host}/")).unwrap_err();
            assert!(matches!(refused, UrlRefused::Address(_)), "{host}: {refused:?}");
        }
        for name in ["localhost", "LOCALHOST", "localhost.", "a.localhost", "loc%61lhost"] {
            assert_eq!(strict(&format!("https://{name}/")), Err(UrlRefused::LoopbackName), "{name}");
        }
        assert!(strict("https://localhost.example.com/").is_ok());
    }

    #[test]
    fn each_rule_has_its_own_refusal() {
        let long = format!("https://example.com/{}", "a".repeat(URL_CHARS_MAX));
        let long_when_encoded = format!("https://example.com/{}", "ü".repeat(1_000));
        for (text, refused) in [
            (long.as_str(), UrlRefused::TooLong),
            (long_when_encoded.as_str(), UrlRefused::TooLong),
            ("https://exa mple.com/", UrlRefused::StrayCharacter),
            (" https://example.com/", UrlRefused::StrayCharacter),
            ("https://exam\nple.com/", UrlRefused::StrayCharacter),
            ("https://exam\tple.com/", UrlRefused::StrayCharacter),
            ("https:\\\\example.com/", UrlRefused::StrayCharacter),
            ("https://example.com\\@evil.example/", UrlRefused::StrayCharacter),
            ("", UrlRefused::NotInFull),
            ("example.com/hook", UrlRefused::NotInFull),
            ("https:example.com", UrlRefused::NotInFull),
            ("https:/example.com", UrlRefused::NotInFull),
            ("https:///example.com", UrlRefused::NotInFull),
            ("https://", UrlRefused::NotInFull),
            ("https://?a", UrlRefused::NotInFull),
            ("http://example.com/", UrlRefused::HttpNotAllowed),
            ("ftp://example.com/", UrlRefused::Scheme("ftp".to_owned())),
            ("gopher://example.com/", UrlRefused::Scheme("gopher".to_owned())),
            ("https://user@example.com/", UrlRefused::UserInfo),
            ("https://user:pass@example.com/", UrlRefused::UserInfo),
            ("https://:pass@example.com/", UrlRefused::UserInfo),
            ("https://@example.com/", UrlRefused::UserInfo),
            ("https://example.com@127.0.0.1/", UrlRefused::UserInfo),
            ("https://example.com/#part", UrlRefused::Fragment),
            ("https://example.com/#", UrlRefused::Fragment),
        ] {
            assert_eq!(strict(text), Err(refused), "{text}");
        }
        for text in
            ["https://:443/", "https://[::1/", "https://example.com:99999/", "https://1.2.3.4.5/", "https://a%00b/"]
        {
            assert!(matches!(strict(text), Err(UrlRefused::NotAUrl(_))), "{text}");
        }
    }

    #[test]
    fn the_longest_url_passes() {
        let text = format!("https://example.com/{}", "a".repeat(URL_CHARS_MAX - 20));
        assert_eq!(strict(&text).unwrap().as_str().len(), URL_CHARS_MAX);
    }

    #[test]
    fn only_listed_ports_pass() {
        for port in [0, 1, 22, 25, 80, 442, 444, 5432, 6379, 8080, 65535] {
            let refused = strict(&format!("https://example.com:{port}/")).unwrap_err();
            assert_eq!(refused, UrlRefused::Port { port, allowed: vec![443, 8443] });
        }
        assert_eq!(
            strict("https://example.com:22/").unwrap_err().to_string(),
            "the URL uses port 22: use one of 443, 8443"
        );
    }

    #[test]
    fn leniency_opens_http_and_loopback_and_nothing_else() {
        for text in ["http://127.0.0.1:5000/", "http://localhost:1/", "https://[::1]:9/", "http://example.com/"] {
            assert!(lenient(text).is_ok(), "{text}");
        }
        for text in ["http://10.0.0.1/", "http://example.com:5000/", "ftp://localhost/", "http://[::ffff:127.0.0.1]/"] {
            assert!(lenient(text).is_err(), "{text}");
        }
    }

    #[test]
    fn debug_and_errors_leave_out_what_may_be_a_token() {
        let url = strict("https://example.com/services/T0KEN?key=T0KEN").unwrap();
        assert_eq!(format!("{url:?}"), "EndpointUrl(https://example.com/…)");
        for text in ["https://a:T0KEN@example.com/T0KEN", "https://example.com:22/T0KEN", "https://10.0.0.1/T0KEN"] {
            let refused = strict(text).unwrap_err();
            assert!(!format!("{refused} {refused:?}").contains("T0KEN"), "{refused}");
        }
    }
}
