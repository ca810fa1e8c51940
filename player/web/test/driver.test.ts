import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { test } from 'node:test';

import { Catalog } from '../src/swarm/catalog.ts';
import { blockBytes, Stat, Tag } from '../src/swarm/core.ts';
import type { Core } from '../src/swarm/core.ts';
import { Driver } from '../src/swarm/driver.ts';
import type { Request } from '../src/swarm/requests.ts';
import type { Verifier } from '../src/swarm/verifier.ts';
import type { Stored } from '../src/swarm/store.ts';
import { FakeConnection } from './fake-connection.ts';
import { fakeCore } from './fake-core.ts';
import { digestOf } from './real-core.ts';

const target = { rendition: 0, msn: 5, part: 2 };
const bytes = Uint8Array.from({ length: blockBytes(0) + 10 }, (_, index) => index % 253);

const digest = (block: Uint8Array): Promise<Uint8Array> => Promise.resolve(digestOf(block));

interface Made {
  driver: Driver;
  failures: unknown[];
}

function make(
  core: Core,
  base = 'http://127.0.0.1:1/live/demo',
  storeBytesMax = 1 << 20,
  verifier: Partial<Verifier> = {},
): Made {
  const failures: unknown[] = [];
  const catalog = new Catalog(`${base}/index.m3u8`, [`${base}/e/v0/playlist.m3u8`], []);
  const driver = new Driver(core, catalog, { isSigned: () => Promise.resolve(true), digest, ...verifier }, storeBytesMax, {
    send: () => undefined,
    onNeighbors: () => undefined,
    onFailed: (error) => failures.push(error),
  });
  return { driver, failures };
}

function ask(driver: Driver, timeoutMs = 10_000): { events: string[]; answers: Stored[]; abort: () => void; settled: Promise<void> } {
  const events: string[] = [];
  const answers: Stored[] = [];
  let settle: () => void = () => undefined;
  const settled = new Promise<void>((resolve) => (settle = resolve));
  const request: Request = {
    target,
    timeoutMs,
    onAnswer: (answer) => {
      answers.push(answer);
      events.push('answer');
      settle();
    },
    onFallback: () => {
      events.push('fallback');
      settle();
    },
  };
  return { events, answers, abort: driver.request(request) ?? (() => {}), settled };
}

const deliver = (request: number): { tag: number; fields: number[] } => ({ tag: Tag.Deliver, fields: [request, 0, 5, 2, 1] });

test('a piece fetched from the origin is handed over block by block, stored and delivered', async () => {
  const server = createServer((_, response) => response.writeHead(200).end(bytes));
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const core = fakeCore({
    wantPiece: () => [{ tag: Tag.Fetch, fields: [9, 0, 5, 2, 0, bytes.length, 1, bytes.length] }],
    fetchBlock: (_now: never, _fetch: never, block: never) => [
      { tag: Tag.Store, fields: [0, 5, 2, block, bytes.length, -1] },
      ...((block as number) === 1 ? [deliver(1)] : []),
    ],
  });
  const { driver } = make(core, `http://127.0.0.1:${(server.address() as AddressInfo).port}/live/demo`);
  const { events, answers, settled } = ask(driver);
  await settled;
  assert.deepEqual(events, ['answer']);
  assert.deepEqual(new Uint8Array(answers[0]?.data ?? new ArrayBuffer(0)), bytes);
  assert.equal(answers[0]?.originBytes, bytes.length);
  assert.equal(driver.traffic.originBytes, bytes.length);
  driver.destroy();
  server.close();
});

test('a piece that the player loaded itself is kept, and given again as a copy', async () => {
  const core = fakeCore({
    loaded: () => [{ tag: Tag.KeepLoaded, fields: [0, 5, 2] }],
    wantPiece: (_now: never, request: never) => [deliver(request)],
  });
  const { driver } = make(core);
  assert.ok(await driver.offerLoaded(target, bytes.slice(), 10));
  for (const round of [1, 2]) {
    const { answers, settled } = ask(driver);
    await settled;
    const [answer] = answers;
    assert.ok(answer);
    structuredClone(answer.data, { transfer: [answer.data] });
    assert.equal(answer.originBytes, bytes.length, `round ${round}`);
  }
  driver.destroy();
});

