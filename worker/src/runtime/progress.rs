//! How far a running job has come, as its handler says: so many of so many, and the name of the step.
//!
//! Saying it changes a cell in memory and costs nothing else, so a handler may say it for each row. Once a second the fleet
//! stores what changed, all jobs in one statement, fenced by the lease tokens. When a job has settled its row is taken
//! away with the next such statement; nobody is shown it in between, since it names a lease that is over.
//!
//! A step's name is a constant of the program, so that no tenant's data can come out here. Nothing is decided by what is
//! reported: a report that could not be stored is stored with the next.
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use reeve_jobs::queue::Queue;
use tokio_util::sync::CancellationToken;

use super::lease::Leases;

/// How often what changed is stored.
pub const EVERY: Duration = Duration::from_secs(1);

/// What a handler has said last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Said {
    pub step: &'static str,
    pub done: u64,
    /// `None` where the handler cannot know.
    pub total: Option<u64>,
}

#[derive(Debug, Default)]
struct Cell {
    said: Option<Said>,
    stored: Option<Said>,
}

/// Given to each handler with its job. Clones speak for the same job.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    cell: Arc<Mutex<Cell>>,
}

impl Progress {
    /// Begins a step of `total` things, none of them done.
    pub fn step(&self, step: &'static str, total: Option<u64>) {
        self.lock().said = Some(Said { step, done: 0, total });
    }

    /// So many things of the step are done. Before any step nothing is said.
    pub fn done(&self, done: u64) {
        if let Some(said) = &mut self.lock().said {
            said.done = done;
        }
    }

    /// One more thing is done.
    pub fn advance(&self) {
        if let Some(said) = &mut self.lock().said {
            said.done = said.done.saturating_add(1);
        }
    }

    /// What was said since it was last stored.
    pub(super) fn news(&self) -> Option<Said> {
        let cell = self.lock();
        cell.said.filter(|said| cell.stored != Some(*said))
    }

    pub(super) fn note_stored(&self, said: Said) {
        self.lock().stored = Some(said);
    }

    /// Whether a row of this job may be in the database.
    pub(super) fn is_stored(&self) -> bool {
        self.lock().stored.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Cell> {
        // Nothing between lock and unlock can panic half-way through a change.
        self.cell.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Stores what handlers say until `done`, and then once more, to take away what is over.
pub async fn report_until(leases: Leases, queue: impl Queue, done: CancellationToken) {
    while done.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_some() {
        report_once(&leases, &queue).await;
    }
    report_once(&leases, &queue).await;
}

/// One statement, or none where nothing changed.
pub async fn report_once(leases: &Leases, queue: &impl Queue) {
    let (reports, over) = leases.unreported();
    if reports.is_empty() && over.is_empty() {
        return;
    }
    match tokio::time::timeout(leases.duration / 4, queue.report(&reports, &over)).await {
        Ok(Ok(())) => leases.note_reported(&reports, &over),
        Ok(Err(error)) => tracing::debug!(%error, jobs = reports.len(), "progress could not be stored"),
        Err(_) => tracing::debug!(jobs = reports.len(), "storing progress took too long"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_stored_is_no_news_until_it_changes() {
        let progress = Progress::default();
        progress.advance();
        assert_eq!(progress.news(), None, "no step has begun");
        progress.step("copy", Some(3));
        progress.advance();
        let said = progress.news().expect("news");
        assert_eq!(said, Said { step: "copy", done: 1, total: Some(3) });
        progress.done(2);
        progress.note_stored(said);
        assert_eq!(progress.news().map(|said| said.done), Some(2), "said while the last was being stored");
        progress.note_stored(Said { done: 2, ..said });
        assert_eq!(progress.news(), None);
    }
}
