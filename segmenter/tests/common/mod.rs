//! A publisher made of real encoders (x264, libopus), and an origin on a real socket.
#![allow(dead_code, reason = "each test file uses its part")]

pub(crate) mod kept;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use ffmpeg_next::codec::{self, Context};
use ffmpeg_next::format::{Pixel, Sample, sample};
use ffmpeg_next::{ChannelLayout, Dictionary, Packet, frame, picture};
use shoal_segmenter::frame::{Frame, Input, MediaTime, TrackFormat, TrackId, VideoCodec};
use shoal_segmenter::{Config, Origin, Publication, Streams};

pub(crate) const AUDIO: TrackId = TrackId(0);
pub(crate) const VIDEO: TrackId = TrackId(1);
pub(crate) const SECOND: TrackId = TrackId(2);
pub(crate) const TONE_HZ: f64 = 1_000.0;

/// Streams and their origin's address.
pub(crate) async fn serve(config: Config) -> (Streams, SocketAddr) {
    let streams = Streams::new(config, SigningKey::from_bytes(&[7; 32]));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Origin::router(streams.clone());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (streams, address)
}

/// A registry and its origin on a socket, and who asks it.
pub(crate) struct World {
    pub(crate) streams: Streams,
    pub(crate) base: String,
    pub(crate) client: reqwest::Client,
}

impl World {
    pub(crate) async fn new(config: Config) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (streams, address) = serve(config).await;
        Self { streams, base: format!("http://{address}"), client: reqwest::Client::new() }
    }

    /// What is found under a path, which must be there.
    pub(crate) async fn get(&self, path: &str) -> Bytes {
        let response = self.client.get(format!("{}{path}", self.base)).send().await.unwrap();
        let status = response.status();
        let body = response.bytes().await.expect("the body is whole");
        assert_eq!(status, 200, "{path}: {body:?}");
        body
    }

    pub(crate) async fn text(&self, path: &str) -> String {
        String::from_utf8(self.get(path).await.to_vec()).unwrap()
    }
}

