//! `reeve jobs bulk …`: retry, cancel or move all jobs that match a filter. Without `--yes` only what would be changed is
//! counted; with it an operation is made, which the scheduler works through.
use std::io::{self, Write};

use chrono::{DateTime, TimeDelta, Utc};
use clap::{Args, Subcommand};
use reeve_jobs::{
    State, TenantId,
    clock::{Clock, SystemClock},
    queue::{
        bulk::{self, Bulk as Change, BulkFilter, Matched, Operation, Target},
        operate::Act,
    },
};
use serde_json::json;
use uuid::Uuid;

use crate::{
    cli::{self, Cli},
    config::Config,
    output::{Table, clean, shorten, time},
    run::{Failure, Outcome, Terminal, actor, open, open_to_act, show},
    service::ServiceError,
};

#[derive(Debug, Subcommand)]
pub enum Bulk {
    /// Give all matching dead, quarantined or waiting jobs a fresh set of attempts, now
    Retry(Doing),
    /// Cancel all matching jobs; running ones are asked to stop
    Cancel(Doing),
    /// Give all matching jobs that wait another priority, another time, or both
    Move {
        /// 1 is served first, 4 last
        #[arg(long, value_parser = clap::value_parser!(i16).range(1..=4), required_unless_present = "run_at")]
        priority: Option<i16>,
        /// Not before this: a day (2026-01-31, UTC) or a time (2026-01-31T12:00:00Z); in the past: now
        #[arg(long, value_parser = cli::moment)]
        run_at: Option<DateTime<Utc>>,
        #[command(flatten)]
        act: Doing,
    },
    /// List operations, newest first, and how far they have come
    List {
        /// At most this many
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(i64).range(1..=10_000))]
        limit: i64,
    },
    /// Show one operation
    Show { id: Uuid },
    /// End an operation before its time; what it changed stays changed
    Stop {
        id: Uuid,
        /// Why; kept in the audit log
        #[arg(long, value_parser = cli::reason)]
        reason: String,
    },
}

#[derive(Debug, Args)]
pub struct Doing {
    #[command(flatten)]
    filter: Which,
    /// Do it; else what would be changed is counted, and nothing is changed
    #[arg(long)]
    yes: bool,
    /// Why; kept in the audit log
    #[arg(long, value_parser = cli::reason)]
    reason: String,
}

/// All that is given must hold.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub struct Which {
    /// Only this tenant's
    #[arg(long)]
    tenant: Option<TenantId>,
    /// Only those of this kind
    #[arg(long)]
    kind: Option<String>,
    /// Only those in this state
    #[arg(long)]
    state: Option<State>,
    /// Only those of this queue
    #[arg(long)]
    queue: Option<String>,
    /// Only those made longer ago than this many minutes
    #[arg(long, value_name = "MINUTES", value_parser = clap::value_parser!(i64).range(0..=5_256_000))]
    older_than: Option<i64>,
}

impl Which {
    fn filter(&self) -> BulkFilter {
        BulkFilter {
            tenant: self.tenant.clone(),
            kind: self.kind.clone(),
            queue: self.queue.clone(),
            state: self.state,
            before: self.older_than.map(|minutes| SystemClock.now() - TimeDelta::minutes(minutes)),
        }
    }
}

