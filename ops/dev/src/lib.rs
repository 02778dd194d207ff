//! The development stack: everything Reeve needs from outside, started privately in one directory.
//!
//! Data flow: [`stack`] takes the directory's lock, reads or makes its secrets, then starts [`postgres`], [`redis`],
//! [`s3`] and [`mail`] and hands their addresses out as environment variables; [`supervisor`] runs Reeve's own programs
//! against them. [`process`] owns every child process, [`os`] the few calls into the kernel that need `unsafe`.
//!
//! Deliberately not here: nothing of this serves production. Everything listens on 127.0.0.1 only, in clear text.
#![allow(
    clippy::disallowed_methods,
    reason = "stands for a web app and its administrator, which keep no rules of ours"
)]

pub mod crm;
pub mod files;
pub mod lock;
pub mod mail;
pub mod os;
pub mod postgres;
pub mod process;
pub mod redis;
pub mod s3;
pub mod secrets;
pub mod stack;
pub mod supervisor;
pub mod terminal;
pub mod tour;
