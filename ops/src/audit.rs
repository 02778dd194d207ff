//! `reeve audit …`: from arguments to [`service::audit`], and how its results look.
use std::io::{self, Write};

use reeve_jobs::{
    audit::{
        inspect::{Filter, Found, erase_body},
        shipped::Witness,
        verify::Report,
    },
    queue::operate::Act,
};
use serde_json::json;

use crate::{
    cli::{self, Cli},
    config::Config,
    output::{Table, shorten, time},
    run::{Failure, Outcome, Terminal, actor, open, open_to_act, show},
    service::{ServiceError, audit, audit::Signed},
};

pub(crate) async fn run(
    cli: &Cli,
    config: &Config,
    verb: &cli::Audit,
    terminal: &mut Terminal<'_>,
) -> Result<Outcome, Failure> {
    match verb {
        cli::Audit::Verify { tenant, checkpoints } => {
            let key = config.audit_key()?;
            let witness = match checkpoints {
                Some(file) => Witness::read(file, &config.require_audit_key()?).map_err(ServiceError::from)?,
                None => Witness::default(),
            };
            let pool = open(config).await?;
            let found = audit::verify(&pool, tenant.as_deref(), key.as_ref(), &witness).await?;
            show(cli, terminal, &found, |out, found| reports(out, found))?;
            if key.is_none() {
                writeln!(terminal.messages, "signatures of checkpoints were not checked: [ops] audit_key is not set")?;
            }
            if witness.torn > 0 {
                writeln!(
                    terminal.messages,
                    "lines of checkpoints that were cut short and passed over: {}",
                    witness.torn
                )?;
            }
            if found.iter().any(|report| report.broken.is_some()) {
                return Ok(Outcome::CheckFailed);
            }
        }
        cli::Audit::Search(arguments) => {
            let pool = open(config).await?;
            let found = audit::search(&pool, &filter(arguments), arguments.limit).await?;
            show(cli, terminal, &found, |out, found| entries(out, found))?;
            tell_more(terminal, found.len(), arguments.limit)?;
        }
        cli::Audit::Csv(arguments) => {
            let pool = open(config).await?;
            let found = audit::search(&pool, &filter(arguments), arguments.limit).await?;
            csv(terminal.out, &found)?;
            tell_more(terminal, found.len(), arguments.limit)?;
        }
        cli::Audit::Checkpoint { tenant, checkpoints: file } => {
            let key = config.require_audit_key()?;
            let pool = open_to_act(config).await?;
            let made = audit::checkpoint(&pool, tenant.as_deref(), &key, file.as_deref()).await?;
            show(cli, terminal, &made, |out, made| checkpoints(out, made))?;
            if made.iter().any(|signed| signed.broken.is_some()) {
                return Ok(Outcome::CheckFailed);
            }
        }
        cli::Audit::Erase { tenant, seq, reason } => {
            let actor = actor(terminal)?;
            let pool = open_to_act(config).await?;
            let act = Act { actor: &actor, reason };
            let erased = erase_body(&pool, tenant, *seq, act).await.map_err(ServiceError::from)?;
            show(cli, terminal, &json!({ "erased": erased }), |out, _| {
                writeln!(out, "{}", if erased { "erased" } else { "there is nothing to erase" })
            })?;
            if !erased {
                return Ok(Outcome::CheckFailed);
            }
        }
    }
    Ok(Outcome::Done)
}

fn filter(arguments: &cli::Search) -> Filter {
    Filter {
        tenant: arguments.tenant.clone(),
        actor: arguments.actor.clone(),
        action: arguments.action.clone(),
        target: arguments.target.clone(),
        since: arguments.since,
        until: arguments.until,
        trace_id: arguments.trace.clone(),
    }
}

fn tell_more(terminal: &mut Terminal<'_>, found: usize, limit: i64) -> io::Result<()> {
    if i64::try_from(found).is_ok_and(|n| n == limit) {
        writeln!(terminal.messages, "the newest {limit}; --limit shows more")?;
    }
    Ok(())
}

fn reports(out: &mut dyn Write, reports: &[Report]) -> io::Result<()> {
    let mut table = Table::headed(&["TENANT", "LAST", "ENTRIES", "STUBS", "ERASED", "SIGNED TO", "CHAIN"]);
    for report in reports {
        let chain = match &report.broken {
            None => "ok".to_owned(),
            Some(broken) => format!("BROKEN at {}: {}", broken.seq, broken.why),
        };
        table.row([
            report.tenant.clone(),
            report.seq.to_string(),
            report.entries.to_string(),
            report.stubs.to_string(),
            report.erased.to_string(),
            report.signed_to.to_string(),
            chain,
        ]);
    }
    table.write(out)
}

