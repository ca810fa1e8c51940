//! What is offered: codecs, and a send-only transceiver for each track.

use crate::{
    error::{Context as _, Error},
    frame::Track,
    options::VideoCodec,
};
use bytes::Bytes;
use rtc::{
    media_stream::MediaStreamTrack,
    peer_connection::{
        RTCPeerConnection,
        configuration::media_engine::{
            MIME_TYPE_H264, MIME_TYPE_OPUS, MIME_TYPE_RTX, MIME_TYPE_VP8, MediaEngine,
        },
    },
    rtp_transceiver::{
        RTCRtpSenderId, RTCRtpTransceiverDirection, RTCRtpTransceiverId, RTCRtpTransceiverInit,
        rtp_sender::{
            RTCPFeedback, RTCRtpCodec, RTCRtpCodecParameters, RTCRtpCodingParameters,
            RTCRtpEncodingParameters, RTCRtpHeaderExtensionCapability, RTCRtpRtxParameters, RtpCodecKind,
        },
    },
    shared::error::Error as RtcError,
};

/// The header extension that names a packet's m-line.
pub(super) const MID_URI: &str = "urn:ietf:params:rtp-hdrext:sdes:mid";

/// A track that was offered.
#[derive(Debug)]
pub(super) struct Sender {
    pub(super) track: Track,
    pub(super) id: RTCRtpSenderId,
    pub(super) transceiver: RTCRtpTransceiverId,
    pub(super) ssrc: u32,
    pub(super) payload_type: u8,
    pub(super) mid: Option<(u8, Bytes)>,
    pub(super) sequence: u16,
}

fn video_codec(codec: VideoCodec, profile_level_id: &str) -> RTCRtpCodec {
    let feedback = |typ: &str, parameter: &str| RTCPFeedback { typ: typ.into(), parameter: parameter.into() };
    let (mime_type, sdp_fmtp_line) = match codec {
        VideoCodec::H264 => (
            MIME_TYPE_H264,
            format!("level-asymmetry-allowed=1;packetization-mode=1;profile-level-id={profile_level_id}"),
        ),
        VideoCodec::Vp8 => (MIME_TYPE_VP8, String::new()),
    };
    RTCRtpCodec {
        mime_type: mime_type.into(),
        clock_rate: Track::Video.clock_rate(),
        channels: 0,
        sdp_fmtp_line,
        rtcp_feedback: vec![feedback("nack", ""), feedback("nack", "pli"), feedback("ccm", "fir")],
    }
}

fn audio_codec() -> RTCRtpCodec {
    RTCRtpCodec {
        mime_type: MIME_TYPE_OPUS.into(),
        clock_rate: Track::Audio.clock_rate(),
        channels: 2,
        sdp_fmtp_line: "minptime=10;stereo=1;sprop-stereo=1".into(),
        rtcp_feedback: vec![],
    }
}

pub(super) fn media_engine(codec: VideoCodec, profile_level_id: &str) -> Result<MediaEngine, RtcError> {
    let mut engine = MediaEngine::default();
    let mid = RTCRtpHeaderExtensionCapability { uri: MID_URI.into() };
    engine.register_header_extension(mid, RtpCodecKind::Video, None)?;
    let video = RTCRtpCodecParameters { rtp_codec: video_codec(codec, profile_level_id), payload_type: 102 };
    engine.register_codec(video, RtpCodecKind::Video)?;
    let rtx = RTCRtpCodec {
        mime_type: MIME_TYPE_RTX.into(),
        clock_rate: Track::Video.clock_rate(),
        channels: 0,
        sdp_fmtp_line: "apt=102".into(),
        rtcp_feedback: vec![],
    };
    engine
        .register_codec(RTCRtpCodecParameters { rtp_codec: rtx, payload_type: 103 }, RtpCodecKind::Video)?;
    let audio = RTCRtpCodecParameters { rtp_codec: audio_codec(), payload_type: 111 };
    engine.register_codec(audio, RtpCodecKind::Audio)?;
    Ok(engine)
}

pub(super) fn add_sender(
    connection: &mut RTCPeerConnection,
    track: Track,
    codec: VideoCodec,
    profile_level_id: &str,
) -> Result<Sender, Error> {
    let ssrc = rand::random::<u32>();
    let (kind, name, rtp_codec, rtx) = match track {
        Track::Video => {
            let rtx = RTCRtpRtxParameters { ssrc: rand::random() };
            (RtpCodecKind::Video, "video", video_codec(codec, profile_level_id), Some(rtx))
        }
        Track::Audio => (RtpCodecKind::Audio, "audio", audio_codec(), None),
    };
    let encoding = RTCRtpEncodingParameters {
        rtp_coding_parameters: RTCRtpCodingParameters { ssrc: Some(ssrc), rtx, ..Default::default() },
        active: true,
        codec: rtp_codec,
        ..Default::default()
    };
    // One stream id for both tracks: the receiver keeps them in step.
    let media = MediaStreamTrack::new("shoal".into(), name.into(), name.into(), kind, vec![encoding.clone()]);
    let init = RTCRtpTransceiverInit {
        direction: RTCRtpTransceiverDirection::Sendonly,
        streams: vec!["shoal".into()],
        send_encodings: vec![encoding],
    };
    let transceiver = connection.add_transceiver_from_track(media, Some(init)).context("add a track")?;
    let id = connection
        .rtp_transceiver(transceiver)
        .and_then(|transceiver| transceiver.sender())
        .ok_or_else(|| Error::BadAnswer("the engine made no sender".into()))?;
    Ok(Sender { track, id, transceiver, ssrc, payload_type: 0, mid: None, sequence: rand::random() })
}
