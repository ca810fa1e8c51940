//! The repository's commands: `cargo xtask setup | demo | test | check | sim | bench | wasm | web`.
//!
//! What "checked" and "tested" mean is defined here and nowhere else; `.ci/run` calls the same commands as a
//! developer. This crate is compiled on a bare machine, before any system package is there, so nothing in its
//! dependency tree may need more than a Rust toolchain and a linker.

mod bench;
mod bench_ffmpeg;
mod bench_ingest;
mod bench_origin;
mod check;
mod compress;
mod demo;
mod dependencies;
mod documents;
mod node;
mod process;
mod python;
mod setup;
mod stamp;
mod test;
mod wasm;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

/// The commands of the Shoal repository.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build everything and start the whole system with a test-pattern stream live.
    Demo(demo::Options),
    /// Run every test: Rust, web, and end to end with real browsers.
    Test(test::Options),
    /// Formatting, lints, documentation, TypeScript, and the WebAssembly build of the swarm core.
    Check,
    /// Install what is missing: system packages, Node packages, what WebAssembly is compiled with.
    Setup(setup::Options),
    /// Simulate a swarm; arguments go to the simulator (`cargo xtask sim --help`).
    #[command(disable_help_flag = true)]
    Sim {
        /// Passed on as they are.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Measure: `bench viewers` and others; the last line of each is one JSON object.
    Bench(bench::Options),
    /// Build the WebAssembly modules into player/web/src/wasm.
    Wasm,
    /// Build the pages into player/web/dist.
    Web,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    let workspace = Workspace::find()?;
    match command {
        Command::Demo(options) => demo::run(&workspace, &options),
        Command::Test(options) => test::run(&workspace, &options),
        Command::Check => check::run(&workspace),
        Command::Setup(options) => setup::run(&workspace, &options),
        Command::Sim { arguments } => test::simulate(&workspace, &arguments),
        Command::Bench(options) => bench::run(&workspace, &options),
        Command::Wasm => wasm::build(&workspace),
        Command::Web => node::build_pages(&workspace),
    }
}
