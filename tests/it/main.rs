//! The suites that see Reeve from outside: one test binary, so that there is one link.
//!
//! Each test has a database of its own, copied from a template in the cluster that `REEVE_TEST_ADMIN_URL` names
//! (`./ops/test` starts one). The programs are run as built: `cargo build --workspace --bins` first.
#![allow(clippy::disallowed_methods, reason = "tests arrange and look from outside, past the rules that they check")]

mod support;

mod architecture;
mod audit;
mod audit_signing;
mod bad_input;
mod breakglass;
mod bulk;
mod capability;
mod chaos;
mod claim;
mod claim_marks;
mod conformance;
mod doctor;
mod end_to_end;
mod enqueue;
mod flags;
mod history;
mod isolation;
mod keys;
mod kit;
mod model;
mod moves;
mod mutants;
mod peers;
mod placements;
mod plans;
mod progress;
mod providers;
mod redis_access;
mod redis_loss;
mod redis_places;
mod redis_queue;
mod redis_servers;
mod regions;
mod rekey;
mod schedulers;
mod schema;
mod scope;
mod seal_vectors;
mod settling;
mod tenants;
mod tidy;
mod window;
mod window_faults;
mod window_places;
