//! What a queue does, said a second time and in the plainest way: a list of jobs, one clock, no store.
//!
//! A store's answer to a call is accepted or refused here, job by job; what a call does to one job depends on that job alone,
//! but for dedupe keys and for how many jobs a claim brings. So two calls at the same time are right when each job looks as
//! after one of their two orders.
use reeve_jobs::{JobId, State, job::LeaseToken};

/// Of every claim and renewal. The clock goes in steps of [`TICK`], so that nothing ends on one: what a test itself takes
/// cannot decide.
pub const LEASE: u32 = 30;
/// How late a job is that is to come later.
pub const LATER: u32 = 50;
pub const TICK: u32 = 20;
/// A job has so many attempts when it is made, and again when it is redriven.
const ATTEMPTS: i32 = 3;
const LOST_LEASES_MAX: i32 = 3;

/// How a worker ends an attempt; `later` is a delay of [`LATER`], otherwise none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Complete,
    Cancel,
    Retry { later: bool },
    Snooze { later: bool },
    Release,
    Interrupt,
    Dead,
    Quarantine,
}

impl End {
    pub fn word(self) -> &'static str {
        match self {
            Self::Complete => "completed",
            Self::Cancel => "cancelled",
            Self::Retry { .. } => "retry",
            Self::Snooze { .. } => "snooze",
            Self::Release => "release",
            Self::Interrupt => "interrupted",
            Self::Dead => "dead",
            Self::Quarantine => "quarantine",
        }
    }

    pub fn is_later(self) -> bool {
        matches!(self, Self::Retry { later: true } | Self::Snooze { later: true })
    }
}

/// One call of a store, with the jobs and tokens that the caller believes in.
#[derive(Debug, Clone)]
#[allow(dead_code, reason = "who calls is told in a counterexample, by Debug")]
pub enum Call {
    Enqueue {
        tenant: usize,
        key: Option<u8>,
        later: bool,
    },
    Claim {
        worker: usize,
        places: usize,
    },
    Start {
        worker: usize,
        job: JobId,
        token: LeaseToken,
    },
    Renew {
        worker: usize,
        held: Vec<(JobId, LeaseToken)>,
    },
    Settle {
        worker: usize,
        ends: Vec<(JobId, LeaseToken, End)>,
    },
    /// So many ticks of the store's clock.
    Pass {
        ticks: u32,
    },
    /// Promotes what is due, then rescues what lost its lease.
    Upkeep,
    Cancel {
        job: JobId,
    },
    Redrive {
        job: JobId,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    pub job: JobId,
    pub token: LeaseToken,
    pub attempt: i32,
    pub attempts_max: i32,
    pub rescues: i32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Job(JobId),
    Claimed(Vec<Taken>),
    Held(bool),
    /// Those still held, and whether each was asked to stop.
    Renewed(Vec<(JobId, bool)>),
    Settled(Vec<JobId>),
    /// The former state, if the job was there.
    Former(Option<State>),
    Refused,
    Nothing,
}

/// A job as a store has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub job: JobId,
    pub state: State,
    pub attempt: i32,
    pub attempts_max: i32,
    /// 0 of a job that is over: then nobody asks.
    pub rescues: i32,
    pub holder: Option<LeaseToken>,
    /// Ends of attempts that did not finish the job, in order; `None` where the store keeps none.
    pub log: Option<Vec<String>>,
}

#[derive(Debug, Clone)]
struct Job {
    id: JobId,
    tenant: usize,
    key: Option<u8>,
    state: State,
    attempt: i32,
    attempts_max: i32,
    rescues: i32,
    holder: Option<LeaseToken>,
    lease_until: u32,
    due: u32,
    started: bool,
    stop_asked: bool,
    log: Vec<&'static str>,
}

impl Job {
    fn is_live(&self) -> bool {
        matches!(self.state, State::Scheduled | State::Available | State::Running | State::Retryable)
    }

    fn is_over(&self) -> bool {
        matches!(self.state, State::Completed | State::Cancelled)
    }

    fn become_(&mut self, state: State) {
        assert!(!self.is_over(), "the model itself ends a job twice");
        self.state = state;
        if state != State::Running {
            self.holder = None;
        }
    }

    fn settle(&mut self, end: End, now: u32) {
        if self.stop_asked && matches!(end, End::Retry { .. } | End::Snooze { .. } | End::Release | End::Interrupt) {
            return self.become_(State::Cancelled);
        }
        if !matches!(end, End::Release | End::Interrupt) {
            self.rescues = 0;
        }
        if matches!(end, End::Snooze { .. } | End::Release | End::Interrupt) {
            self.attempt -= 1;
        }
        let used_up = self.attempt >= self.attempts_max;
        let (state, logged) = match end {
            End::Complete => (State::Completed, None),
            End::Cancel => (State::Cancelled, None),
            End::Release => (State::Available, None),
            End::Interrupt => (State::Available, Some("interrupted")),
            End::Dead => (State::Dead, Some("dead")),
            End::Quarantine => (State::Quarantined, Some("quarantine")),
            End::Retry { .. } if used_up => (State::Dead, Some("dead")),
            End::Retry { later: true } => (State::Retryable, Some("retry")),
            End::Retry { later: false } => (State::Available, Some("retry")),
            End::Snooze { .. } => (State::Scheduled, Some("snooze")),
        };
        self.due = now + if end.is_later() { LATER } else { 0 };
        self.log.extend(logged);
        self.become_(state);
    }

