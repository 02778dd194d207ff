//! How far jobs have come, as `jobs show` and `jobs tail` tell it.
//!
//! On a terminal `jobs tail` keeps a bar for each job that reports below its lines, drawn anew at each look: what stands there
//! is taken away before the next lines are written. Elsewhere each change is a line, and with `--json` an object.
use std::{
    collections::HashMap,
    io::{self, Write},
};

use reeve_jobs::{
    JobId,
    queue::inspect::{Progress, Progressing},
};

use crate::output::{clean, json_line, shorten, time};

/// Bars at a time: more would push the lines out of sight.
const BARS_MAX: usize = 10;
const WIDTH: usize = 24;

/// Where the reports of `jobs tail` go.
#[derive(Debug)]
pub enum Bars {
    Terminal { drawn: usize },
    Lines { json: bool, told: HashMap<JobId, Progress> },
}

impl Bars {
    pub fn new(is_terminal: bool, json: bool) -> Self {
        if is_terminal && !json { Self::Terminal { drawn: 0 } } else { Self::Lines { json, told: HashMap::new() } }
    }

    /// Takes the bars away, so that lines can be written where they were.
    pub fn clear(&mut self, out: &mut dyn Write) -> io::Result<()> {
        match self {
            Self::Terminal { drawn } if *drawn > 0 => {
                write!(out, "\x1b[{drawn}A\x1b[J")?;
                *drawn = 0;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Shows what running jobs report now.
    pub fn show(&mut self, out: &mut dyn Write, jobs: &[Progressing]) -> io::Result<()> {
        match self {
            Self::Terminal { drawn } => {
                for job in jobs.iter().take(BARS_MAX) {
                    writeln!(out, "{}", bar(job))?;
                }
                *drawn = jobs.len().min(BARS_MAX);
                if jobs.len() > BARS_MAX {
                    writeln!(out, "and {} more", jobs.len() - BARS_MAX)?;
                    *drawn += 1;
                }
                Ok(())
            }
            Self::Lines { json, told } => {
                for job in jobs.iter().filter(|job| told.get(&job.id) != Some(&job.progress)) {
                    if *json {
                        json_line(out, job)?;
                    } else {
                        writeln!(out, "{}  {}  {}", time(job.progress.reported_at), job.id, words(&job.progress))?;
                    }
                }
                *told = jobs.iter().map(|job| (job.id, job.progress.clone())).collect();
                Ok(())
            }
        }
    }
}

/// The part that is done; a handler that counts past its total is at its end.
fn part(progress: &Progress) -> Option<f64> {
    let total = progress.total.filter(|total| *total > 0)?;
    #[allow(clippy::cast_precision_loss, reason = "for a bar of a few characters")]
    Some((progress.done as f64 / total as f64).clamp(0.0, 1.0))
}

fn bar(job: &Progressing) -> String {
    let part = part(&job.progress);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to WIDTH")]
    let full = part.map_or(0, |part| (part * WIDTH as f64) as usize);
    let drawn = format!("{}{}", "█".repeat(full), "░".repeat(WIDTH - full));
    let who = format!("{}  {} of {}", job.id, shorten(&job.kind, 20), shorten(job.tenant.as_str(), 20));
    format!("{drawn}  {}  {}", clean(&who), words(&job.progress))
}

/// `copying 3 of 20 (15 %)`, or `copying 3` where the end is not known.
pub fn words(progress: &Progress) -> String {
    let step = clean(&progress.step);
    match (progress.total, part(progress)) {
        (Some(total), Some(part)) => format!("{step} {} of {total} ({:.0} %)", progress.done, (part * 100.0).floor()),
        (Some(total), None) => format!("{step} {} of {total}", progress.done),
        (None, _) => format!("{step} {}", progress.done),
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;

    fn job(done: i64, total: Option<i64>) -> Progressing {
        Progressing {
            id: JobId(uuid::Uuid::nil()),
            tenant: "acme".parse().expect("an id"),
            kind: "fleet.probe".to_owned(),
            progress: Progress { step: "copy\x1b[2J".to_owned(), done, total, reported_at: DateTime::UNIX_EPOCH },
        }
    }

    fn shown(bars: &mut Bars, jobs: &[Progressing]) -> String {
        let mut out = Vec::new();
        bars.clear(&mut out).expect("a buffer");
        bars.show(&mut out, jobs).expect("a buffer");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn a_bar_is_drawn_over_the_last_one_and_is_never_longer_than_full() {
        let mut bars = Bars::new(true, false);
        let first = shown(&mut bars, &[job(1, Some(2))]);
        assert!(
            first.starts_with(&format!("{}{}", "█".repeat(12), "░".repeat(12))) && first.contains("50 %"),
            "{first}"
        );
        assert!(!first.contains('\x1b'), "a step's name must not steer the terminal: {first}");
        let second = shown(&mut bars, &[job(9, Some(2)), job(3, None)]);
        assert!(second.starts_with(&format!("\x1b[1A\x1b[J{}  ", "█".repeat(24))), "{second:?}");
        assert!(shown(&mut bars, &[]).starts_with("\x1b[2A\x1b[J"));
    }

    #[test]
    fn elsewhere_each_report_is_told_once() {
        let mut lines = Bars::new(false, false);
        assert!(shown(&mut lines, &[job(1, Some(2))]).ends_with("1 of 2 (50 %)\n"));
        assert_eq!(shown(&mut lines, &[job(1, Some(2))]), "");
        let told = shown(&mut Bars::new(true, true), &[job(1, Some(2))]);
        let told: serde_json::Value = serde_json::from_str(&told).expect("JSON");
        assert_eq!((&told["progress"]["done"], &told["progress"]["total"]), (&1.into(), &2.into()));
    }
}
