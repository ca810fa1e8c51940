//! The whole system from nothing: installs, builds, and becomes `shoal serve` with a test pattern live.

use std::io;
use std::process::Command;

use anyhow::{Context as _, Result};
use clap::Args;

use crate::node;
use crate::process::{self, say};
use crate::setup::{self, Purpose};
use crate::workspace::Workspace;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The HTTP port.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// The name of the test-pattern stream.
    #[arg(long, default_value = "demo")]
    stream: String,
}

fn program(workspace: &Workspace, options: &Options) -> Command {
    let mut shoal = Command::new(workspace.target("debug/shoal"));
    shoal.arg("serve").arg("--listen").arg(format!("0.0.0.0:{}", options.port));
    shoal.arg("--test-pattern").arg(&options.stream);
    shoal
}

/// Builds the program for development.
pub(crate) fn build_program(workspace: &Workspace) -> Result<()> {
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--locked", "--package", "shoal"]);
    process::run("build shoal", &mut cargo)
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    setup::everything(workspace, Purpose::Build)?;
    node::build_pages(workspace)?;
    build_program(workspace)?;
    say("start shoal; Ctrl-C ends it");
    become_program(program(workspace, options)).context("start shoal")
}

/// Replaces this process, so that signals reach the program itself and nothing is left behind.
#[cfg(unix)]
fn become_program(mut command: Command) -> io::Result<()> {
    Err(std::os::unix::process::CommandExt::exec(&mut command))
}

#[cfg(not(unix))]
fn become_program(mut command: Command) -> io::Result<()> {
    command.status().map(|_| ())
}
