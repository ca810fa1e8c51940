//! The NAT matrix: which kinds of networks let two native viewers connect, directly or by our relay, and how fast.
//!
//! `cargo xtask bench nat` builds and runs it. Needs root, `ip` and `nft`: each site is a pair of network namespaces, a
//! host behind a router with rules of its own; a third namespace is the internet, a fourth the tracker with STUN and
//! TURN. Nothing leaves them. Prints what was expected and what was measured, then one line of JSON; where
//! namespaces can't be made it says so and ends well.

mod network;
mod peer;
mod serve;

use std::process::{Command, Stdio};
use std::time::Duration;

use network::{Kind, Network};
use serde_json::{Value, json};

/// A pair is given up after this time; viewers give up after 10 s.
const TIMEOUT_S: u64 = 20;
/// Pairs at a time.
const PARALLEL: usize = 4;

/// What becomes of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Path {
    Direct,
    Relay,
    /// The origin serves both.
    Neither,
}

/// Two sites, and two hosts of one site where the second is none.
struct Case {
    one: (Kind, usize),
    two: Option<(Kind, usize)>,
    expected: Path,
}

fn cases() -> Vec<Case> {
    use Kind::{Blocked, Open, PortRestricted, Symmetric};
    use Path::{Direct, Neither, Relay};
    let pair = |one, two, expected| Case { one: (one, 0), two: Some((two, 1)), expected };
    vec![
        pair(Open, Open, Direct),
        pair(Open, PortRestricted, Direct),
        pair(Open, Symmetric, Direct),
        pair(PortRestricted, PortRestricted, Direct),
        // The symmetric side sends from a port that the other side's router has not heard of.
        pair(PortRestricted, Symmetric, Relay),
        pair(Symmetric, Symmetric, Relay),
        // Our native stack has no TURN over TCP; browsers have, and get through.
        pair(Blocked, Open, Neither),
        pair(Blocked, PortRestricted, Neither),
        pair(Blocked, Symmetric, Neither),
        pair(Blocked, Blocked, Neither),
        Case { one: (PortRestricted, 0), two: None, expected: Direct },
        Case { one: (Symmetric, 0), two: None, expected: Direct },
    ]
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name);
        at.and_then(|at| arguments.get(at + 1)).unwrap_or_else(|| panic!("{name} is missing")).clone()
    };
    let block_on = |future: std::pin::Pin<Box<dyn Future<Output = ()>>>| {
        tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime").block_on(future);
    };
    match arguments.first().map(String::as_str) {
        Some("serve") => {
            let count = value("--streams").parse().expect("a number");
            block_on(Box::pin(serve::run(value("--address"), count)));
        }
        Some("peer") => block_on(Box::pin(peer::run(value("--tracker"), value("--stream"), TIMEOUT_S))),
        _ => matrix(),
    }
}

fn matrix() {
    let network = match Network::build() {
        Ok(network) => network,
        Err(why) => {
            println!("NAT matrix skipped: network namespaces can't be made here ({why})");
            println!("{}", json!({ "skipped": why }));
            return;
        }
    };
    let cases = cases();
    let this = std::env::current_exe().expect("this program has a path");
    let this = this.to_str().expect("its path is text");
    let mut server = network.command("server", this);
    let streams = cases.len().to_string();
    let mut server = server
        .args(["serve", "--address", network::SERVER, "--streams", &streams])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the tracker starts");
    let mut line = String::new();
    let output = server.stdout.take().expect("it is piped");
    std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line)
        .expect("it says that it is ready");

    println!("{:<34} {:<9} {:<9} {:>9}", "pair", "expected", "measured", "in");
    let mut rows = Vec::new();
    // Some at a time: most of the time of a pair is waiting.
    for (chunk_at, chunk) in cases.chunks(PARALLEL).enumerate() {
        let measured: Vec<(Path, Option<u64>)> = std::thread::scope(|scope| {
            let running: Vec<_> = chunk
                .iter()
                .enumerate()
                .map(|(at, case)| {
                    let (network, number) = (&network, PARALLEL * chunk_at + at);
                    scope.spawn(move || measure(network, this, case, number))
                })
                .collect();
            running.into_iter().map(|running| running.join().expect("measuring does not fail")).collect()
        });
        for (case, (measured, ms)) in chunk.iter().zip(measured) {
            let name = case.name();
            let took = ms.map_or("-".to_owned(), |ms| format!("{ms} ms"));
            let verdict = if measured == case.expected { "" } else { "  <- differs" };
            let expected = case.expected.name();
            println!("{name:<34} {expected:<9} {:<9} {took:>9}{verdict}", measured.name());
            rows.push(json!({ "pair": name, "expected": expected, "measured": measured.name(), "ms": ms }));
        }
    }
    drop(server.stdin.take());
    let _ = server.kill();
    let _ = server.wait();
    let as_expected = rows.iter().filter(|row| row["expected"] == row["measured"]).count();
    println!("{}", json!({ "pairs": rows.len(), "as_expected": as_expected, "matrix": rows }));
}

/// Lets the two of a case meet; by which path they do, and in how many milliseconds.
fn measure(network: &Network, program: &str, case: &Case, number: usize) -> (Path, Option<u64>) {
    let (one, two) = match case.two {
        Some(two) => (network::host(case.one, 0), network::host(two, 0)),
        None => (network::host(case.one, 0), network::host(case.one, 1)),
    };
    let tracker = format!("ws://{}:{}/tracker", network::SERVER, serve::PORT);
    let stream = format!("case{number}");
    let start = |host: &str| -> std::process::Child {
        let mut command: Command = network.command(host, program);
        command.args(["peer", "--tracker", &tracker, "--stream", &stream]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("a viewer starts")
    };
    let reports = [start(&one), start(&two)].map(|viewer| {
        let output = viewer.wait_with_output().expect("it ends by itself");
        serde_json::from_slice::<Value>(&output.stdout).unwrap_or(Value::Null)
    });
    let measured = match reports.each_ref().map(|report| report["path"].as_str().unwrap_or("none")) {
        ["direct", "direct"] => Path::Direct,
        // One side may see the other's relayed address as its peer's.
        [one, two] if [one, two].contains(&"relay") && ![one, two].contains(&"none") => Path::Relay,
        _ => Path::Neither,
    };
    let ms = reports.iter().filter_map(|report| report["ms"].as_u64()).max();
    (measured, ms.filter(|_| measured != Path::Neither))
}

impl Case {
    fn name(&self) -> String {
        match self.two {
            Some(two) => format!("{} - {}", self.one.0.name(), two.0.name()),
            None => format!("both behind one {} NAT", self.one.0.name()),
        }
    }
}

impl Path {
    fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Relay => "relay",
            Self::Neither => "none",
        }
    }
}

/// How long a viewer waits at most, for [`peer`].
fn patience(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
