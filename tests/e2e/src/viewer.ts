/** A viewer: the watch page in a browser's tab, and what can be measured in it. */

import type { Browser, Tab, TabOptions } from './browsers.ts';
import { pause, until } from './wait.ts';

/**
 * Watches the page's video element from before its first frame: when it came, and how long playback stood still
 * after it. Reads only what any script of the page could, and asks for frames only while it waits for one: a callback
 * for every frame would keep the page's main thread busy, eight pages on a small machine would notice.
 */
export const PROBE = `
  window.shoalProbe = { firstFrameMs: null, rebufferMs: 0, waitingSince: null, stalls: [] };
  (() => {
    const probe = window.shoalProbe;
    const watch = (video) => {
      video.requestVideoFrameCallback(() => { probe.firstFrameMs = performance.now(); });
      const onFrameAfterWait = () => {
        const took = performance.now() - probe.waitingSince;
        probe.rebufferMs += took;
        probe.stalls.push({ at: probe.waitingSince - probe.firstFrameMs, took });
        probe.waitingSince = null;
      };
      // A viewer sees a pause from the moment the element waits until the next frame, seeks included.
      video.addEventListener('waiting', () => {
        if (probe.firstFrameMs === null || probe.waitingSince !== null) return;
        probe.waitingSince = performance.now();
        video.requestVideoFrameCallback(onFrameAfterWait);
      });
    };
    const find = () => {
      const video = document.querySelector('video');
      if (video) watch(video);
      return video !== null;
    };
    if (!find()) {
      const observer = new MutationObserver(() => { if (find()) observer.disconnect(); });
      observer.observe(document, { childList: true, subtree: true });
    }
  })();
`;

/** Frames that the video element has shown: decoded, and not dropped. */
export const SHOWN_FRAMES = `(() => {
  const quality = document.querySelector('video')?.getVideoPlaybackQuality();
  return quality ? quality.totalVideoFrames - quality.droppedVideoFrames : 0;
})()`;

/** The page's statistics, as the player's \`getStats()\` gives them; only what tests look at. */
export interface Stats {
  state: string;
  reason: string | null;
  neighbors: number;
  isTrackerJoined: boolean;
  peerBytes: number;
  originBytes: number;
  sentBytes: number;
  wasteBytes: number;
  rejectedBytes: number;
  /** Time that the swarm has taken on the page's main thread. */
  busyMs: number;
  latencyMs: number;
  bufferMs: number;
}

/** An entry of the player's audit: one range of bytes that hls.js was given. */
export interface AuditEntry {
  url: string;
  offset: number;
  length: number;
  source: 'swarm' | 'plain';
  peerBytes: number;
  originBytes: number;
  sha256: string;
  at: number;
}

/** What the video element showed; times in milliseconds. */
export interface Probe {
  /** Since the navigation began. */
  firstFrameMs: number | null;
  rebufferMs: number;
  /** Pauses that are over, by the time since the first frame. */
  stalls: { at: number; took: number }[];
}

/** What the probe in a tab has seen; a pause that goes on counts up to now. */
export async function readProbe(tab: Tab): Promise<Probe> {
  const text = await tab.evaluate<string>(`JSON.stringify({
    ...window.shoalProbe,
    rebufferMs: window.shoalProbe.rebufferMs
      + (window.shoalProbe.waitingSince === null ? 0 : performance.now() - window.shoalProbe.waitingSince),
  })`);
  return JSON.parse(text) as Probe;
}

export interface ViewerOptions extends TabOptions {
  sharing?: boolean;
}

/** The watch page in a tab. */
export class Viewer {
  readonly tab: Tab;
  #isClosed = false;

  private constructor(tab: Tab) {
    this.tab = tab;
  }

  /** Opens the watch page; it plays by itself. */
  static async open(browser: Browser, server: string, stream: string, options: ViewerOptions = {}): Promise<Viewer> {
    const tab = await browser.open({ ...options, prelude: PROBE + (options.prelude ?? '') });
    return Viewer.load(tab, server, stream, options.sharing);
  }

