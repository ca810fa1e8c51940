//! Measures the tracker: how many viewers it holds and what each takes, how fast they can join and how soon they meet,
//! how they come back after it was killed, and how it compares with `aquatic_ws` as a WebTorrent tracker.
//!
//! `cargo xtask bench tracker` builds and runs it. Servers are this program once more in processes of their own, so that
//! their memory is not mixed with the crowd's. Prints tables, then one line of JSON. Viewers are real WebSocket clients
//! on loopback that answer `introduce` as connected viewers do; they exchange no media. Ends by itself.

mod aquatic;
mod crowd;
mod process;
mod restart;
mod serve;
mod viewer;

use std::path::PathBuf;

use serde_json::{Map, Value};

/// What is to be done; see [`main`].
#[derive(Debug)]
struct Options {
    viewers: u64,
    rate: u64,
    restart_viewers: u64,
    aquatic: Option<PathBuf>,
}

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut options = Options { viewers: 10_000, rate: 2_200, restart_viewers: 2_000, aquatic: None };
    while let Some(name) = arguments.next() {
        match name.as_str() {
            "serve" => return serve::tracker(&arguments.collect::<Vec<_>>()).await,
            "announce" => return serve::announce(&arguments.collect::<Vec<_>>()).await,
            _ => {}
        }
        let value = arguments.next().unwrap_or_else(|| panic!("{name} wants a value"));
        let number = || value.parse().unwrap_or_else(|_| panic!("{name} wants a number, not {value}"));
        match name.as_str() {
            "--viewers" => options.viewers = number(),
            "--rate" => options.rate = number(),
            "--restart-viewers" => options.restart_viewers = number(),
            "--aquatic" => options.aquatic = Some(value.into()),
            _ => panic!("unknown option {name}"),
        }
    }
    let mut report = Map::new();
    if options.viewers > 0 {
        report.extend(crowd::run(options.viewers, options.rate).await);
    }
    if options.restart_viewers > 0 {
        let restart = restart::run(options.restart_viewers).await;
        report.insert("restart".into(), restart);
    }
    if let Some(folder) = &options.aquatic {
        report.insert("aquatic".into(), aquatic::run(folder));
    }
    println!("{}", Value::Object(report));
}

/// Prints a table with names of 34 letters.
fn table(title: &str, rows: &[(&str, String)]) {
    println!("{title}");
    for (name, value) in rows {
        println!("  {name:<34} {value}");
    }
}
