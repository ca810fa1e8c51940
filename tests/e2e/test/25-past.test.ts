/** What was published long ago: viewers who go back in a live stream, and those who watch a recording, take it from each other. */

import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';

import { startChromium } from '../src/browsers.ts';
import type { Browser } from '../src/browsers.ts';
import { assertVerified } from '../src/checks.ts';
import { Server } from '../src/program.ts';
import type { Program } from '../src/program.ts';
import { Viewer } from '../src/viewer.ts';
import { pause, until } from '../src/wait.ts';

const STREAM = 'past';
/** How far viewers go back, in seconds: more than hls.js's patience with those who fall behind, and than memory holds. */
const BACK_S = 30;

let folder: string;
let server: Server;
let publisher: Program;
let chromium: Browser;

before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'shoal-past-'));
  server = await Server.start({
    SEGMENTER_PART_MS: '500',
    SEGMENTER_WINDOW_MS: '20000',
    SEGMENTER_DVR_MS: '600000',
    SEGMENTER_RECORDING: 'true',
    SEGMENTER_STORAGE: folder,
    SEGMENTER_GRACE_MS: '1000',
  });
  publisher = await server.publish(STREAM, ['--size', '640x360', '--bitrate', '1500k']);
  chromium = await startChromium();
});
after(async () => {
  await chromium?.close();
  await publisher?.stop();
  await server?.stop();
  await rm(folder, { recursive: true, force: true });
});

/** Seconds that can be gone back to, as far as a page knows. */
async function seekableSeconds(viewer: Viewer): Promise<number> {
  return viewer.tab.evaluate<number>("shoal.video.seekable.length && shoal.video.currentTime - shoal.video.seekable.start(0)");
}

async function behindSeconds(viewer: Viewer): Promise<number> {
  return viewer.tab.evaluate<number>('shoal.player.liveSyncPosition - shoal.video.currentTime');
}

async function assertPlaysVerified(viewer: Viewer): Promise<void> {
  assert.ok((await viewer.progressIn(2_000)) > 1, 'playback goes on');
  assert.equal((await viewer.stats()).rejectedBytes, 0);
  await assertVerified(await viewer.audit());
}

test('who goes back in a live stream stays there, and has what others went back to before', async () => {
  const [first, second] = [await Viewer.open(chromium, server.url, STREAM), await Viewer.open(chromium, server.url, STREAM)];
  const viewers = [first, second];
  for (const viewer of viewers) await viewer.untilPlaying();
  await until('there is enough to go back to', async () => (await seekableSeconds(first)) > BACK_S + 10, 90_000);
  // Those who follow have nothing so old: the first fetches it, the second takes it from the first.
  await first.tab.evaluate(`shoal.video.currentTime -= ${BACK_S}, 0`);
  await pause(12_000);
  await second.tab.evaluate(`shoal.video.currentTime = ${await first.tab.evaluate<number>('shoal.video.currentTime')} - 8, 0`);
  await pause(1_000);
  const { peerBytes: before } = await second.stats();
  await until('the second has bytes from the first', async () => (await second.stats()).peerBytes > before + 100_000, 30_000)
    .catch(async (error: unknown) => {
      throw new Error(`${String(error)}\n${await second.describe()}`);
    });
  for (const viewer of viewers) {
    assert.ok((await behindSeconds(viewer)) > BACK_S - 15, 'nobody was taken back to the live edge');
    await assertPlaysVerified(viewer);
  }
  await first.tab.evaluate("document.getElementById('go-live').click(), 0");
  await until('the first is live again', async () => (await behindSeconds(first)) < 2, 15_000);
  await assertPlaysVerified(first);
  for (const viewer of viewers) await viewer.close();
});

test('viewers of a recording take it from each other, and one by himself plays all the same', async () => {
  await publisher.stop();
  const recording = await until('the recording is closed', async () => {
    const list = (await (await fetch(`${server.url}/api/recordings`)).json()) as { state: string; epoch: string }[];
    return list.find(({ state }) => state === 'closed');
  }, 30_000);
  const viewers: Viewer[] = [];
  for (let index = 0; index < 2; index++) {
    const tab = await chromium.open();
    await tab.goto(`${server.url}/recording/${STREAM}/${recording.epoch}?audit`);
    await tab.evaluate('shoal.video.muted = true, shoal.video.play(), 0');
    const viewer = Viewer.in(tab);
    await viewer.untilPlaying();
    assert.ok((await viewer.progressIn(2_000)) > 1, 'playback goes on');
    viewers.push(viewer);
    await pause(index === 0 ? 15_000 : 0);
  }
  const [first, second] = viewers as [Viewer, Viewer];
  await until('the second has bytes from the first', async () => (await second.stats()).peerBytes > 300_000, 40_000)
    .catch(async (error: unknown) => {
      throw new Error(`${String(error)}\n${await second.describe()}`);
    });
  // Into what the first loaded before it was in the swarm, and the second, too.
  await second.tab.evaluate('shoal.video.currentTime = 1, 0');
  for (const viewer of viewers) await assertPlaysVerified(viewer);
  assert.ok((await first.stats()).sentBytes > 300_000, 'the first has passed it on');
  const words = await second.tab.evaluate<string>("document.getElementById('share').innerText");
  assert.match(words, /^[1-9]\d? %$/, 'the page says so');
  for (const viewer of viewers) await viewer.close();
});
