import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';

import { MESSAGE_CHARS_MAX, parseTrackerMessage } from '../src/swarm/protocol.ts';

const PROTOCOL = join(import.meta.dirname, '../../../../tracker/protocol/PROTOCOL.md');

/** The document's examples of what the tracker sends. */
function trackerExamples(): { text: string; type: string }[] {
  const blocks = [...readFileSync(PROTOCOL, 'utf8').matchAll(/```json tracker\n([\s\S]*?)```/g)];
  return blocks.map(([, text = '']) => ({ text, type: (JSON.parse(text) as { type: string }).type }));
}

test('every example of a tracker message in PROTOCOL.md is accepted', () => {
  assert.ok(existsSync(PROTOCOL), 'tracker/protocol/PROTOCOL.md is normative and must be there');
  const fromTracker = trackerExamples();
  const types = new Set(fromTracker.map(({ type }) => type));
  for (const type of ['welcome', 'introduce', 'signal', 'published', 'plan', 'part', 'sharing', 'drain', 'ended', 'error']) {
    assert.ok(types.has(type), `PROTOCOL.md has an example of ${type}`);
  }
  for (const { text } of fromTracker) assert.ok(parseTrackerMessage(text), text);
});

test('a message with any field of the wrong type is refused', () => {
  const good = {
    type: 'welcome',
    version: 1,
    peer: 7,
    swarm: 's',
    resume: 'r',
    ice_servers: [{ urls: ['stun:h'] }],
    sharing: true,
    neighbors_max: 8,
    upload_ratio_max_percent: 200,
    report_interval_ms: 5_000,
    silence_max_ms: 30_000,
    recent: [{ piece: { rendition: 0, msn: 1, part: 2 }, uri: 'u', record: 'AA==' }],
  };
  assert.ok(parseTrackerMessage(JSON.stringify(good)));
  for (const name of Object.keys(good)) {
    for (const wrong of [null, -1, {}, [null]]) {
      assert.equal(parseTrackerMessage(JSON.stringify({ ...good, [name]: wrong })), null, `${name}: ${JSON.stringify(wrong)}`);
    }
    assert.equal(parseTrackerMessage(JSON.stringify({ ...good, [name]: undefined })), null, `${name} missing`);
  }
});

test('garbage, unknown types and oversized frames are no messages', () => {
  for (const text of ['', 'null', '[]', '{', '"welcome"', '{"type":"toString"}', '{"type":"__proto__"}', '{"type":3}']) {
    assert.equal(parseTrackerMessage(text), null, text);
  }
  assert.equal(parseTrackerMessage(`{"type":"pong","x":"${'x'.repeat(MESSAGE_CHARS_MAX)}"}`), null);
  assert.deepEqual(parseTrackerMessage('{"type":"pong"}'), { type: 'pong' });
});

test('signals need the fields of their kind', () => {
  const signal = (data: unknown): unknown => parseTrackerMessage(JSON.stringify({ type: 'signal', from: 1, data }));
  assert.ok(signal({ kind: 'offer', sdp: 'v=0' }));
  assert.ok(signal({ kind: 'candidate', candidate: '' }));
  for (const bad of [{ kind: 'offer' }, { kind: 'candidate' }, { kind: 'x', sdp: '' }, null, 'offer']) {
    assert.equal(signal(bad), null);
  }
});
