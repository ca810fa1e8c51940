/**
 * `@shoal/player`: an hls.js plug-in that takes the parts of a live stream from other viewers.
 *
 * ```ts
 * const hls = new Hls({ lowLatencyMode: true });
 * const shoal = attach(hls);
 * hls.loadSource('https://example.org/live/demo/index.m3u8');
 * hls.attachMedia(video);
 * ```
 */

export { Shoal, attach } from './shoal.ts';
export type { ShoalError, ShoalErrorCode, ShoalEvents, ShoalOptions, ShoalState, ShoalStats } from './api.ts';
export type { AuditEntry } from './audit.ts';
export type { Sample } from './meter.ts';
export { fingerprint } from './swarm/fingerprint.ts';
export { LiveFollower } from './follow.ts';
export { liveConfig } from './live-config.ts';
