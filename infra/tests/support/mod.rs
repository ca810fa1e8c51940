//! The program, running, for tests that look at it from outside.
#![allow(dead_code, reason = "each test file uses its part")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// `shoal` with every port left to the system.
pub(crate) fn shoal() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shoal"));
    command.env("SHOAL_HTTP_LISTEN", "127.0.0.1:0").env("SHOAL_INGEST_MEDIA_ADDRESS", "127.0.0.1:0");
    command
}

/// Waits for a condition.
pub(crate) fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A child process that does not outlive its test.
pub(crate) struct Running(pub(crate) Child);

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.0.try_wait().expect("it can be waited for").is_some()
    }

    /// Sends a signal by its name, such as TERM.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.0.id().to_string();
        let status = Command::new("kill").args([&format!("-{name}"), &pid]).status().expect("kill is there");
        assert!(status.success());
    }

    /// Asks it to end, and waits.
    pub(crate) fn stop(mut self) {
        self.signal("TERM");
        self.0.wait().expect("it can be waited for");
    }

    /// Asks it to end, and gives what it has printed; its output has to be piped.
    pub(crate) fn finish(mut self) -> String {
        self.signal("TERM");
        let mut printed = String::new();
        let mut stdout = self.0.stdout.take().expect("piped");
        stdout.read_to_string(&mut printed).expect("it prints text");
        self.0.wait().expect("it can be waited for");
        printed
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A running `shoal serve`.
pub(crate) struct Serving {
    pub(crate) process: Running,
    pub(crate) port: u16,
    /// The port with TLS, where it says that there is one.
    pub(crate) tls_port: Option<u16>,
    /// Kept open, so that the server has somebody to talk to.
    _stdout: BufReader<ChildStdout>,
}

impl Serving {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self::start_with(command, &[])
    }

    pub(crate) fn start_with(command: &mut Command, flags: &[&str]) -> Self {
        Self::start_logging(command.arg("serve").args(flags), Stdio::null())
    }

    /// Starts a command that is complete, with the log wherever it is wanted.
    pub(crate) fn start_logging(command: &mut Command, log: Stdio) -> Self {
        let mut process = Running::start(command.stdout(Stdio::piped()).stderr(log));
        let mut stdout = BufReader::new(process.0.stdout.take().expect("piped"));
        let (mut port, mut tls_port) = (None, None);
        // Printed in one write; the list of streams is its last line.
        loop {
            let mut line = String::new();
            let read = stdout.read_line(&mut line).expect("it prints text");
            assert!(read > 0, "it ended before it was ready");
            let number = |line: &str| line.split(':').nth(2)?.split('/').next()?.parse().ok();
            let line = line.trim();
            if line.starts_with("publish") {
                port = number(line);
            } else if line.starts_with("TLS") {
                tls_port = number(line);
            } else if line.starts_with("watch") {
                break;
            }
        }
        Self { process, port: port.expect("it says where it is"), tls_port, _stdout: stdout }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout can be set");
        stream
    }

    /// The answer with its head.
    pub(crate) fn get(&self, path: &str) -> String {
        let mut stream = self.connect();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").expect("it reads");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("it answers");
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Publishes a small test pattern and waits until it is listed.
    pub(crate) fn publish(&self, stream: &str, flags: &[&str]) -> Running {
        let publisher = self.start_publisher(stream, flags);
        until("the stream", || self.playlist(stream).filter(|text| text.contains("#EXTINF")));
        publisher
    }

    /// The same without waiting. It ends by itself while the server believes that another one is there.
    pub(crate) fn start_publisher(&self, stream: &str, flags: &[&str]) -> Running {
        let mut command = shoal();
        command.args(["publish", "test-pattern", &self.url(&format!("/whip/{stream}"))]);
        command.args(["--size", "320x180", "--bitrate", "300k"]).args(flags).stderr(Stdio::null());
        Running::start(&mut command)
    }

    /// The first rendition's playlist, if there is one.
    pub(crate) fn playlist(&self, stream: &str) -> Option<String> {
        let multivariant = self.get(&format!("/live/{stream}/index.m3u8"));
        let uri =
            multivariant.lines().find(|line| line.ends_with("playlist.m3u8") && !line.starts_with('#'))?;
        Some(self.get(&format!("/live/{stream}/{uri}")))
    }

    /// The sum of a metric's lines that contain `label`.
    pub(crate) fn metric(&self, name: &str, label: &str) -> f64 {
        sum_of_metric(&self.get("/metrics"), name, label)
    }
}

/// Adds up a metric's lines in Prometheus text.
pub(crate) fn sum_of_metric(text: &str, name: &str, label: &str) -> f64 {
    text.lines()
        .filter(|line| line.split([' ', '{']).next() == Some(name) && line.contains(label))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}
