//! Storing ends of attempts, as many per statement as came in while the last one was under way.
//!
//! A passing fault of the database is waited out: the jobs' leases go on being renewed meanwhile, so nobody else runs
//! them. A settlement that the fence refuses is dropped with a warning; whoever holds the job now settles it.
use std::{collections::HashSet, sync::Arc, time::Duration};

use reeve_jobs::queue::{Queue, Settlement};
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
        let settlements: Vec<_> = batch.iter().map(|m| m.settlement.clone()).collect();
        store(&queue, &settlements).await;
        leases.release(settlements.iter().map(|s| (s.job, s.token)));
        batch.clear();
    }
}

async fn store(queue: &impl Queue, batch: &[Settlement]) {
    let mut faults = 0_u32;
    let stored = loop {
        match queue.settle(batch).await {
            Ok(stored) => break stored,
            Err(error) => {
                tracing::warn!(%error, jobs = batch.len(), "settlements could not be stored; trying again");
                tokio::time::sleep(Duration::from_millis(50 << faults.min(6))).await;
                faults += 1;
                // Past any lease: the jobs are somebody else's by now, and will be done again.
                if faults > 40 {
                    tracing::error!(jobs = batch.len(), "settlements given up; these jobs run again");
                    return;
                }
            }
        }
    };
    if stored.len() < batch.len() {
        let stored: HashSet<_> = stored.into_iter().collect();
        for refused in batch.iter().filter(|s| !stored.contains(&s.job)) {
            tracing::warn!(job.id = %refused.job, outcome = refused.outcome, "settlement refused: the lease was lost");
        }
    }
}
