//! TLS and HTTP/2 from outside: what is negotiated, which certificate, and that it can be renewed.

mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use reqwest::{Certificate, Client, StatusCode, Version};
use serde_json::Value;
use support::{Running, Serving, shoal, until};

fn client(root: Option<&str>) -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = Client::builder().pool_max_idle_per_host(0);
    if let Some(root) = root {
        builder = builder.tls_certs_only([Certificate::from_pem(root.as_bytes()).expect("it is PEM")]);
    }
    builder.build().expect("a client can be made")
}

fn any_certificate() -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().danger_accept_invalid_certs(true).build().expect("a client can be made")
}

/// Makes a certificate for localhost and writes it with its key. Gives the certificate.
fn write_certificate(folder: &Path) -> String {
    let made =
        rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate can be made");
    fs::write(folder.join("key.pem"), made.signing_key.serialize_pem()).expect("the folder is ours");
    fs::write(folder.join("certificate.pem"), made.cert.pem()).expect("the folder is ours");
    made.cert.pem()
}

fn with_files(folder: &Path) -> Command {
    let mut command = shoal();
    command.env("SHOAL_HTTP_TLS_CERTIFICATE_FILE", folder.join("certificate.pem"));
    command.env("SHOAL_HTTP_TLS_KEY_FILE", folder.join("key.pem"));
    command
}

#[tokio::test]
async fn http2_is_negotiated_over_tls_and_the_clear_port_stays() {
    let serving = Serving::start(shoal().env("SHOAL_HTTP_TLS_SELF_SIGNED", "true"));
    let url = format!("https://localhost:{}/healthz", serving.tls_port.unwrap());
    let answer = any_certificate().get(&url).send().await.unwrap();
    assert_eq!((answer.status(), answer.version()), (StatusCode::OK, Version::HTTP_2));
    let _ = rustls::crypto::ring::default_provider().install_default();
    let old = Client::builder().danger_accept_invalid_certs(true).http1_only().build().unwrap();
    let answer = old.get(&url).send().await.unwrap();
    assert_eq!((answer.status(), answer.version()), (StatusCode::OK, Version::HTTP_11));
    assert!(serving.get("/healthz").starts_with("HTTP/1.1 200"));
    // The control: nobody trusts a self-signed certificate by itself.
    assert!(client(None).get(&url).send().await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn viewer_gets_playlists_and_media_over_http2_side_by_side_on_one_connection() {
    let serving = Serving::start(shoal().env("SHOAL_HTTP_TLS_SELF_SIGNED", "true"));
    let (serving, publisher) = tokio::task::spawn_blocking(move || {
        let publisher = serving.publish("show", &[]);
        (serving, publisher)
    })
    .await
    .unwrap();
    let base = format!("https://localhost:{}/live/show/", serving.tls_port.unwrap());
    let client = any_certificate();
    let get = async |path: &str| {
        let answer = client.get(format!("{base}{path}")).send().await.unwrap();
        assert_eq!((answer.status(), answer.version()), (StatusCode::OK, Version::HTTP_2), "{path}");
        answer.bytes().await.unwrap()
    };
    let text = async |path: &str| String::from_utf8(get(path).await.to_vec()).unwrap();
    let multivariant = text("index.m3u8").await;
    let listed = |line: &&str| line.ends_with("playlist.m3u8") && !line.starts_with('#');
    let video = multivariant.lines().find(listed).unwrap();
    let folder = video.strip_suffix("playlist.m3u8").unwrap();
    let playlist = text(video).await;
    let value = |line: &str, tag: &str| line.strip_prefix(tag).map(str::to_owned);
    let sequence = playlist.lines().find_map(|line| value(line, "#EXT-X-MEDIA-SEQUENCE:")).unwrap();
    let next = sequence.parse::<u64>().unwrap() + playlist.matches("#EXTINF").count() as u64 + 1;
    let segment = playlist.lines().find(|line| line.ends_with(".m4s") && line.starts_with("seg-")).unwrap();
    // A held request holds nothing up that comes after it on the same connection.
    let held = async {
        let text = text(&format!("{video}?_HLS_msn={next}&_HLS_part=0")).await;
        (text, std::time::Instant::now())
    };
    let media = async {
        let bytes = get(&format!("{folder}{segment}")).await;
        (bytes, std::time::Instant::now())
    };
    let ((later, held_until), (bytes, got_at)) = tokio::join!(held, media);
    assert!(later.contains(&format!("part-{next}-0.m4s")), "{later}");
    assert!(got_at < held_until, "the segment waited for the playlist");
    assert_eq!(&bytes[4..8], b"moof");
    let ranged =
        client.get(format!("{base}{folder}{segment}")).header("range", "bytes=4-7").send().await.unwrap();
    assert_eq!((ranged.status(), ranged.version()), (StatusCode::PARTIAL_CONTENT, Version::HTTP_2));
    assert_eq!(&ranged.bytes().await.unwrap()[..], b"moof");
    drop(publisher);
}

#[tokio::test]
async fn renewed_certificate_is_used_after_sighup_and_a_broken_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let first = write_certificate(folder.path());
    let serving = Serving::start(&mut with_files(folder.path()));
    let url = format!("https://localhost:{}/healthz", serving.tls_port.unwrap());
    let is_trusted = |root: String| {
        let url = url.clone();
        async move { client(Some(&root)).get(url).send().await.is_ok() }
    };
    assert!(is_trusted(first.clone()).await);

    fs::write(folder.path().join("certificate.pem"), "no certificate").unwrap();
    serving.process.signal("HUP");
    assert!(is_trusted(first.clone()).await);

    let second = write_certificate(folder.path());
    serving.process.signal("HUP");
    let handle = tokio::runtime::Handle::current();
    tokio::task::spawn_blocking({
        let second = second.clone();
        let url = url.clone();
        move || {
            until("the new certificate", || {
                handle.block_on(client(Some(&second)).get(&url).send()).is_ok().then_some(())
            });
        }
    })
    .await
    .unwrap();
    assert!(!is_trusted(first).await);
}

#[test]
fn certificate_that_cannot_be_used_is_one_line_and_exit_code_1() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |command: &mut Command| {
        let output = command.arg("serve").output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
        message
    };
    assert!(refused(&mut with_files(folder.path())).contains("http.tls_certificate_file"));
    write_certificate(folder.path());
    let other = rcgen::KeyPair::generate().unwrap();
    fs::write(folder.path().join("key.pem"), other.serialize_pem()).unwrap();
    // The key of another certificate.
    assert!(refused(&mut with_files(folder.path())).contains("http.tls_certificate_file"));
    assert!(refused(shoal().env("SHOAL_HTTP_TLS_LISTEN", "127.0.0.1:0")).contains("http.tls_listen needs"));
    let both = refused(with_files(folder.path()).env("SHOAL_HTTP_TLS_SELF_SIGNED", "true"));
    assert!(both.contains("http.tls_self_signed"), "{both}");
}

