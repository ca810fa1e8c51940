//! Writes CMAF: one libavformat muxer for each rendition, one `moof` and `mdat` for each part, in memory.
//!
//! The only module that talks to libavformat and libavutil by hand, because `ffmpeg-next` has no output to memory.
//! It knows nothing of parts and segments: samples go in, and whoever calls [`Muxer::flush`] gets the bytes since
//! the last call. Times are ticks of the track's own clock and must continue without holes; `cut` sees to that.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_int, c_void};
use std::ptr;

use bytes::Bytes;
use ffmpeg_next::ffi;

use crate::frame::VideoCodec;

/// Ticks per second of video tracks.
pub(crate) const VIDEO_TIMESCALE: u32 = 90_000;

/// Ticks per second of Opus tracks: its samples, whatever they were recorded with.
const OPUS_TIMESCALE: u32 = 48_000;

/// What a track's sample entry says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SampleEntry {
    Video {
        codec: VideoCodec,
        width: u32,
        height: u32,
        config: Bytes,
    },
    /// AAC; `config` is the AudioSpecificConfig.
    Aac {
        sample_rate: u32,
        channels: u8,
        config: Bytes,
    },
    /// Opus at 48 kHz; `config` is the identification header of RFC 7845.
    Opus {
        channels: u8,
        config: Bytes,
    },
}

/// libavformat refused something. The stream cannot go on with this track.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("libavformat: {action}: {cause}")]
pub(crate) struct MuxError {
    action: &'static str,
    cause: ffmpeg_next::Error,
}

/// Where libavformat's output gathers until it is taken. Boxed, because libavformat holds its address.
#[derive(Default)]
struct Sink(Vec<u8>);

/// One rendition's muxer.
pub(crate) struct Muxer {
    context: *mut ffi::AVFormatContext,
    packet: *mut ffi::AVPacket,
    /// Written to by libavformat through a raw pointer: never borrowed while a call into it runs.
    sink: *mut Sink,
    is_open: bool,
}

impl std::fmt::Debug for Muxer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Muxer").finish_non_exhaustive()
    }
}

/// As large as a typical part's box header writes; larger writes go past the buffer.
const AVIO_BUFFER_BYTES: usize = 4096;

impl Muxer {
    /// Opens a muxer and returns it with its initialization section (`ftyp` and `moov`).
    pub(crate) fn open(entry: &SampleEntry) -> Result<(Self, Bytes), MuxError> {
        Self::open_for(entry, false)
    }

    /// The same for pictures that are not decoded in the order in which they are shown.
    pub(crate) fn open_reordered(entry: &SampleEntry) -> Result<(Self, Bytes), MuxError> {
        Self::open_for(entry, true)
    }

    fn open_for(entry: &SampleEntry, is_reordered: bool) -> Result<(Self, Bytes), MuxError> {
        // SAFETY: each pointer is checked before it is used, and `Muxer` owns it from the moment it exists, so that
        // every early return frees it. The strings are NUL-terminated literals. The extradata is allocated by
        // libavutil with the padding that it demands.
        unsafe {
            let mut muxer = Self {
                context: ptr::null_mut(),
                packet: ffi::av_packet_alloc(),
                sink: Box::into_raw(Box::default()),
                is_open: false,
            };
            check("allocate", if muxer.packet.is_null() { NO_MEMORY } else { 0 })?;
            check(
                "allocate",
                ffi::avformat_alloc_output_context2(
                    &mut muxer.context,
                    ptr::null(),
                    c"mp4".as_ptr(),
                    ptr::null(),
                ),
            )?;
            muxer.attach_sink()?;
            muxer.add_stream(entry)?;

            // No edit list and absolute times: `tfdt` says where on the stream's timeline a part is. Fragments are
            // cut only where we say so.
            let mut options = ptr::null_mut();
            let mut set =
                |key: &CStr, value: &CStr| ffi::av_dict_set(&mut options, key.as_ptr(), value.as_ptr(), 0);
            // As CMAF, libavformat would move decode times so that the first picture's offset is 0: each segment by another
            // distance, and not every reader takes the negative offsets behind it for what they are.
            let flags = match is_reordered {
                false => c"empty_moov+default_base_moof+frag_custom+frag_discont+cmaf",
                true => c"empty_moov+default_base_moof+frag_custom+frag_discont",
            };
            let set = set(c"movflags", flags)
                .min(if is_reordered { set(c"avoid_negative_ts", c"disabled") } else { 0 })
                .min(set(c"use_editlist", c"0"))
                .min(set(c"video_track_timescale", c"90000"));
            let written = if set < 0 { set } else { ffi::avformat_write_header(muxer.context, &mut options) };
            ffi::av_dict_free(&mut options);
            check("write the initialization section", written)?;
            muxer.is_open = true;
            ffi::avio_flush((*muxer.context).pb);
            let init = muxer.take();
            Ok((muxer, init))
        }
    }

