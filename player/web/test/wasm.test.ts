/** The WebAssembly module as browsers run it: nothing that a peer or a server sends makes it trap. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Tag, blockBytes } from '../src/swarm/core.ts';
import type { Core, CoreFactory } from '../src/swarm/core.ts';
import { EPOCH, START_MS, World, answerCheck, giveFetched, giveLoaded, makeCore, makeFactory, makePlainFactory, random, recordOf, start } from './real-core.ts';

/** Takes all outputs, and checks what is to be checked; gives their tags. */
function drain(core: Core): Tag[] {
  const tags: Tag[] = [];
  for (let tag = core.poll(); tag !== Tag.None; tag = core.poll()) {
    tags.push(tag);
    answerCheck(core, tag);
  }
  return tags;
}

test('nothing that comes from outside makes the module trap', (context) => {
  for (const seed of [1, 2, 3]) {
    const core = makeCore(seed);
    const world = new World(core, random(seed * 7919));
    start(core);
    const steps = 8000;
    for (let step = 0; step < steps; step += 1) {
      const now = 2 + step * 3;
      world.disturb(now);
      assert.ok(core.nextDeadline() >= now, 'no deadline lies in the past');
    }
    const stats = core.stats();
    const [rejected = 0, strikes = 0, neighbors = 0] = [stats[2], stats[21], stats[30]];
    // Each malformed message is a strike, and so are some others.
    const parsed = world.messages - strikes;
    context.diagnostic(`seed ${seed}: ${world.messages} messages, ${strikes} strikes, ${world.outputs} outputs, ${neighbors} neighbors`);
    assert.equal(stats[7], 0, 'no piece came of it');
    assert.ok(parsed > steps / 5, `${parsed} messages were understood`);
    assert.ok(strikes > steps / 20, `${strikes} things were not`);
    assert.ok(world.outputs > 1000 && rejected > 0 && neighbors > 0, 'it was disturbed to the end');
  }
});

test('the module without the log does what the one with it does', () => {
  const play = (make: CoreFactory): unknown[] => {
    const core = make(EPOCH, 7, false);
    const outputs: unknown[] = [];
    const world = new World(core, random(31_337), (tag) => {
      outputs.push([tag, ...Array.from({ length: 8 }, (_, index) => core.field(index)), ...core.bytes()]);
    });
    start(core);
    for (let step = 0; step < 4000; step += 1) {
      world.disturb(2 + step * 3);
      outputs.push(core.nextDeadline());
    }
    return [...outputs, ...core.stats().slice(0, 4)];
  };
  const plain = play(makePlainFactory());
  assert.deepEqual(plain, play(makeFactory()));
  assert.ok(plain.length > 5000);
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
  assert.deepEqual([core.stats()[19], core.stats()[20]], [0, 4]);
  core.record(2, record);
  drain(core);
  assert.deepEqual([core.stats()[19], core.stats()[20]], [1, 4]);
});

test('a piece is cut into blocks as the module cuts it', () => {
  const core = makeCore(1);
  const lengths = [1, 4096, 65_536, 65_537, 131_072, 131_073, 200_000];
  lengths.forEach((length, index) => { core.record(1, recordOf(5 + index, new Uint8Array(length).fill(7))); });
  drain(core);
  assert.deepEqual([core.stats()[19], core.stats()[20]], [lengths.length, 0]);
});

test('a piece of any length that is fetched as the module asks for it is delivered, block by block', () => {
  for (const length of [1, 4096, 65_536, 65_537, 131_072, 131_073, 200_000]) {
    const core = makeCore(1);
    start(core);
    const bytes = Uint8Array.from({ length }, (_, at) => (at * 7919) >> 5);
    core.record(2, recordOf(5, bytes));
    drain(core);
    // The player is where the segment begins, so that there is no time to ask anybody else.
    core.playhead(3, START_MS, START_MS, 100, false);
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
        giveFetched(core, 4, fetch, at / step, bytes.slice(at, Math.min(at + step, end)));
      }
    }
    assert.ok(isDelivered, `${length} bytes are delivered`);
    assert.deepEqual(stored, stored.map(() => length), 'the store is told the length of the piece');
    assert.equal(core.stats()[2], 0, `nothing of ${length} bytes is rejected`);
  }
});

test('what the player loads itself after it has waited too long is not fetched as well', () => {
  const bytes = new Uint8Array(20_000).fill(7);
  /** What the core does about a piece that it was asked for without a record, when that comes after all. */
  const afterTimeout = (isAskedAgain: boolean): Tag[] => {
    const core = makeCore(1);
    start(core);
    core.playhead(2, START_MS - 30_000, START_MS, 100, false);
    core.wantPiece(3, 1, 0, 5, 0);
    assert.deepEqual(drain(core).filter((tag) => tag === Tag.Fallback), [], 'it waits for the record');
    // As the driver does when its patience ends.
    if (isAskedAgain) core.wantPiece(4003, 1, 0, 5, 0);
    const tags = drain(core);
    core.unwant(4003, 1);
    // The player is where the segment begins, so that there is no time to ask anybody else.
    core.playhead(4004, START_MS, START_MS, 100, false);
    core.record(4005, recordOf(5, bytes));
    return tags.concat(drain(core));
  };
  const tags = afterTimeout(true);
  assert.ok(tags.includes(Tag.Fallback), 'the core says who loads it');
  assert.ok(!tags.includes(Tag.Fetch), 'and leaves it to the player');
  assert.ok(afterTimeout(false).includes(Tag.Fetch), 'which it would not if it did not know');
});

test('bytes that make the memory grow are taken in whole, and each instance is a viewer of its own', () => {
  const [core, other] = [makeCore(1), makeCore(1)];
  const bytes = Uint8Array.from({ length: 6_000_000 }, (_, at) => at % 251);
  core.record(1, recordOf(5, bytes));
  drain(core);
  giveLoaded(core, 2, 5, 0, bytes, 30);
  const tags = drain(core);
  assert.ok(tags.includes(Tag.KeepLoaded), String(tags));
  assert.equal(core.stats()[7], 1);
  assert.deepEqual([...(core.segmentParts(0, 5) ?? [])], [bytes.length]);
  assert.equal(core.segmentParts(0, 6), undefined);
  assert.equal(other.stats()[19], 0, 'the other knows nothing of it');
});

test('what a neighbor is told comes out byte for byte', () => {
  const core = makeCore(1);
  start(core);
  drain(core);
  core.neighborConnected(2, 100);
  assert.equal(core.poll(), Tag.SendControl);
  assert.equal(core.field(0), 100);
  assert.deepEqual([...core.bytes().subarray(0, 2)], [1, 1], 'hello, version 1');
  assert.deepEqual([...core.bytes().subarray(4, 20)], [...EPOCH]);
});

test('what is no epoch is refused', () => {
  const make = makeFactory();
  assert.throws(() => make(EPOCH.subarray(1), 1, false));
});
