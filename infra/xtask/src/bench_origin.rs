//! `cargo xtask bench origin` and `cargo xtask bench soak`.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::process;
use crate::setup::{self, Purpose};
use crate::workspace::Workspace;

/// The origin under load, beside Debian's nginx and behind Debian's caches.
pub(crate) fn run(workspace: &Workspace, clients: u32, only: &[String]) -> Result<()> {
    // nginx and Varnish are among what the tests need.
    setup::system_packages(workspace, Purpose::Test)?;
    let mut cargo = workspace.cargo();
    let arguments =
        ["build", "--locked", "--release", "--package", "shoal-tests", "--bin", "shoal-bench-origin"];
    process::run("build the bench", cargo.args(arguments))?;
    // Each client is a file descriptor here and one in the server: as many as the system allows.
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -n $(ulimit -Hn); exec \"$0\" \"$@\""]);
    shell.arg(workspace.target("release/shoal-bench-origin")).args([
        "run",
        "--clients",
        &clients.to_string(),
    ]);
    if !only.is_empty() {
        shell.args(["--only", &only.join(",")]);
    }
    process::run("bench origin", &mut shell)
}

/// What the test begins the line of its figures with.
const SOAK_FIGURES: &str = "soak: ";

/// The soak of the tests, for longer. Its figures are the medians of the first and of the last third.
pub(crate) fn soak(workspace: &Workspace, minutes: u32) -> Result<()> {
    setup::system_packages(workspace, Purpose::Build)?;
    let mut cargo = workspace.cargo();
    cargo.args([
        "test",
        "--locked",
        "--release",
        "--package",
        "shoal",
        "--test",
        "soak",
        "--",
        "--nocapture",
    ]);
    cargo.env("SHOAL_SOAK_SECONDS", (u64::from(minutes) * 60).to_string());
    process::say("bench soak");
    let mut child = cargo.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("start cargo")?;
    let mut figures = None;
    for line in BufReader::new(child.stdout.take().context("its output is piped")?).lines() {
        let line = line.context("read the test's output")?;
        match line.strip_prefix(SOAK_FIGURES) {
            Some(object) => figures = Some(object.to_owned()),
            None => println!("{line}"),
        }
    }
    let status = child.wait().context("wait for cargo")?;
    let figures = figures.context("the soak ended without figures")?;
    println!("{figures}");
    ensure!(status.success(), "something grew, or viewers got nothing ({status})");
    Ok(())
}
