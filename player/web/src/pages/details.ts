/** The details of the watch page, in words. Only who opens them downloads this, and `graph.ts` with it. */

import type Hls from 'hls.js';

import type { ShoalErrorCode, ShoalStats } from '../api.ts';
import { bytesWords, rateWords } from './words.ts';

export { drawGraph } from './graph.ts';

const reasons: Record<ShoalErrorCode, string> = {
  'not-shoal': 'This stream does not support it: everything comes from the server.',
  'webrtc-absent': 'This browser has no WebRTC, or it is turned off: everything comes from the server.',
  'wasm-refused': 'This browser refuses WebAssembly: everything comes from the server.',
  'core-failed': 'Something went wrong with sharing: everything comes from the server.',
  'tracker-away': 'The tracker can’t be reached: everything comes from the server until it is back.',
  'tracker-refused': 'The tracker refused this viewer: everything comes from the server.',
};

/** What the switch does, or why it does nothing; `stats` is null while there is no player. */
export function sharingWords(isOn: boolean, stats: ShoalStats | null): string {
  if (!isOn) return 'Off: everything comes from the server, and other viewers see nothing of this device.';
  if (stats?.reason) return reasons[stats.reason];
  if (stats?.isMetered) return 'This connection is metered: parts are taken from other viewers, and none are passed on.';
  return 'On: parts come from other viewers and are passed on to them, within half of this line’s uplink.';
}

/** The texts of the figures, by the ids of their elements. */
export function figures(stats: ShoalStats, hls: Hls | null, video: HTMLVideoElement): Record<string, string> {
  const level = hls?.levels[hls.currentLevel];
  const rate = level?.bitrate ? `, ${rateWords(level.bitrate)}` : '';
  return {
    'peer-rate': rateWords(stats.peerRateBps),
    'origin-rate': rateWords(stats.originRateBps),
    'sent-rate': rateWords(stats.sentRateBps),
    totals: `${bytesWords(stats.peerBytes)} / ${bytesWords(stats.originBytes)}`,
    buffer: `${(stats.bufferMs / 1000).toFixed(1)} s`,
    rejected: stats.rejectedBytes > 0 ? bytesWords(stats.rejectedBytes) : 'none',
    picture: video.videoHeight > 0 ? `${video.videoWidth} × ${video.videoHeight}${rate}` : '–',
    tracker: stats.isTrackerJoined ? 'connected' : stats.isSharing ? 'not connected' : 'not used',
  };
}

/** Saves the logs of the page's players as one file. */
export function saveLog(name: string, logs: BlobPart[]): void {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob(logs));
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}
