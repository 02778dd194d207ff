//! Keeps a lane's buffer filled: claims in batches, paces itself when there is little to do, and asks to be rung for only
//! when there is nothing.
//!
//! How many jobs are claimed ahead is learnt: just enough that the slots do not run dry while a claim is under way. More
//! would make a quiet tenant wait long for the next claim; fewer would let fast jobs wait for the database. The pace of the
//! jobs tells how many, as long as there are enough: where the buffer ran dry the pace is what the buffer let it be.
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use reeve_jobs::{
    job::Outcome,
    queue::{Claim, Lane, Queue},
    tenant::Directory,
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{attempt::Job, buffer::Buffer, lease::Leases, outcome::settlement, settler::Settler};

/// Jobs in a buffer, at most, however fast they go.
pub const BUFFER_MAX: usize = 1_000;
/// After this long without a job the claimer asks to be rung for.
const IDLE_AFTER: Duration = Duration::from_millis(10);
/// Jobs that are claimed wait this long at most for their tenants to be looked up together.
const LOOK_UP_MAX: Duration = Duration::from_secs(1);
/// A request to be rung for holds this long; renewed at half of it.
const BELL_SECS: f64 = 30.0;

/// What a claimer needs.
#[derive(Clone)]
pub struct Claimer<Q> {
    pub queue: Q,
    pub lane: Lane,
    pub directory: Directory,
    pub worker: Arc<str>,
    pub slots: usize,
    /// The longest wait between two looks while idle.
    pub poll: Duration,
    pub leases: Leases,
    pub settler: Settler,
    pub bell: Arc<Notify>,
    pub stop: CancellationToken,
}

impl<Q> std::fmt::Debug for Claimer<Q> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Claimer").field("lane", &self.lane).field("slots", &self.slots).finish_non_exhaustive()
    }
}

/// How many jobs to have claimed and not started.
#[derive(Debug)]
struct Ahead {
    target: usize,
    least: usize,
}

impl Ahead {
    fn new(slots: usize) -> Self {
        let least = slots.clamp(1, BUFFER_MAX);
        Self { target: least, least }
    }

    /// After a claim that brought all it was asked for: of `before` jobs in the buffer `left` were still there when it came.
    ///
    /// A claim begins when half is gone. With four times as many as start during a claim, half of what was there is left
    /// when the next comes, and claims are under way half of the time: a quiet tenant waits two claims' time on average.
    fn learn(&mut self, before: usize, left: usize) {
        let wanted = 4 * before.saturating_sub(left);
        if left == 0 {
            self.target = (self.target * 2).min(BUFFER_MAX);
        } else if wanted < self.target {
            // Half of the way, so that one quick claim does not dry the buffer.
            self.target = self.target.midpoint(wanted).max(self.least);
        }
    }
}

/// A request to be rung for.
#[derive(Debug)]
struct Request {
    at: Instant,
    /// Since when requests have followed one another with nobody ringing.
    first: Instant,
    /// Somebody rang. Another worker may have taken the job, and the bell down.
    rung: bool,
}

impl<Q: Queue> Claimer<Q> {
    /// Runs until `stop`, or until the buffer is closed.
    pub async fn run(self, buffer: Arc<Buffer>) {
        let mut cursor = random_cursor();
        let mut ahead = Ahead::new(self.slots);
        let mut last_job = Instant::now();
        let mut faults = 0_u32;
        let mut waited: Option<Request> = None;
        loop {
            let Some(want) = self.wait_for_room(&buffer, ahead.target).await else { return };
            let begun = Instant::now();
            let Some(claim) = self.claim(want, &cursor).await else {
                faults = (faults + 1).min(6);
                if self.pause(Duration::from_millis(50 << faults)).await.is_none() {
                    return;
                }
                continue;
            };
            faults = 0;
            cursor = claim.cursor;
            let got = claim.jobs.len() + claim.broken.len();
            for broken in claim.broken {
                self.settler.settle(broken, None);
            }
            if got >= want {
                ahead.learn(ahead.target - want, buffer.len());
            }
            if got > 0 {
                last_job = Instant::now();
                if waited.take().is_some() {
                    self.quietly(self.queue.stop_waiting(&self.lane).await);
                }
                self.look_up_tenants(&claim.jobs).await;
                if !self.hand_over(claim.jobs, begun, &buffer) {
                    return;
                }
                continue;
            }
            if claim.more && !self.stop.is_cancelled() {
                // Only tenants that may not run now were looked at; somebody behind them may.
                continue;
            }
            if self.idle(last_job, &mut waited).await.is_none() {
                return;
            }
        }
    }

    /// `None` after a fault, which is logged here. Given up only when nothing it brought could be run any more: a claim
    /// that the server carried out should be seen to its end.
    async fn claim(&self, want: usize, cursor: &str) -> Option<Claim> {
        let lease = self.leases.duration;
        match tokio::time::timeout(lease, self.queue.claim(&self.lane, want, &self.worker, cursor, lease)).await {
            Ok(Ok(claim)) => return Some(claim),
            Ok(Err(error)) => tracing::warn!(%error, queue = self.lane.queue, "claim failed; trying again"),
            Err(_) => tracing::warn!(queue = self.lane.queue, "a claim took longer than a lease; trying again"),
        }
        None
    }