/// Waits for a condition.
pub(crate) async fn until(what: &str, mut is_true: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_true() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// x264 without B-frames, at 30 frames per second; the picture moves.
pub(crate) struct Video {
    encoder: codec::encoder::video::Encoder,
    pub(crate) track: TrackId,
    width: u32,
    height: u32,
    next: i64,
    /// Keyframes every so many frames besides those that are asked for.
    pub(crate) rhythm: Option<i64>,
    /// How bright the picture is, all of it, in place of one that moves.
    pub(crate) level: Option<u8>,
}

impl Video {
    pub(crate) fn new(track: TrackId, width: u32, height: u32) -> Self {
        let x264 = codec::encoder::find_by_name("libx264").expect("Debian's FFmpeg has x264");
        let mut settings = Context::new_with_codec(x264).encoder().video().unwrap();
        settings.set_width(width);
        settings.set_height(height);
        settings.set_format(Pixel::YUV420P);
        settings.set_time_base((1, 30));
        settings.set_frame_rate(Some((30, 1)));
        settings.set_gop(100_000);
        settings.set_bit_rate(1_000_000);
        let mut options = Dictionary::new();
        for (key, value) in [
            ("preset", "ultrafast"),
            ("tune", "zerolatency"),
            ("forced-idr", "1"),
            ("x264-params", "scenecut=0:threads=1:repeat-headers=1"),
        ] {
            options.set(key, value);
        }
        let encoder = settings.open_with(options).unwrap();
        Self { encoder, track, width, height, next: 0, rhythm: None, level: None }
    }

    /// The time of the next frame in microseconds.
    pub(crate) fn next_us(&self) -> i64 {
        self.next * 1_000_000 / 30
    }

    /// Goes on at the time that another one has come to.
    pub(crate) fn skip_to(&mut self, other: &Self) {
        self.next = other.next;
    }

    /// The next frame, after the format if it is a keyframe's first.
    pub(crate) fn next(&mut self, force_keyframe: bool) -> Vec<Input> {
        let mut picture = frame::Video::new(Pixel::YUV420P, self.width, self.height);
        for plane in 0..3 {
            let stride = picture.stride(plane);
            if let Some(level) = self.level {
                picture.data_mut(plane).fill(if plane == 0 { level } else { 128 });
                continue;
            }
            for (index, byte) in picture.data_mut(plane).iter_mut().enumerate() {
                *byte = ((index % stride) as i64 + (index / stride) as i64 * 2 + self.next * 3) as u8;
            }
        }
        picture.set_pts(Some(self.next));
        let is_due = self.rhythm.is_some_and(|rhythm| self.next % rhythm == 0);
        picture.set_kind(if force_keyframe || is_due { picture::Type::I } else { picture::Type::None });
        let pts = MediaTime(self.next_us());
        self.next += 1;
        self.encoder.send_frame(&picture).unwrap();
        let mut packet = Packet::empty();
        self.encoder.receive_packet(&mut packet).expect("no delay with zerolatency");
        let (mut data, mut sps, mut pps) = (Vec::new(), Vec::new(), Vec::new());
        for unit in units(packet.data().unwrap()) {
            match unit[0] & 31 {
                7 => sps = unit.to_vec(),
                8 => pps = unit.to_vec(),
                9 => {}
                _ => {
                    data.extend_from_slice(&(unit.len() as u32).to_be_bytes());
                    data.extend_from_slice(unit);
                }
            }
        }
        let mut inputs = Vec::new();
        if packet.is_key() {
            let config = [
                &[1, sps[1], sps[2], sps[3], 0xff, 0xe1][..],
                &(sps.len() as u16).to_be_bytes(),
                &sps,
                &[1],
                &(pps.len() as u16).to_be_bytes(),
                &pps,
            ]
            .concat();
            inputs.push(Input::Format {
                track: self.track,
                format: TrackFormat::Video {
                    codec: VideoCodec::H264,
                    width: self.width,
                    height: self.height,
                    config: config.into(),
                },
            });
        }
        inputs.push(Input::Frame(Frame {
            track: self.track,
            pts,
            is_keyframe: packet.is_key(),
            data: data.into(),
        }));
        inputs
    }
}

/// The NAL units of an Annex B access unit.
fn units(data: &[u8]) -> Vec<&[u8]> {
    let mut starts = Vec::new();
    let mut index = 0;
    while index + 3 <= data.len() {
        if data[index..index + 3] == [0, 0, 1] {
            starts.push(index);
            index += 3;
        } else {
            index += 1;
        }
    }
    let ends = starts.iter().skip(1).copied().chain([data.len()]);
    starts
        .iter()
        .zip(ends)
        .map(|(start, end)| {
            let mut unit = &data[start + 3..end];
            while let [rest @ .., 0] = unit {
                unit = rest;
            }
            unit
        })
        .collect()
}

/// libopus with a tone.
pub(crate) struct Audio {
    encoder: codec::encoder::audio::Encoder,
    layout: ChannelLayout,
    next: i64,
}

impl Audio {
    pub(crate) fn new() -> Self {
        Self::with_layout(ChannelLayout::STEREO)
    }

    pub(crate) fn mono() -> Self {
        Self::with_layout(ChannelLayout::MONO)
    }

    fn with_layout(layout: ChannelLayout) -> Self {
        let opus = codec::encoder::find_by_name("libopus").expect("Debian's FFmpeg has libopus");
        let mut settings = Context::new_with_codec(opus).encoder().audio().unwrap();
        settings.set_rate(48_000);
        settings.set_channel_layout(layout);
        settings.set_channels(layout.channels());
        settings.set_format(Sample::F32(sample::Type::Packed));
        settings.set_bit_rate(128_000);
        settings.set_time_base((1, 48_000));
        Self { encoder: settings.open_as(opus).unwrap(), layout, next: 0 }
    }

    pub(crate) fn format() -> Input {
        Input::Format { track: AUDIO, format: TrackFormat::Opus { channels: 2 } }
    }

    pub(crate) fn next_us(&self) -> i64 {
        self.next * 1_000_000 / 48_000
    }

    pub(crate) fn next(&mut self) -> Input {
        let mut samples = frame::Audio::new(Sample::F32(sample::Type::Packed), 960, self.layout);
        samples.set_rate(48_000);
        samples.set_pts(Some(self.next));
        let next = self.next;
        let tone = |index: usize| {
            let at = (next + index as i64) as f64 / 48_000.0;
            (0.5 * (at * TONE_HZ * std::f64::consts::TAU).sin()) as f32
        };
        if self.layout.channels() == 1 {
            let plane = samples.plane_mut::<f32>(0).iter_mut().enumerate();
            plane.for_each(|(index, sample)| *sample = tone(index));
        } else {
            let plane = samples.plane_mut::<(f32, f32)>(0).iter_mut().enumerate();
            plane.for_each(|(index, sample)| *sample = (tone(index), tone(index)));
        }
        let pts = MediaTime(self.next_us());
        self.next += 960;
        self.encoder.send_frame(&samples).unwrap();
        let mut packet = Packet::empty();
        self.encoder.receive_packet(&mut packet).expect("one packet for each frame");
        let data = Bytes::copy_from_slice(packet.data().unwrap());
        Input::Frame(Frame { track: AUDIO, pts, is_keyframe: true, data })
    }
}

/// Pushes `frames` frames of both tracks as fast as the encoders go.
pub(crate) fn push_all(publication: &Publication, video: &mut Video, audio: &mut Audio, frames: usize) {
    for _ in 0..frames {
        while audio.next_us() < video.next_us() {
            push(publication, audio.next());
        }
        for input in video.next(false) {
            push(publication, input);
        }
    }
}

/// The same, so much later.
pub(crate) fn later(input: &Input, by_us: i64) -> Input {
    match input {
        Input::Frame(frame) => Input::Frame(Frame { pts: MediaTime(frame.pts.0 + by_us), ..frame.clone() }),
        other => other.clone(),
    }
}

pub(crate) fn push(publication: &Publication, input: Input) {
    publication.push(input).expect("the queue has room");
}

/// Frames whose bytes nobody decodes, for tests of everything around the media.
pub(crate) struct Fake {
    pub(crate) with_video: bool,
    pub(crate) with_audio: bool,
    /// A second, smaller layer.
    pub(crate) with_second: bool,
    /// Keyframes come every so many frames, whatever is asked.
    pub(crate) rhythm: i64,
    /// The second layer's keyframes come so many frames later than the first's.
    pub(crate) second_late: i64,
    frame: i64,
    packet: i64,
}

/// 20 ms of Opus silence.
const SILENCE: &[u8] = &[0xfc, 0xff, 0xfe];

impl Fake {
    pub(crate) fn new() -> Self {
        Self {
            with_video: true,
            with_audio: true,
            with_second: false,
            rhythm: 60,
            second_late: 0,
            frame: 0,
            packet: 0,
        }
    }

    pub(crate) fn tracks(&self) -> Vec<TrackId> {
        [(self.with_audio, AUDIO), (self.with_video, VIDEO), (self.with_second, SECOND)]
            .into_iter()
            .filter_map(|(is_there, track)| is_there.then_some(track))
            .collect()
    }

    pub(crate) fn video_format(width: u32, height: u32) -> Input {
        Self::layer_format(VIDEO, width, height)
    }

    pub(crate) fn layer_format(track: TrackId, width: u32, height: u32) -> Input {
        let config = Bytes::from_static(&[
            1, 0x42, 0xe0, 0x1f, 0xff, 0xe1, 0, 4, 0x67, 0x42, 0xe0, 0x1f, 1, 0, 2, 0x68, 0,
        ]);
        let format = TrackFormat::Video { codec: VideoCodec::H264, width, height, config };
        Input::Format { track, format }
    }

    /// Announces the tracks.
    pub(crate) fn begin(&self, publication: &Publication) {
        publication.expect_tracks(&self.tracks());
        if self.with_audio {
            push(publication, Audio::format());
        }
        if self.with_video {
            push(publication, Self::video_format(640, 360));
        }
        if self.with_second {
            push(publication, Self::layer_format(SECOND, 320, 180));
        }
    }

    /// Lets the camera fall silent, or speak again.
    pub(crate) fn show(&mut self, with_video: bool) {
        self.with_video = with_video;
    }

    /// How much has been pushed, in milliseconds.
    pub(crate) fn pushed_ms(&self) -> u64 {
        self.frame as u64 * 1000 / 30
    }

    /// Pushes media of so many milliseconds: 30 frames per second, a keyframe every 2 s at first.
    pub(crate) fn push(&mut self, publication: &Publication, milliseconds: i64) {
        let until = self.frame + milliseconds * 30 / 1000;
        while self.frame < until {
            let pts_us = self.frame * 1_000_000 / 30;
            while self.with_audio && self.packet * 20_000 < pts_us + 20_000 {
                let pts = MediaTime(self.packet * 20_000);
                let data = Bytes::from_static(SILENCE);
                push(publication, Input::Frame(Frame { track: AUDIO, pts, is_keyframe: true, data }));
                self.packet += 1;
            }
            if self.with_video {
                let is_keyframe = self.frame % self.rhythm == 0;
                let data = Bytes::from(vec![self.frame as u8; if is_keyframe { 30_000 } else { 3_000 }]);
                push(
                    publication,
                    Input::Frame(Frame { track: VIDEO, pts: MediaTime(pts_us), is_keyframe, data }),
                );
            }
            if self.with_second && self.frame >= self.second_late {
                let is_keyframe = (self.frame - self.second_late) % self.rhythm == 0;
                let data = Bytes::from(vec![self.frame as u8; if is_keyframe { 10_000 } else { 1_000 }]);
                push(
                    publication,
                    Input::Frame(Frame { track: SECOND, pts: MediaTime(pts_us), is_keyframe, data }),
                );
            }
            self.frame += 1;
        }
    }
}
