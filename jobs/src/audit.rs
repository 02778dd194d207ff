//! Audit entries: who did what to which thing, and why. Append-only in the database, for everybody.
//!
//! A worker writes through [`crate::tenant::Scope::audit`], so an entry commits with the effect it tells of and can only
//! be of the tenant whose scope is open. Operators' acts are recorded by the SQL functions that do them. Values of
//! changed fields never come here, only their names.
//!
//! The entries of a tenant are a hash chain (`migrations/0005_audit.sql`), and its end is signed now and then. With feature
//! `program`: [`keyed`] has the key's uses, [`chain`] the canonical bytes, [`verify`] finds the first broken link,
//! [`inspect`] searches; [`sign`] signs what has grown, and [`shipped`] keeps what was signed out of the database's reach.
#[cfg(feature = "program")]
pub mod chain;
#[cfg(feature = "program")]
pub mod inspect;
#[cfg(feature = "program")]
pub mod keyed;
#[cfg(feature = "program")]
pub mod shipped;
#[cfg(feature = "program")]
pub mod sign;
#[cfg(feature = "program")]
pub mod verify;

#[cfg(feature = "program")]
pub use keyed::{AuditKey, AuditKeyError};

use crate::job::{ClaimedJob, JobId};

/// One entry. `action` is `noun.verb`, `target` a typed id such as `job:…` or `endpoint:…`.
#[derive(Debug, Clone)]
pub struct Entry<'a> {
    pub actor: &'a str,
    pub action: &'a str,
    pub target: &'a str,
    pub reason: Option<&'a str>,
    /// Names of the fields that changed.
    pub fields: &'a [&'a str],
    pub job: Option<(JobId, i32)>,
    pub trace_id: Option<&'a str>,
    /// From `AuditKey::ip_hash` (feature `program`); never the address.
    pub source_ip_hash: Option<[u8; 32]>,
}

impl<'a> Entry<'a> {
    pub fn new(actor: &'a str, action: &'a str, target: &'a str) -> Self {
        Self { actor, action, target, reason: None, fields: &[], job: None, trace_id: None, source_ip_hash: None }
    }

    pub fn because(mut self, reason: &'a str) -> Self {
        self.reason = Some(reason);
        self
    }

    pub fn by_job(mut self, job: &'a ClaimedJob) -> Self {
        self.job = Some((job.id, job.attempt));
        // version-traceid-spanid-flags (W3C Trace Context)
        self.trace_id = job.traceparent.as_deref().and_then(|parent| parent.split('-').nth(1));
        self
    }
}

pub(crate) const APPEND: &str = "-- audit.append\nSELECT reeve.audit($1, $2, $3, $4, $5, $6, $7, $8, $9)";
