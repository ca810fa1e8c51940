//! `cargo xtask bench origin` and `cargo xtask bench soak`.

use std::process::Command;

use anyhow::Result;

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

/// The soak of the tests, for longer.
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
    process::run("bench soak", &mut cargo)
}
