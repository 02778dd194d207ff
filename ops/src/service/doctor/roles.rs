//! What Reeve's roles are, and what they own: told from the faults that every program looks for at its start.
use std::collections::BTreeSet;

use reeve_jobs::program::soundness::Fault;

use super::Check;

/// No role may stand above row-level security or have another program's rights: not Reeve's own, nor the one that this
/// connection uses.
pub(super) fn roles(faults: &[Fault]) -> Check {
    let ours = |fault: &&Fault| {
        matches!(
            fault,
            Fault::Attribute { .. } | Fault::OwnerLogsIn { .. } | Fault::Foreign { .. } | Fault::Stranger { .. }
        )
    };
    of(
        "roles",
        faults.iter().filter(ours),
        "none is a superuser, none bypasses row-level security, each has its own rights only",
    )
}

/// An owner may switch row-level security off, so no role that logs in may own anything here, itself or through another.
pub(super) fn ownership(faults: &[Fault]) -> Check {
    let ours = |fault: &&Fault| matches!(fault, Fault::Owns { .. } | Fault::Member { .. });
    of("ownership", faults.iter().filter(ours), "roles that log in own nothing in schema reeve")
}

fn of<'a>(name: &'static str, faults: impl Iterator<Item = &'a Fault> + Clone, sound: &str) -> Check {
    let found: Vec<_> = faults.clone().map(ToString::to_string).collect();
    if found.is_empty() {
        return Check::ok(name, sound);
    }
    let fixes: BTreeSet<_> = faults.map(Fault::fix).collect();
    Check::fail(name, found.join("; "), fixes.into_iter().collect::<Vec<_>>().join(" "))
}
