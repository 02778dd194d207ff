//! Whose job it is, and the one way to that tenant's rows.
//!
//! [`TenantContext`] is what a job claims; [`Directory`] knows where that tenant's rows are and whether it lives;
//! [`Scope`] opens its database, sets the context there, reads it back and asserts it. The database's row-level security
//! and the scope's own checks are two layers: either alone refuses.
#[cfg(feature = "program")]
pub mod breakglass;
pub mod context;
#[cfg(feature = "program")]
pub mod databases;
pub mod directory;
#[cfg(feature = "program")]
pub mod flags;
pub mod identity;
#[cfg(feature = "program")]
pub mod inspect;
#[cfg(feature = "program")]
pub mod operate;
#[cfg(feature = "program")]
pub mod placements;
pub mod region;
pub mod scope;
#[cfg(feature = "program")]
pub mod session;

pub use context::{InvalidTenantId, Proof, TenantContext, TenantId};
pub use directory::{Directory, DirectoryError, Placement, TenantEntry, TenantState};
pub use scope::{FAULT_PAUSE, Rows, Scope, ScopeError, TenantRow, is_passing_fault};
