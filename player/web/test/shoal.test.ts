import assert from 'node:assert/strict';
import { test } from 'node:test';

import type Hls from 'hls.js';
import { attach } from '../src/shoal.ts';
import type { Shoal } from '../src/shoal.ts';
import { FakeConnection } from './fake-connection.ts';
import { EPOCH, KEY, MODULE_BYTES } from './real-core.ts';

/** As much of hls.js as the plug-in needs before anything is played. */
class FakeHls {
  static Events = { MANIFEST_LOADING: 'manifestLoading', MANIFEST_LOADED: 'manifestLoaded', DESTROYING: 'destroying' };
  static ErrorDetails = {};
  readonly config = {};
  readonly levels = [];
  readonly audioTracks = [];
  readonly media = Object.assign(new EventTarget(), { readyState: 4, paused: true, currentTime: 0, buffered: { length: 0 } });
  #handlers = new Map<string, (event: string, data: unknown) => void>();

  on(event: string, handle: (event: string, data: unknown) => void): void {
    this.#handlers.set(event, handle);
  }

  off(): void {
    // Nobody says anything any more.
  }

  say(event: string, data?: unknown): void {
    this.#handlers.get(event)?.(event, data);
  }
}

const manifest = {
  url: 'http://127.0.0.1:1/live/demo/index.m3u8',
  levels: [{ url: 'http://127.0.0.1:1/live/demo/e/v0/playlist.m3u8' }],
  audioTracks: [],
  sessionData: Object.fromEntries(
    Object.entries({ key: KEY.toString('base64'), epoch: Buffer.from(EPOCH).toString('hex'), stream: 'demo', tracker: '/tracker' })
      .map(([name, value]) => [`live.shoal.${name}`, { VALUE: value }]),
  ),
};

/** Waits until there is a core, whose tracker can't be reached here. */
function joined(shoal: Shoal): Promise<void> {
  return new Promise((resolve, reject) => {
    const off = shoal.on('error', ({ code, message }) => {
      off();
      if (code === 'tracker-refused') resolve();
      else reject(new Error(`${code}: ${message}`));
    });
  });
}

const beginnings = (log: Uint8Array): number => Buffer.from(log).toString('latin1').split('shoalog').length - 1;

test('the log has all since the player was attached: again when it is taken again, and of cores that have ended', async (context) => {
  FakeConnection.install();
  context.mock.method(globalThis, 'fetch', () => Promise.resolve(new Response(MODULE_BYTES)));
  Object.assign(globalThis, {
    HTMLMediaElement: { HAVE_CURRENT_DATA: 2 },
    matchMedia: () => ({ matches: false }),
    WebSocket: function WebSocket() { throw new Error('refused'); },
  });
  Object.defineProperty(globalThis, 'navigator', { configurable: true, value: {} });
  const hls = new FakeHls();
  const shoal = attach(hls as unknown as Hls, { log: true, wasmUrl: 'http://127.0.0.1:1/swarm.wasm' });
  // It looks after things each second until it ends.
  context.after(() => { shoal.destroy(); });
  assert.equal(shoal.takeLog().length, 0, 'there is no core yet');
  hls.say('manifestLoaded', manifest);
  await joined(shoal);
  const first = shoal.takeLog();
  assert.equal(beginnings(first), 1);
  assert.deepEqual(shoal.takeLog(), first, 'a second save has as much');
  shoal.setSharing(false);
  const ended = shoal.takeLog();
  assert.ok(ended.length > first.length, 'with the goodbye');
  shoal.setSharing(true);
  await joined(shoal);
  const second = shoal.takeLog();
  assert.deepEqual(second.subarray(0, ended.length), ended);
  assert.equal(beginnings(second), 2);
  shoal.destroy();
  assert.ok(shoal.takeLog().length > second.length, 'also when all is over');
});
