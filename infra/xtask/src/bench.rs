//! Measurements. Each prints a table, and one JSON object on its last line.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};

use crate::node::{self, END_TO_END, Node};
use crate::process;
use crate::setup::{self, Purpose};
use crate::test;
use crate::workspace::Workspace;
use crate::{bench_ingest, bench_origin};

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Real Chromium pages against `shoal serve` with a real publisher, with sharing and without.
    Viewers {
        /// How many viewers.
        #[arg(long, default_value_t = 4)]
        viewers: u32,
        /// How long each run is measured.
        #[arg(long, default_value_t = 40)]
        seconds: u32,
        /// So many native viewers take part, too, with uplinks of twice the stream's rate.
        #[arg(long, default_value_t = 0)]
        native: u32,
        /// Also the best open rival, p2p-media-loader, in the same browsers on the same stream.
        #[arg(long)]
        rival: bool,
        /// The picture's size.
        #[arg(long, default_value = "640x360")]
        size: String,
        /// The picture's bit rate.
        #[arg(long, default_value = "1200k")]
        bitrate: String,
        /// Its frames per second: what browsers without a graphics card spend most on.
        #[arg(long, default_value_t = 25)]
        fps: u32,
    },
    /// What publishers cost the server, and by how much it delays their frames.
    Ingest {
        /// How many publishers: one run for each number.
        #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 32])]
        publishers: Vec<u32>,
        /// How long each run is measured.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(5..=45))]
        seconds: u64,
        /// Measure this `shoal` instead of one built for it.
        #[arg(long)]
        program: Option<PathBuf>,
    },
    /// The origin: throughput beside nginx, thousands of clients that wait for the next part, latency, CDNs in front.
    Origin {
        /// How many clients wait.
        #[arg(long, default_value_t = 10_000)]
        clients: u32,
        /// Only these: `latency`, `throughput`, `blocked`, `cdn`.
        #[arg(long, value_delimiter = ',')]
        only: Vec<String>,
    },
    /// Memory, file descriptors and tasks of a server over time, under viewers and publishers that come and go.
    Soak {
        /// How long.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(2..))]
        minutes: u32,
    },
    /// The tracker: memory of each viewer, joins, introductions, a restart under viewers, and `aquatic_ws` beside it.
    Tracker {
        /// How many viewers.
        #[arg(long, default_value_t = 10_000)]
        viewers: u32,
        /// How many of them come each second.
        #[arg(long, default_value_t = 2_200)]
        rate: u32,
        /// How many viewers the tracker is killed under; 0 leaves this part out.
        #[arg(long, default_value_t = 2_000)]
        restart_viewers: u32,
        /// Leave out the comparison with `aquatic_ws`, which takes some minutes to install the first time.
        #[arg(long)]
        no_aquatic: bool,
    },
    /// Which kinds of NAT let two viewers connect, native ones and Chromium, by our relay and by coturn, in network
    /// namespaces: needs root, `ip` and `nft`.
    Nat {
        /// Only rows that contain this: of a pair, of `native` or `Chromium` viewers, with `ours` or `coturn`.
        #[arg(long, default_value = "")]
        only: String,
    },
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    match &options.bench {
        Bench::Nat { only } => run_nat(workspace, only),
        Bench::Viewers { viewers, seconds, native, rival, size, bitrate, fps } => {
            let numbers =
                [("--viewers", *viewers), ("--seconds", *seconds), ("--native", *native), ("--fps", *fps)];
            let mut flags: Vec<String> = numbers.map(|(flag, number)| format!("{flag}={number}")).into();
            flags.extend([format!("--size={size}"), format!("--bitrate={bitrate}")]);
            flags.extend(rival.then(|| "--rival".to_owned()));
            run_viewers(workspace, &flags)
        }
        Bench::Ingest { publishers, seconds, program } => {
            bench_ingest::run(workspace, publishers, *seconds, program.as_deref())
        }
        Bench::Origin { clients, only } => bench_origin::run(workspace, *clients, only),
        Bench::Soak { minutes } => bench_origin::soak(workspace, *minutes),
        Bench::Tracker { viewers, rate, restart_viewers, no_aquatic } => {
            let numbers =
                [("--viewers", *viewers), ("--rate", *rate), ("--restart-viewers", *restart_viewers)];
            run_tracker(workspace, numbers, !no_aquatic)
        }
    }
}

