//! The program as an operator meets it: exit codes, messages, signals.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn shoal() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shoal"));
    command.env("SHOAL_HTTP_LISTEN", "127.0.0.1:0").env("SHOAL_INGEST_MEDIA_ADDRESS", "127.0.0.1:0");
    command
}

fn stderr_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}

/// A running `shoal serve`; killed when dropped.
struct Serving {
    child: Child,
    port: u16,
}

impl Serving {
    fn start(command: &mut Command) -> Self {
        Self::start_with(command, &[])
    }

    fn start_with(command: &mut Command, flags: &[&str]) -> Self {
        let mut child = command
            .arg("serve")
            .args(flags)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("shoal starts");
        let stdout = child.stdout.take().expect("piped");
        let port = BufReader::new(stdout)
            .lines()
            .map_while(Result::ok)
            .find_map(|line| {
                line.trim().strip_prefix("publish")?.split(':').nth(2)?.split('/').next()?.parse().ok()
            })
            .expect("it says where it is");
        Self { child, port }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout can be set");
        stream
    }

    fn get(&self, path: &str) -> String {
        let mut stream = self.connect();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers in text");
        answer
    }

    #[cfg(unix)]
    fn end_with(mut self, signal: &str) -> (Option<i32>, Duration) {
        let begin = Instant::now();
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().expect("kill is there").success());
        let status = self.child.wait().expect("it can be waited for");
        (status.code(), begin.elapsed())
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn taken_port_is_one_line_that_names_its_setting_and_exit_code_1() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (variable, port, setting) in [
        ("SHOAL_HTTP_LISTEN", "HTTP port", "http.listen or --listen"),
        ("SHOAL_HTTP_TLS_LISTEN", "TLS port", "http.tls_listen"),
        ("SHOAL_INGEST_MEDIA_ADDRESS", "media port", "ingest.media_address"),
        ("SHOAL_TRACKER_STUN_LISTEN", "STUN port", "tracker.stun_listen"),
    ] {
        let mut command = shoal();
        let anywhere = "127.0.0.1:0";
        command.env("SHOAL_HTTP_LISTEN", anywhere).env("SHOAL_INGEST_MEDIA_ADDRESS", anywhere);
        command.env("SHOAL_HTTP_TLS_SELF_SIGNED", "true").env("SHOAL_TRACKER_STUN_LISTEN", anywhere);
        // So that the STUN port is one of TCP too, like the one that is taken.
        command.env("SHOAL_TRACKER_TURN", "true");
        let output = command.env(variable, &address).arg("serve").output().unwrap();
        let message = stderr_of(&output);
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
        assert!([port, &address, setting].iter().all(|words| message.contains(words)), "{message}");
    }
}

#[test]
fn misspelt_key_is_one_line_and_exit_code_1() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "[http]\nlitsen = \"127.0.0.1:0\"").unwrap();
    let output = shoal().arg("serve").arg("--config").arg(file.path()).output().unwrap();
    let message = stderr_of(&output);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    assert!(message.contains(":2: unknown field `litsen`"), "{message}");
}

#[test]
fn missing_file_and_impossible_value_are_told_apart() {
    let output = shoal().args(["serve", "--config", "/does/not/exist.toml"]).output().unwrap();
    assert!(stderr_of(&output).contains("/does/not/exist.toml"));
    let output = shoal().arg("serve").env("SHOAL_SEGMENTER_PART_MS", "1").output().unwrap();
    assert!(stderr_of(&output).contains("segmenter.part_ms = 1"), "{}", stderr_of(&output));
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn printed_configuration_is_accepted_as_it_is() {
    let printed = shoal().args(["serve", "--print-config"]).output().unwrap();
    assert!(printed.status.success());
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&printed.stdout).unwrap();
    let serving = Serving::start_with(&mut shoal(), &["--config", &file.path().to_string_lossy()]);
    assert!(serving.get("/healthz").starts_with("HTTP/1.1 200"));
}

/// What `--print-config` prints with these flags.
fn print_config(command: &mut Command, flags: &[&str]) -> String {
    let output = command.args(["serve", "--print-config"]).args(flags).output().expect("shoal starts");
    assert!(output.status.success(), "{}", stderr_of(&output));
    String::from_utf8(output.stdout).expect("it prints text")
}

