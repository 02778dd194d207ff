//! `reeve breakglass …`: from arguments to [`service::breakglass`], and how its results look.
//!
//! The password goes to standard output, once, and nowhere else.
use std::io::{self, Write};

use reeve_jobs::{queue::operate::Act, tenant::breakglass::Opening};

use crate::{
    cli::{self, Cli},
    config::Config,
    output::{Table, clean, shorten, time},
    run::{Failure, Outcome, Terminal, actor, open, show},
    service::breakglass::{self, Given},
};

pub(crate) async fn run(
    cli: &Cli,
    config: &Config,
    verb: &cli::Breakglass,
    terminal: &mut Terminal<'_>,
) -> Result<Outcome, Failure> {
    match verb {
        cli::Breakglass::Open { tenant, minutes, reason } => {
            let actor = actor(terminal)?;
            let pool = open(config).await?;
            let act = Act { actor: &actor, reason };
            let asked = breakglass::request(&pool, tenant, *minutes, act).await?;
            show(cli, terminal, &asked, |out, asked| writeln!(out, "{}", asked.id))?;
            writeln!(
                terminal.messages,
                "another operator approves it until {}: reeve breakglass approve {} --reason …",
                time(asked.lapses_at),
                asked.id
            )?;
        }
        cli::Breakglass::Approve { id, reason } => {
            let actor = actor(terminal)?;
            let pool = open(config).await?;
            let approved = breakglass::approve(&pool, *id, Act { actor: &actor, reason }).await?;
            show(cli, terminal, &approved, approval)?;
            writeln!(
                terminal.messages,
                "{} takes the login until {}: reeve breakglass login {}",
                clean(&approved.requested_by),
                time(approved.lapses_at),
                approved.id
            )?;
        }
        cli::Breakglass::Login { id } => {
            let actor = actor(terminal)?;
            let pool = open(config).await?;
            let given = breakglass::login(&pool, *id, &actor).await?;
            show(cli, terminal, &given, login)?;
            writeln!(terminal.messages, "this is shown once. In each session of psql, first:")?;
            writeln!(terminal.messages, "  SELECT reeve.breakglass_begin('what you look for');")?;
        }
        cli::Breakglass::Close { id, reason } => {
            let actor = actor(terminal)?;
            let pool = open(config).await?;
            let (closed, was_live) = breakglass::close(&pool, *id, Act { actor: &actor, reason }).await?;
            show(cli, terminal, &closed, |out, closed| {
                writeln!(out, "{}  {}{}", closed.id, closed.state, if was_live { "" } else { " before" })
            })?;
            tell_left(terminal, &closed)?;
            if !was_live {
                return Ok(Outcome::CheckFailed);
            }
        }
        cli::Breakglass::List { tenant, limit } => {
            let pool = open(config).await?;
            let found = breakglass::list(&pool, tenant.as_ref(), *limit).await?;
            show(cli, terminal, &found, |out, found| openings(out, found))?;
            if i64::try_from(found.len()).is_ok_and(|n| n == *limit) {
                writeln!(terminal.messages, "the newest {limit}; --limit shows more")?;
            }
        }
    }
    Ok(Outcome::Done)
}

fn approval(out: &mut dyn Write, approved: &Opening) -> io::Result<()> {
    writeln!(
        out,
        "approved: {} looks at tenant {} for {} min: {}",
        clean(&approved.requested_by),
        clean(&approved.tenant_id),
        approved.minutes,
        clean(&approved.reason)
    )
}

fn tell_left(terminal: &mut Terminal<'_>, closed: &Opening) -> io::Result<()> {
    let role = match &closed.login {
        Some(role) if closed.login_left => role,
        _ => return Ok(()),
    };
    writeln!(
        terminal.messages,
        "note: role {role} is barred but owns something in another database; there, as an administrator: \
         DROP OWNED BY {role}; then DROP ROLE {role};"
    )
}

fn login(out: &mut dyn Write, given: &Given) -> io::Result<()> {
    let mut table = Table::default();
    let mut field = |name: &str, value: &str| table.row([name.to_owned(), value.to_owned()]);
    field("user", &given.user);
    field("password", &given.password);
    field("database", &given.database);
    field("until", &time(given.valid_until));
    table.write(out)
}

/// Characters of a reason that the table shows; `--json` has the whole.
const REASON_CHARS: usize = 60;

fn openings(out: &mut dyn Write, found: &[Opening]) -> io::Result<()> {
    let mut table =
        Table::headed(&["ID", "TENANT", "STATE", "ASKED BY", "APPROVED BY", "MINUTES", "UNTIL", "SESSIONS", "REASON"]);
    for opening in found {
        let until = match opening.state.as_str() {
            "requested" | "approved" => Some(opening.lapses_at),
            "open" => opening.valid_until,
            _ => opening.closed_at,
        };
        table.row([
            opening.id.to_string(),
            opening.tenant_id.clone(),
            opening.state.clone(),
            opening.requested_by.clone(),
            opening.approved_by.clone().unwrap_or_else(|| "-".to_owned()),
            opening.minutes.to_string(),
            until.map_or_else(|| "-".to_owned(), time),
            opening.sessions.to_string(),
            shorten(&opening.reason, REASON_CHARS),
        ]);
    }
    table.write(out)
}
