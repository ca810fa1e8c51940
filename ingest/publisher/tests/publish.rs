//! The publisher against a real WHIP endpoint over loopback: what it sends decodes, its clock can be read back, its
//! timestamps mean what they say, and it repairs, obeys and says goodbye.

#![allow(clippy::unwrap_used)]

mod common;

use common::{
    Behavior, Command, Endpoint, Seen,
    decode::{h264_units, in_order, pictures, samples, vp8_frames},
};
use ffmpeg_next::codec::Id;
use shoal_publisher::{Options, Publisher, Size, Source, State, Transport, VideoCodec, clock};

fn options(source: Source, url: String) -> Options {
    let mut options = Options::new(source, url);
    options.size = Some(Size { width: 640, height: 360 });
    options.bitrate = shoal_publisher::Bitrate(1_000_000);
    options
}

/// Stops looking after this many video frames.
fn video_frames(count: usize) -> impl FnMut(&Seen) -> bool {
    let mut frames = 0;
    move |seen| {
        if let Seen::Rtp { is_video: true, packet, .. } = seen
            && packet.header.marker
        {
            frames += 1;
        }
        frames >= count
    }
}

fn is_keyframe(unit: &[u8]) -> bool {
    unit.windows(4).any(|bytes| bytes[..3] == [0, 0, 1] && bytes[3] & 0x1f == 5)
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_decode_and_their_clock_tells_when_they_were_made() {
    let mut endpoint = Endpoint::start(Behavior::default()).await;
    let mut publisher = Publisher::start(options(Source::TestPattern, endpoint.url("a")));
    publisher.wait_until_live().await.unwrap();
    let seen = endpoint.until(video_frames(75)).await;
    let summary = publisher.stop().await.unwrap();
    assert!(summary.frames_sent >= 75, "{summary:?}");

    let (packets, missing) = in_order(&seen, true);
    assert_eq!(missing, 0);
    let pictures = pictures(Id::H264, &h264_units(&packets));
    assert!(pictures.len() >= 70);
    let arrivals: std::collections::HashMap<u32, i64> = seen
        .iter()
        .filter_map(|seen| match seen {
            Seen::Rtp { is_video: true, packet, unix_us } => Some((packet.header.timestamp, *unix_us)),
            _ => None,
        })
        .collect();
    let mut last = 0;
    for picture in &pictures {
        let arrival_ms = arrivals[&picture.timestamp] as u64 / 1000;
        let made = clock::expand(picture.clock().expect("a readable clock in each frame"), arrival_ms);
        assert!(made > last, "time goes forward");
        last = made;
        let latency_ms = arrival_ms as i64 - made as i64;
        assert!((0..500).contains(&latency_ms), "from drawing to arrival: {latency_ms} ms");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn vp8_decodes_too() {
    let mut endpoint = Endpoint::start(Behavior::default()).await;
    let mut options = options(Source::TestPattern, endpoint.url("a"));
    options.video_codec = VideoCodec::Vp8;
    let publisher = Publisher::start(options);
    let seen = endpoint.until(video_frames(40)).await;
    publisher.stop().await.unwrap();
    let (packets, missing) = in_order(&seen, true);
    assert_eq!(missing, 0);
    let pictures = pictures(Id::VP8, &vp8_frames(&packets));
    assert!(pictures.iter().all(|picture| picture.clock().is_some()));
}

#[tokio::test(flavor = "multi_thread")]
async fn keyframes_come_on_pli_and_on_fir() {
    for command in [Command::Pli, Command::Fir] {
        let mut endpoint = Endpoint::start(Behavior::default()).await;
        let mut options = options(Source::TestPattern, endpoint.url("a"));
        options.keyframe_interval_ms = 60_000;
        options.no_audio = true;
        let publisher = Publisher::start(options);
        let mut seen = endpoint.until(video_frames(10)).await;
        endpoint.command(command);
        seen.extend(endpoint.until(video_frames(15)).await);
        let summary = publisher.stop().await.unwrap();
        assert_eq!(summary.keyframe_requests, 1);
        let units = h264_units(&in_order(&seen, true).0);
        let keyframes: Vec<_> =
            units.iter().enumerate().filter(|(_, (_, unit))| is_keyframe(unit)).map(|(at, _)| at).collect();
        assert_eq!(keyframes.len(), 2, "the first and the asked one: {keyframes:?}");
        assert_eq!(keyframes[0], 0);
        assert!((10..20).contains(&keyframes[1]), "soon after the request: {keyframes:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_packets_are_sent_again_when_the_server_asks() {
    let mut endpoint = Endpoint::start(Behavior { drop_each: 15, ..Behavior::default() }).await;
    let mut options = options(Source::TestPattern, endpoint.url("a"));
    options.bitrate = shoal_publisher::Bitrate(2_500_000);
    let publisher = Publisher::start(options);
    let seen = endpoint.until(video_frames(90)).await;
    let dropped = endpoint.dropped();
    let summary = publisher.stop().await.unwrap();
    assert!(dropped >= 10, "the test drops something: {dropped}");
    assert!(summary.nacked_packets >= u64::from(dropped) / 2, "{summary:?}");
    // The youngest losses may still be on their way back.
    let (packets, _) = in_order(&seen, true);
    let (_, missing) = in_order(
        &packets[..packets.len() - 60]
            .iter()
            .map(|packet| Seen::Rtp { is_video: true, packet: packet.clone(), unix_us: 0 })
            .collect::<Vec<_>>(),
        true,
    );
    assert_eq!(missing, 0, "every hole is filled");
}

#[tokio::test(flavor = "multi_thread")]
async fn sender_reports_map_timestamps_to_the_wall_clock() {
    let mut endpoint = Endpoint::start(Behavior::default()).await;
    let publisher = Publisher::start(options(Source::TestPattern, endpoint.url("a")));
    let mut reports = 0;
    let seen = endpoint
        .until(|seen| {
            reports += u32::from(matches!(seen, Seen::Report { .. }));
            reports >= 6
        })
        .await;
    publisher.stop().await.unwrap();
    const NTP_TO_UNIX_S: u64 = 2_208_988_800;
    for want_video in [true, false] {
        let rate = if want_video { 90_000.0 } else { 48_000.0 };
        let mut mapped: Option<(f64, u32)> = None;
        for seen in &seen {
            let Seen::Report { is_video, report, unix_us } = seen else { continue };
            if *is_video != want_video {
                continue;
            }
            let ntp_s = report.ntp_time as f64 / (1u64 << 32) as f64 - NTP_TO_UNIX_S as f64;
            let late_s = *unix_us as f64 / 1e6 - ntp_s;
            assert!((-0.001..0.3).contains(&late_s), "sent just now: {late_s} s ago");
            if let Some((first_s, first_ticks)) = mapped {
                let by_clock = (ntp_s - first_s) * rate;
                let by_ticks = f64::from(report.rtp_time.wrapping_sub(first_ticks));
                assert!((by_clock - by_ticks).abs() < rate * 0.001, "{by_clock} against {by_ticks} ticks");
            }
            mapped.get_or_insert((ntp_s, report.rtp_time));
        }
        assert!(mapped.is_some(), "reports for video: {want_video}");
    }
}

/// Maps an RTP timestamp to seconds of the publisher's clock by the first report of its track.
fn seconds(seen: &[Seen], want_video: bool, timestamp: u32) -> f64 {
    let rate = if want_video { 90_000.0 } else { 48_000.0 };
    let (ntp, rtp) = seen
        .iter()
        .find_map(|seen| match seen {
            Seen::Report { is_video, report, .. } if *is_video == want_video => {
                Some((report.ntp_time, report.rtp_time))
            }
            _ => None,
        })
        .expect("a report of the track");
    ntp as f64 / (1u64 << 32) as f64 + f64::from(timestamp.wrapping_sub(rtp) as i32) / rate
}

#[tokio::test(flavor = "multi_thread")]
async fn flash_and_beep_are_at_the_same_instant_of_the_reported_clocks() {
    let mut endpoint = Endpoint::start(Behavior::default()).await;
    let publisher = Publisher::start(options(Source::Flash, endpoint.url("a")));
    let seen = endpoint.until(video_frames(100)).await;
    publisher.stop().await.unwrap();

    let pictures = pictures(Id::H264, &h264_units(&in_order(&seen, true).0));
    let flashes: Vec<f64> = pictures
        .windows(2)
        .filter(|pair| pair[0].brightness() < 60 && pair[1].brightness() > 190)
        .map(|pair| seconds(&seen, true, pair[1].timestamp))
        .collect();
    let samples = samples(&in_order(&seen, false).0);
    let mut beeps = Vec::new();
    let mut quiet_since = i64::MIN;
    for &(at, sample) in &samples {
        if sample.abs() > 0.1 {
            if at - quiet_since > 20_000 && quiet_since != i64::MIN {
                beeps.push(seconds(&seen, false, at as u32));
            }
            quiet_since = at;
        } else if quiet_since == i64::MIN {
            quiet_since = at - 30_000;
        }
    }
    assert!(flashes.len() >= 2 && beeps.len() >= 2, "{flashes:?} {beeps:?}");
    for flash in &flashes {
        let Some(offset) = beeps.iter().map(|beep| beep - flash).min_by(|a, b| a.abs().total_cmp(&b.abs()))
        else {
            continue;
        };
        if offset.abs() < 0.5 {
            assert!(offset.abs() < 0.005, "flash and beep are {} ms apart", offset * 1e3);
        }
        assert!((flash.fract() - 0.0).min(1.0 - flash.fract()).abs() < 0.005, "on the whole second: {flash}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_says_goodbye_and_deletes_the_session_with_the_token() {
    for location_prefix in ["/session/", "session/"] {
        let mut endpoint = Endpoint::start(Behavior { location_prefix, ..Behavior::default() }).await;
        let mut options = options(Source::TestPattern, endpoint.url("a"));
        options.token = Some("secret".into());
        let mut publisher = Publisher::start(options);
        publisher.wait_until_live().await.unwrap();
        let mut progress = publisher.progress();
        progress.wait_for(|progress| progress.fps > 20.0 && progress.rtt_ms.is_some()).await.unwrap();
        let ending = tokio::spawn(publisher.stop());
        let mut is_bye_seen = false;
        let mut is_deleted = false;
        let seen = endpoint
            .until(|seen| {
                is_bye_seen |= matches!(seen, Seen::Goodbye);
                is_deleted |= matches!(seen, Seen::Deleted { .. });
                is_bye_seen && is_deleted
            })
            .await;
        ending.await.unwrap().unwrap();
        assert_eq!(progress.borrow().state, State::Ended);
        let Seen::Offer { authorization, name, .. } = &seen[0] else { panic!("{:?}", seen[0]) };
        assert_eq!((name.as_str(), authorization.as_deref()), ("a", Some("Bearer secret")));
        let deletes = seen.iter().filter_map(|seen| match seen {
            Seen::Deleted { authorization } => authorization.as_deref(),
            _ => None,
        });
        assert_eq!(deletes.collect::<Vec<_>>(), ["Bearer secret"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn time_limit_ends_it_and_the_summary_counts() {
    let endpoint = Endpoint::start(Behavior::default()).await;
    let mut options = options(Source::TestPattern, endpoint.url("a"));
    options.seconds = Some(1);
    let summary = Publisher::start(options).ended().await.unwrap();
    assert_eq!(summary.publishers, 1);
    assert!((20..=40).contains(&summary.frames_sent), "{summary:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn several_publishers_share_one_encoding_and_each_has_its_own_stream() {
    let mut endpoint = Endpoint::start(Behavior::default()).await;
    let mut options = options(Source::TestPattern, endpoint.url("load"));
    options.count = 4;
    let mut publisher = Publisher::start(options);
    publisher.wait_until_live().await.unwrap();
    let mut progress = publisher.progress();
    progress.wait_for(|progress| progress.live == 4 && progress.fps > 90.0).await.unwrap();
    let ending = tokio::spawn(publisher.stop());
    let mut deleted = 0;
    let seen = endpoint
        .until(|seen| {
            deleted += u32::from(matches!(seen, Seen::Deleted { .. }));
            deleted == 4
        })
        .await;
    let summary = ending.await.unwrap().unwrap();
    assert_eq!(summary.publishers, 4);
    let mut names: Vec<_> = seen
        .iter()
        .filter_map(|seen| match seen {
            Seen::Offer { name, .. } => Some(name.as_str()),
            _ => None,
        })
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["load-1", "load-2", "load-3", "load-4"]);
    // One of the streams, whole: it decodes from its first frame on.
    let ssrc = seen
        .iter()
        .find_map(|seen| match seen {
            Seen::Rtp { is_video: true, packet, .. } => Some(packet.header.ssrc),
            _ => None,
        })
        .unwrap();
    let one: Vec<_> = seen
        .into_iter()
        .filter(|seen| matches!(seen, Seen::Rtp { is_video: true, packet, .. } if packet.header.ssrc == ssrc))
        .collect();
    let (packets, missing) = in_order(&one, true);
    assert_eq!(missing, 0);
    assert!(pictures(Id::H264, &h264_units(&packets)).len() > 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_refused_publisher_ends_all_and_leaves_no_session_behind() {
    let mut endpoint = Endpoint::start(Behavior { refuse_name: Some("load-2"), ..Behavior::default() }).await;
    let mut options = options(Source::TestPattern, endpoint.url("load"));
    options.count = 3;
    let error = Publisher::start(options).ended().await.unwrap_err();
    assert!(matches!(error, shoal_publisher::Error::NameTaken), "{error:?}");
    let mut open = 0i32;
    while let Ok(seen) = endpoint.seen.try_recv() {
        open +=
            i32::from(matches!(seen, Seen::Offer { .. })) - i32::from(matches!(seen, Seen::Deleted { .. }));
    }
    assert_eq!(open, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_udp_is_blocked_media_goes_over_tcp() {
    for transport in [Transport::Tcp, Transport::Auto] {
        let mut endpoint =
            Endpoint::start(Behavior { is_udp_dead: true, has_tcp: true, ..Behavior::default() }).await;
        let mut options = options(Source::TestPattern, endpoint.url("a"));
        options.transport = transport;
        let publisher = Publisher::start(options);
        let seen = endpoint.until(video_frames(45)).await;
        let note = publisher.progress().borrow().note.clone();
        publisher.stop().await.unwrap();
        assert_eq!(note.as_deref(), Some("sending over TCP"), "{transport:?}");
        let (packets, missing) = in_order(&seen, true);
        assert_eq!(missing, 0);
        pictures(Id::H264, &h264_units(&packets));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_both_work_media_goes_over_udp() {
    let mut endpoint = Endpoint::start(Behavior { has_tcp: true, ..Behavior::default() }).await;
    let publisher = Publisher::start(options(Source::TestPattern, endpoint.url("a")));
    endpoint.until(video_frames(45)).await;
    let note = publisher.progress().borrow().note.clone();
    publisher.stop().await.unwrap();
    assert_eq!(note, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_retry_a_lost_server_is_called_again_and_figures_go_on() {
    let mut endpoint = Endpoint::start(Behavior::default()).await;
    let mut options = options(Source::TestPattern, endpoint.url("a"));
    options.retry = true;
    let publisher = Publisher::start(options);
    endpoint.until(video_frames(10)).await;
    endpoint.command(Command::Close);
    endpoint.until(|seen| matches!(seen, Seen::Offer { .. })).await;
    let seen = endpoint.until(video_frames(10)).await;
    let summary = publisher.stop().await.unwrap();
    assert_eq!(summary.reconnects, 1);
    assert!(summary.frames_sent >= 20 && summary.keyframes_sent >= 2, "{summary:?}");
    let (packets, _) = in_order(&seen, true);
    // The new connection has a new SSRC: only its packets, from its first keyframe on, decode alone.
    let newest = packets.last().unwrap().header.ssrc;
    let packets: Vec<_> = packets.into_iter().filter(|packet| packet.header.ssrc == newest).collect();
    pictures(Id::H264, &h264_units(&packets));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drifting_clock_drifts_against_the_receivers_by_what_was_asked() {
    let mut endpoint = Endpoint::start(Behavior::default()).await;
    let mut options = options(Source::TestPattern, endpoint.url("a"));
    options.drift_ppm = 10_000.0;
    options.audio_drift_ppm = -5_000.0;
    let publisher = Publisher::start(options);
    let mut reports = 0;
    let seen = endpoint
        .until(|seen| {
            reports += u32::from(matches!(seen, Seen::Report { is_video: false, .. }));
            reports >= 5
        })
        .await;
    publisher.stop().await.unwrap();
    let reports: Vec<_> = seen
        .iter()
        .filter_map(|seen| match seen {
            Seen::Report { is_video: false, report, unix_us } => Some((report, *unix_us)),
            _ => None,
        })
        .collect();
    let (first, last) = (&reports[1], reports.last().unwrap());
    let received_s = (last.1 - first.1) as f64 / 1e6;
    let reported_s = (last.0.ntp_time - first.0.ntp_time) as f64 / (1u64 << 32) as f64;
    let sounded_s = f64::from(last.0.rtp_time.wrapping_sub(first.0.rtp_time)) / 48_000.0;
    // 30 ms in 3 s, give or take the network's jitter; the sound card's drift is exact.
    let drift = reported_s - received_s;
    assert!((0.015..0.045).contains(&drift), "{} ms in {received_s} s", drift * 1e3);
    assert!((sounded_s / reported_s - 0.995).abs() < 0.0005, "{sounded_s} against {reported_s}");
}
