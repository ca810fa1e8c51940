import assert from 'node:assert/strict';
import { test } from 'node:test';

import { copies, percentile, table } from '../bench/figures.ts';
import type { Figures } from '../bench/figures.ts';
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

test('the table has a column for each run, and a dash for what a player cannot tell', () => {
  const figures: Figures = {
    copies_per_piece: 1.2, copies_per_piece_steady: 1, offload: 0.7, startup_p50_ms: 500, startup_p95_ms: 900,
    latency_p50_s: 1.5, latency_p95_s: 2, rebuffer_s: 0, origin_requests: 10, browser_percent_per_viewer: 20, swarm_ms_per_s: 3, unverified_bytes: 0,
  };
  const [head, ...rows] = table({ sharing: figures, rival_tuned: { ...figures, unverified_bytes: null } }).split('\n');
  assert.deepEqual(head?.trim().split(/ {2,}/), ['sharing', 'rival tuned']);
  assert.equal(rows.length, Object.keys(figures).length);
  assert.deepEqual(rows.at(-1)?.trim().split(/ {2,}/), ['unverified bytes', '0', '–']);
});
