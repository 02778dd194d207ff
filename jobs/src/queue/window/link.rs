//! A worker's way to its window: opened when first asked for, in the background, and left alone while it does not answer.
//!
//! No claim waits for Redis longer than [`PATIENCE`], and none for a connection: until there is one there is no window. After
//! failures in a row a [`Breaker`] keeps everybody away, longer each time, and then lets one claim try.
use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{task::JoinHandle, time::Instant};

use super::{Window, WindowError};
use crate::{job::JobId, queue::Lane, redact::Redacted, tenant::databases::breaker::Breaker};

/// How long a claim waits for the window. An answer takes well under a millisecond; the work is in PostgreSQL.
pub const PATIENCE: Duration = Duration::from_millis(200);
/// The window is left alone no longer than this at a time: what a trial costs is one claim's patience.
const AWAY_MAX: Duration = Duration::from_secs(5);
/// As long as a trial may take: the connection's opening, at most.
const TRIAL: Duration = Duration::from_secs(6);

enum State {
    Closed,
    Opening(JoinHandle<Result<Window, WindowError>>),
    Open(Window),
}

struct Inner {
    state: State,
    breaker: Breaker,
    /// It was said that the window fails.
    told: bool,
}

/// See the module's head. Clones share it.
#[derive(Clone)]
pub struct Link {
    url: Arc<Redacted<String>>,
    inner: Arc<Mutex<Inner>>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

impl Link {
    /// Connects to nothing yet.
    pub fn new(url: Redacted<String>) -> Self {
        let inner = Inner { state: State::Closed, breaker: Breaker::bounded(AWAY_MAX), told: false };
        Self { url: Arc::new(url), inner: Arc::new(Mutex::new(inner)) }
    }

    /// Up to `n` ids; none when the window has none, is not there, or does not answer.
    pub async fn pop(&self, lane: &Lane, n: usize) -> Vec<JobId> {
        let Some(window) = self.window().await else { return Vec::new() };
        let popped = match tokio::time::timeout(PATIENCE, window.pop(lane, n)).await {
            Ok(popped) => popped,
            Err(_) => Err(WindowError::Late),
        };
        match popped {
            Ok(ids) => {
                self.answered();
                ids
            }
            Err(error) => {
                self.failed(&error);
                Vec::new()
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        // Each change of it is one assignment: a panic leaves nothing half done.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The window, if it is open and the breaker lets somebody pass.
    async fn window(&self) -> Option<Window> {
        let opened = {
            let mut inner = self.lock();
            if !matches!(&inner.state, State::Opening(_)) && inner.breaker.admit(Instant::now(), TRIAL).is_err() {
                return None;
            }
            match &inner.state {
                State::Open(window) => return Some(window.clone()),
                State::Closed => {
                    let url = Arc::clone(&self.url);
                    inner.state = State::Opening(tokio::spawn(async move { Window::open(url.reveal()).await }));
                    return None;
                }
                State::Opening(opening) if !opening.is_finished() => return None,
                State::Opening(_) => std::mem::replace(&mut inner.state, State::Closed),
            }
        };
        let State::Opening(opening) = opened else { return None };
        // It has finished, so nothing is waited for.
        let opened = opening.await.unwrap_or_else(|panic| Err(WindowError::Unreachable(panic.to_string())));
        match opened {
            Ok(window) => {
                self.lock().state = State::Open(window.clone());
                Some(window)
            }
            Err(error) => {
                self.failed(&error);
                None
            }
        }
    }

    fn answered(&self) {
        let mut inner = self.lock();
        inner.breaker.succeeded();
        if std::mem::take(&mut inner.told) {
            tracing::info!("the window answers again");
        }
    }

    fn failed(&self, error: &WindowError) {
        let mut inner = self.lock();
        let opened = matches!(inner.state, State::Open(_));
        if inner.breaker.failed(Instant::now(), entropy()).is_some() || !opened {
            // A connection whose end vanished without a word would stay silent: the trial gets another.
            inner.state = State::Closed;
        }
        if !std::mem::replace(&mut inner.told, true) {
            tracing::warn!(%error, "the window in Redis does not answer; claiming from PostgreSQL alone meanwhile");
        }
    }

    /// Whether there is a connection to claim by.
    pub fn is_open(&self) -> bool {
        matches!(self.lock().state, State::Open(_))
    }

    /// For how long nobody will ask Redis; `None` when the next claim does.
    pub fn shut_for(&self) -> Option<Duration> {
        self.lock().breaker.shut_for(Instant::now())
    }
}

fn entropy() -> f64 {
    rand::random_range(0.0..1.0)
}
