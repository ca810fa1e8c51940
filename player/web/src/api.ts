/** The types that users of the package see: options, states, errors, statistics, events. */

import type { Sample } from './meter.ts';

/** What `attach` can be told. */
export interface ShoalOptions {
  /** Whether to take part in the swarm from the start. Default true. */
  sharing?: boolean;
  /** Whether parts are passed on to other viewers; if not, they are only taken. Default: on, except on phones whose browser does
   * not tell whether they are on cellular (iOS). Never where the browser says that the connection is metered. */
  upload?: boolean;
  /** A viewer token, where the stream wants one; or what gets one whenever it is needed, because tokens end. One that is
   * bound to this page names its `fingerprint()`. */
  token?: string | (() => Promise<string>);
  /** Where the WebAssembly module is: `swarm.wasm`, with `log` `swarm-log.wasm`. Default: beside this script. */
  wasmUrl?: string | URL;
  /** Where the module is that checks signatures in browsers that can't: old ones, and all on plain http pages. Others do not load it.
   * Default: `verify.wasm` beside this script. */
  verifyUrl?: string | URL;
  /** The piece store's limit in bytes. Default 64 MB, on phones 24 MB. */
  storeBytesMax?: number;
  /** Keep a ledger of everything handed to hls.js: see `Shoal.getAudit`. Default false. */
  audit?: boolean;
  /** Record everything that happens to the swarm core: see `Shoal.takeLog`. Default false. */
  log?: boolean;
}

/**
 * Where the stream comes from now.
 * - `idle`: no playlist of Shoal's was loaded yet, or playback has been paused for a minute.
 * - `off`: the viewer turned sharing off.
 * - `origin`: everything from the origin, because of {@link ShoalStats.reason}.
 * - `joining`: from the origin, until the tracker has answered.
 * - `swarm`: from peers and the origin, as the core decides.
 */
export type ShoalState = 'idle' | 'off' | 'origin' | 'joining' | 'swarm';

/** Why peers are not used, or not as well as they could be. None of these stops playback. */
export type ShoalErrorCode =
  /** The playlist has no session data of Shoal's: another origin, or `attach` came after `loadSource`. */
  | 'not-shoal'
  /** This browser has no WebRTC data channels, or a policy forbids them. */
  | 'webrtc-absent'
  /** The module could not be loaded or compiled: an old browser, a policy, the network. */
  | 'wasm-refused'
  /** The core threw. */
  | 'core-failed'
  /** The tracker can't be reached; it is tried again. */
  | 'tracker-away'
  /** The tracker refuses this viewer for good. */
  | 'tracker-refused';

/** Something went wrong that does not stop playback. */
export interface ShoalError {
  code: ShoalErrorCode;
  /** For developers. */
  message: string;
  /** Always false: peers are an optimisation. */
  fatal: false;
}

/** Measurements; bytes count from `attach`. */
export interface ShoalStats {
  state: ShoalState;
  /** Why the state is `origin`; null otherwise. */
  reason: ShoalErrorCode | null;
  isSharing: boolean;
  /** Whether nothing is uploaded because the connection is metered, or {@link ShoalOptions.upload} is false. */
  isMetered: boolean;
  /** Whether the operator wants the viewer's consent before others see this device's address: `Shoal.consent`. */
  needsConsent: boolean;
  /** Whether the tracker's connection stands. */
  isTrackerJoined: boolean;
  /** Viewers with whom data channels are open. */
  neighbors: number;
  /** Verified media bytes from peers. */
  peerBytes: number;
  /** Media bytes from the origin, useful or not. */
  originBytes: number;
  /** Media bytes sent to peers. */
  sentBytes: number;
  /** Bytes that came twice or too late. */
  wasteBytes: number;
  /** Bytes that did not match their signed record; none of them was played. */
  rejectedBytes: number;
  /** peerBytes / (peerBytes + originBytes) since attach, and of the last 15 seconds; null before there are any. */
  peerShare: number | null;
  peerShareNow: number | null;
  /** Means of the last 5 seconds, in bit/s. */
  peerRateBps: number;
  originRateBps: number;
  sentRateBps: number;
  /** hls.js's estimate of how far the playhead is behind the live edge, in milliseconds; 0 while unknown. */
  latencyMs: number;
  /** Media ahead of the playhead, in milliseconds. */
  bufferMs: number;
  /** Time that the swarm core took of the page's main thread, with carrying out what it asked for: copies to and from the piece
   * store, sending; in milliseconds. Not in it: hashes and signatures, which WebCrypto does elsewhere, what the browser does for its
   * connections, cutting responses into blocks, reading the tracker's messages, and the copies that the loader makes. */
  busyMs: number;
  /** Bytes held for other viewers. */
  storeBytes: number;
  /** The measured uplink in bit/s, 0 while unknown. */
  uplinkBps: number;
  /** One sample a second of the last minute, oldest first. */
  history: readonly Sample[];
  /** The swarm core's own counters, in the order of `player/wasm/README.md`; empty without a core. */
  counters: number[];
}

/** Events of `Shoal.on`. */
export interface ShoalEvents {
  /** The state changed. */
  state: ShoalState;
  /** Once a second. */
  stats: ShoalStats;
  /** The number of neighbors changed. */
  neighbors: number;
  /** Something went wrong; playback goes on. */
  error: ShoalError;
  /** The tracker says that the stream has ended. */
  ended: undefined;
  /** A request of hls.js was answered by the swarm. */
  delivered: { url: string; peerBytes: number; originBytes: number };
}
