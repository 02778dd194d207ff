//! Everything a duty may touch. Built once by `main` and handed to each job; nothing is global.
use std::sync::Arc;

use reeve_jobs::{clock::SharedClock, seal::Keyring, tenant::Directory};

use crate::clients::http::{UrlPolicy, WebhookClient};

/// Clones share everything.
#[derive(Debug, Clone)]
pub struct Environment {
    pub directory: Directory,
    pub keyring: Keyring,
    pub webhooks: WebhookClient,
    pub url_policy: Arc<UrlPolicy>,
    /// Ended deliveries are kept this long.
    pub webhook_keep_days: u16,
    pub clock: SharedClock,
}
