/** A recorded player gives the same outputs when the native core replays it, also the player whose core threw. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import type { TestContext } from 'node:test';

import { Log } from '../src/log.ts';
import type { RecordingCore } from '../src/log.ts';
import { Tag, blockBytes } from '../src/swarm/core.ts';
import type { Core } from '../src/swarm/core.ts';
import {
  EPOCH, START_MS, World, blockMessage, blockSet, giveBlock, giveFetched, giveLoaded, hello, makeFactory, makePlainFactory, random, recordOf, segment, start,
} from './real-core.ts';

const ROOT = join(import.meta.dirname, '../../../..');
/** The most numbers that an output has. */
const NUMBERS_MAX = 8;

/** What the example prints of a core: `player/wasm/examples/replay.rs`. */
interface Outcome {
  outputs: number;
  hash: string;
  stats: number[];
}

/** Counts and hashes outputs as the example does. */
class Tally {
  outputs = 0;
  #hash = 0xcbf29ce484222325n;

  add(core: Core, tag: number): void {
    this.outputs += 1;
    this.#mix([tag]);
    const numbers = Float64Array.from({ length: NUMBERS_MAX }, (_, index) => core.field(index));
    this.#mix(new Uint8Array(numbers.buffer));
    this.#mix(core.bytes());
  }

  of(core: Core): Outcome {
    return { outputs: this.outputs, hash: this.#hash.toString(16).padStart(16, '0'), stats: [...core.stats()] };
  }

  #mix(bytes: Iterable<number>): void {
    for (const byte of bytes) this.#hash = BigInt.asUintN(64, (this.#hash ^ BigInt(byte)) * 0x100000001b3n);
  }
}

