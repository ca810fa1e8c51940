/**
 * The swarm core's face: what `player/wasm` exports, as types, and how the module is loaded.
 *
 * The interface is written out here, so that tests can put a scripted core in its place and type checks do not
 * need a build of the module. Normative: `player/wasm/README.md`.
 */

/** What the core asks for; `poll` returns one of these, 0 for nothing. */
export enum Tag {
  None = 0,
  SendControl = 1,
  SendBlock = 2,
  Fetch = 3,
  CancelFetch = 4,
  FetchRecord = 5,
  Store = 6,
  Hold = 7,
  DropHeld = 8,
  KeepLoaded = 9,
  DropLoaded = 10,
  Evict = 11,
  Deliver = 12,
  Fallback = 13,
  Disconnect = 14,
  Accuse = 15,
  Report = 16,
  Complain = 17,
  CheckRecord = 18,
}

/** Indices into {@link Core.stats}. */
export enum Stat {
  DuplicateBytes,
  LateBytes,
  RejectedBytes,
  UplinkBps,
}

/** The length of a block in a piece of `length` bytes, as in `segmenter/digest`; the last one may be shorter. */
export function blockBytes(length: number): number {
  if (length <= 0x1_0000) return 4096;
  return length <= 0x2_0000 ? 8192 : BLOCK_BYTES_MAX;
}
/** No block is longer, in bytes. */
export const BLOCK_BYTES_MAX = 16384;
/** The header before a block's bytes, in bytes, as in WIRE.md. */
export const BLOCK_HEADER_BYTES = 16;

/** A swarm peer: one viewer of one epoch of one stream, an instance of the module. Times are `performance.now()` milliseconds. */
export interface Core {
  wake(now: number): void;
  welcome(now: number, peer: number, neighborsMax: number, uploadPercent: number, reportIntervalMs: number): void;
  trackerLost(now: number): void;
  record(now: number, bytes: Uint8Array): void;
  recordChecked(now: number, check: number, isSigned: boolean): void;
  recordFailed(now: number, rendition: number, msn: number, part: number): void;
  plan(now: number, rendition: number, stripes: number, places: Float64Array): void;
  sharing(now: number, on: boolean): void;
  neighborConnected(now: number, peer: number): void;
  neighborLost(now: number, peer: number): void;
  message(now: number, peer: number, bytes: Uint8Array): void;
  block(now: number, peer: number, header: Uint8Array, length: number, digest: Uint8Array): void;
  sendQueue(now: number, peer: number, buffered: number): void;
  fetchBlock(now: number, fetch: number, block: number, length: number, digest: Uint8Array): void;
  fetchFinished(now: number, fetch: number): void;
  fetchFailed(now: number, fetch: number, status: number): void;
  loaded(now: number, rendition: number, msn: number, part: number, length: number, digests: Uint8Array, tookMs: number): void;
  playing(now: number, renditions: Uint8Array): void;
  playhead(now: number, positionMs: number, bufferedUntilMs: number, ratePercent: number, isStalled: boolean): void;
  wantPiece(now: number, request: number, rendition: number, msn: number, part: number): void;
  wantSegment(now: number, request: number, rendition: number, msn: number): void;
  unwant(now: number, request: number): void;
  metered(now: number, on: boolean): void;
  leave(now: number): void;
  segmentParts(rendition: number, msn: number): Float64Array | undefined;
  poll(): Tag;
  field(index: number): number;
  bytes(): Uint8Array;
  nextDeadline(): number;
  stats(): Float64Array;
  setStoreBytesMax(bytes: number): void;
}

/** What makes a core, once: epoch (16 bytes), any number below 2^53, whether a recording is watched. */
export type CoreFactory = (epoch: Uint8Array, seed: number, isRecording: boolean) => Core;

/** What the module exports: the core's methods, but for those that take or give bytes or lists. */
type Exports = Omit<Core, 'stats' | 'bytes' | 'segmentParts'> & {
  memory: WebAssembly.Memory;
  allocate: (length: number) => number;
  create: (seed: number, isRecording: boolean) => void;
  message: (now: number, peer: number) => void;
  record: (now: number) => void;
  block: (now: number, peer: number, length: number) => void;
  fetchBlock: (now: number, fetch: number, block: number, length: number) => void;
  loaded: (now: number, rendition: number, msn: number, part: number, length: number, tookMs: number) => void;
  playing: (now: number) => void;
  plan: (now: number, rendition: number, stripes: number) => void;
  stats: () => number;
  segmentParts: (rendition: number, msn: number) => number;
  numbers: () => number;
  bytes: () => number;
  length: () => number;
};

const modules = new Map<string, Promise<WebAssembly.Module>>();

/** Makes an instance of the WebAssembly module, for one core. */
export async function loadCore(wasmUrl: string | URL): Promise<CoreFactory> {
  return factoryOf(await WebAssembly.instantiate(await compile(wasmUrl)));
}

/** Loads and compiles a module, once for all players of the page. A failure is not remembered: the next player may have better
 * luck with the network. */
export function compile(wasmUrl: string | URL): Promise<WebAssembly.Module> {
  const url = String(wasmUrl);
  let module = modules.get(url);
  if (!module) {
    module = load(url);
    modules.set(url, module);
    module.catch(() => modules.delete(url));
  }
  return module;
}

async function load(url: string): Promise<WebAssembly.Module> {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${response.status} for ${url}`);
  return WebAssembly.compile(await response.arrayBuffer());
}

/** Makes an instance's core. */
export function factoryOf(instance: WebAssembly.Instance): CoreFactory {
  const exports = instance.exports as unknown as Exports;
  const give = (bytes: Uint8Array): void => {
    // The memory may grow for it, and has another buffer then.
    const at = exports.allocate(bytes.length);
    new Uint8Array(exports.memory.buffer, at).set(bytes);
  };
  const numbers = (count: number): Float64Array =>
    new Float64Array(exports.memory.buffer, exports.numbers(), count).slice();
  const bytes = (): Uint8Array => new Uint8Array(exports.memory.buffer, exports.bytes(), exports.length()).slice();
  return (epoch, seed, isRecording) => {
    if (epoch.length !== 16) throw new Error('an epoch has 16 bytes');
    give(epoch);
    exports.create(seed, isRecording);
    return {
      ...exports,
      record(now, record) {
        give(record);
        exports.record(now);
      },
      plan(now, rendition, stripes, places) {
        give(new Uint8Array(places.buffer));
        exports.plan(now, rendition, stripes);
      },
      message(now, peer, message) {
        give(message);
        exports.message(now, peer);
      },
      block(now, peer, header, length, digest) {
        give(Uint8Array.of(...digest, ...header));
        exports.block(now, peer, length);
      },
      fetchBlock(now, fetch, block, length, digest) {
        give(digest);
        exports.fetchBlock(now, fetch, block, length);
      },
      loaded(now, rendition, msn, part, length, digests, tookMs) {
        give(digests);
        exports.loaded(now, rendition, msn, part, length, tookMs);
      },
      playing(now, renditions) {
        give(renditions);
        exports.playing(now);
      },
      segmentParts(rendition, msn) {
        const count = exports.segmentParts(rendition, msn);
        return count < 0 ? undefined : numbers(count);
      },
      stats: () => numbers(exports.stats()),
      bytes,
    };
  };
}

/** A seed for the core's own random numbers. `getRandomValues` works on plain http pages as well. */
export function randomSeed(): number {
  const [high = 0, low = 0] = crypto.getRandomValues(new Uint32Array(2));
  return (high & 0x1f_ffff) * 2 ** 32 + low;
}
