/** The WebAssembly module as browsers run it, and what its tests tell it. */

import { createHash, createPrivateKey, createPublicKey, sign, verify } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

import { BLOCK_HEADER_BYTES, Tag, blockBytes, factoryOf } from '../src/swarm/core.ts';
import type { Core, CoreFactory } from '../src/swarm/core.ts';

/** The file of the module that records; it has all counters. */
export const MODULE_BYTES = readFileSync(join(import.meta.dirname, '../../src/wasm/swarm-log.wasm'));
const MODULE = new WebAssembly.Module(MODULE_BYTES);
const PLAIN = new WebAssembly.Module(readFileSync(join(import.meta.dirname, '../../src/wasm/swarm.wasm')));
/** The public half of the key of 32 bytes of 3. */
export const KEY = Buffer.from('7UkoxijRwsbq6QM4kFmVYSlZJzpcY/k2NsFGFKyHN9E=', 'base64');
export const EPOCH = Uint8Array.from({ length: 16 }, (_, at) => at);
/** When the segments begin whose records say nothing else, in Unix milliseconds. */
export const START_MS = 1_700_000_000_000;

export function makeFactory(): CoreFactory {
  return factoryOf(new WebAssembly.Instance(MODULE));
}

/** Makes cores as most pages have them. */
export function makePlainFactory(): CoreFactory {
  return factoryOf(new WebAssembly.Instance(PLAIN));
}

export function makeCore(seed: number): Core {
  return makeFactory()(EPOCH, seed, false);
}

const PUBLIC_KEY = createPublicKey({
  key: Buffer.concat([Buffer.from('302a300506032b6570032100', 'hex'), KEY]),
  format: 'der',
  type: 'spki',
});

/** Carries out the output just polled where it is one that asks for a record's check. */
export function answerCheck(core: Core, tag: Tag): void {
  if (tag !== Tag.CheckRecord) return;
  const signed = core.bytes();
  const isSigned = verify(null, signed.subarray(0, -64), PUBLIC_KEY, signed.subarray(-64));
  // Time stands still where it would go backwards.
  core.recordChecked(0, core.field(0), isSigned);
}

/** A signed record of a whole segment of two seconds, as `segmenter/digest/README.md` says. */
export function recordOf(msn: number, bytes: Uint8Array, startMs = START_MS): Uint8Array {
  const header = Buffer.alloc(45);
  header.set([1, ...EPOCH, 3, 0]);
  header.writeBigUInt64BE(BigInt(msn), 19);
  header.writeBigUInt64BE(BigInt(startMs), 29);
  header.writeUInt32BE(2000, 37);
  header.writeUInt32BE(bytes.length, 41);
  const signed = Buffer.concat([header, digestsOf(bytes)]);
  const der = Buffer.concat([Buffer.from('302e020100300506032b657004220420', 'hex'), Buffer.alloc(32, 3)]);
  const key = createPrivateKey({ key: der, format: 'der', type: 'pkcs8' });
  return Buffer.concat([signed, sign(null, Buffer.concat([Buffer.from('shoal digest record 1\0'), signed]), key)]);
}

/** What a record has for a block of these bytes. */
export function digestOf(block: Uint8Array): Uint8Array {
  return createHash('sha256').update(block).digest().subarray(0, 16);
}

/** The digests of a whole piece's blocks. */
function digestsOf(bytes: Uint8Array): Uint8Array {
  const digests: Uint8Array[] = [];
  const step = blockBytes(bytes.length);
  for (let at = 0; at < bytes.length; at += step) digests.push(digestOf(bytes.subarray(at, at + step)));
  return Buffer.concat(digests);
}

/** Hands in a message of the blocks channel as the driver does. */
export function giveBlock(core: Core, now: number, peer: number, message: Uint8Array): void {
  const block = message.subarray(BLOCK_HEADER_BYTES);
  core.block(now, peer, message.subarray(0, BLOCK_HEADER_BYTES), block.length, digestOf(block));
}

/** Hands in a block that the origin sent. */
export function giveFetched(core: Core, now: number, fetch: number, block: number, bytes: Uint8Array): void {
  core.fetchBlock(now, fetch, block, bytes.length, digestOf(bytes));
}

/** Hands in a piece that the player loaded. */
export function giveLoaded(core: Core, now: number, msn: number, part: number, bytes: Uint8Array, tookMs: number, rendition = 0): void {
  core.loaded(now, rendition, msn, part, bytes.length, digestsOf(bytes), tookMs);
}

/** xorshift: the same numbers in each run. */
export function random(seed: number): (below: number) => number {
  let state = seed | 1;
  return (below) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) % below;
  };
}

/** A neighbor's greeting. */
export function hello(peer: number): Uint8Array {
  const bytes = Buffer.from([1, 1, 7, 12, ...EPOCH, 0, 0, 0, 0]);
  bytes.writeUInt32BE(peer, 20);
  return bytes;
}

/** A block set, as in `player/swarm/WIRE.md`. */
export function blockSet(rendition: number, msn: number, part: number, bitmap: number[]): number[] {
  return [rendition, 0, 0, 0, 0, 0, 0, 0, msn, 0, part, 0, bitmap.length, ...bitmap];
}

/** A message on the blocks channel. */
export function blockMessage(msn: number, part: number, block: number, isAnswer: boolean, payload: Uint8Array): Uint8Array {
  return Uint8Array.from([32, isAnswer ? 1 : 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, msn, 0, part, 0, block, ...payload]);
}

