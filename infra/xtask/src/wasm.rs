//! The swarm core as a WebAssembly module: built, bound, made small, put where the pages import it from.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use wasm_bindgen_cli_support::Bindgen;

use crate::node::{Node, PAGES};
use crate::process::{find_program, output, run_quietly, say, succeeds};
use crate::setup;
use crate::stamp;
use crate::workspace::Workspace;

const TARGET: &str = "wasm32-unknown-unknown";
const PACKAGE: &str = "shoal-swarm-wasm";
const OUTPUT: &str = "player/web/src/wasm";

/// What the module is made of.
const INPUTS: &[&str] = &["player/swarm", "player/wasm", "segmenter/digest", "Cargo.lock", "Cargo.toml"];

/// Debian's compiler with its library as source, for machines where rustup cannot download a target.
const DEBIAN_PACKAGES: &[&str] = &["rustc-web", "cargo-web", "rust-web-src", "lld-19"];
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
const DEBIAN_LIBRARY: &str = "/usr/lib/rustlib/src/rust/library";

/// How this machine can compile for WebAssembly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Toolchain {
    Rustup,
    Debian,
}

/// Makes sure that something can compile for WebAssembly.
pub(crate) fn install_target(workspace: &Workspace) -> Result<()> {
    toolchain(workspace).map(|_| ())
}

/// Builds the module, if anything changed.
pub(crate) fn build(workspace: &Workspace) -> Result<()> {
    let inputs: Vec<PathBuf> = INPUTS.iter().map(|path| workspace.path(path)).collect();
    let fingerprint = stamp::fingerprint(&inputs, "")?;
    let mark = workspace.memory("wasm.stamp")?;
    let out = workspace.path(OUTPUT);
    if out.join("shoal_swarm_wasm_bg.wasm").is_file() && stamp::is_current(&mark, &fingerprint) {
        return Ok(());
    }
    let module = compile(workspace)?;
    bind(&module, &out)?;
    shrink(workspace, &out)?;
    stamp::write(&mark, &fingerprint)
}

fn compile(workspace: &Workspace) -> Result<PathBuf> {
    let arguments = ["build", "--locked", "--profile", "wasm", "--target", TARGET, "--package", PACKAGE];
    // A folder of its own: the two compilers would keep invalidating each other's work, and a build for another
    // target need not wait for the lock of the main one.
    let folder = workspace.target("wasm");
    let mut cargo = match toolchain(workspace)? {
        Toolchain::Rustup => workspace.cargo(),
        Toolchain::Debian => debian_cargo(workspace),
    };
    cargo.args(arguments).arg("--target-dir").arg(&folder);
    run_quietly(workspace, "build the swarm core for WebAssembly", &mut cargo)?;
    Ok(folder.join(TARGET).join("wasm/shoal_swarm_wasm.wasm"))
}

fn debian_cargo(workspace: &Workspace) -> Command {
    let mut cargo = Command::new(DEBIAN_CARGO);
    cargo
        .current_dir(workspace.path("."))
        // What rustup set for us would send Debian's cargo back to rustup's compiler and libraries.
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("RUSTC")
        .env_remove("CARGO")
        .env_remove("LD_LIBRARY_PATH")
        .env("PATH", "/usr/bin:/bin")
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", "wasm-ld-19")
        .args(["-Z", "build-std=std,panic_abort"]);
    cargo
}

fn bind(module: &Path, out: &Path) -> Result<()> {
    say("generate the module's bindings");
    fs::create_dir_all(out).with_context(|| format!("create {}", out.display()))?;
    Bindgen::new()
        .input_path(module)
        .web(true)
        .and_then(|bindgen| {
            bindgen.typescript(true).remove_name_section(true).remove_producers_section(true).generate(out)
        })
        .context("generate the bindings")
}

fn shrink(workspace: &Workspace, out: &Path) -> Result<()> {
    let tool = workspace.path(PAGES).join("node_modules/binaryen/bin/wasm-opt");
    if !tool.is_file() {
        say("binaryen is not among the Node packages: the module stays as large as it is");
        return Ok(());
    }
    let module = out.join("shoal_swarm_wasm_bg.wasm");
    let node = Node::find(workspace)?;
    let tool = tool.to_string_lossy().into_owned();
    let module = module.to_string_lossy().into_owned();
    let arguments = [
        tool.as_str(),
        "-Oz",
        "--enable-bulk-memory",
        "--enable-nontrapping-float-to-int",
        "--enable-sign-ext",
        "--enable-mutable-globals",
        "--enable-reference-types",
        "--enable-multivalue",
        &module,
        "-o",
        &module,
    ];
    run_quietly(workspace, "make the module small", &mut node.script(workspace, ".", &arguments))
}

fn toolchain(workspace: &Workspace) -> Result<Toolchain> {
    if has_rustup_target(workspace) {
        return Ok(Toolchain::Rustup);
    }
    if find_program("rustup").is_some() {
        let mut rustup = Command::new("rustup");
        rustup.args(["target", "add", TARGET]).current_dir(workspace.path("."));
        match run_quietly(workspace, &format!("rustup target add {TARGET}"), &mut rustup) {
            Ok(()) => return Ok(Toolchain::Rustup),
            Err(error) => say(&format!("{error:#}")),
        }
    }
    if !has_debian_toolchain() && setup::has_apt() {
        setup::apt_install(workspace, DEBIAN_PACKAGES)?;
    }
    if has_debian_toolchain() {
        return Ok(Toolchain::Debian);
    }
    bail!("no compiler for {TARGET}: `rustup target add {TARGET}`, or your distribution's package of it")
}

/// A compiler has a target if it has the target's library, wherever that came from.
fn has_rustup_target(workspace: &Workspace) -> bool {
    let mut rustc = Command::new("rustc");
    rustc.args(["--print", "target-libdir", "--target", TARGET]).current_dir(workspace.path("."));
    output(&mut rustc).is_some_and(|dir| {
        fs::read_dir(dir).is_ok_and(|mut entries| {
            entries.any(|entry| {
                entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("libcore"))
            })
        })
    })
}

fn has_debian_toolchain() -> bool {
    Path::new(DEBIAN_CARGO).is_file()
        && Path::new(DEBIAN_LIBRARY).is_dir()
        && succeeds("wasm-ld-19", &["--version"])
}
