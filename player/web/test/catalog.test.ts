import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Catalog, bytesFromBase64, readSessionData } from '../src/swarm/catalog.ts';

const base = 'https://h.example/live/demo/index.m3u8';
const epoch = '00112233445566778899aabbccddeeff';
const folder = `https://h.example/live/demo/${epoch}`;
const catalog = (): Catalog =>
  new Catalog(base, [`${folder}/v0/playlist.m3u8`, `${folder}/v1/playlist.m3u8`], ['', `${folder}/a0/playlist.m3u8`]);

test('renditions are numbered in the order of the multivariant playlist, videos first', () => {
  const of = (name: string): number | null => catalog().renditionOf(`${folder}/${name}/playlist.m3u8?_HLS_msn=3`);
  assert.deepEqual([of('v0'), of('v1'), of('a0'), of('v2')], [0, 1, 2, null]);
});

test('URL of a piece that nobody named is made by the scheme', () => {
  const urls = catalog();
  assert.equal(urls.urlOf({ rendition: 1, msn: 7, part: 0 }), `${folder}/v1/seg-7.m4s`);
  urls.learn({ rendition: 1, msn: 6, part: 0 }, `${folder}/v1/part-6-0.m4s`, true);
  assert.equal(urls.urlOf({ rendition: 1, msn: 7, part: 0 }), `${folder}/v1/part-7-0.m4s`);
  assert.equal(urls.urlOf({ rendition: 2, msn: 7, part: 3 }), `${folder}/a0/part-7-3.m4s`);
  assert.equal(urls.urlOf({ rendition: 9, msn: 7, part: 3 }), null);
});

test('segments of a recording have parts, and records of their own', () => {
  const urls = new Catalog(base, [`${folder}/v0/playlist.m3u8`], [], true);
  assert.equal(urls.urlOf({ rendition: 0, msn: 7, part: 0 }), `${folder}/v0/part-7-0.m4s`);
  assert.equal(urls.segmentUrlOf({ rendition: 0, msn: 7, part: 0 }), `${folder}/v0/seg-7.m4s`);
});

test('tracker can name only URLs of the stream, and of the right rendition', () => {
  const urls = catalog();
  const piece = { rendition: 0, msn: 12, part: 3 };
  assert.ok(urls.learnNotice(piece, `${epoch}/v0/part-12-3.m4s`));
  assert.equal(urls.urlOf(piece), `${folder}/v0/part-12-3.m4s`);
  for (const uri of ['https://evil.example/x.m4s', '../other/v0/part-12-3.m4s', `${epoch}/v1/part-12-3.m4s`, 'http://[']) {
    assert.equal(urls.learnNotice(piece, uri), false, uri);
  }
});

test('URL once learned is not replaced', () => {
  const urls = catalog();
  const piece = { rendition: 0, msn: 12, part: 3 };
  urls.learn(piece, `${folder}/v0/part-12-3.m4s`, true);
  urls.learn(piece, `${folder}/v0/other.m4s`, true);
  assert.equal(urls.urlOf(piece), `${folder}/v0/part-12-3.m4s`);
});

test('session data gives key, epoch, stream and the tracker on the right scheme', () => {
  const entry = (VALUE: string): Record<string, unknown> => ({ VALUE });
  const good = {
    'live.shoal.key': entry(Buffer.alloc(32, 7).toString('base64')),
    'live.shoal.epoch': entry(epoch),
    'live.shoal.stream': entry('demo'),
    'live.shoal.tracker': entry('/tracker'),
  };
  const info = readSessionData(good, base);
  assert.equal(info?.trackerUrl, 'wss://h.example/tracker');
  assert.deepEqual([...info.epoch].slice(0, 3), [0, 0x11, 0x22]);
  assert.equal(readSessionData(good, 'http://localhost:8080/live/demo/index.m3u8')?.trackerUrl, 'ws://localhost:8080/tracker');
  for (const name of Object.keys(good)) {
    assert.equal(readSessionData({ ...good, [name]: entry('') }, base), null, name);
  }
  assert.equal(readSessionData(null, base), null);
  assert.equal(bytesFromBase64('%'), null);
});