#[test]
fn configuration_is_printed_as_file_environment_and_flags_make_it_and_else_as_the_default_file() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    write!(
        file,
        "[segmenter]\npart_ms = 400\n[http]\nconnections_max = 77\n[ingest]\njwt_hs256_secret = \"hidden in a file, as long as it has to be\"\n"
    )
    .unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_shoal"));
    command.env("SHOAL_SEGMENTER_PART_MS", "200").env("SHOAL_HTTP_LISTEN", "127.0.0.1:1");
    command.env("SHOAL_TRACKER_ADMIN_TOKEN", "hidden-in-the-environment");
    let path = file.path().to_string_lossy();
    let flags = ["--config", &path, "--listen", "127.0.0.1:2", "--pull", "news=http://a.example/x?hidden"];
    let printed = print_config(&mut command, &flags);
    for line in
        ["connections_max = 77", "part_ms = 200", "listen = \"127.0.0.1:2\"", "admin_token = \"(not shown)\""]
    {
        assert!(printed.lines().any(|printed| printed == line), "{line} is not in\n{printed}");
    }
    assert!(printed.contains("http://a.example/x?(not shown)") && !printed.contains("hidden"), "{printed}");

    let default = include_str!("../deploy/shoal.toml");
    assert_eq!(print_config(&mut Command::new(env!("CARGO_BIN_EXE_shoal")), &[]), default);
    // What the program would refuse to run with is not printed as if it would.
    let output = shoal().args(["serve", "--print-config", "--listen", "nowhere"]).output().unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    assert!(stderr_of(&output).contains("http.listen"), "{}", stderr_of(&output));
}

#[test]
#[cfg(unix)]
fn both_signals_end_it_with_code_0() {
    for signal in ["-TERM", "-INT"] {
        let serving = Serving::start(&mut shoal());
        assert!(serving.get("/healthz").starts_with("HTTP/1.1 200"));
        let (code, _) = serving.end_with(signal);
        assert_eq!(code, Some(0), "{signal}");
    }
}

#[test]
#[cfg(unix)]
fn request_that_never_ends_delays_the_end_by_the_grace_time_only() {
    let mut command = shoal();
    command.env("SHOAL_HTTP_SHUTDOWN_GRACE_MS", "300");
    let serving = Serving::start(&mut command);
    let mut stalled = serving.connect();
    write!(stalled, "POST /whip/x HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n").unwrap();
    let (code, took) = serving.end_with("-TERM");
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn metrics_and_pages_are_served_with_their_types() {
    let serving = Serving::start(&mut shoal());
    let metrics = serving.get("/metrics");
    assert!(metrics.contains("content-type: text/plain; version=0.0.4"), "{metrics}");
    assert!(metrics.contains("\nhttp_connections_total 1\n"), "{metrics}");
    let page = serving.get("/");
    for header in ["content-security-policy: default-src 'none'", "x-content-type-options: nosniff"] {
        assert!(page.contains(header), "{page}");
    }
    assert!(serving.get("/no/such/thing").starts_with("HTTP/1.1 404"));
}

#[test]
fn header_that_does_not_end_is_cut_off() {
    let mut command = shoal();
    command.env("SHOAL_HTTP_HEADER_TIMEOUT_MS", "200");
    let serving = Serving::start(&mut command);
    let mut slow = serving.connect();
    write!(slow, "GET / HTTP/1.1\r\nhost: x\r\n").unwrap();
    let mut rest = Vec::new();
    // Ends because the server closes; the read timeout would be an error.
    slow.read_to_end(&mut rest).unwrap();
}

#[test]
fn header_that_is_too_large_is_refused() {
    let serving = Serving::start(&mut shoal());
    let mut stream = serving.connect();
    let filler = "a".repeat(100_000);
    // The server may close while we still write.
    let _ = write!(stream, "GET / HTTP/1.1\r\nhost: x\r\nx: {filler}\r\n\r\n");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.starts_with(b"HTTP/1.1 431"), "{:?}", String::from_utf8_lossy(&answer));
}

#[test]
fn connections_over_the_limit_are_refused_and_counted_and_room_comes_back() {
    let mut command = shoal();
    command.env("SHOAL_HTTP_CONNECTIONS_MAX", "10");
    let serving = Serving::start(&mut command);
    let mut held: Vec<TcpStream> = (0..10).map(|_| serving.connect()).collect();
    for stream in &mut held {
        // An answered request proves that the connection was taken in.
        write!(stream, "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
    }
    let mut refused = serving.connect();
    let mut nothing = Vec::new();
    // A reset counts as refused as well as an orderly end.
    let _ = refused.read_to_end(&mut nothing);
    assert!(nothing.is_empty());
    drop(held);
    let deadline = Instant::now() + Duration::from_secs(10);
    let metrics = loop {
        let mut stream = serving.connect();
        let _ = write!(stream, "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        if !answer.is_empty() {
            break answer;
        }
        assert!(Instant::now() < deadline, "no room came back");
    };
    let refused = metrics.lines().find_map(|line| line.strip_prefix("http_connections_refused_total "));
    assert!(refused.is_some_and(|count| count != "0"), "{metrics}");
}
