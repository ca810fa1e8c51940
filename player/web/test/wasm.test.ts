/** The WebAssembly module as browsers run it: nothing that a peer or a server sends makes it trap. */
import assert from 'node:assert/strict';
import { createHash, createPrivateKey, sign } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { blockBytes, Tag, factoryOf } from '../src/swarm/core.ts';
import type { Core } from '../src/swarm/core.ts';

const MODULE = new WebAssembly.Module(readFileSync(join(import.meta.dirname, '../../src/wasm/swarm.wasm')));
/** The public half of the key of 32 bytes of 3. */
const KEY = Buffer.from('7UkoxijRwsbq6QM4kFmVYSlZJzpcY/k2NsFGFKyHN9E=', 'base64');
const EPOCH = Uint8Array.from({ length: 16 }, (_, at) => at);

function makeCore(seed: number): Core {
  return factoryOf(new WebAssembly.Instance(MODULE))(KEY, EPOCH, seed, false);
}

/** A signed record of a whole segment, as `segmenter/digest/README.md` says. */
function recordOf(msn: number, bytes: Uint8Array): Uint8Array {
  const header = Buffer.alloc(45);
  header.set([1, ...EPOCH, 3, 0]);
  header.writeBigUInt64BE(BigInt(msn), 19);
  header.writeBigUInt64BE(1_700_000_000_000n, 29);
  header.writeUInt32BE(2000, 37);
  header.writeUInt32BE(bytes.length, 41);
  const digests: Buffer[] = [];
  const step = blockBytes(bytes.length);
  for (let at = 0; at < bytes.length; at += step) {
    digests.push(createHash('sha256').update(bytes.subarray(at, at + step)).digest().subarray(0, 16));
  }
  const signed = Buffer.concat([header, ...digests]);
  const der = Buffer.concat([Buffer.from('302e020100300506032b657004220420', 'hex'), Buffer.alloc(32, 3)]);
  const key = createPrivateKey({ key: der, format: 'der', type: 'pkcs8' });
  return Buffer.concat([signed, sign(null, Buffer.concat([Buffer.from('shoal digest record 1\0'), signed]), key)]);
}

/** xorshift: the same numbers in each run. */
function random(seed: number): (below: number) => number {
  let state = seed | 1;
  return (below) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) % below;
  };
}

/** Takes all outputs; gives their number. */
function drain(core: Core): number {
  let count = 0;
  for (; core.poll() !== 0; count += 1) core.bytes();
  return count;
}

function hello(peer: number): Uint8Array {
  const bytes = Uint8Array.from([1, 1, 7, 12, ...EPOCH, 0, 0, 0, 0]);
  new DataView(bytes.buffer).setUint32(20, peer);
  return bytes;
}

/** Bytes that look like a message: a known type, then piece ids that others use too, then noise. */
function noise(next: (below: number) => number, first: number): Uint8Array {
  const bytes = Uint8Array.from({ length: next(60) }, () => (next(3) === 0 ? next(256) : next(2)));
  if (bytes.length > 0 && next(8) > 0) bytes[0] = first;
  return bytes;
}

/** One of everything that comes from outside, with nonsense in it. */
function disturb(core: Core, now: number, next: (below: number) => number): void {
  const peer = 100 + next(6);
  const steps: (() => void)[] = [
    () => { core.message(now, peer, noise(next, 1 + next(12))); },
    () => { core.block(now, peer, noise(next, 32)); },
    () => { core.record(now, noise(next, 1)); },
    () => { core.plan(now, next(3), next(20), Float64Array.from({ length: next(20) }, () => next(5) - 1 + 100 * next(2))); },
    () => { core.loaded(now, next(2), next(4), next(4), noise(next, 0), next(500)); },
    () => { core.neighborConnected(now, peer); core.message(now, peer, hello(peer)); },
    () => { core.neighborLost(now, peer); },
    () => { core.fetchBlock(now, next(10), next(5000), noise(next, 0)); },
    () => { core.fetchFailed(now, next(10), next(600)); },
    () => { core.wantPiece(now, next(100), next(2), next(4), next(4)); },
    () => { core.wantSegment(now, next(100), next(2), next(4)); },
    () => { core.unwant(now, next(100)); },
    () => { core.playhead(now, 1e12 + next(1e6), 1e12 + next(1e6), next(3) * 100, next(2) === 0); },
    () => { core.sendQueue(now, peer, next(2 ** 31)); },
    () => { core.recordFailed(now, next(2), next(4), next(4)); },
    () => { if (next(20) === 0) core.trackerLost(now); else core.wake(now); },
  ];
  steps[next(steps.length)]?.();
}

function start(core: Core): void {
  core.welcome(1, 7, 32, 200, 1000);
  core.playing(1, Uint8Array.of(0));
}

