import assert from 'node:assert/strict';
import { test } from 'node:test';

import { copies, percentile } from '../bench/figures.ts';
import { sumOfMetric } from '../src/program.ts';

test('percentiles are values that were measured', () => {
  assert.equal(percentile([4, 1, 3, 2], 0.5), 2);
  assert.equal(percentile([4, 1, 3, 2], 0.95), 4);
  assert.equal(percentile([7], 0.5), 7);
  assert.ok(Number.isNaN(percentile([], 0.5)));
});

test('copies count only what happened between the two moments', () => {
  const from = { sentBytes: 1000, mediaBytes: 500, requests: 0 };
  assert.equal(copies(from, { sentBytes: 1600, mediaBytes: 900, requests: 0 }), 1.5);
});

test('metrics are summed over labels, and names that only begin alike are left out', () => {
  const text = '# TYPE a counter\na{class="part"} 2\na{class="init"} 3\na_b 100\na 5\n';
  assert.equal(sumOfMetric(text, 'a'), 10);
  assert.equal(sumOfMetric(text, 'a', 'class="part"'), 2);
});
