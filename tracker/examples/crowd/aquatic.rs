//! Beside `aquatic_ws`, under its own load generator, both with TLS, one after the other on the same machine.

use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::process::Server;
use crate::table;

/// Threads of the load generator. Each of its connections asks again as soon as it is answered, so that one thread is busy
/// with the first hundred and opens no more.
const WORKERS: u32 = 10;
/// Connections of each.
const CONNECTIONS: u32 = 50;
/// The generator looks every 5 s; so many of its figures are averaged, from when all connections are open.
const FIGURES: usize = 4;
/// What is open after this many of its figures is all that it opens.
const OPENING_FIGURES_MAX: usize = 8;
/// Between two figures.
const SILENCE_MAX: Duration = Duration::from_secs(20);

/// What one server did.
struct Measured {
    connections: u32,
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
        ("connections, ours and aquatic_ws", format!("{}, {}", ours.connections, theirs.connections)),
        ("memory with these, ours", format!("{:.1} MB", ours.rss_mb)),
        ("memory with these, aquatic_ws", format!("{:.1} MB", theirs.rss_mb)),
    ];
    table("WebTorrent protocol under TLS", &rows);
    json!({ "responses_ratio": responses_ratio, "our_rss_mb": ours.rss_mb, "their_rss_mb": theirs.rss_mb,
            "our_connections": ours.connections, "their_connections": theirs.connections,
            "our_responses_per_s": ours.responses_per_s, "their_responses_per_s": theirs.responses_per_s })
}

/// The load generator's process. Ends with this value: it would go on for ever.
struct Generator {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Drop for Generator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Generator {
    fn start(folder: &Path, work: &Path, server: SocketAddr) -> Self {
        let config = work.join("load.toml");
        let text = format!(
            "server_address = \"{server}\"\nnum_workers = {WORKERS}\nnum_connections_per_worker = {CONNECTIONS}\n\
             connection_creation_interval_ms = 50\n"
        );
        std::fs::write(&config, text).expect("written");
        let mut child = Command::new(folder.join("aquatic_ws_load_test"))
            .args(["-c", &config.to_string_lossy()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the load generator starts");
        let output = BufReader::new(child.stdout.take().expect("it is piped"));
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            // Ends with the generator, or when nobody listens any more.
            let _ = output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line));
        });
        Self { child, lines }
    }

    /// Responses a second and open connections, as it says them next.
    fn figure(&self) -> (f64, u32) {
        let responses = self.number_after("Responses in: ");
        (responses, self.number_after("Active connections: ") as u32)
    }

    fn number_after(&self, start: &str) -> f64 {
        let mut said = Vec::new();
        loop {
            let Ok(line) = self.lines.recv_timeout(SILENCE_MAX) else {
                panic!("the load generator did not say {start:?}, but: {}", said.join("\n"));
            };
            match line.strip_prefix(start) {
                Some(rest) => {
                    let number = rest.trim_end_matches("/second").parse();
                    return number.expect("what follows is a number");
                }
                None => said.push(line),
            }
        }
    }
}

/// Runs the load generator against a server; what it reports, and the server's memory meanwhile.
fn load(folder: &Path, work: &Path, server: &Server) -> Measured {
    let since = Instant::now();
    while TcpStream::connect(server.address).is_err() {
        assert!(since.elapsed() < Duration::from_secs(10), "the server does not answer");
        std::thread::sleep(Duration::from_millis(20));
    }
    let generator = Generator::start(folder, work, server.address);
    for _ in 0..OPENING_FIGURES_MAX {
        let (_, connections) = generator.figure();
        if connections >= WORKERS * CONNECTIONS {
            break;
        }
    }
    let mut measured = Measured { connections: u32::MAX, responses_per_s: 0.0, rss_mb: 0.0 };
    for _ in 0..FIGURES {
        let (responses_per_s, connections) = generator.figure();
        measured.connections = measured.connections.min(connections);
        measured.responses_per_s += responses_per_s / FIGURES as f64;
        // The most that it takes while all connections are open.
        measured.rss_mb = measured.rss_mb.max(server.memory() as f64 / 1e6);
    }
    measured
}

/// An address that nobody listens on now.
fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port on loopback");
    listener.local_addr().expect("it is bound")
}
