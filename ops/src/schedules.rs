//! `reeve schedules …`: when which kind comes due, and the operator's say in it.
use std::io::{self, Write};

use clap::{Args, Subcommand};
use reeve_jobs::{
    TenantId,
    queue::{operate::Act, slots::CatchUp},
};
use serde_json::json;

use crate::{
    cli::{self, Cli},
    config::Config,
    output::{Table, clean, time},
    run::{Failure, Terminal, actor, open, open_to_act, show},
    service::schedules::{self, Changed, Changes, NextSlots, ScheduleRow},
};

#[derive(Debug, Subcommand)]
pub enum Schedules {
    /// List all schedules
    List,
    /// Show one schedule, with what is changed of it
    Show { kind: String },
    /// Let a schedule make no jobs; slots that pass count as missed
    Pause(Switch),
    /// Undo a pause; the catch-up policy says what becomes of missed slots
    Resume(Switch),
    /// Change when a schedule comes due, and how. What cannot be followed is refused
    Set(Set),
    /// Show the next slots in the schedule's time zone and in UTC: what a change of the clocks does
    Next {
        kind: String,
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1000))]
        count: u16,
    },
    /// Make jobs now, outside the cadence: of one tenant, or of all. None while those of the last such run live
    Run {
        kind: String,
        /// Only for this tenant
        #[arg(long)]
        tenant: Option<TenantId>,
        /// Why; kept in the audit log
        #[arg(long, value_parser = cli::reason)]
        reason: String,
    },
}

#[derive(Debug, Args)]
pub struct Switch {
    pub kind: String,
    /// Why; kept in the audit log
    #[arg(long, value_parser = cli::reason)]
    pub reason: String,
}

#[derive(Debug, Args)]
pub struct Set {
    kind: String,
    #[command(flatten)]
    fields: Fields,
    /// Why; kept in the audit log
    #[arg(long, value_parser = cli::reason)]
    reason: String,
}

/// What to set: one at least.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct Fields {
    /// Five fields (minute hour day month weekday), or a nickname such as @daily
    #[arg(long, value_name = "CRON", conflicts_with = "cron_default", allow_hyphen_values = true)]
    cron: Option<String>,
    /// The kind's own cadence again
    #[arg(long)]
    cron_default: bool,
    /// An IANA time zone, such as Europe/Berlin
    #[arg(long, value_name = "ZONE")]
    time_zone: Option<String>,
    /// Spread the tenants over this many seconds after the slot, up to a day; or default for the kind's own
    #[arg(long, value_name = "SECS|default", value_parser = window)]
    window_secs: Option<Window>,
    /// What becomes of slots that passed while nothing ran: skip, latest or all
    #[arg(long, value_name = "POLICY")]
    catch_up: Option<CatchUp>,
}

#[derive(Debug, Clone, Copy)]
struct Window(Option<i32>);

fn window(text: &str) -> Result<Window, String> {
    match text {
        "default" => Ok(Window(None)),
        _ => match text.parse() {
            Ok(secs @ 0..=86_400) => Ok(Window(Some(secs))),
            _ => Err("write seconds from 0 to 86400, or default for the kind's own".to_owned()),
        },
    }
}

impl Fields {
    fn changes(&self) -> Changes {
        Changes {
            cron: if self.cron_default { Some(None) } else { self.cron.clone().map(Some) },
            time_zone: self.time_zone.clone(),
            window_secs: self.window_secs.map(|window| window.0),
            catch_up: self.catch_up,
        }
    }
}