  /** The same in a tab that is there already, with {@link PROBE} as its prelude. */
  static async load(tab: Tab, server: string, stream: string, sharing = true): Promise<Viewer> {
    // Named, because the page remembers how its switch was left.
    const query = `?audit&sharing=${sharing ? 'on' : 'off'}`;
    await tab.goto(`${server}/watch/${stream}${query}`);
    return new Viewer(tab);
  }

  /** A page that plays already, such as a recording's. */
  static in(tab: Tab): Viewer {
    return new Viewer(tab);
  }

  /** Waits until frames are being shown. */
  async untilPlaying(timeoutMs = 30_000): Promise<void> {
    await until('the viewer shows moving pictures', () => this.tab.evaluate<boolean>(`${SHOWN_FRAMES} > 10`), timeoutMs)
      .catch(async (error: unknown) => {
        throw new Error(`${String(error)}\n${await this.describe()}`);
      });
  }

  /** Everything that helps to understand why a viewer does not play. */
  async describe(): Promise<string> {
    const page = await this.tab
      .evaluate<string>(
        `JSON.stringify({
          cover: document.querySelector('#cover')?.innerText, probe: window.shoalProbe,
          video: (({ readyState, currentTime, paused, error }) => ({ readyState, currentTime, paused, error: error?.message }))(document.querySelector('video')),
          stats: window.shoal?.getStats?.(),
        }, (key, value) => key === 'history' ? undefined : value)`,
      )
      .catch(String);
    return `page: ${page}\nerrors: ${this.tab.errors.join('\n')}`;
  }

  async stats(): Promise<Stats> {
    const text = await this.tab.evaluate<string>('JSON.stringify(window.shoal.getStats())');
    return JSON.parse(text) as Stats;
  }

  async audit(): Promise<AuditEntry[]> {
    const text = await this.tab.evaluate<string>('window.shoal.getAudit().then((entries) => JSON.stringify(entries))');
    return JSON.parse(text) as AuditEntry[];
  }

  probe(): Promise<Probe> {
    return readProbe(this.tab);
  }

  /** Frames that the decoder has put out. */
  decodedFrames(): Promise<number> {
    return this.tab.evaluate<number>("document.querySelector('video').getVideoPlaybackQuality().totalVideoFrames");
  }

  /** Glass to glass, from the clock in the picture; null where a frame has none. */
  latencyMs(): Promise<number | null> {
    return this.tab.evaluate<number | null>('window.shoal.readLatency()');
  }

  /** The loudest moment of half a second of sound, 0 to 1. */
  audioLevel(): Promise<number> {
    return this.tab.evaluate<number>(`(async () => {
      const video = document.querySelector('video');
      video.muted = false;
      if (!window.shoalAnalyser) {
        const context = new AudioContext();
        await context.resume();
        const analyser = context.createAnalyser();
        analyser.fftSize = 2048;
        // From the element itself: works in every browser, and before the volume of the machine.
        context.createMediaElementSource(video).connect(analyser);
        analyser.connect(context.destination);
        window.shoalAnalyser = analyser;
      }
      const samples = new Float32Array(window.shoalAnalyser.fftSize);
      let peak = 0;
      for (let index = 0; index < 20; index++) {
        window.shoalAnalyser.getFloatTimeDomainData(samples);
        for (const sample of samples) peak = Math.max(peak, Math.abs(sample));
        await new Promise((resolve) => setTimeout(resolve, 25));
      }
      return peak;
    })()`);
  }

  /** Frames shown over a time, for asserting that playback goes on. */
  async framesIn(ms: number): Promise<number> {
    const before = await this.tab.evaluate<number>(SHOWN_FRAMES);
    await pause(ms);
    return (await this.tab.evaluate<number>(SHOWN_FRAMES)) - before;
  }

  /** Seconds by which playback advanced over a time. */
  async progressIn(ms: number): Promise<number> {
    const position = (): Promise<number> => this.tab.evaluate<number>("document.querySelector('video').currentTime");
    const before = await position();
    await pause(ms);
    return (await position()) - before;
  }

  /** Closes the tab; a second time does nothing. */
  async close(): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
    await this.tab.close();
  }
}
