/** What the swarm core needs to know of the player, read from hls.js and its video element. Pure reading, no state. */

import type Hls from 'hls.js';
import type { LevelDetails } from 'hls.js';

/** Gaps up to this length are played over, in seconds; hls.js's own `maxBufferHole`. */
const GAP_MAX_S = 0.1;

/** The program date time (Unix milliseconds) at a time of the video element; null where the playlist has none. */
export function programTimeAt(details: Pick<LevelDetails, 'fragments' | 'fragmentHint'>, time: number): number | null {
  const fragments = details.fragmentHint ? [...details.fragments, details.fragmentHint] : details.fragments;
  let found: number | null = null;
  for (const { start, programDateTime } of fragments) {
    if (programDateTime === null) continue;
    // Before the first fragment its clock is extended backwards; after the last one, forwards.
    if (found !== null && start > time) break;
    found = programDateTime + (time - start) * 1000;
  }
  return found;
}

/** Seconds of media ahead of `time` without a gap. */
export function bufferedAhead(buffered: TimeRanges, time: number): number {
  let end = time;
  for (let index = 0; index < buffered.length; index++) {
    if (buffered.start(index) <= end + GAP_MAX_S) end = Math.max(end, buffered.end(index));
  }
  return end - time;
}

/** A stall is over when playback has advanced by this much, in seconds. */
const STALL_OVER_S = 0.05;

/** Whether playback that stalled at one time of the video element goes on, seen from a later `timeupdate`. */
export function isStallOver(stalledAt: number, time: number): boolean {
  return Math.abs(time - stalledAt) > STALL_OVER_S;
}

/** The playlist URLs of what hls.js loads now: one video rendition, and one of audio where it is apart. */
export function playingUrls(hls: Hls): string[] {
  const level = hls.levels[hls.loadLevel] ?? hls.levels[hls.currentLevel];
  const audio = hls.audioTracks[hls.audioTrack];
  return [level?.uri, audio?.url].filter((url): url is string => typeof url === 'string' && url !== '');
}

interface Connection extends EventTarget {
  saveData?: boolean;
  type?: string;
}

/** The browser's network information, where it has any. */
export function connection(): Connection | null {
  return (navigator as { connection?: Connection }).connection ?? null;
}

/** Whether this is a phone. */
export function isPhone(): boolean {
  return matchMedia('(pointer: coarse) and (max-device-width: 900px)').matches;
}

/** Bytes that the piece store may hold: 64 MB, and less on phones, which end pages that take too much. */
export function defaultStoreBytesMax(): number {
  const { deviceMemory } = navigator as { deviceMemory?: number };
  return (isPhone() || (deviceMemory ?? 8) < 4 ? 24 : 64) * 1024 * 1024;
}
