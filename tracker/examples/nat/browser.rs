//! A viewer in Chromium: the page `viewer.html`, whose report is read from the browser's console.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// So that it runs as root, without a screen, and names its own addresses, which these networks' hosts can't look up.
const FLAGS: [&str; 9] = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-features=WebRtcHideLocalIpsWithMdns",
    "--enable-logging=stderr",
];
/// What the page's report begins with.
const MARK: &str = "REPORT ";

/// Ends with all its processes, which are a group.
struct Browser(Child);

impl Drop for Browser {
    fn drop(&mut self) {
        let group = format!("-{}", self.0.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
        let _ = self.0.wait();
    }
}

/// Opens the page and prints what it reports, as `peer.rs` does.
pub(crate) fn run(program: &str, url: &str, patience: Duration) {
    let profile = tempfile::tempdir().expect("a temporary folder");
    let child = Command::new(program)
        .args(FLAGS)
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(url)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .expect("Chromium starts");
    let mut browser = Browser(child);
    let console = BufReader::new(browser.0.stderr.take().expect("it is piped"));
    let (sender, reports) = mpsc::channel();
    std::thread::spawn(move || {
        for line in console.split(b'\n').map_while(Result::ok) {
            // Like `[1:1:1121/120000.0:INFO:CONSOLE(5)] "REPORT {...}", source: http://... (5)`.
            let line = String::from_utf8_lossy(&line);
            let report = line.split_once(MARK).and_then(|(_, rest)| rest.rsplit_once("\", source:"));
            if let Some((report, _)) = report {
                let _ = sender.send(report.to_owned());
            }
        }
    });
    let nothing = || serde_json::json!({ "path": "none", "why": "nothing connected in time" }).to_string();
    println!("{}", reports.recv_timeout(patience).unwrap_or_else(|_| nothing()));
    // The other one still has to hear that its channel is open.
    std::thread::sleep(Duration::from_secs(1));
    drop(browser);
}
