//! H.264 packets of any container as Annex B, with parameter sets before each keyframe.
//!
//! MP4 and Matroska keep lengths instead of start codes, and parameter sets outside of the packets. libavformat's raw
//! H.264 muxer converts both; it is used here with memory as its file.

use bytes::Bytes;
use ffmpeg_next::{
    Dictionary, Error, Packet, Rational, codec,
    format::{
        context::{Output, StreamIo},
        output_to_stream,
    },
};
use parking_lot::Mutex;
use std::{io::Write, sync::Arc};

/// Converts packets of one stream.
pub(super) struct AnnexB {
    output: Output,
    sink: Sink,
}

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl AnnexB {
    pub(super) fn new(parameters: codec::Parameters) -> Result<Self, Error> {
        let sink = Sink::default();
        let mut output = output_to_stream(StreamIo::from_write(sink.clone())?, None, Some("h264"))?;
        let mut stream = output.add_stream(codec::Id::H264)?;
        stream.set_parameters(parameters);
        stream.set_time_base(Rational(1, 90_000));
        let mut options = Dictionary::new();
        options.set("flush_packets", "1");
        output.write_header_with(options)?;
        Ok(Self { output, sink })
    }

    pub(super) fn convert(&mut self, packet: &Packet) -> Result<Bytes, Error> {
        let mut packet = packet.clone();
        packet.set_stream(0);
        packet.write(&mut self.output)?;
        Ok(std::mem::take(&mut *self.sink.0.lock()).into())
    }
}
