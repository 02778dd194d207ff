//! The one place that prints to standard output.

use std::fmt::Display;
use std::io::{self, Write as _};

/// Prints one line.
///
/// # Errors
/// The kernel's, for example when nobody reads any more.
pub fn line(text: impl Display) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{text}")
}
