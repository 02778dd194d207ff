//! The queue on Redis: one lane, in Lua scripts of one atomic step each (`scripts/`).
//!
//! Data flow: [`RedisQueue::enqueue`] seals a job ([`envelope`]) and stores it; a claim deals places to tenants in rounds
//! and opens what it got; renewals and settlements are fenced by the lease's token; [`RedisQueue::upkeep`] promotes and
//! rescues by the server's clock. All keys of a lane have its prefix as their hash tag, and so lie in one slot.
//!
//! An envelope that does not open reaches no handler: the claim hands it back as broken, to be quarantined. `users.acl` has
//! the logins of a worker and of whoever only enqueues, with what each needs of Redis, and all that it gets. The latter
//! loads no scripts: a worker's polls do. It can still spoil a job whose id it knows, or list ids that are no jobs. A job
//! that is over is remembered for an hour, so that a repeated enqueue makes nothing; the seal does not keep who may write
//! to Redis from replaying a copy after that.
//!
//! **Where it runs.** On one server, the primary that Sentinel names, or a cluster, with or without TLS: [`super::connection`]. A
//! lane lies on one node, whose death stops that lane alone if the cluster says `cluster-require-full-coverage no`. While
//! a lane's slot moves to another node, calls fail in passing: it stands still, and leases run on. A fail-over loses what
//! was acknowledged and not yet replicated; `min-replicas-to-write 1` bounds that.
//!
//! **What it does not do.** It is not the truth for anything: what was enqueued or settled here can be lost. With
//! `appendfsync everysec` a power cut takes about the last second, and as much more as the disk took for the sync that
//! was running; a crash of the server alone takes what it answered while such a sync ran, up to two seconds; `always` loses
//! neither, for a sync in each call. FLUSHALL, and an older file, take everything since. Jobs that must not be lost stay
//! in `reeve.jobs`. A job claimed here has no lease there, hence no proof: where contexts are verified it opens no tenant's
//! scope. No worker is wired to this queue yet. Deadlines across tenants and rates are the PostgreSQL queue's; nobody rings
//! here, so a waiting worker polls.
pub mod envelope;
pub mod keys;

use std::{sync::LazyLock, time::Duration};

use ::redis::{ErrorKind, FromRedisValue, ServerErrorKind};
use uuid::Uuid;

use self::envelope::{Address, Content};
pub use self::keys::{InvalidRootKey, QueueKey};
pub use super::connection::{Connection, ConnectionError, open};
use super::{Claim, ERROR_CHARS_MAX, Lane, PAYLOAD_BYTES_MAX, Queue, QueueError, Renewed, Settlement};
use crate::{
    job::{ClaimedJob, JobId, LeaseToken, State},
    kinds::Kind,
    tenant::{Proof, TenantId},
};

/// One atomic step, as Redis knows it.
struct Step {
    code: &'static str,
    hash: LazyLock<String>,
}

macro_rules! steps {
    ($($name:ident $file:literal)+) => {
        $(static $name: Step = {
            const CODE: &str = concat!(include_str!("scripts/common.lua"), include_str!($file));
            Step { code: CODE, hash: LazyLock::new(|| ::redis::Script::new(CODE).get_hash().to_owned()) }
        };)+
        static STEPS: &[&Step] = &[$(&$name),+];
    };
}
steps! {
    ENQUEUE "scripts/enqueue.lua"
    CLAIM "scripts/claim.lua"
    MARK_STARTED "scripts/mark_started.lua"
    RENEW "scripts/renew.lua"
    SETTLE "scripts/settle.lua"
    UPKEEP "scripts/upkeep.lua"
    OPERATE "scripts/operate.lua"
}

