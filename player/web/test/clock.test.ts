import assert from 'node:assert/strict';
import { test } from 'node:test';

import { decodeClock, latencyOf } from '../src/clock.ts';

/** The lumas of a strip, as the publisher draws it. */
function strip(unixMs: number): number[] {
  const low = BigInt(unixMs) & 0xff_ffff_ffffn;
  const bytes = [4n, 3n, 2n, 1n, 0n].map((shift) => Number((low >> (8n * shift)) & 0xffn));
  const all = [...bytes, bytes.reduce((left, right) => left ^ right, 0)];
  const bits = all.flatMap((byte) => Array.from({ length: 8 }, (_, bit) => (byte >> (7 - bit)) & 1));
  return [1, 0, ...bits, 0, 1].map((bit) => (bit === 1 ? 235 : 16));
}

test('clock strip is read back as the low 40 bits of the time', () => {
  const now = 1_795_250_173_123;
  assert.equal(decodeClock(strip(now)), now % 2 ** 40);
  assert.equal(latencyOf(now % 2 ** 40, now + 1_234), 1_234);
});

test('latency is right when the low 40 bits wrap between drawing and showing', () => {
  const wrap = 2 ** 40 * 2;
  assert.equal(latencyOf((wrap - 500) % 2 ** 40, wrap + 700), 1_200);
});

test('any wrong cell makes the strip unreadable', () => {
  const lumas = strip(1_795_250_173_123);
  for (let column = 0; column < lumas.length; column++) {
    const changed = [...lumas];
    changed[column] = 251 - (changed[column] ?? 0);
    assert.equal(decodeClock(changed), null, `column ${column}`);
  }
});

test('a picture without a strip has no clock', () => {
  assert.equal(decodeClock(new Array(52).fill(16)), null);
  assert.equal(decodeClock(new Array(52).fill(235)), null);
  assert.equal(decodeClock([]), null);
});
