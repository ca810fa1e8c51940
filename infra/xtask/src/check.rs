//! What "checked" means: everything a machine can find without running the system.

use anyhow::Result;

use crate::dependencies;
use crate::documents;
use crate::node::{self, END_TO_END, PAGES};
use crate::process;
use crate::setup::{self, Purpose};
use crate::wasm;
use crate::workspace::Workspace;

pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let mut cargo = workspace.cargo();
    process::run("formatting", cargo.args(["fmt", "--all", "--check"]))?;
    dependencies::check(workspace)?;
    documents::check(workspace)?;
    setup::everything(workspace, Purpose::Test)?;
    let mut cargo = workspace.cargo();
    process::run(
        "lints",
        cargo.args(["clippy", "--locked", "--workspace", "--all-targets", "--", "--deny", "warnings"]),
    )?;
    let mut cargo = workspace.cargo();
    cargo.args(["doc", "--locked", "--workspace", "--no-deps", "--document-private-items"]);
    process::run("documentation", cargo.env("RUSTDOCFLAGS", "--deny warnings"))?;
    // The pages import the module's types, so it is built first; the build is also the proof that the core
    // compiles for WebAssembly.
    wasm::build(workspace)?;
    node::run_script(workspace, "types and lints of the pages", PAGES, "check")?;
    node::run_script(workspace, "types of the end-to-end tests", END_TO_END, "check")
}
