//! The URL of a tenant's dedicated database, sealed to its tenant and its epoch: another tenant's does not open in its
//! place, nor does the one from before a move.
use super::{Keyring, KeyringError, Place, Purpose};
use crate::{
    redact::Redacted,
    tenant::{
        TenantId,
        databases::{Dedicated, NotOpened, OpenUrl, Opening},
    },
};

fn place<'a>(tenant: &'a TenantId, row: &'a str) -> Place<'a> {
    Place { tenant, table: "placements", column: "url_sealed", row }
}

/// Seals the URL that `reeve.placements` is to hold from `epoch` on.
pub async fn seal_url(
    keyring: &Keyring,
    tenant: &TenantId,
    epoch: i32,
    url: &Redacted<String>,
) -> Result<Vec<u8>, KeyringError> {
    keyring.seal(Purpose::Secret, &place(tenant, &epoch.to_string()), url.reveal().as_bytes()).await
}

impl OpenUrl for Keyring {
    fn open_url<'a>(&'a self, placement: &'a Dedicated) -> Opening<'a> {
        Box::pin(async move {
            let row = placement.epoch.to_string();
            let bytes =
                self.open(Purpose::Secret, &place(&placement.tenant, &row), &placement.url_sealed).await.map_err(|error| {
                    tracing::warn!(tenant = %placement.tenant, reason = error.reason(), "a placement's URL does not open");
                    if error.is_transient() { NotOpened::Away(error.reason()) } else { NotOpened::Sealed }
                })?;
            std::str::from_utf8(&bytes).map(|url| Redacted::new(url.to_owned())).map_err(|_| NotOpened::Sealed)
        })
    }
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use super::*;
    use crate::testing::keystore::TestKeystore;

    #[tokio::test]
    async fn a_url_opens_for_its_tenant_and_epoch_alone() {
        let keyring = TestKeystore::new().await.keyring();
        let (a, b): (TenantId, TenantId) = ("a".parse().expect("an id"), "b".parse().expect("an id"));
        let url = Redacted::new("postgres://w:canary@h/a".to_owned());
        let url_sealed: std::sync::Arc<[u8]> = seal_url(&keyring, &a, 2, &url).await.expect("sealed").into();
        assert!(!url_sealed.windows(6).any(|bytes| bytes == b"canary"));
        let at = |tenant: &TenantId, epoch| Dedicated { tenant: tenant.clone(), epoch, url_sealed: url_sealed.clone() };
        assert_eq!(keyring.open_url(&at(&a, 2)).await, Ok(url));
        keyring.current(&b).await.expect("b has a key too");
        assert_eq!(keyring.open_url(&at(&b, 2)).await, Err(NotOpened::Sealed), "another tenant's row");
        assert_eq!(keyring.open_url(&at(&a, 3)).await, Err(NotOpened::Sealed), "the row after a move");
    }
}