test('a piece that is loaded again before its record came is kept when the record comes', async () => {
  const core = fakeCore({
    // As the core does: it keeps what it knows of the first, and wants nothing of a second.
    loaded: () => (core.calls.filter(([name]) => name === 'loaded').length > 1 ? [{ tag: Tag.DropLoaded, fields: [0, 5, 2] }] : []),
    record: () => [{ tag: Tag.KeepLoaded, fields: [0, 5, 2] }],
    wantPiece: (_now: never, request: never) => [deliver(request)],
  });
  const { driver } = make(core);
  assert.ok(await driver.offerLoaded(target, bytes.slice(), 10));
  assert.ok(await driver.offerLoaded(target, bytes.slice(), 10));
  driver.handleTracker({ type: 'published', piece: { rendition: 0, msn: 5, part: 2 }, uri: 'e/v0/part-5.2.m4s', record: 'AA==' });
  assert.ok(core.calls.some(([name]) => name === 'record'));
  const { events, answers, settled } = ask(driver);
  await settled;
  assert.deepEqual(events, ['answer']);
  assert.deepEqual(new Uint8Array(answers[0]?.data ?? new ArrayBuffer(0)), bytes);
  driver.destroy();
});

test('what waits for its record takes no more memory than the store has left', async () => {
  const length = 1_000;
  const core = fakeCore();
  const { driver } = make(core, undefined, 8 * length);
  for (let part = 0; part < 40; part += 1) {
    assert.ok(await driver.offerLoaded({ rendition: 0, msn: 5, part }, new Uint8Array(length), 10));
  }
  const offered = core.calls.filter(([name]) => name === 'loaded').length;
  assert.ok(offered >= 8 && offered <= 11, `${offered} of 1000 bytes`);
  driver.destroy();
});

test('where nothing waits the core sees whatever was loaded, also what is longer than the store', async () => {
  const core = fakeCore({
    loaded: () => {
      core.counters[Stat.RejectedBytes] = (core.counters[Stat.RejectedBytes] ?? 0) + bytes.length;
      return [{ tag: Tag.DropLoaded, fields: [0, 5, 2] }];
    },
  });
  const { driver } = make(core, undefined, 1_000);
  assert.equal(await driver.offerLoaded(target, bytes.slice(), 10), false);
  driver.destroy();
});

test('bytes that the core rejects must not be played', async () => {
  const core = fakeCore({
    loaded: () => {
      core.counters[Stat.RejectedBytes] = (core.counters[Stat.RejectedBytes] ?? 0) + bytes.length;
      return [{ tag: Tag.DropLoaded, fields: [0, 5, 2] }];
    },
  });
  const { driver } = make(core);
  assert.equal(await driver.offerLoaded(target, bytes.slice(), 10), false);
  driver.destroy();
});

test('a whole segment is cut into its parts, and refused when the lengths do not add up', async () => {
  const core = fakeCore({ segmentParts: () => Float64Array.of(10, 20, bytes.length - 30) as never });
  const { driver } = make(core);
  const segment = { rendition: 0, msn: 5, part: null };
  assert.ok(await driver.offerLoaded(segment, bytes.slice(), 30));
  const parts = core.calls.filter(([name]) => name === 'loaded').map((call) => [call[4], call[5]]);
  assert.deepEqual(parts, [[0, 10], [1, 20], [2, bytes.length - 30]]);
  assert.equal(await driver.offerLoaded(segment, bytes.slice(1), 30), false);
  driver.destroy();
});

