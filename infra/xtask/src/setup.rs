//! Finds out what the machine lacks and installs it, or says how to get it.
//!
//! A requirement is tested by what it gives (a program that runs, a library that pkg-config finds), not by package
//! names, so a machine that has it from elsewhere is left alone. Only Debian and its children are installed on.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};
use clap::Args;

use crate::process::{find_program, output, run_quietly, say, succeeds};
use crate::workspace::Workspace;
use crate::{node, python, wasm};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only what the program and its pages need, without browsers and test tools.
    #[arg(long)]
    build_only: bool,
}

/// What the commands need: for building the program, or for running the tests as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Build,
    Test,
}

/// One thing that the machine must have.
struct Requirement {
    what: &'static str,
    purpose: Purpose,
    is_present: fn() -> bool,
    /// Debian's and Ubuntu's packages.
    apt: &'static [&'static str],
    /// How to get it on other systems.
    elsewhere: &'static str,
}

const REQUIREMENTS: &[Requirement] = &[
    Requirement {
        what: "a C compiler",
        purpose: Purpose::Build,
        is_present: || succeeds("cc", &["--version"]),
        apt: &["build-essential"],
        elsewhere: "Fedora: dnf install gcc; macOS: xcode-select --install",
    },
    Requirement {
        what: "pkg-config",
        purpose: Purpose::Build,
        is_present: || succeeds("pkg-config", &["--version"]),
        apt: &["pkg-config"],
        elsewhere: "Fedora: dnf install pkgconf-pkg-config; macOS: brew install pkgconf",
    },
    Requirement {
        what: "libclang (bindings to FFmpeg are generated at build time)",
        purpose: Purpose::Build,
        is_present: has_libclang,
        apt: &["clang", "libclang-dev"],
        elsewhere: "Fedora: dnf install clang-devel; macOS: brew install llvm",
    },
    Requirement {
        what: "FFmpeg's libraries, 5.1 or newer",
        purpose: Purpose::Build,
        is_present: || {
            let names = ["libavcodec >= 59.37", "libavformat", "libavutil", "libswscale", "libswresample"];
            names.iter().all(|name| succeeds("pkg-config", &["--exists", name]))
        },
        apt: &["libavcodec-dev", "libavformat-dev", "libavutil-dev", "libswscale-dev", "libswresample-dev"],
        elsewhere: "Fedora: dnf install ffmpeg-devel (RPM Fusion); macOS: brew install ffmpeg",
    },
    Requirement {
        what: "Node.js and npm",
        purpose: Purpose::Build,
        is_present: || succeeds("node", &["--version"]) && succeeds("npm", &["--version"]),
        apt: &["nodejs", "npm"],
        elsewhere: "https://nodejs.org, or your package manager",
    },
    Requirement {
        what: "the ffmpeg and ffprobe programs",
        purpose: Purpose::Test,
        is_present: || succeeds("ffmpeg", &["-version"]) && succeeds("ffprobe", &["-version"]),
        apt: &["ffmpeg"],
        elsewhere: "Fedora: dnf install ffmpeg; macOS: brew install ffmpeg",
    },
    Requirement {
        what: "Python 3 with its virtual environments",
        purpose: Purpose::Test,
        is_present: || succeeds("python3", &["-c", "import venv, ensurepip"]),
        apt: &["python3", "python3-venv"],
        elsewhere: "Fedora: dnf install python3; macOS: brew install python",
    },
    Requirement {
        what: "nginx and Varnish (in front of the origin, in tests and benches)",
        purpose: Purpose::Test,
        is_present: || ["nginx", "varnishd"].iter().all(|name| has_server(name)),
        // On a machine with an init Debian starts them by itself; ours run on ports of their own all the same.
        apt: &["nginx-light", "varnish"],
        elsewhere: "Fedora: dnf install nginx varnish; macOS: brew install nginx varnish",
    },
    Requirement {
        what: "GStreamer's player of HLS",
        purpose: Purpose::Test,
        is_present: || {
            let elements = ["hlsdemux", "qtdemux", "avdec_h264", "avdec_aac", "souphttpsrc"];
            elements.iter().all(|element| succeeds("gst-inspect-1.0", &["--exists", element]))
        },
        apt: &[
            "gstreamer1.0-tools",
            "gstreamer1.0-plugins-base",
            "gstreamer1.0-plugins-good",
            "gstreamer1.0-plugins-bad",
            "gstreamer1.0-libav",
        ],
        elsewhere: "Fedora: dnf install gstreamer1-plugins-bad-free gstreamer1-plugin-libav; macOS: brew install gstreamer",
    },
    Requirement {
        what: "iproute2 and nftables (network namespaces with NATs)",
        purpose: Purpose::Test,
        is_present: has_nft,
        apt: &["iproute2", "nftables"],
        elsewhere: "Fedora: dnf install iproute nftables; elsewhere that test is left out",
    },
    Requirement {
        what: "Chromium",
        purpose: Purpose::Test,
        is_present: || browser(CHROMIUM, "SHOAL_CHROMIUM").is_some(),
        apt: &["chromium"],
        elsewhere: "install Chromium or Chrome, or name the program in SHOAL_CHROMIUM",
    },
    Requirement {
        what: "Firefox",
        purpose: Purpose::Test,
        is_present: || browser(FIREFOX, "SHOAL_FIREFOX").is_some(),
        apt: &["firefox-esr"],
        elsewhere: "install Firefox, or name the program in SHOAL_FIREFOX",
    },
];

