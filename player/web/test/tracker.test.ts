import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { TestContext } from 'node:test';

import { TrackerSocket, retryDelayMs } from '../src/swarm/tracker.ts';
import type { TrackerMessage } from '../src/swarm/protocol.ts';

class FakeSocket {
  static all: FakeSocket[] = [];
  onopen: (() => void) | null = null;
  onmessage: ((event: { data: unknown }) => void) | null = null;
  onclose: (() => void) | null = null;
  onerror: (() => void) | null = null;
  bufferedAmount = 0;
  sent: Record<string, unknown>[] = [];
  closedWith: number | undefined;
  constructor(readonly url: string) {
    FakeSocket.all.push(this);
  }
  send(text: string): void {
    this.sent.push(JSON.parse(text) as Record<string, unknown>);
  }
  close(code: number): void {
    this.closedWith = code;
  }
  say(message: TrackerMessage): void {
    this.onmessage?.({ data: JSON.stringify(message) });
  }
}

const welcome: TrackerMessage = {
  type: 'welcome',
  version: 1,
  peer: 7,
  swarm: 's',
  resume: 'secret',
  ice_servers: [],
  sharing: true,
  neighbors_max: 8,
  upload_ratio_max_percent: 200,
  report_interval_ms: 5_000,
  silence_max_ms: 30_000,
  recent: [],
};

function setUp(context: TestContext, token?: () => Promise<string>): { tracker: TrackerSocket; log: string[]; last: () => FakeSocket } {
  context.mock.timers.enable({ apis: ['setTimeout', 'setInterval'] });
  FakeSocket.all = [];
  (globalThis as { WebSocket: unknown }).WebSocket = FakeSocket;
  const log: string[] = [];
  const tracker = new TrackerSocket(
    { url: 'ws://h/tracker', stream: 'demo', shares: () => true, renditions: () => [0, 1], token },
    {
      onWelcome: () => log.push('welcome'),
      onMessage: ({ type }) => log.push(type),
      onLost: (isFinal) => log.push(isFinal ? 'lost for good' : 'lost'),
    },
    () => 1,
  );
  tracker.open();
  return { tracker, log, last: () => FakeSocket.all.at(-1) ?? assert.fail('no socket') };
}

test('joins, and joins again with its secret after a lost connection', (context) => {
  const { tracker, log, last } = setUp(context);
  last().onopen?.();
  assert.deepEqual(last().sent[0], { type: 'join', version: 1, stream: 'demo', shares: true, renditions: [0, 1] });
  assert.equal(tracker.send({ type: 'ping' }), false, 'nothing is sent before the welcome');
  last().say(welcome);
  last().onclose?.();
  assert.equal(tracker.isJoined, false);
  context.mock.timers.tick(1_000);
  assert.equal(FakeSocket.all.length, 2);
  last().onopen?.();
  assert.equal(last().sent[0]?.['resume'], 'secret');
  last().say(welcome);
  assert.deepEqual(log, ['welcome', 'lost', 'welcome']);
});

test('delays double to their limit, the first starts at nothing and the others at half', () => {
  assert.deepEqual([0, 1, 2, 3, 4, 9].map((attempt) => retryDelayMs(attempt, 1)), [1_000, 2_000, 4_000, 8_000, 15_000, 15_000]);
  assert.deepEqual([0, 1, 9].map((attempt) => retryDelayMs(attempt, 0)), [0, 1_000, 7_500]);
});

test('a tracker that does not answer is given up and tried again', (context) => {
  const { log } = setUp(context);
  context.mock.timers.tick(10_000);
  assert.deepEqual(log, ['lost']);
  context.mock.timers.tick(1_000);
  assert.equal(FakeSocket.all.length, 2);
});

