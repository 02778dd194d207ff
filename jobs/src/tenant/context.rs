//! The tenant's id, and the context that every job carries, with its proof.
use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::job::JobId;

/// The app's own id of a tenant, as text: 1 to 64 bytes, no control characters. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TenantId(Arc<str>);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTenantId {
    #[error("a tenant id has 1 to 64 bytes, this one has {0}")]
    Length(usize),
    #[error("a tenant id has no control characters; this one has one at byte {0}")]
    Control(usize),
    #[error("\"-\" stands for the platform itself and cannot be a tenant's id")]
    Platform,
}

impl TenantId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TenantId {
    type Err = InvalidTenantId;
    fn from_str(id: &str) -> Result<Self, Self::Err> {
        if !(1..=64).contains(&id.len()) {
            return Err(InvalidTenantId::Length(id.len()));
        }
        if let Some((at, _)) = id.char_indices().find(|(_, c)| c.is_control()) {
            return Err(InvalidTenantId::Control(at));
        }
        if id == "-" {
            return Err(InvalidTenantId::Platform);
        }
        Ok(Self(id.into()))
    }
}

impl TryFrom<String> for TenantId {
    type Error = InvalidTenantId;
    fn try_from(id: String) -> Result<Self, Self::Error> {
        id.parse()
    }
}

impl From<TenantId> for String {
    fn from(id: TenantId) -> Self {
        id.0.as_ref().to_owned()
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TenantId({:?})", &*self.0)
    }
}

/// Proof that whoever has it may speak for one tenant: what a claim gives with a job, or `reeve.open_session` gives an
/// operator. A MAC that the database made and verifies (`migrations/0013_context.sql`); a bearer token, so not printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Proof(Arc<str>);

impl Proof {
    /// `text` as the database gave it. Anything but its alphabet reads as no proof, so that it may stand in a statement.
    pub fn new(text: &str) -> Self {
        let made_by_us = text.len() <= 300 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'/' || b == b'-');
        Self(if made_by_us { text.into() } else { "".into() })
    }

    /// Nothing to show for it: refused wherever proof is asked for.
    pub fn none() -> Self {
        Self("".into())
    }

    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }

    /// For tests that attack it.
    #[cfg(feature = "testing")]
    pub fn into_secret_text(self) -> String {
        self.0.as_ref().to_owned()
    }
}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Proof([redacted])")
    }
}

/// What a job claims about whose it is. Nothing is believed of it before [`super::Scope::open`] has asserted it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantContext {
    pub tenant: TenantId,
    /// The region of the worker that holds the job; the tenant's own must equal it.
    pub region: Arc<str>,
    pub job: Option<JobId>,
    pub proof: Proof,
}

impl TenantContext {
    pub fn new(tenant: TenantId, region: impl Into<Arc<str>>, proof: Proof) -> Self {
        Self { tenant, region: region.into(), job: None, proof }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_of_65_bytes_or_with_a_nul_is_refused() {
        assert_eq!("".parse::<TenantId>(), Err(InvalidTenantId::Length(0)));
        assert_eq!("x".repeat(65).parse::<TenantId>(), Err(InvalidTenantId::Length(65)));
        assert_eq!("a\0b".parse::<TenantId>(), Err(InvalidTenantId::Control(1)));
        assert_eq!("-".parse::<TenantId>(), Err(InvalidTenantId::Platform));
        for good in ["7", "0190-uuid", "عميل", &"x".repeat(64)] {
            assert_eq!(good.parse::<TenantId>().map(|id| id.to_string()), Ok(good.to_owned()));
        }
    }

    #[test]
    fn a_proof_is_not_printed_and_carries_nothing_that_could_end_a_literal() {
        let proof = Proof::new("j/1/0190/0190/99/ab");
        assert_eq!(proof.reveal(), "j/1/0190/0190/99/ab");
        assert!(!format!("{proof:?}").contains("0190"));
        for bad in ["a'b", "a\\b", "a b", "a;b", &"x".repeat(301)] {
            assert_eq!(Proof::new(bad), Proof::none());
        }
    }
}
