//! Where things are in the checkout.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

/// How the variables begin that `cargo run` sets for the program it runs.
const ABOUT_US: &[&str] =
    &["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_", "OUT_DIR"];

/// The checkout that this xtask was built from.
#[derive(Debug)]
pub(crate) struct Workspace {
    root: PathBuf,
    target: PathBuf,
}

impl Workspace {
    /// Finds the checkout from the manifest's place; `CARGO_TARGET_DIR` is respected.
    pub(crate) fn find() -> Result<Self> {
        let manifest = env::var_os("CARGO_MANIFEST_DIR").context("start this with `cargo xtask`")?;
        let root = Path::new(&manifest)
            .ancestors()
            .nth(2)
            .context("infra/xtask lies two folders below the root")?
            .to_path_buf();
        let target =
            env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir));
        Ok(Self { root, target })
    }

    /// The path of a file in the checkout.
    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// The path of a build product.
    pub(crate) fn target(&self, relative: &str) -> PathBuf {
        self.target.join(relative)
    }

    /// A folder for what xtask remembers between runs: logs and stamps. Removed by `cargo clean`.
    pub(crate) fn memory(&self, relative: &str) -> Result<PathBuf> {
        let path = self.target.join("xtask").join(relative);
        let parent = path.parent().context("a path below target has a parent")?;
        std::fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
        Ok(path)
    }

    /// The cargo that started us, working at the root.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(&self.root);
        // What cargo told us about ourselves. Some build scripts (ring's) ask to be run again when these change, so
        // that a plain `cargo build` after a `cargo xtask` would compile half of the dependencies anew.
        for (name, _) in env::vars_os() {
            let text = name.to_string_lossy();
            if ABOUT_US.iter().any(|prefix| text.starts_with(prefix)) {
                command.env_remove(&name);
            }
        }
        command
    }
}