    /// Adds a sample. `duration` must reach to the next sample, across parts too.
    pub(crate) fn write(
        &mut self,
        start: i64,
        duration: i64,
        is_keyframe: bool,
        data: &Bytes,
    ) -> Result<(), MuxError> {
        self.write_reordered(start, start, duration, is_keyframe, data)
    }

    /// Adds a sample that is decoded at `start` and presented at `shown`, of a muxer for that.
    pub(crate) fn write_reordered(
        &mut self,
        start: i64,
        shown: i64,
        duration: i64,
        is_keyframe: bool,
        data: &Bytes,
    ) -> Result<(), MuxError> {
        // SAFETY: the packet is ours and empty; `av_new_packet` gives it `data.len()` bytes before they are copied.
        // `av_write_frame` does not keep it, and `av_packet_unref` frees what it holds on every path.
        unsafe {
            let length = c_int::try_from(data.len()).unwrap_or(c_int::MAX);
            check("allocate", ffi::av_new_packet(self.packet, length))?;
            ptr::copy_nonoverlapping(data.as_ptr(), (*self.packet).data, length as usize);
            (*self.packet).pts = shown;
            (*self.packet).dts = start;
            (*self.packet).duration = duration;
            (*self.packet).stream_index = 0;
            (*self.packet).flags = if is_keyframe { ffi::AV_PKT_FLAG_KEY } else { 0 };
            let written = ffi::av_write_frame(self.context, self.packet);
            ffi::av_packet_unref(self.packet);
            check("write a sample", written)
        }
    }

    /// Ends the fragment and returns its bytes: one `moof` and one `mdat`.
    pub(crate) fn flush(&mut self) -> Result<Bytes, MuxError> {
        // SAFETY: a null packet is libavformat's documented way to end a fragment; the context is open.
        unsafe {
            check("end a fragment", ffi::av_write_frame(self.context, ptr::null_mut()))?;
            ffi::avio_flush((*self.context).pb);
        }
        Ok(self.take())
    }

    fn take(&mut self) -> Bytes {
        // SAFETY: the sink lives as long as `self`, and no call into libavformat runs now.
        Bytes::from(unsafe { std::mem::take(&mut (*self.sink).0) })
    }

    /// Makes libavformat write into the sink.
    unsafe fn attach_sink(&mut self) -> Result<(), MuxError> {
        // SAFETY: libavformat owns the buffer after `avio_alloc_context`; `drop` frees both.
        unsafe {
            let buffer = ffi::av_malloc(AVIO_BUFFER_BYTES).cast::<u8>();
            check("allocate", if buffer.is_null() { NO_MEMORY } else { 0 })?;
            let pb = ffi::avio_alloc_context(
                buffer,
                AVIO_BUFFER_BYTES as c_int,
                1,
                self.sink.cast::<c_void>(),
                None,
                Some(write_to_sink),
                None,
            );
            if pb.is_null() {
                ffi::av_free(buffer.cast());
                return check("allocate", NO_MEMORY);
            }
            (*self.context).pb = pb;
            (*self.context).flags |= ffi::AVFMT_FLAG_CUSTOM_IO | ffi::AVFMT_FLAG_BITEXACT;
            Ok(())
        }
    }

