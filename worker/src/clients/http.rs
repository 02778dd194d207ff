//! The one door through which requests go to addresses that tenants chose.
//!
//! Flow: an [`EndpointUrl`] (checked when it was parsed) → its name is resolved by our own resolver, every answer is
//! judged, and the connection goes to the judged addresses only, so no second lookup can point it elsewhere → one POST →
//! the head and at most `response_bytes_max` of the body are read → [`Sent`] says what came of it.
//!
//! Everything a receiver can do is bounded: one deadline covers lookup, connect, TLS, head and body, and a body that is
//! too long costs it the connection. A 2xx head is the receiver's word that it has the message: a body that then breaks
//! off or runs over the limit takes nothing back, but one that is still coming at the deadline is a time-out.
//!
//! What a tenant may read never tells a closed port from a filtered one, nor a name that nobody has from one that leads
//! inside: all four read as "could not be reached". So nothing that happens before a connection stands counts as a
//! time-out. `duration` is not covered by that promise: show it to tenants for answered requests only.
//!
//! Deliberately absent: retries, redirects, cookies, decompression, and a proxy taken from the environment.

mod endpoint_url;
mod names;
mod retry_after;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use reqwest::{
    StatusCode,
    header::{HeaderMap, RETRY_AFTER},
    redirect,
};
use tokio::time::Instant;

use super::address::{self, AddressPolicy, AddressRefused};
pub use endpoint_url::{EndpointUrl, URL_CHARS_MAX, UrlPolicy, UrlRefused};
pub use names::{LookupFault, Names, SystemNames};
pub use retry_after::parse as parse_retry_after;

const USER_AGENT: &str = concat!("Reeve/", env!("CARGO_PKG_VERSION"));
const RESPONSE_HEADERS_MAX: usize = 100;
const RESPONSE_HEADER_BYTES_MAX: u32 = 64 * 1024;
/// What an HTTP/2 receiver may send before it is read: bounds the memory, not the answer.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;

/// The limits of a [`WebhookClient`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpPolicy {
    /// For one send, from lookup to the end of the body. Longer than `connect_timeout`.
    pub total_timeout: Duration,
    /// For lookup, connect and TLS together.
    pub connect_timeout: Duration,
    /// Bytes of a body that are read; at the limit the connection is dropped.
    pub response_bytes_max: u32,
    /// The longest wait that a receiver can ask for.
    pub retry_after_max: Duration,
    /// Connections kept open to one host between sends, and for how long.
    pub idle_connections_per_host_max: usize,
    pub idle_timeout: Duration,
    pub address: AddressPolicy,
}

impl Default for HttpPolicy {
    fn default() -> Self {
        Self {
            total_timeout: Duration::from_secs(15),
            connect_timeout: Duration::from_secs(5),
            response_bytes_max: 64 * 1024,
            retry_after_max: Duration::from_secs(6 * 3_600),
            idle_connections_per_host_max: 8,
            idle_timeout: Duration::from_secs(30),
            address: AddressPolicy::default(),
        }
    }
}

/// Why a [`WebhookClient`] could not be made.
#[derive(Debug, thiserror::Error)]
pub enum HttpClientError {
    #[error("the webhook connect time-out must be longer than zero and shorter than the total time-out")]
    Timeouts,
    #[error("the system's resolver settings (resolv.conf) cannot be read: {0}")]
    Resolver(#[from] LookupFault),
    #[error("the HTTP client cannot be built (are CA certificates installed?): {0}")]
    Build(#[source] reqwest::Error),
}

/// What came of one send. The names are those of the attempt log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendResult {
    /// Answered 2xx.
    Delivered,
    /// Answered, with neither 2xx nor 3xx.
    RefusedStatus,
    /// Answered 3xx, which was not followed.
    Redirected,
    /// Connected, but the answer was not whole by the deadline.
    TimedOut,
    /// No HTTP answer: no such name, no connection, no TLS, or the connection broke.
    Unreachable,
    /// The endpoint's name or address leads to where tenants' requests may not go.
    AddressRefused,
}

impl SendResult {
    /// The class, as it is stored. For operators: it tells `unreachable` from `address_refused`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::RefusedStatus => "refused_status",
            Self::Redirected => "redirected",
            Self::TimedOut => "timed_out",
            Self::Unreachable => "unreachable",
            Self::AddressRefused => "address_refused",
        }
    }

    /// What a tenant may read. Unreachable and refused addresses read the same, so that nobody maps a network with it.
    pub const fn tenant_text(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::RefusedStatus => "the endpoint answered, but not with a status of 200 to 299",
            Self::Redirected => {
                "the endpoint answered with a redirect, which is never followed: register the final address"
            }
            Self::TimedOut => "the endpoint took too long to answer: answer first, then do the work",
            Self::Unreachable | Self::AddressRefused => {
                "the endpoint could not be reached: check that its name leads to a public address, and that it answers there"
            }
        }
    }
}

/// One send, as far as it got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    pub result: SendResult,
    /// Set whenever a head was read, also when `result` is `TimedOut`.
    pub status: Option<u16>,
    /// What the receiver asked for, at any status; never over the policy's `retry_after_max`.
    pub retry_after: Option<Duration>,
    /// Bytes of the body that were read, never over the policy's `response_bytes_max`.
    pub response_bytes: u32,
    pub duration: Duration,
}

/// Sends to tenants' endpoints. Cheap to clone; clones share their connections.
#[derive(Debug, Clone)]
pub struct WebhookClient {
    client: reqwest::Client,
    policy: HttpPolicy,
}

/// What a send had learnt when it ended, or when the deadline cut it.
#[derive(Default)]
struct Seen {
    head: Option<(StatusCode, HeaderMap)>,
    response_bytes: u32,
}

