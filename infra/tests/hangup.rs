//! SIGHUP: from a service manager it asks for files to be read again, from a terminal that closes it means the end.
#![cfg(target_os = "linux")]

mod support;

use std::fs;
use std::io::Read as _;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use support::{Running, Serving, shoal, until};

#[test]
fn server_without_a_certificate_file_goes_on_after_sighup_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    // A certificate of its own is none that could be read again.
    let mut command = shoal();
    command.env("SHOAL_HTTP_TLS_SELF_SIGNED", "true").arg("serve");
    let mut serving = Serving::start_logging(&mut command, fs::File::create(&log).unwrap().into());
    for times in 1..=2 {
        serving.process.signal("HUP");
        until("a line in the log", || {
            let text = fs::read_to_string(&log).unwrap();
            assert!(!serving.process.has_ended(), "{text}");
            (text.matches("there is no certificate file to read again").count() == times).then_some(())
        });
    }
    assert!(serving.get("/healthz").starts_with("HTTP/1.1 200"));
}

/// A server that is the job of a shell; it does not outlive its test.
struct Job {
    /// Where the shell writes the server's process id, and how it ended.
    id: PathBuf,
    code: PathBuf,
}

impl Drop for Job {
    fn drop(&mut self) {
        if !self.code.exists()
            && let Ok(id) = fs::read_to_string(&self.id)
        {
            // It may have ended by itself.
            let _ = Command::new("kill").args(["-KILL", id.trim()]).status();
        }
    }
}

#[test]
fn server_ends_in_order_when_its_terminal_is_closed() {
    let folder = tempfile::tempdir().unwrap();
    let shown = folder.path().join("shown");
    let job = Job { id: folder.path().join("id"), code: folder.path().join("code") };
    // `script` gives it a terminal. When that closes the shell hears of it and tells its job, as all shells do; this one then
    // waits, to say how the job ended.
    let line = format!(
        "{} serve & echo $! > {}; trap 'kill -HUP $!' HUP; wait $!; wait $!; echo $? > {}",
        env!("CARGO_BIN_EXE_shoal"),
        job.id.display(),
        job.code.display()
    );
    let mut command = Command::new("script");
    command.envs(shoal().get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.args(["--quiet", "--flush", "--command", &line]).arg(&shown).stdout(Stdio::null());
    let terminal = Running::start(&mut command);
    let port: u16 = until("its port", || {
        let text = fs::read_to_string(&shown).ok()?;
        text.lines().find_map(|line| {
            line.trim().strip_prefix("publish")?.split(':').nth(2)?.split('/').next()?.parse().ok()
        })
    });
    // Open while it ends, so that there is something to be told.
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    drop(terminal);
    let code = until("the end", || fs::read_to_string(&job.code).ok().filter(|text| text.ends_with('\n')));
    assert_eq!(code.trim(), "0");
    let mut rest = Vec::new();
    // Closed by the server.
    let _ = stream.read_to_end(&mut rest);
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
}
