//! Replays a log that a browser recorded (`takeLog()`, or the watch page's overlay) and prints what came of it as JSON:
//! how many outputs there were, a hash over all of them, and the counters. `cargo run -p shoal-swarm-wasm --example
//! replay -- viewer.log`; with `--outputs` each output on a line of its own before that. A player has one core after the
//! other as sharing is switched: each has a line.
//!
//! `player/web/test/log.test.ts` compares this with what the WebAssembly module itself did.

use std::process::ExitCode;

use shoal_swarm::replay::{Malformed, replay};
use shoal_swarm_wasm::output::{Fields, stats};

/// FNV-1a, because the other side of the comparison is a dozen lines of JavaScript.
fn hash(mut state: u64, bytes: &[u8]) -> u64 {
    for byte in bytes {
        state = (state ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    }
    state
}

/// The logs in a file: all begin with the same eight bytes. That a neighbor can write them into a message makes a log that
/// can't be read, and nothing worse.
fn split(mut file: &[u8]) -> Vec<&[u8]> {
    let mut logs = Vec::new();
    while let Some((magic, rest)) = file.split_first_chunk::<8>() {
        let length = rest.windows(magic.len()).position(|bytes| bytes == magic).unwrap_or(rest.len());
        let (log, others) = file.split_at(magic.len() + length);
        logs.push(log);
        file = others;
    }
    logs
}

/// What came of a core that was told what the log says, as JSON.
fn outcome(log: &[u8], shows: bool) -> Result<String, Malformed> {
    let (mut count, mut state) = (0_u64, 0xcbf2_9ce4_8422_2325);
    let peer = replay(log, |peer, now, input| {
        peer.handle_input(now, input);
        while let Some(output) = peer.poll_output() {
            if shows {
                println!("{:.3} ms {output:?}", now.as_us() as f64 / 1000.0);
            }
            count += 1;
            let fields = Fields::from(output);
            state = hash(state, &[fields.tag]);
            for number in fields.numbers {
                state = hash(state, &number.to_le_bytes());
            }
            state = hash(state, &fields.bytes);
        }
    })?;
    let numbers: Vec<String> = stats(&peer.stats()).iter().map(|number| format!("{number}")).collect();
    Ok(format!("{{\"outputs\":{count},\"hash\":\"{state:016x}\",\"stats\":[{}]}}", numbers.join(",")))
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (Some(path), shows) = (arguments.next(), arguments.any(|argument| argument == "--outputs")) else {
        eprintln!("replay LOG [--outputs]");
        return ExitCode::FAILURE;
    };
    let file = match std::fs::read(&path) {
        Ok(file) => file,
        Err(error) => {
            eprintln!("{path}: {error}");
            return ExitCode::FAILURE;
        }
    };
    let logs = split(&file);
    if logs.is_empty() {
        eprintln!("{path}: nothing was recorded");
        return ExitCode::FAILURE;
    }
    for log in logs {
        match outcome(log, shows) {
            Ok(outcome) => println!("{outcome}"),
            Err(error) => {
                eprintln!("{path}: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
