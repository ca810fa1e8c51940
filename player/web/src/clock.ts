/**
 * Reads the clock that Shoal's test pattern draws into its frames, to measure latency from glass to glass.
 *
 * The top strip of a frame, 1/12 of its height and at least 16 px, is divided into 52 columns: white, black, 48 bits
 * (most significant first, white = 1), black, white. The bits are the low 40 bits of the Unix time in milliseconds
 * at which the frame was made, and the XOR of these five bytes. The publisher's side: `ingest/publisher`.
 */

const COLUMNS = 52;
const STRIP_FRACTION = 1 / 12;
const STRIP_PX_MIN = 16;
const LUMA_THRESHOLD = 128;
const TIME_SPAN_MS = 2 ** 40;

/** Decodes the 52 lumas (0 to 255) of the strip's cells into the low 40 bits of a Unix time in milliseconds. Null
 * when guards or checksum say that this is no clock strip. */
export function decodeClock(lumas: ArrayLike<number>): number | null {
  if (lumas.length !== COLUMNS) return null;
  const bit = (column: number): number => ((lumas[column] ?? 0) >= LUMA_THRESHOLD ? 1 : 0);
  if (bit(0) !== 1 || bit(1) !== 0 || bit(50) !== 0 || bit(51) !== 1) return null;
  const bytes = Array.from({ length: 6 }, (_, byte) => {
    let value = 0;
    for (let index = 0; index < 8; index++) value = value * 2 + bit(2 + byte * 8 + index);
    return value;
  });
  const sum = bytes.slice(0, 5).reduce((left, right) => left ^ right, 0);
  if (sum !== bytes[5]) return null;
  return bytes.slice(0, 5).reduce((time, byte) => time * 256 + byte, 0);
}

/** The latency that a strip time means at a wall-clock time, both in milliseconds; right for latencies under 17
 * years, because the strip holds only the low 40 bits. */
export function latencyOf(stripMs: number, nowMs: number): number {
  const late = (nowMs % TIME_SPAN_MS) - stripMs;
  return late < -TIME_SPAN_MS / 2 ? late + TIME_SPAN_MS : late;
}

let canvas: HTMLCanvasElement | null = null;

/** Reads the clock strip of the frame that `video` shows now; null when there is none. */
export function readClock(video: HTMLVideoElement): number | null {
  const { videoWidth: width, videoHeight: height } = video;
  if (width < COLUMNS || height < STRIP_PX_MIN) return null;
  const strip = Math.max(height * STRIP_FRACTION, STRIP_PX_MIN);
  canvas ??= document.createElement('canvas');
  canvas.width = width;
  canvas.height = 1;
  const context = canvas.getContext('2d', { willReadFrequently: true });
  if (!context) return null;
  context.drawImage(video, 0, strip / 2, width, 1, 0, 0, width, 1);
  const { data } = context.getImageData(0, 0, width, 1);
  const lumas = Array.from({ length: COLUMNS }, (_, column) => {
    const at = 4 * Math.floor(((column + 0.5) * width) / COLUMNS);
    return 0.299 * (data[at] ?? 0) + 0.587 * (data[at + 1] ?? 0) + 0.114 * (data[at + 2] ?? 0);
  });
  return decodeClock(lumas);
}

/**
 * Measures glass-to-glass latency in milliseconds at the next frame that `video` presents. Null when the frame has no
 * readable clock, or when no frame comes within `timeoutMs`.
 *
 * The machine's clock must agree with the publisher's: the same machine, or both on NTP.
 */
export function readLatency(video: HTMLVideoElement, timeoutMs = 1000): Promise<number | null> {
  // Firefox has this since 132.
  if (!('requestVideoFrameCallback' in video)) return Promise.resolve(null);
  return new Promise((resolve) => {
    const timer = setTimeout(() => {
      video.cancelVideoFrameCallback(handle);
      resolve(null);
    }, timeoutMs);
    const handle = video.requestVideoFrameCallback((_now, frame) => {
      clearTimeout(timer);
      const time = readClock(video);
      // The frame reaches the glass at its expected display time, a little before or after this callback. Taken
      // relative to now: `timeOrigin` is not corrected when the system's clock is.
      const shownAt = Date.now() + frame.expectedDisplayTime - performance.now();
      resolve(time === null ? null : latencyOf(time, shownAt));
    });
  });
}