    /// Due jobs are promoted, and what lost its lease is taken back.
    fn upkeep(&mut self, now: u32) {
        match self.state {
            State::Scheduled | State::Retryable if self.due <= now => self.become_(State::Available),
            State::Running if self.lease_until < now => {
                if !self.started && !self.stop_asked {
                    self.attempt -= 1;
                    return self.become_(State::Available);
                }
                self.log.push("lease_expired");
                if self.stop_asked {
                    return self.become_(State::Cancelled);
                }
                self.rescues += 1;
                self.become_(if self.rescues >= LOST_LEASES_MAX {
                    State::Quarantined
                } else if self.attempt >= self.attempts_max {
                    State::Dead
                } else {
                    State::Available
                });
            }
            _ => {}
        }
    }

    fn take(&mut self, taken: &Taken, now: u32) -> Result<(), String> {
        if self.state != State::Available {
            return Err(format!("handed out while it is {}", self.state));
        }
        self.attempt += 1;
        self.become_(State::Running);
        self.holder = Some(taken.token);
        self.lease_until = now + LEASE;
        self.started = self.rescues == 0;
        let (told, meant) =
            ((taken.attempt, taken.attempts_max, taken.rescues), (self.attempt, self.attempts_max, self.rescues));
        same("attempt, most attempts and lost leases of a claimed job", told, meant)
    }

    fn redrive(&mut self, key_is_free: bool, answer: &Answer, now: u32) -> Result<(), String> {
        let former = if self.is_over() { Answer::Former(None) } else { Answer::Former(Some(self.state)) };
        if matches!(self.state, State::Running | State::Available)
            || (!self.is_live() && !self.is_over() && !key_is_free)
        {
            return same("a redrive", answer, &Answer::Refused);
        }
        if !self.is_over() {
            (self.rescues, self.stop_asked, self.due) = (0, false, now);
            self.attempts_max = self.attempt + ATTEMPTS;
            self.become_(State::Available);
        }
        same("a redrive", answer, &former)
    }

    /// What a call did to this job, if the answer is right about it. (Twice in one claim is handed out while it runs.)
    fn accept(&mut self, call: &Call, answer: &Answer, now: u32) -> Result<(), String> {
        match (call, answer) {
            (Call::Claim { .. }, Answer::Claimed(taken)) => {
                let id = self.id;
                taken.iter().filter(|taken| taken.job == id).try_for_each(|taken| self.take(taken, now))
            }
            (Call::Start { job, token, .. }, Answer::Held(held)) if *job == self.id => {
                let holds = self.holder == Some(*token);
                self.started |= holds;
                same("a start", *held, holds)
            }
            (Call::Renew { held, .. }, Answer::Renewed(renewed)) => {
                let holds = held.iter().any(|(job, token)| *job == self.id && self.holder == Some(*token));
                let meant: Vec<bool> = holds.then_some(self.stop_asked).into_iter().collect();
                let told: Vec<bool> =
                    renewed.iter().filter(|(job, _)| *job == self.id).map(|(_, stop)| *stop).collect();
                if holds {
                    self.lease_until = now + LEASE;
                }
                same("a renewal (once for each lease still held: is it to stop)", told, meant)
            }
            (Call::Settle { ends, .. }, Answer::Settled(settled)) => {
                let end = ends.iter().find(|(job, token, _)| *job == self.id && self.holder == Some(*token));
                if let Some((_, _, end)) = end {
                    self.settle(*end, now);
                }
                let told = settled.iter().filter(|job| **job == self.id).count();
                same("how many settlements were stored", told, usize::from(end.is_some()))
            }
            (Call::Upkeep, Answer::Nothing) => {
                self.upkeep(now);
                Ok(())
            }
            (Call::Cancel { job }, Answer::Former(former)) if *job == self.id => {
                let meant = (!self.is_over()).then_some(self.state);
                match self.state {
                    State::Running => self.stop_asked = true,
                    State::Completed | State::Cancelled => {}
                    _ => self.become_(State::Cancelled),
                }
                same("the former state of what was cancelled", *former, meant)
            }
            _ => Ok(()),
        }
    }

    fn agrees(&self, seen: &Seen) -> Result<(), String> {
        let meant = Seen {
            job: self.id,
            state: self.state,
            attempt: self.attempt,
            attempts_max: self.attempts_max,
            rescues: if self.is_over() { 0 } else { self.rescues },
            holder: self.holder,
            log: seen.log.is_some().then(|| self.log.iter().map(|&word| word.to_owned()).collect()),
        };
        if seen.attempt > seen.attempts_max {
            return Err(format!("attempt {} of {}", seen.attempt, seen.attempts_max));
        }
        same("the job", seen, &meant)
    }
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, store: T, model: T) -> Result<(), String> {
    if store == model { Ok(()) } else { Err(format!("{what}\n      store: {store:?}\n      model: {model:?}")) }
}

