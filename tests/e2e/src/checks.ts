/** Checks that several tests share. */

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';

import { run, shoalPath } from './program.ts';
import type { AuditEntry } from './viewer.ts';

/** Asserts that everything a player was given is what the origin has. Gives the number of bytes compared. */
export async function assertVerified(entries: AuditEntry[]): Promise<number> {
  const media = entries.filter((entry) => !/\/init-\d+\.mp4$/.test(entry.url));
  assert.ok(media.length > 0, 'the player was given something');
  const resources = new Map<string, Buffer>();
  let compared = 0;
  for (const entry of media) {
    if (!resources.has(entry.url)) {
      const response = await fetch(entry.url);
      // What has left the live window meanwhile is no longer there to be compared.
      if (response.status === 404 || response.status === 410) continue;
      assert.equal(response.status, 200, entry.url);
      resources.set(entry.url, Buffer.from(await response.arrayBuffer()));
    }
    const resource = resources.get(entry.url) ?? Buffer.alloc(0);
    const range = resource.subarray(entry.offset, entry.offset + entry.length);
    assert.equal(range.length, entry.length, `${entry.url}: length`);
    assert.equal(createHash('sha256').update(range).digest('hex'), entry.sha256, `${entry.url}: bytes`);
    compared += entry.length;
  }
  const given = media.reduce((sum, { length }) => sum + length, 0);
  assert.ok(compared > given / 2, `${compared} of ${given} bytes could be compared`);
  return compared;
}

/** Rules about when something comes, such as a keyframe that was asked for: a publisher breaks them whose machine is too slow. */
const OF_THE_CLOCK = ['not-updated', 'renditions-apart', 'independent-segments-missing', 'segment-without-keyframe'];

/** Asserts that `shoal lint`, following a live stream for some seconds, finds no rule broken. */
export async function assertConforms(server: string, stream: string, seconds = 8): Promise<void> {
  const url = `${server}/live/${stream}/index.m3u8`;
  const { code, stdout, stderr } = await run(shoalPath(), ['lint', url, '--seconds', String(seconds), '--json']);
  assert.ok(code === 0 || code === 1, `it could not be judged: ${stderr}`);
  const report = JSON.parse(stdout) as { media_files: number; broken: Record<string, Record<string, unknown>> };
  const broken = Object.entries(report.broken).flatMap(([playlist, rules]) =>
    Object.entries(rules).filter(([rule]) => !OF_THE_CLOCK.includes(rule)).map((found) => [playlist, ...found]),
  );
  assert.deepEqual(broken, [], stream);
  assert.ok(report.media_files > 4, `${report.media_files} files were looked into`);
}

/** A part of a picture. */
export interface Area {
  x: number;
  y: number;
  width: number;
  height: number;
}

/** An area's pixels as grey values, decoded by ffmpeg. */
export async function greyPixels(png: Uint8Array, area: Area, folder: string): Promise<Uint8Array> {
  const { writeFile, readFile } = await import('node:fs/promises');
  const [source, raw] = [`${folder}/shot.png`, `${folder}/shot.gray`];
  await writeFile(source, png);
  const crop = `crop=${area.width}:${area.height}:${area.x}:${area.y}`;
  const { code, stderr } = await run('ffmpeg', ['-v', 'error', '-y', '-i', source, '-vf', crop, '-f', 'rawvideo', '-pix_fmt', 'gray', raw]);
  assert.equal(code, 0, stderr);
  return readFile(raw);
}

/** The mean difference of two pictures' grey values. */
export function difference(one: Uint8Array, other: Uint8Array): number {
  assert.equal(one.length, other.length, 'pictures of the same size');
  let sum = 0;
  for (let index = 0; index < one.length; index++) sum += Math.abs((one[index] ?? 0) - (other[index] ?? 0));
  return sum / one.length;
}

/** The standard deviation of a picture's grey values: 0 for a single colour. */
export function contrast(pixels: Uint8Array): number {
  const mean = pixels.reduce((sum, value) => sum + value, 0) / pixels.length;
  return Math.sqrt(pixels.reduce((sum, value) => sum + (value - mean) ** 2, 0) / pixels.length);
}

/**
 * Asserts that a server's log tells nobody's address and no session description: what stands at info and above is
 * read by people and kept.
 */
export function assertDiscreet(log: string): void {
  assert.ok(log.length > 0, 'something was logged');
  const secrets: [string, RegExp][] = [
    // Versions such as 5.1.6 have three numbers; addresses four.
    ['an IPv4 address', /\b(?!0\.0\.0\.0)(?:\d{1,3}\.){3}\d{1,3}\b/],
    ['an IPv6 address', /\b(?:[0-9a-f]{1,4}:){4,}[0-9a-f]{1,4}\b/i],
    ['a session description', /\bv=0\b|\ba=(?:candidate|fingerprint|ice-)|candidate:/],
    ['ICE credentials', /ice-pwd|ufrag/],
  ];
  for (const [what, pattern] of secrets) {
    const line = log.split('\n').find((text) => pattern.test(text));
    assert.equal(line, undefined, `the log tells ${what}`);
  }
}
