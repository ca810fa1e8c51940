//! Recordings and long windows in an S3 store: a real service on this machine.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use axum::http::StatusCode;
use common::kept::{check, check_lists, publish_short, rewind, with_dvr};
use common::{AUDIO, Audio, Fake, VIDEO, Video, World, push, push_all, until};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s::{S3Error, S3ErrorCode, S3Result};
use shoal_segmenter::Config;
use tempfile::TempDir;
use tokio::net::TcpListener;

/// A configuration that records into the bucket `media` of an S3 service.
fn s3(endpoint: &str) -> Config {
    Config {
        recording: true,
        storage: "s3://media/live".to_owned(),
        s3_endpoint: endpoint.to_owned(),
        s3_access_key_id: "shoal".to_owned(),
        s3_secret_access_key: "secret".into(),
        ..Config::default()
    }
}

/// An S3 service, and its endpoint.
async fn serve_s3(directory: &Path) -> String {
    serve_s3_with(directory, Store::default()).await
}

/// What a test knows of a store, and does to it.
#[derive(Clone, Default)]
struct Store {
    /// It has no room for objects, and says so in the words of a real one.
    is_full: Arc<AtomicBool>,
    /// How many objects with `/pages/` in their names were read.
    pages_read: Arc<AtomicUsize>,
}

#[async_trait::async_trait]
impl S3Access for Store {
    async fn check(&self, cx: &mut S3AccessContext<'_>) -> S3Result<()> {
        let is_page = cx.s3_path().get_object_key().is_some_and(|key| key.contains("/pages/"));
        if cx.s3_op().name() == "GetObject" && is_page {
            self.pages_read.fetch_add(1, Ordering::AcqRel);
        }
        if cx.s3_op().name() == "PutObject" && self.is_full.load(Ordering::Acquire) {
            let code = S3ErrorCode::Custom("XMinioStorageFull".into());
            let mut full = S3Error::with_message(code, "the free drive threshold has been reached");
            full.set_status_code(StatusCode::INSUFFICIENT_STORAGE);
            return Err(full);
        }
        Ok(())
    }
}

/// The same, with `store` in between.
async fn serve_s3_with(directory: &Path, store: Store) -> String {
    std::fs::create_dir_all(directory.join("media")).unwrap();
    let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(directory).unwrap());
    builder.set_auth(SimpleAuth::from_single("shoal", "secret"));
    builder.set_access(store);
    let service = builder.build();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let service = service.clone();
            tokio::spawn(async move {
                let builder = Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(TokioIo::new(socket), service).await;
            });
        }
    });
    endpoint
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_store_keeps_recordings_over_a_restart() {
    let directory = TempDir::new().unwrap();
    let endpoint = serve_s3(directory.path()).await;
    let world = World::new(s3(&endpoint)).await;
    let publication = world.streams.publish("real").unwrap();
    publication.expect_tracks(&[AUDIO, VIDEO]);
    let (mut video, mut audio) = (Video::new(VIDEO, 320, 180), Audio::new());
    video.rhythm = Some(60);
    push(&publication, Audio::format());
    push_all(&publication, &mut video, &mut audio, 130);
    world.settle(&publication).await;
    // As a crash would leave it: the parts of the last segment are there, and nobody closes it.
    let other = World::new(s3(&endpoint)).await;
    let recording = other.recording().await;
    check(&other, &recording, 120).await;
    publication.end();
    world.streams.recorded(std::time::Duration::from_secs(20)).await;
    check(&world, &world.recording().await, 130).await;
    let world = World::new(Config { recordings_bytes_max: 1, ..s3(&endpoint) }).await;
    let header = directory.path().join(format!("media/live/real/{}/recording.json", recording.epoch));
    until("the deletion", || !header.exists()).await;
    assert!(world.streams.recordings().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn page_of_a_recording_is_read_once_for_all_that_it_describes() {
    let directory = TempDir::new().unwrap();
    let store = Store::default();
    let endpoint = serve_s3_with(directory.path(), store.clone()).await;
    let world = World::new(s3(&endpoint)).await;
    publish_short(&world, "show", 40_000).await;
    let folder = format!("/vod/show/{}", world.recording().await.epoch);
    let before = store.pages_read.load(Ordering::Acquire);
    let reads = || store.pages_read.load(Ordering::Acquire) - before;
    for file in ["part-0-0.m4s", "part-0-1.m4s", "part-15-3.m4s", "part-7-0.m4s", "seg-9.m4s"] {
        assert_eq!(world.get_range(&format!("{folder}/v0/{file}"), Some("bytes=0-0")).await.0, 206, "{file}");
        world.get(&format!("{folder}/v0/{file}.digest")).await;
        assert_eq!(reads(), 1, "{file}");
    }
    world.get(&format!("{folder}/v0/seg-16.m4s")).await;
    assert_eq!(reads(), 2, "of the page behind it");
    world.get(&format!("{folder}/a0/part-0-0.m4s")).await;
    assert_eq!(reads(), 3, "of the sound's");
    world.get(&format!("{folder}/v0/part-0-2.m4s")).await;
    assert_eq!(reads(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_store_serves_a_long_window() {
    let directory = TempDir::new().unwrap();
    let endpoint = serve_s3(directory.path()).await;
    let world = World::new(with_dvr(s3(&endpoint))).await;
    rewind(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn store_that_fills_up_ends_the_recording_which_is_closed_when_there_is_room_again() {
    let directory = TempDir::new().unwrap();
    let store = Store::default();
    let endpoint = serve_s3_with(directory.path(), store.clone()).await;
    let world = World::new(s3(&endpoint)).await;
    let publication = world.streams.publish("show").unwrap();
    let mut fake = Fake::new();
    fake.begin(&publication);
    fake.push(&publication, 5_000);
    world.settle(&publication).await;
    store.is_full.store(true, Ordering::Release);
    fake.push(&publication, 5_000);
    let failure = || world.streams.list()[0].recording.clone().unwrap().failure;
    until("the report", || failure().contains("XMinioStorageFull")).await;
    let parts = world.streams.stats()[0].parts;
    fake.push(&publication, 5_000);
    until("the worker", || publication.is_idle()).await;
    assert!(world.streams.stats()[0].parts >= parts + 18, "the stream goes on");

    // The next start, at the latest, closes what was stored in time. The first server's attempts go on failing: two that close
    // the same recording at the same time is another matter.
    let endpoint = serve_s3_with(directory.path(), Store::default()).await;
    let world = World::new(s3(&endpoint)).await;
    let recording = world.recording().await;
    check_lists(&world, &recording).await;
    assert!((4_900..5_200).contains(&recording.duration_ms), "{recording:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn storage_that_does_not_answer_ends_the_recording_and_not_the_stream() {
    // Takes connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    tokio::spawn(async move {
        let mut connections = Vec::new();
        while let Ok((connection, _)) = silent.accept().await {
            connections.push(connection);
        }
    });
    let world = World::new(Config { storage_queue_bytes_max: 1 << 20, ..s3(&endpoint) }).await;
    let publication = world.streams.publish("show").unwrap();
    let mut fake = Fake::new();
    fake.begin(&publication);
    fake.push(&publication, 20_000);
    until("the worker", || publication.is_idle()).await;
    let recording = world.streams.list()[0].recording.clone().unwrap();
    assert_eq!(recording.failure, "the storage can't keep up");
    assert!(world.streams.stats()[0].parts >= 76, "{:?}", world.streams.stats());
}
