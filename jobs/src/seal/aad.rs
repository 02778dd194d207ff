//! Where a sealed value stands, as bytes: tenant, table, column and row, each with its length before it, so that no two
//! places write the same bytes.
use crate::tenant::TenantId;

/// The place that a sealed value is bound to. Moved elsewhere, it does not open.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    pub tenant: &'a TenantId,
    pub table: &'a str,
    pub column: &'a str,
    /// The row's key; several key columns joined by the caller with a byte that none contains.
    pub row: &'a str,
}

impl Place<'_> {
    pub(super) fn bytes(&self) -> Vec<u8> {
        joined(&[self.tenant.as_str(), self.table, self.column, self.row])
    }
}

/// Each part with its length before it, u32 BE.
pub(super) fn joined(parts: &[&str]) -> Vec<u8> {
    let mut out = Vec::with_capacity(parts.iter().map(|part| part.len() + 4).sum());
    for part in parts {
        // Tenant ids have 64 bytes at most, the rest are short names and keys: far below 4 GiB.
        out.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
        out.extend_from_slice(part.as_bytes());
    }
    out
}