test('nothing that comes from outside makes the module trap', () => {
  for (const seed of [1, 2, 3]) {
    const core = makeCore(seed);
    const next = random(seed * 7919);
    let outputs = 0;
    start(core);
    for (let step = 0; step < 8000; step += 1) {
      const now = 2 + step * 3;
      disturb(core, now, next);
      outputs += drain(core);
      assert.ok(core.nextDeadline() >= now, 'no deadline lies in the past');
    }
    const [, , , , , rejected = 0] = core.stats();
    assert.equal(core.stats()[6], 0, 'no piece came of it');
    assert.ok(outputs > 1000 && rejected > 0 && (core.stats()[20] ?? 0) > 10, 'it was disturbed');
  }
});

test('a record that the origin signed is taken, and one with a changed byte is not', () => {
  const core = makeCore(1);
  const record = recordOf(5, new Uint8Array(20_000).fill(7));
  for (const at of [0, 20, 50, record.length - 1]) {
    const forged = Uint8Array.from(record);
    forged[at] = (forged[at] ?? 0) ^ 1;
    core.record(1, forged);
    drain(core);
  }
  assert.deepEqual([core.stats()[18], core.stats()[19]], [0, 4]);
  core.record(2, record);
  assert.deepEqual([core.stats()[18], core.stats()[19]], [1, 4]);
});

test('a piece is cut into blocks as the module cuts it', () => {
  const core = makeCore(1);
  const lengths = [1, 4096, 65_536, 65_537, 131_072, 131_073, 200_000];
  lengths.forEach((length, index) => { core.record(1, recordOf(5 + index, new Uint8Array(length).fill(7))); });
  assert.deepEqual([core.stats()[18], core.stats()[19]], [lengths.length, 0]);
});

test('a piece of any length that is fetched as the module asks for it is delivered, block by block', () => {
  for (const length of [1, 4096, 65_536, 65_537, 131_072, 131_073, 200_000]) {
    const core = makeCore(1);
    start(core);
    const bytes = Uint8Array.from({ length }, (_, at) => (at * 7919) >> 5);
    core.record(2, recordOf(5, bytes));
    // The player is where the segment begins, so that there is no time to ask anybody else.
    core.playhead(3, 1_700_000_000_000, 1_700_000_000_000, 100, false);
    core.wantPiece(3, 1, 0, 5, 0);
    const stored: number[] = [];
    let isDelivered = false;
    for (let tag = core.poll(); tag !== Tag.None; tag = core.poll()) {
      const field = (index: number): number => core.field(index);
      isDelivered ||= tag === Tag.Deliver;
      if (tag === Tag.Store) stored.push(field(4));
      if (tag !== Tag.Fetch) continue;
      const [fetch, offset, end, step] = [field(0), field(4), field(4) + field(5), blockBytes(field(7))];
      for (let at = offset; at < end; at += step) {
        core.fetchBlock(4, fetch, at / step, bytes.slice(at, Math.min(at + step, end)));
      }
    }
    assert.ok(isDelivered, `${length} bytes are delivered`);
    assert.deepEqual(stored, stored.map(() => length), 'the store is told the length of the piece');
    assert.equal(core.stats()[5], 0, `nothing of ${length} bytes is rejected`);
  }
});

test('bytes that make the memory grow are taken in whole, and each instance is a viewer of its own', () => {
  const [core, other] = [makeCore(1), makeCore(1)];
  const bytes = Uint8Array.from({ length: 6_000_000 }, (_, at) => at % 251);
  core.record(1, recordOf(5, bytes));
  core.loaded(2, 0, 5, 0, bytes, 30);
  const tags: number[] = [];
  for (let tag = core.poll(); tag !== Tag.None; tag = core.poll()) tags.push(tag);
  assert.ok(tags.includes(Tag.KeepLoaded), String(tags));
  assert.equal(core.stats()[6], 1);
  assert.deepEqual([...(core.segmentParts(0, 5) ?? [])], [bytes.length]);
  assert.equal(core.segmentParts(0, 6), undefined);
  assert.equal(other.stats()[18], 0, 'the other knows nothing of it');
});

test('what a neighbor is told comes out byte for byte, and the log holds what went in', () => {
  const core = makeCore(1);
  core.startLog();
  start(core);
  drain(core);
  core.neighborConnected(2, 100);
  assert.equal(core.poll(), Tag.SendControl);
  assert.equal(core.field(0), 100);
  assert.deepEqual([...core.bytes().subarray(0, 2)], [1, 1], 'hello, version 1');
  assert.deepEqual([...core.bytes().subarray(4, 20)], [...EPOCH]);
  const log = core.takeLog();
  assert.equal(Buffer.from(log.subarray(0, 8)).toString(), 'shoalog3');
  assert.deepEqual([...log.subarray(8, 40)], [...KEY]);
});

test('what is no key is refused', () => {
  const make = factoryOf(new WebAssembly.Instance(MODULE));
  // No point has this y, and the others have the wrong length.
  assert.throws(() => make(Uint8Array.from({ length: 32 }, (_, at) => (at === 0 ? 2 : 0)), EPOCH, 1, false));
  assert.throws(() => make(KEY.subarray(1), EPOCH, 1, false));
  assert.throws(() => make(KEY, EPOCH.subarray(1), 1, false));
});
