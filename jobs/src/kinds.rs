//! Every kind of job: its name, queue, limits, cadence and payload, in one table.
//!
//! A new kind costs three files: its row and payload type here, its handler under `worker/src/duties/`, and its arm in
//! the exhaustive match of `worker/src/duties/mod.rs`, which does not compile without it. `reeve migrate` copies the
//! table to `reeve.kinds` and `reeve.schedules`, so that SQL from any language is checked against it; the scheduler reads
//! only those tables and knows no kind by name.
use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use uuid::Uuid;

/// What is fixed for all jobs of a kind.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Spec {
    /// `noun.verb`.
    pub name: &'static str,
    pub queue: &'static str,
    /// 1 is served first, 4 last; within one tenant. 0 is for kinds with a deadline, and for them alone.
    pub priority: i16,
    /// A job is to be started within this of when it is due. Such jobs are claimed before all others, the earliest deadline
    /// first, whoever's they are.
    pub deadline_secs: Option<i32>,
    pub attempts_max: i32,
    /// How long one attempt may run; its future is then dropped and the attempt counts as failed.
    pub budget_secs: u64,
    pub payload_bytes_max: i32,
    /// Whether it still runs for a tenant that is closing.
    pub runs_when_closing: bool,
    /// Whether an app may enqueue it itself.
    pub app_may_enqueue: bool,
    pub cadence: Option<Cadence>,
}

impl Spec {
    pub fn budget(&self) -> Duration {
        Duration::from_secs(self.budget_secs)
    }
}

/// When the scheduler makes one job per tenant.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Cadence {
    /// Five fields: minute, hour, day of month, month, day of week.
    pub cron: &'static str,
    /// Tenants are spread over this many seconds after the slot.
    pub window_secs: i32,
}

const fn daily(cron: &'static str, window_secs: i32) -> Option<Cadence> {
    Some(Cadence { cron, window_secs })
}

/// A payload type and the kind it belongs to.
pub trait Payload: Serialize + DeserializeOwned + Send + 'static {
    const KIND: Kind;
}

macro_rules! kinds {
    ($( $kind:ident($payload:ident) {
        $name:literal, queue $queue:literal, priority $priority:literal, attempts $attempts:literal,
        budget_secs $budget:literal, payload_bytes_max $bytes:literal, closing $closing:literal, app $app:literal,
        deadline_secs $deadline:expr, cadence $cadence:expr } )+) => {
        /// The kinds this build knows.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Kind { $( $kind ),+ }

        /// A kind with its decoded payload: what a handler is given.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Work { $( $kind($payload) ),+ }

        impl Kind {
            pub const ALL: &'static [Self] = &[ $( Self::$kind ),+ ];

            pub const fn spec(self) -> &'static Spec {
                match self { $( Self::$kind => const { &Spec {
                    name: $name, queue: $queue, priority: $priority, attempts_max: $attempts, budget_secs: $budget,
                    payload_bytes_max: $bytes, runs_when_closing: $closing, app_may_enqueue: $app,
                    deadline_secs: $deadline, cadence: $cadence,
                } } ),+ }
            }

            /// Decodes a stored payload. Fields that the type does not have are refused, so that a typing error in an
            /// enqueuer is found at once and not read as a default.
            pub fn decode(self, payload: serde_json::Value) -> Result<Work, serde_json::Error> {
                match self { $( Self::$kind => serde_json::from_value(payload).map(Work::$kind) ),+ }
            }
        }

        impl Work {
            pub fn kind(&self) -> Kind {
                match self { $( Self::$kind(_) => Kind::$kind ),+ }
            }
        }

        $( impl Payload for $payload { const KIND: Kind = Kind::$kind; } )+
    };
}

