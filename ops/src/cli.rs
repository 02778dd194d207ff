//! What `reeve` can be told: clap types, and the checks that need no database.
use std::path::PathBuf;

use chrono::{DateTime, NaiveDate, NaiveTime, Utc};
use clap::{Args, Parser, Subcommand};
use reeve_jobs::{JobId, Kind, State, TenantId, catalogue::TableName, tenant::flags::Level};
use uuid::Uuid;

pub use crate::tenants::Tenants;

use crate::placement;

pub const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  a check failed, or the thing does not exist
  2  usage or configuration
  3  the database cannot be reached, is at another schema version, or is not safe to act in (`reeve doctor`)
  4  refused by Reeve (code RV..., with its reason and what to do)

Data goes to standard output, messages to standard error. Acts are audited as cli:<REEVE_ACTOR, or else USER>.";

/// Watch and run Reeve.
#[derive(Debug, Parser)]
#[command(name = "reeve", version, arg_required_else_help = true, after_help = EXIT_CODES)]
pub struct Cli {
    /// The configuration file; section [ops] is read. Environment variables such as REEVE_OPS__DATABASE_URL override it
    #[arg(long, global = true, env = "REEVE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print one JSON document instead of tables (`jobs tail`: one object a line)
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    pub noun: Noun,
}

#[derive(Debug, Subcommand)]
pub enum Noun {
    /// Bring the database to this build's schema. Safe to repeat
    Migrate(Migrate),
    /// Check the installation; each failed check says what to do
    Doctor {
        /// Also check the app's tables by this catalogue: each declared, and guarded where it holds tenants' rows. Takes
        /// [ops] app_database_url
        #[arg(long, value_name = "FILE")]
        catalogue: Option<PathBuf>,
    },
    /// Jobs: look, enqueue, retry, cancel, follow, erase
    Jobs {
        #[command(subcommand)]
        verb: Jobs,
    },
    /// Queues: look, pause, resume
    Queues {
        #[command(subcommand)]
        verb: crate::queues::Queues,
    },
    /// Kinds of job: pause, resume
    Kinds {
        #[command(subcommand)]
        verb: crate::queues::Kinds,
    },
    /// Schedules: look, pause, resume, change, see the next slots, run now
    Schedules {
        #[command(subcommand)]
        verb: crate::schedules::Schedules,
    },
    /// The audit log: search, verify, sign
    Audit {
        #[command(subcommand)]
        verb: Audit,
    },
    /// Break-glass: a login for a time that reads one tenant's rows; a second operator approves it, and all is audited
    Breakglass {
        #[command(subcommand)]
        verb: Breakglass,
    },
    /// Tenants: look, register, change, pause, resume
    Tenants {
        #[command(subcommand)]
        verb: Tenants,
    },
    /// The catalogue: what each table of the app means
    Catalogue(Catalogue),
    /// Flags: look, and set them by default, for a plan or for a tenant
    Flags {
        #[command(subcommand)]
        verb: Flags,
    },
    /// Where a tenant's rows are: look, prepare a database of its own, move
    Placement {
        #[command(subcommand)]
        verb: placement::Verb,
    },
    /// Regions and buckets: look, declare
    Regions {
        #[command(subcommand)]
        verb: placement::Regions,
    },
}

#[derive(Debug, Args)]
pub struct Catalogue {
    /// The catalogue
    #[arg(long, global = true, default_value = "catalogue.toml", value_name = "FILE")]
    pub file: PathBuf,
    #[command(subcommand)]
    pub verb: CatalogueVerb,
}

#[derive(Debug, Subcommand)]
pub enum CatalogueVerb {
    /// Draft the catalogue from the database; some rows are sampled to find personal data, none is written down
    Init {
        /// Replace the file
        #[arg(long)]
        force: bool,
        /// The app's table of tenants, where it is not found by its name
        #[arg(long, value_name = "SCHEMA.TABLE")]
        tenants: Option<TableName>,
    },
    /// Compare catalogue and database, both ways
    Check {
        /// Also read the rows: those that reach no tenant, and those whose two routes lead to different tenants
        #[arg(long)]
        rows: bool,
    },
    /// Show what is said and found about one table
    Show {
        #[arg(value_name = "SCHEMA.TABLE")]
        table: TableName,
    },
    /// Show in which order a tenant's rows would be deleted, and how many. Deletes nothing
    PlanDelete {
        tenant: TenantId,
        /// Print the statements instead; $1 is the tenant's id
        #[arg(long)]
        sql: bool,
    },
    /// Write the SQL that gives Reeve's worker its grants and policies. Runs nothing
    Rls,
    /// Write a picture of tables and owners, in Graphviz's language
    Graph,
}

