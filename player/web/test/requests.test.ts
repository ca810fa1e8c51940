import assert from 'node:assert/strict';
import { mock, test } from 'node:test';

import { Requests } from '../src/swarm/requests.ts';

function open(timeoutMs: number): { requests: Requests; taken: number[] } {
  const requests = new Requests();
  const taken: number[] = [];
  const none = (): void => undefined;
  const target = { rendition: 0, msn: 7, part: null };
  requests.open({ target, timeoutMs, onAnswer: none, onFallback: none }, (id) => taken.push(id));
  return { requests, taken };
}

test('a request is taken from the core when nothing comes, and not while something does', () => {
  let now = 0;
  mock.timers.enable({ apis: ['setTimeout'] });
  mock.method(performance, 'now', () => now);
  const pass = (ms: number): void => {
    now += ms;
    mock.timers.tick(ms);
  };
  try {
    const silent = open(20_000);
    pass(3_999);
    assert.deepEqual(silent.taken, []);
    pass(1);
    assert.deepEqual(silent.taken, [1]);

    // A line that takes longer than that for a segment, byte by byte.
    const slow = open(10_000);
    for (let second = 0; second < 9; second++) {
      pass(1_000);
      slow.requests.heardOf({ rendition: 0, msn: 7, part: second % 2 });
    }
    assert.deepEqual(slow.taken, []);
    pass(1_000);
    assert.deepEqual(slow.taken, [1], "the player's own patience is over");
  } finally {
    mock.timers.reset();
    mock.restoreAll();
  }
});
