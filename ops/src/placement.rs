//! `reeve placement …` and `reeve regions …`: where tenants' rows are, and may be.
//!
//! ```text
//!   reeve placement move T          its jobs wait; running ones end
//!   reeve placement prepare T …     a new database: schema and identity          (REEVE_PLACEMENT_ADMIN_URL)
//!   … its rows are copied by whoever moves it …
//!   reeve-worker placement set …    asks that database who it is, seals its URL  (REEVE_PLACEMENT_URL; takes the root key)
//!   reeve placement done T          its jobs run again, there
//! ```
//! URLs hold passwords: they come from the environment, never from an argument, and are never shown.
use std::io::{self, Write};

use clap::{Args, Subcommand};
use reeve_jobs::{TenantId, queue::operate::Act, redact::Redacted, tenant::placements::Region};
use serde_json::json;

use crate::{
    cli::{self, Cli},
    config::Config,
    output::{Table, time},
    run::{Failure, Terminal, actor, connect, open, show},
    service::placements::{self, Placed, Prepared},
};

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Show where a tenant's rows are, how far its move is, and how many of its jobs run now
    Show { tenant: TenantId },
    /// Begin a move: the tenant's jobs wait, and those that run end as they would
    Move(Tenant),
    /// Make a database this tenant's own: Reeve's schema, and its identity for the next placing. Its administrator's URL is
    /// read from REEVE_PLACEMENT_ADMIN_URL
    Prepare(TenantAndRegion),
    /// Place a moving tenant in the shared database, where its rows must be by then
    Shared(TenantAndRegion),
    /// End a move: the tenant's jobs run again, at the new place. Waits until every worker has forgotten the old one
    Done(Tenant),
    /// Leave a moving tenant where it is: its jobs run again
    Cancel(Tenant),
}

#[derive(Debug, Args)]
pub struct Tenant {
    tenant: TenantId,
    /// Why; kept in the audit log
    #[arg(long, value_parser = cli::reason)]
    reason: String,
}

#[derive(Debug, Args)]
pub struct TenantAndRegion {
    tenant: TenantId,
    /// Where the database is, as `reeve regions list` has it
    #[arg(long)]
    region: String,
    /// Why; kept in the audit log
    #[arg(long, value_parser = cli::reason)]
    reason: String,
}

#[derive(Debug, Subcommand)]
pub enum Regions {
    /// List regions and the buckets in each
    List,
    /// Declare a region, so that tenants may be pinned to it and workers work in it
    Declare {
        name: String,
        /// The shared database may hold rows of its tenants; else each waits for a database of its own
        #[arg(long)]
        holds_shared_rows: bool,
        /// Why; kept in the audit log
        #[arg(long, value_parser = cli::reason)]
        reason: String,
    },
    /// Declare in which region a bucket is. It stays there
    Bucket {
        name: String,
        #[arg(long)]
        region: String,
        /// Why; kept in the audit log
        #[arg(long, value_parser = cli::reason)]
        reason: String,
    },
}

const ADMIN_URL: &str = "REEVE_PLACEMENT_ADMIN_URL";

