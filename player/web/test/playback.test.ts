import assert from 'node:assert/strict';
import { test } from 'node:test';

import type { LevelDetails } from 'hls.js';
import { Meter } from '../src/meter.ts';
import { roundedUp } from '../src/pages/graph.ts';
import { layersOf, preferH264, withStartBitrate } from '../src/pages/whip.ts';
import { bufferedAhead, defaultStoreBytesMax, isPhone, isStallOver, programTimeAt } from '../src/playback.ts';

test('program time follows the fragment that is played, across gaps of the clock', () => {
  const fragments = [
    { start: 10, programDateTime: 1_000_000 },
    { start: 12, programDateTime: 1_002_000 },
    { start: 14, programDateTime: 1_009_000 },
  ];
  const details = { fragments } as unknown as LevelDetails;
  assert.equal(programTimeAt(details, 9), 999_000);
  assert.equal(programTimeAt(details, 13), 1_003_000);
  assert.equal(programTimeAt(details, 14), 1_009_000);
  assert.equal(programTimeAt(details, 20), 1_015_000);
  assert.equal(programTimeAt({ fragments: [] }, 9), null);
});

test('buffer ahead bridges small gaps only', () => {
  const ranges = (...pairs: [number, number][]): TimeRanges => ({
    length: pairs.length,
    start: (index) => pairs[index]?.[0] ?? 0,
    end: (index) => pairs[index]?.[1] ?? 0,
  });
  assert.equal(bufferedAhead(ranges([0, 5], [5.05, 8]), 2), 6);
  assert.equal(bufferedAhead(ranges([0, 5], [6, 8]), 2), 3);
  assert.equal(bufferedAhead(ranges([6, 8]), 2), 0);
});

test('meter keeps its counts when drivers come and go', () => {
  const meter = new Meter();
  meter.plainBytes = 10;
  meter.absorb({ peerBytes: 1, originBytes: 2, sentBytes: 3 });
  assert.deepEqual(meter.totals({ peerBytes: 10, originBytes: 20, sentBytes: 30 }), {
    peerBytes: 11,
    originBytes: 32,
    sentBytes: 33,
  });
  assert.deepEqual(meter.totals(undefined), { peerBytes: 1, originBytes: 12, sentBytes: 3 });
});

test('rates are bits per second of the time that passed', () => {
  const meter = new Meter();
  for (let second = 1; second <= 100; second++) {
    meter.sample({ peerBytes: second * 1_000, originBytes: 0, sentBytes: 0 }, second * 2_000);
  }
  assert.equal(meter.mean(5).peerBps, 4_000);
  assert.equal(meter.history.length, 60);
});

test('scale of the graph ends at a round number', () => {
  assert.deepEqual([500_000, 600_000, 1_200_000, 2_100_000, 7_000_000].map(roundedUp), [500_000, 1_000_000, 2_000_000, 5_000_000, 10_000_000]);
});

test('H.264 is offered first, packetization mode 1 before 0, and nothing is left out', () => {
  const codecs = [
    { mimeType: 'video/VP8' },
    { mimeType: 'video/H264', sdpFmtpLine: 'packetization-mode=0;profile-level-id=42e01f' },
    { mimeType: 'video/AV1' },
    { mimeType: 'video/H264', sdpFmtpLine: 'packetization-mode=1;profile-level-id=42e01f' },
  ];
  assert.deepEqual(preferH264(codecs), [codecs[3], codecs[1], codecs[0], codecs[2]]);
});

test('several sizes are halves of each other, none of them tiny, and cost less than half of the first together', () => {
  const heights = (height: number, isInSizes: boolean): number[] =>
    layersOf(height, 2_000_000, isInSizes).map(({ scaleResolutionDownBy }) => height / scaleResolutionDownBy);
  assert.deepEqual(heights(1080, true), [1080, 540, 270]);
  assert.deepEqual(heights(720, true), [720, 360]);
  assert.deepEqual(heights(480, true), [480]);
  assert.deepEqual(heights(1080, false), [1080]);
  const [first = 0, ...others] = layersOf(1080, 2_000_000, true).map(({ maxBitrate }) => maxBitrate);
  assert.equal(first, 2_000_000);
  assert.ok(others.reduce((sum, bitrate) => sum + bitrate, 0) < first / 2);
});

test('start bitrate goes into video formats only, and not into retransmission', () => {
  const answer = 'v=0\r\nm=audio 9 X 111\r\na=fmtp:111 minptime=10\r\nm=video 9 X 102 103\r\na=fmtp:102 packetization-mode=1\r\na=fmtp:103 apt=102\r\n';
  assert.equal(
    withStartBitrate(answer, 1_250),
    answer.replace('packetization-mode=1', 'packetization-mode=1;x-google-start-bitrate=1250'),
  );
});

test('a stall is over when playback advances or was sought elsewhere, and not by standing still', () => {
  assert.equal(isStallOver(12, 12.01), false);
  assert.ok(isStallOver(12, 12.2));
  assert.ok(isStallOver(12, 3));
});

test('phones and devices with little memory have a smaller piece store', (context) => {
  // What the media query says of some devices: the kind of pointer, and the screen's width in CSS pixels.
  const devices: [name: string, pointer: 'coarse' | 'fine', width: number, memory: number | undefined, isPhone: boolean, mebibytes: number][] = [
    ['iPhone, upright; Safari does not tell its memory', 'coarse', 393, undefined, true, 24],
    ['iPhone on its side', 'coarse', 852, undefined, true, 24],
    ['a large Android phone with much memory', 'coarse', 412, 8, true, 24],
    ['tablet', 'coarse', 1024, undefined, false, 64],
    ['tablet with little memory', 'coarse', 1024, 2, false, 24],
    ['laptop', 'fine', 1440, 8, false, 64],
    ['laptop whose browser does not tell its memory', 'fine', 1440, undefined, false, 64],
    ['old laptop', 'fine', 1366, 2, false, 24],
    ['just enough memory', 'fine', 1366, 4, false, 64],
    ['a narrow window of a computer is no phone', 'fine', 400, 8, false, 64],
  ];
  // Newer Nodes have a navigator of their own.
  const had = Object.getOwnPropertyDescriptor(globalThis, 'navigator');
  context.after(() => {
    for (const name of ['navigator', 'matchMedia']) Reflect.deleteProperty(globalThis, name);
    if (had) Object.defineProperty(globalThis, 'navigator', had);
  });
  for (const [name, pointer, width, deviceMemory, isPhoneExpected, mebibytes] of devices) {
    Object.defineProperty(globalThis, 'navigator', { configurable: true, value: { deviceMemory } });
    Object.assign(globalThis, {
      matchMedia: (query: string) => {
        const [, wanted, widest] = /^\(pointer: (\w+)\) and \(max-device-width: (\d+)px\)$/.exec(query) ?? [];
        assert.ok(wanted && widest, query);
        return { matches: wanted === pointer && width <= Number(widest) };
      },
    });
    assert.equal(isPhone(), isPhoneExpected, name);
    assert.equal(defaultStoreBytesMax(), mebibytes * 1024 * 1024, name);
  }
});
