//! The catalogue: what every table and column of the app means to Reeve.
//!
//! ```text
//!   pg_catalog ──► introspect::Schema ──┬──► draft (a first catalogue.toml) ──► a person ──► catalogue.toml
//!                                       │                                                       │ load
//!                                       └──► check ◄── model::Catalogue ◄───────────────────────┘
//!                                              └── order (delete plan), rls (policies), graph
//! ```
//! All duties read this one file and none knows a table by name. Names that come out of it reach SQL only through
//! [`name`], which quotes them. Nothing here changes a database: `rls` and `order` write SQL for others to run.
pub mod check;
pub mod draft;
pub mod draft_text;
pub mod editor;
pub mod graph;
mod guess;
pub mod introspect;
pub mod load;
pub mod model;
pub mod name;
pub mod order;
mod raw;
pub mod rls;
pub mod route;
pub mod rows;

pub use introspect::{Schema, introspect};
pub use model::Catalogue;
pub use name::TableName;

#[cfg(test)]
mod check_tests;
#[cfg(test)]
mod draft_tests;
#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod lockout_tests;
#[cfg(test)]
mod order_tests;
#[cfg(test)]
mod own_tests;
#[cfg(test)]
mod proof;
#[cfg(test)]
mod proof_tests;
#[cfg(test)]
mod rls_tests;
#[cfg(test)]
mod rows_tests;
