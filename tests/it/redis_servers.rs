//! The queue where Redis moves, fails and is cut off: a cluster, a primary that Sentinel replaces, connections that die or
//! go silent. In each, leases are held, calls end, and faults that pass are said to pass.
use std::{
    collections::HashSet,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use reeve_jobs::{JobId, State, job::ClaimedJob, queue::Queue, queue::redis::RedisQueue};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use crate::{
    redis_places::{
        Cluster, LEASE, Place, Proxy, Watched, claim, done, enqueue, lane, persist, queue, queue_over, raw, signal_to,
        tenant, try_enqueue, written,
    },
    support::until,
};

fn new_id() -> JobId {
    JobId(uuid::Uuid::now_v7())
}

/// Renews what a worker holds, as it does; the lease must be there whenever there is an answer.
async fn is_still_held(queue: &RedisQueue, job: &ClaimedJob) {
    let renewed = persist(async || queue.renew(&[(job.id, job.lease_token)], LEASE).await).await;
    assert_eq!(renewed.len(), 1, "the lease is lost");
}

async fn settles(queue: &RedisQueue, job: &ClaimedJob) {
    let settled = persist(async || queue.settle(&[done(job)]).await).await;
    // Settled by a try whose answer was lost, it is settled as well.
    if settled.is_empty() {
        let state = persist(async || queue.state(job.id).await).await;
        assert_eq!(state, Some(State::Completed), "the lease is lost");
    }
}

#[tokio::test]
async fn lanes_are_spread_over_a_cluster_and_each_works() {
    let cluster = Cluster::start().await;
    let connection = cluster.connect().await;
    let names = cluster.spread(&connection).await;
    for (home, name) in names.iter().enumerate() {
        let q = queue_over(connection.clone(), name);
        for of in ["a", "b", "a"] {
            enqueue(&q, of).await;
        }
        let jobs = claim(&q, name).await.jobs;
        assert_eq!(jobs.len(), 3);
        for job in &jobs {
            assert!(q.mark_started(job.id, job.lease_token).await.expect("an answer"));
            is_still_held(&q, job).await;
        }
        let keys: Vec<usize> =
            vec![cluster.on(0, &["DBSIZE"]).await, cluster.on(1, &["DBSIZE"]).await, cluster.on(2, &["DBSIZE"]).await];
        assert!(keys[home] > 0, "{name} is on node {home}: {keys:?}");
        let ends: Vec<_> = jobs.iter().map(done).collect();
        assert_eq!(q.settle(&ends).await.expect("settled").len(), 3);
    }
    cluster.stop().await;
}

/// While keys of a lane are on two nodes, no step runs on half of them; before and after, all goes on.
#[tokio::test]
async fn a_slot_that_moves_loses_no_lease_and_no_job() {
    let cluster = Cluster::start().await;
    let connection = cluster.connect().await;
    let q = queue_over(connection, "moving");
    let (slot, from) = cluster.home(&q).await;
    let to = (from + 1) % 3;
    // Other lanes are there, so that the new node knows the scripts and could run them.
    for name in cluster.spread(&cluster.connect().await).await {
        enqueue(&queue_over(cluster.connect().await, &name), "a").await;
    }
    let mut known = HashSet::new();
    for n in 0..40 {
        known.insert(enqueue(&q, ["a", "b"][n % 2]).await);
    }
    let held = claim(&q, "moving").await.jobs;
    assert_eq!(held.len(), 10);
    // Somebody enqueues and somebody renews all the time.
    let stop = AtomicBool::new(false);
    let enqueuing = async {
        while !stop.load(Ordering::SeqCst) {
            let id = new_id();
            known.insert(persist(async || try_enqueue(&q, id, "c").await).await);
        }
    };
    let renewing = async {
        while !stop.load(Ordering::SeqCst) {
            is_still_held(&q, &held[0]).await;
        }
    };
    let moving = async {
        let mut before = None;
        cluster.begin_move(slot, from, to, |left| left * 2 < *before.get_or_insert(left)).await;
        // Half way: nothing may be settled by what half of the keys say, nor be thought lost.
        let halfway = q.settle(&[done(&held[1])]).await;
        assert!(halfway.expect_err("the keys are on two nodes").is_passing());
        let halfway = try_enqueue(&q, new_id(), "d").await;
        assert!(halfway.expect_err("the keys are on two nodes").is_passing());
        cluster.end_move(slot, from, to).await;
        for job in &held {
            is_still_held(&q, job).await;
        }
        stop.store(true, Ordering::SeqCst);
    };
    tokio::join!(enqueuing, renewing, moving);
    for job in &held {
        settles(&q, job).await;
    }
    for job in &held {
        assert!(known.remove(&job.id));
    }
    // Every other job that was acknowledged is there, once.
    loop {
        let claimed = persist(async || q.claim(&lane("moving"), 50, "w", "", LEASE).await).await;
        assert!(claimed.broken.is_empty());
        if claimed.jobs.is_empty() {
            break;
        }
        for job in &claimed.jobs {
            assert!(known.remove(&job.id), "{} came twice, or was refused before", job.id);
        }
    }
    assert!(known.is_empty(), "lost: {known:?}");
    cluster.stop().await;
}

#[tokio::test]
async fn a_dead_node_takes_its_own_lanes_with_it_and_no_others() {
    let mut cluster = Cluster::start().await;
    let connection = cluster.connect().await;
    let names = cluster.spread(&connection).await;
    let queues: Vec<_> = names.iter().map(|name| queue_over(connection.clone(), name)).collect();
    let mut held = vec![];
    for (q, name) in queues.iter().zip(&names) {
        enqueue(q, "a").await;
        held.push(claim(q, name).await.jobs.remove(0));
    }
    written(&cluster.node_url(0)).await;
    cluster.kill(0).await;
    for n in 1..3 {
        is_still_held(&queues[n], &held[n]).await;
        let id = new_id();
        persist(async || try_enqueue(&queues[n], id, "a").await).await;
        settles(&queues[n], &held[n]).await;
    }
    for _ in 0..3 {
        let error = queues[0].renew(&[(held[0].id, held[0].lease_token)], LEASE).await.expect_err("it is dead");
        assert!(error.is_passing(), "{error}");
    }
    cluster.restart(0).await;
    is_still_held(&queues[0], &held[0]).await;
    settles(&queues[0], &held[0]).await;
    cluster.stop().await;
}

/// A node that stands still is worse than a dead one: nothing refuses.
#[tokio::test]
async fn a_node_that_stands_still_fails_in_passing_and_does_not_stop_the_others() {
    let cluster = Cluster::start().await;
    let connection = cluster.connect().await;
    let names = cluster.spread(&connection).await;
    let (still, other) = (queue_over(connection.clone(), &names[0]), queue_over(connection, &names[1]));
    enqueue(&still, "a").await;
    let job = claim(&still, &names[0]).await.jobs.remove(0);
    let node = cluster.nodes[0].as_ref().expect("it runs");
    // The other node has forgotten the scripts, so that they must be loaded anew without the one that stands still.
    cluster.on::<()>(1, &["SCRIPT", "FLUSH"]).await;
    signal_to("STOP", node);
    try_enqueue(&other, new_id(), "a").await.expect("the other node answers");
    let held = [(job.id, job.lease_token)];
    let (stalled, went_on) = tokio::join!(still.renew(&held, LEASE), async {
        for _ in 0..5 {
            let id = new_id();
            persist(async || try_enqueue(&other, id, "a").await).await;
        }
        claim(&other, &names[1]).await.jobs.len()
    });
    signal_to("CONT", node);
    assert_eq!(went_on, 6);
    let error = stalled.expect_err("nobody answered");
    assert!(error.is_passing(), "{error}");
    is_still_held(&still, &job).await;
    settles(&still, &job).await;
    cluster.stop().await;
}

#[tokio::test]
async fn the_queue_goes_on_at_the_primary_that_sentinel_names() {
    let watched = Watched::start(false).await;
    let q = queue(&watched.url(), "q").await;
    enqueue(&q, "a").await;
    let job = claim(&q, "q").await.jobs.remove(0);
    watched.replicated(0).await;
    let sentinel = watched.server_url(&watched.sentinel);
    raw::<()>(&sentinel, &["SENTINEL", "FAILOVER", "main"]).await.expect("begun");
    until("the replica is the primary", async || watched.is_primary(1).await).await;
    until("the old primary follows", async || !watched.is_primary(0).await).await;
    is_still_held(&q, &job).await;
    let id = new_id();
    persist(async || try_enqueue(&q, id, "a").await).await;
    watched.replicated(1).await;
    // And back, by force: the primary is killed.
    until("Sentinel knows the new replica", async || {
        let masters = raw::<Vec<std::collections::HashMap<String, String>>>(&sentinel, &["SENTINEL", "MASTERS"]).await;
        masters.is_ok_and(|all| all[0]["num-slaves"] == "1" && all[0]["flags"] == "master")
    })
    .await;
    signal_to("KILL", &watched.servers[1]);
    is_still_held(&q, &job).await;
    settles(&q, &job).await;
    assert!(watched.is_primary(0).await);
    let heir = persist(async || q.claim(&lane("q"), 10, "w", "", LEASE).await).await.jobs;
    assert_eq!(heir.iter().map(|job| job.id).collect::<Vec<_>>(), [id]);
}

/// A primary that was demoted, and still has our connection, says that it is read-only; the next call goes elsewhere.
#[tokio::test]
async fn a_demoted_primary_is_left_though_it_still_answers() {
    let watched = Watched::start(false).await;
    let q = queue(&watched.url(), "q").await;
    enqueue(&q, "a").await;
    let job = claim(&q, "q").await.jobs.remove(0);
    watched.replicated(0).await;
    // By hand and not by Sentinel, which would cut the connection: so the demoted one keeps it.
    let (first, second) = (watched.server_url(&watched.servers[0]), watched.server_url(&watched.servers[1]));
    raw::<()>(&watched.server_url(&watched.sentinel), &["SENTINEL", "REMOVE", "main"]).await.expect("forgotten");
    raw::<()>(&second, &["REPLICAOF", "NO", "ONE"]).await.expect("promoted");
    raw::<()>(&first, &["REPLICAOF", "127.0.0.1", &watched.servers[1].port().to_string()]).await.expect("demoted");
    let refused = q.renew(&[(job.id, job.lease_token)], LEASE).await.expect_err("read-only");
    assert!(refused.is_passing(), "{refused}");
    let port = watched.servers[1].port().to_string();
    let sentinel = watched.server_url(&watched.sentinel);
    raw::<()>(&sentinel, &["SENTINEL", "MONITOR", "main", "127.0.0.1", &port, "1"]).await.expect("watched");
    raw::<()>(&sentinel, &["SENTINEL", "SET", "main", "auth-pass", "pass1"]).await.expect("set");
    is_still_held(&q, &job).await;
    settles(&q, &job).await;
}

#[tokio::test]
async fn connections_that_are_killed_lose_no_lease() {
    let place = Place::new();
    let server = place.start().await;
    let q = queue(&server.url(), "q").await;
    enqueue(&q, "a").await;
    let job = claim(&q, "q").await.jobs.remove(0);
    for _ in 0..5 {
        raw::<i64>(&server.url(), &["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).await.expect("cut");
        is_still_held(&q, &job).await;
    }
    settles(&q, &job).await;
    server.stop().await.expect("stopped");
}

/// Bytes that were swallowed do not come back: a connection that has missed some is given up, not waited for.
#[tokio::test]
async fn a_network_that_swallows_bytes_loses_no_lease() {
    let place = Place::new();
    let server = place.start().await;
    let proxy = Proxy::before(&server).await;
    let q = queue(&format!("redis://default:pass1@127.0.0.1:{}", proxy.port), "q").await;
    enqueue(&q, "a").await;
    let job = claim(&q, "q").await.jobs.remove(0);
    proxy.silence(true);
    for _ in 0..2 {
        let error = q.renew(&[(job.id, job.lease_token)], LEASE).await.expect_err("nothing comes through");
        assert!(error.is_passing(), "{error}");
    }
    proxy.silence(false);
    is_still_held(&q, &job).await;
    settles(&q, &job).await;
    server.stop().await.expect("stopped");
}

/// Many callers of a dead server share one attempt: each ends when it does, in place of one after the other.
#[tokio::test]
async fn callers_of_a_dead_server_share_one_attempt() {
    let place = Place::new();
    let server = place.start().await;
    let proxy = Proxy::before(&server).await;
    let q = queue(&format!("redis://default:pass1@127.0.0.1:{}", proxy.port), "q").await;
    proxy.silence(true);
    q.upkeep(1).await.expect_err("nothing comes through");
    // One attempt takes two seconds and more; a hundred of them one after the other would take minutes.
    let calls = futures::future::join_all((0..100).map(|_| q.upkeep(1)));
    let answers = tokio::time::timeout(Duration::from_secs(30), calls).await.expect("they share one attempt");
    assert!(answers.iter().all(|answer| answer.as_ref().is_err_and(|error| error.is_passing())));
    server.stop().await.expect("stopped");
}

/// A worker's clock may be off by anything: what it sends are durations, and the server's clock makes times of them.
#[tokio::test]
async fn no_call_carries_a_time_of_the_callers_clock() {
    let place = Place::new();
    let server = place.start().await;
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", server.port())).await.expect("connected");
    let mut monitor = BufReader::new(stream);
    monitor.write_all(b"AUTH pass1\r\nMONITOR\r\n").await.expect("sent");
    let mut lines = monitor.lines();
    for _ in 0..2 {
        assert_eq!(lines.next_line().await.expect("an answer").as_deref(), Some("+OK"));
    }
    let q = queue(&server.url(), "q").await;
    let a = tenant("a");
    for delay in [Duration::ZERO, Duration::from_secs(86_400)] {
        let new = reeve_jobs::queue::redis::NewJob {
            id: new_id(),
            tenant: &a,
            kind: reeve_jobs::Kind::FleetProbe,
            payload: serde_json::json!({}),
            unique_key: Some("k").filter(|_| delay.is_zero()),
            delay,
            priority: Some(1),
            traceparent: None,
        };
        q.enqueue(&new).await.expect("enqueued");
    }
    let job = claim(&q, "q").await.jobs.remove(0);
    q.mark_started(job.id, job.lease_token).await.expect("started");
    is_still_held(&q, &job).await;
    q.upkeep(10).await.expect("kept up");
    let later = reeve_jobs::queue::Settlement { outcome: "retry", delay: Duration::from_secs(3_600), ..done(&job) };
    q.settle(&[later]).await.expect("settled");
    q.retry(job.id, 3).await.expect("retried");
    q.cancel(job.id, "to see").await.expect("cancelled");
    raw::<String>(&server.url(), &["ECHO", "all was called"]).await.expect("an answer");

    let mut sent = 0;
    while let Some(line) = lines.next_line().await.expect("a line") {
        if line.contains("all was called") {
            break;
        }
        // `time [db address] "command" "argument"…`; what scripts do themselves has `lua` for an address.
        let (head, words) = line.split_once("] ").expect("a command");
        if head.ends_with("lua") {
            continue;
        }
        sent += 1;
        // Eleven days in ms, which no duration above comes near, and 2001 in s.
        let is_time = |word: &&str| word.trim_matches('"').parse::<f64>().is_ok_and(|n| n > 1.0e9);
        assert_eq!(words.split(' ').find(is_time), None, "{line}");
    }
    assert!(sent >= 9, "{sent} calls were seen");
    server.stop().await.expect("stopped");
}
