//! The URL of a tenant's dedicated database, sealed to its tenant and its epoch: another tenant's does not open in its
//! place, nor does the one from before a move.
use rand::Rng;
use zeroize::Zeroizing;

use super::{Place, RootKey, SealError};
use crate::{
    redact::Redacted,
    tenant::{
        TenantId,
        databases::{Dedicated, OpenUrl},
    },
};

fn place<'a>(tenant: &'a TenantId, row: &'a str) -> Place<'a> {
    Place { tenant, table: "placements", column: "url_sealed", row }
}

/// Seals the URL that `reeve.placements` is to hold from `epoch` on.
pub fn seal_url(
    key: &RootKey,
    tenant: &TenantId,
    epoch: i32,
    url: &Redacted<String>,
    random: &mut impl Rng,
) -> Result<Vec<u8>, SealError> {
    key.seal(&place(tenant, &epoch.to_string()), url.reveal().as_bytes(), random)
}

impl OpenUrl for RootKey {
    fn open_url(&self, placement: &Dedicated) -> Option<Redacted<String>> {
        let row = placement.epoch.to_string();
        let bytes: Zeroizing<Vec<u8>> = self.open(&place(&placement.tenant, &row), &placement.url_sealed).ok()?;
        std::str::from_utf8(&bytes).ok().map(|url| Redacted::new(url.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_opens_for_its_tenant_and_epoch_alone() {
        let key = RootKey::from_base64("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=").expect("32 bytes");
        let (a, b): (TenantId, TenantId) = ("a".parse().expect("an id"), "b".parse().expect("an id"));
        let url = Redacted::new("postgres://w:canary@h/a".to_owned());
        let url_sealed: std::sync::Arc<[u8]> = seal_url(&key, &a, 2, &url, &mut rand::rng()).expect("sealed").into();
        assert!(!url_sealed.windows(6).any(|bytes| bytes == b"canary"));
        let at = |tenant: &TenantId, epoch| Dedicated { tenant: tenant.clone(), epoch, url_sealed: url_sealed.clone() };
        assert_eq!(key.open_url(&at(&a, 2)), Some(url));
        assert_eq!(key.open_url(&at(&b, 2)), None, "another tenant's row");
        assert_eq!(key.open_url(&at(&a, 3)), None, "the row after a move");
    }
}
