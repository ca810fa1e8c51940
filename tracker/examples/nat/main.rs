//! The NAT matrix: which kinds of networks let two viewers connect, directly or by a relay, and how fast.
//!
//! `cargo xtask bench nat` builds and runs it. Needs root, `ip` and `nft`: each site is a pair of network namespaces, a
//! host behind a router with rules of its own; a third namespace is the internet, a fourth the tracker with STUN and
//! TURN. Nothing leaves them. Viewers are native ones (`peer.rs`) and, with `--chromium PROGRAM`, browsers (`browser.rs`);
//! with `--coturn PROGRAM` some pairs meet by that relay instead of ours. Prints what was expected and what was measured,
//! then one line of JSON; where namespaces can't be made it says so and ends well.

mod browser;
mod cases;
mod coturn;
mod network;
mod peer;
mod serve;

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use cases::{Case, Path, Relay, Viewers, cases};
use coturn::Coturn;
use network::Network;
use serde_json::{Value, json};

/// A pair is given up after this time; viewers give up after 10 s.
const PATIENCE: Duration = Duration::from_secs(20);
/// Pairs of native viewers at a time: most of the time of a pair is waiting.
const PARALLEL: usize = 6;
/// Pairs of browsers at a time.
const PARALLEL_BROWSERS: usize = 2;

/// What there is to measure with.
#[derive(Default)]
struct Options {
    chromium: Option<String>,
    coturn: Option<String>,
    /// Only rows that contain this: of a pair, of `native` or `Chromium` viewers, with `ours` or `coturn`.
    only: String,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let optional = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name);
        at.and_then(|at| arguments.get(at + 1)).cloned()
    };
    let value = |name: &str| optional(name).unwrap_or_else(|| panic!("{name} is missing"));
    let block_on = |future: std::pin::Pin<Box<dyn Future<Output = ()>>>| {
        tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime").block_on(future);
    };
    match arguments.first().map(String::as_str) {
        Some("serve") => {
            let count = value("--streams").parse().expect("a number");
            block_on(Box::pin(serve::run(value("--address"), count)));
        }
        Some("peer") => {
            block_on(Box::pin(peer::run(value("--tracker"), value("--stream"), PATIENCE)));
        }
        Some("browser") => browser::run(&value("--program"), &value("--page"), PATIENCE),
        _ => matrix(&Options {
            chromium: optional("--chromium"),
            coturn: optional("--coturn"),
            only: optional("--only").unwrap_or_default(),
        }),
    }
}

fn matrix(options: &Options) {
    let network = match Network::build() {
        Ok(network) => network,
        Err(why) => {
            println!("NAT matrix skipped: network namespaces can't be made here ({why})");
            println!("{}", json!({ "skipped": why }));
            return;
        }
    };
    let can_be_measured = |case: &Case| {
        (case.viewers == Viewers::Native || options.chromium.is_some())
            && (case.relay == Relay::Ours || options.coturn.is_some())
            && format!("{} {} {}", case.name(), case.viewers.name(), case.relay.name())
                .contains(&options.only)
    };
    let cases: Vec<Case> = cases().into_iter().filter(can_be_measured).collect();
    let bench = Bench { network: &network, program: this_program(), chromium: options.chromium.clone() };
    let mut server = bench.server(cases.len());
    let coturn = options.coturn.as_ref().map(|program| Coturn::start(&network, program));

    let heads = ["pair", "viewers", "TURN", "expected", "measured", "in"];
    println!("{}", row(&heads.map(str::to_owned)));
    let mut rows = Vec::new();
    let mut number = 0;
    for group in cases.chunk_by(|one, other| one.viewers == other.viewers) {
        let parallel = if group[0].viewers == Viewers::Native { PARALLEL } else { PARALLEL_BROWSERS };
        for chunk in group.chunks(parallel) {
            for (case, found) in chunk.iter().zip(bench.measure_all(chunk, number)) {
                rows.push(found.tell(case));
            }
            number += chunk.len();
        }
    }
    drop(coturn);
    drop(server.stdin.take());
    let _ = server.kill();
    let _ = server.wait();
    let as_expected = rows.iter().filter(|row| row["expected"] == row["measured"]).count();
    println!("{}", json!({ "pairs": rows.len(), "as_expected": as_expected, "matrix": rows }));
}

