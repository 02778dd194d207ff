//! `reeve jobs erase-subject`, `keep-history` and `history-rules`: what is kept of jobs, and of whom.
//!
//! The subject of an erasure is personal data. It is read from standard input, so that no list of processes and no shell's
//! history has it, and never told.
use std::io::{self, Read, Write};

use clap::{Args, Subcommand};
use reeve_jobs::{
    TenantId,
    queue::{
        history::{self, Erased, Rule},
        operate::Act,
    },
    redact::Redacted,
};
use serde_json::json;

use crate::{
    cli::{self, Cli},
    config::Config,
    output::Table,
    run::{Failure, Outcome, Terminal, actor, open, open_to_act, show},
    service::ServiceError,
};

#[derive(Debug, Subcommand)]
pub enum History {
    /// Take a person out of a tenant's jobs. The subject, as the app gave it when it enqueued, is read from standard input;
    /// exit code 1 while jobs about it still run: then call it again
    EraseSubject {
        #[arg(long)]
        tenant: TenantId,
        /// Why; kept in the audit log, so without the person's name
        #[arg(long, value_parser = cli::reason)]
        reason: String,
    },
    /// Keep history shorter for a tenant, for a kind, or for a tenant's jobs of a kind
    KeepHistory {
        #[command(flatten)]
        of: Of,
        /// So many days, or none to take the rule away
        #[arg(long, value_name = "N|none", value_parser = days)]
        days: Days,
        /// Why; kept in the audit log
        #[arg(long, value_parser = cli::reason)]
        reason: String,
    },
    /// List where history is kept shorter
    HistoryRules,
}

/// Whose history: one at least, for everybody's is the scheduler's own setting.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub struct Of {
    /// Only this tenant's
    #[arg(long)]
    tenant: Option<TenantId>,
    /// Only of this kind
    #[arg(long)]
    kind: Option<String>,
}

#[derive(Debug, Clone, Copy)]
pub struct Days(Option<i32>);

fn days(text: &str) -> Result<Days, String> {
    match (text, text.parse()) {
        ("none", _) => Ok(Days(None)),
        (_, Ok(days @ 0..=3650)) => Ok(Days(Some(days))),
        _ => Err("write days from 0 to 3650, or none to take the rule away".to_owned()),
    }
}

pub(crate) async fn run(
    cli: &Cli,
    config: &Config,
    verb: &History,
    terminal: &mut Terminal<'_>,
) -> Result<Outcome, Failure> {
    match verb {
        History::EraseSubject { tenant, reason } => {
            let actor = actor(terminal)?;
            let subject = subject(terminal.input)?;
            let act = Act { actor: &actor, reason };
            let pool = open_to_act(config).await?;
            let erased = history::erase_subject(&pool, tenant, &subject, act).await.map_err(ServiceError::from)?;
            show(cli, terminal, &erased, told)?;
            if erased.running > 0 {
                writeln!(
                    terminal.messages,
                    "not all is erased: running jobs were asked to stop; call again when they have"
                )?;
                return Ok(Outcome::CheckFailed);
            }
        }
        History::KeepHistory { of, days: Days(days), reason } => {
            let actor = actor(terminal)?;
            let act = Act { actor: &actor, reason };
            let (tenant, kind) = (of.tenant.as_ref(), of.kind.as_deref());
            history::keep(&open_to_act(config).await?, tenant, kind, *days, act).await.map_err(ServiceError::from)?;
            show(cli, terminal, &json!({ "tenant": tenant, "kind": kind, "keep_days": days }), |out, _| match days {
                Some(days) => writeln!(out, "kept {days} days"),
                None => writeln!(out, "the rule is gone"),
            })?;
        }
        History::HistoryRules => {
            let found = history::rules(&open(config).await?).await.map_err(ServiceError::from)?;
            show(cli, terminal, &found, |out, found| rules(out, found))?;
        }
    }
    Ok(Outcome::Done)
}

/// All of standard input, without the line's end that an `echo` adds.
fn subject(input: &mut dyn Read) -> Result<Redacted<String>, Failure> {
    let mut text = String::new();
    input.read_to_string(&mut text).map_err(Failure::Input)?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Ok(Redacted::new(text.strip_suffix('\r').unwrap_or(text).to_owned()))
}

fn told(out: &mut dyn Write, erased: &Erased) -> io::Result<()> {
    let Erased { cancelled, redacted, running } = erased;
    writeln!(out, "cancelled: {cancelled}, erased: {redacted}, still running: {running}")
}

fn rules(out: &mut dyn Write, found: &[Rule]) -> io::Result<()> {
    let mut table = Table::headed(&["TENANT", "KIND", "DAYS"]);
    for rule in found {
        table.row([rule.tenant.clone(), rule.kind.clone(), rule.keep_days.to_string()]);
    }
    table.write(out)
}
