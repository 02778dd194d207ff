//! Resolving names for the outbound door, and judging what they resolve to.
//!
//! Flow: the HTTP client asks [`JudgedNames`] for a name → [`Names`] looks up both address families → if any answer is
//! refused, the whole name is: an endpoint that mixes public and private addresses is an attack or a mistake, and picking
//! the public ones would leave the choice to chance → the client connects to the very addresses that were judged.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures::future::BoxFuture;
use hickory_resolver::{TokioResolver, config::LookupIpStrategy};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::clients::address::{AddressPolicy, judge};

const CACHED_NAMES_MAX: u64 = 4_096;
/// A name that moved must be found at its new address soon, whatever its records say.
const CACHED_FOR_MAX: Duration = Duration::from_secs(300);
const CACHED_ABSENCE_MAX: Duration = Duration::from_secs(30);

/// Why a name has no addresses. For operators: it tells more than a tenant may know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LookupFault(pub String);

/// Looks up all addresses of a name, of both families.
pub trait Names: Send + Sync + fmt::Debug {
    /// `name` is a full name: no search domain is to be tried on it.
    fn addresses(&self, name: &str) -> BoxFuture<'static, Result<Vec<IpAddr>, LookupFault>>;
}

/// Names as the system is set up to resolve them: resolv.conf and hosts file, but not its search domains.
#[derive(Clone)]
pub struct SystemNames {
    resolver: TokioResolver,
}

impl SystemNames {
    /// Reads the system's settings; each query to a name server may take `query_timeout`.
    ///
    /// # Errors
    /// The settings cannot be read.
    pub fn new(query_timeout: Duration) -> Result<Self, LookupFault> {
        let fault = |error: hickory_resolver::net::NetError| LookupFault(error.to_string());
        let mut builder = TokioResolver::builder_tokio().map_err(fault)?;
        let options = builder.options_mut();
        // Both families always: an endpoint is refused for any of its addresses, not only for those looked at first.
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        options.timeout = query_timeout;
        options.cache_size = CACHED_NAMES_MAX;
        options.positive_max_ttl = Some(CACHED_FOR_MAX);
        options.negative_max_ttl = Some(CACHED_ABSENCE_MAX);
        Ok(Self { resolver: builder.build().map_err(fault)? })
    }
}

impl fmt::Debug for SystemNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SystemNames")
    }
}

impl Names for SystemNames {
    fn addresses(&self, name: &str) -> BoxFuture<'static, Result<Vec<IpAddr>, LookupFault>> {
        // The final dot keeps the search domains out: a tenant's `db` must not become `db.internal.example`.
        let full_name = if name.ends_with('.') { name.to_owned() } else { format!("{name}.") };
        let resolver = self.resolver.clone();
        Box::pin(async move {
            let found = resolver.lookup_ip(full_name).await.map_err(|error| LookupFault(error.to_string()))?;
            Ok(found.iter().collect())
        })
    }
}

/// What the HTTP client resolves through: every answer judged, all or nothing.
pub(super) struct JudgedNames {
    names: Arc<dyn Names>,
    policy: AddressPolicy,
}

impl JudgedNames {
    pub(super) fn new(names: Arc<dyn Names>, policy: AddressPolicy) -> Self {
        Self { names, policy }
    }
}

impl Resolve for JudgedNames {
    fn resolve(&self, name: Name) -> Resolving {
        let (lookup, policy) = (self.names.addresses(name.as_str()), self.policy);
        Box::pin(async move {
            let found = lookup.await?;
            for addr in &found {
                judge(*addr, policy)?;
            }
            // Port 0 stands for the port of the URL.
            Ok(Box::new(found.into_iter().map(|addr| SocketAddr::new(addr, 0))) as Addrs)
        })
    }
}