    unsafe fn add_stream(&mut self, entry: &SampleEntry) -> Result<(), MuxError> {
        // SAFETY: the stream and its parameters belong to the context, which frees them.
        unsafe {
            let stream = ffi::avformat_new_stream(self.context, ptr::null());
            check("add a track", if stream.is_null() { NO_MEMORY } else { 0 })?;
            let parameters = (*stream).codecpar;
            let (config, timescale) = match entry {
                SampleEntry::Video { codec, width, height, config } => {
                    (*parameters).codec_type = ffi::AVMediaType::AVMEDIA_TYPE_VIDEO;
                    (*parameters).codec_id = match codec {
                        VideoCodec::H264 => ffi::AVCodecID::AV_CODEC_ID_H264,
                        VideoCodec::Vp8 => ffi::AVCodecID::AV_CODEC_ID_VP8,
                        VideoCodec::Vp9 => ffi::AVCodecID::AV_CODEC_ID_VP9,
                        VideoCodec::Av1 => ffi::AVCodecID::AV_CODEC_ID_AV1,
                    };
                    (*parameters).width = c_int::try_from(*width).unwrap_or(c_int::MAX);
                    (*parameters).height = c_int::try_from(*height).unwrap_or(c_int::MAX);
                    // For VP9 libavformat writes the record anew from these, and an empty one without them.
                    if let (VideoCodec::Vp9, [1, _, _, _, profile, level, depth, ..]) = (codec, &config[..]) {
                        (*parameters).format = ffi::AVPixelFormat::AV_PIX_FMT_YUV420P as c_int;
                        (*parameters).profile = c_int::from(*profile);
                        (*parameters).level = c_int::from(*level);
                        (*parameters).color_range = match depth & 1 {
                            0 => ffi::AVColorRange::AVCOL_RANGE_MPEG,
                            _ => ffi::AVColorRange::AVCOL_RANGE_JPEG,
                        };
                    }
                    (config, VIDEO_TIMESCALE)
                }
                SampleEntry::Aac { sample_rate, channels, config } => {
                    (*parameters).codec_id = ffi::AVCodecID::AV_CODEC_ID_AAC;
                    set_audio(parameters, *sample_rate, *channels, 1024);
                    (config, *sample_rate)
                }
                SampleEntry::Opus { channels, config } => {
                    (*parameters).codec_id = ffi::AVCodecID::AV_CODEC_ID_OPUS;
                    set_audio(parameters, OPUS_TIMESCALE, *channels, 960);
                    (config, OPUS_TIMESCALE)
                }
            };
            (*stream).time_base = ffi::AVRational { num: 1, den: timescale as c_int };
            if !config.is_empty() {
                let padded = config.len() + ffi::AV_INPUT_BUFFER_PADDING_SIZE as usize;
                let extradata = ffi::av_mallocz(padded).cast::<u8>();
                check("allocate", if extradata.is_null() { NO_MEMORY } else { 0 })?;
                ptr::copy_nonoverlapping(config.as_ptr(), extradata, config.len());
                (*parameters).extradata = extradata;
                (*parameters).extradata_size = config.len() as c_int;
            }
            Ok(())
        }
    }
}

impl Drop for Muxer {
    fn drop(&mut self) {
        // SAFETY: every pointer is null or ours; the trailer frees what the header allocated. The sink is freed
        // last, because the trailer still writes to it.
        unsafe {
            if !self.context.is_null() {
                if self.is_open {
                    ffi::av_write_trailer(self.context);
                }
                let pb = (*self.context).pb;
                if !pb.is_null() {
                    ffi::av_freep((&raw mut (*pb).buffer).cast());
                    ffi::avio_context_free(&raw mut (*self.context).pb);
                }
                ffi::avformat_free_context(self.context);
            }
            ffi::av_packet_free(&mut self.packet);
            drop(Box::from_raw(self.sink));
        }
    }
}

const NO_MEMORY: c_int = ffi::AVERROR(ffi::ENOMEM as c_int);

fn check(action: &'static str, result: c_int) -> Result<(), MuxError> {
    if result < 0 { Err(MuxError { action, cause: ffmpeg_next::Error::from(result) }) } else { Ok(()) }
}

/// # Safety
/// `parameters` must be valid.
unsafe fn set_audio(
    parameters: *mut ffi::AVCodecParameters,
    sample_rate: u32,
    channels: u8,
    frame_size: c_int,
) {
    // SAFETY: by contract.
    unsafe {
        (*parameters).codec_type = ffi::AVMediaType::AVMEDIA_TYPE_AUDIO;
        (*parameters).sample_rate = sample_rate as c_int;
        (*parameters).frame_size = frame_size;
        ffi::av_channel_layout_default(&raw mut (*parameters).ch_layout, c_int::from(channels));
    }
}

