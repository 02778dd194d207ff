//! What only the queue on Redis has: seals, a server that may lose its data, connections that are cut, access rules. What
//! it shares with the other is in `conformance`.
use std::{path::Path, time::Duration};

use reeve_jobs::{
    JobId, Kind, State,
    queue::{Queue, redis::NewJob},
};

use crate::redis_places::{LEASE, Place, claim, done, enqueue, queue, raw, signal, tenant, written};

/// Who gets into Redis and may write there makes no job, and gives none to another tenant or queue.
#[tokio::test]
async fn a_forged_or_moved_envelope_reaches_no_handler() {
    let place = Place::new();
    let server = place.start().await;
    let url = server.url();
    let (q, other) = (queue(&url, "q").await, queue(&url, "other").await);
    let (p, other_prefix) = (q.prefix().to_owned(), other.prefix().to_owned());
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(enqueue(&q, "a").await);
    }
    let key = |id: JobId| format!("{p}:j:{id}");
    let sealed: Vec<u8> = raw(&url, &["HGET", &key(ids[0]), "env"]).await.expect("an envelope");
    assert!(!sealed.windows(6).any(|bytes| bytes == b"canary"), "it can be read");
    let copy = |from: JobId, to: String| {
        let (url, from) = (url.clone(), key(from));
        async move { raw::<i64>(&url, &["COPY", &from, &to]).await.expect("copied") }
    };
    // 0: into another tenant's list. 1: as another kind. 2: the envelope of another job. 3: into another queue. 4: stays.
    raw::<i64>(&url, &["ZREM", &format!("{p}:ready:a"), &ids[0].to_string()]).await.expect("taken out");
    raw::<i64>(&url, &["ZADD", &format!("{p}:ready:b"), "1", &ids[0].to_string()]).await.expect("put in");
    raw::<i64>(&url, &["SADD", &format!("{p}:inring"), "b"]).await.expect("in the ring");
    raw::<i64>(&url, &["RPUSH", &format!("{p}:ring"), "b"]).await.expect("in the ring");
    raw::<i64>(&url, &["HSET", &key(ids[1]), "kind", "webhook.prune"]).await.expect("changed");
    let script = "return redis.call('HSET', KEYS[1], 'env', redis.call('HGET', KEYS[2], 'env'))";
    raw::<i64>(&url, &["EVAL", script, "2", &key(ids[2]), &key(ids[4])]).await.expect("moved");
    copy(ids[3], format!("{other_prefix}:j:{}", ids[3])).await;
    raw::<i64>(&url, &["ZADD", &format!("{other_prefix}:ready:a"), "1", &ids[3].to_string()]).await.expect("put in");
    raw::<i64>(&url, &["RPUSH", &format!("{other_prefix}:ring"), "a"]).await.expect("in the ring");

    let here = claim(&q, "q").await;
    assert_eq!(here.jobs.iter().map(|job| job.id).collect::<Vec<_>>(), [ids[3], ids[4]], "those that are as sealed");
    let mut broken: Vec<_> = here.broken.iter().map(|broken| broken.job).collect();
    broken.sort_unstable();
    assert_eq!(broken, ids[..3]);
    let there = claim(&other, "other").await;
    assert_eq!((there.jobs.len(), there.broken.len()), (0, 1), "another queue's");
    for broken in here.broken.iter().chain(&there.broken) {
        assert!(broken.outcome == "quarantine" && broken.error.as_ref().is_some_and(|why| why.contains("forged")));
    }
    assert_eq!(q.settle(&here.broken).await.expect("settled").len(), 3);
    assert_eq!(q.state(ids[0]).await.expect("an answer"), Some(State::Quarantined));
    server.stop().await.expect("stopped");
}

/// A repeated call, such as after a cut, enqueues nothing twice: neither while the job lives nor after it has ended.
#[tokio::test]
async fn an_enqueue_that_is_repeated_makes_no_second_job() {
    let place = Place::new();
    let server = place.start().await;
    let q = queue(&server.url(), "q").await;
    let a = tenant("a");
    let new = NewJob {
        id: JobId(uuid::Uuid::now_v7()),
        tenant: &a,
        kind: Kind::FleetProbe,
        payload: serde_json::json!({}),
        unique_key: None,
        delay: Duration::ZERO,
        priority: None,
        traceparent: None,
    };
    for _ in 0..2 {
        assert_eq!(q.enqueue(&new).await.expect("enqueued"), new.id);
    }
    let got = claim(&q, "q").await.jobs;
    assert_eq!(got.len(), 1);
    q.settle(&[done(&got[0])]).await.expect("settled");
    q.enqueue(&new).await.expect("enqueued");
    assert!(claim(&q, "q").await.jobs.is_empty(), "it is over");
    server.stop().await.expect("stopped");
}