kinds! {
    WebhookDeliver(DeliverWebhook) { "webhook.deliver", queue "webhooks", priority 2, attempts 12,
        budget_secs 60, payload_bytes_max 256, closing false, app true, deadline_secs None, cadence None }

    WebhookPrune(PruneWebhooks) { "webhook.prune", queue "maintenance", priority 4, attempts 5,
        budget_secs 600, payload_bytes_max 64, closing true, app false, deadline_secs None,
        cadence daily("17 3 * * *", 3600) }

    KeyRotateTenant(RotateTenantKey) { "key.rotate_tenant", queue "maintenance", priority 4, attempts 20,
        budget_secs 900, payload_bytes_max 64, closing false, app false, deadline_secs None, cadence None }

    FleetProbe(ProbeFleet) { "fleet.probe", queue "probes", priority 3, attempts 3,
        budget_secs 30, payload_bytes_max 1024, closing true, app true, deadline_secs None, cadence None }
}

/// Delivers one event to one endpoint, signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeliverWebhook {
    pub delivery_id: Uuid,
}

/// Deletes this tenant's ended deliveries and events past their keep time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PruneWebhooks {}

/// Brings every sealed column of this tenant under the newest version of its key.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RotateTenantKey {
    /// Makes the next version first. Else the newest that there is will do.
    #[serde(default, skip_serializing_if = "is_false")]
    pub new_version: bool,
}

/// Does nothing but open the tenant's scope and report: shows an operator that the fleet works for this tenant.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeFleet {
    /// Kept in the job's history, so that a probe can be told from another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Works this long, to see concurrency and cancellation.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub sleep_ms: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
fn is_false(yes: &bool) -> bool {
    !*yes
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Kind {
    pub fn name(self) -> &'static str {
        self.spec().name
    }

    /// All queues that any kind uses, each once.
    pub fn queues() -> Vec<&'static str> {
        let mut queues: Vec<_> = Self::ALL.iter().map(|kind| kind.spec().queue).collect();
        queues.sort_unstable();
        queues.dedup();
        queues
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown kind {name:?}; known kinds are {}", known())]
pub struct UnknownKind {
    pub name: String,
}

fn known() -> String {
    Kind::ALL.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(", ")
}

impl FromStr for Kind {
    type Err = UnknownKind;
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.iter().copied().find(|kind| kind.name() == name).ok_or_else(|| UnknownKind { name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_noun_dot_verb_and_unique() {
        let names: HashSet<_> = Kind::ALL.iter().map(|kind| kind.name()).collect();
        assert_eq!(names.len(), Kind::ALL.len());
        for kind in Kind::ALL {
            let (noun, verb) = kind.name().split_once('.').expect("noun.verb");
            assert!([noun, verb].iter().all(|part| part.chars().all(|c| c.is_ascii_lowercase() || c == '_')), "{kind}");
            assert_eq!(kind.name().parse(), Ok(*kind));
        }
    }

    #[test]
    fn priority_0_is_for_kinds_with_a_deadline() {
        for kind in Kind::ALL {
            let spec = kind.spec();
            assert_eq!(spec.priority == 0, spec.deadline_secs.is_some(), "{kind}");
            assert!((0..=4).contains(&spec.priority), "{kind}");
        }
    }

    #[test]
    fn no_kind_allows_more_than_a_queue_carries() {
        for kind in Kind::ALL {
            let allowed = usize::try_from(kind.spec().payload_bytes_max).expect("a size");
            assert!(allowed <= crate::queue::PAYLOAD_BYTES_MAX, "{kind}: {allowed}");
        }
    }

    #[test]
    fn a_payload_with_an_unknown_field_does_not_decode() {
        let bad = serde_json::json!({"delivery_id": Uuid::nil(), "tenant": "other"});
        let said = Kind::WebhookDeliver.decode(bad).unwrap_err().to_string();
        assert!(said.contains("unknown field `tenant`"), "{said}");
    }

    #[test]
    fn an_unknown_kind_lists_the_known_ones() {
        let said = "webhook.sing".parse::<Kind>().unwrap_err().to_string();
        assert!(said.contains("webhook.sing") && said.contains("webhook.deliver"), "{said}");
    }
}
