//! What is claimed and not started yet: handed out tenant by tenant, in turns.
//!
//! A claim is fair, but a batch of one tenant's jobs that was claimed a moment earlier would still hold up the next
//! tenant's if jobs left in the order they came. In turns, a quiet tenant's job waits for one free slot.
use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use reeve_jobs::TenantId;
use tokio::sync::Notify;

use super::attempt::Job;

/// One claimer fills it, one apalis worker empties it.
#[derive(Debug, Default)]
pub struct Buffer {
    state: Mutex<State>,
    /// Rung whenever a job leaves.
    left: Notify,
}

#[derive(Debug, Default)]
struct State {
    of_tenant: HashMap<TenantId, VecDeque<Job>>,
    /// Tenants with jobs here, the next one first.
    turns: VecDeque<TenantId>,
    len: usize,
    closed: bool,
    worker: Option<Waker>,
}

impl Buffer {
    /// Adds a job; a closed buffer hands it back.
    pub fn push(&self, job: Job) -> Result<(), Box<Job>> {
        let mut state = self.lock();
        if state.closed {
            return Err(Box::new(job));
        }
        let tenant = job.claimed.tenant.clone();
        let jobs = state.of_tenant.entry(tenant.clone()).or_default();
        jobs.push_back(job);
        if jobs.len() == 1 {
            state.turns.push_back(tenant);
        }
        state.len += 1;
        if let Some(worker) = state.worker.take() {
            worker.wake();
        }
        Ok(())
    }

    /// The next job. Once closed there is none, for ever: the worker is then about to end, and is woken by whoever ends it.
    pub fn poll_pop(&self, cx: &mut Context<'_>) -> Poll<Job> {
        let mut state = self.lock();
        match state.pop() {
            Some(job) => {
                self.left.notify_one();
                Poll::Ready(job)
            }
            None => {
                state.worker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    pub fn len(&self) -> usize {
        self.lock().len
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits until at most `len` jobs are left, and says how many.
    pub async fn drained_to(&self, len: usize) -> usize {
        loop {
            // Made before the look, so that a job that leaves in between is noticed.
            let left = self.left.notified();
            let now = self.lock().len;
            if now <= len {
                return now;
            }
            left.await;
        }
    }

    /// Takes no more; what was in it comes back.
    pub fn close(&self) -> Vec<Job> {
        let mut state = self.lock();
        state.closed = true;
        std::iter::from_fn(|| state.pop()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No change under this lock can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn pop(&mut self) -> Option<Job> {
        let tenant = self.turns.pop_front()?;
        let jobs = self.of_tenant.get_mut(&tenant)?;
        let job = jobs.pop_front();
        if jobs.is_empty() {
            self.of_tenant.remove(&tenant);
        } else {
            self.turns.push_back(tenant);
        }
        self.len -= usize::from(job.is_some());
        job
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use reeve_jobs::job::{ClaimedJob, JobId, LeaseToken};

    use super::*;
    use crate::runtime::lease::Lease;

    fn job(tenant: &str) -> Job {
        let token = LeaseToken(uuid::Uuid::new_v4());
        let claimed = ClaimedJob {
            id: JobId(uuid::Uuid::now_v7()),
            tenant: tenant.parse().expect("an id"),
            kind: "fleet.probe".to_owned(),
            payload: serde_json::Value::Null,
            attempt: 1,
            attempts_max: 1,
            rescues: 0,
            traceparent: None,
            lease_token: token,
            proof: reeve_jobs::tenant::Proof::none(),
        };
        Job::new(claimed, Lease::new(token))
    }

    #[test]
    fn a_job_that_comes_behind_a_flood_leaves_second() {
        let buffer = Buffer::default();
        for tenant in ["flood", "flood", "flood", "quiet"] {
            buffer.push(job(tenant)).expect("open");
        }
        let mut order = Vec::new();
        while let Poll::Ready(job) = buffer.poll_pop(&mut Context::from_waker(Waker::noop())) {
            order.push(job.claimed.tenant.to_string());
        }
        assert_eq!(order, ["flood", "quiet", "flood", "flood"]);
    }

    #[test]
    fn a_closed_buffer_gives_all_back_and_takes_no_more() {
        let buffer = Buffer::default();
        buffer.push(job("a")).expect("open");
        buffer.push(job("b")).expect("open");
        assert_eq!(buffer.close().len(), 2);
        assert!(buffer.push(job("a")).is_err());
        assert!(buffer.poll_pop(&mut Context::from_waker(Waker::noop())).is_pending());
    }
}
