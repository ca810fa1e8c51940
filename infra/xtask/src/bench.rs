//! Measurements. Each prints a table, and one JSON object on its last line.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};

use crate::bench_ingest;
use crate::node::{self, END_TO_END, Node};
use crate::process;
use crate::setup::{self, Purpose};
use crate::test;
use crate::workspace::Workspace;

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Real Chromium pages against `shoal serve` with a real publisher, with sharing and without.
    Viewers {
        /// How many viewers.
        #[arg(long, default_value_t = 4)]
        viewers: u32,
        /// How long each of the two runs is measured.
        #[arg(long, default_value_t = 40)]
        seconds: u32,
    },
    /// What publishers cost the server, and by how much it delays their frames.
    Ingest {
        /// How many publishers: one run for each number.
        #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 32])]
        publishers: Vec<u32>,
        /// How long each run is measured.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(5..=45))]
        seconds: u64,
        /// Measure this `shoal` instead of one built for it.
        #[arg(long)]
        program: Option<PathBuf>,
    },
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    match &options.bench {
        Bench::Viewers { viewers, seconds } => run_viewers(workspace, *viewers, *seconds),
        Bench::Ingest { publishers, seconds, program } => {
            bench_ingest::run(workspace, publishers, *seconds, program.as_deref())
        }
    }
}

fn run_viewers(workspace: &Workspace, viewers: u32, seconds: u32) -> Result<()> {
    setup::everything(workspace, Purpose::Test)?;
    node::build_pages(workspace)?;
    let mut cargo = workspace.cargo();
    process::run("build shoal", cargo.args(["build", "--locked", "--release", "--package", "shoal"]))?;
    let node = Node::find(workspace)?;
    let viewers = format!("--viewers={viewers}");
    let seconds = format!("--seconds={seconds}");
    let arguments = ["run", "--silent", "bench:viewers", "--", viewers.as_str(), seconds.as_str()];
    let mut npm = node.npm(workspace, END_TO_END, &arguments);
    let status = test::environment(workspace, &mut npm, "release")
        .stdin(Stdio::null())
        .status()
        .context("start the bench")?;
    if !status.success() {
        bail!("the bench failed ({status})");
    }
    Ok(())
}