    /// Asks the directory of all tenants of a claim at once. Each attempt asks it again and decides by the answer; here
    /// only its memory is filled, so a fault is left for the attempt to meet. A lone tenant's attempt asks as quickly.
    async fn look_up_tenants(&self, claimed: &[reeve_jobs::job::ClaimedJob]) {
        if claimed.len() > 1
            && let Ok(Err(error)) =
                tokio::time::timeout(LOOK_UP_MAX, self.directory.prefetch(claimed.iter().map(|job| &job.tenant))).await
        {
            tracing::debug!(%error, "the tenants of a claim could not be looked up together");
        }
    }

    /// Waits until half of what should be buffered is free, and says how many to claim.
    async fn wait_for_room(&self, buffer: &Buffer, target: usize) -> Option<usize> {
        let buffered = self.stop.run_until_cancelled(buffer.drained_to(target / 2)).await?;
        if self.stop.is_cancelled() { None } else { Some(target - buffered) }
    }

    /// False when the buffer is closed: then the jobs are given back.
    fn hand_over(&self, claimed: Vec<reeve_jobs::job::ClaimedJob>, begun: Instant, buffer: &Buffer) -> bool {
        let leases = self.leases.hold(&claimed, begun);
        let mut open = true;
        for (claimed, lease) in claimed.into_iter().zip(leases) {
            if let Err(job) = buffer.push(Job::new(claimed, lease)) {
                open = false;
                self.settler.settle(settlement(&job.claimed, job.lease.token, &Outcome::Release, 0.0), None);
            }
        }
        open
    }

    /// Nothing was there: look again soon, then less often, then ask to be rung for.
    async fn idle(&self, last_job: Instant, waited: &mut Option<Request>) -> Option<()> {
        let quiet = last_job.elapsed();
        if quiet < IDLE_AFTER {
            // 1 ms at first, growing with the silence to 2 ms.
            return self.pause((quiet / 5).max(Duration::from_millis(1))).await.map(drop);
        }
        // Any worker takes the bell of its lane down, for all: hence anew at each look of a long silence, which changes
        // nothing where the bell still hangs.
        let holds = Duration::from_secs_f64(BELL_SECS / 2.0).min(self.poll);
        match waited.as_mut().filter(|request| !request.rung && request.at.elapsed() < holds) {
            None => {
                self.quietly(self.queue.wait_for_jobs(&self.lane, BELL_SECS).await);
                let at = Instant::now();
                let first = waited.take().filter(|request| !request.rung).map_or(at, |request| request.first);
                *waited = Some(Request { at, first, rung: false });
                // One more look: a job may have been committed before the request was.
                Some(())
            }
            Some(request) => {
                // An enqueuer that looked at the bell before it was set may commit only now, and rings nobody: soon after
                // the first request it is worth looking by oneself, ever less.
                let wait = (request.first.elapsed() / 2).max(Duration::from_millis(1)).min(self.poll);
                request.rung = self.pause(wait).await?;
                Some(())
            }
        }
    }

    /// Whether it was ended by the bell; `None` when all ends.
    async fn pause(&self, at_most: Duration) -> Option<bool> {
        self.stop
            .run_until_cancelled(async {
                tokio::select! {
                    () = self.bell.notified() => true,
                    () = tokio::time::sleep(at_most) => false,
                }
            })
            .await
    }

    fn quietly(&self, result: Result<(), reeve_jobs::queue::QueueError>) {
        if let Err(error) = result {
            tracing::debug!(%error, queue = self.lane.queue, "the doorbell could not be set; polling goes on");
        }
    }
}

/// Each worker begins its round of the tenants elsewhere.
fn random_cursor() -> String {
    String::from(char::from(rand::random_range(b'0'..=b'z')))
}

#[cfg(test)]
mod tests {
    use super::{Ahead, BUFFER_MAX};

    #[test]
    fn a_dry_buffer_grows_and_a_full_one_shrinks_within_bounds() {
        let mut ahead = Ahead::new(10);
        for _ in 0..20 {
            ahead.learn(ahead.target / 2, 0);
        }
        assert_eq!(ahead.target, BUFFER_MAX);
        for _ in 0..100 {
            ahead.learn(BUFFER_MAX / 2, BUFFER_MAX / 2);
        }
        assert_eq!(ahead.target, 10);
        assert_eq!(Ahead::new(0).target, 1);
    }

    /// However large a slow minute had made it.
    #[test]
    fn the_buffer_soon_holds_four_times_what_starts_during_a_claim() {
        let mut ahead = Ahead { target: BUFFER_MAX, least: 10 };
        let claims = (0..20).take_while(|_| {
            let before = ahead.target / 2;
            ahead.learn(before, before - 15);
            ahead.target > 4 * 15 + 5
        });
        assert!(claims.count() < 10);
        for _ in 0..20 {
            let before = ahead.target / 2;
            ahead.learn(before, before - 15);
        }
        assert!((4 * 15..=4 * 15 + 1).contains(&ahead.target), "{}", ahead.target);
    }
}
