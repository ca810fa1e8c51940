//! What `ffmpeg` takes for a publisher's media: the yardstick of `bench ingest`, because percents of a core say as much
//! about the core.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::bench_ingest::{Guard, cpu_seconds};
use crate::process;

/// After its start, before measuring.
const SETTLE: Duration = Duration::from_secs(3);

/// Percent of a core that `ffmpeg` takes to write the pictures and the sound of one publisher as HLS: the pictures copied,
/// the sound from Opus to AAC, in real time, from a file and without any network.
pub(crate) fn percent(folder: &Path, span: Duration) -> Result<f64> {
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let source = folder.join("source.mkv");
    process::run(
        "make the yardstick's media",
        Command::new("ffmpeg")
            .args(["-v", "error", "-y"])
            .args(["-f", "lavfi", "-i", "testsrc2=size=1280x720:rate=30:duration=10"])
            .args(["-f", "lavfi", "-i", "sine=frequency=440:beep_factor=4:sample_rate=48000:duration=10"])
            .args(["-ac", "2", "-c:a", "libopus", "-b:a", "96k", "-c:v", "libx264", "-preset", "ultrafast"])
            .args([
                "-tune",
                "zerolatency",
                "-b:v",
                "2500k",
                "-maxrate",
                "2500k",
                "-bufsize",
                "2500k",
                "-g",
                "60",
            ])
            .arg(&source),
    )?;
    let mut ffmpeg = Guard(
        Command::new("ffmpeg")
            .args(["-v", "error", "-re", "-stream_loop", "-1", "-i"])
            .arg(&source)
            .args(["-c:v", "copy", "-c:a", "aac", "-b:a", "128k", "-f", "hls", "-hls_segment_type", "fmp4"])
            .args(["-hls_time", "2", "-hls_flags", "delete_segments", "-y"])
            .arg(folder.join("out.m3u8"))
            .stdin(Stdio::null())
            .spawn()
            .context("start ffmpeg")?,
    );
    std::thread::sleep(SETTLE);
    let (start, before) = (Instant::now(), cpu_seconds(ffmpeg.0.id())?);
    std::thread::sleep(span);
    let after = cpu_seconds(ffmpeg.0.id())?;
    ensure!(ffmpeg.0.try_wait()?.is_none(), "ffmpeg ended before its time");
    Ok((after.0 + after.1 - before.0 - before.1) / start.elapsed().as_secs_f64() * 100.0)
}
