/** Another player's swarm on our tracker: p2p-media-loader 2.3.1 finds its peers through `/announce`. */

import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import type { Server as HttpServer } from 'node:http';
import { readFile } from 'node:fs/promises';
import type { AddressInfo } from 'node:net';
import { after, before, test } from 'node:test';

import { startChromium } from '../src/browsers.ts';
import type { Browser, Tab } from '../src/browsers.ts';
import { Server } from '../src/program.ts';
import type { Program } from '../src/program.ts';
import { until } from '../src/wait.ts';

const STREAM = 'elsewhere';
const SMALL = ['--size', '256x144', '--fps', '15', '--bitrate', '200k'];
/** Segments behind the live edge at which the first of two players plays, and the second: the first holds what it needs. */
const BEHIND = [3, 6];
const MODULES = new URL('../node_modules/', import.meta.url);
/** Its prebuilt modules, and the hls.js that it was developed against. */
const FILES: Record<string, string> = {
  '/core.js': 'p2p-media-loader-core/dist/p2p-media-loader-core.es.min.js',
  '/hlsjs.js': 'p2p-media-loader-hlsjs/dist/p2p-media-loader-hlsjs.es.min.js',
  '/hls.js': 'hls.js-1.6/dist/hls.min.js',
};

interface Seen {
  peers: number;
  received: number;
  frames: number;
  warnings: string[];
}

let server: Server;
let publisher: Program;
let browser: Browser;
let pages: HttpServer;
let origin: string;

/** `?swarm=` says with whom it swaps, `&behind=` how many segments behind the live edge it plays. */
function page(playlist: string, tracker: string): string {
  return `<!doctype html><meta charset=utf-8><title>p2p-media-loader</title><video muted playsinline></video>
<script type=importmap>{"imports":{"p2p-media-loader-core":"/core.js"}}</script><script src=/hls.js></script>
<script type=module>
import { HlsJsP2PEngine } from '/hlsjs.js';
const asked = new URLSearchParams(location.search);
const seen = (window.seen = { peers: 0, received: 0, frames: 0, warnings: [] });
const Player = HlsJsP2PEngine.injectMixin(window.Hls);
const core = {
  swarmId: asked.get('swarm'),
  announceTrackers: [${JSON.stringify(tracker)}],
  rtcConfig: { iceServers: [] },
  // By default it asks peers for what is needed in more than 15 s, which live players never are ahead.
  highDemandTimeWindow: 2,
};
const hls = new Player({
  // Its workers take the buffers that are to be sent to peers.
  enableWorker: false,
  lowLatencyMode: false,
  liveSyncDurationCount: Number(asked.get('behind')),
  p2p: {
    core,
    onHlsJsCreated: ({ p2pEngine }) => {
      p2pEngine.addEventListener('onPeerConnect', () => (seen.peers += 1));
      p2pEngine.addEventListener('onChunkDownloaded', (bytes, source) => {
        if (source === 'p2p') seen.received += bytes;
      });
      p2pEngine.addEventListener('onTrackerError', ({ error }) => seen.warnings.push(String(error)));
      p2pEngine.addEventListener('onTrackerWarning', ({ warning }) => seen.warnings.push(String(warning)));
    },
  },
});
const video = document.querySelector('video');
setInterval(() => (seen.frames = video.getVideoPlaybackQuality().totalVideoFrames), 200);
hls.on(window.Hls.Events.MANIFEST_PARSED, () => video.play());
hls.loadSource(${JSON.stringify(playlist)});
hls.attachMedia(video);
</script>`;
}

before(async () => {
  server = await Server.start();
  publisher = await server.publish(STREAM, SMALL);
  const playlist = `${server.url}/live/${STREAM}/index.m3u8`;
  const tracker = `${server.url.replace('http', 'ws')}/announce`;
  pages = createServer((request, response) => {
    const { pathname } = new URL(request.url ?? '/', 'http://x');
    const file = FILES[pathname];
    if (file === undefined) {
      response.writeHead(200, { 'content-type': 'text/html' });
      response.end(page(playlist, tracker));
      return;
    }
    readFile(new URL(file, MODULES)).then(
      (bytes) => response.writeHead(200, { 'content-type': 'text/javascript' }).end(bytes),
      () => response.writeHead(404).end(),
    );
  });
  await new Promise<void>((resolve) => pages.listen(0, '127.0.0.1', resolve));
  origin = `http://127.0.0.1:${(pages.address() as AddressInfo).port}`;
  browser = await startChromium();
});
after(async () => {
  await browser?.close();
  pages?.close();
  await publisher?.stop();
  await server?.stop();
});

async function open(swarm: string, behind: number): Promise<Tab> {
  const tab = await browser.open({ width: 320, height: 200 });
  await tab.goto(`${origin}/?swarm=${swarm}&behind=${behind}`);
  return tab;
}

const look = (tab: Tab): Promise<Seen> => tab.evaluate<Seen>('window.seen');

/** Waits for what a player has seen; where it does not come, all that it saw is told. */
async function untilSeen(what: string, tab: Tab, isIt: (seen: Seen) => boolean): Promise<void> {
  await until(what, async () => isIt(await look(tab)), 60_000).catch(async (error: unknown) => {
    throw new Error(`${String(error)}\n${JSON.stringify(await look(tab))}\n${tab.errors.join('\n')}`);
  });
}

test('two players of one swarm find each other and swap, one of another swarm stays alone', async () => {
  const [ahead, behind] = BEHIND as [number, number];
  await until('there are enough segments', async () => {
    const [playlist] = await server.mediaPlaylists(STREAM);
    return playlist !== undefined && (await (await fetch(playlist)).text()).split('#EXTINF').length > behind + 1;
  }, 60_000);
  const first = await open('one', ahead);
  const stranger = await open('another', ahead);
  const tabs = [first, stranger];
  try {
    await untilSeen('the first plays', first, ({ frames }) => frames > 10);
    const second = await open('one', behind);
    tabs.push(second);
    await untilSeen('the first has a peer', first, ({ peers }) => peers >= 1);
    await untilSeen('the second has a peer', second, ({ peers }) => peers >= 1);
    await untilSeen('bytes came from it', second, ({ received }) => received > 0);
    await untilSeen('the second plays', second, ({ frames }) => frames > 10);
    assert.ok((await server.metric('tracker_announces_total')) >= 3, 'they announced to us');
    // The stranger has announced, too, and plays the same stream: it is by their swarm that the others met.
    await untilSeen('the stranger plays', stranger, ({ frames }) => frames > 10);
    assert.equal((await look(stranger)).peers, 0);
    for (const tab of tabs) assert.deepEqual((await look(tab)).warnings, [], 'the tracker understood everything');
  } finally {
    for (const tab of tabs) await tab.close();
  }
});
