//! How a job is done. One process is a [`Fleet`]: a worker per lane (queue and region), and three services that all of
//! them share: the leases and their renewal, the settler, the doorbell.
//!
//! ```text
//!   claimer ──► buffer ──► apalis worker ──► layers of attempt.rs ──► duty
//!      │                        │                                       │
//!      └── Leases (renewal) ◄───┴───────────── outcome ◄────────────────┘
//!                  └── Settler ──► reeve.settle, in batches, fenced
//! ```
//! apalis gives the worker, the monitor and the layers. Everything that touches the database runs in tasks of its own,
//! because apalis ends a worker, and drops its running jobs, on any error of its backend, and stops polling a backend
//! while all slots are busy.
pub mod attempt;
pub mod backend;
pub mod backoff;
pub mod buffer;
pub mod claimer;
pub mod doorbell;
pub mod fleet;
pub mod lease;
pub mod outcome;
pub mod progress;
pub mod settler;

pub use attempt::{Handler, Job};
pub use fleet::{Fleet, FleetConfig};
pub use progress::Progress;
