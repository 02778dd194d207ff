//! What logins may do in Redis (`users.acl`), and what TLS keeps out.
use reeve_dev::redis::Options;
use reeve_jobs::queue::{
    Queue, Settlement,
    redis::{RedisQueue, open},
};

use crate::redis_places::{
    Certificates, Cluster, LEASE, Place, Watched, claim, done, enqueue, persist, queue, queue_over, raw, tenant,
};

/// Makes the users of `users.acl`, with the password `pass2`, on the server of this URL.
async fn make_users(url: &str) {
    for rules in include_str!("../../jobs/src/queue/redis/users.acl").lines() {
        let mut words: Vec<_> = rules.split_whitespace().skip(1).collect();
        words.push(">pass2");
        raw::<()>(url, &[&["ACL", "SETUSER"], words.as_slice()].concat()).await.expect("rules that Redis takes");
    }
}

fn login(url: &str, user: &str) -> String {
    url.replace("default:pass1", &format!("{user}:pass2"))
}

async fn is_refused(url: &str, words: &[&str]) {
    let error = raw::<redis::Value>(url, words).await.expect_err(&words.join(" "));
    let code = error.code().unwrap_or_default().to_owned();
    assert_eq!(code, "NOPERM", "{words:?}: {error}");
}

/// Of an operator, and of another product on the same server.
const OTHERS: &[&[&str]] = &[
    &["FLUSHALL"],
    &["FLUSHDB"],
    &["KEYS", "*"],
    &["SCAN", "0"],
    &["CONFIG", "GET", "*"],
    &["CONFIG", "SET", "dir", "/"],
    &["ACL", "LIST"],
    &["ACL", "SETUSER", "default", "nopass"],
    &["CLIENT", "KILL", "TYPE", "normal"],
    &["SHUTDOWN"],
    &["REPLICAOF", "NO", "ONE"],
    &["SCRIPT", "FLUSH"],
    &["EVAL", "return 1", "0"],
    &["GET", "elsewhere"],
    &["SET", "elsewhere", "1"],
    &["DEL", "elsewhere"],
    &["HGET", "elsewhere", "a"],
    &["HSET", "elsewhere", "a", "b"],
    &["HSET", "rv:q", "a", "b"],
    &["ZADD", "elsewhere", "1", "a"],
    &["RPUSH", "elsewhere", "a"],
    &["SADD", "elsewhere", "a"],
];

async fn works(q: &RedisQueue) {
    let id = enqueue(q, "a").await;
    let job = claim(q, "q").await.jobs.remove(0);
    assert!(q.mark_started(job.id, job.lease_token).await.expect("an answer"));
    assert_eq!(q.renew(&[(job.id, job.lease_token)], LEASE).await.expect("renewed").len(), 1);
    q.upkeep(10).await.expect("kept up");
    let dead = Settlement { outcome: "dead", ..done(&job) };
    assert_eq!(q.settle(&[dead]).await.expect("settled"), [id]);
    q.retry(id, 3).await.expect("retried");
    q.cancel(id, "to see").await.expect("cancelled");
    q.pause(true).await.expect("paused");
    q.pause(false).await.expect("resumed");
}

/// `users.acl` is enough for everything a worker does, and for nothing else.
#[tokio::test]
async fn a_worker_needs_no_more_than_its_access_rules() {
    let place = Place::new();
    let server = place.start().await;
    make_users(&server.url()).await;
    let mine = login(&server.url(), "reeve_worker");
    works(&queue(&mine, "q").await).await;
    for words in OTHERS {
        is_refused(&mine, words).await;
    }
    server.stop().await.expect("stopped");
}

