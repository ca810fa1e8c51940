/**
 * Whatever of the swarm is missing or fails, playback goes on from the origin, no unverified byte reaches the player,
 * and nothing freezes.
 */

import assert from 'node:assert/strict';
import { after, afterEach, before, test } from 'node:test';

import { startChromium } from '../src/browsers.ts';
import type { Browser } from '../src/browsers.ts';
import { assertVerified } from '../src/checks.ts';
import { Server } from '../src/program.ts';
import type { Program } from '../src/program.ts';
import { Door, deadPort } from '../src/proxy.ts';
import { Viewer } from '../src/viewer.ts';
import type { ViewerOptions } from '../src/viewer.ts';
import { pause, until } from '../src/wait.ts';

const STREAM = 'sturdy';
const PUBLISH = ['--size', '640x360', '--bitrate', '1000k'];
/** Playback that advances by less than this share of the time that passes is a freeze. */
const PROGRESS_MIN = 0.6;

let browser: Browser;
let server: Server;
let publisher: Program;

before(async () => {
  browser = await startChromium();
  server = await Server.start();
  publisher = await server.publish(STREAM, PUBLISH);
});
after(async () => {
  await publisher?.stop();
  await server?.stop();
  await browser?.close();
});

/** Asserts that a viewer plays on for a while without a freeze and was given only the origin's bytes. */
async function assertPlaysOn(viewer: Viewer, ms = 5_000): Promise<void> {
  const progress = await viewer.progressIn(ms);
  assert.ok(progress > (PROGRESS_MIN * ms) / 1000, `${progress} s of video in ${ms} ms\n${await viewer.describe()}`);
  await assertVerified(await viewer.audit());
}

const viewers: Viewer[] = [];

async function open(options: ViewerOptions = {}, from = server): Promise<Viewer> {
  const viewer = await Viewer.open(browser, from.url, STREAM, options);
  viewers.push(viewer);
  await viewer.untilPlaying();
  return viewer;
}

// Also after a failure: a viewer left over would be the next test's neighbor.
afterEach(async () => {
  for (const viewer of viewers.splice(0)) await viewer.close();
});

/** Notes how each range is fetched. */
const RANGES = `
  globalThis.ranges = [];
  const plainFetch = globalThis.fetch;
  globalThis.fetch = (url, init) => {
    if (init?.headers?.Range) globalThis.ranges.push(init.cache);
    return plainFetch(url, init);
  };
`;

test('control: two viewers without any fault swap parts', async () => {
  const pair = [await open({ prelude: RANGES }), await open({ prelude: RANGES })];
  for (const viewer of pair) {
    await until('parts come from the other', async () => (await viewer.stats()).peerBytes > 50_000, 45_000).catch(
      async (error: unknown) => {
        throw new Error(`${String(error)}\n${await viewer.describe()}`);
      },
    );
    await assertPlaysOn(viewer, 2_000);
  }
  // Chromium's cache lets one range of a URL through at a time: a root's six would come one after the other.
  const ranges = await Promise.all(pair.map((viewer) => viewer.tab.evaluate<string[]>('globalThis.ranges')));
  assert.deepEqual([...new Set(ranges.flat())], ['no-store']);
});

/** A clock that can be put forward. */
const CLOCK = `
  globalThis.forwardMs = 0;
  const plainNow = performance.now.bind(performance);
  performance.now = () => plainNow() + globalThis.forwardMs;
`;

test('paused for more than a minute: nothing is sent or taken any more, until playback goes on', async () => {
  const [paused, other] = [await open({ prelude: CLOCK }), await open()];
  await until('they are neighbors', async () => (await paused.stats()).neighbors === 1, 45_000);
  await paused.tab.evaluate("document.querySelector('video').pause()");
  await pause(3_000);
  assert.equal((await paused.stats()).neighbors, 1, 'a short pause changes nothing');
  await paused.tab.evaluate('void (globalThis.forwardMs = 60_000)');
  await until('it left', async () => (await other.stats()).neighbors === 0);
  const { state, peerBytes, sentBytes } = await paused.stats();
  assert.equal(state, 'idle');
  await assertPlaysOn(other, 3_000);
  const later = await paused.stats();
  assert.deepEqual([later.peerBytes, later.sentBytes], [peerBytes, sentBytes]);
  await paused.tab.evaluate("document.querySelector('video').play()");
  await until('it is back', async () => (await paused.stats()).neighbors === 1, 45_000);
  await assertPlaysOn(paused, 3_000);
});