/** What the native core makes of a log, one outcome for each of the player's cores. */
function replayed(log: Uint8Array): Outcome[] {
  const folder = mkdtempSync(join(tmpdir(), 'shoal-log-'));
  try {
    const path = join(folder, 'viewer.log');
    writeFileSync(path, log);
    const cargo = ['run', '--quiet', '--locked', '--package', 'shoal-swarm-wasm', '--example', 'replay', '--', path];
    const { status, stdout, stderr } = spawnSync('cargo', cargo, { cwd: ROOT, encoding: 'utf8' });
    assert.equal(status, 0, stderr);
    return stdout.trim().split('\n').map((line) => JSON.parse(line) as Outcome);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** The native core can be built: always so under `cargo xtask test`. */
function hasCargo(context: TestContext): boolean {
  const has = spawnSync('cargo', ['--version']).status === 0;
  if (!has) context.skip('there is no cargo to build the native replay with');
  return has;
}

/** Half a minute of a viewer: segments that neighbors push, that are pulled or that come from the origin, one that the player
 * loads itself, and nonsense in between. */
function watch(core: Core, seed: number): Outcome {
  const tally = new Tally();
  const fetches: [fetch: number, msn: number, offset: number, length: number, pieceLength: number][] = [];
  const pulled: [peer: number, request: Uint8Array][] = [];
  const tags = new Set<number>();
  const next = random(seed);
  const world = new World(core, next, (tag) => {
    tally.add(core, tag);
    tags.add(tag);
    if (tag === Tag.Fetch) fetches.push([core.field(0), core.field(2), core.field(4), core.field(5), core.field(7)]);
    if (tag === Tag.SendControl && core.bytes()[0] === 4) pulled.push([core.field(0), core.bytes()]);
  });
  const tell = (input: () => void): void => {
    input();
    world.drain();
  };
  core.setStoreBytesMax(300_000);
  tell(() => { core.welcome(1.5, 7, 32, 200, 1000); });
  tell(() => { core.playing(2.25, Uint8Array.of(0)); });
  for (const peer of [40, 41]) {
    tell(() => { core.neighborConnected(3, peer); });
    tell(() => { core.message(3.125, peer, hello(peer)); });
  }
  tell(() => { core.plan(4, 0, 2, Float64Array.of(0, 1, -1, 0, 1, 41, 1, 0, 40, 120, 0)); });
  let last = 4;
  for (let msn = 5; msn < 20; msn += 1) {
    const bytes = segment(msn, 20_000 + 3_000 * msn);
    const step = blockBytes(bytes.length);
    const from = msn * 2_000;
    const at = (ms: number): number => (last = Math.max(last, from + ms));
    const block = (index: number): Uint8Array => bytes.slice(index * step, (index + 1) * step);
    tell(() => { core.record(at(10), recordOf(msn, bytes, START_MS + from)); });
    tell(() => { core.playhead(at(20), START_MS + from - 3_000, START_MS + from, 100, msn === 9); });
    if (msn === 7) tell(() => { giveLoaded(core, at(30), msn, 0, bytes, 120.5); });
    else tell(() => { core.wantPiece(at(30), msn, 0, msn, 0); });
    tell(() => { giveBlock(core, at(50), 40, blockMessage(msn, 0, 1, false, block(1))); });
    tell(() => { core.message(at(60), 40, Uint8Array.from([3, ...blockSet(0, msn, 0, [0b101])])); });
    tell(() => { core.message(at(65), 41, Uint8Array.from([4, ...blockSet(0, msn, 0, [0b10])])); });
    for (let ms = 80; ms < 2_000; ms += 60) {
      if (next(2) === 0) world.disturb(at(ms));
      tell(() => { core.wake(at(ms + 7)); });
      for (const [peer] of pulled.splice(0)) tell(() => { giveBlock(core, at(ms + 8), peer, blockMessage(msn, 0, 2, true, block(2))); });
      for (const [fetch, of, offset, length, pieceLength] of fetches.splice(0)) {
        const whole = segment(of, 20_000 + 3_000 * of);
        const size = blockBytes(pieceLength);
        for (let place = offset; place < offset + length; place += size) {
          tell(() => { giveFetched(core, at(ms + 9), fetch, place / size, whole.slice(place, Math.min(place + size, offset + length))); });
        }
        tell(() => { core.fetchFinished(at(ms + 10), fetch); });
      }
    }
  }
  tell(() => { core.trackerLost(last + 1); });
  tell(() => { core.leave(last + 2); });
  for (const name of ['SendControl', 'SendBlock', 'Fetch', 'Store', 'KeepLoaded', 'Evict', 'Deliver', 'Disconnect', 'Report'] as const) {
    assert.ok(tags.has(Tag[name]), `the session has ${name}`);
  }
  return tally.of(core);
}

async function record(log: Log): Promise<Core> {
  const make = await log.load(() => Promise.resolve(makeFactory()));
  return make(EPOCH, 2 ** 40 + 5, false);
}

test('a player’s log gives the same outputs natively, core after core, whenever it is saved', async (context) => {
  if (!hasCargo(context)) return;
  const log = new Log();
  const first = watch(await record(log), 77);
  const saved = log.bytes;
  assert.deepEqual(log.bytes, saved, 'saved again it is all there');
  const second = watch(await record(log), 78);
  assert.ok(first.outputs > 500 && first.hash !== second.hash, 'they were told different things');
  assert.deepEqual(log.bytes.subarray(0, saved.length), saved, 'and goes on behind it');
  context.diagnostic(`${log.bytes.length} bytes, ${first.outputs} and ${second.outputs} outputs`);
  assert.deepEqual(replayed(saved), [first]);
  assert.deepEqual(replayed(log.bytes), [first, second]);
});

/** A core that traps on one message. Like a real one it can't be called any more then, and nothing gives its log away. */
function trapping(plain: Core): Core {
  const core = plain as RecordingCore;
  let isTrapped = false;
  const guarded = { ...core };
  for (const name of ['message', 'takeLog', 'wake'] as const) {
    guarded[name] = (...args: unknown[]) => {
      isTrapped ||= name === 'message' && (args[2] as Uint8Array)[0] === 99;
      if (isTrapped) throw new WebAssembly.RuntimeError('unreachable');
      return (core[name] as (...args: unknown[]) => never)(...args);
    };
  }
  return guarded;
}

test('the log of a core that threw ends with what it threw at', async (context) => {
  if (!hasCargo(context)) return;
  const log = new Log();
  let loads = 0;
  const make = await log.load(() => {
    const [factory, isFirst] = [makeFactory(), loads === 0];
    loads += 1;
    return Promise.resolve((...what) => (isFirst ? trapping(factory(...what)) : factory(...what)));
  });
  const core = make(EPOCH, 1, false);
  start(core);
  core.neighborConnected(2.5, 40);
  core.message(1_000.25, 40, hello(40));
  const before = log.bytes.length;
  const strikes = core.stats()[21];
  assert.throws(() => { core.message(2_000.75, 40, Uint8Array.of(99, 1, 2, 3)); }, WebAssembly.RuntimeError);
  assert.ok(log.bytes.length > before, 'the last input is in it');
  const [outcome] = replayed(log.bytes);
  assert.equal(outcome?.stats[21], (strikes ?? 0) + 1, 'natively it is a strike');
});

test('a module that keeps no log is told from one that does', async () => {
  const make = await new Log().load(() => Promise.resolve(makePlainFactory()));
  assert.throws(() => make(EPOCH, 1, false), /swarm-log\.wasm/);
});