#[derive(Debug, Clone, Default)]
pub struct Reference {
    now: u32,
    jobs: Vec<Job>,
}

impl Reference {
    pub fn jobs(&self) -> Vec<JobId> {
        self.jobs.iter().map(|job| job.id).collect()
    }

    /// Jobs that are neither over nor wait for an operator.
    pub fn live(&self) -> usize {
        self.jobs.iter().filter(|job| job.is_live()).count()
    }

    pub fn number(&self, id: JobId) -> usize {
        self.jobs.iter().position(|job| job.id == id).unwrap_or(usize::MAX)
    }

    /// Takes over what one call did, which nothing else was beside.
    pub fn accept(&mut self, call: &Call, answer: &Answer) -> Result<(), String> {
        match (call, answer) {
            (Call::Pass { ticks }, _) => self.now += ticks * TICK,
            (Call::Enqueue { tenant, key, later }, Answer::Job(id)) => return self.enqueue(*tenant, *key, *later, *id),
            (Call::Redrive { job }, _) => return self.redrive(*job, answer),
            (Call::Claim { places, .. }, Answer::Claimed(taken)) => {
                let ready = self.jobs.iter().filter(|job| job.state == State::Available).count();
                same("how many jobs were claimed", taken.len(), ready.min(*places))?;
                if let Some(taken) = taken.iter().find(|taken| self.jobs.iter().all(|job| job.id != taken.job)) {
                    return Err(format!("{} was never enqueued", taken.job));
                }
            }
            _ => {}
        }
        let now = self.now;
        self.jobs
            .iter_mut()
            .enumerate()
            .try_for_each(|(n, job)| job.accept(call, answer, now).map_err(|why| format!("job {n}: {why}")))
    }

    /// Takes over what two calls did at the same time: for each job one of both orders explains what is seen. Upkeep may
    /// pass over a job that the other one has in hand; the next one comes to it.
    pub fn accept_both(
        &mut self,
        first: (&Call, &Answer),
        second: (&Call, &Answer),
        seen: &[Seen],
    ) -> Result<(), String> {
        let mut orders = vec![vec![first, second], vec![second, first]];
        for (here, other) in [(first, second), (second, first)] {
            if matches!(here.0, Call::Upkeep) {
                orders.push(vec![other]);
            }
        }
        let now = self.now;
        for (n, job) in self.jobs.iter_mut().enumerate() {
            let seen = seen.iter().find(|seen| seen.job == job.id).ok_or(format!("job {n} is lost"))?;
            let mut refusals = Vec::new();
            let explained = orders.iter().find_map(|order| {
                let mut tried = job.clone();
                let outcome = order
                    .iter()
                    .try_for_each(|(call, answer)| tried.accept(call, answer, now))
                    .and_then(|()| tried.agrees(seen));
                outcome.map_err(|why| refusals.push(why)).ok().map(|()| tried)
            });
            *job = explained.ok_or_else(|| format!("job {n}: in no order: {}", refusals.join("; ")))?;
        }
        Ok(())
    }

    fn enqueue(&mut self, tenant: usize, key: Option<u8>, later: bool, id: JobId) -> Result<(), String> {
        let taken =
            self.jobs.iter().find(|job| key.is_some() && job.is_live() && (job.tenant, job.key) == (tenant, key));
        if let Some(job) = taken {
            return same("whose dedupe key it is", id, job.id);
        }
        if self.jobs.iter().any(|job| job.id == id) {
            return Err("no live job has this dedupe key, and yet none was made".to_owned());
        }
        self.jobs.push(Job {
            id,
            tenant,
            key,
            state: if later { State::Scheduled } else { State::Available },
            attempt: 0,
            attempts_max: ATTEMPTS,
            rescues: 0,
            holder: None,
            lease_until: 0,
            due: self.now + if later { LATER } else { 0 },
            started: false,
            stop_asked: false,
            log: Vec::new(),
        });
        Ok(())
    }

    fn redrive(&mut self, id: JobId, answer: &Answer) -> Result<(), String> {
        let (now, at) = (self.now, self.number(id));
        let key_of = |job: &Job| job.key.map(|key| (job.tenant, key));
        let wanted = key_of(&self.jobs[at]);
        let free =
            wanted.is_none() || !self.jobs.iter().any(|job| job.is_live() && job.id != id && key_of(job) == wanted);
        self.jobs[at].redrive(free, answer, now).map_err(|why| format!("job {at}: {why}"))
    }

    /// Every job is there once, as it should be, and nothing else is.
    pub fn agrees(&self, seen: &[Seen]) -> Result<(), String> {
        same("how many jobs there are", seen.len(), self.jobs.len())?;
        self.jobs.iter().enumerate().try_for_each(|(n, job)| {
            let seen = seen.iter().find(|seen| seen.job == job.id).ok_or(format!("job {n} is lost"))?;
            job.agrees(seen).map_err(|why| format!("job {n}: {why}"))
        })
    }
}
