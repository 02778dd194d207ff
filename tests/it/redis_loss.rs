//! How much of what Redis alone holds can be lost: the bound that the queue's documentation states, measured.
//!
//! With `appendfsync everysec` a call is acknowledged, then written to the append-only file, and about once a second the
//! file is put on disk. Calls that are answered while that happens are written when it is over, or after two seconds: a
//! crash of the server loses those, and a power cut all that was written since. No test can cut the power, nor tell a disk
//! to be slow: a crash is made of a copy of the file, and a power cut of the file as it was, cut off in the middle of a step.
use std::{
    collections::HashSet,
    fs,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use reeve_jobs::{JobId, queue::Queue, queue::redis::RedisQueue};

use crate::{
    redis_places::{LEASE, Place, enqueue, lane, queue, raw, written},
    support::until,
};

fn copy(from: &Path, to: &Path) {
    let status = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp starts");
    assert!(status.success());
}

/// The file that grows, of the data in this directory.
fn growing_file(data: &Path) -> std::path::PathBuf {
    let files = fs::read_dir(data.join("appendonlydir")).expect("the log's directory");
    let name = |file: fs::DirEntry| file.path();
    files
        .filter_map(Result::ok)
        .map(name)
        .find(|path| path.to_string_lossy().ends_with(".incr.aof"))
        .expect("a file that grows")
}

/// What a server that starts from this data hands out; each job whole, and none twice.
async fn handed_out(data: &Path) -> HashSet<JobId> {
    let place = Place::new();
    copy(data, &place.data());
    let server = place.start().await;
    let q = queue(&server.url(), "q").await;
    let mut there = HashSet::new();
    loop {
        let claimed = q.claim(&lane("q"), 500, "w", "", LEASE).await.expect("a claim");
        assert!(claimed.broken.is_empty(), "half a job");
        if claimed.jobs.is_empty() {
            break;
        }
        for job in claimed.jobs {
            assert!(there.insert(job.id), "twice");
        }
    }
    server.stop().await.expect("stopped");
    there
}

#[derive(Clone, Default)]
struct Acknowledged(Arc<Mutex<Vec<JobId>>>);

impl Acknowledged {
    fn all(&self) -> HashSet<JobId> {
        self.0.lock().expect("lock").iter().copied().collect()
    }

    async fn reaches(&self, n: usize) {
        until("so many are enqueued", async || self.0.lock().expect("lock").len() >= n).await;
    }
}

#[tokio::test]
async fn what_a_crash_and_a_power_cut_lose_is_what_the_documentation_says() {
    let place = Place::new();
    let server = place.start().await;
    let acknowledged = Acknowledged::default();
    let stop = Arc::new(AtomicBool::new(false));
    let (list, stopped, q) = (acknowledged.clone(), stop.clone(), queue(&server.url(), "q").await);
    let enqueuing = tokio::spawn(async move {
        while !stopped.load(Ordering::SeqCst) {
            let id = enqueue(&q, "a").await;
            list.0.lock().expect("lock").push(id);
        }
    });
    acknowledged.reaches(300).await;
    // What is on disk when the power is cut after the next sync has begun.
    let earlier = acknowledged.all();
    written(&server.url()).await;
    let on_disk = fs::metadata(growing_file(&place.data())).expect("it is there").len();
    acknowledged.reaches(earlier.len() + 300).await;
    let before = acknowledged.all();
    written(&server.url()).await;
    let crash = place.dir.path().join("crash");
    copy(&place.data(), &crash);
    acknowledged.reaches(before.len() + 300).await;
    stop.store(true, Ordering::SeqCst);
    enqueuing.await.expect("all acknowledged");
    let all = acknowledged.all();
    let power_cut = place.dir.path().join("power-cut");
    copy(&crash, &power_cut);
    // Seven bytes more, so that it ends in the middle of a step.
    let file = fs::OpenOptions::new().write(true).open(growing_file(&power_cut)).expect("opened");
    file.set_len(on_disk + 7).expect("cut off");
    drop(file);

    let after_crash = handed_out(&crash).await;
    assert!(before.is_subset(&after_crash), "lost though it was written before the copy");
    assert!(all.difference(&after_crash).count() > 0, "the copy is no copy: all is there");
    let after_power_cut = handed_out(&power_cut).await;
    assert!(earlier.is_subset(&after_power_cut), "lost though it was on disk");
    let lost: HashSet<_> = before.difference(&after_power_cut).copied().collect();
    assert!(!lost.is_empty(), "nothing was cut off");
    assert!(lost.is_disjoint(&earlier));

    // And a flush takes all, at once and for good.
    let survivors = queue(&server.url(), "q").await;
    raw::<()>(&server.url(), &["FLUSHALL"]).await.expect("flushed");
    assert!(is_empty(&survivors).await);
    server.stop().await.expect("stopped");
    assert!(handed_out(&place.data()).await.is_empty(), "also after a restart");
}

async fn is_empty(q: &RedisQueue) -> bool {
    q.claim(&lane("q"), 10, "w", "", LEASE).await.expect("a claim").jobs.is_empty()
}