pub(crate) async fn run(cli: &Cli, config: &Config, verb: &Verb, terminal: &mut Terminal<'_>) -> Result<(), Failure> {
    match verb {
        Verb::Show { tenant } => {
            let placed = placements::show(&open(config).await?, tenant).await?;
            show(cli, terminal, &placed, place)?;
        }
        Verb::Move(on) => {
            let actor = actor(terminal)?;
            let act = Act { actor: &actor, reason: &on.reason };
            let placed = placements::begin_move(&open(config).await?, &on.tenant, act).await?;
            show(cli, terminal, &placed, place)?;
            if placed.running > 0 {
                let command = format!("`reeve placement show {}`", on.tenant);
                writeln!(terminal.messages, "note: {} jobs still run; {command} says when none does", placed.running)?;
            }
        }
        Verb::Prepare(on) => {
            let actor = actor(terminal)?;
            let act = Act { actor: &actor, reason: &on.reason };
            let pool = open(config).await?;
            let mut admin = connect(ADMIN_URL, &admin_url()?).await?;
            let prepared = placements::prepare(&pool, &mut admin, &on.tenant, &on.region, act).await?;
            show(cli, terminal, &prepared, prepared_one)?;
        }
        Verb::Shared(on) => {
            let actor = actor(terminal)?;
            let act = Act { actor: &actor, reason: &on.reason };
            let placed = placements::place_shared(&open(config).await?, &on.tenant, &on.region, act).await?;
            show(cli, terminal, &placed, place)?;
        }
        Verb::Done(on) => {
            let actor = actor(terminal)?;
            let act = Act { actor: &actor, reason: &on.reason };
            let placed = placements::end_move(&open(config).await?, &on.tenant, act).await?;
            show(cli, terminal, &placed, place)?;
        }
        Verb::Cancel(on) => {
            let actor = actor(terminal)?;
            let act = Act { actor: &actor, reason: &on.reason };
            let placed = placements::cancel_move(&open(config).await?, &on.tenant, act).await?;
            show(cli, terminal, &placed, place)?;
        }
    }
    Ok(())
}

pub(crate) async fn regions(
    cli: &Cli,
    config: &Config,
    verb: &Regions,
    terminal: &mut Terminal<'_>,
) -> Result<(), Failure> {
    let (what, is_new) = match verb {
        Regions::List => {
            let found = placements::regions(&open(config).await?).await?;
            return Ok(show(cli, terminal, &found, |out, found| region_list(out, found))?);
        }
        Regions::Declare { name, holds_shared_rows, reason } => {
            let actor = actor(terminal)?;
            let act = Act { actor: &actor, reason };
            let pool = open(config).await?;
            (name, placements::declare_region(&pool, name, *holds_shared_rows, act).await?)
        }
        Regions::Bucket { name, region, reason } => {
            let actor = actor(terminal)?;
            let act = Act { actor: &actor, reason };
            (name, placements::declare_bucket(&open(config).await?, name, region, act).await?)
        }
    };
    show(cli, terminal, &json!({ "declared": what, "new": is_new }), |out, _| {
        writeln!(out, "{what}: {}", if is_new { "declared" } else { "was declared before" })
    })?;
    Ok(())
}

fn admin_url() -> Result<Redacted<String>, Failure> {
    std::env::var(ADMIN_URL).map(Redacted::new).map_err(|_| {
        let what = format!("{ADMIN_URL} is not set; it is the URL of the new database, as its administrator");
        reeve_jobs::program::config::ConfigError::Wrong { place: "environment".to_owned(), what }.into()
    })
}

fn place(out: &mut dyn Write, placed: &Placed) -> io::Result<()> {
    let mut table = Table::default();
    let mut field = |name: &str, value: String| table.row([name.to_owned(), value]);
    field("tenant", placed.tenant.to_string());
    field("placement", placed.placement.clone());
    field("region", placed.region.clone());
    field("epoch", placed.epoch.to_string());
    let state = match (placed.moving, placed.placed) {
        (false, _) => "no",
        (true, false) => "yes, not placed yet: its jobs wait",
        (true, true) => "yes, placed: its jobs wait for `reeve placement done`",
    };
    field("moving", state.to_owned());
    field("running jobs", placed.running.to_string());
    field("placed at", placed.updated_at.map_or_else(|| "-".to_owned(), time));
    table.write(out)
}

fn prepared_one(out: &mut dyn Write, prepared: &Prepared) -> io::Result<()> {
    writeln!(
        out,
        "database \"{}\" is at schema {}, and tenant {}'s own in region {} at epoch {}",
        prepared.database, prepared.schema, prepared.tenant, prepared.region, prepared.epoch
    )
}

fn region_list(out: &mut dyn Write, regions: &[Region]) -> io::Result<()> {
    let mut table = Table::headed(&["REGION", "SHARED ROWS", "BUCKETS"]);
    for region in regions {
        let holds = if region.holds_shared_rows { "held here" } else { "not here" };
        table.row([region.name.clone(), holds.to_owned(), region.buckets.join(" ")]);
    }
    table.write(out)
}