#[derive(Debug, Args)]
pub struct Migrate {
    /// A setting of the app's own that names the tenant in its transactions; stored, so that `reeve.enqueue` heeds it
    #[arg(long, value_name = "SETTING", value_parser = app_setting)]
    pub app_context_setting: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum Jobs {
    /// List jobs, newest first: live and parked ones, or with --history those that are over
    List(List),
    /// Show everything about one job, its payload included
    Show {
        #[arg(value_parser = job_id)]
        id: JobId,
    },
    /// Tell why a job waits: what holds it, or how many come before it
    Why {
        #[arg(value_parser = job_id)]
        id: JobId,
    },
    /// Enqueue one job for a tenant
    Enqueue(Enqueue),
    /// Give a dead, quarantined or waiting job a fresh set of attempts, now
    Retry(Act),
    /// Cancel a job; a running one is asked to stop
    Cancel(Act),
    /// Retry, cancel or move all jobs that match a filter; counts them first
    Bulk {
        #[command(subcommand)]
        verb: crate::bulk::Bulk,
    },
    #[command(flatten)]
    History(crate::history::History),
    /// Follow jobs: one line for each that appears or changes state, until Ctrl-C
    Tail(Tail),
}

#[derive(Debug, Args)]
pub struct List {
    /// Only this tenant's
    #[arg(long)]
    pub tenant: Option<TenantId>,
    /// Only those in this state
    #[arg(long)]
    pub state: Option<State>,
    /// Only those of this kind
    #[arg(long)]
    pub kind: Option<String>,
    /// At most this many
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..=10_000))]
    pub limit: i64,
    /// Look at what is over instead of what is live
    #[arg(long)]
    pub history: bool,
}

#[derive(Debug, Args)]
pub struct Enqueue {
    #[arg(long)]
    pub tenant: TenantId,
    #[arg(long)]
    pub kind: Kind,
    /// A JSON object, or - to read it from standard input
    #[arg(long, default_value = "{}", allow_hyphen_values = true)]
    pub payload: String,
    /// Why; kept in the audit log
    #[arg(long, value_parser = reason)]
    pub reason: String,
}

#[derive(Debug, Args)]
pub struct Act {
    #[arg(value_parser = job_id)]
    pub id: JobId,
    /// Why; kept in the audit log
    #[arg(long, value_parser = reason)]
    pub reason: String,
}

#[derive(Debug, Args)]
pub struct Tail {
    /// Only this tenant's
    #[arg(long)]
    pub tenant: Option<TenantId>,
    /// Only those of this kind
    #[arg(long)]
    pub kind: Option<String>,
    /// Stop after this many seconds
    #[arg(long = "for", value_name = "SECS")]
    pub for_secs: Option<u32>,
}

#[derive(Debug, Subcommand)]
pub enum Audit {
    /// Find the first broken link of each tenant's chain; exit code 1 when there is one
    Verify {
        /// Only this tenant's chain; - is the platform's own
        #[arg(long, allow_hyphen_values = true)]
        tenant: Option<String>,
        /// Also hold the log against checkpoints that were kept outside the database, one of JSON a line, as the scheduler
        /// appends them: finds a log that was cut together with its checkpoints. Takes [ops] audit_key
        #[arg(long, value_name = "FILE")]
        checkpoints: Option<PathBuf>,
    },
    /// List entries, newest first
    Search(Search),
    /// The same as CSV, for spreadsheets: cells that would be formulas get a leading apostrophe
    Csv(Search),
    /// Verify, then sign the end of each chain with [ops] audit_key, as the scheduler does on its own where it has the key
    Checkpoint {
        /// Only this tenant's chain; - is the platform's own
        #[arg(long, allow_hyphen_values = true)]
        tenant: Option<String>,
        /// Append what is signed to this file, for `reeve audit verify --checkpoints`; keep it somewhere else
        #[arg(long, value_name = "FILE")]
        checkpoints: Option<PathBuf>,
    },
    /// Erase the reason and the fields' names of one entry; the chain stays whole, and the act is audited
    Erase {
        #[arg(long, allow_hyphen_values = true)]
        tenant: String,
        /// The entry's number
        #[arg(long)]
        seq: i64,
        /// Why; kept in the audit log
        #[arg(long, value_parser = reason)]
        reason: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum Breakglass {
    /// Ask for a login; prints the id that another operator approves
    Open {
        /// Whose rows are looked at
        #[arg(long)]
        tenant: TenantId,
        /// How long the login lasts from when it is taken
        #[arg(long, value_parser = clap::value_parser!(i32).range(1..=240))]
        minutes: i32,
        /// Why; kept in the tenant's audit log
        #[arg(long, value_parser = reason)]
        reason: String,
    },
    /// Approve what another operator asked for; each needs a database login of their own
    Approve {
        #[arg(value_parser = opening_id)]
        id: Uuid,
        /// Why; kept in the tenant's audit log
        #[arg(long, value_parser = reason)]
        reason: String,
    },
    /// Take the login of an approved opening, as the operator who asked. Its password is shown once
    Login {
        #[arg(value_parser = opening_id)]
        id: Uuid,
    },
    /// End an opening before its time: its sessions are cut and its login is dropped
    Close {
        #[arg(value_parser = opening_id)]
        id: Uuid,
        /// Why; kept in the tenant's audit log
        #[arg(long, value_parser = reason)]
        reason: String,
    },
    /// List openings, newest first
    List {
        /// Only this tenant's
        #[arg(long)]
        tenant: Option<TenantId>,
        /// At most this many
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..=10_000))]
        limit: i64,
    },
}