pub(crate) async fn run(
    cli: &Cli,
    config: &Config,
    verb: &Schedules,
    terminal: &mut Terminal<'_>,
) -> Result<(), Failure> {
    let changed = match verb {
        Schedules::List => {
            let found = schedules::list(&open(config).await?).await?;
            return Ok(show(cli, terminal, &found, |out, found| list(out, found))?);
        }
        Schedules::Show { kind } => {
            let found = schedules::show(&open(config).await?, kind).await?;
            return Ok(show(cli, terminal, &found, one)?);
        }
        Schedules::Next { kind, count } => {
            let found = schedules::next(&open(config).await?, kind, usize::from(*count)).await?;
            return Ok(show(cli, terminal, &found, next)?);
        }
        Schedules::Run { kind, tenant, reason } => {
            let actor = actor(terminal)?;
            let act = Act { actor: &actor, reason };
            let made = schedules::run(&open_to_act(config).await?, kind, tenant.as_ref(), act).await?;
            return Ok(show(cli, terminal, &json!({ "kind": kind, "jobs": made }), |out, _| {
                let why = if made == 0 { ": none may work, or those of the last run still live" } else { "" };
                writeln!(out, "jobs made: {made}{why}")
            })?);
        }
        Schedules::Pause(switch) => pause(config, switch, true, terminal).await?,
        Schedules::Resume(switch) => pause(config, switch, false, terminal).await?,
        Schedules::Set(set) => {
            let actor = actor(terminal)?;
            let act = Act { actor: &actor, reason: &set.reason };
            schedules::set(&open_to_act(config).await?, &set.kind, &set.fields.changes(), act).await?
        }
    };
    Ok(show(cli, terminal, &changed, |out, changed| match changed.changed.as_slice() {
        [] => writeln!(out, "it is so already; nothing was changed"),
        fields => writeln!(out, "changed: {}", fields.join(", ")),
    })?)
}

async fn pause(config: &Config, of: &Switch, pause: bool, terminal: &mut Terminal<'_>) -> Result<Changed, Failure> {
    let actor = actor(terminal)?;
    let act = Act { actor: &actor, reason: &of.reason };
    Ok(schedules::pause(&open_to_act(config).await?, &of.kind, pause, act).await?)
}

fn list(out: &mut dyn Write, found: &[ScheduleRow]) -> io::Result<()> {
    let mut table = Table::headed(&["kind", "cron", "zone", "window s", "catch-up", "paused", "next", "last"]);
    for schedule in found {
        let own = if schedule.cron_override.is_some() { " (changed)" } else { "" };
        table.row([
            schedule.kind.clone(),
            format!("{}{own}", schedule.cron_in_force()),
            schedule.time_zone.clone(),
            schedule.window_in_force().to_string(),
            schedule.catch_up.clone(),
            if schedule.paused { "yes" } else { "" }.to_owned(),
            schedule.next_at.map_or_else(|| "-".to_owned(), time),
            schedule.last_slot_at.map_or_else(|| "-".to_owned(), time),
        ]);
    }
    table.write(out)
}

fn one(out: &mut dyn Write, schedule: &ScheduleRow) -> io::Result<()> {
    let changed = |is: bool, own: String| if is { format!("  (the kind's own: {own})") } else { String::new() };
    let cron = changed(schedule.cron_override.is_some(), schedule.cron.clone());
    let window = changed(schedule.window_override.is_some(), schedule.window_secs.to_string());
    let at = |at: Option<_>, none: &str| at.map_or_else(|| none.to_owned(), time);
    let mut table = Table::default();
    for (name, value) in [
        ("kind", schedule.kind.clone()),
        ("cron", format!("{}{cron}", schedule.cron_in_force())),
        ("time zone", schedule.time_zone.clone()),
        ("window", format!("{} s{window}", schedule.window_in_force())),
        ("catch-up", schedule.catch_up.clone()),
        ("paused", if schedule.paused { "yes" } else { "no" }.to_owned()),
        ("next slot", at(schedule.next_at, "not computed yet; does a scheduler run?")),
        ("last slot", at(schedule.last_slot_at, "none yet")),
    ] {
        table.row([name.to_owned(), value]);
    }
    table.write(out)
}

fn next(out: &mut dyn Write, found: &NextSlots) -> io::Result<()> {
    if found.paused {
        writeln!(out, "{} is paused: none of these makes jobs before `reeve schedules resume`", clean(&found.kind))?;
    }
    let mut table = Table::headed(&[found.time_zone.as_str(), "UTC"]);
    for slot in &found.slots {
        table.row([slot.local.format("%a %Y-%m-%d %H:%M").to_string(), time(slot.at)]);
    }
    table.write(out)
}