test('WebAssembly refused: plays from the origin and says why', async () => {
  const viewer = await open({ prelude: "WebAssembly.compile = WebAssembly.instantiate = WebAssembly.compileStreaming = WebAssembly.instantiateStreaming = () => Promise.reject(new WebAssembly.CompileError('refused by the test'));" });
  await until('the state is known', async () => (await viewer.stats()).state === 'origin');
  assert.equal((await viewer.stats()).reason, 'wasm-refused');
  await assertPlaysOn(viewer);
});

test('WebAssembly absent: plays from the origin and says why', async () => {
  const viewer = await open({ prelude: 'delete globalThis.WebAssembly;' });
  await until('the state is known', async () => (await viewer.stats()).state === 'origin');
  assert.equal((await viewer.stats()).reason, 'wasm-refused');
  await assertPlaysOn(viewer);
});

test('WebRTC absent: plays from the origin and says why', async () => {
  const viewer = await open({ prelude: 'delete globalThis.RTCPeerConnection; delete globalThis.webkitRTCPeerConnection;' });
  await until('the state is known', async () => (await viewer.stats()).state === 'origin');
  assert.equal((await viewer.stats()).reason, 'webrtc-absent');
  await assertPlaysOn(viewer);
});

test('sharing switched off while playing closes every connection at once and plays on', async () => {
  const [one, other] = [await open(), await open()];
  await until('they are neighbors', async () => (await one.stats()).neighbors === 1, 45_000);
  // The switch is drawn by its label.
  await one.tab.click('#expand');
  await one.tab.evaluate("document.querySelector('#sharing').click()");
  await until('no neighbor is left', async () => (await one.stats()).neighbors === 0, 2_000);
  assert.equal((await one.stats()).state, 'off');
  const { peerBytes, sentBytes } = await one.stats();
  await assertPlaysOn(one);
  await assertPlaysOn(other);
  const later = await one.stats();
  assert.deepEqual([later.peerBytes, later.sentBytes], [peerBytes, sentBytes], 'nothing moved after the switch');
  await one.tab.goto(`${server.url}/watch/${STREAM}?audit`);
  await one.untilPlaying();
  assert.equal((await one.stats()).state, 'off', 'the page remembers it');
});

test('all peers gone: plays on', async () => {
  const [one, other] = [await open(), await open()];
  await until('parts come from the other', async () => (await one.stats()).peerBytes > 50_000, 45_000);
  await other.close();
  await assertPlaysOn(one, 6_000);
  await until('the neighbor is forgotten', async () => (await one.stats()).neighbors === 0, 30_000);
  await assertPlaysOn(one, 2_000);
});

/** Replaces the bytes of blocks on their way out, while everything else of the client is as it should be. */
const LIAR = `
  globalThis.liesTold = 0;
  const send = RTCDataChannel.prototype.send;
  RTCDataChannel.prototype.send = function (data) {
    const bytes = data instanceof ArrayBuffer ? new Uint8Array(data.slice(0)) : ArrayBuffer.isView(data) ? new Uint8Array(data.buffer, data.byteOffset, data.byteLength).slice() : null;
    if (bytes && bytes.length > 1024) {
      bytes[bytes.length - 200] ^= 0xff;
      globalThis.liesTold += 1;
      return send.call(this, bytes);
    }
    return send.call(this, data);
  };
`;

