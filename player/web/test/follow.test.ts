import assert from 'node:assert/strict';
import { test } from 'node:test';

import { isBehind, isJumpWorthwhile } from '../src/follow.ts';

const position = { latency: 9, targetLatency: 2, targetDuration: 2, goal: 107, bufferedEnd: 109 };

test('who is further behind than speed makes good jumps to the goal, if it is buffered', () => {
  assert.ok(isJumpWorthwhile(position));
  assert.equal(isJumpWorthwhile({ ...position, bufferedEnd: 107.2 }), false, 'the jump would be the next stall');
  assert.equal(isJumpWorthwhile({ ...position, latency: 3.9 }), false, 'hls.js plays faster up to here');
});

test('behind begins one target duration after the goal', () => {
  assert.equal(isBehind({ ...position, latency: 4 }), false);
  assert.equal(isBehind({ ...position, latency: 4.1 }), true);
});