test('fatal error without a time to retry ends it; with one it comes back then', (context) => {
  const first = setUp(context);
  first.last().say({ type: 'error', code: 'refused', message: '', fatal: true });
  context.mock.timers.tick(60_000);
  assert.deepEqual(first.log, ['error', 'lost for good']);
  assert.equal(FakeSocket.all.length, 1);
  context.mock.timers.reset();

  const second = setUp(context);
  second.last().say({ type: 'error', code: 'full', message: '', fatal: true, retry_after_ms: 3_000 });
  context.mock.timers.tick(2_999);
  assert.equal(FakeSocket.all.length, 1);
  context.mock.timers.tick(1);
  assert.equal(FakeSocket.all.length, 2);
});

test('a draining tracker is left only when the next one has said welcome', (context) => {
  const { log, last } = setUp(context);
  last().say(welcome);
  const old = last();
  old.say({ type: 'drain', reconnect_within_ms: 500 });
  context.mock.timers.tick(500);
  assert.equal(FakeSocket.all.length, 2);
  assert.equal(old.closedWith, undefined);
  last().say(welcome);
  assert.equal(old.closedWith, 4_000);
  assert.deepEqual(log, ['welcome', 'welcome']);
});

test('a draining tracker that closes earlier is given the time that it asked for', (context) => {
  const { last } = setUp(context);
  last().say(welcome);
  last().say({ type: 'drain', reconnect_within_ms: 10_000 });
  context.mock.timers.tick(1_000);
  last().onclose?.();
  // The page's clock does not go on in this test: all of the ten seconds are left.
  context.mock.timers.tick(9_000);
  assert.equal(FakeSocket.all.length, 1, 'the crowd does not come back at once');
  context.mock.timers.tick(1_000);
  assert.equal(FakeSocket.all.length, 2);
});

test('each connection asks for a token, and one that has ended is renewed', async (context) => {
  let asked = 0;
  const settle = (): Promise<void> => new Promise((resolve) => { setImmediate(resolve); });
  const { log, last } = setUp(context, () => Promise.resolve(`token ${++asked}`));
  await settle();
  last().onopen?.();
  assert.equal(last().sent[0]?.['token'], 'token 1');
  last().say(welcome);
  last().say({ type: 'error', code: 'refused', message: 'the token has ended', fatal: true });
  context.mock.timers.tick(1_000);
  await settle();
  last().onopen?.();
  assert.equal(last().sent[0]?.['token'], 'token 2');
  last().say({ type: 'error', code: 'refused', message: '', fatal: true });
  context.mock.timers.tick(60_000);
  await settle();
  assert.deepEqual(log, ['welcome', 'error', 'lost', 'error', 'lost for good'], 'one that is refused at once is not tried again');
});

test('a token that cannot be had is asked for again', async (context) => {
  let asked = 0;
  const settle = (): Promise<void> => new Promise((resolve) => { setImmediate(resolve); });
  setUp(context, () => {
    asked += 1;
    if (asked === 1) throw new Error('not signed in');
    return asked === 2 ? Promise.reject(new Error('offline')) : Promise.resolve('t');
  });
  for (const wait of [1_000, 2_000]) {
    await settle();
    assert.equal(FakeSocket.all.length, 0);
    context.mock.timers.tick(wait);
  }
  await settle();
  assert.equal(FakeSocket.all.length, 1);
});

test('leaving for good is said so, and nothing is opened any more', (context) => {
  const { tracker, last } = setUp(context);
  last().say(welcome);
  tracker.close();
  assert.equal(last().closedWith, 1_000);
  last().onclose?.();
  context.mock.timers.tick(60_000);
  assert.equal(FakeSocket.all.length, 1);
});

test('garbage is skipped and the connection goes on', (context) => {
  const { tracker, log, last } = setUp(context);
  last().say(welcome);
  last().onmessage?.({ data: '{' });
  last().onmessage?.({ data: new ArrayBuffer(3) });
  assert.deepEqual(log, ['welcome']);
  assert.equal(tracker.isJoined, true);
});