test('a peer that serves garbage: none of it is played, and playback goes on', async () => {
  const liar = await open({ prelude: LIAR });
  const victim = await open();
  await until('the victim was sent garbage', async () => (await victim.stats()).rejectedBytes > 0, 60_000).catch(
    async (error: unknown) => {
      throw new Error(`${String(error)}\n${await victim.describe()}\nliar: ${await liar.describe()}`);
    },
  );
  assert.ok((await liar.tab.evaluate<number>('globalThis.liesTold')) > 0);
  await assertPlaysOn(victim, 6_000);
  // A liar is not believed for ever: it is no longer a neighbor.
  await until('the liar is left', async () => (await victim.stats()).neighbors === 0, 30_000);
  await assertPlaysOn(victim, 6_000);
});

/** Sends nonsense into every data channel as soon as it opens and now and then afterwards. */
const BABBLER = `
  globalThis.babbled = 0;
  const babble = (channel) => {
    const timer = setInterval(() => {
      if (channel.readyState !== 'open') { if (channel.readyState === 'closed') clearInterval(timer); return; }
      const bytes = new Uint8Array([0, 1, 7, 100, 20_000][globalThis.babbled % 5]);
      for (let index = 0; index < bytes.length; index++) bytes[index] = Math.random() * 256;
      try {
        channel.send(globalThis.babbled % 7 === 0 ? 'text '.repeat(globalThis.babbled % 50) : bytes);
        globalThis.babbled += 1;
      } catch {}
    }, 50);
  };
  const create = RTCPeerConnection.prototype.createDataChannel;
  RTCPeerConnection.prototype.createDataChannel = function (...args) {
    const channel = create.apply(this, args);
    babble(channel);
    return channel;
  };
`;

test('a peer that babbles: playback goes on', async () => {
  const babbler = await open({ prelude: BABBLER });
  const victim = await open();
  // A single piece of nonsense may be enough to be left, so more is not waited for.
  await until('nonsense was sent', async () => (await babbler.tab.evaluate<number>('globalThis.babbled')) > 0, 60_000);
  await assertPlaysOn(victim, 6_000);
  assert.deepEqual(victim.tab.errors, []);
});

test('tracker down from the start: plays from the origin and says why', async () => {
  const port = await deadPort();
  const lonely = await Server.start({ SEGMENTER_TRACKER_URL: `ws://127.0.0.1:${port}/tracker` });
  const source = await lonely.publish(STREAM, PUBLISH);
  try {
    const viewer = await open({}, lonely);
    await until('the state is known', async () => (await viewer.stats()).state === 'origin');
    assert.equal((await viewer.stats()).reason, 'tracker-away');
    await assertPlaysOn(viewer);
  } finally {
    await source.stop();
    await lonely.stop();
  }
});

test('tracker killed while playing: neighbors stay, playback goes on', async () => {
  // The tracker is reached by a door, so that it can die while the origin in the same program lives. The door's
  // target is only known once the server listens, and its port has to be told to the server at its start.
  const target = await deadPort();
  const door = await Door.open(target);
  const split = await Server.start({
    HTTP_LISTEN: `127.0.0.1:${target}`,
    SEGMENTER_TRACKER_URL: `ws://127.0.0.1:${door.port}/tracker`,
  });
  const source = await split.publish(STREAM, PUBLISH);
  try {
    const pair = [await open({}, split), await open({}, split)];
    for (const viewer of pair) {
      await until('parts come from the other', async () => (await viewer.stats()).peerBytes > 50_000, 45_000);
    }
    assert.ok(door.connections >= 2, 'both came through the door');
    await door.shut();
    for (const viewer of pair) await until('the loss is noticed', async () => !(await viewer.stats()).isTrackerJoined);
    const before = await Promise.all(pair.map((viewer) => viewer.stats()));
    for (const viewer of pair) await assertPlaysOn(viewer, 6_000);
    await pause(2_000);
    const later = await Promise.all(pair.map((viewer) => viewer.stats()));
    for (const [index, stats] of later.entries()) {
      assert.equal(stats.neighbors, 1, 'the neighbors keep each other');
      assert.ok(stats.peerBytes > (before[index]?.peerBytes ?? 0), 'parts are still swapped');
    }
  } finally {
    await source.stop();
    await split.stop();
  }
});
