//! Rows in the text format of COPY, and the way they reach the server.

use std::fmt::{Display, Write as _};

use chrono::DateTime;
use sqlx::PgConnection;

/// The rows of one table, gathered as COPY text.
pub(super) struct CopyRows {
    table: &'static str,
    columns: &'static str,
    text: String,
    fields_in_row: usize,
}

impl CopyRows {
    /// `columns` is the column list as SQL, in the order in which fields are then added.
    pub(super) fn new(table: &'static str, columns: &'static str) -> Self {
        Self { table, columns, text: String::new(), fields_in_row: 0 }
    }

    fn separate(&mut self) {
        if self.fields_in_row > 0 {
            self.text.push('\t');
        }
        self.fields_in_row += 1;
    }

    pub(super) fn text(&mut self, value: &str) -> &mut Self {
        self.separate();
        for c in value.chars() {
            match c {
                '\\' => self.text.push_str("\\\\"),
                '\n' => self.text.push_str("\\n"),
                '\r' => self.text.push_str("\\r"),
                '\t' => self.text.push_str("\\t"),
                c => self.text.push(c),
            }
        }
        self
    }

    /// A number, a uuid, a JSON value: whatever prints itself.
    pub(super) fn value(&mut self, value: impl Display) -> &mut Self {
        let printed = value.to_string();
        self.text(&printed)
    }

    pub(super) fn null(&mut self) -> &mut Self {
        self.separate();
        self.text.push_str("\\N");
        self
    }

    pub(super) fn optional(&mut self, value: Option<impl Display>) -> &mut Self {
        match value {
            Some(value) => self.value(value),
            None => self.null(),
        }
    }

    /// A moment in seconds since 1970, UTC.
    pub(super) fn time(&mut self, unix_secs: i64) -> &mut Self {
        self.separate();
        let at = DateTime::from_timestamp(unix_secs, 0).unwrap_or_default();
        // Writing to a String does not fail.
        let _ = write!(self.text, "{}", at.format("%Y-%m-%d %H:%M:%S+00"));
        self
    }

    pub(super) fn optional_time(&mut self, unix_secs: Option<i64>) -> &mut Self {
        match unix_secs {
            Some(unix_secs) => self.time(unix_secs),
            None => self.null(),
        }
    }

    pub(super) fn end_row(&mut self) {
        self.text.push('\n');
        self.fields_in_row = 0;
    }

    pub(super) async fn send(self, db: &mut PgConnection) -> Result<(), sqlx::Error> {
        if self.text.is_empty() {
            return Ok(());
        }
        let statement = format!("COPY crm.{} ({}) FROM STDIN", self.table, self.columns);
        let mut copy = db.copy_in_raw(&statement).await?;
        if let Err(error) = copy.send(self.text.as_bytes()).await {
            // The connection is of no use until the copy has ended; what went wrong first is what to report.
            let _ = copy.abort("the sample loader could not send its rows").await;
            return Err(error);
        }
        copy.finish().await.map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::CopyRows;

    #[test]
    fn a_field_cannot_end_its_row_or_column() {
        let mut rows = CopyRows::new("t", "a, b, c");
        rows.text("x\ty\nz\\N\r").null().value(7).end_row();
        assert_eq!(rows.text, "x\\ty\\nz\\\\N\\r\t\\N\t7\n");
    }
}
