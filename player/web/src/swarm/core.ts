/**
 * The swarm core's face: what `player/wasm` exports, as types, and how the module is loaded.
 *
 * The interface is written out here, so that tests can put a scripted core in its place and type checks do not
 * need a build of the module. Normative: `player/wasm/README.md`.
 */

/** What the core asks for; `poll` returns one of these, 0 for nothing. */
export const Tag = {
  None: 0,
  SendControl: 1,
  SendBlock: 2,
  Fetch: 3,
  CancelFetch: 4,
  FetchRecord: 5,
  Store: 6,
  Hold: 7,
  DropHeld: 8,
  KeepLoaded: 9,
  DropLoaded: 10,
  Evict: 11,
  Deliver: 12,
  Fallback: 13,
  Disconnect: 14,
  Accuse: 15,
  Report: 16,
  Complain: 17,
} as const;

/** Indices into {@link Core.stats} that the driver reads. */
export const Stat = {
  PeerBytes: 0,
  OriginBytes: 1,
  SentBytes: 2,
  DuplicateBytes: 3,
  LateBytes: 4,
  RejectedBytes: 5,
  Pieces: 6,
  Bans: 21,
  UplinkBps: 31,
  BehindMs: 34,
} as const;

/** The size of a block in bytes, as in `segmenter/digest`. */
export const BLOCK_BYTES = 16 * 1024;
/** The header before a block's bytes, in bytes, as in WIRE.md. */
export const BLOCK_HEADER_BYTES = 16;

/** A swarm peer: one viewer of one epoch of one stream. Times are `performance.now()` milliseconds. */
export interface Core {
  wake(now: number): void;
  welcome(now: number, peer: number, neighborsMax: number, uploadPercent: number, reportIntervalMs: number): void;
  trackerLost(now: number): void;
  record(now: number, bytes: Uint8Array): void;
  recordFailed(now: number, rendition: number, msn: number, part: number): void;
  plan(now: number, rendition: number, stripes: number, places: Float64Array): void;
  sharing(now: number, on: boolean): void;
  neighborConnected(now: number, peer: number, rttMs: number): void;
  neighborLost(now: number, peer: number): void;
  message(now: number, peer: number, bytes: Uint8Array): void;
  block(now: number, peer: number, message: Uint8Array): void;
  sendQueue(now: number, peer: number, buffered: number): void;
  fetchBlock(now: number, fetch: number, block: number, bytes: Uint8Array): void;
  fetchFinished(now: number, fetch: number): void;
  fetchFailed(now: number, fetch: number, status: number): void;
  loaded(now: number, rendition: number, msn: number, part: number, bytes: Uint8Array, tookMs: number): void;
  playing(now: number, renditions: Uint8Array): void;
  playhead(now: number, positionMs: number, bufferedUntilMs: number, ratePercent: number, isStalled: boolean): void;
  wantPiece(now: number, request: number, rendition: number, msn: number, part: number, deadline: number): void;
  wantSegment(now: number, request: number, rendition: number, msn: number, deadline: number): void;
  unwant(now: number, request: number): void;
  share(now: number, on: boolean): void;
  metered(now: number, on: boolean): void;
  leave(now: number): void;
  segmentParts(rendition: number, msn: number): Float64Array | undefined;
  poll(): number;
  field(index: number): number;
  bytes(): Uint8Array;
  nextDeadline(): number;
  stats(): Float64Array;
  setStoreBytesMax(bytes: number): void;
  startLog(): void;
  takeLog(): Uint8Array;
  free(): void;
}

/** What makes a core: origin's key (32 bytes), epoch (16 bytes), any number below 2^53. Throws on a bad key. */
export type CoreFactory = (key: Uint8Array, epoch: Uint8Array, seed: number) => Core;

/** What wasm-bindgen generates, as far as it is used here. */
interface Glue {
  default: (options: { module_or_path: string | URL }) => Promise<unknown>;
  SwarmPeer: new (key: Uint8Array, epoch: Uint8Array, seed: number) => Core;
}

let factory: Promise<CoreFactory> | null = null;

/** Loads the WebAssembly module once for all players of the page. A failure is not remembered: the next player may
 * have better luck with the network. */
export function loadCore(wasmUrl: string | URL): Promise<CoreFactory> {
  factory ??= load(wasmUrl).catch((error: unknown) => {
    factory = null;
    throw error;
  });
  return factory;
}

async function load(wasmUrl: string | URL): Promise<CoreFactory> {
  if (typeof WebAssembly !== 'object') throw new Error('this browser has no WebAssembly');
  const glue = (await import('../wasm/shoal_swarm_wasm.js')) as unknown as Glue;
  await glue.default({ module_or_path: wasmUrl });
  return (key, epoch, seed) => new glue.SwarmPeer(key, epoch, seed);
}

/** A seed for the core's own random numbers. `getRandomValues` works on plain http pages as well. */
export function randomSeed(): number {
  const [high = 0, low = 0] = crypto.getRandomValues(new Uint32Array(2));
  return (high & 0x1f_ffff) * 2 ** 32 + low;
}