test('an answer that makes the player ask again does not re-enter the core', async () => {
  // The scripted core throws when it is called before it was drained.
  const core = fakeCore({
    loaded: () => [{ tag: Tag.KeepLoaded, fields: [0, 5, 2] }],
    wantPiece: (_now: never, request: never) => [deliver(request)],
  });
  const { driver, failures } = make(core);
  await driver.offerLoaded(target, bytes.slice(), 10);
  const order: number[] = [];
  await new Promise<void>((resolve) => {
    const next = (round: number): void => {
      driver.request({
        target,
        timeoutMs: 1_000,
        onFallback: () => undefined,
        onAnswer: () => {
          order.push(round);
          if (round === 3) resolve();
          else next(round + 1);
        },
      });
    };
    next(1);
  });
  assert.deepEqual(order, [1, 2, 3]);
  assert.deepEqual(failures, []);
  driver.destroy();
});

test('a core that throws is never called again, and everything outstanding falls back', async () => {
  const core = fakeCore({
    playhead: () => {
      throw new Error('unreachable executed');
    },
  });
  const { driver, failures } = make(core);
  const first = ask(driver);
  driver.setPlayhead(0, 0, 100, false);
  await first.settled;
  assert.deepEqual(first.events, ['fallback']);
  assert.equal(failures.length, 1);
  assert.equal(driver.request({ target, timeoutMs: 20, onAnswer: () => {}, onFallback: () => {} }), null);
  const count = core.calls.length;
  driver.setPlaying([0]);
  assert.ok(await driver.offerLoaded(target, bytes.slice(), 10));
  driver.destroy();
  assert.equal(core.calls.length, count);
});

test('a request that the core forgets falls back when the player loses patience', async () => {
  const core = fakeCore();
  const { driver } = make(core);
  const { events, settled } = ask(driver, 20);
  await settled;
  assert.deepEqual(events, ['fallback']);
  // Asked again the core refuses, by which it knows who loads it: `wasm.test.ts` has the real one's answer.
  const said = core.calls.filter(([name]) => name === 'wantPiece' || name === 'unwant').map(([name, , request]) => [name, request]);
  assert.deepEqual(said, [['wantPiece', 1], ['wantPiece', 1], ['unwant', 1]]);
  driver.destroy();
});

test('an aborted request is not answered', async () => {
  const core = fakeCore({
    loaded: () => [{ tag: Tag.KeepLoaded, fields: [0, 5, 2] }],
    // The core had decided already when it heard of the abort.
    unwant: () => [deliver(1)],
  });
  const { driver } = make(core);
  await driver.offerLoaded(target, bytes.slice(), 10);
  const { events, abort } = ask(driver);
  abort();
  assert.deepEqual(events, []);
  driver.destroy();
  assert.deepEqual(events, []);
});

test('ending says goodbye, which leaves before the connection closes, and lets outstanding requests fall back', (context) => {
  context.mock.timers.enable({ apis: ['setTimeout'] });
  FakeConnection.install();
  const goodbye = Uint8Array.of(12);
  const core = fakeCore({
    leave: () => [
      { tag: Tag.SendControl, fields: [7], bytes: goodbye },
      { tag: Tag.Disconnect, fields: [7, 7] },
    ],
  });
  const { driver } = make(core);
  driver.handleTracker({ type: 'introduce', peer: 7, offers: false });
  const connection = FakeConnection.made.at(-1);
  const [control] = connection?.open() ?? [];
  assert.deepEqual(driver.neighbors, [7]);
  const { events } = ask(driver);
  driver.destroy();
  assert.deepEqual(events, ['fallback']);
  assert.equal(core.calls.at(-1)?.[0], 'leave');
  assert.deepEqual(driver.neighbors, []);
  // Browsers send when the script has ended; what is closed by then sends nothing.
  context.mock.timers.tick(20);
  control?.flush();
  assert.deepEqual(control?.sent, [goodbye]);
  assert.equal(connection?.isClosed, false);
  context.mock.timers.tick(1_000);
  assert.equal(connection.isClosed, true, 'the connection does not stay');
});

