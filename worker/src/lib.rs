//! How jobs are done: the duties, the runtime that drives them, and the only doors through which they reach outside.

pub mod clients;
pub mod duties;
pub mod runtime;
