/**
 * The best open player with peers, p2p-media-loader 2.3.1, on a stream and a tracker of ours: a small site with one page.
 */

import { readFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { Server as HttpServer, ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';

import type { Browser, Tab, TabOptions } from './browsers.ts';

const MODULES = new URL('../node_modules/', import.meta.url);
/** Its prebuilt modules, and the hls.js that it was developed against. */
const FILES: Record<string, string> = {
  '/core.js': 'p2p-media-loader-core/dist/p2p-media-loader-core.es.min.js',
  '/hlsjs.js': 'p2p-media-loader-hlsjs/dist/p2p-media-loader-hlsjs.es.min.js',
  '/hls.js': 'hls.js-1.6/dist/hls.min.js',
};

/** How a page plays. */
export interface RivalOptions extends TabOptions {
  /** With whom it swaps. */
  swarm: string;
  /** Segments behind the live edge; hls.js's default without. */
  behind?: number;
  /** With the settings under which it swaps live streams at all; else as it comes. */
  isTuned: boolean;
}

/** What a page has seen so far. */
export interface Seen {
  peers: number;
  /** Media bytes from peers. */
  received: number;
  /** Media bytes that the player was given. */
  used: number;
  frames: number;
  warnings: string[];
}

/** `?swarm=`, `&behind=` and `&tuned` as in {@link RivalOptions}. */
function page(playlist: string, tracker: string): string {
  return `<!doctype html><meta charset=utf-8><title>p2p-media-loader</title>
<style>body { margin: 0 } video { width: 100% }</style><video muted playsinline></video>
<script type=importmap>{"imports":{"p2p-media-loader-core":"/core.js"}}</script><script src=/hls.js></script>
<script type=module>
import { HlsJsP2PEngine } from '/hlsjs.js';
const asked = new URLSearchParams(location.search);
const seen = (window.seen = { peers: 0, received: 0, used: 0, frames: 0, warnings: [] });
const Player = HlsJsP2PEngine.injectMixin(window.Hls);
const core = {
  swarmId: asked.get('swarm'),
  announceTrackers: [${JSON.stringify(tracker)}],
  rtcConfig: { iceServers: [] },
  // By default it asks peers for what is needed in more than 15 s, which live players never are ahead.
  ...(asked.has('tuned') ? { highDemandTimeWindow: 2 } : {}),
};
const hls = new Player({
  // Its workers take the buffers that are to be sent to peers.
  ...(asked.has('tuned') ? { enableWorker: false } : {}),
  // It swaps whole segments only.
  lowLatencyMode: false,
  ...(asked.has('behind') ? { liveSyncDurationCount: Number(asked.get('behind')) } : {}),
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
const { Events } = window.Hls;
hls.on(Events.MANIFEST_PARSED, () => video.play());
hls.on(Events.FRAG_BUFFERED, (_, { stats }) => (seen.used += stats.total));
hls.loadSource(${JSON.stringify(playlist)});
hls.attachMedia(video);
</script>`;
}

/**
 * A playlist without LL-HLS, media by absolute URLs. The rival knows a playlist by its address, and loses sight of one
 * that is asked for with delivery directives: it would load everything from the origin.
 */
function withoutLowLatency(playlist: string, url: string): string {
  const plain = playlist.replace(/^#EXT-X-(SERVER-CONTROL|PART|PRELOAD-HINT|RENDITION-REPORT).*\n/gm, '');
  if (!plain.includes('#EXTINF')) return plain;
  const absolute = (uri: string): string => new URL(uri, url).href;
  return plain.replace(/^[^#\n].*$/gm, absolute).replace(/URI="([^"]*)"/g, (_, uri: string) => `URI="${absolute(uri)}"`);
}

/** The site; close it after use. */
export class RivalSite {
  private constructor(
    private readonly pages: HttpServer,
    private readonly url: string,
  ) {}

  /** Serves the page for a stream of `server`, whose `/announce` is its tracker. */
  static async start(server: string, stream: string): Promise<RivalSite> {
    const html = page(`/live/${stream}/index.m3u8`, `${server.replace('http', 'ws')}/announce`);
    const answer = async (pathname: string, response: ServerResponse): Promise<void> => {
      const file = FILES[pathname];
      if (file !== undefined) {
        response.writeHead(200, { 'content-type': 'text/javascript' }).end(await readFile(new URL(file, MODULES)));
      } else if (pathname.endsWith('.m3u8')) {
        const url = server + pathname;
        const playlist = await fetch(url);
        response.writeHead(playlist.status, { 'content-type': 'application/vnd.apple.mpegurl' });
        response.end(withoutLowLatency(await playlist.text(), url));
      } else if (pathname.startsWith('/assets/')) {
        // The reader of the clock in the picture is the same for both players.
        const asset = await fetch(server + pathname);
        response.writeHead(asset.status, { 'content-type': asset.headers.get('content-type') ?? '' });
        response.end(new Uint8Array(await asset.arrayBuffer()));
      } else {
        response.writeHead(200, { 'content-type': 'text/html' }).end(html);
      }
    };
    const pages = createServer((request, response) => {
      answer(new URL(request.url ?? '/', 'http://x').pathname, response).catch(() => response.writeHead(404).end());
    });
    await new Promise<void>((resolve) => pages.listen(0, '127.0.0.1', resolve));
    return new RivalSite(pages, `http://127.0.0.1:${(pages.address() as AddressInfo).port}`);
  }

  /** Opens the page; it plays by itself. */
  async open(browser: Browser, options: RivalOptions): Promise<Tab> {
    const tab = await browser.open(options);
    await this.load(tab, options);
    return tab;
  }

  /** The same in a tab that is there already. */
  async load(tab: Tab, options: RivalOptions): Promise<void> {
    const behind = options.behind === undefined ? '' : `&behind=${options.behind}`;
    await tab.goto(`${this.url}/?swarm=${options.swarm}${behind}${options.isTuned ? '&tuned' : ''}`);
  }

  close(): void {
    this.pages.close();
  }
}

/** What a page of the site has seen. */
export function look(tab: Tab): Promise<Seen> {
  return tab.evaluate<Seen>('window.seen');
}

/** Glass to glass in milliseconds, from the clock in the picture; null where a frame has none. */
export function latencyMs(tab: Tab): Promise<number | null> {
  return tab.evaluate<number | null>(
    "import('/assets/clock.js').then(({ readLatency }) => readLatency(document.querySelector('video')))",
  );
}