/// libavformat's write callback.
///
/// # Safety
/// `opaque` is the muxer's sink, `data` has `length` bytes.
unsafe extern "C" fn write_to_sink(opaque: *mut c_void, data: *mut u8, length: c_int) -> c_int {
    // SAFETY: by contract; nobody else borrows the sink while libavformat runs.
    unsafe {
        let sink = &mut *opaque.cast::<Sink>();
        sink.0.extend_from_slice(std::slice::from_raw_parts(data, length as usize));
    }
    length
}

#[cfg(test)]
mod tests {
    use super::*;

    fn aac() -> SampleEntry {
        SampleEntry::Aac { sample_rate: 48_000, channels: 2, config: Bytes::from_static(&[0x11, 0x90]) }
    }

    /// The four-letter names and payloads of the boxes in `bytes`.
    fn boxes(mut bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
        let mut found = Vec::new();
        while bytes.len() >= 8 {
            let length = u32::from_be_bytes(bytes[..4].try_into().unwrap()) as usize;
            found.push((String::from_utf8_lossy(&bytes[4..8]).into_owned(), bytes[8..length].to_vec()));
            bytes = &bytes[length..];
        }
        found
    }

    fn names(bytes: &[u8]) -> Vec<String> {
        boxes(bytes).into_iter().map(|(name, _)| name).filter(|name| name != "styp").collect()
    }

    fn decode_time(part: &[u8]) -> u64 {
        let at = part.windows(4).position(|name| name == b"tfdt").unwrap();
        assert_eq!(part[at + 4], 1, "64-bit times");
        u64::from_be_bytes(part[at + 8..at + 16].try_into().unwrap())
    }

    #[test]
    fn vp9_record_reaches_the_sample_entry() {
        let config = Bytes::from_static(&[1, 0, 0, 0, 0, 31, 0x82, 1, 1, 1, 0, 0]);
        let entry = SampleEntry::Video { codec: VideoCodec::Vp9, width: 640, height: 360, config };
        let (_muxer, init) = Muxer::open(&entry).unwrap();
        let at = init.windows(4).position(|name| name == b"vpcC").expect("a vpcC box");
        assert_eq!(init[at - 4..at], [0, 0, 0, 20], "length");
        assert_eq!(init[at + 4..at + 10], [1, 0, 0, 0, 0, 31], "version, flags, profile, level");
        assert_eq!(init[at + 10] >> 4, 8, "bits");
    }

    #[test]
    fn opus_has_its_header_in_the_sample_entry() {
        let config = Bytes::from_static(crate::audio::OPUS_CONFIG);
        let (_muxer, init) = Muxer::open(&SampleEntry::Opus { channels: 2, config }).unwrap();
        let at = init.windows(4).position(|name| name == b"dOps").expect("a dOps box");
        // Version 0, two channels, pre-skip 312, 48 kHz, no gain, family 0 (Opus in ISOBMFF, 4.3.2).
        assert_eq!(init[at + 4..at + 15], [0, 2, 0x01, 0x38, 0, 0, 0xbb, 0x80, 0, 0, 0]);
        assert!(init.windows(4).any(|name| name == b"Opus"), "an Opus sample entry");
        let mdhd = init.windows(4).position(|name| name == b"mdhd").unwrap();
        assert_eq!(init[mdhd + 16..mdhd + 20], 48_000u32.to_be_bytes(), "timescale");
    }

    #[test]
    fn part_is_one_moof_and_one_mdat_at_its_absolute_time() {
        let (mut muxer, init) = Muxer::open(&aac()).unwrap();
        assert_eq!(names(&init), ["ftyp", "moov"]);
        let mut time = 48_000 * 3_600;
        for _ in 0..3 {
            let start = time;
            for _ in 0..23 {
                muxer.write(time, 1024, true, &Bytes::from_static(&[1; 100])).unwrap();
                time += 1024;
            }
            let part = muxer.flush().unwrap();
            assert_eq!(names(&part), ["moof", "mdat"]);
            assert_eq!(decode_time(&part), start as u64);
        }
    }

    #[test]
    fn broken_configuration_is_an_error_and_frees_everything() {
        let entry = SampleEntry::Video {
            codec: VideoCodec::H264,
            width: 0,
            height: 0,
            config: Bytes::from_static(&[9, 9]),
        };
        for _ in 0..100 {
            assert!(Muxer::open(&entry).is_err());
        }
    }

    #[test]
    fn initialization_section_is_the_same_for_the_same_track() {
        assert_eq!(Muxer::open(&aac()).unwrap().1, Muxer::open(&aac()).unwrap().1);
    }
}
