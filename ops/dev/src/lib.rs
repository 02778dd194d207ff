//! placeholder
pub mod crm;
