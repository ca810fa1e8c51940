/** Bad input of every kind: each gets a clear answer, and none ends the process or another person's stream. */

import assert from 'node:assert/strict';
import net from 'node:net';
import { randomBytes } from 'node:crypto';
import { after, before, beforeEach, test } from 'node:test';

import { Program, Server, run, shoalPath } from '../src/program.ts';
import { Opcode, RawSocket } from '../src/socket.ts';
import { pause, until } from '../src/wait.ts';

const STREAM = 'bystander';
let server: Server;
let publisher: Program;

before(async () => {
  server = await Server.start({ SEGMENTER_GRACE_MS: '2000', INGEST_SILENCE_MAX_MS: '3000' });
  publisher = await server.publish(STREAM, ['--size', '320x180', '--bitrate', '300k']);
});
after(async () => {
  await publisher?.stop();
  await server?.stop();
});

/** The newest segment's number, which grows as long as the stream is well. */
async function newestSegment(): Promise<number> {
  const [url = ''] = await server.mediaPlaylists(STREAM);
  const text = await (await fetch(url)).text();
  return Number(/#EXT-X-MEDIA-SEQUENCE:(\d+)/.exec(text)?.[1]) + (text.match(/#EXTINF/g)?.length ?? 0);
}

// After each test the bystander's stream goes on, in the same process, from the same publisher.
let begun = 0;
beforeEach(async () => {
  begun = await newestSegment();
});
async function assertBystanderIsWell(): Promise<void> {
  assert.ok(server.program.isRunning, server.program.stderr);
  assert.ok(publisher.isRunning, publisher.stderr);
  await until('the bystander goes on', async () => (await newestSegment()) > begun, 10_000);
}

function offer(lines: string[]): Promise<Response> {
  const body = ['v=0', 'o=- 1 1 IN IP4 127.0.0.1', 's=-', 't=0 0', ...lines, ''].join('\r\n');
  return fetch(`${server.url}/whip/other`, { method: 'POST', headers: { 'content-type': 'application/sdp' }, body });
}

const TRANSPORT = [
  'a=ice-ufrag:abcd',
  'a=ice-pwd:0123456789012345678901',
  `a=fingerprint:sha-256 ${Array.from({ length: 32 }, () => 'AB').join(':')}`,
  'a=setup:actpass',
  'a=mid:0',
  'a=sendonly',
  'a=rtcp-mux',
];

test('offers that are none', async () => {
  const url = `${server.url}/whip/other`;
  const post = (body: string | Uint8Array, type = 'application/sdp'): Promise<Response> =>
    fetch(url, { method: 'POST', headers: { 'content-type': type }, body: body as BodyInit });
  for (const body of ['', 'nonsense', 'v=0', 'v=0\r\no=-\r\n', randomBytes(3000), '{"sdp":1}', 'v=0\r\n'.repeat(2000)]) {
    const response = await post(body);
    assert.equal(response.status, 400, String(body).slice(0, 20));
    assert.ok((await response.text()).length > 5, 'it says what is wrong');
  }
  assert.equal((await post('{}', 'application/json')).status, 415);
  const large = await post('v=0\r\n' + 'a=x\r\n'.repeat(400_000)).catch(() => null);
  // The server may cut off a body that it will not read.
  if (large) assert.equal(large.status, 413);
  await assertBystanderIsWell();
});

test('an offer without usable codecs is told which would do', async () => {
  const response = await offer(['m=video 9 UDP/TLS/RTP/SAVPF 100', 'c=IN IP4 0.0.0.0', ...TRANSPORT, 'a=rtpmap:100 H265/90000']);
  assert.ok([406, 415].includes(response.status), String(response.status));
  assert.match(await response.text(), /H\.?264/);
  await assertBystanderIsWell();
});

test('a second publisher on a live name is refused with 409', async () => {
  const answer = await run(shoalPath(), ['publish', 'test-pattern', `${server.url}/whip/${STREAM}`, '--seconds', '5']);
  assert.notEqual(answer.code, 0);
  assert.match(answer.stderr + answer.stdout, /409|already/);
  await assertBystanderIsWell();
});

test('unknown streams, sessions, parts and names', async () => {
  for (const path of [
    '/live/nobody/index.m3u8',
    `/live/${STREAM}/${'0'.repeat(32)}/v0/playlist.m3u8`,
    `/live/${STREAM}/zz/v0/playlist.m3u8`,
    `/live/${STREAM}/${'0'.repeat(32)}/v0/part-1-1.m4s`,
    '/live/..%2f..%2fetc/index.m3u8',
    '/whip/session/nothing',
    '/live/' + 'x'.repeat(5000) + '/index.m3u8',
  ]) {
    assert.equal((await fetch(server.url + path)).status, 404, path.slice(0, 60));
  }
  for (const name of ['with%20space', 'x'.repeat(65), '%00', 'a%2fb']) {
    const response = await fetch(`${server.url}/whip/${name}`, { method: 'POST', headers: { 'content-type': 'application/sdp' }, body: 'v=0' });
    assert.equal(response.status, 400, name);
  }
  const [url = ''] = await server.mediaPlaylists(STREAM);
  for (const [query, expected] of [
    ['_HLS_msn=99999999', 400],
    ['_HLS_msn=-1', 400],
    ['_HLS_msn=abc', 400],
    ['_HLS_part=1', 400],
    // A part that its segment never had is in the playlist as soon as that segment is over.
    ['_HLS_msn=1&_HLS_part=999999', 200],
    // What is not understood is not skipped.
    ['_HLS_skip=maybe', 200],
  ] as const) {
    const { status } = await fetch(`${url}?${query}`, { signal: AbortSignal.timeout(15_000) });
    assert.equal(status, expected, query);
  }
  await assertBystanderIsWell();
});

test('HTTP that is none', async () => {
  for (const bytes of [randomBytes(2000), Buffer.from('GET / HTTP/9.9\r\n\r\n'), Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n' + 'x'.repeat(500))]) {
    const socket = net.connect(server.port, '127.0.0.1');
    const closed = new Promise<void>((resolve) => socket.on('close', () => resolve()));
    socket.on('error', () => undefined);
    socket.end(bytes);
    socket.resume();
    await Promise.race([closed, pause(40_000).then(() => assert.fail('the server keeps a connection that speaks no HTTP'))]);
  }
  await assertBystanderIsWell();
});

test('tracker messages that are none get an error, and worse ones end their connection only', async () => {
  const url = `${server.url}/tracker`;
  const join = (stream: string): string => JSON.stringify({ type: 'join', version: 1, stream, shares: true, renditions: [0] });

  const unknown = await RawSocket.open(url);
  unknown.send(Opcode.Text, join('nobody'));
  await unknown.untilMessage('unknown_stream');

  for (const text of ['', 'nonsense', '{}', '[]', 'null', '{"type":"join"}', '{"type":"fly"}', '{"type":"join","version":"one"}', '{'.repeat(5000), '[['.repeat(2000)]) {
    const socket = await RawSocket.open(url);
    socket.send(Opcode.Text, text);
    await socket.untilMessage('"error"');
    socket.destroy();
  }

  const early = await RawSocket.open(url);
  early.send(Opcode.Text, JSON.stringify({ type: 'signal', to: 1, data: { kind: 'offer', sdp: 'x' } }));
  await early.untilMessage('out_of_order');

  const foreign = await RawSocket.open(url);
  foreign.send(Opcode.Text, join(STREAM));
  await foreign.untilMessage('"welcome"');
  foreign.send(Opcode.Text, JSON.stringify({ type: 'signal', to: 4_000_000, data: { kind: 'offer', sdp: 'x' } }));
  await foreign.untilMessage('not_introduced');
  foreign.send(Opcode.Text, join(STREAM));
  await foreign.untilMessage('out_of_order');

  const large = await RawSocket.open(url);
  large.send(Opcode.Text, 'x'.repeat(2_000_000));
  await large.untilClosed();

  const unmasked = await RawSocket.open(url);
  unmasked.send(Opcode.Text, join(STREAM), false);
  await unmasked.untilClosed();

  const garbage = await RawSocket.open(url);
  garbage.write(Buffer.concat([Buffer.from([0xff, 0xff]), randomBytes(4000)]));
  await garbage.untilClosed();

  const flood = await RawSocket.open(url);
  flood.send(Opcode.Text, join(STREAM));
  await flood.untilMessage('"welcome"');
  for (let index = 0; index < 3_000; index++) flood.send(Opcode.Text, '{"type":"ping"}');
  await until('the flood is noticed', () => flood.isClosed || flood.messages.some((message) => message.includes('rate_limited')));
  for (const socket of [unknown, early, foreign, flood]) socket.destroy();
  await assertBystanderIsWell();
});

test('a viewer that asks and never reads, and one that goes away in the middle', async () => {
  const [url = ''] = await server.mediaPlaylists(STREAM);
  const text = await (await fetch(url)).text();
  const segment = new URL(/^(?!#).+\.m4s$/m.exec(text)?.[0] ?? '', url);
  const sockets = Array.from({ length: 20 }, () => {
    const socket = net.connect(server.port, '127.0.0.1');
    socket.on('error', () => undefined);
    socket.pause();
    for (let index = 0; index < 200; index++) socket.write(`GET ${segment.pathname} HTTP/1.1\r\nHost: x\r\n\r\n`);
    return socket;
  });
  await assertBystanderIsWell();
  for (const socket of sockets) socket.destroy();
  await until('their connections are forgotten', async () => (await server.metric('http_connections_open')) < 20);
});

test('a publisher that vanishes without goodbye: its stream ends, others go on', async () => {
  const vanishing = await server.publish('vanishing', ['--size', '320x180', '--bitrate', '300k']);
  await vanishing.stop('SIGKILL');
  await until(
    'its stream is no longer live',
    async () => (await server.streams()).every(({ name, state }) => name !== 'vanishing' || state !== 'live'),
    15_000,
  );
  await assertBystanderIsWell();
  // The name is free again.
  const next = await server.publish('vanishing', ['--size', '320x180', '--bitrate', '300k']);
  await next.stop();
});
