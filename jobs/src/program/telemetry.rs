//! Logs: JSON for machines, plain lines for a terminal. Filtered by `REEVE_LOG` (default `info`).
use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

#[derive(Debug, thiserror::Error)]
#[error("REEVE_LOG is not a log filter: {0}; try `info` or `info,reeve_worker=debug`")]
pub struct LogError(String);

/// Starts logging to standard error. A second call does nothing.
pub fn start() -> Result<(), LogError> {
    let filter = match std::env::var("REEVE_LOG") {
        Ok(text) => EnvFilter::try_new(text).map_err(|error| LogError(error.to_string()))?,
        Err(_) => EnvFilter::new("info,sqlx=warn"),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Set already: a test harness, or a second call. Logging goes on there.
    let _ = if std::io::stderr().is_terminal() {
        builder.try_init()
    } else {
        builder.json().flatten_event(true).try_init()
    };
    Ok(())
}
