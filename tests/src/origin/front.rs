//! Servers of Debian beside ours: Varnish and nginx as a CDN in front of the origin, with the configurations of
//! `infra/deploy/cdn`, and nginx as a plain file server to compare with.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const VARNISH: &str = include_str!("../../../infra/deploy/cdn/shoal.vcl");
const NGINX: &str = include_str!("../../../infra/deploy/cdn/nginx.conf");
/// Varnish compiles its configuration first.
const START_MAX: Duration = Duration::from_secs(30);

/// A running server in a folder of its own; both are gone when dropped.
#[derive(Debug)]
pub struct Front {
    child: Child,
    folder: PathBuf,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Drop for Front {
    fn drop(&mut self) {
        // nginx's and Varnish's first processes take their others with them on SIGTERM, not on SIGKILL.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let deadline = Instant::now() + Duration::from_secs(5);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Where a program is; Debian's servers are not on everybody's search path.
///
/// # Errors
/// If it is not there.
pub fn find(program: &str) -> io::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from));
    let found = folders.map(|folder| folder.join(program)).find(|file| file.is_file());
    found.ok_or_else(|| io::Error::other(format!("{program} is missing: cargo xtask setup")))
}

/// Varnish in front of an origin.
///
/// # Errors
/// If it is missing or does not start.
pub fn varnish(origin: SocketAddr) -> io::Result<Front> {
    let (folder, address) = (folder("varnish")?, free_address()?);
    let port = format!(".port = \"{}\"", origin.port());
    let configuration = replaced(VARNISH, ".port = \"8080\"", &port);
    std::fs::write(folder.join("shoal.vcl"), configuration)?;
    let mut command = Command::new(find("varnishd")?);
    command.args([
        "-F",
        "-j",
        "none",
        "-s",
        "malloc,128m",
        "-p",
        "thread_pools=1",
        "-p",
        "thread_pool_min=20",
    ]);
    command.arg("-n").arg(folder.join("work")).arg("-f").arg(folder.join("shoal.vcl"));
    command.arg("-a").arg(address.to_string());
    start(command, folder, address)
}

/// nginx in front of an origin.
///
/// # Errors
/// If it is missing or does not start.
pub fn nginx(origin: SocketAddr) -> io::Result<Front> {
    let (folder, address) = (folder("nginx")?, free_address()?);
    let configuration = replaced(NGINX, "server 127.0.0.1:8080", &format!("server {origin}"));
    let configuration = replaced(&configuration, "listen 80 ", &format!("listen {address} "));
    let configuration =
        replaced(&configuration, "/var/cache/nginx/shoal", &folder.join("cache").to_string_lossy());
    start_nginx(&configuration, folder, address)
}

/// nginx that serves the files of a folder, tuned as its manual says.
///
/// # Errors
/// If it is missing or does not start.
pub fn nginx_files(root: &Path) -> io::Result<Front> {
    let (folder, address) = (folder("files")?, free_address()?);
    let configuration = format!(
        "worker_processes auto;\nevents {{ worker_connections 8192; }}\n\
        http {{\n  sendfile on;\n  tcp_nopush on;\n  access_log off;\n  keepalive_requests 100000000;\n\
        open_file_cache max=1000;\n  default_type video/mp4;\n  etag on;\n\
        server {{ listen {address} backlog=4096; root {}; }}\n}}\n",
        root.display()
    );
    start_nginx(&configuration, folder, address)
}

fn start_nginx(configuration: &str, folder: PathBuf, address: SocketAddr) -> io::Result<Front> {
    // Debian's places are root's; and workers of another user could not read a folder of ours.
    let place = |name: &str| folder.join(name).display().to_string();
    let mut head = format!("daemon off;\npid {};\nerror_log {};\n", place("pid"), place("error.log"));
    let id = Command::new("id").arg("-u").output()?;
    if id.stdout.trim_ascii() == b"0" {
        head.push_str("user root;\n");
    }
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|name| format!("  {name}_temp_path {};\n", place(name)))
        .collect();
    let configuration = replaced(configuration, "http {\n", &format!("http {{\n{temporary}"));
    std::fs::write(folder.join("nginx.conf"), head + &configuration)?;
    let mut command = Command::new(find("nginx")?);
    command.arg("-p").arg(&folder).arg("-e").arg(folder.join("error.log"));
    command.arg("-c").arg(folder.join("nginx.conf"));
    start(command, folder, address)
}

/// A text with a place changed that has to be there: the files of `infra/deploy/cdn` are written for people.
fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "{from:?} is not in the configuration");
    text.replace(from, to)
}

fn folder(name: &str) -> io::Result<PathBuf> {
    static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("shoal-{name}-{}-{count}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// An address that was free a moment ago: these servers cannot tell which port the system chose.
fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}

fn start(mut command: Command, folder: PathBuf, address: SocketAddr) -> io::Result<Front> {
    let log = std::fs::File::create(folder.join("output.log"))?;
    let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
    let mut front = Front { child, folder, address };
    let deadline = Instant::now() + START_MAX;
    while TcpStream::connect(address).is_err() {
        let has_ended = front.child.try_wait()?.is_some();
        if has_ended || Instant::now() > deadline {
            let read = |name: &str| std::fs::read_to_string(front.folder.join(name)).unwrap_or_default();
            return Err(io::Error::other(format!(
                "{command:?}: {}{}",
                read("output.log"),
                read("error.log")
            )));
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(front)
}