/** Bytes that look like a message: a known type, then piece ids that others use too, then noise. */
function noise(next: (below: number) => number, first: number): Uint8Array {
  const bytes = Uint8Array.from({ length: next(60) }, () => (next(3) === 0 ? next(256) : next(2)));
  if (bytes.length > 0 && next(8) > 0) bytes[0] = first;
  return bytes;
}

/** A well-formed control message with numbers that others use too. */
function sentence(next: (below: number) => number): Uint8Array {
  const sets = (): number[] =>
    Array.from({ length: 1 + next(4) }, () => blockSet(next(2), next(4), next(4), [[1 + next(255)], [next(256), 1 + next(255)]][next(2)] ?? [])).flat();
  const stripes = 1 + next(13);
  const kinds: number[][] = [
    [2, next(8), next(16)],
    [3, ...sets(), ...(next(3) === 0 ? blockSet(0, next(4), next(4), []) : [])],
    [4, ...sets()],
    [5, ...sets(), ...(next(3) === 0 ? blockSet(0, next(4), next(4), []) : [])],
    [6, 1 + next(3), ...sets()],
    [8, next(3), next(14)],
    [9, next(2), stripes, next(stripes), next(2)],
    [10, next(256), 0, 0, next(256)],
    [11, 0, 0, 0, next(4)],
  ];
  return Uint8Array.from(kinds[next(kinds.length)] ?? []);
}

/** Neighbors that are kept up; whoever is sent away is followed by one with another number. */
const NEIGHBORS = 6;

/** The world around a core: everything that comes from outside, with nonsense in it, and neighbors that come and go. */
export class World {
  /** Neighbors that have greeted and were not sent away. */
  readonly neighbors: number[] = [];
  /** Control messages from those, none of them one that ends the connection. */
  messages = 0;
  outputs = 0;
  #nextPeer = 100;
  readonly #records: Uint8Array[];

  constructor(
    readonly core: Core,
    private readonly next: (below: number) => number,
    private readonly onOutput: (tag: Tag) => void = () => undefined,
  ) {
    this.#records = [1, 2].map((msn) => recordOf(msn, new Uint8Array(20_000).fill(msn)));
  }

  /** One thing happens. */
  disturb(now: number): void {
    const { core, next } = this;
    if (this.neighbors.length < NEIGHBORS) {
      this.#connect(now);
      return;
    }
    // Also of some whom the core does not know, or does not know any more.
    const peer = next(8) === 0 ? 100 + next(this.#nextPeer - 90) : (this.neighbors[next(this.neighbors.length)] ?? 0);
    const say = (): void => {
      if (this.neighbors.includes(peer)) this.messages += 1;
      core.message(now, peer, next(4) > 0 ? sentence(next) : noise(next, 1 + next(11)));
    };
    const steps: (() => void)[] = [
      () => { giveBlock(core, now, peer, noise(next, 32)); },
      () => { giveBlock(core, now, peer, blockMessage(next(4), next(2), next(6), next(2) === 0, noise(next, 0))); },
      () => { core.record(now, next(2) === 0 ? (this.#records[next(2)] ?? KEY) : noise(next, 1)); },
      () => { core.plan(now, next(3), next(20), Float64Array.from({ length: next(20) }, () => next(5) - 1 + 100 * next(2))); },
      () => { giveLoaded(core, now, next(4), next(4), noise(next, 0), next(500), next(2)); },
      () => { core.message(now, peer, next(2) === 0 ? Uint8Array.of(12) : hello(peer)); },
      () => { core.neighborLost(now, peer); this.#forget(peer); },
      () => { giveFetched(core, now, next(10), next(5000), noise(next, 0)); },
      () => { core.fetchFailed(now, next(10), next(600)); },
      () => { core.wantPiece(now, next(100), next(2), next(4), next(4)); },
      () => { core.wantSegment(now, next(100), next(2), next(4)); },
      () => { core.unwant(now, next(100)); },
      () => { core.playhead(now, START_MS - next(20_000), START_MS + next(2_000), next(3) * 100, next(2) === 0); },
      () => { core.sendQueue(now, peer, next(2 ** 31)); },
      () => { core.recordFailed(now, next(2), next(4), next(4)); },
      () => { if (next(20) === 0) core.trackerLost(now); else core.wake(now); },
      () => { if (next(20) === 0) core.welcome(now, 7, 32, 200, 1000); else core.metered(now, next(4) === 0); },
      () => { if (next(20) === 0) { core.sharing(now, false); this.drain(); } core.sharing(now, true); },
    ];
    if (next(2) === 0) say();
    else steps[next(steps.length)]?.();
    this.drain();
  }

  /** Takes all outputs. */
  drain(): void {
    const { core } = this;
    for (let tag = core.poll(); tag !== Tag.None; tag = core.poll()) {
      this.outputs += 1;
      core.bytes();
      this.onOutput(tag);
      if (tag === Tag.Disconnect) this.#forget(core.field(0));
      answerCheck(core, tag);
    }
  }

  #connect(now: number): void {
    const peer = this.#nextPeer;
    this.#nextPeer += 1;
    this.neighbors.push(peer);
    this.core.neighborConnected(now, peer);
    this.drain();
    this.core.message(now, peer, hello(peer));
    this.drain();
  }

  #forget(peer: number): void {
    const at = this.neighbors.indexOf(peer);
    if (at >= 0) this.neighbors.splice(at, 1);
  }
}

/** The core's tracker is there and something is played. */
export function start(core: Core): void {
  core.welcome(1, 7, 32, 200, 1000);
  core.playing(1, Uint8Array.of(0));
}

/** A segment's bytes, the same in each run. */
export function segment(msn: number, length: number): Uint8Array {
  return Uint8Array.from({ length }, (_, at) => ((at + 31 * msn) * 7919) >> 5);
}
