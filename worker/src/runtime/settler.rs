//! Storing ends of attempts, as many per statement as came in while the last one was under way.
//!
//! A passing fault of the database is waited out: the jobs' leases go on being renewed meanwhile, so nobody else runs
//! them. A settlement that the fence refuses is dropped with a warning; whoever holds the job now settles it.
use std::{collections::HashSet, sync::Arc, time::Duration};

use reeve_jobs::{
    job::Outcome,
    queue::{Queue, QueueError, Settlement},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinHandle,
};

use super::lease::Leases;

/// Most settlements in one statement.
const BATCH_MAX: usize = 1_000;
/// Finished attempts whose settlement is not stored yet; past this no further job starts.
pub const UNSETTLED_MAX: usize = 5_000;

/// A settlement under way, with the permit that bounds how many there are.
#[derive(Debug)]
struct Message {
    settlement: Settlement,
    _permit: Option<OwnedSemaphorePermit>,
}

/// Where attempts leave their ends. Clones lead to the same task, which ends when all are gone.
#[derive(Debug, Clone)]
pub struct Settler {
    messages: mpsc::UnboundedSender<Message>,
    pub permits: Arc<Semaphore>,
}

impl Settler {
    /// Starts the task. It ends once every clone of the returned settler is dropped and all is stored.
    pub fn start(queue: impl Queue, leases: Leases) -> (Self, JoinHandle<()>) {
        let (messages, inbox) = mpsc::unbounded_channel();
        let task = tokio::spawn(run(queue, leases, inbox));
        (Self { messages, permits: Arc::new(Semaphore::new(UNSETTLED_MAX)) }, task)
    }

    pub fn settle(&self, settlement: Settlement, permit: Option<OwnedSemaphorePermit>) {
        // The task ends only after the last sender; a failed send means that it panicked, which its handle reports.
        let _ = self.messages.send(Message { settlement, _permit: permit });
    }
}

async fn run(queue: impl Queue, leases: Leases, mut inbox: mpsc::UnboundedReceiver<Message>) {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    while inbox.recv_many(&mut batch, BATCH_MAX).await > 0 {
        // What a handler settled itself has only its lease to let go.
        let mut settlements: Vec<_> =
            (batch.iter()).filter(|m| m.settlement.outcome != Outcome::SETTLED).map(|m| m.settlement.clone()).collect();
        // In the order in which renewals lock their rows, so that the two do not wait for each other.
        settlements.sort_unstable_by_key(|s| s.job);
        if !settlements.is_empty() {
            store(&queue, &settlements).await;
        }
        leases.release(batch.iter().map(|m| (m.settlement.job, m.settlement.token)));
        batch.clear();
    }
}

/// How long one settling statement may take before it is sent again: it is fenced, so a repetition changes nothing.
const PATIENCE: Duration = Duration::from_secs(15);
/// Tries in the face of faults of the database: some minutes, past any lease. By then the jobs are somebody else's.
const TRIES_MAX: u32 = 40;

async fn store(queue: &impl Queue, batch: &[Settlement]) {
    // A statement that PostgreSQL refuses for one row is halved until that row is alone.
    let mut parts = vec![batch];
    while let Some(part) = parts.pop() {
        match store_part(queue, part).await {
            Stored::Yes(stored) => warn_of_refused(part, &stored),
            Stored::Refused(error) if part.len() == 1 => {
                tracing::error!(%error, job.id = %part[0].job, outcome = part[0].outcome, "settlement refused; the job runs again");
            }
            Stored::Refused(_) => {
                let (first, second) = part.split_at(part.len() / 2);
                parts.extend([second, first]);
            }
            Stored::GivenUp => tracing::error!(jobs = part.len(), "settlements given up; these jobs run again"),
        }
    }
}

enum Stored {
    Yes(Vec<reeve_jobs::JobId>),
    Refused(QueueError),
    GivenUp,
}

async fn store_part(queue: &impl Queue, part: &[Settlement]) -> Stored {
    for fault in 0..TRIES_MAX {
        match tokio::time::timeout(PATIENCE, queue.settle(part)).await {
            Ok(Ok(stored)) => return Stored::Yes(stored),
            Ok(Err(error)) if !error.is_passing() => return Stored::Refused(error),
            Ok(Err(error)) => {
                tracing::warn!(%error, jobs = part.len(), "settlements could not be stored; trying again")
            }
            Err(_) => tracing::warn!(jobs = part.len(), "storing settlements took too long; trying again"),
        }
        tokio::time::sleep(Duration::from_millis(50 << fault.min(6))).await;
    }
    Stored::GivenUp
}

fn warn_of_refused(part: &[Settlement], stored: &[reeve_jobs::JobId]) {
    if stored.len() < part.len() {
        let stored: HashSet<_> = stored.iter().collect();
        for refused in part.iter().filter(|s| !stored.contains(&s.job)) {
            tracing::warn!(job.id = %refused.job, outcome = refused.outcome, "settlement refused: the lease was lost");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    };

    use reeve_jobs::{
        JobId,
        job::LeaseToken,
        queue::{Claim, Lane, Renewed},
    };

    use super::*;

    /// Refuses every batch that holds `bad`, and fails once in passing before anything else.
    #[derive(Clone)]
    struct Picky {
        bad: JobId,
        faults: Arc<AtomicU32>,
        stored: Arc<Mutex<Vec<JobId>>>,
    }

    impl Queue for Picky {
        async fn claim(&self, _: &Lane, _: usize, _: &str, _: &str, _: Duration) -> Result<Claim, QueueError> {
            Ok(Claim::default())
        }
        async fn mark_started(&self, _: JobId, _: LeaseToken) -> Result<bool, QueueError> {
            Ok(true)
        }
        async fn renew(&self, _: &[(JobId, LeaseToken)], _: Duration) -> Result<Vec<Renewed>, QueueError> {
            Ok(Vec::new())
        }
        async fn settle(&self, batch: &[Settlement]) -> Result<Vec<JobId>, QueueError> {
            if self.faults.fetch_add(1, Ordering::Relaxed) == 0 {
                return Err(QueueError::Database(sqlx::Error::PoolTimedOut));
            }
            if batch.iter().any(|s| s.job == self.bad) {
                return Err(QueueError::Database(sqlx::Error::RowNotFound));
            }
            let ids: Vec<_> = batch.iter().map(|s| s.job).collect();
            self.stored.lock().expect("lock").extend(&ids);
            Ok(ids)
        }
        async fn wait_for_jobs(&self, _: &Lane, _: f64) -> Result<(), QueueError> {
            Ok(())
        }
        async fn stop_waiting(&self, _: &Lane) -> Result<(), QueueError> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn one_refused_settlement_costs_the_others_of_its_batch_nothing() {
        let batch: Vec<_> = (0..9)
            .map(|_| Settlement {
                job: JobId(uuid::Uuid::now_v7()),
                token: LeaseToken(uuid::Uuid::new_v4()),
                outcome: "completed",
                delay: Duration::ZERO,
                error: None,
            })
            .collect();
        let queue = Picky { bad: batch[4].job, faults: Arc::default(), stored: Arc::default() };
        store(&queue, &batch).await;
        let mut stored = queue.stored.lock().expect("lock").clone();
        stored.sort_unstable();
        let mut expected: Vec<_> = batch.iter().map(|s| s.job).filter(|job| *job != queue.bad).collect();
        expected.sort_unstable();
        assert_eq!(stored, expected);
    }
}
