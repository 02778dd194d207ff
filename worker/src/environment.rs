//! Everything a duty may touch. Built once by `main` and handed to each job; nothing is global.
use std::sync::Arc;

use reeve_jobs::{catalogue::Catalogue, clock::SharedClock, seal::Keyring, tenant::Directory};

use crate::{
    clients::http::{UrlPolicy, WebhookClient},
    duties::rekey::sweep,
};

/// Clones share everything.
#[derive(Debug, Clone)]
pub struct Environment {
    pub directory: Directory,
    pub keyring: Keyring,
    pub webhooks: WebhookClient,
    pub url_policy: Arc<UrlPolicy>,
    /// Ended deliveries are kept this long.
    pub webhook_keep_days: u16,
    /// What the app's tables and Reeve's own mean.
    pub catalogue: Arc<Catalogue>,
    /// How values are brought under a new key.
    pub rekey: sweep::Settings,
    pub clock: SharedClock,
}
