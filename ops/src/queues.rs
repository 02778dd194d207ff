//! `reeve queues …`, `reeve kinds …` and `reeve jobs why`: what waits, for what, and the switches.
use std::io::{self, Write};

use clap::{Args, Subcommand};
use reeve_jobs::{
    JobId,
    queue::{
        operate::Act,
        waits::{self, QueueRow, Why},
    },
};
use serde_json::json;

use crate::{
    cli::{self, Cli},
    config::Config,
    output::{Table, clean},
    run::{Failure, Terminal, actor, open, open_to_act, show},
    service::{ServiceError, jobs},
};

#[derive(Debug, Subcommand)]
pub enum Queues {
    /// List queues with their kinds, what is paused, and how many jobs are ready and running
    List,
    /// Let all jobs of a queue wait; running ones go on
    Pause(Switch),
    /// Undo a pause
    Resume(Switch),
}

#[derive(Debug, Subcommand)]
pub enum Kinds {
    /// Let all jobs of a kind wait, of every tenant; running ones go on
    Pause(Switch),
    /// Undo a pause
    Resume(Switch),
}

#[derive(Debug, Args)]
pub struct Switch {
    pub name: String,
    /// Why; kept in the audit log
    #[arg(long, value_parser = cli::reason)]
    pub reason: String,
}

pub(crate) async fn queues(
    cli: &Cli,
    config: &Config,
    verb: &Queues,
    terminal: &mut Terminal<'_>,
) -> Result<(), Failure> {
    let (switch, pause) = match verb {
        Queues::List => {
            let found = waits::queues(&open(config).await?).await.map_err(ServiceError::from)?;
            return Ok(show(cli, terminal, &found, |out, found| list(out, found))?);
        }
        Queues::Pause(switch) => (switch, true),
        Queues::Resume(switch) => (switch, false),
    };
    let actor = actor(terminal)?;
    let act = Act { actor: &actor, reason: &switch.reason };
    let changed =
        waits::pause_queue(&open_to_act(config).await?, &switch.name, pause, act).await.map_err(ServiceError::from)?;
    tell(cli, terminal, "queue", &switch.name, pause, changed)
}

pub(crate) async fn kinds(
    cli: &Cli,
    config: &Config,
    verb: &Kinds,
    terminal: &mut Terminal<'_>,
) -> Result<(), Failure> {
    let (switch, pause) = match verb {
        Kinds::Pause(switch) => (switch, true),
        Kinds::Resume(switch) => (switch, false),
    };
    let actor = actor(terminal)?;
    let act = Act { actor: &actor, reason: &switch.reason };
    let changed =
        waits::pause_kind(&open_to_act(config).await?, &switch.name, pause, act).await.map_err(ServiceError::from)?;
    tell(cli, terminal, "kind", &switch.name, pause, changed)
}

pub(crate) async fn why(cli: &Cli, config: &Config, id: JobId, terminal: &mut Terminal<'_>) -> Result<(), Failure> {
    let why = jobs::why(&open(config).await?, id).await?;
    Ok(show(cli, terminal, &why, reasons)?)
}

fn tell(
    cli: &Cli,
    terminal: &mut Terminal<'_>,
    what: &str,
    name: &str,
    pause: bool,
    changed: bool,
) -> Result<(), Failure> {
    let now = if pause { "paused" } else { "not paused" };
    let before = if changed { "" } else { ", as it was before" };
    let value = json!({ what: name, "paused": pause, "changed": changed });
    Ok(show(cli, terminal, &value, |out, _| writeln!(out, "{what} {} is {now}{before}", clean(name)))?)
}

fn list(out: &mut dyn Write, found: &[QueueRow]) -> io::Result<()> {
    let mut table = Table::headed(&["queue", "paused", "ready", "running", "kinds"]);
    for queue in found {
        let paused = if queue.paused { "yes" } else { "" };
        let kinds: Vec<_> = (queue.kinds.iter())
            .map(|kind| if queue.kinds_paused.contains(kind) { format!("{kind} (paused)") } else { kind.clone() })
            .collect();
        table.row([
            queue.queue.clone(),
            paused.to_owned(),
            queue.available.to_string(),
            queue.running.to_string(),
            kinds.join(", "),
        ]);
    }
    table.write(out)
}

fn reasons(out: &mut dyn Write, why: &Why) -> io::Result<()> {
    writeln!(out, "{}  {} of {}, {}", why.id, clean(&why.kind), clean(&why.tenant), why.state)?;
    why.reasons().iter().try_for_each(|reason| writeln!(out, "  {}", clean(reason)))
}