/// Whoever only hands jobs over gets nothing out of the queue, also not by the scripts of those who may.
#[tokio::test]
async fn an_enqueuer_can_enqueue_and_nothing_else() {
    let place = Place::new();
    let server = place.start().await;
    let url = server.url();
    make_users(&url).await;
    let (mine, worker) = (login(&url, "reeve_enqueuer"), queue(&login(&url, "reeve_worker"), "q").await);
    let q = queue(&mine, "q").await;
    let unloaded = crate::redis_places::try_enqueue(&q, reeve_jobs::JobId(uuid::Uuid::now_v7()), "a").await;
    assert!(unloaded.expect_err("nobody has loaded the scripts").is_passing(), "a worker does in a moment");
    assert!(claim(&worker, "q").await.jobs.is_empty());
    let id = enqueue(&q, "a").await;
    assert_eq!(q.state(id).await.expect("an answer"), Some(reeve_jobs::State::Available));
    let (p, hash) = (q.prefix().to_owned(), claim_hash());
    for words in
        [&["EVALSHA", &hash, "2", &p, &format!("{p}:lane"), "00000000-0000-0000-0000-000000000000", "1", "w", "1"][..]]
    {
        let error = raw::<redis::Value>(&mine, words).await.expect_err("a claim").to_string();
        assert!(error.contains("user executing the script can't"), "{error}");
    }
    let key = |name: &str| format!("{p}:{name}");
    for words in [
        &["SCRIPT", "LOAD", "return 1"][..],
        &["DEL", &key(&format!("j:{id}"))],
        &["HGETALL", &key(&format!("j:{id}"))],
        &["HDEL", &key(&format!("j:{id}")), "tok"],
        &["EXPIRE", &key(&format!("j:{id}")), "1"],
        &["ZPOPMIN", &key("ready:a")],
        &["ZRANGE", &key("ready:a"), "0", "-1"],
        &["LPOP", &key("ring")],
        &["SMEMBERS", &key("inring")],
        &["ZADD", &key("leases"), "1", "a"],
        &["HSET", &key("rules"), "a", "1:-1:1"],
        &["SET", &key("paused"), "1"],
        &["HGET", &key("rules"), "a"],
    ] {
        is_refused(&mine, words).await;
    }
    for words in OTHERS {
        is_refused(&mine, words).await;
    }
    assert_eq!(claim(&worker, "q").await.jobs.len(), 1, "it is all there");
    server.stop().await.expect("stopped");
}

/// What the claim's script is called by.
fn claim_hash() -> String {
    let code = concat!(
        include_str!("../../jobs/src/queue/redis/scripts/common.lua"),
        include_str!("../../jobs/src/queue/redis/scripts/claim.lua")
    );
    redis::Script::new(code).get_hash().to_owned()
}

/// The same rules are enough where slots move: the client asks for the layout and follows.
#[tokio::test]
async fn the_access_rules_are_enough_on_a_cluster_and_behind_sentinel() {
    let cluster = Cluster::start().await;
    for n in 0..3 {
        make_users(&cluster.node_url(n)).await;
    }
    let worker = queue(&cluster.url("reeve_worker:pass2"), "q").await;
    works(&worker).await;
    enqueue(&queue(&cluster.url("reeve_enqueuer:pass2"), "q").await, "a").await;
    let (slot, from) = cluster.home(&worker).await;
    cluster.begin_move(slot, from, (from + 1) % 3, |_| false).await;
    cluster.end_move(slot, from, (from + 1) % 3).await;
    let claimed = persist(async || worker.claim(&crate::redis_places::lane("q"), 10, "w", "", LEASE).await).await;
    assert_eq!(claimed.jobs.len(), 1);
    cluster.stop().await;

    let watched = Watched::start(false).await;
    make_users(&watched.server_url(&watched.servers[0])).await;
    works(&queue(&login(&watched.url(), "reeve_worker"), "q").await).await;
    enqueue(&queue(&login(&watched.url(), "reeve_enqueuer"), "q").await, "a").await;
}

#[tokio::test]
async fn tls_takes_its_own_authority_and_no_other_and_no_plain_text() {
    let place = Place::new();
    let certificates = Certificates::make(&place.dir.path().join("tls"));
    let other = Certificates::make(&place.dir.path().join("other"));
    let settings = certificates.settings();
    let server = place.start_with("redis", Options { settings: &settings, ..Options::default() }).await;
    let plain = server.url();
    let url = plain.replace("redis://", "rediss://");
    let q = queue(&format!("{url}?ca_file={}", certificates.ca()), "q").await;
    works(&q).await;
    for (refused, why) in [
        (format!("{url}?ca_file={}", other.ca()), "another authority"),
        (url.clone(), "the system's authorities"),
        (plain, "plain text"),
        // The certificate is not for this name, which is the same machine.
        (format!("{}?ca_file={}", url.replace("127.0.0.1", "127.0.0.2"), certificates.ca()), "another name"),
    ] {
        let error = open(&refused).await.expect_err(why).to_string();
        assert!(!error.contains("pass1"), "{error}");
    }
    server.stop().await.expect("stopped");
}

#[tokio::test]
async fn a_cluster_and_sentinel_are_reached_over_tls() {
    let cluster = Cluster::start_with(true).await;
    let connection = cluster.connect().await;
    for name in cluster.spread(&connection).await {
        let q = queue_over(connection.clone(), &name);
        let id = enqueue(&q, "a").await;
        assert_eq!(claim(&q, &name).await.jobs[0].id, id);
    }
    cluster.stop().await;
    let watched = Watched::start(true).await;
    let q = queue(&watched.url(), "q").await;
    works(&q).await;
    assert_eq!(
        q.set_rules(&tenant("a"), reeve_jobs::queue::redis::Rules { weight: 1, running_max: None, paused: false })
            .await
            .ok(),
        Some(())
    );
    let plain = watched.url().replace("rediss+", "redis+");
    let plain = plain.split("&ca_file").next().expect("a URL").to_owned();
    open(&plain).await.expect_err("plain text");
}
