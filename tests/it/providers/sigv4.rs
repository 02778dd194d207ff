//! AWS Signature Version 4, from its description and not from a client's library: what a server recomputes to know who
//! asks, that nothing was changed on the way, and that it was asked just now.
use std::{fmt::Write, time::SystemTime};

use chrono::{DateTime, NaiveDateTime, TimeDelta, Utc};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use super::server::Asked;

/// The secret of an access key, and what a temporary one must come with.
#[derive(Debug, Clone)]
pub struct Login {
    pub id: String,
    pub secret: String,
    pub session_token: Option<String>,
}

/// Codes that AWS's services give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    MissingAuthenticationToken,
    IncompleteSignature,
    UnrecognizedClient,
    InvalidSignature,
}

impl Refused {
    pub const fn code(self) -> &'static str {
        match self {
            Self::MissingAuthenticationToken => "MissingAuthenticationTokenException",
            Self::IncompleteSignature => "IncompleteSignature",
            Self::UnrecognizedClient => "UnrecognizedClientException",
            Self::InvalidSignature => "InvalidSignatureException",
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

fn hmac(key: &[u8], message: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes any key");
    mac.update(message.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

/// Signed with the date, and a day's scope; this service allows five minutes either way.
const SKEW: TimeDelta = TimeDelta::minutes(5);

/// Whether the request was signed by that login, for that region and service, within the last minutes.
pub fn verify(asked: &Asked, login: &Login, region: &str, service: &str, now: SystemTime) -> Result<(), Refused> {
    let authorization = asked.header("authorization");
    if authorization.is_empty() {
        return Err(Refused::MissingAuthenticationToken);
    }
    let parts = authorization.strip_prefix("AWS4-HMAC-SHA256 ").ok_or(Refused::IncompleteSignature)?;
    let part = |name: &str| {
        parts.split(',').find_map(|part| part.trim().strip_prefix(name)).ok_or(Refused::IncompleteSignature)
    };
    let (credential, signed, signature) = (part("Credential=")?, part("SignedHeaders=")?, part("Signature=")?);
    let scope: Vec<_> = credential.split('/').collect();
    let [id, day, found_region, found_service, "aws4_request"] = scope[..] else {
        return Err(Refused::IncompleteSignature);
    };
    if id != login.id || asked.header("x-amz-security-token") != login.session_token.as_deref().unwrap_or_default() {
        return Err(Refused::UnrecognizedClient);
    }
    let stamp = asked.header("x-amz-date");
    let at = NaiveDateTime::parse_from_str(stamp, "%Y%m%dT%H%M%SZ").map_err(|_| Refused::IncompleteSignature)?;
    let age = DateTime::<Utc>::from(now).signed_duration_since(at.and_utc());
    if (found_region, found_service) != (region, service) || !stamp.starts_with(day) || age.abs() > SKEW {
        return Err(Refused::InvalidSignature);
    }
    let names: Vec<_> = signed.split(';').collect();
    let must = ["content-type", "host", "x-amz-date", "x-amz-target"];
    let with_token = login.session_token.is_none() || names.contains(&"x-amz-security-token");
    if !must.iter().all(|name| names.contains(name)) || !with_token || !names.is_sorted() {
        return Err(Refused::IncompleteSignature);
    }
    let headers = names.iter().fold(String::new(), |mut out, name| {
        let value = asked.header(name).split_whitespace().collect::<Vec<_>>().join(" ");
        let _ = writeln!(out, "{name}:{value}");
        out
    });
    let payload = hex(&Sha256::digest(&asked.body));
    let canonical = format!("{}\n{}\n\n{headers}\n{signed}\n{payload}", asked.method, asked.path);
    let scope = format!("{day}/{region}/{service}/aws4_request");
    let text = format!("AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{}", hex(&Sha256::digest(canonical)));
    let key = [day, region, service, "aws4_request"]
        .iter()
        .fold(format!("AWS4{}", login.secret).into_bytes(), |key, part| hmac(&key, part));
    if hex(&hmac(&key, &text)) == signature { Ok(()) } else { Err(Refused::InvalidSignature) }
}