pub(crate) async fn run(
    cli: &Cli,
    config: &Config,
    verb: &Bulk,
    terminal: &mut Terminal<'_>,
) -> Result<Outcome, Failure> {
    let (change, act) = match verb {
        Bulk::Retry(act) => (Change::Retry, act),
        Bulk::Cancel(act) => (Change::Cancel, act),
        Bulk::Move { priority, run_at, act } => (Change::Move(Target { priority: *priority, run_at: *run_at }), act),
        Bulk::List { limit } => {
            let found = bulk::list(&open(config).await?, None, *limit).await.map_err(ServiceError::from)?;
            show(cli, terminal, &found, |out, found| list(out, found))?;
            return Ok(Outcome::Done);
        }
        Bulk::Show { id } => {
            let found = bulk::list(&open(config).await?, Some(*id), 1).await.map_err(ServiceError::from)?.pop();
            let Some(found) = found else { return none(terminal, *id) };
            show(cli, terminal, &found, one)?;
            return Ok(Outcome::Done);
        }
        Bulk::Stop { id, reason } => {
            let actor = actor(terminal)?;
            let act = Act { actor: &actor, reason };
            let was = bulk::stop(&open_to_act(config).await?, *id, act).await.map_err(ServiceError::from)?;
            let Some(was) = was else { return none(terminal, *id) };
            let now = if was == "running" { "stopped" } else { &was };
            show(cli, terminal, &json!({ "id": id, "was": was, "now": now }), |out, _| {
                writeln!(out, "{id}  {was} → {now}")
            })?;
            return Ok(Outcome::Done);
        }
    };
    let filter = act.filter.filter();
    if !act.yes {
        let found = bulk::preview(&open(config).await?, &change, &filter).await.map_err(ServiceError::from)?;
        show(cli, terminal, &found, |out, found| preview(out, found))?;
        writeln!(terminal.messages, "nothing was changed; --yes does it")?;
        return Ok(Outcome::Done);
    }
    let actor = actor(terminal)?;
    let who = Act { actor: &actor, reason: &act.reason };
    let id = bulk::start(&open_to_act(config).await?, &change, &filter, who).await.map_err(ServiceError::from)?;
    show(cli, terminal, &json!({ "id": id }), |out, _| writeln!(out, "{id}"))?;
    writeln!(terminal.messages, "the scheduler works through it; `reeve jobs bulk show {id}` tells how far it is")?;
    Ok(Outcome::Done)
}

fn none(terminal: &mut Terminal<'_>, id: Uuid) -> Result<Outcome, Failure> {
    writeln!(terminal.messages, "error: there is no bulk operation {id}; `reeve jobs bulk list` shows them")?;
    Ok(Outcome::CheckFailed)
}

/// Rows of a preview that are shown to people; `--json` has all.
const ROWS_MAX: usize = 50;

fn preview(out: &mut dyn Write, found: &[Matched]) -> io::Result<()> {
    let mut table = Table::headed(&["TENANT", "KIND", "STATE", "JOBS"]);
    for row in found.iter().take(ROWS_MAX) {
        table.row([row.tenant.clone(), row.kind.clone(), row.state.clone(), row.jobs.to_string()]);
    }
    table.write(out)?;
    if found.len() > ROWS_MAX {
        writeln!(out, "… and {} more rows", found.len() - ROWS_MAX)?;
    }
    let tenants: std::collections::BTreeSet<_> = found.iter().map(|row| &row.tenant).collect();
    writeln!(out, "{} jobs of {} tenants", found.iter().map(|row| row.jobs).sum::<i64>(), tenants.len())
}

fn list(out: &mut dyn Write, found: &[Operation]) -> io::Result<()> {
    let mut table = Table::headed(&["ID", "ACT", "STATE", "CHANGED", "STARTED", "ACTOR", "FILTER"]);
    for row in found {
        table.row([
            row.id.to_string(),
            row.act.clone(),
            row.state.clone(),
            format!("{} of {}", row.changed, row.matched),
            time(row.started_at),
            row.actor.clone(),
            shorten(&row.filter.to_string(), 80),
        ]);
    }
    table.write(out)
}

fn one(out: &mut dyn Write, row: &Operation) -> io::Result<()> {
    let mut table = Table::default();
    let mut field = |name: &str, value: String| table.row([name.to_owned(), value]);
    field("id", row.id.to_string());
    field("act", row.act.clone());
    field("filter", row.filter.to_string());
    field("target", row.target.to_string());
    field("state", row.state.clone());
    field("changed", format!("{} of {} that matched when it began", row.changed, row.matched));
    field("started", time(row.started_at));
    field("ended", row.ended_at.map_or_else(|| "-".to_owned(), time));
    field("actor", row.actor.clone());
    field("reason", clean(&row.reason));
    table.write(out)
}
