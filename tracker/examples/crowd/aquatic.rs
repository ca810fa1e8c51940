//! Beside `aquatic_ws`, under its own load generator, both with TLS, one after the other on the same machine.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::process::Server;
use crate::table;

/// Connections of the load generator.
const CONNECTIONS: u32 = 500;
/// How long responses are counted, in seconds; the generator looks every 5 s.
const MEASURED_S: u32 = 20;

/// What one server did.
struct Measured {
    responses_per_s: f64,
    rss_mb: f64,
}

pub(crate) fn run(folder: &Path) -> Value {
    let work = tempfile::tempdir().expect("a temporary folder");
    let (certificate, key) = (work.path().join("certificate.der"), work.path().join("key.der"));
    let made = rcgen::generate_simple_self_signed(["example.com".to_owned()]).expect("a certificate");
    std::fs::write(&certificate, made.cert.der()).expect("written");
    std::fs::write(&key, made.signing_key.serialize_der()).expect("written");
    let pem = (work.path().join("certificate.pem"), work.path().join("key.pem"));
    std::fs::write(&pem.0, made.cert.pem()).expect("written");
    std::fs::write(&pem.1, made.signing_key.serialize_pem()).expect("written");

    let theirs = {
        let address = free_address();
        let config = work.path().join("aquatic.toml");
        let text = format!(
            "socket_workers = 2\nswarm_workers = 1\n[network]\naddress = \"{address}\"\nenable_tls = true\n\
             tls_certificate_path = {:?}\ntls_private_key_path = {:?}\n",
            pem.0, pem.1
        );
        std::fs::write(&config, text).expect("written");
        let program = folder.join("aquatic_ws");
        let server = Server::foreign(&program, &["-c", &config.to_string_lossy()], address);
        load(folder, work.path(), &server)
    };
    let ours = {
        let (certificate, key) = (certificate.to_string_lossy(), key.to_string_lossy());
        let server = Server::start(&["announce", "--certificate", &certificate, "--key", &key]);
        load(folder, work.path(), &server)
    };
    let responses_ratio = ours.responses_per_s / theirs.responses_per_s.max(1.0);
    let rows = [
        ("responses a second, ours", format!("{:.0}", ours.responses_per_s)),
        ("responses a second, aquatic_ws", format!("{:.0}", theirs.responses_per_s)),
        ("ratio", format!("{responses_ratio:.2}")),
        ("memory at 500 connections, ours", format!("{:.1} MB", ours.rss_mb)),
        ("memory at 500, aquatic_ws", format!("{:.1} MB", theirs.rss_mb)),
    ];
    table("WebTorrent protocol under TLS", &rows);
    json!({ "responses_ratio": responses_ratio, "our_rss_mb": ours.rss_mb, "their_rss_mb": theirs.rss_mb,
            "our_responses_per_s": ours.responses_per_s, "their_responses_per_s": theirs.responses_per_s })
}

/// Runs the load generator against a server and reads what it reports.
fn load(folder: &Path, work: &Path, server: &Server) -> Measured {
    let since = Instant::now();
    while TcpStream::connect(server.address).is_err() {
        assert!(since.elapsed() < Duration::from_secs(10), "the server does not answer");
        std::thread::sleep(Duration::from_millis(20));
    }
    let config = work.join("load.toml");
    let text = format!(
        "server_address = \"{}\"\nnum_workers = 1\nnum_connections_per_worker = {CONNECTIONS}\n\
         connection_creation_interval_ms = 5\nduration = {MEASURED_S}\n",
        server.address
    );
    std::fs::write(&config, text).expect("written");
    let mut child = Command::new(folder.join("aquatic_ws_load_test"))
        .args(["-c", &config.to_string_lossy()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the load generator starts");
    // The most that it takes while all connections are open.
    let mut peak = 0;
    while child.try_wait().expect("it is ours").is_none() {
        peak = peak.max(server.memory());
        std::thread::sleep(Duration::from_millis(200));
    }
    let output = child.wait_with_output().expect("it has ended");
    let text = String::from_utf8_lossy(&output.stdout);
    let average = text.lines().find_map(|line| line.strip_prefix("Average responses per second: "));
    let responses_per_s = average.and_then(|number| number.trim().parse().ok()).unwrap_or_else(|| {
        panic!("the load generator reported nothing: {}", &text[text.len().saturating_sub(2_000)..])
    });
    Measured { responses_per_s, rss_mb: peak as f64 / 1e6 }
}

/// An address that nobody listens on now.
fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port on loopback");
    listener.local_addr().expect("it is bound")
}