fn run_viewers(workspace: &Workspace, flags: &[String]) -> Result<()> {
    setup::everything(workspace, Purpose::Test)?;
    node::build_pages(workspace)?;
    let mut cargo = workspace.cargo();
    process::run("build shoal", cargo.args(["build", "--locked", "--release", "--package", "shoal"]))?;
    let node = Node::find(workspace)?;
    let mut arguments = vec!["run", "--silent", "bench:viewers", "--"];
    arguments.extend(flags.iter().map(String::as_str));
    let mut npm = node.npm(workspace, END_TO_END, &arguments);
    let status = test::environment(workspace, &mut npm, "release")
        .stdin(Stdio::null())
        .status()
        .context("start the bench")?;
    if !status.success() {
        bail!("the bench failed ({status})");
    }
    Ok(())
}

fn run_tracker(workspace: &Workspace, numbers: [(&str, u32); 3], with_aquatic: bool) -> Result<()> {
    let mut build = workspace.cargo();
    let build =
        build.args(["build", "--locked", "--release", "--package", "shoal-tracker", "--example", "crowd"]);
    process::run("build the crowd", build)?;
    let mut crowd = Command::new(workspace.target("release/examples/crowd"));
    for (name, number) in numbers {
        crowd.arg(name).arg(number.to_string());
    }
    if with_aquatic {
        crowd.arg("--aquatic").arg(install_aquatic(workspace)?);
    }
    process::run("bench tracker", &mut crowd)
}

fn run_nat(workspace: &Workspace, only: &str) -> Result<()> {
    setup::everything(workspace, Purpose::Test)?;
    // For this bench alone: no test needs it.
    if process::find_program("turnserver").is_none() && setup::has_apt() {
        setup::apt_install(workspace, &["coturn"])?;
    }
    let mut build = workspace.cargo();
    let build =
        build.args(["build", "--locked", "--release", "--package", "shoal-tracker", "--example", "nat"]);
    process::run("build the NAT matrix", build)?;
    let mut matrix = Command::new(workspace.target("release/examples/nat"));
    matrix.args(["--only", only]);
    let [(_, chromium), _] = setup::browsers();
    let coturn = process::find_program("turnserver").map(|program| program.to_string_lossy().into_owned());
    for (option, program) in [("--chromium", chromium), ("--coturn", coturn)] {
        match program {
            Some(program) => drop(matrix.args([option, &program])),
            None => process::say(&format!("the rows that want {option} are left out: it is not installed")),
        }
    }
    process::run("bench nat", &mut matrix)
}

/// Installs another WebTorrent tracker and its load generator beside the build's output; returns their folder.
fn install_aquatic(workspace: &Workspace) -> Result<PathBuf> {
    let root = workspace.target("tools");
    // Without its metrics exporter: a version of that dependency does not build with newer compilers.
    let programs: [(&str, &[&str]); 2] =
        [("aquatic_ws", &["--no-default-features", "--features", "mimalloc"]), ("aquatic_ws_load_test", &[])];
    for (name, features) in programs {
        if root.join("bin").join(name).is_file() {
            continue;
        }
        let mut cargo = workspace.cargo();
        cargo.args(["install", "--locked", "--version", "0.9.0", "--root"]).arg(&root);
        cargo.arg("--target-dir").arg(root.join("build")).args(features).arg(name);
        process::run_quietly(workspace, &format!("install {name}"), &mut cargo)?;
    }
    Ok(root.join("bin"))
}