test('a request that the core refuses when it is asked again falls back once', async () => {
  let asked = 0;
  const core = fakeCore({
    wantPiece: (_now: never, request: never) => (asked++ === 0 ? [] : [{ tag: Tag.Fallback, fields: [request, 4] }]),
  });
  const { driver } = make(core);
  const { events, settled } = ask(driver, 20);
  await settled;
  driver.destroy();
  assert.deepEqual(events, ['fallback']);
  assert.equal(core.calls.filter(([name]) => name === 'unwant').length, 1, 'the core forgets the first');
});

test('a deliver without stored bytes falls back instead of handing over nothing', () => {
  const core = fakeCore({ wantPiece: (_now: never, request: never) => [deliver(request)] });
  const { driver } = make(core);
  assert.deepEqual(ask(driver).events, ['fallback']);
  driver.destroy();
});

test('fetch of a piece whose URL is not known fails at once', () => {
  const core = fakeCore({ wantPiece: () => [{ tag: Tag.Fetch, fields: [9, 7, 5, 2, 0, 10, 1, 10] }] });
  const { driver } = make(core);
  ask(driver);
  assert.deepEqual(core.calls.at(-1)?.[0], 'fetchFailed');
  assert.equal(core.calls.at(-1)?.[3], 404);
  driver.destroy();
});

test('a plan is flattened as the core reads it', () => {
  const core = fakeCore();
  const { driver } = make(core);
  driver.handleTracker({
    type: 'plan',
    rendition: 1,
    stripes: 12,
    places: [{ stripe: 0, root: true, children: [7, 8] }, { stripe: 3, parent: 9, expected_ms: 140 }],
  });
  const plan = core.calls.find(([name]) => name === 'plan');
  assert.deepEqual([...(plan?.[4] as Float64Array)], [0, 1, -1, 0, 2, 7, 8, 3, 0, 9, 140, 0]);
  driver.destroy();
});

test('the core hears of checked records in their order, and that a segment has no more when all that came are checked', async () => {
  const record = Uint8Array.of(0, 0, 0, 2, 8, 9);
  const server = createServer((_, response) => response.writeHead(200).end(Buffer.concat([record, record])));
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  let check = 0;
  const core = fakeCore({
    wantPiece: () => [{ tag: Tag.FetchRecord, fields: [0, 5, 2, 1] }],
    record: (_now: never, bytes: never) => [{ tag: Tag.CheckRecord, fields: [++check], bytes }],
  });
  // The first takes longer than the second, which nobody has signed.
  const isSigned = async (): Promise<boolean> => {
    const isFirst = check === 1;
    await new Promise((resolve) => setTimeout(resolve, isFirst ? 30 : 0));
    return isFirst;
  };
  const { driver } = make(core, `http://127.0.0.1:${(server.address() as AddressInfo).port}/live/demo`, 1 << 20, { isSigned });
  ask(driver);
  const told = (): unknown[][] => core.calls.flatMap(([name, , ...rest]) => (/^record./.test(name) ? [[name, ...rest]] : []));
  while (told().length < 3) await new Promise((resolve) => setTimeout(resolve, 5));
  assert.deepEqual(told(), [['recordChecked', 1, true], ['recordChecked', 2, false], ['recordFailed', 0, 5, 2]]);
  driver.destroy();
  server.close();
});

test('what neither hashes nor checks ends the swarm and nothing else', async () => {
  const fails = (): Promise<never> => Promise.reject(new Error('no answer'));
  const published = { type: 'published', piece: { rendition: 0, msn: 5, part: 2 }, uri: 'e/v0/part-5.2.m4s', record: 'AA==' } as const;
  const scripts = { record: (_now: never, bytes: never) => [{ tag: Tag.CheckRecord, fields: [1], bytes }] };
  for (const broken of ['isSigned', 'digest'] as const) {
    const core = fakeCore(scripts);
    const { driver, failures } = make(core, undefined, undefined, { [broken]: fails });
    const { events, settled } = ask(driver);
    if (broken === 'isSigned') driver.handleTracker(published);
    else assert.equal(await driver.offerLoaded(target, bytes.slice(), 10), true, 'it is played');
    await settled;
    assert.deepEqual(events, ['fallback']);
    assert.equal(failures.length, 1, broken);
    assert.ok(!core.calls.some(([name]) => name === 'recordChecked' || name === 'loaded'));
  }
});