#[derive(Debug, Args)]
pub struct Search {
    /// Only this tenant's; - is the platform itself
    #[arg(long, allow_hyphen_values = true)]
    pub tenant: Option<String>,
    /// Such as cli:ann, worker, scheduler
    #[arg(long)]
    pub actor: Option<String>,
    /// Such as job.retried; with a dot at the end, all that begin so (job.)
    #[arg(long)]
    pub action: Option<String>,
    /// Such as job:<id> or endpoint:<id>
    #[arg(long)]
    pub target: Option<String>,
    /// At or after: a day (2026-01-31, UTC) or a time (2026-01-31T12:00:00Z)
    #[arg(long, value_parser = moment)]
    pub since: Option<DateTime<Utc>>,
    /// Before
    #[arg(long, value_parser = moment)]
    pub until: Option<DateTime<Utc>>,
    /// The trace id, 32 hexadecimal digits
    #[arg(long)]
    pub trace: Option<String>,
    /// At most this many
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..=1_000_000))]
    pub limit: i64,
}

pub(crate) fn moment(text: &str) -> Result<DateTime<Utc>, String> {
    if let Ok(day) = text.parse::<NaiveDate>() {
        return Ok(day.and_time(NaiveTime::MIN).and_utc());
    }
    DateTime::parse_from_rfc3339(text)
        .map(|at| at.to_utc())
        .map_err(|_| "write a day (2026-01-31) or a time with its zone (2026-01-31T12:00:00Z)".to_owned())
}

#[derive(Debug, Subcommand)]
pub enum Flags {
    /// List every flag with all that was set, or with --tenant as each is in force for that tenant
    List {
        /// As this tenant has them
        #[arg(long)]
        tenant: Option<TenantId>,
    },
    /// Set a flag for a tenant, a plan, or by default; the tenant's comes first, the default last. The flag kind.<kind>
    /// set to false lets that kind's jobs wait
    Set {
        /// As `reeve flags list` shows it
        name: String,
        /// true or false, a whole number, or a text, as the flag's type is
        #[arg(allow_hyphen_values = true)]
        value: String,
        #[command(flatten)]
        level: FlagLevel,
        /// Why; kept in the audit log
        #[arg(long, value_parser = reason)]
        reason: String,
    },
    /// Take away what was set for a tenant, a plan, or by default
    Clear {
        name: String,
        #[command(flatten)]
        level: FlagLevel,
        /// Why; kept in the audit log
        #[arg(long, value_parser = reason)]
        reason: String,
    },
    /// Make a flag of the app's own known, or change its default and description
    Declare {
        /// Words joined by dots, as in exports.rows_max
        name: String,
        #[arg(long = "type", value_name = "TYPE", value_parser = ["bool", "int", "text"])]
        value_type: String,
        /// Its value where nothing is set
        #[arg(long, allow_hyphen_values = true)]
        default: String,
        /// What it is for
        #[arg(long)]
        description: String,
        /// Why; kept in the audit log
        #[arg(long, value_parser = reason)]
        reason: String,
    },
}

/// For whom: one of them.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct FlagLevel {
    /// For this tenant
    #[arg(long)]
    tenant: Option<TenantId>,
    /// For all tenants on this plan
    #[arg(long)]
    plan: Option<String>,
    /// For all tenants whose plan and own row say nothing
    #[arg(long = "default")]
    by_default: bool,
}

impl FlagLevel {
    pub fn level(&self) -> Level {
        match (&self.tenant, &self.plan) {
            (Some(tenant), _) => Level::Tenant(tenant.clone()),
            (None, Some(plan)) => Level::Plan(plan.clone()),
            (None, None) => Level::Default,
        }
    }
}

