//! Node.js: a version that is new enough, installed packages, and the pages built with them.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::compress;
use crate::process::{find_program, output, run, run_quietly};
use crate::stamp;
use crate::wasm;
use crate::workspace::Workspace;

/// The player for browsers and the pages.
pub(crate) const PAGES: &str = "player/web";
/// The end-to-end tests and the browser bench.
pub(crate) const END_TO_END: &str = "tests/e2e";

/// The oldest Node.js that the build tools and test drivers run on. Debian 12 and Ubuntu 22.04 come with older
/// ones, so a newer one is then taken from npm into `target`.
const VERSION_MIN: (u32, u32) = (20, 19);
/// Which release line is taken from npm.
const VERSION_FROM_NPM: &str = "node@22";

/// A Node.js to run things with.
#[derive(Debug)]
pub(crate) struct Node {
    /// The search path on which the chosen Node.js comes first.
    path: OsString,
    version: String,
}

impl Node {
    /// The system's Node.js, or one from npm where the system's is too old.
    pub(crate) fn find(workspace: &Workspace) -> Result<Self> {
        let path = env::var_os("PATH").unwrap_or_default();
        if let Some(version) = version(&path).filter(|version| is_new_enough(version)) {
            return Ok(Self { path, version });
        }
        let folder = workspace.memory("node/package.json")?;
        let folder = folder.parent().context("a file lies in a folder")?;
        let binaries = folder.join("node_modules/node/bin");
        if !binaries.join("node").is_file() {
            let mut npm = Command::new("npm");
            npm.args(["install", "--no-audit", "--no-fund", "--prefix"]).arg(folder).arg(VERSION_FROM_NPM);
            run_quietly(workspace, "take a newer Node.js from npm", &mut npm)?;
        }
        let path = env::join_paths(std::iter::once(binaries).chain(env::split_paths(&path)))
            .context("the search path cannot be extended")?;
        match version(&path).filter(|version| is_new_enough(version)) {
            Some(version) => Ok(Self { path, version }),
            None => {
                bail!("Node.js {}.{} or newer is needed: https://nodejs.org", VERSION_MIN.0, VERSION_MIN.1)
            }
        }
    }

    /// Runs npm in a folder of the checkout.
    pub(crate) fn npm(&self, workspace: &Workspace, folder: &str, arguments: &[&str]) -> Command {
        // Debian's npm names /usr/bin/node in its first line, which may be the old one: start it by the new one.
        let npm = find_program("npm").and_then(|npm| fs::canonicalize(npm).ok());
        let mut command = match npm {
            Some(script) if script.extension().is_some_and(|extension| extension == "js") => {
                let mut command = self.program();
                command.arg(script);
                command
            }
            _ => Command::new("npm"),
        };
        command.args(arguments).current_dir(workspace.path(folder)).env("PATH", &self.path);
        command
    }

    /// Runs a script in a folder of the checkout.
    pub(crate) fn script(&self, workspace: &Workspace, folder: &str, arguments: &[&str]) -> Command {
        let mut command = self.program();
        command.args(arguments).current_dir(workspace.path(folder)).env("PATH", &self.path);
        command
    }

    /// `npm ci`, unless the lock file is the one that was installed last.
    pub(crate) fn install_packages(&self, workspace: &Workspace, folder: &str) -> Result<()> {
        let lock = workspace.path(folder).join("package-lock.json");
        if !lock.is_file() {
            bail!("{} is missing from the checkout", lock.display());
        }
        let fingerprint = stamp::fingerprint(&[lock], &self.version)?;
        let mark = workspace.path(folder).join("node_modules/.installed-by-xtask");
        if stamp::is_current(&mark, &fingerprint) {
            return Ok(());
        }
        // Install scripts of packages are not run: none of ours needs one, and they run with our rights.
        let arguments = ["ci", "--ignore-scripts", "--no-audit", "--no-fund"];
        run_quietly(workspace, &format!("npm ci in {folder}"), &mut self.npm(workspace, folder, &arguments))?;
        stamp::write(&mark, &fingerprint)
    }

    fn program(&self) -> Command {
        let found = env::split_paths(&self.path).map(|dir| dir.join("node")).find(|node| node.is_file());
        Command::new(found.unwrap_or_else(|| PathBuf::from("node")))
    }
}

/// Builds the WebAssembly module and the pages, if anything changed.
pub(crate) fn build_pages(workspace: &Workspace) -> Result<()> {
    let node = Node::find(workspace)?;
    node.install_packages(workspace, PAGES)?;
    wasm::build(workspace)?;
    let dist = workspace.path(PAGES).join("dist");
    let inputs = [workspace.path(PAGES), workspace.path("infra/xtask/src/compress.rs")];
    let fingerprint = stamp::fingerprint(&inputs, &node.version)?;
    let mark = workspace.memory("pages.stamp")?;
    // npm alone builds pages that are not gzipped.
    if dist.join("index.html.gz").is_file() && stamp::is_current(&mark, &fingerprint) {
        return Ok(());
    }
    run_quietly(workspace, "build the pages", &mut node.npm(workspace, PAGES, &["run", "build"]))?;
    compress::gzip_pages(&dist)?;
    stamp::write(&mark, &fingerprint)
}

/// Runs one of a folder's npm scripts with its output shown.
pub(crate) fn run_script(workspace: &Workspace, title: &str, folder: &str, script: &str) -> Result<()> {
    let node = Node::find(workspace)?;
    node.install_packages(workspace, folder)?;
    run(title, &mut node.npm(workspace, folder, &["run", "--silent", script]))
}

fn version(path: &OsString) -> Option<String> {
    let program = env::split_paths(path).map(|dir| dir.join("node")).find(|node| Path::is_file(node))?;
    output(Command::new(program).arg("--version"))
}

fn is_new_enough(version: &str) -> bool {
    let mut numbers = version.trim_start_matches('v').split('.').map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= VERSION_MIN
}

#[cfg(test)]
mod tests {
    use super::is_new_enough;

    #[test]
    fn old_and_unreadable_versions_are_not_new_enough() {
        for (version, expected) in
            [("v18.20.4", false), ("v20.18.1", false), ("v20.19.0", true), ("v22.1.0", true), ("", false)]
        {
            assert_eq!(is_new_enough(version), expected, "{version}");
        }
    }
}
