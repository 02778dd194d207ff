//! How results look: aligned tables for people, JSON for programs. The one place that writes to standard output.
//!
//! Text from the database (errors, worker names, tenants' names) is shown with its control and direction-changing
//! characters escaped: an error that a tenant's endpoint provoked must not steer an operator's terminal.
use std::io::{self, Write};

use chrono::{DateTime, SecondsFormat, Utc};
use reeve_jobs::{
    catalogue::{check::Severity, order},
    queue::inspect::{Change, JobDetail, JobSummary, Place},
    tenant::{flags::FlagRow, inspect::TenantSummary},
};
use serde::Serialize;

use crate::service::{catalogue, doctor, flags::Changed, tenants::TenantDetail};

/// Columns separated by two spaces, each as wide as its widest cell, counted in characters.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with a line of headings.
    pub fn headed(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(|heading| (*heading).to_owned()).collect()] }
    }

    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.iter().map(|cell| clean(cell)).collect());
    }

    /// Writes all rows, without blanks at the end of a line.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| self.rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max();
        let widths: Vec<_> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(&format!("{cell:<width$}  "));
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// Shows characters that would act on a terminal instead of letting them.
pub fn clean(text: &str) -> String {
    let acts = |c: char| {
        c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(acts) {
        return text.to_owned();
    }
    text.chars().fold(String::new(), |mut clean, c| {
        if acts(c) {
            clean.extend(c.escape_default())
        } else {
            clean.push(c)
        }
        clean
    })
}

/// At most `chars_max` characters, the last an ellipsis where something was left out.
pub fn shorten(text: &str, chars_max: usize) -> String {
    if text.chars().count() <= chars_max {
        return text.to_owned();
    }
    text.chars().take(chars_max.saturating_sub(1)).chain(['…']).collect()
}

/// ISO 8601 in UTC, to the second.
pub fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// One document, indented.
pub fn json(out: &mut dyn Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    writeln!(out)
}

/// One document on one line.
pub fn json_line(out: &mut dyn Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    writeln!(out)
}

/// Characters of an error that a list shows; `jobs show` has the whole.
const ERROR_CHARS: usize = 60;

pub fn jobs(out: &mut dyn Write, jobs: &[JobSummary], history: bool) -> io::Result<()> {
    let mut table = Table::headed(&[
        "ID",
        "TENANT",
        "KIND",
        "STATE",
        "ATTEMPT",
        if history { "FINISHED" } else { "RUN AT" },
        "ERROR",
    ]);
    for job in jobs {
        table.row([
            job.id.to_string(),
            job.tenant.to_string(),
            job.kind.clone(),
            job.state.to_string(),
            format!("{}/{}", job.attempt, job.attempts_max),
            time(job.finished_at.unwrap_or(job.run_at)),
            job.last_error.as_deref().map(|error| shorten(error, ERROR_CHARS)).unwrap_or_default(),
        ]);
    }
    table.write(out)
}

pub fn job(out: &mut dyn Write, detail: &JobDetail) -> io::Result<()> {
    let job = &detail.job;
    let mut table = Table::default();
    let mut field = |name: &str, value: String| table.row([name.to_owned(), value]);
    field("id", job.id.to_string());
    field("where", if detail.place == Place::History { "history" } else { "live" }.to_owned());
    field("tenant", job.tenant.to_string());
    field("kind", job.kind.clone());
    field("state", job.state.to_string());
    field("queue", format!("{} in region {}", job.queue, job.region));
    field("priority", job.priority.to_string());
    field("attempt", format!("{} of {}", job.attempt, job.attempts_max));
    field("rescues", detail.rescues.to_string());
    field("created", time(job.created_at));
    field("run at", time(job.run_at));
    field("attempted", or_dash(job.attempted_at.map(time)));
    field("finished", or_dash(job.finished_at.map(time)));
    field("worker", or_dash(job.worker.as_deref()));
    field("progress", or_dash(detail.progress.as_ref().map(crate::bars::words)));
    field("lease until", or_dash(detail.lease_expires_at.map(time)));
    field("cancel asked", or_dash(detail.cancel_reason.as_deref()));
    field("dedupe key", or_dash(detail.dedupe_key.as_deref()));
    field("traceparent", or_dash(detail.traceparent.as_deref()));
    field("last error", or_dash(job.last_error.as_deref()));
    field("payload", detail.payload.to_string());
    table.write(out)?;
    if detail.attempts.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    let mut table = Table::headed(&["ATTEMPT", "OUTCOME", "STARTED", "ENDED", "WORKER", "ERROR"]);
    for attempt in &detail.attempts {
        table.row([
            attempt.attempt.to_string(),
            attempt.outcome.clone(),
            or_dash(attempt.started_at.map(time)),
            time(attempt.ended_at),
            or_dash(attempt.worker.as_deref()),
            or_dash(attempt.error.as_deref()),
        ]);
    }
    table.write(out)
}

/// One line of `jobs tail`. Its columns have fixed widths, since what comes next is not known.
pub fn change(out: &mut dyn Write, change: &Change) -> io::Result<()> {
    let error = change.last_error.as_deref().map(|error| shorten(error, ERROR_CHARS)).unwrap_or_default();
    let line = format!(
        "{}  {}  {:<11}  {:>2}/{:<3}  {:<16}  {:<16}  {error}",
        time(change.seen_at),
        change.id,
        change.state.as_str(),
        change.attempt,
        change.attempts_max,
        change.kind,
        change.tenant.as_str(),
    );
    writeln!(out, "{}", clean(line.trim_end()))
}

pub fn tenants(out: &mut dyn Write, tenants: &[TenantSummary]) -> io::Result<()> {
    let mut table =
        Table::headed(&["ID", "NAME", "STATE", "REGION", "PLACEMENT", "WEIGHT", "RUNNING MAX", "PAUSED", "CREATED"]);
    for tenant in tenants {
        table.row([
            tenant.id.to_string(),
            shorten(&tenant.name, 40),
            tenant.state.clone(),
            tenant.region.clone(),
            tenant.placement.clone(),
            tenant.weight.to_string(),
            or_dash(tenant.running_max),
            yes_no(tenant.paused),
            time(tenant.created_at),
        ]);
    }
    table.write(out)
}

pub fn tenant(out: &mut dyn Write, detail: &TenantDetail) -> io::Result<()> {
    let tenant = &detail.tenant;
    let mut table = Table::default();
    let mut field = |name: &str, value: String| table.row([name.to_owned(), value]);
    field("id", tenant.id.to_string());
    field("name", tenant.name.clone());
    field("state", tenant.state.clone());
    field("region", tenant.region.clone());
    field("placement", tenant.placement.clone());
    field("weight", tenant.weight.to_string());
    field("running max", or_dash(tenant.running_max));
    field("paused", yes_no(tenant.paused));
    field("plan", or_dash(tenant.plan.as_deref()));
    field("kinds off", or_dash(tenant.kinds_off.as_ref().map(|kinds| kinds.join(", "))));
    field("locale", tenant.locale.clone());
    field("time zone", tenant.time_zone.clone());
    field("created", time(tenant.created_at));
    table.write(out)?;
    if detail.jobs.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    let mut table = Table::headed(&["STATE", "KIND", "JOBS"]);
    for count in &detail.jobs {
        table.row([count.state.to_string(), count.kind.clone(), count.jobs.to_string()]);
    }
    table.write(out)
}

pub fn flags(out: &mut dyn Write, flags: &[FlagRow]) -> io::Result<()> {
    let mut table = Table::headed(&["NAME", "TYPE", "VALUE", "FROM", "SET BY", "SET AT", "REASON"]);
    for flag in flags {
        let from = flag.subject.as_ref().map_or(flag.level.clone(), |subject| format!("{} {subject}", flag.level));
        table.row([
            flag.name.clone(),
            flag.value_type.clone(),
            shorten(&flag.value.to_string(), 40),
            from,
            or_dash(flag.set_by.as_deref()),
            or_dash(flag.set_at.map(time)),
            shorten(flag.reason.as_deref().unwrap_or("-"), ERROR_CHARS),
        ]);
    }
    table.write(out)
}

pub fn flag_changed(out: &mut dyn Write, changed: &Changed) -> io::Result<()> {
    let value = |value: &Option<serde_json::Value>| value.as_ref().map_or("unset".to_owned(), ToString::to_string);
    let line = format!("{} ({}): {} → {}", changed.name, changed.of, value(&changed.was), value(&changed.now));
    writeln!(out, "{}", clean(&line))
}

fn yes_no(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}

pub fn report(out: &mut dyn Write, report: &doctor::Report) -> io::Result<()> {
    let mut table = Table::default();
    for check in &report.checks {
        table.row([check.status.as_str().to_owned(), check.name.to_owned(), check.found.clone()]);
        if let Some(fix) = &check.fix {
            table.row([String::new(), String::new(), format!("fix: {fix}")]);
        }
    }
    table.write(out)
}

pub fn drafted(out: &mut dyn Write, drafted: &catalogue::Drafted) -> io::Result<()> {
    writeln!(out, "wrote {}: {} tables", clean(&drafted.file), drafted.tables)?;
    match &drafted.tenants {
        Some(tenants) => writeln!(out, "tenants: {}", clean(&tenants.to_string()))?,
        None => {
            let likely: Vec<_> = drafted.likely.iter().map(|name| clean(&name.to_string())).collect();
            let perhaps = if likely.is_empty() { String::new() } else { format!(", perhaps of {}", likely.join(", ")) };
            writeln!(out, "tenants: no table found; --tenants names one{perhaps}")?;
        }
    }
    drafted.undecided.iter().try_for_each(|name| writeln!(out, "to decide: {}", clean(&name.to_string())))?;
    writeln!(out, "next: read it, then `reeve catalogue check`")
}

pub fn findings(out: &mut dyn Write, report: &catalogue::Report) -> io::Result<()> {
    for finding in &report.findings {
        let severity = if finding.severity == Severity::Error { "error" } else { "warn" };
        writeln!(out, "{severity:<5}  {}", clean(&finding.to_string()))?;
    }
    for found in report.rows.iter().flatten() {
        let (table, what, sql) =
            (clean(&format!("{:?}", found.table.to_string())), clean(&found.what), clean(&found.sql));
        writeln!(out, "rows   table {table}: {} row(s) {what}; to see them: {sql}", found.rows)?;
    }
    writeln!(out, "{} tables, {} errors, {} warnings", report.tables, report.errors, report.warnings)
}

pub fn catalogued(out: &mut dyn Write, shown: &catalogue::Shown) -> io::Result<()> {
    let mut table = Table::default();
    let mut field = |name: &str, value: String| table.row([name.to_owned(), value]);
    field("table", shown.table.to_string());
    field("declared", format!("{}:{}", shown.entry.place.file, shown.entry.place.line));
    field("scope", serde_json::to_string(&shown.entry.scope)?);
    field("owner's condition", or_dash(shown.condition.as_deref()));
    if let Some(found) = &shown.found {
        field("kind", serde_json::to_string(&found.kind)?.replace('"', ""));
        field("owner", found.owner.clone());
        field("row security", format!("enabled {}, forced {}", yes_no(found.rls), yes_no(found.rls_forced)));
        field("key", found.primary_key.join(", "));
        field("triggers", found.triggers.join(", "));
    }
    field("pointed at by", shown.pointed_at_by.join("; "));
    table.write(out)?;
    writeln!(out)?;
    let mut table = Table::headed(&["COLUMN", "TYPE", "NULL", "SEALED", "PII", "ERASE"]);
    for (name, entry) in &shown.entry.columns {
        let found = shown.found.as_ref().and_then(|found| found.column(name));
        let word = |value: serde_json::Result<String>| value.map(|text| text.replace('"', ""));
        let pii: Vec<_> =
            entry.pii.iter().map(|pii| word(serde_json::to_string(&pii.kind))).collect::<Result<_, _>>()?;
        table.row([
            name.clone(),
            found.map_or_else(|| "absent".to_owned(), |column| column.declared.clone()),
            found.map(|column| yes_no(column.nullable)).unwrap_or_default(),
            entry.sealed.map(|codec| word(serde_json::to_string(&codec))).transpose()?.unwrap_or_default(),
            pii.join(", "),
            entry.erase.as_ref().map(|erase| word(serde_json::to_string(erase))).transpose()?.unwrap_or_default(),
        ]);
    }
    table.write(out)
}

pub fn plan(out: &mut dyn Write, plan: &order::Plan) -> io::Result<()> {
    let mut table = Table::headed(&["STEP", "ACTION", "TABLE", "ROWS", "NOTE"]);
    for (index, step) in plan.steps.iter().enumerate() {
        let action = match step.action {
            order::Action::Remember => "remember keys",
            order::Action::SetNull => "set null",
            order::Action::Delete => "delete",
            order::Action::Refresh => "refresh",
        };
        table.row([
            (index + 1).to_string(),
            action.to_owned(),
            step.table.to_string(),
            or_dash(step.rows),
            step.note.clone().unwrap_or_default(),
        ]);
    }
    table.write(out)?;
    plan.effects.iter().try_for_each(|effect| writeln!(out, "effect: {}", clean(effect)))
}

pub fn plan_sql(out: &mut dyn Write, plan: &order::Plan) -> io::Result<()> {
    plan.steps.iter().try_for_each(|step| writeln!(out, "{};", step.sql))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_by_characters_and_lines_end_without_blanks() {
        let mut table = Table::headed(&["ID", "NAME", "NOTE"]);
        table.row(["7".to_owned(), "Zürich عميل".to_owned(), String::new()]);
        table.row(["1000".to_owned(), "x".to_owned(), "two words".to_owned()]);
        let mut out = Vec::new();
        table.write(&mut out).expect("a buffer takes all");
        let expected = "\
ID    NAME         NOTE
7     Zürich عميل
1000  x            two words
";
        assert_eq!(String::from_utf8_lossy(&out), expected);
    }

    #[test]
    fn a_cell_cannot_steer_the_terminal() {
        assert_eq!(clean("a\x1b[2Jb\n\u{9b}c\u{202e}d"), "a\\u{1b}[2Jb\\n\\u{9b}c\\u{202e}d");
        assert_eq!(clean("Zürich عميل 株式会社"), "Zürich عميل 株式会社");
    }

    #[test]
    fn a_long_text_is_cut_at_a_character() {
        assert_eq!(shorten("müller", 6), "müller");
        assert_eq!(shorten("müllers", 6), "mülle…");
    }

    #[test]
    fn times_are_utc_to_the_second() {
        let at = DateTime::from_timestamp(1_700_000_000, 999_000_000).expect("a time");
        assert_eq!(time(at), "2023-11-14T22:13:20Z");
    }
}
