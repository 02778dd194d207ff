//! Keeps a lane's buffer filled: claims in batches, paces itself when there is little to do, and asks to be rung for only
//! when there is nothing.
//!
//! How many jobs are claimed ahead follows how fast they go: some tens of milliseconds of work, and never fewer than
//! there are slots. More would make a quiet tenant wait behind a flood that was claimed before it came; fewer would let
//! fast jobs wait for the database.
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use reeve_jobs::{
    job::Outcome,
    queue::{Lane, Queue},
};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::{attempt::Job, lease::Leases, outcome::settlement, settler::Settler};

/// Jobs in a buffer, at most, however fast they go.
pub const BUFFER_MAX: usize = 1_000;
/// How much work is claimed ahead.
const AHEAD: Duration = Duration::from_millis(25);
/// After this long without a job the claimer asks to be rung for.
const IDLE_AFTER: Duration = Duration::from_millis(150);
/// A request to be rung for holds this long; renewed at half of it.
const BELL_SECS: f64 = 30.0;

/// What a claimer needs.
pub struct Claimer<Q> {
    pub queue: Q,
    pub lane: Lane,
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

/// Jobs started per second, lately.
struct Pace {
    since: Instant,
    started: usize,
    per_sec: f64,
}

impl Pace {
    fn note(&mut self, started: usize, now: Instant) {
        self.started += started;
        let spent = (now - self.since).as_secs_f64();
        if spent >= 0.01 {
            let rate = usize_to_f64(self.started) / spent;
            self.per_sec = if self.per_sec == 0.0 { rate } else { 0.5 * self.per_sec + 0.5 * rate };
            (self.since, self.started) = (now, 0);
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "counts of jobs, far below 2^52")]
fn usize_to_f64(n: usize) -> f64 {
    n as f64
}

impl<Q: Queue> Claimer<Q> {
    /// Runs until `stop`, or until the buffer's other end is gone.
    pub async fn run(self, buffer: mpsc::Sender<Job>, room: Arc<Semaphore>) {
        let mut cursor = random_cursor();
        let mut pace = Pace { since: Instant::now(), started: 0, per_sec: 0.0 };
        let mut last_job = Instant::now();
        let mut faults = 0_u32;
        let mut waited: Option<Instant> = None;
        loop {
            let Some(want) = self.wait_for_room(&room, &pace).await else { return };
            let begun = Instant::now();
            // Never dropped half-way: a claim that the server carried out must be seen to its end.
            let claim = match self.queue.claim(&self.lane, want, &self.worker, &cursor, self.leases.duration).await {
                Ok(claim) => claim,
                Err(error) => {
                    tracing::warn!(%error, queue = self.lane.queue, "claim failed; trying again");
                    faults = (faults + 1).min(6);
                    if self.pause(Duration::from_millis(50 << faults)).await.is_none() {
                        return;
                    }
                    continue;
                }
            };
            faults = 0;
            cursor = claim.cursor;
            let got = claim.jobs.len();
            pace.note(got, begun);
            if got > 0 {
                last_job = Instant::now();
                if waited.take().is_some() {
                    self.quietly(self.queue.stop_waiting(&self.lane).await);
                }
                if !self.hand_over(claim.jobs, begun, &buffer, &room).await {
                    return;
                }
                continue;
            }
            if self.idle(last_job, &mut waited).await.is_none() {
                return;
            }
        }
    }

    /// Waits until half of what should be buffered is free, and says how many to claim.
    async fn wait_for_room(&self, room: &Semaphore, pace: &Pace) -> Option<usize> {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped right after")]
        let ahead = (pace.per_sec * AHEAD.as_secs_f64()) as usize;
        let target = ahead.clamp(self.slots, BUFFER_MAX);
        let buffered_max = target / 2;
        loop {
            let free = room.available_permits();
            let buffered = BUFFER_MAX - free.min(BUFFER_MAX);
            if buffered <= buffered_max {
                return if self.stop.is_cancelled() { None } else { Some(target - buffered) };
            }
            // Permits come back one by one as jobs start.
            let needed = u32::try_from(BUFFER_MAX - buffered_max).unwrap_or(1);
            let freed = self.stop.run_until_cancelled(room.acquire_many(needed)).await?;
            drop(freed.ok()?);
        }
    }

    async fn hand_over(
        &self,
        claimed: Vec<reeve_jobs::job::ClaimedJob>,
        begun: Instant,
        buffer: &mpsc::Sender<Job>,
        room: &Arc<Semaphore>,
    ) -> bool {
        let leases = self.leases.hold(&claimed, begun);
        let mut open = true;
        for (claimed, lease) in claimed.into_iter().zip(leases) {
            // Never more than the room that was waited for.
            let place = room.clone().try_acquire_owned().ok();
            let job = Job::new(claimed, lease, place);
            if let Err(back) = buffer.send(job).await {
                open = false;
                let job = back.0;
                self.settler.settle(settlement(&job.claimed, job.lease.token, &Outcome::Release, 0.0), None);
            }
        }
        open
    }

    /// Nothing was there: look again soon, then less often, then ask to be rung for.
    async fn idle(&self, last_job: Instant, waited: &mut Option<Instant>) -> Option<()> {
        let quiet = last_job.elapsed();
        if quiet < IDLE_AFTER {
            // 1 ms at first, growing with the silence to some 30 ms.
            return self.pause((quiet / 5).max(Duration::from_millis(1))).await;
        }
        let asked = waited.is_some_and(|at| at.elapsed().as_secs_f64() < BELL_SECS / 2.0);
        if !asked {
            self.quietly(self.queue.wait_for_jobs(&self.lane, BELL_SECS).await);
            *waited = Some(Instant::now());
            // One more look: a job may have been committed before the request was.
            return Some(());
        }
        self.pause(self.poll).await
    }

    async fn pause(&self, at_most: Duration) -> Option<()> {
        self.stop
            .run_until_cancelled(async {
                tokio::select! {
                    () = self.bell.notified() => {}
                    () = tokio::time::sleep(at_most) => {}
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
