/** The WebAssembly module as browsers run it: nothing that a peer or a server sends makes it trap. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { pathToFileURL } from 'node:url';
import type { Core } from '../src/swarm/core.ts';

const MODULE = join(import.meta.dirname, '../../src/wasm/shoal_swarm_wasm.js');
/** The public half of the key of 32 bytes of 3. */
const KEY = Buffer.from('7UkoxijRwsbq6QM4kFmVYSlZJzpcY/k2NsFGFKyHN9E=', 'base64');
const EPOCH = Uint8Array.from({ length: 16 }, (_, at) => at);

interface Glue {
  initSync: (options: { module: Uint8Array }) => unknown;
  SwarmPeer: new (key: Uint8Array, epoch: Uint8Array, seed: number) => Core;
}

async function makeCore(seed: number): Promise<Core> {
  const glue = (await import(pathToFileURL(MODULE).href)) as Glue;
  glue.initSync({ module: readFileSync(MODULE.replace(/\.js$/, '_bg.wasm')) });
  return new glue.SwarmPeer(KEY, EPOCH, seed);
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
    () => { core.neighborConnected(now, peer, next(200) - 1); core.message(now, peer, hello(peer)); },
    () => { core.neighborLost(now, peer); },
    () => { core.fetchBlock(now, next(10), next(5000), noise(next, 0)); },
    () => { core.fetchFailed(now, next(10), next(600)); },
    () => { core.wantPiece(now, next(100), next(2), next(4), next(4), next(2) === 0 ? -1 : now + next(3000)); },
    () => { core.wantSegment(now, next(100), next(2), next(4), -1); },
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

test('nothing that comes from outside makes the module trap', async () => {
  for (const seed of [1, 2, 3]) {
    const core = await makeCore(seed);
    const next = random(seed * 7919);
    let outputs = 0;
    start(core);
    for (let step = 0; step < 8000; step += 1) {
      disturb(core, 2 + step * 3, next);
      outputs += drain(core);
      assert.ok(core.nextDeadline() > step, 'no deadline lies in the past');
    }
    const [, , , , , rejected = 0] = core.stats();
    assert.equal(core.stats()[6], 0, 'no piece came of it');
    assert.ok(outputs > 1000 && rejected > 0 && (core.stats()[20] ?? 0) > 10, 'it was disturbed');
    core.free();
  }
});
