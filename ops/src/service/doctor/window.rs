//! The window in Redis, where the configuration names one. Without it the fleet works on, so this is never worse than a warning.
use reeve_jobs::{queue::window::Window, redact::Redacted};

use super::Check;

/// Whether somebody answers there.
pub async fn window(url: &Redacted<String>) -> Check {
    const NAME: &str = "window";
    let answer = match Window::open(url.reveal()).await {
        Ok(window) => window.ping().await,
        Err(error) => Err(error),
    };
    match answer {
        Ok(()) => Check::ok(NAME, "Redis answers"),
        Err(error) => Check::warn(
            NAME,
            format!("{error}; jobs are claimed from PostgreSQL alone meanwhile"),
            "start Redis, or set redis_url of [ops], [worker] and [scheduler] to where it is",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::doctor::Status;

    #[tokio::test]
    async fn a_redis_that_is_not_there_is_a_warning_without_its_password() {
        let check = window(&Redacted::new("redis://u:hunter2@127.0.0.1:1".to_owned())).await;
        assert_eq!(check.status, Status::Warn);
        assert!(check.found.contains("PostgreSQL alone") && !format!("{check:?}").contains("hunter2"), "{check:?}");
        let url = std::env::var("REEVE_TEST_REDIS_URL").expect("REEVE_TEST_REDIS_URL: run `./ops/test`");
        assert_eq!(window(&Redacted::new(url)).await.status, Status::Ok);
    }
}