/// Why this queue refused.
#[derive(Debug, thiserror::Error)]
pub enum RedisQueueError {
    #[error(
        "the payload of \"{kind}\" has {bytes} bytes, more than its limit of {max}; payloads hold ids, keep the data in your tables"
    )]
    TooLarge { kind: &'static str, bytes: usize, max: usize },
    #[error("a queue and a region are named by letters, digits, `_`, `-` and `.`, not {0:?}")]
    Name(String),
    #[error("this queue serves {served}, not {asked}")]
    OtherLane { served: String, asked: String },
    #[error("Redis: {0}")]
    Server(#[from] ::redis::RedisError),
    #[error(transparent)]
    Envelope(#[from] envelope::EnvelopeError),
}

impl RedisQueueError {
    /// Whether the same call may well succeed in a while.
    pub fn is_passing(&self) -> bool {
        let Self::Server(error) = self else { return false };
        // Cut, refused or slow; loading its file, or a replica that is becoming the primary; no primary known to Sentinel
        // or no node to the cluster's client; scripts that a worker is about to load. A reply that refuses is not.
        error.is_io_error()
            || error.is_timeout()
            || error.is_connection_dropped()
            || error.is_cluster_error()
            || matches!(
                error.kind(),
                ErrorKind::ClusterConnectionNotFound
                    | ErrorKind::MasterNameNotFoundBySentinel
                    | ErrorKind::Server(ServerErrorKind::NoScript)
            )
            || matches!(
                error.code(),
                Some("LOADING" | "READONLY" | "MASTERDOWN" | "TRYAGAIN" | "CLUSTERDOWN" | "BUSY" | "NOREPLICAS")
            )
    }
}

/// A job to be enqueued.
#[derive(Debug, Clone)]
pub struct NewJob<'a> {
    /// Made by the caller, so that repeating a call after an error enqueues nothing twice.
    pub id: JobId,
    pub tenant: &'a TenantId,
    pub kind: Kind,
    pub payload: serde_json::Value,
    /// At most one live job of this tenant and kind has this key.
    pub unique_key: Option<&'a str>,
    pub delay: Duration,
    /// 1 (first) to 4 (last); the kind's own if `None`.
    pub priority: Option<i16>,
    pub traceparent: Option<String>,
}

/// A tenant's share of this lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    pub weight: u32,
    pub running_max: Option<u32>,
    pub paused: bool,
}

/// What upkeep did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Upkeep {
    pub promoted: usize,
    /// Jobs whose lease ran out, whose they are, and what became of each.
    pub rescued: Vec<(JobId, String, State)>,
}

/// See the module's head. Clones share the connection, which mends itself when it is cut.
#[derive(Clone)]
pub struct RedisQueue {
    connection: Connection,
    key: QueueKey,
    lane: Lane,
    prefix: String,
}

impl std::fmt::Debug for RedisQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisQueue").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn unreadable(what: &'static str) -> ::redis::RedisError {
    (::redis::ErrorKind::UnexpectedReturnType, "a script's answer cannot be read", what.to_owned()).into()
}

fn job_id(text: &str) -> Result<JobId, RedisQueueError> {
    text.parse().map_err(|_| unreadable("a job's id").into())
}

type Taken = (String, String, String, Vec<u8>, i32, i32, i32, i16);

