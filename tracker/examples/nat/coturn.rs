//! Debian's coturn in place of our relay, with the secret that makes our credentials good there.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::network::{Network, SERVER};

/// The secret that the tracker shares with it.
pub(crate) const SECRET: &str = "north";
/// Its port, UDP and TCP, beside that of our own relay.
pub(crate) const PORT: u16 = 3479;
/// How long it may take to start.
const STARTING_MAX: Duration = Duration::from_secs(10);

/// Ends with this value.
pub(crate) struct Coturn {
    child: Child,
    _files: tempfile::TempDir,
}

impl Coturn {
    /// Starts it beside the tracker.
    pub(crate) fn start(network: &Network, program: &str) -> Self {
        let files = tempfile::tempdir().expect("a temporary folder");
        let at = |name: &str| files.path().join(name).to_string_lossy().into_owned();
        let mut command = network.command("server", program);
        let command = command.args([
            "-n", // no configuration file
            "--use-auth-secret",
            "--static-auth-secret",
            SECRET,
            "--realm",
            "matrix",
            "--listening-ip",
            SERVER,
            "--relay-ip",
            SERVER,
            "--listening-port",
            &PORT.to_string(),
            // Below those of our own relay.
            "--min-port",
            "40000",
            "--max-port",
            "44999",
            "--no-cli",
            "--no-tls",
            "--no-dtls",
            "--log-file",
            &at("log"),
            "--userdb",
            &at("users"),
            "--pidfile",
            &at("pid"),
        ]);
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("coturn starts");
        let since = Instant::now();
        while !listens(network) {
            assert!(since.elapsed() < STARTING_MAX, "coturn does not listen");
            std::thread::sleep(Duration::from_millis(50));
        }
        Self { child, _files: files }
    }
}

/// Whether somebody listens on its TCP port, in the namespace of the tracker.
fn listens(network: &Network) -> bool {
    let port = format!("sport = :{PORT}");
    let sockets = network.command("server", "ss").args(["-Hltn", &port]).output();
    sockets.is_ok_and(|output| !output.stdout.is_empty())
}

impl Drop for Coturn {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
