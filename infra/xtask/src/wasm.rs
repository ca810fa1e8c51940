//! The WebAssembly modules, the swarm core and what checks signatures: compiled together with their library, made small, put
//! where the pages import them from.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::node::{Node, PAGES};
use crate::process::{find_program, output, run_quietly, say, succeeds};
use crate::setup;
use crate::stamp;
use crate::workspace::Workspace;

const TARGET: &str = "wasm32-unknown-unknown";
/// The modules' names in [`OUTPUT`], and the package and features of each.
const MODULES: &[(&str, &str, &str)] = &[
    ("swarm.wasm", "shoal-swarm-wasm", ""),
    ("swarm-log.wasm", "shoal-swarm-wasm", "log"),
    ("verify.wasm", "shoal-verify-wasm", ""),
];
const OUTPUT: &str = "player/web/src/wasm";

/// What the modules are made of.
const INPUTS: &[&str] = &[
    "player/swarm",
    "player/wasm",
    "segmenter/digest",
    "Cargo.lock",
    "Cargo.toml",
    "infra/xtask/src/wasm.rs",
];

/// A panic ends the module at once and without words, which no page would show to anybody: its messages, its places in the
/// source and what formats them are a tenth of the module. The library has to be compiled that way too, so that its
/// source is needed; to stable compilers all this is unstable.
///
/// The last three leave out what repeats code in order to gain speed: loops that count in several steps at once, paths that
/// compute early what others have computed, and jumps past a second look at the same condition.
const FLAGS: &str = "-Zunstable-options -Cpanic=immediate-abort -Zlocation-detail=none \
                     -Cllvm-args=-disable-lsr -Cllvm-args=-enable-pre=false -Zmir-enable-passes=-JumpThreading";
const LIBRARY: &str = "build-std=std,panic_abort";

/// Debian's compiler with its library as source, for machines where rustup cannot download that.
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
pub(crate) fn install_compiler(workspace: &Workspace) -> Result<()> {
    toolchain(workspace).map(|_| ())
}

/// Builds the modules, if anything changed.
pub(crate) fn build(workspace: &Workspace) -> Result<()> {
    let inputs: Vec<PathBuf> = INPUTS.iter().map(|path| workspace.path(path)).collect();
    let fingerprint = stamp::fingerprint(&inputs, "")?;
    let mark = workspace.memory("wasm.stamp")?;
    let folder = workspace.path(OUTPUT);
    let is_there = MODULES.iter().all(|(name, _, _)| folder.join(name).is_file());
    if is_there && stamp::is_current(&mark, &fingerprint) {
        return Ok(());
    }
    // Other files in it are of a version of this that made others.
    if folder.is_dir() {
        fs::remove_dir_all(&folder).with_context(|| format!("empty {}", folder.display()))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    for (name, package, features) in MODULES {
        let module = compile(workspace, name, package, features)?;
        shrink(workspace, &module, &folder.join(name))?;
    }
    stamp::write(&mark, &fingerprint)
}

fn compile(workspace: &Workspace, name: &str, package: &str, features: &str) -> Result<PathBuf> {
    // A folder of its own: the two compilers would keep invalidating each other's work, and a build for another
    // target need not wait for the lock of the main one.
    let folder = workspace.target("wasm");
    let mut cargo = match toolchain(workspace)? {
        Toolchain::Rustup => workspace.cargo(),
        Toolchain::Debian => debian_cargo(workspace),
    };
    cargo
        .args(["build", "--locked", "--profile", "wasm", "--target", TARGET])
        .args(["--package", package, "--no-default-features", "--features", features])
        .args(["-Z", LIBRARY])
        .arg("--target-dir")
        .arg(&folder)
        .env("RUSTC_BOOTSTRAP", "1")
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS", FLAGS);
    run_quietly(workspace, &format!("build {name} for WebAssembly"), &mut cargo)?;
    Ok(folder.join(TARGET).join("wasm").join(package.replace('-', "_")).with_extension("wasm"))
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
        .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", "wasm-ld-19");
    cargo
}

fn shrink(workspace: &Workspace, module: &Path, out: &Path) -> Result<()> {
    let tool = workspace.path(PAGES).join("node_modules/binaryen/bin/wasm-opt");
    if !tool.is_file() {
        say("binaryen is not among the Node packages: the module stays as large as it is");
        fs::copy(module, out).with_context(|| format!("write {}", out.display()))?;
        return Ok(());
    }
    let node = Node::find(workspace)?;
    let [tool, module, out] = [&tool, module, out].map(|path| path.to_string_lossy().into_owned());
    let arguments = [
        tool.as_str(),
        "-Oz",
        "--converge",
        // A function with hundreds of variables compresses worse than those that it was put together from.
        "--one-caller-inline-max-function-size=30",
        // What is hardly longer than a call compresses better in its place.
        "--always-inline-max-function-size=10",
        // Variables for what is short to compute again take more room, compressed, than that.
        "--skip-pass=local-cse",
        // Nothing lies below 1024: the stack's end is there, which ends the module when it is reached.
        "--low-memory-unused",
        // No browser looks at what loads and stores claim to be aligned to.
        "--dealign",
        // One generic function for several types stands side by side then, within reach of gzip.
        "--reorder-functions-by-name",
        "--strip-producers",
        "--strip-target-features",
        "--enable-bulk-memory",
        "--enable-nontrapping-float-to-int",
        "--enable-sign-ext",
        "--enable-mutable-globals",
        "--enable-reference-types",
        "--enable-multivalue",
        &module,
        "-o",
        &out,
    ];
    run_quietly(workspace, "make a module small", &mut node.script(workspace, ".", &arguments))
}

fn toolchain(workspace: &Workspace) -> Result<Toolchain> {
    if has_library_source(workspace) {
        return Ok(Toolchain::Rustup);
    }
    if find_program("rustup").is_some() {
        let mut rustup = Command::new("rustup");
        rustup.args(["component", "add", "rust-src"]).current_dir(workspace.path("."));
        match run_quietly(workspace, "rustup component add rust-src", &mut rustup) {
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
    bail!(
        "no source of Rust's library, which is compiled for {TARGET}: `rustup component add rust-src`, or your \
         distribution's package of it"
    )
}

/// Whether the compiler's library lies beside it as source.
fn has_library_source(workspace: &Workspace) -> bool {
    let mut rustc = Command::new("rustc");
    rustc.args(["--print", "sysroot"]).current_dir(workspace.path("."));
    output(&mut rustc)
        .is_some_and(|root| Path::new(&root).join("lib/rustlib/src/rust/library/std/Cargo.toml").is_file())
}

fn has_debian_toolchain() -> bool {
    Path::new(DEBIAN_CARGO).is_file()
        && Path::new(DEBIAN_LIBRARY).is_dir()
        && succeeds("wasm-ld-19", &["--version"])
}
