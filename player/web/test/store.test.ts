import assert from 'node:assert/strict';
import { test } from 'node:test';

import { PieceStore, keyOf } from '../src/swarm/store.ts';

const key = keyOf({ rendition: 0, msn: 5, part: 1 });

test('piece is complete when every block was written, in any order', () => {
  const store = new PieceStore(100, () => 4);
  assert.ok(store.open(key, 10));
  assert.ok(store.write(key, 2, Uint8Array.of(8, 9), 'peerBytes', 100));
  assert.ok(store.write(key, 0, Uint8Array.of(0, 1, 2, 3), 'originBytes', 130));
  assert.equal(store.copy([key]), null);
  assert.ok(store.write(key, 1, Uint8Array.of(4, 5, 6, 7), 'peerBytes', 900));
  const stored = store.copy([key]);
  assert.ok(stored);
  assert.deepEqual([stored.peerBytes, stored.originBytes], [6, 4]);
  assert.equal(stored.transferMs, 130, 'long pauses are not transfer');
  assert.deepEqual([...new Uint8Array(stored.data)], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
});

test('what the player detaches is a copy', () => {
  const store = new PieceStore(100, () => 4);
  store.open(key, 4);
  store.write(key, 0, Uint8Array.of(1, 2, 3, 4), 'peerBytes', 0);
  const given = store.copy([key])?.data;
  assert.ok(given);
  structuredClone(given, { transfer: [given] });
  assert.equal(given.byteLength, 0);
  assert.equal(store.copy([key])?.data.byteLength, 4);
  assert.deepEqual([...(store.block(key, 0) ?? [])], [1, 2, 3, 4]);
});

test('a written block is never overwritten', () => {
  const store = new PieceStore(100, () => 4);
  store.open(key, 4);
  store.write(key, 0, Uint8Array.of(1, 2, 3, 4), 'peerBytes', 0);
  assert.ok(store.write(key, 0, Uint8Array.of(9, 9, 9, 9), 'peerBytes', 0));
  assert.deepEqual([...(store.block(key, 0) ?? [])], [1, 2, 3, 4]);
});

test('blocks of wrong length or index are refused', () => {
  const store = new PieceStore(100, () => 4);
  store.open(key, 6);
  assert.equal(store.write(key, 0, new Uint8Array(3), 'peerBytes', 0), false);
  assert.equal(store.write(key, 1, new Uint8Array(4), 'peerBytes', 0), false);
  assert.equal(store.write(key, 2, new Uint8Array(0), 'peerBytes', 0), false);
  assert.equal(store.write('0/0/0', 0, new Uint8Array(4), 'peerBytes', 0), false);
  assert.equal(store.block(key, 0), null);
});

test('limit holds, and dropping gives the room back', () => {
  const store = new PieceStore(10, () => 4);
  assert.ok(store.open(key, 8));
  assert.equal(store.open('0/6/0', 3), false);
  store.drop(key);
  assert.equal(store.bytes, 0);
  assert.ok(store.open('0/6/0', 10));
});

test('several pieces are given as one, and only when all are complete', () => {
  const store = new PieceStore(100, () => 4);
  const next = keyOf({ rendition: 0, msn: 5, part: 2 });
  assert.ok(store.writeWhole(key, Uint8Array.of(1, 2, 3, 4, 5), 20, 0));
  assert.equal(store.copy([key, next]), null);
  assert.ok(store.writeWhole(next, Uint8Array.of(6), 30, 40));
  const stored = store.copy([key, next]);
  assert.deepEqual([...new Uint8Array(stored?.data ?? new ArrayBuffer(0))], [1, 2, 3, 4, 5, 6]);
  assert.equal(stored?.transferMs, 50, 'one after the other');
  const meanwhile = keyOf({ rendition: 0, msn: 5, part: 3 });
  assert.ok(store.writeWhole(meanwhile, Uint8Array.of(7), 50, 30));
  assert.equal(store.copy([key, next, meanwhile])?.transferMs, 60, 'from the first byte to the last: they shared the line');
});