impl RedisQueue {
    pub fn new(connection: Connection, key: QueueKey, lane: Lane) -> Result<Self, RedisQueueError> {
        for name in [&lane.queue, &lane.region] {
            // A brace would end the hash tag, a colon shift one name into the other.
            if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c)) {
                return Err(RedisQueueError::Name(name.clone()));
            }
        }
        let prefix = format!("{{rv:{}:{}}}", lane.queue, lane.region);
        Ok(Self { connection, key, lane, prefix })
    }

    /// What all of this lane's keys begin with: for access rules, and for looking.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    async fn call<T: FromRedisValue>(&self, step: &Step, arguments: &[Vec<u8>]) -> Result<T, RedisQueueError> {
        let mut connection = self.connection.clone();
        let mut evalsha = ::redis::cmd("EVALSHA");
        // Neither of these keys exists. While a cluster moves the slot to another node, that makes it refuse the whole
        // step (TRYAGAIN) in place of running it where half of the lane is.
        evalsha.arg(step.hash.as_str()).arg(2).arg(&self.prefix).arg(format!("{}:lane", self.prefix));
        for argument in arguments {
            evalsha.arg(argument.as_slice());
        }
        let mut answer = evalsha.query_async(&mut connection).await;
        // Twice, since a slot may have moved between the two.
        for _ in 0..2 {
            let Err(error) = &answer else { break };
            if error.kind() != ErrorKind::Server(ServerErrorKind::NoScript) || !self.load_scripts().await? {
                break;
            }
            answer = evalsha.query_async(&mut connection).await;
        }
        Ok(answer?)
    }

    /// Makes this lane's server know all steps, also those that logins call which may load none. `false` if this one
    /// may not: somebody who may does it within a poll.
    pub async fn load_scripts(&self) -> Result<bool, RedisQueueError> {
        let mut connection = self.connection.clone();
        for step in STEPS {
            match connection.load_script(&self.prefix, step.code).await {
                Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoPerm) => return Ok(false),
                loaded => loaded?,
            }
        }
        Ok(true)
    }

    fn address<'a>(&'a self, tenant: &'a TenantId, kind: &'a str, job: JobId) -> Address<'a> {
        Address { tenant, kind, job, lane: &self.lane }
    }

    /// Seals a job and stores it. The id of the live job with its unique key, or its own.
    pub async fn enqueue(&self, job: &NewJob<'_>) -> Result<JobId, RedisQueueError> {
        let spec = job.kind.spec();
        let bytes = job.payload.to_string().len();
        if bytes > PAYLOAD_BYTES_MAX {
            return Err(RedisQueueError::TooLarge { kind: spec.name, bytes, max: PAYLOAD_BYTES_MAX });
        }
        let content = Content { payload: job.payload.clone(), traceparent: job.traceparent.clone() };
        let sealed = content.seal(&self.key, &self.address(job.tenant, spec.name, job.id), &mut rand::rng())?;
        let id: String = self
            .call(
                &ENQUEUE,
                &[
                    job.id.to_string().into(),
                    job.tenant.as_str().into(),
                    spec.name.into(),
                    sealed,
                    job.priority.unwrap_or(spec.priority).to_string().into(),
                    spec.attempts_max.to_string().into(),
                    millis(job.delay).to_string().into(),
                    job.unique_key.unwrap_or_default().into(),
                ],
            )
            .await?;
        job_id(&id)
    }

    /// Promotes and rescues up to `n` jobs each. Safe to run anywhere, many times over.
    pub async fn upkeep(&self, n: usize) -> Result<Upkeep, RedisQueueError> {
        let mut answer: Vec<::redis::Value> = self.call(&UPKEEP, &[n.to_string().into()]).await?;
        let read = |value| ::redis::from_redis_value::<(String, String, String)>(value);
        let rescued = answer.split_off(answer.len().min(1));
        let promoted = answer.pop().ok_or_else(|| unreadable("a count"))?;
        let promoted = ::redis::from_redis_value(promoted).map_err(|_| unreadable("a count"))?;
        let mut done = Upkeep { promoted, rescued: Vec::new() };
        for value in rescued {
            let (id, tenant, state) = read(value).map_err(|_| unreadable("a rescued job"))?;
            done.rescued.push((job_id(&id)?, tenant, state.parse().map_err(|_| unreadable("a state"))?));
        }
        Ok(done)
    }

    /// Cancels a job; a running one is asked to stop. Its former state, or `None` when no live job has this id.
    pub async fn cancel(&self, job: JobId, reason: &str) -> Result<Option<State>, RedisQueueError> {
        self.operate("cancel", job, reason).await
    }

    /// Gives a parked or waiting job a fresh set of attempts, now.
    pub async fn retry(&self, job: JobId, attempts: i32) -> Result<Option<State>, RedisQueueError> {
        self.operate("retry", job, &attempts.to_string()).await
    }

    async fn operate(&self, act: &str, job: JobId, argument: &str) -> Result<Option<State>, RedisQueueError> {
        let state: Option<String> = self.call(&OPERATE, &[act.into(), job.to_string().into(), argument.into()]).await?;
        state.map(|state| state.parse().map_err(|_| unreadable("a state").into())).transpose()
    }

    /// Where a job stands; `None` when it is not known, or was over an hour ago.
    pub async fn state(&self, job: JobId) -> Result<Option<State>, RedisQueueError> {
        let mut hget = ::redis::cmd("HGET");
        hget.arg(format!("{}:j:{job}", self.prefix)).arg("state");
        let state: Option<String> = hget.query_async(&mut self.connection.clone()).await?;
        state.map(|state| state.parse().map_err(|_| unreadable("a state").into())).transpose()
    }

    pub async fn pause(&self, pause: bool) -> Result<(), RedisQueueError> {
        let key = format!("{}:paused", self.prefix);
        let mut cmd = ::redis::cmd(if pause { "SET" } else { "DEL" });
        cmd.arg(key);
        if pause {
            cmd.arg(1);
        }
        Ok(cmd.query_async(&mut self.connection.clone()).await?)
    }

    pub async fn set_rules(&self, tenant: &TenantId, rules: Rules) -> Result<(), RedisQueueError> {
        let cap = rules.running_max.map_or("-1".to_owned(), |max| max.to_string());
        let text = format!("{}:{cap}:{}", rules.weight.max(1), u8::from(rules.paused));
        let mut cmd = ::redis::cmd("HSET");
        cmd.arg(format!("{}:rules", self.prefix)).arg(tenant.as_str()).arg(text);
        Ok(cmd.query_async(&mut self.connection.clone()).await?)
    }

    /// The job, or why it must not run.
    fn opened(&self, taken: Taken, id: JobId, lease_token: LeaseToken) -> Result<ClaimedJob, String> {
        let (_, tenant, kind, sealed, attempt, attempts_max, rescues, priority) = taken;
        let tenant: TenantId = tenant.parse().map_err(|error| format!("whose it is cannot be read: {error}"))?;
        let content =
            Content::open(&self.key, &self.address(&tenant, &kind, id), &sealed).map_err(|error| error.to_string())?;
        Ok(ClaimedJob {
            id,
            tenant,
            kind,
            payload: content.payload,
            attempt,
            attempts_max,
            rescues,
            traceparent: content.traceparent,
            lease_token,
            proof: Proof::none(),
            urgent: priority == 0,
        })
    }
}

