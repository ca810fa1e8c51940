//! The `shoal` program.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use shoal::cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match shoal::runtime::start().context("start threads") {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    let result = runtime.block_on(async {
        match cli.command {
            Command::Lint(flags) => return Ok(shoal::lint::run(flags).await),
            Command::Serve(flags) => shoal::serve::run(&flags).await.map_err(anyhow::Error::from),
            Command::Publish(options) => shoal::publish::run(options).await.map_err(anyhow::Error::from),
            Command::Watch(flags) => shoal::watch::run(flags).await.map_err(anyhow::Error::from),
        }
        .map(|()| ExitCode::SUCCESS)
    });
    // Threads that still wait for a resolver or a file must not keep the program alive.
    runtime.shutdown_background();
    match result {
        Ok(code) => code,
        Err(error) => fail(&error),
    }
}

/// One line, so that it is not lost among others.
fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("shoal: {error:#}");
    ExitCode::FAILURE
}
