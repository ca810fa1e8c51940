//! What "tested" means: Rust, the web player, and the whole system in real browsers.

use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};
use clap::Args;

use crate::node::{self, END_TO_END, Node, PAGES};
use crate::process::{run as run_step, say, succeeds};
use crate::setup::{self, Purpose};
use crate::workspace::Workspace;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only these: `rust`, `web`, `e2e`. All of them when none is named.
    #[arg(value_parser = ["rust", "web", "e2e"])]
    only: Vec<String>,
    /// For `e2e`: only the test files whose names contain this.
    #[arg(long)]
    file: Option<String>,
    /// For `rust`: how long each parser that strangers reach is fed with damaged inputs.
    #[arg(long, default_value_t = 60)]
    fuzz_seconds: u64,
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let wants = |name: &str| options.only.is_empty() || options.only.iter().any(|only| only == name);
    setup::everything(workspace, Purpose::Test)?;
    node::build_pages(workspace)?;
    if wants("rust") {
        rust(workspace, options.fuzz_seconds)?;
    }
    if wants("web") {
        node::run_script(workspace, "tests of the player and the pages", PAGES, "test")?;
    }
    if wants("e2e") {
        if !wants("rust") {
            // The Rust tests have built it, with the features of the whole workspace: to build it alone would compile
            // most of its dependencies once more.
            crate::demo::build_program(workspace)?;
        }
        end_to_end(workspace, options.file.as_deref())?;
    }
    say("all tests passed");
    Ok(())
}

/// Runs the simulator with the given arguments, optimised: it simulates thousands of viewers.
pub(crate) fn simulate(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    let mut cargo = workspace.cargo();
    // Ten thousand viewers lie in gigabytes and are visited at random: with glibc's blocks in huge pages that takes a
    // quarter less time. Other allocators ignore it.
    cargo.env("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1");
    cargo.args(["run", "--quiet", "--locked", "--release", "--package", "shoal-sim", "--"]).args(arguments);
    let status = cargo.status()?;
    if !status.success() {
        bail!("the simulation failed ({status})");
    }
    Ok(())
}

fn rust(workspace: &Workspace, fuzz_seconds: u64) -> Result<()> {
    // Another seed each time; a failure tells it, and the input.
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut cargo = workspace.cargo();
    cargo.env("SHOAL_FUZZ_SECONDS", fuzz_seconds.to_string()).env("SHOAL_FUZZ_SEED", seed.to_string());
    if succeeds("cargo", &["nextest", "--version"]) {
        run_step("Rust tests", cargo.args(["nextest", "run", "--locked", "--workspace"]))?;
    } else {
        run_step(
            "Rust tests",
            cargo.args(["test", "--locked", "--workspace", "--lib", "--bins", "--tests"]),
        )?;
    }
    // nextest does not run the examples in documentation.
    let mut cargo = workspace.cargo();
    run_step(
        "examples in the documentation",
        cargo.args(["test", "--locked", "--workspace", "--doc", "--quiet"]),
    )
}

fn end_to_end(workspace: &Workspace, file: Option<&str>) -> Result<()> {
    let node = Node::find(workspace)?;
    let mut npm = node.npm(workspace, END_TO_END, &["run", "--silent", "test"]);
    if let Some(file) = file {
        npm.env("SHOAL_TEST_FILE", file);
    }
    run_step("end-to-end tests", environment(workspace, &mut npm, "debug"))
}

/// Tells the end-to-end tests and the browser bench which program and browsers to use.
pub(crate) fn environment<'a>(
    workspace: &Workspace,
    command: &'a mut Command,
    profile: &str,
) -> &'a mut Command {
    command.env("SHOAL_PROGRAM", workspace.target(profile).join("shoal"));
    command.env("SHOAL_PYTHON", crate::python::program(workspace));
    for (variable, browser) in setup::browsers() {
        if let Some(browser) = browser {
            command.env(variable, browser);
        }
    }
    command
}
