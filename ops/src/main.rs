//! The binary `reeve`: arguments in, exit code out. Everything else is in the library.
use std::{io::Write, process::ExitCode};

use anyhow::Context;
use clap::Parser;
use reeve_jobs::program;
use reeve_ops::{Cli, Terminal, run::exit_code};

fn main() -> ExitCode {
    program::install_tls_provider();
    // A usage error ends here, with code 2.
    let cli = Cli::parse();
    match start(&cli) {
        Ok(code) => code,
        Err(error) => {
            // Nobody is left to tell when standard error is closed.
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn start(cli: &Cli) -> anyhow::Result<ExitCode> {
    program::telemetry::start()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let mut stdout = std::io::stdout().lock();
    let mut stderr = std::io::stderr();
    let is_terminal = std::io::IsTerminal::is_terminal(&stdout);
    let mut terminal = Terminal {
        is_terminal,
        out: &mut stdout,
        messages: &mut stderr,
        input: &mut std::io::stdin(),
        user: ["REEVE_ACTOR", "USER"].iter().find_map(|name| std::env::var(name).ok().filter(|user| !user.is_empty())),
    };
    let ended = runtime.block_on(reeve_ops::run(cli, &mut terminal));
    if let Err(failure) = &ended {
        failure.tell(terminal.messages).context("standard error")?;
    }
    Ok(ExitCode::from(exit_code(&ended)))
}
