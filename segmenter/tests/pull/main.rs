//! Streams pulled from other origins: another Shoal, and servers that behave as upstreams in the world do.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

#[path = "../common/mod.rs"]
mod common;
mod live;
mod recordings;
mod trouble;
mod upstream;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use bytes::Bytes;
use ed25519_dalek::SigningKey;
use http_body_util::BodyExt as _;
use shoal_digest::{BlockDigest, Record, block_bytes};
use shoal_playlist::lint::{
    Fetched, Fragment, Init, lint_fragments, lint_media, lint_multivariant, lint_renditions,
    promises_independence,
};
use shoal_playlist::{MediaPlaylist, parse_media};
use shoal_segmenter::pull::{self, Source};
use shoal_segmenter::{Config, Event, Origin, StreamInfo, Streams};
use tokio::sync::broadcast;
use tower::ServiceExt as _;

/// A server that pulls one stream, `news`, and its origin without a socket.
struct World {
    streams: Streams,
    router: Router,
    events: broadcast::Receiver<Event>,
}

fn source(url: &str) -> Source {
    Source { name: "news".to_owned(), url: url.to_owned(), ..Source::default() }
}

/// Short pauses, so that tests are.
fn pull_config(source: Source) -> pull::Config {
    pull::Config {
        streams: vec![source],
        retry_max_ms: 250,
        request_timeout_ms: 2_000,
        ..pull::Config::default()
    }
}

impl World {
    fn pull(source: Source) -> Self {
        Self::with(Config::default(), &pull_config(source))
    }

    fn with(config: Config, pull: &pull::Config) -> Self {
        pull.validate().unwrap();
        let streams = Streams::new(config, SigningKey::from_bytes(&[7; 32]));
        let router = Origin::router(streams.clone());
        let events = streams.subscribe();
        streams.pull(pull).unwrap();
        Self { streams, router, events }
    }

