//! The canonical bytes of an entry and its hashes, as `migrations/0005_audit.sql` makes them.
//!
//! Written a second time on purpose: whoever can rewrite the log in the database can rewrite its functions too, so a
//! verifier must not ask them. A value is its length in four bytes (big-endian) and itself; NULL is the length -1.
use chrono::{DateTime, Duration, Utc};
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// SHA-256 or HMAC-SHA256.
pub type Hash = [u8; 32];

/// What the first entry of a chain takes for the hash before it.
pub const START: Hash = [0; 32];

/// Appends one value of the canonical form.
pub(super) fn put(out: &mut Vec<u8>, value: Option<&[u8]>) {
    // A value of PostgreSQL has less than 1 GiB, so its length fits.
    let length = value.map_or(-1, |bytes| i32::try_from(bytes.len()).unwrap_or(i32::MAX));
    out.extend(length.to_be_bytes());
    out.extend(value.unwrap_or_default());
}

/// Microseconds since 1970, which is all that PostgreSQL keeps.
pub(super) fn micros(at: DateTime<Utc>) -> [u8; 8] {
    at.timestamp_micros().to_be_bytes()
}

/// How long an entry is kept; `None` is for ever, as for a word that is no class: then it was not due.
/// The same hours as `reeve.audit_keep`.
pub fn kept(class: &str) -> Option<Duration> {
    match class {
        "12m" => Some(Duration::hours(8_784)),
        "24m" => Some(Duration::hours(17_544)),
        _ => None,
    }
}

/// The part of an entry that pruning removes.
#[derive(Debug, Clone, Copy)]
pub struct Content<'a> {
    pub actor: &'a str,
    pub action: &'a str,
    pub target: &'a str,
    pub job_id: Option<Uuid>,
    pub attempt: Option<i32>,
    pub trace_id: Option<&'a str>,
    pub source_ip_hash: Option<&'a [u8]>,
    pub body_hash: Option<&'a [u8]>,
}

impl Content<'_> {
    pub fn hash(&self) -> Hash {
        let mut out = Vec::with_capacity(256);
        put(&mut out, Some(self.actor.as_bytes()));
        put(&mut out, Some(self.action.as_bytes()));
        put(&mut out, Some(self.target.as_bytes()));
        put(&mut out, self.job_id.as_ref().map(|id| id.as_bytes().as_slice()));
        put(&mut out, self.attempt.map(i32::to_be_bytes).as_ref().map(|bytes| bytes.as_slice()));
        put(&mut out, self.trace_id.map(str::as_bytes));
        put(&mut out, self.source_ip_hash);
        put(&mut out, self.body_hash);
        Sha256::digest(&out).into()
    }
}

pub fn body_hash(salt: &[u8], reason: Option<&str>, fields: &[String]) -> Hash {
    let mut out = salt.to_vec();
    put(&mut out, reason.map(str::as_bytes));
    out.extend(i32::try_from(fields.len()).unwrap_or(i32::MAX).to_be_bytes());
    for field in fields {
        put(&mut out, Some(field.as_bytes()));
    }
    Sha256::digest(&out).into()
}

/// The hash of an entry.
pub fn link(previous: &Hash, tenant: &str, seq: i64, at: DateTime<Utc>, class: &str, content: &[u8]) -> Hash {
    let mut out = Vec::with_capacity(192);
    put(&mut out, Some(previous));
    put(&mut out, Some(tenant.as_bytes()));
    put(&mut out, Some(&seq.to_be_bytes()));
    put(&mut out, Some(&micros(at)));
    put(&mut out, Some(class.as_bytes()));
    put(&mut out, Some(content));
    Sha256::digest(&out).into()
}