impl Queue for RedisQueue {
    async fn claim(
        &self,
        lane: &Lane,
        limit: usize,
        worker: &str,
        cursor: &str,
        lease: Duration,
    ) -> Result<Claim, QueueError> {
        if *lane != self.lane {
            let (served, asked) = (self.lane.channel_payload(), lane.channel_payload());
            return Err(RedisQueueError::OtherLane { served, asked }.into());
        }
        let token = LeaseToken(Uuid::new_v4());
        let arguments = [token.0.to_string(), limit.to_string(), worker.to_owned(), millis(lease).to_string()];
        let mut answer: Vec<::redis::Value> = self.call(&CLAIM, &arguments.map(Vec::from)).await?;
        let taken = answer.split_off(answer.len().min(1));
        // The ring itself keeps whose turn it is.
        let mut claim = Claim { cursor: cursor.to_owned(), ..Claim::default() };
        claim.more = answer.pop().is_some_and(|more| more == ::redis::Value::Int(1));
        for value in taken {
            let taken: Taken =
                ::redis::from_redis_value(value).map_err(|_| RedisQueueError::from(unreadable("a claimed job")))?;
            let id = job_id(&taken.0)?;
            match self.opened(taken, id, token) {
                Ok(job) => claim.jobs.push(job),
                Err(why) => claim.broken.push(Settlement {
                    job: id,
                    token,
                    outcome: "quarantine",
                    delay: Duration::ZERO,
                    error: Some(why),
                }),
            }
        }
        Ok(claim)
    }

    async fn mark_started(&self, job: JobId, token: LeaseToken) -> Result<bool, QueueError> {
        let held: i64 = self.call(&MARK_STARTED, &[job.to_string().into(), token.0.to_string().into()]).await?;
        Ok(held == 1)
    }

    async fn renew(&self, held: &[(JobId, LeaseToken)], lease: Duration) -> Result<Vec<Renewed>, QueueError> {
        let mut arguments = vec![millis(lease).to_string().into_bytes()];
        for (job, token) in held {
            arguments.extend([job.to_string().into(), token.0.to_string().into()]);
        }
        let answer: Vec<(String, String)> = self.call(&RENEW, &arguments).await?;
        let renewed = |(id, why): (String, String)| {
            Ok(Renewed { job: job_id(&id)?, cancel_reason: Some(why).filter(|why| !why.is_empty()) })
        };
        answer.into_iter().map(renewed).collect()
    }

    async fn settle(&self, batch: &[Settlement]) -> Result<Vec<JobId>, QueueError> {
        let mut arguments = Vec::with_capacity(batch.len() * 5);
        for end in batch {
            let error: String = end.error.iter().flat_map(|error| error.chars()).take(ERROR_CHARS_MAX).collect();
            arguments.extend([
                end.job.to_string().into_bytes(),
                end.token.0.to_string().into(),
                end.outcome.into(),
                millis(end.delay).to_string().into(),
                error.into(),
            ]);
        }
        let settled: Vec<String> = self.call(&SETTLE, &arguments).await?;
        settled.iter().map(|id| Ok(job_id(id)?)).collect()
    }

    /// Nobody rings here.
    async fn wait_for_jobs(&self, _: &Lane, _: f64) -> Result<(), QueueError> {
        Ok(())
    }

    async fn stop_waiting(&self, _: &Lane) -> Result<(), QueueError> {
        Ok(())
    }
}
