/** What ffmpeg makes of a stream: every frame decoded, and the clock in it read. */

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';

import { run, scratchFolder } from './program.ts';

/** Frames of this size are enough to read the clock from: 52 columns of 10 pixels. */
const [WIDTH, HEIGHT] = [520, 240];
const COLUMNS = 52;

/** What was seen in a stretch of a stream. */
export interface Decoded {
  /** Frames in all. */
  frames: number;
  /** The time in each that has a readable clock, in milliseconds: the low 40 bits of Unix time. */
  clocks: number[];
  /** What ffmpeg had to say. */
  complaints: string;
}

/** The clock in a grey frame, or null. The rule is in `ingest/publisher/src/clock.rs`. */
export function readClock(frame: Uint8Array, width: number, height: number): number | null {
  const row = Math.floor(Math.max(16, Math.floor(height / 12)) / 2);
  const isWhite = (column: number): boolean => {
    const middle = Math.floor(((2 * column + 1) * width) / (2 * COLUMNS));
    let sum = 0;
    for (let y = row - 1; y <= row + 1; y++) {
      for (let x = middle - 1; x <= middle + 1; x++) sum += frame[y * width + x] ?? 0;
    }
    return sum > 9 * 126;
  };
  if (!isWhite(0) || isWhite(1) || isWhite(50) || !isWhite(51)) return null;
  const bytes = [0, 0, 0, 0, 0, 0];
  for (let bit = 0; bit < 48; bit++) {
    const index = bit >> 3;
    bytes[index] = ((bytes[index] ?? 0) << 1) | (isWhite(bit + 2) ? 1 : 0);
  }
  const [checksum = 0, ...time] = bytes.reverse();
  if (time.reduce((sum, byte) => sum ^ byte, 0) !== checksum) return null;
  return time.reverse().reduce((value, byte) => value * 256 + byte, 0);
}

/** Decodes so many seconds of a stream, from the live edge or from its beginning. */
export async function decode(url: string, seconds: number, flags: string[] = []): Promise<Decoded> {
  const raw = `${scratchFolder()}/frames.gray`;
  const { code, stderr } = await run('ffmpeg', [
    ...['-nostdin', '-v', 'error', ...flags, '-i', url, '-t', String(seconds), '-map', '0:v:0', '-fps_mode', 'passthrough', '-enc_time_base', '1:90000'],
    ...['-vf', `scale=${WIDTH}:${HEIGHT}`, '-f', 'rawvideo', '-pix_fmt', 'gray', '-y', raw],
  ]);
  assert.equal(code, 0, stderr);
  const bytes = readFileSync(raw);
  const frames = Math.floor(bytes.length / (WIDTH * HEIGHT));
  const clocks = [];
  for (let index = 0; index < frames; index++) {
    const frame = bytes.subarray(index * WIDTH * HEIGHT, (index + 1) * WIDTH * HEIGHT);
    const clock = readClock(frame, WIDTH, HEIGHT);
    if (clock !== null) clocks.push(clock);
  }
  return { frames, clocks, complaints: stderr.trim() };
}

/**
 * Asserts that ffmpeg decodes video and audio, all of it or so many seconds, and finds nothing wrong. Each picture keeps its own
 * time: at a guessed frame rate two of them, taken in quick succession, would be said to be one and the same.
 */
export async function assertDecodes(url: string, seconds?: number): Promise<void> {
  const { code, stderr } = await run('ffmpeg', [
    ...['-nostdin', '-v', 'error', '-xerror', '-i', url, ...(seconds === undefined ? [] : ['-t', String(seconds)])],
    ...['-map', '0:v:0', '-map', '0:a:0', '-fps_mode', 'passthrough', '-enc_time_base:v', '1:90000', '-f', 'null', '-'],
  ]);
  assert.deepEqual([code, stderr.trim()], [0, '']);
}

/** Asserts that a stretch is what a clock looks like: nearly every frame readable, each later than the one before. */
export function assertClockRuns({ frames, clocks, complaints }: Decoded, seconds: number): void {
  assert.equal(complaints, '', 'ffmpeg decodes without complaint');
  // A publisher that is short of processor time sends fewer than it should, and what it sends is right all the same.
  assert.ok(frames >= seconds * 2, `${frames} frames in ${seconds} s`);
  assert.ok(clocks.length >= frames * 0.9, `${clocks.length} of ${frames} frames have a readable clock`);
  const steps = clocks.slice(1).map((clock, index) => clock - (clocks[index] ?? 0));
  assert.ok(steps.every((step) => step >= 0), `time goes back: ${steps.filter((step) => step < 0)}`);
  const shown = (clocks.at(-1) ?? 0) - (clocks[0] ?? 0);
  assert.ok(Math.abs(shown - seconds * 1000) < 1500, `${shown} ms are shown in ${seconds} s`);
  const age = (Date.now() % 2 ** 40) - (clocks.at(-1) ?? 0);
  assert.ok(age > 0 && age < 30_000, `the last frame is ${age} ms old`);
}