fn this_program() -> String {
    let this = std::env::current_exe().expect("this program has a path");
    this.to_str().expect("its path is text").to_owned()
}

/// One line of the table.
fn row(cells: &[String; 6]) -> String {
    let [pair, viewers, turn, expected, measured, took] = cells;
    format!("{pair:<40} {viewers:<9} {turn:<7} {expected:<9} {measured:<9} {took:>8}")
}

struct Bench<'a> {
    network: &'a Network,
    program: String,
    chromium: Option<String>,
}

/// What came of a pair.
struct Found {
    path: Path,
    ms: Option<u64>,
    /// What the two said, for the one that differs from what was expected.
    reports: [Value; 2],
}

impl Bench<'_> {
    /// Starts the trackers and waits until they answer.
    fn server(&self, streams: usize) -> Child {
        let mut server = self
            .network
            .command("server", &self.program)
            .args(["serve", "--address", network::SERVER, "--streams", &streams.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the tracker starts");
        let mut line = String::new();
        let output = server.stdout.take().expect("it is piped");
        std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line)
            .expect("it says that it is ready");
        server
    }

    fn measure_all(&self, cases: &[Case], first: usize) -> Vec<Found> {
        std::thread::scope(|scope| {
            let running: Vec<_> = cases
                .iter()
                .enumerate()
                .map(|(at, case)| scope.spawn(move || self.measure(case, first + at)))
                .collect();
            running.into_iter().map(|running| running.join().expect("measuring does not fail")).collect()
        })
    }

    /// Lets the two of a case meet.
    fn measure(&self, case: &Case, number: usize) -> Found {
        let port = if case.relay == Relay::Ours { serve::PORT } else { serve::PORT_COTURN };
        let tracker = format!("{}:{port}", network::SERVER);
        let viewers = case.hosts().map(|host| self.viewer(&host, case.viewers, &tracker, number));
        let reports = viewers.map(|viewer| {
            let output = viewer.wait_with_output().expect("it ends by itself");
            let last = output.stdout.trim_ascii().rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
            serde_json::from_slice::<Value>(last).unwrap_or(Value::Null)
        });
        let path = match reports.each_ref().map(|report| report["path"].as_str().unwrap_or("none")) {
            ["direct", "direct"] => Path::Direct,
            // One side may see the other's relayed address as its peer's.
            [one, two] if [one, two].contains(&"relay") && ![one, two].contains(&"none") => Path::Relay,
            _ => Path::Neither,
        };
        let ms = reports.iter().filter_map(|report| report["ms"].as_u64()).max();
        Found { path, ms: ms.filter(|_| path != Path::Neither), reports }
    }

    fn viewer(&self, host: &str, kind: Viewers, tracker: &str, number: usize) -> Child {
        let mut command: Command = self.network.command(host, &self.program);
        let stream = format!("case{number}");
        match (kind, &self.chromium) {
            (Viewers::Browser, Some(chromium)) => {
                let page = format!("http://{tracker}/viewer?stream={stream}");
                command.args(["browser", "--program", chromium, "--page", &page]);
            }
            _ => {
                let tracker = format!("ws://{tracker}/tracker");
                command.args(["peer", "--tracker", &tracker, "--stream", &stream]);
            }
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("a viewer starts")
    }
}

impl Found {
    /// Prints a line of the table and gives it as JSON.
    fn tell(&self, case: &Case) -> Value {
        let (viewers, turn) = (case.viewers.name(), case.relay.name());
        let (expected, measured) = (case.expected.name(), self.path.name());
        let took = self.ms.map_or("-".to_owned(), |ms| format!("{ms} ms"));
        let cells =
            [&case.name(), viewers, turn, expected, measured, &took].map(|cell: &str| cell.to_owned());
        if measured == expected {
            println!("{}", row(&cells));
        } else {
            let [one, two] = &self.reports;
            println!("{}  <- differs: {one} {two}", row(&cells));
        }
        json!({ "pair": cells[0], "viewers": viewers, "turn": turn, "expected": expected, "measured": measured,
                "ms": self.ms })
    }
}