const CHROMIUM: &[&str] = &["chromium", "chromium-browser", "google-chrome"];
const FIREFOX: &[&str] = &["firefox-esr", "firefox"];

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let purpose = if options.build_only { Purpose::Build } else { Purpose::Test };
    everything(workspace, purpose)?;
    say("nothing is missing");
    Ok(())
}

/// Makes sure that system packages, Node packages and what WebAssembly is compiled with are there.
pub(crate) fn everything(workspace: &Workspace, purpose: Purpose) -> Result<()> {
    system_packages(workspace, purpose)?;
    wasm::install_compiler(workspace)?;
    let node = node::Node::find(workspace)?;
    node.install_packages(workspace, node::PAGES)?;
    if purpose == Purpose::Test {
        node.install_packages(workspace, node::END_TO_END)?;
        python::install(workspace)?;
    }
    Ok(())
}

/// The browsers for the end-to-end tests, as environment variables that the tests read.
pub(crate) fn browsers() -> [(&'static str, Option<String>); 2] {
    [
        ("SHOAL_CHROMIUM", browser(CHROMIUM, "SHOAL_CHROMIUM")),
        ("SHOAL_FIREFOX", browser(FIREFOX, "SHOAL_FIREFOX")),
    ]
}

/// Installs Debian packages if root or sudo allows it, and else says which are missing.
pub(crate) fn apt_install(workspace: &Workspace, packages: &[&str]) -> Result<()> {
    let is_root = output(Command::new("id").arg("-u")).as_deref() == Some("0");
    // Without a terminal nobody could type a password: ask for a sudo that needs none.
    let sudo: &[&str] = match (is_root, env::var_os("CI").is_some()) {
        (true, _) => &[],
        (false, true) => &["sudo", "-n"],
        (false, false) => &["sudo"],
    };
    let by_hand = format!("apt-get install {}", packages.join(" "));
    if !is_root && find_program("sudo").is_none() {
        bail!("missing packages, and neither root nor sudo is there; run as root: {by_hand}");
    }
    let apt = |arguments: &[&str]| {
        let words =
            [sudo, &["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y"], arguments].concat();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        command
    };
    // A stale index is harmless if the packages are still to be had; a missing one is not.
    if let Err(error) = run_quietly(workspace, "apt-get update", &mut apt(&["update"])) {
        say(&format!("the package index could not be renewed, going on with the old one ({error})"));
    }
    let title = format!("apt-get install {}", packages.join(" "));
    let arguments = [&["install", "--no-install-recommends"], packages].concat();
    run_quietly(workspace, &title, &mut apt(&arguments))
}

/// Whether packages can be installed with apt.
pub(crate) fn has_apt() -> bool {
    Path::new("/etc/debian_version").exists() && find_program("apt-get").is_some()
}

pub(crate) fn system_packages(workspace: &Workspace, purpose: Purpose) -> Result<()> {
    let needed =
        |requirement: &&Requirement| purpose == Purpose::Test || requirement.purpose == Purpose::Build;
    let missing: Vec<&Requirement> =
        REQUIREMENTS.iter().filter(needed).filter(|requirement| !(requirement.is_present)()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if has_apt() {
        let packages: Vec<&str> = missing.iter().flat_map(|requirement| requirement.apt).copied().collect();
        apt_install(workspace, &packages)?;
    }
    let missing: Vec<&Requirement> =
        missing.into_iter().filter(|requirement| !(requirement.is_present)()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for requirement in &missing {
        eprintln!("missing: {}\n    {}", requirement.what, requirement.elsewhere);
    }
    bail!("install what is listed above and start again");
}

/// Servers lie where only root's search path leads.
fn has_server(name: &str) -> bool {
    find_program(name).is_some()
        || ["/usr/sbin", "/usr/local/sbin"].iter().any(|folder| Path::new(folder).join(name).is_file())
}

fn browser(names: &[&str], variable: &str) -> Option<String> {
    if let Some(named) = env::var_os(variable) {
        return Path::new(&named).is_file().then(|| named.to_string_lossy().into_owned());
    }
    let found = names.iter().find_map(|name| find_program(name))?;
    // Ubuntu's packages of this name are doors to a snap, which does not run in containers or under a
    // debugger's profile folder; a door that does not open counts as missing.
    let opens = succeeds(&found.to_string_lossy(), &["--version"]);
    opens.then(|| found.to_string_lossy().into_owned())
}

/// Linux only; without it a bench says that it is left out. Debian keeps it where only root's search path looks.
fn has_nft() -> bool {
    let has = |name: &str| find_program(name).is_some() || Path::new("/usr/sbin").join(name).exists();
    !cfg!(target_os = "linux") || (has("ip") && has("nft"))
}

/// Whether a file is Clang's C interface, under one of the names that bindgen looks for. Its C++ interface, which LLVM's
/// own packages bring along, is another library.
fn is_libclang(name: &str) -> bool {
    let is_named =
        name.starts_with("libclang.so") || name.starts_with("libclang-") || name == "libclang.dylib";
    is_named && !name.starts_with("libclang-cpp")
}

fn has_libclang() -> bool {
    if env::var_os("LIBCLANG_PATH").is_some() {
        return true;
    }
    let holds = |dir: &Path| {
        let names = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
        names.into_iter().any(|name| is_libclang(&name.to_string_lossy()))
    };
    let versions = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let llvm = versions.filter(|entry| entry.file_name().to_string_lossy().starts_with("llvm-"));
    let fixed = ["/usr/lib", "/usr/lib64", "/usr/local/lib", "/opt/homebrew/opt/llvm/lib"];
    llvm.map(|entry| entry.path().join("lib")).any(|dir| holds(&dir))
        || fixed.iter().any(|dir| holds(Path::new(dir)))
}

#[cfg(test)]
mod tests {
    use super::is_libclang;

    #[test]
    fn clangs_other_interface_is_not_what_bindings_are_made_with() {
        for name in
            ["libclang.so", "libclang.so.1", "libclang-14.so.1", "libclang-14.so.14.0.6", "libclang.dylib"]
        {
            assert!(is_libclang(name), "{name}");
        }
        for name in ["libclang-cpp.so.14", "libclang-cpp.so", "libclangBasic.a", "libLLVM-14.so.1"] {
            assert!(!is_libclang(name), "{name}");
        }
    }
}