#[tokio::test]
async fn a_cut_connection_mends_and_loses_no_lease() {
    let place = Place::new();
    let server = place.start().await;
    let q = queue(&server.url(), "q").await;
    enqueue(&q, "a").await;
    let job = claim(&q, "q").await.jobs.remove(0);
    raw::<i64>(&server.url(), &["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await.expect("cut");
    // The scripts are gone as well, as after a failover.
    raw::<()>(&server.url(), &["SCRIPT", "FLUSH"]).await.expect("forgotten");
    let mut renewed = q.renew(&[(job.id, job.lease_token)], LEASE).await;
    while let Err(error) = &renewed {
        assert!(error.is_passing(), "{error}: a worker would give up");
        renewed = q.renew(&[(job.id, job.lease_token)], LEASE).await;
    }
    assert_eq!(renewed.expect("an answer").len(), 1, "the lease is still held");
    assert_eq!(q.settle(&[done(&job)]).await.expect("settled"), [job.id]);
    server.stop().await.expect("stopped");
}

#[tokio::test]
async fn a_server_that_stands_still_fails_in_passing_and_goes_on() {
    let place = Place::new();
    let server = place.start().await;
    let q = queue(&server.url(), "q").await;
    enqueue(&q, "a").await;
    let job = claim(&q, "q").await.jobs.remove(0);
    let pid = server.pid().expect("it runs").to_string();
    signal("STOP", &pid);
    let stalled = q.renew(&[(job.id, job.lease_token)], LEASE).await;
    signal("CONT", &pid);
    assert!(stalled.expect_err("nobody answered").is_passing());
    let mut settled = q.settle(&[done(&job)]).await;
    while let Err(error) = &settled {
        assert!(error.is_passing(), "{error}");
        settled = q.settle(&[done(&job)]).await;
    }
    assert_eq!(q.state(job.id).await.expect("an answer"), Some(State::Completed));
    server.stop().await.expect("stopped");
}

/// The loss bound of jobs that are here alone: what a killed server had written is there again, a flush takes all.
#[tokio::test]
async fn a_killed_server_keeps_what_it_wrote_and_a_flush_takes_it_all() {
    let place = Place::new();
    let server = place.start().await;
    let q = queue(&server.url(), "q").await;
    let mut ids = Vec::new();
    for n in 0..200 {
        ids.push(enqueue(&q, ["a", "b", "c"][n % 3]).await);
    }
    let held = claim(&q, "q").await.jobs;
    written(&server.url()).await;
    signal("KILL", &server.pid().expect("it runs").to_string());
    drop(server);

    let server = place.start().await;
    let q = queue(&server.url(), "q").await;
    for id in &ids {
        assert!(q.state(*id).await.expect("an answer").is_some(), "{id} is lost");
    }
    let ends: Vec<_> = held.iter().map(done).collect();
    assert_eq!(q.settle(&ends).await.expect("settled").len(), held.len(), "leases outlive the server");
    let running = claim(&q, "q").await.jobs;
    raw::<()>(&server.url(), &["FLUSHALL"]).await.expect("flushed");
    let ends: Vec<_> = running.iter().map(done).collect();
    assert!(q.settle(&ends).await.expect("an answer").is_empty(), "nothing is left to settle");
    assert!(claim(&q, "q").await.jobs.is_empty());
    server.stop().await.expect("stopped");
}

fn copy(from: &Path, to: &Path) {
    let status = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp starts");
    assert!(status.success());
}

/// The other half of the bound: put back to an older file, a server hands out again what was settled since.
#[tokio::test]
async fn an_older_file_repeats_what_was_settled_since() {
    let place = Place::new();
    let server = place.start().await;
    let q = queue(&server.url(), "q").await;
    let id = enqueue(&q, "a").await;
    server.stop().await.expect("stopped");
    let older = place.dir.path().join("older");
    copy(&place.data(), &older);

    let server = place.start().await;
    let q = queue(&server.url(), "q").await;
    let first = claim(&q, "q").await.jobs.remove(0);
    assert_eq!(q.settle(&[done(&first)]).await.expect("settled"), [id]);
    enqueue(&q, "a").await;
    server.stop().await.expect("stopped");
    std::fs::remove_dir_all(place.data()).expect("removed");
    copy(&older, &place.data());

    let server = place.start().await;
    let q = queue(&server.url(), "q").await;
    let again = claim(&q, "q").await.jobs;
    assert_eq!(again.iter().map(|job| job.id).collect::<Vec<_>>(), [id], "repeated; and what came later is lost");
    assert!(q.settle(&[done(&first)]).await.expect("an answer").is_empty(), "a token of then is worth nothing now");
    server.stop().await.expect("stopped");
}