test('of blocks that come faster than they are hashed most are dropped', async () => {
  FakeConnection.install();
  const core = fakeCore();
  const { driver } = make(core);
  driver.handleTracker({ type: 'introduce', peer: 7, offers: false });
  const [, blocks] = FakeConnection.made.at(-1)?.open() ?? [];
  for (let sent = 0; sent < 1_000; sent += 1) blocks?.onmessage?.({ data: new ArrayBuffer(60_000) });
  await new Promise((resolve) => setTimeout(resolve, 20));
  assert.equal(core.calls.filter(([name]) => name === 'block').length, 256);
  blocks?.onmessage?.({ data: new ArrayBuffer(60_000) });
  await new Promise((resolve) => setTimeout(resolve, 5));
  assert.equal(core.calls.filter(([name]) => name === 'block').length, 257, 'and there is room again');
  driver.destroy();
});

test('the core is told of a fetch in its order, however long the hashing of each block takes', async () => {
  const server = createServer((_, response) => response.writeHead(200).end(bytes));
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const core = fakeCore({ wantPiece: () => [{ tag: Tag.Fetch, fields: [9, 0, 5, 2, 0, bytes.length, 1, bytes.length] }] });
  const slow: Verifier['digest'] = async (block) => {
    // The first block is the longest.
    await new Promise((resolve) => setTimeout(resolve, block.length > 10 ? 30 : 0));
    return digestOf(block);
  };
  const { driver } = make(core, `http://127.0.0.1:${(server.address() as AddressInfo).port}/live/demo`, 1 << 20, { digest: slow });
  ask(driver);
  const told = (): unknown[][] => core.calls.flatMap(([name, , ...rest]) => (/^fetch/.test(name) ? [[name, ...rest]] : []));
  while (told().length < 3) await new Promise((resolve) => setTimeout(resolve, 5));
  const [first, second] = [bytes.subarray(0, blockBytes(0)), bytes.subarray(blockBytes(0))];
  assert.deepEqual(told(), [
    ['fetchBlock', 9, 0, first.length, digestOf(first)],
    ['fetchBlock', 9, 1, second.length, digestOf(second)],
    ['fetchFinished', 9],
  ]);
  driver.destroy();
  server.close();
});

test('a neighbor’s block goes to the core with its header and digest, and to the store as the core says', async () => {
  FakeConnection.install();
  const header = Uint8Array.from({ length: 16 }, (_, at) => at);
  const piece = new Uint8Array(500).fill(8);
  const core = fakeCore({
    block: () => [{ tag: Tag.Store, fields: [0, 5, 2, 0, piece.length, -1] }],
    wantPiece: (_now: never, request: never) => [deliver(request)],
  });
  const { driver } = make(core);
  driver.handleTracker({ type: 'introduce', peer: 7, offers: false });
  const [, blocks] = FakeConnection.made.at(-1)?.open() ?? [];
  blocks?.onmessage?.({ data: Uint8Array.of(...header, ...piece).buffer });
  while (!core.calls.some(([name]) => name === 'block')) await new Promise((resolve) => setTimeout(resolve, 1));
  assert.deepEqual(core.calls.find(([name]) => name === 'block')?.slice(2), [7, header, piece.length, digestOf(piece)]);
  const { answers, settled } = ask(driver);
  await settled;
  assert.deepEqual(new Uint8Array(answers[0]?.data ?? new ArrayBuffer(0)), piece);
  assert.equal(driver.traffic.peerBytes, piece.length);
  driver.destroy();
});