impl WebhookClient {
    /// Makes a client that resolves names as the system is set up to.
    ///
    /// # Errors
    /// Time-outs that make no sense, unreadable resolver settings, or no CA certificates.
    pub fn new(policy: HttpPolicy) -> Result<Self, HttpClientError> {
        let names = SystemNames::new(policy.connect_timeout)?;
        Self::with_names(policy, Arc::new(names))
    }

    /// Makes a client that resolves names through `names`; what they answer is judged all the same.
    ///
    /// # Errors
    /// As [`Self::new`].
    #[allow(clippy::disallowed_methods, reason = "this is the one outbound HTTP door")]
    pub fn with_names(policy: HttpPolicy, names: Arc<dyn Names>) -> Result<Self, HttpClientError> {
        // Else a connection attempt could outlast the deadline and read as a time-out, which tells filtered from closed.
        if policy.connect_timeout.is_zero() || policy.connect_timeout >= policy.total_timeout {
            return Err(HttpClientError::Timeouts);
        }
        let client = reqwest::Client::builder()
            .user_agent(USER_AGENT)
            .redirect(redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .no_proxy()
            // Said although the features are off: another crate of the build may turn one on.
            .no_gzip()
            .no_brotli()
            .no_zstd()
            .no_deflate()
            .connect_timeout(policy.connect_timeout)
            .pool_idle_timeout(policy.idle_timeout)
            .pool_max_idle_per_host(policy.idle_connections_per_host_max)
            .http1_max_headers(RESPONSE_HEADERS_MAX)
            .http2_max_header_list_size(RESPONSE_HEADER_BYTES_MAX)
            .http2_initial_stream_window_size(STREAM_WINDOW_BYTES)
            .http2_initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .dns_resolver(names::JudgedNames::new(names, policy.address))
            .build()
            .map_err(HttpClientError::Build)?;
        Ok(Self { client, policy })
    }

    /// POSTs `body` once, by `deadline` or the policy's `total_timeout` from now, whichever is sooner.
    ///
    /// `now` is the wall clock at the call: what a `Retry-After` date is measured against. Leave at least the policy's
    /// `connect_timeout` before `deadline`: a cut that early reads as `Unreachable`, since it may have come while
    /// connecting. Never fails: what went wrong is the result.
    pub async fn send(
        &self,
        url: &EndpointUrl,
        headers: HeaderMap,
        body: Bytes,
        deadline: Instant,
        now: DateTime<Utc>,
    ) -> Sent {
        let started = Instant::now();
        let deadline = deadline.min(started + self.policy.total_timeout);
        let mut seen = Seen::default();
        let ended = tokio::time::timeout_at(deadline, self.exchange(url, headers, body, &mut seen)).await;
        let duration = started.elapsed();

        let answered_class = seen.head.as_ref().map(|(status, _)| class_of(*status));
        let result = match (answered_class, ended) {
            (Some(SendResult::Delivered), Err(_elapsed)) => SendResult::TimedOut,
            (Some(class), _) => class,
            (None, Ok(result)) => result,
            (None, Err(_elapsed)) if deadline.duration_since(started) > self.policy.connect_timeout => {
                SendResult::TimedOut
            }
            (None, Err(_elapsed)) => SendResult::Unreachable,
        };
        let answered_at = now + TimeDelta::from_std(duration).unwrap_or_default();
        let retry_after = seen.head.as_ref().and_then(|(_, headers)| {
            parse_retry_after(headers.get(RETRY_AFTER)?.to_str().ok()?, answered_at, self.policy.retry_after_max)
        });
        let status = seen.head.map(|(status, _)| status.as_u16());
        Sent { result, status, retry_after, response_bytes: seen.response_bytes, duration }
    }

    /// The exchange itself, noting in `seen` what it learns. What it returns counts only if no head was seen.
    async fn exchange(&self, url: &EndpointUrl, headers: HeaderMap, body: Bytes, seen: &mut Seen) -> SendResult {
        // The resolver is not asked about literals, and the URL may have been parsed under a laxer policy.
        if let Some(addr) = url.literal()
            && let Err(refused) = address::judge(addr, self.policy.address)
        {
            tracing::debug!(%refused, "webhook not sent");
            return SendResult::AddressRefused;
        }
        let mut response = match self.client.post(url.url().clone()).headers(headers).body(body).send().await {
            Ok(response) => response,
            Err(fault) => return class_of_fault(&fault.without_url()),
        };
        seen.head = Some((response.status(), std::mem::take(response.headers_mut())));
        while seen.response_bytes < self.policy.response_bytes_max {
            let Ok(Some(chunk)) = response.chunk().await else { break };
            let chunk_bytes = u32::try_from(chunk.len()).unwrap_or(u32::MAX);
            seen.response_bytes = seen.response_bytes.saturating_add(chunk_bytes).min(self.policy.response_bytes_max);
        }
        // Dropping an unread rest closes the connection (HTTP/1.1) or resets the stream (HTTP/2).
        SendResult::Delivered
    }
}

fn class_of(status: StatusCode) -> SendResult {
    if status.is_success() {
        SendResult::Delivered
    } else if status.is_redirection() {
        SendResult::Redirected
    } else {
        SendResult::RefusedStatus
    }
}

/// The class of a send without a head. The cause itself is for operators, in the log.
fn class_of_fault(fault: &reqwest::Error) -> SendResult {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(fault);
    while let Some(inner) = cause {
        if let Some(refused) = inner.downcast_ref::<AddressRefused>() {
            tracing::debug!(%refused, "webhook not sent");
            return SendResult::AddressRefused;
        }
        cause = inner.source();
    }
    tracing::debug!(?fault, "webhook endpoint unreachable");
    SendResult::Unreachable
}

#[cfg(test)]
mod tests;
