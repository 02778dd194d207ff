//! The tour's live table: on a terminal it is redrawn in place, elsewhere each change is a line of its own.
use std::{
    collections::HashMap,
    io::{self, IsTerminal, Write},
};

/// One job as the table shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub id: String,
    pub tenant: String,
    pub kind: String,
    pub state: String,
    pub attempt: i32,
    /// From enqueue to its (last) start, and from there to its end; milliseconds.
    pub waited_ms: Option<f64>,
    pub took_ms: Option<f64>,
    pub note: String,
}

/// Remembers what was drawn.
#[derive(Debug, Default)]
pub struct Table {
    drawn_lines: usize,
    shown: HashMap<String, String>,
}

const HEAD: &str = "  job       tenant           kind             state         attempt   waited      took  note";

impl Table {
    pub fn draw(&mut self, rows: &[Row]) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if out.is_terminal() {
            if self.drawn_lines > 0 {
                // Up, to the first line of the last drawing.
                write!(out, "\x1b[{}A", self.drawn_lines)?;
            }
            writeln!(out, "\x1b[2K{HEAD}")?;
            for row in rows {
                writeln!(out, "\x1b[2K{}", line(row))?;
            }
            self.drawn_lines = rows.len() + 1;
        } else {
            if self.drawn_lines == 0 {
                writeln!(out, "{HEAD}")?;
                self.drawn_lines = 1;
            }
            for row in rows {
                let state = format!("{} {}", row.state, row.attempt);
                if self.shown.insert(row.id.clone(), state.clone()).as_ref() != Some(&state) {
                    writeln!(out, "{}", line(row))?;
                }
            }
        }
        out.flush()
    }
}

fn line(row: &Row) -> String {
    let glyph = match row.state.as_str() {
        "completed" => '✓',
        "running" => '▶',
        "retryable" => '↻',
        "dead" | "quarantined" | "cancelled" => '✗',
        _ => '·',
    };
    // The head of a UUID of version 7 is its time; its tail tells two jobs of one moment apart.
    let tail: String = row.id.chars().skip(28).collect();
    let line = format!(
        "{glyph} {tail}  {:<15}  {:<15}  {:<12}  {:>7}  {:>7}  {:>8}  {}",
        cut(&row.tenant, 15),
        row.kind,
        row.state,
        row.attempt,
        ms(row.waited_ms),
        ms(row.took_ms),
        row.note
    );
    line.trim_end().to_owned()
}

fn ms(value: Option<f64>) -> String {
    value.map_or_else(
        || "–".to_owned(),
        |ms| if ms < 10_000.0 { format!("{ms:.0} ms") } else { format!("{:.1} s", ms / 1e3) },
    )
}

fn cut(text: &str, chars_max: usize) -> String {
    if text.chars().count() <= chars_max {
        return text.to_owned();
    }
    text.chars().take(chars_max - 1).chain(['…']).collect()
}
