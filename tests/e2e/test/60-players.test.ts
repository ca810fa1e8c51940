/** Everybody's players on our streams: live, back in the window, from rung to rung of a ladder, over a publisher's return and
 * changes of size, to the end of a stream whose publisher does not come back, recorded. */

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';

import { startChromium } from '../src/browsers.ts';
import type { Browser, Tab } from '../src/browsers.ts';
import { assertDecodes, decode } from '../src/decoded.ts';
import type { Shown } from '../src/players-page.ts';
import { servePlayers } from '../src/players.ts';
import { Program, run, scratchFolder, Server, shoalPath } from '../src/program.ts';
import { Studio } from '../src/studio.ts';
import { until } from '../src/wait.ts';

/** Each player has a name of this machine for itself: connections of its own, and its requests can be told apart. */
const HOSTS: Record<string, string> = {
  'hls.js LL': 'hls-ll.localhost',
  'hls.js': 'hls.localhost',
  'Shaka LL': 'shaka-ll.localhost',
  Shaka: 'shaka.localhost',
  'video.js': 'videojs.localhost',
};
const NAMES = Object.keys(HOSTS);
/** Shaka plays all that is below as well, but where the processors are busy it may stop after a jump and stay there; so it is
 * asked for what needs no jump. */
const STEADY = NAMES.filter((name) => !name.startsWith('Shaka'));
const [STREAM, LADDER, CHANGING] = ['everybody', 'ladder', 'changing'];
/** Small pictures: up to five players decode them at once. */
const SMALL = ['--size', '256x144', '--fps', '15', '--bitrate', '200k'];
const STEP_MS = 40_000;
/** What is older than this comes from the storage. */
const MEMORY_MS = 12_000;

type Look = Record<string, Shown>;

let server: Server;
let publisher: Program;
let ladder: Program | undefined;
let browser: Browser;
let tab: Tab;
let page: { url: string; close: () => void };

before(async () => {
  server = await Server.start({
    SEGMENTER_RECORDING: 'true',
    SEGMENTER_STORAGE: scratchFolder(),
    SEGMENTER_LADDER: `${LADDER}=72`,
    SEGMENTER_WINDOW_MS: String(MEMORY_MS),
    SEGMENTER_DVR_MS: '600000',
    // How long a publisher may be silent, and then away: so that the end of a stream need not be waited for.
    INGEST_SILENCE_MAX_MS: '4000',
    SEGMENTER_GRACE_MS: '8000',
  });
  publisher = await server.publish(STREAM, SMALL);
  page = await servePlayers();
  browser = await startChromium();
  tab = await browser.open();
});
after(async () => {
  await browser?.close();
  page?.close();
  await publisher?.stop();
  await ladder?.stop();
  await server?.stop();
});

/** Opens the page anew, with these players on this path. */
async function play(path: string, names: string[]): Promise<void> {
  await tab.goto(page.url);
  const urls = Object.fromEntries(names.map((name) => [name, `http://${HOSTS[name]}:${server.port}${path}`]));
  await tab.evaluate(`window.page.start(${JSON.stringify(urls)})`);
}

const look = (): Promise<Look> => tab.evaluate<Look>('window.page.look()');

/** Waits until a condition has held for every player; says for which it has not. */
async function all(what: string, holds: (now: Shown, name: string) => boolean, names = STEADY): Promise<void> {
  let last: Look = {};
  let missing = names;
  await until(what, async () => {
    last = await look();
    missing = missing.filter((name) => last[name] === undefined || !holds(last[name], name));
    return missing.length === 0;
  }, STEP_MS).catch((error: unknown) => {
    throw new Error(`${String(error)}\n${missing.map((name) => `${name}: ${JSON.stringify(last[name])}`).join('\n')}`);
  });
  for (const name of names) assert.deepEqual(last[name]?.failures, [], name);
}

/** Waits until each player has shown more frames and gone on in time. */
async function playsOn(what: string, names = STEADY): Promise<void> {
  const from = await look();
  await all(what, ({ position, frames }, name) => {
    const before = from[name];
    return before !== undefined && frames > before.frames + 10 && position > before.position + 1;
  }, names);
}

async function videoPlaylist(stream = STREAM): Promise<string> {
  const [video = ''] = await server.mediaPlaylists(stream);
  return (await fetch(video)).text();
}