    async fn get(&self, path: &str) -> (StatusCode, Bytes) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        (response.status(), response.into_body().collect().await.unwrap().to_bytes())
    }

    async fn bytes(&self, path: &str) -> Bytes {
        let (status, body) = self.get(path).await;
        assert_eq!(status, 200, "{path}");
        body
    }

    async fn text(&self, path: &str) -> String {
        String::from_utf8(self.bytes(path).await.to_vec()).unwrap()
    }

    fn info(&self) -> StreamInfo {
        self.streams.list().into_iter().find(|info| info.name == "news").expect("it is in the list")
    }

    fn problem(&self) -> String {
        self.info().upstream.expect("it has an upstream").problem
    }

    /// The multivariant playlist, when it is there.
    async fn multivariant(&self) -> String {
        common::until("the stream", || !self.info().renditions.is_empty()).await;
        self.text("/live/news/index.m3u8").await
    }

    /// The folders of the renditions, in order.
    async fn folders(&self) -> Vec<String> {
        let text = self.multivariant().await;
        let epoch = text.split("\"live.shoal.epoch\",VALUE=\"").nth(1).unwrap().split('"').next().unwrap();
        let names = self.info().renditions;
        names.iter().map(|rendition| format!("/live/news/{epoch}/{}", rendition.name)).collect()
    }

    /// A rendition's playlist, once it is as wanted.
    async fn playlist(
        &self,
        folder: &str,
        what: &str,
        is_wanted: impl Fn(&MediaPlaylist) -> bool,
    ) -> (String, MediaPlaylist) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let text = self.text(&format!("{folder}/playlist.m3u8")).await;
            let playlist = parse_media(&text).unwrap();
            if is_wanted(&playlist) {
                return (text, playlist);
            }
            assert!(Instant::now() < deadline, "waited in vain for {what}: {}\n{text}", self.problem());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Fetches all that the playlists list, checks each piece against its signed record, and lets the lint judge.
    /// Gives each rendition's segments.
    async fn examine(&self) -> Vec<Vec<Bytes>> {
        let key = self.streams.origin_key();
        let multivariant = self.multivariant().await;
        let mut findings = lint_multivariant(&multivariant);
        let is_promised = promises_independence(&multivariant);
        let (mut all, mut texts) = (Vec::new(), Vec::new());
        for (number, folder) in self.folders().await.into_iter().enumerate() {
            let text = self.text(&format!("{folder}/playlist.m3u8")).await;
            let playlist = parse_media(&text).unwrap();
            let (mut inits, mut init) = (BTreeMap::new(), String::new());
            let (mut fragments, mut segments) = (Vec::new(), Vec::new());
            for (msn, segment) in (playlist.media_sequence..).zip(&playlist.segments) {
                if let Some(map) = &segment.head.map {
                    init.clone_from(&map.uri);
                    let bytes = self.bytes(&format!("{folder}/{init}")).await;
                    inits.insert(init.clone(), Init::read(&bytes).expect("an initialization section"));
                }
                if segment.is_gap {
                    continue;
                }
                let bytes = self.bytes(&format!("{folder}/{}", segment.uri)).await;
                let records = self.bytes(&format!("{folder}/{}.digest", segment.uri)).await;
                self.check_records(&bytes, &records, number, msn, &key);
                let fragment = Fragment::read(&bytes, &inits[&init]);
                fragments.push((segment.uri.clone(), fragment, bytes.len() as u64));
                for part in &segment.parts {
                    let bytes = self.bytes(&format!("{folder}/{}", part.uri)).await;
                    fragments.push((
                        part.uri.clone(),
                        Fragment::read(&bytes, &inits[&init]),
                        bytes.len() as u64,
                    ));
                }
                segments.push(bytes);
            }
            let mut fetched: BTreeMap<String, Fetched<'_>> =
                inits.iter().map(|(uri, init)| (uri.clone(), Fetched::Init(Some(init)))).collect();
            fetched.extend(fragments.into_iter().map(|(uri, f, length)| (uri, Fetched::Fragment(f, length))));
            findings.extend(lint_media(&text));
            findings.extend(lint_fragments(&text, &fetched, is_promised));
            texts.push(text);
            all.push(segments);
        }
        findings.extend(lint_renditions(&texts.iter().map(String::as_str).collect::<Vec<_>>()));
        let findings: Vec<String> = findings.iter().map(ToString::to_string).collect();
        assert!(findings.is_empty(), "{findings:#?}\n{}", texts.join("\n"));
        all
    }

    /// Each part of a segment has a record whose signature and digests are right.
    fn check_records(
        &self,
        segment: &[u8],
        records: &[u8],
        rendition: usize,
        msn: u64,
        key: &shoal_digest::OriginKey,
    ) {
        let (mut rest, mut at, mut part) = (records, 0, 0);
        while !rest.is_empty() {
            let (length, tail) = rest.split_first_chunk::<4>().unwrap();
            let (record, tail) = tail.split_at(u32::from_be_bytes(*length) as usize);
            let record = Record::verify(record, key).unwrap();
            assert_eq!(
                (usize::from(record.piece.rendition), record.piece.msn, record.piece.part),
                (rendition, msn, part)
            );
            let bytes = &segment[at..at + record.length as usize];
            let digests: Vec<_> =
                bytes.chunks(block_bytes(bytes.len() as u32) as usize).map(BlockDigest::of).collect();
            assert_eq!(record.blocks, digests);
            (rest, at, part) = (tail, at + record.length as usize, part + 1);
            assert_eq!(record.is_last_in_segment, rest.is_empty());
        }
        assert_eq!(at, segment.len());
    }

    /// What was told to the tracker so far: the rendition and URI of each piece.
    fn published(&mut self) -> Vec<(u8, String)> {
        let mut published = Vec::new();
        while let Ok(event) = self.events.try_recv() {
            if let Event::Published(piece) = event {
                published.push((piece.piece.rendition, piece.uri.clone()));
            }
        }
        published
    }
}