/// `shoal watch` of the stream "show" over https, which trusts the certificate in this folder.
fn watch(serving: &Serving, trusted: &Path) -> Command {
    let mut command = shoal();
    command.env("SSL_CERT_FILE", trusted.join("certificate.pem"));
    command
        .arg("watch")
        .arg(format!("https://localhost:{}/watch/show", serving.tls_port.expect("it has TLS")));
    command
}

/// Two viewers, each a process of its own, until one has told the tracker of bytes from the other. Gives the sums that both print.
fn watch_together(serving: &Serving, mut command: impl FnMut() -> Command) -> [Value; 2] {
    let viewers = [(); 2].map(|()| Running::start(command().stdout(Stdio::piped()).stderr(Stdio::null())));
    until("bytes from a peer", || {
        (serving.metric("tracker_reported_peer_bytes_total", "") > 0.0).then_some(())
    });
    viewers.map(|viewer| serde_json::from_str(viewer.finish().trim()).expect("it ends with JSON"))
}

fn assert_shared(sums: &[Value; 2]) {
    let bytes = |key: &str| sums.iter().filter_map(|sum| sum[key].as_u64()).sum::<u64>();
    // The other one's only neighbor is gone by the time that it ends.
    assert_eq!(sums[0]["neighbors"], 1, "{sums:?}");
    assert!(bytes("peer_bytes") > 0 && bytes("sent_bytes") > 0, "{sums:?}");
    assert_eq!(bytes("rejected_bytes"), 0, "{sums:?}");
}

#[test]
fn native_viewers_are_neighbors_over_https_with_a_certificate_that_they_trust() {
    let folder = tempfile::tempdir().unwrap();
    write_certificate(folder.path());
    let serving = Serving::start(&mut with_files(folder.path()));
    let _publisher = serving.publish("show", &[]);
    assert_shared(&watch_together(&serving, || watch(&serving, folder.path())));
}

#[test]
fn native_viewers_are_neighbors_with_any_certificate_where_they_are_told_to_take_it() {
    let serving = Serving::start(shoal().env("SHOAL_HTTP_TLS_SELF_SIGNED", "true"));
    let _publisher = serving.publish("show", &[]);
    let others = tempfile::tempdir().unwrap();
    write_certificate(others.path());
    // The control: nobody trusts it without being told.
    let output = watch(&serving, others.path()).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("invalid peer certificate"), "{message}");

    let sums = watch_together(&serving, || {
        let mut command = watch(&serving, others.path());
        command.arg("--insecure");
        command
    });
    assert_shared(&sums);
}

#[test]
fn machine_that_trusts_nobody_reads_http_and_is_told_what_https_needs() {
    let nobody = tempfile::tempdir().unwrap();
    let error = |url: &str| {
        let mut command = shoal();
        command.env("SSL_CERT_FILE", "/dev/null").env("SSL_CERT_DIR", nobody.path());
        let output = command.args(["watch", url]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8_lossy(&output.stderr).trim().to_owned()
    };
    // Nothing listens there: it came as far as that.
    let plain = error("http://127.0.0.1:9/watch/show");
    assert!(!plain.contains("CA certificates") && plain.contains("127.0.0.1:9"), "{plain}");
    let secure = error("https://127.0.0.1:9/watch/show");
    assert!(secure.contains("CA certificates") && secure.contains("SSL_CERT_FILE"), "{secure}");
}
