//! `reeve tenants …`: arguments, from them to [`service::tenants`](crate::service::tenants), and what is said afterwards.
use clap::{Args, Subcommand};
use reeve_jobs::{TenantId, queue::operate::Act, redact::Redacted};
use serde_json::{Map, Value, json};

use crate::{
    cli::{Cli, reason},
    config::Config,
    output,
    run::{Failure, Outcome, Terminal, actor, open, open_to_act, payload, show},
    service::tenants::{self, Changed},
};

#[derive(Debug, Subcommand)]
pub enum Tenants {
    /// List all tenants
    List,
    /// Show one tenant, with its live and parked jobs by state and kind
    Show { id: TenantId },
    /// Register a tenant, as the app does when a workspace is made; one that is registered stays as it is
    Register {
        id: TenantId,
        #[arg(long)]
        name: String,
        /// Where its jobs run; the installation's own region when left out
        #[arg(long)]
        region: Option<String>,
        /// Why; kept in the audit log
        #[arg(long, value_parser = reason)]
        reason: Option<String>,
    },
    /// Change what Reeve knows of a tenant. Closing it, and moving it to another region or database, is not done here
    Set(Set),
    /// Let a tenant's jobs wait; those that run go on
    Pause {
        id: TenantId,
        /// Why; kept in the audit log
        #[arg(long, value_parser = reason)]
        reason: String,
    },
    /// Let a paused tenant's jobs be claimed again
    Resume {
        id: TenantId,
        /// Why; kept in the audit log
        #[arg(long, value_parser = reason)]
        reason: String,
    },
}

#[derive(Debug, Args)]
pub struct Set {
    id: TenantId,
    #[command(flatten)]
    fields: Fields,
    /// Why; kept in the audit log
    #[arg(long, value_parser = reason)]
    reason: String,
}

/// What to set: one at least.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct Fields {
    /// Its share of each claim, against the others': 1 to 100
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    weight: Option<i64>,
    /// Jobs that may run at one time in one queue, or none for no cap
    #[arg(long, value_name = "N|none", value_parser = whole_or_none, allow_negative_numbers = true)]
    running_max: Option<Value>,
    /// The plan whose flags are in force for it, or none
    #[arg(long, value_name = "PLAN|none", value_parser = text_or_none)]
    plan: Option<Value>,
    #[arg(long)]
    name: Option<String>,
    /// A language tag, such as de or pt-BR
    #[arg(long)]
    locale: Option<String>,
    /// A name of the time zone database, such as Europe/Zurich
    #[arg(long)]
    time_zone: Option<String>,
    /// Whom to tell of a breach, or none; - reads it from standard input, where no list of processes shows it
    #[arg(long, value_name = "CONTACT|none|-", value_parser = contact, allow_hyphen_values = true)]
    security_contact: Option<Redacted<String>>,
}

fn text_or_none(text: &str) -> Result<Value, String> {
    Ok(if text == "none" { Value::Null } else { Value::from(text) })
}

fn whole_or_none(text: &str) -> Result<Value, String> {
    match text {
        "none" => Ok(Value::Null),
        _ => text.parse::<i64>().map(Value::from).map_err(|_| "write a whole number, or none for no cap".to_owned()),
    }
}

fn contact(text: &str) -> Result<Redacted<String>, std::convert::Infallible> {
    Ok(Redacted::new(text.to_owned()))
}

impl Fields {
    /// By the names of the table's columns.
    fn changes(&self, terminal: &mut Terminal<'_>) -> Result<Map<String, Value>, Failure> {
        let contact = match self.security_contact.as_ref().map(|contact| contact.reveal().as_str()) {
            Some("none") => Some(Value::Null),
            Some(text) => Some(Value::from(payload(text, terminal.input)?.trim())),
            None => None,
        };
        let text = |value: &Option<String>| value.clone().map(Value::from);
        let all = [
            ("weight", self.weight.map(Value::from)),
            ("running_max", self.running_max.clone()),
            ("plan", self.plan.clone()),
            ("name", text(&self.name)),
            ("locale", text(&self.locale)),
            ("time_zone", text(&self.time_zone)),
            ("security_contact", contact),
        ];
        Ok(all.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect())
    }
}

pub(crate) async fn run(
    cli: &Cli,
    config: &Config,
    verb: &Tenants,
    terminal: &mut Terminal<'_>,
) -> Result<Outcome, Failure> {
    let changed = match verb {
        Tenants::List => {
            let found = tenants::list(&open(config).await?).await?;
            show(cli, terminal, &found, |out, found| output::tenants(out, found))?;
            return Ok(Outcome::Done);
        }
        Tenants::Show { id } => {
            show(cli, terminal, &tenants::show(&open(config).await?, id).await?, output::tenant)?;
            return Ok(Outcome::Done);
        }
        Tenants::Register { id, name, region, reason } => {
            let actor = actor(terminal)?;
            let pool = open_to_act(config).await?;
            let is_new = tenants::register(&pool, id, name, region.as_deref(), &actor, reason.as_deref()).await?;
            show(cli, terminal, &json!({ "tenant": id, "registered": is_new }), |out, _| {
                writeln!(out, "{}", if is_new { "registered" } else { "was registered before; left as it is" })
            })?;
            return Ok(Outcome::Done);
        }
        Tenants::Set(set) => {
            let actor = actor(terminal)?;
            let changes = set.fields.changes(terminal)?;
            let act = Act { actor: &actor, reason: &set.reason };
            tenants::set(&open_to_act(config).await?, &set.id, &changes, act).await?
        }
        Tenants::Pause { id, reason } => pause(config, id, true, reason, terminal).await?,
        Tenants::Resume { id, reason } => pause(config, id, false, reason, terminal).await?,
    };
    show(cli, terminal, &changed, |out, changed| match changed.changed.as_slice() {
        [] => writeln!(out, "it is so already; nothing was changed"),
        fields => writeln!(out, "changed: {}", fields.join(", ")),
    })?;
    Ok(Outcome::Done)
}

async fn pause(
    config: &Config,
    id: &TenantId,
    paused: bool,
    reason: &str,
    terminal: &mut Terminal<'_>,
) -> Result<Changed, Failure> {
    let actor = actor(terminal)?;
    Ok(tenants::pause(&open_to_act(config).await?, id, paused, Act { actor: &actor, reason }).await?)
}
