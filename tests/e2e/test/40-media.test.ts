/** The stream as ffmpeg sees it: a player that knows no LL-HLS. */

import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { after, before, test } from 'node:test';

import { assertDecodes } from '../src/decoded.ts';
import { Server, run, scratchFolder } from '../src/program.ts';
import type { Program } from '../src/program.ts';

const STREAM = 'plain';
const SECONDS = 30;
let server: Server;
let publisher: Program;

before(async () => {
  server = await Server.start();
  publisher = await server.publish(STREAM, ['--size', '640x360']);
});
after(async () => {
  await publisher?.stop();
  await server?.stop();
});

test(`ffmpeg reads ${SECONDS} s with no error and with both tracks`, async () => {
  await assertDecodes(`${server.url}/live/${STREAM}/index.m3u8`, SECONDS);
});

test('ffprobe knows an initialization section with a part', async () => {
  const playlists = await server.mediaPlaylists(STREAM);
  assert.equal(playlists.length, 2, 'video and audio');
  const kinds = [];
  for (const url of playlists) {
    const text = await (await fetch(url)).text();
    const init = /#EXT-X-MAP:URI="([^"]+)"/.exec(text)?.[1] ?? '';
    const parts = [...text.matchAll(/#EXT-X-PART:[^\n]*URI="([^"]+)"[^\n]*/g)];
    const independent = parts.filter(([line]) => url.includes('/a') || line.includes('INDEPENDENT=YES'));
    const part = independent.at(-1)?.[1] ?? '';
    const bytes = await Promise.all([init, part].map(async (uri) => Buffer.from(await (await fetch(new URL(uri, url))).arrayBuffer())));
    const file = `${scratchFolder()}/piece.mp4`;
    writeFileSync(file, Buffer.concat(bytes));
    const { code, stdout, stderr } = await run('ffprobe', ['-v', 'error', '-count_frames', '-of', 'json', '-show_streams', file]);
    assert.equal(stderr.trim(), '');
    assert.equal(code, 0);
    const [stream] = (JSON.parse(stdout) as { streams: { codec_type: string; codec_name: string; nb_read_frames: string }[] }).streams;
    // How many depends on the machine: the test pattern is drawn and encoded on it.
    assert.ok(Number(stream?.nb_read_frames) > 0, `${url}: ${stream?.nb_read_frames} frames`);
    kinds.push(`${stream?.codec_type} ${stream?.codec_name}`);
  }
  assert.deepEqual(kinds, ['video h264', 'audio aac']);
});
