//! Python for tests: a virtual environment with a second WebRTC stack, which publishes in the end-to-end tests.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::process::{output, run_quietly};
use crate::stamp;
use crate::workspace::Workspace;

const REQUIREMENTS: &str = "tests/e2e/publishers/requirements.txt";

/// The environment's interpreter.
pub(crate) fn program(workspace: &Workspace) -> PathBuf {
    workspace.target("xtask/python/bin/python")
}

/// Makes the environment, unless it is there with what is required now.
pub(crate) fn install(workspace: &Workspace) -> Result<()> {
    let version = output(Command::new("python3").arg("--version")).context("python3 is missing")?;
    let requirements = workspace.path(REQUIREMENTS);
    let fingerprint = stamp::fingerprint(std::slice::from_ref(&requirements), &version)?;
    let mark = workspace.memory("python.stamp")?;
    if program(workspace).is_file() && stamp::is_current(&mark, &fingerprint) {
        return Ok(());
    }
    let folder = workspace.target("xtask/python");
    let mut venv = Command::new("python3");
    venv.args(["-m", "venv", "--clear"]).arg(folder);
    run_quietly(workspace, "make a Python environment", &mut venv)?;
    let mut pip = Command::new(program(workspace));
    // Only wheels: nothing is built, so no compiler and no headers are needed.
    pip.args(["-m", "pip", "install", "--quiet", "--only-binary=:all:", "--disable-pip-version-check", "-r"]);
    run_quietly(workspace, "install Python packages for tests", pip.arg(requirements))?;
    stamp::write(&mark, &fingerprint)
}