/** Waits until so many segments are complete. */
async function untilSegments(count: number, stream = STREAM): Promise<void> {
  await until(`${count} segments`, async () => ((await videoPlaylist(stream)).match(/#EXTINF/g) ?? []).length >= count);
}

/**
 * Shaka 5.2.12 looks for captions in two segments before it plays, and asks for `undefined` when one of these is the one in
 * the making. That is so as long as there are fewer.
 */
const SHAKA_SEGMENTS = 4;

test('every player plays the live stream, and in low latency mode by its parts', async () => {
  await untilSegments(SHAKA_SEGMENTS);
  await play(`/live/${STREAM}/index.m3u8`, NAMES);
  await all('all show pictures', ({ frames }) => frames > 10, NAMES);
  await playsOn('all go on', NAMES);
  for (const name of NAMES) {
    const parts = await tab.evaluate<number>(`window.page.parts('${HOSTS[name]}')`);
    assert.equal(parts > 5, name.endsWith('LL'), `${name} has fetched ${parts} parts`);
  }
});

test('with low latency hls.js is nearer to the live edge than without', async () => {
  const shown = await look();
  const [low = 0, plain = 0] = ['hls.js LL', 'hls.js'].map((name) => shown[name]?.dateMs ?? 0);
  assert.ok(low > plain + 1_000, `${low - plain} ms nearer`);
});

test('players seek back beyond what memory holds and play from there', async () => {
  await play(`/live/${STREAM}/index.m3u8`, STEADY);
  await all('all show pictures', ({ frames }) => frames > 10);
  await untilSegments(12);
  const newest = [...(await videoPlaylist()).matchAll(/PROGRAM-DATE-TIME:(\S+)/g)].map(([, date = '']) => Date.parse(date)).pop() ?? 0;
  await tab.evaluate("window.page.seek('start', 3)");
  await all('all are back', ({ dateMs }) => dateMs !== null && dateMs < newest - MEMORY_MS - 2_000);
  await playsOn('all play from there');
  const { clocks, complaints } = await decode(`${server.url}/live/${STREAM}/index.m3u8`, 2, ['-live_start_index', '0']);
  assert.equal(complaints, '');
  const [first = 0] = clocks;
  assert.ok(first > 0 && first < (newest % 2 ** 40) - MEMORY_MS - 2_000, `ffmpeg begins ${(newest % 2 ** 40) - first} ms back`);
});

/** video.js does not know `EXT-X-GAP`, which says that the publisher is away: it asks for the missing segments. */
const KNOW_GAPS = STEADY.filter((name) => name !== 'video.js');

test('players that know gaps go on over the discontinuity when the publisher comes back', async () => {
  await tab.evaluate("window.page.seek('end', 6)");
  await playsOn('all are near the edge again');
  // Without goodbye: the stream waits for it.
  await publisher.stop('SIGKILL');
  const publish = (): Program => new Program(shoalPath(), ['publish', 'test-pattern', `${server.url}/whip/${STREAM}`, ...SMALL]);
  publisher = publish();
  await until('the discontinuity', async () => {
    // Refused until the server has noticed that the first one is gone.
    if (!publisher.isRunning) publisher = publish();
    return /#EXT-X-DISCONTINUITY\n[^]*#EXTINF[^]*#EXTINF/.test(await videoPlaylist());
  }, STEP_MS);
  const returned = Date.now();
  await all('all show what was taken after the return', ({ dateMs }) => dateMs !== null && dateMs > returned, KNOW_GAPS);
  await playsOn('all go on', KNOW_GAPS);
});

test('ffmpeg and GStreamer play the live stream', async () => {
  const url = `${server.url}/live/${STREAM}/index.m3u8`;
  await assertDecodes(url, 3);
  // Each sink ends by itself after so many buffers; an error is another exit code, and a time-out is 124.
  const sinks = 'd. ! queue ! videoconvert ! fakesink num-buffers=45 d. ! queue ! audioconvert ! fakesink num-buffers=45';
  const gstreamer = await run('timeout', ['30', 'gst-launch-1.0', '-q', 'uridecodebin3', `uri=${url}`, 'name=d', ...sinks.split(' ')]);
  assert.equal(gstreamer.code, 0, gstreamer.stderr);
});

test('players that know gaps play to the end of the stream', async () => {
  await tab.evaluate("window.page.seek('end', 6)");
  await publisher.stop();
  await until('the end is in the playlist', async () => (await videoPlaylist()).includes('#EXT-X-ENDLIST'));
  await all('all come to the end', ({ hasEnded }) => hasEnded, KNOW_GAPS);
});

test('players play the recording, from its start and to its end', async () => {
  const path = await until('the recording is closed', async () => {
    const recordings = (await (await fetch(`${server.url}/api/recordings`)).json()) as { stream: string; url?: string }[];
    return recordings.find(({ stream }) => stream === STREAM)?.url;
  });
  await play(path, STEADY);
  await all('all begin at the beginning', ({ frames, position }) => frames > 10 && position < 10);
  await tab.evaluate("window.page.seek('end', 4)");
  await all('all come to the end', ({ hasEnded }) => hasEnded);
  await assertDecodes(`${server.url}${path}`);
});

test('the first page leads to the recording, which plays, and to its file', async () => {
  const errors = tab.errors.length;
  await tab.goto(`${server.url}/`);
  const [playing = '', file = ''] = await until('it is listed', async () => {
    const links = await tab.evaluate<string[]>("[...document.querySelectorAll('#recorded a')].map(({ href }) => href)");
    return links.length === 2 && links;
  });
  const { status, headers } = await fetch(file, { method: 'HEAD' });
  assert.deepEqual([status, headers.get('content-type')], [200, 'video/mp4']);
  await tab.goto(playing);
  await tab.evaluate("document.querySelector('video').muted = true, void document.querySelector('video').play()");
  await until('it plays', () => tab.evaluate<boolean>("document.querySelector('video').getVideoPlaybackQuality().totalVideoFrames > 10"));
  assert.equal(await tab.evaluate<boolean>("document.querySelector('#cover').hidden"), true);
  assert.deepEqual(tab.errors.slice(errors), []);
});

const CLIMBERS = NAMES.filter((name) => name !== 'Shaka LL');
/** video.js does not know gaps. */
const ENDS = CLIMBERS.filter((name) => name !== 'video.js');

test('players go down the ladder and up again while they play', async () => {
  ladder = await server.publish(LADDER, SMALL);
  await untilSegments(SHAKA_SEGMENTS, LADDER);
  await play(`/live/${LADDER}/index.m3u8`, CLIMBERS);
  await all('all show pictures', ({ frames }) => frames > 10, CLIMBERS);
  const heights = await tab.evaluate<Record<string, number[]>>('window.page.heights()');
  assert.deepEqual(heights, Object.fromEntries(CLIMBERS.map((name) => [name, [72, 144]])));
  for (const height of [72, 144]) {
    await tab.evaluate(`window.page.choose(${height})`);
    await all(`all show ${height} lines`, (now) => now.height === height, CLIMBERS);
    await playsOn('all go on', CLIMBERS);
  }
  // ffmpeg stays with one of them: each by itself.
  for (const url of (await server.mediaPlaylists(LADDER)).slice(0, 2)) {
    const { frames, complaints } = await decode(url, 2);
    assert.deepEqual([complaints, frames >= 25], ['', true], `${frames} frames of ${url}`);
  }
});

test('when the publisher vanishes for good, players come to the end of the stream', async () => {
  const decoding = decode(`${server.url}/live/${LADDER}/index.m3u8`, 600);
  const vanished = Date.now();
  await ladder?.stop('SIGKILL');
  const text = await until('viewers are told that there is nothing', async () => {
    const now = await videoPlaylist(LADDER);
    return now.includes('#EXT-X-GAP') && now;
  });
  assert.ok(!text.includes('#EXT-X-ENDLIST'), 'the publisher is waited for');
  await all('all come to the end', ({ hasEnded }) => hasEnded, ENDS);
  const { clocks } = await decoding;
  // The very last picture is an older one, shown again.
  const last = Math.max(...clocks);
  assert.ok(last > (vanished % 2 ** 40) - 2_000, `ffmpeg has stopped ${(vanished % 2 ** 40) - last} ms before`);
});

/** Not the two that play by parts as well: five pictures of this size are much for two cores. */
const RESIZED = ['hls.js', 'Shaka', 'video.js'];
const GO_ON = ['hls.js', 'Shaka'];

test('players and ffmpeg play through changes of size and the return of the publisher', async () => {
  const options = { codec: 'H264', width: 1280, height: 720, framesPerSecond: 10 };
  let studio = await Studio.publish(browser, server.url, CHANGING, options);
  try {
    await server.untilLive(CHANGING);
    await untilSegments(SHAKA_SEGMENTS, CHANGING);
    await play(`/live/${CHANGING}/index.m3u8`, RESIZED);
    // To the end of the stream.
    const decoding = decode(`${server.url}/live/${CHANGING}/index.m3u8`, 600);
    const shows = (width: number, height: number, names: string[]): Promise<void> =>
      all(`all show ${width}x${height}`, (now) => now.frames > 10 && now.width === width && now.height === height, names);
    await shows(1280, 720, RESIZED);
    await studio.resize(640, 360);
    await shows(640, 360, RESIZED);
    await studio.resize(720, 1280);
    await shows(720, 1280, RESIZED);
    await playsOn('all go on', RESIZED);
    await studio.vanish();
    // The server has to notice first that the tab is gone: three seconds of silence.
    const small = { ...options, width: 640, height: 360 };
    studio = await until('the publisher is let in again', () => Studio.publish(browser, server.url, CHANGING, small), 15_000);
    const returned = Date.now();
    await shows(640, 360, GO_ON);
    await playsOn('all go on', GO_ON);
    await studio.stop();
    const { clocks, complaints } = await decoding;
    // It does not know gaps either, asks for the missing segments, and goes on without them. All else would be a complaint of
    // a decoder.
    const others = complaints.split('\n').filter((line) => !/404 Not Found|Failed to open segment/.test(line));
    assert.deepEqual(others.filter((line) => line !== ''), []);
    const steps = clocks.slice(1).map((clock, index) => clock - (clocks[index] ?? 0));
    assert.ok(steps.every((step) => step >= 0), `time goes back: ${steps.filter((step) => step < 0)}`);
    const last = clocks.at(-1) ?? 0;
    assert.ok(last > returned % 2 ** 40, `ffmpeg has stopped ${(returned % 2 ** 40) - last} ms before the publisher came back`);
  } finally {
    await studio.stop();
  }
});
