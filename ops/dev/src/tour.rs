//! What `reeve-dev up` does with a fresh stack: make it ready before the programs start, show it once they run.
//!
//! For now it prints the addresses. The migrations, the sample and the tour proper go into the two functions below.

use std::io;

use crate::stack::{Stack, StackError};
use crate::terminal;

/// Why the tour broke off.
#[derive(Debug, thiserror::Error)]
pub enum TourError {
    /// The stack refused.
    #[error(transparent)]
    Stack(#[from] StackError),
    /// Nobody reads what is printed.
    #[error("cannot print: {0}")]
    Print(#[from] io::Error),
}

/// Before the programs start. The place to apply the migrations, then [`Stack::set_role_passwords`] (the roles have none
/// until then, so no program could log in), then to load the sample.
///
/// # Errors
/// [`TourError`].
pub async fn prepare(stack: &Stack) -> Result<(), TourError> {
    terminal::line(format_args!("The stack is up in {}", stack.dir.display()))?;
    Ok(())
}

/// Once the programs run. The place for the tour; prints where everything is, without secrets.
///
/// # Errors
/// [`TourError`].
pub async fn run(stack: &Stack) -> Result<(), TourError> {
    terminal::line(format_args!("  PostgreSQL  127.0.0.1:{}, database reeve", stack.postgres.port()))?;
    terminal::line(format_args!("  Redis       127.0.0.1:{}", stack.redis.port()))?;
    terminal::line(format_args!("  S3          {}", stack.s3.endpoint))?;
    terminal::line(format_args!("  SMTP        {}, mails in {}", stack.mail.address, stack.mail.dir.display()))?;
    terminal::line(format_args!("  Logs        {}", stack.dir.join("log").display()))?;
    terminal::line(format_args!("  Variables   source {}", stack.env_file().display()))?;
    Ok(())
}
