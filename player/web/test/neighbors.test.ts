import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Neighbors } from '../src/swarm/neighbors.ts';
import { FakeConnection } from './fake-connection.ts';
import type { FakeChannel } from './fake-connection.ts';

/** What no neighbor that reads has waiting for it, in bytes; the limit is about a half of this. */
const WAITING_MAX = 1 << 20;

/** One neighbor with open channels, and what the driver hears. */
function connect(): { neighbors: Neighbors; control: FakeChannel; blocks: FakeChannel; lost: [number, boolean][] } {
  FakeConnection.install();
  const lost: [number, boolean][] = [];
  const ignore = (): void => undefined;
  const neighbors = new Neighbors({
    onOpen: ignore,
    onMessage: ignore,
    onDrained: ignore,
    onLost: (...who) => lost.push(who),
    onSignal: ignore,
  });
  neighbors.meet(7, false);
  const [control, blocks] = FakeConnection.made.at(-1)?.open() ?? [];
  assert.ok(control && blocks);
  assert.ok(neighbors.isOpen(7));
  return { neighbors, control, blocks, lost };
}

test('a neighbor that takes no messages is closed and reported, not queued for without limit', () => {
  const { neighbors, control, lost } = connect();
  const message = new Uint8Array(1_000);
  while (neighbors.send(7, 'control', message)) assert.ok(control.bufferedAmount < WAITING_MAX, 'it goes on');
  assert.ok(control.bufferedAmount > 270_000, 'the longest greeting fits in');
  assert.deepEqual(lost, [[7, true]]);
  assert.deepEqual(neighbors.all, []);
  assert.equal(control.readyState, 'closed');
  assert.equal(neighbors.send(7, 'control', message), false);
  assert.deepEqual(lost, [[7, true]], 'once');
});

test('a neighbor that reads stays, however much is said to it', () => {
  const { neighbors, control, lost } = connect();
  for (let sent = 0; sent < 2 * WAITING_MAX; sent += 16_384) {
    assert.ok(neighbors.send(7, 'control', new Uint8Array(16_384)));
    control.bufferedAmount = Math.max(0, control.bufferedAmount - 16_000);
  }
  assert.deepEqual(lost, []);
  neighbors.closeAll();
});

test('a message that the other does not allow is not sent, and nothing else happens', () => {
  const { neighbors, lost } = connect();
  assert.equal(neighbors.send(7, 'blocks', new Uint8Array(20_000)), false);
  assert.ok(neighbors.isOpen(7));
  assert.deepEqual(lost, []);
  neighbors.closeAll();
});

test('of the candidates of one neighbor so many are tried, before and after its description', async () => {
  const { neighbors } = connect();
  const tell = (from: number, to: number): void => {
    for (let at = from; at < to; at += 1) neighbors.signal(7, { kind: 'candidate', candidate: `candidate:${at}` });
  };
  tell(0, 40);
  neighbors.signal(7, { kind: 'answer', sdp: 'v=0' });
  tell(40, 200);
  await new Promise((resolve) => setTimeout(resolve, 20));
  const tried = FakeConnection.made.at(-1)?.candidates;
  assert.deepEqual(new Set(tried), new Set(Array.from({ length: 64 }, (_, at) => `candidate:${at}`)));
  neighbors.closeAll();
});