fn job_id(text: &str) -> Result<JobId, String> {
    text.parse().map_err(|_| "a job id is a UUID; `reeve jobs list` shows them".to_owned())
}

fn opening_id(text: &str) -> Result<Uuid, String> {
    text.parse().map_err(|_| "an opening's id is a UUID; `reeve breakglass list` shows them".to_owned())
}

/// The audit log keeps this many characters.
const REASON_CHARS_MAX: usize = 2_000;

pub(crate) fn reason(text: &str) -> Result<String, String> {
    let text = text.trim();
    match text.chars().count() {
        0 => Err("say why: the reason is kept in the audit log".to_owned()),
        n if n > REASON_CHARS_MAX => {
            Err(format!("a reason has at most {REASON_CHARS_MAX} characters, this one has {n}"))
        }
        _ => Ok(text.to_owned()),
    }
}

/// As the CHECK of `reeve.settings.app_context_setting` has it.
fn app_setting(text: &str) -> Result<String, String> {
    let word = |part: &str, digit_first: bool| {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        !part.is_empty()
            && part.chars().all(allowed)
            && (digit_first || !part.starts_with(|c: char| c.is_ascii_digit()))
    };
    match text.split_once('.') {
        Some((class, name)) if word(class, false) && word(name, true) => Ok(text.to_owned()),
        _ => Err("a setting is written class.name in lower case, as in app.tenant_id".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn said(arguments: &[&str]) -> String {
        let error = Cli::try_parse_from([&["reeve"], arguments].concat()).expect_err("bad arguments");
        assert_eq!(error.exit_code(), 2, "{error}");
        error.to_string()
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_documents_every_exit_code() {
        let help = Cli::command().render_help().to_string();
        for line in ["  0  ", "  1  ", "  2  ", "  3  ", "  4  "] {
            assert!(help.contains(line), "{help}");
        }
    }

    #[test]
    fn a_bad_argument_says_what_would_be_right() {
        let long = "x".repeat(65);
        let enqueue = |tenant, kind| said(&["jobs", "enqueue", "--reason", "r", "--tenant", tenant, "--kind", kind]);
        let unknown_kind = enqueue("t", "webhook.sing");
        assert!(unknown_kind.contains("webhook.sing") && unknown_kind.contains("webhook.deliver"), "{unknown_kind}");
        assert!(enqueue("", "fleet.probe").contains("1 to 64 bytes"));
        assert!(enqueue(&long, "fleet.probe").contains("this one has 65"));
        assert!(enqueue("a\u{7}b", "fleet.probe").contains("control characters"));
        assert!(said(&["tenants", "show", "-"]).contains("platform"));
        assert!(said(&["jobs", "show", "17"]).contains("a job id is a UUID"));
        assert!(said(&["jobs", "list", "--state", "finished"]).contains("states are scheduled, available"));
        assert!(said(&["jobs", "list", "--limit", "0"]).contains("--limit"));
        for (minutes, reason, says) in [("0", "r", "1..=240"), ("241", "r", "1..=240"), ("5", " ", "say why")] {
            let open = ["breakglass", "open", "--tenant", "t", "--minutes", minutes, "--reason", reason];
            assert!(said(&open).contains(says), "{minutes} {reason:?}");
        }
        assert!(said(&["breakglass", "login", "17"]).contains("an opening's id is a UUID"));
        assert!(said(&["jobs", "retry", "0190e3a0-0000-7000-8000-000000000000", "--reason", " "]).contains("say why"));
        assert!(said(&["jobs", "cancel", "0190e3a0-0000-7000-8000-000000000000"]).contains("--reason"));
        let set = ["flags", "set", "beta", "true", "--reason", "r"];
        assert!(said(&set).contains("<--tenant <TENANT>|--plan <PLAN>|--default>"));
        assert!(said(&[&set[..], &["--default", "--plan", "pro"]].concat()).contains("cannot be used with"));
        assert!(said(&["flags", "set", "beta", "true", "--default"]).contains("--reason"));
        assert!(said(&["flags", "declare", "beta", "--type", "float"]).contains("possible values: bool, int, text"));
    }

    #[test]
    fn a_setting_is_checked_as_the_database_checks_it() {
        for good in ["app.tenant_id", "_a.9"] {
            assert_eq!(app_setting(good).as_deref(), Ok(good));
        }
        for bad in ["", "app", "app.", ".x", "App.x", "9a.x", "a.b.c", "app.x'"] {
            assert!(app_setting(bad).is_err(), "{bad}");
        }
    }
}