fn checkpoints(out: &mut dyn Write, made: &[Signed]) -> io::Result<()> {
    let mut table = Table::headed(&["TENANT", "SEQ", "HASH", "SIGNATURE"]);
    for signed in made {
        let hash = match (&signed.broken, &signed.hash) {
            (Some(broken), _) => format!("BROKEN, not signed: {broken}"),
            (None, Some(hash)) => hash.clone(),
            (None, None) => "nothing new".to_owned(),
        };
        let signature = signed.signature.clone().unwrap_or_default();
        table.row([signed.tenant.clone(), signed.seq.to_string(), hash, signature]);
    }
    table.write(out)
}

/// Characters of a reason that the table shows; `--json` and `csv` have the whole.
const REASON_CHARS: usize = 60;

fn entries(out: &mut dyn Write, found: &[Found]) -> io::Result<()> {
    let mut table = Table::headed(&["AT", "TENANT", "SEQ", "ACTOR", "ACTION", "TARGET", "REASON"]);
    for entry in found {
        table.row([
            time(entry.at),
            entry.tenant.clone(),
            entry.seq.to_string(),
            entry.actor.clone(),
            entry.action.clone(),
            entry.target.clone(),
            if entry.erased {
                "(erased)".to_owned()
            } else {
                shorten(entry.reason.as_deref().unwrap_or(""), REASON_CHARS)
            },
        ]);
    }
    table.write(out)
}

/// RFC 4180.
fn csv(out: &mut dyn Write, found: &[Found]) -> io::Result<()> {
    let heads = [
        "tenant",
        "seq",
        "at",
        "class",
        "actor",
        "action",
        "target",
        "reason",
        "fields",
        "erased",
        "job_id",
        "attempt",
        "trace_id",
        "source_ip_hash",
    ];
    csv_line(out, heads.map(str::to_owned))?;
    for entry in found {
        csv_line(
            out,
            [
                entry.tenant.clone(),
                entry.seq.to_string(),
                entry.at.to_rfc3339_opts(chrono::SecondsFormat::Micros, true),
                entry.class.clone(),
                entry.actor.clone(),
                entry.action.clone(),
                entry.target.clone(),
                entry.reason.clone().unwrap_or_default(),
                entry.fields.join(" "),
                entry.erased.to_string(),
                entry.job_id.map(|id| id.to_string()).unwrap_or_default(),
                entry.attempt.map(|n| n.to_string()).unwrap_or_default(),
                entry.trace_id.clone().unwrap_or_default(),
                entry.source_ip_hash.clone().unwrap_or_default(),
            ],
        )?;
    }
    Ok(())
}

fn csv_line<const N: usize>(out: &mut dyn Write, cells: [String; N]) -> io::Result<()> {
    write!(out, "{}\r\n", cells.map(|cell| csv_cell(&cell)).join(","))
}

/// A spreadsheet runs what begins like a formula; an apostrophe before it makes it text (OWASP, "CSV Injection").
fn csv_cell(text: &str) -> String {
    let guard = if text.starts_with(['=', '+', '-', '@', '\t', '\r']) { "'" } else { "" };
    if text.contains(['"', ',', '\r', '\n']) {
        return format!("\"{guard}{}\"", text.replace('"', "\"\""));
    }
    format!("{guard}{text}")
}

#[cfg(test)]
mod tests {
    use super::csv_cell;

    #[test]
    fn no_cell_is_a_formula_and_quotes_are_doubled() {
        for (text, cell) in [
            ("=1+1", "'=1+1"),
            ("+1", "'+1"),
            ("-", "'-"),
            ("@SUM(A1)", "'@SUM(A1)"),
            ("\t=1", "'\t=1"),
            ("\r=1", "\"'\r=1\""),
            ("=HYPERLINK(\"http://x\",\"y\")", "\"'=HYPERLINK(\"\"http://x\"\",\"\"y\"\")\""),
            ("a=b", "a=b"),
            ("two\nlines", "\"two\nlines\""),
            ("", ""),
        ] {
            assert_eq!(csv_cell(text), cell, "{text:?}");
        }
    }
}
