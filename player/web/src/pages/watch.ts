/** The watch page: plays a stream, and shows where it comes from. */

import Hls from 'hls.js';
import type { ErrorData } from 'hls.js';

import type { ShoalStats } from '../api.ts';
import { LiveFollower } from '../follow.ts';
import { liveConfig } from '../live-config.ts';
import { attach } from '../shoal.ts';
import type { Shoal } from '../shoal.ts';
import type { AuditEntry } from '../audit.ts';
import { STREAM_NAME, byId, setText } from './dom.ts';

/** How often a stream that is not there is looked for, in milliseconds; half of it again at random, so that a crowd
 * does not ask in step. */
const RETRY_MS = 2_000;
/** A stop is put into words when it lasts this long, in milliseconds. */
const STALL_WORDS_MS = 2_500;

/** What the page shows over the picture. */
type PageState = 'loading' | 'waiting' | 'playing' | 'stalled' | 'ended' | 'offline' | 'unsupported';

/** For benches, tests and the curious: `window.shoal` on the watch page. */
export interface WatchPage {
  readonly state: PageState;
  readonly player: Hls | null;
  readonly plugin: Shoal | null;
  readonly video: HTMLVideoElement;
  /** Milliseconds from the navigation's start to the first frame shown; null before. */
  readonly firstFrameMs: number | null;
  /** Milliseconds without playback for want of data since the first frame, and how often. */
  readonly rebuffer: { ms: number; count: number };
  getStats: () => ShoalStats | null;
  /** Everything that hls.js was given, when the page was opened with `?audit`. */
  getAudit: () => Promise<AuditEntry[]>;
  /** Glass-to-glass latency in milliseconds, read from the test pattern's clock; null when there is none. */
  readLatency: () => Promise<number | null>;
}

declare global {
  interface Window {
    shoal: WatchPage;
  }
}

const parameters = new URLSearchParams(location.search);
const stream = decodeURIComponent(location.pathname.split('/')[2] ?? '');
const source = `/live/${encodeURIComponent(stream)}/index.m3u8`;
const video = byId<HTMLVideoElement>('video');
const sharing = byId<HTMLInputElement>('sharing');

let hls: Hls | null = null;
let shoal: Shoal | null = null;
let follower: LiveFollower | null = null;
let state: PageState = 'loading';
let firstFrameMs: number | null = null;
let stalledSince: number | null = null;
let rebufferMs = 0;
let rebufferCount = 0;
let endedEpoch: string | null = null;
let retryTimer: ReturnType<typeof setTimeout> | undefined;
let recoveredAt = 0;
/** Said once, it holds for the page, however often the stream begins anew. */
let hasConsented = false;
/** The logs of players that are gone. */
const logs: BlobPart[] = [];

const words: Record<PageState, [title: string, text: string]> = {
  loading: ['Loading…', ''],
  waiting: [`Waiting for “${stream}”`, 'It is not live yet. Playback starts by itself when it is.'],
  playing: ['', ''],
  stalled: ['Waiting for the stream', 'Nothing new has come for a moment. Playback goes on by itself.'],
  ended: ['The stream has ended', 'If it comes back, playback starts by itself.'],
  offline: ['The server can’t be reached', 'Trying again by itself. Check your connection if this lasts.'],
  unsupported: [
    'This browser can’t play live streams here',
    'It lacks Media Source Extensions. Use a current Firefox, Chrome, Edge or Safari.',
  ],
};

function setState(next: PageState): void {
  if (next === state) return;
  state = next;
  const cover = byId('cover');
  cover.hidden = next === 'playing';
  const [title, text] = words[next];
  cover.children[0]?.replaceChildren(title);
  cover.children[1]?.replaceChildren(text);
  const badge = byId('badge');
  badge.hidden = next !== 'playing' && next !== 'ended';
  badge.className = next === 'playing' ? 'badge live' : 'badge';
  badge.textContent = next === 'playing' ? 'Live' : 'Ended';
}

function start(): void {
  stopPlayer();
  hls = new Hls({
    ...liveConfig('/assets/hls-worker.js'),
    // The page looks for a stream that is not there by itself, with words for the viewer.
    manifestLoadPolicy: {
      default: { maxTimeToFirstByteMs: 8_000, maxLoadTimeMs: 10_000, timeoutRetry: null, errorRetry: null },
    },
  });
  shoal = attach(hls, { sharing: sharing.checked, audit: parameters.has('audit'), log: parameters.has('log') });
  if (hasConsented) shoal.consent();
  shoal.on('stats', showStats);
  shoal.on('neighbors', () => {
    showStats();
  });
  shoal.on('state', () => {
    showStats();
  });
  hls.on(Hls.Events.ERROR, (_, data) => {
    handleError(data);
  });
  hls.on(Hls.Events.MANIFEST_LOADED, (_, { sessionData, url }) => {
    // Shown until the first frame is there, or somebody presses play.
    const poster = sessionData?.['live.shoal.poster']?.['VALUE'] as string | undefined;
    if (poster) video.poster = new URL(poster, new URL(url, location.href)).href;
  });
  hls.on(Hls.Events.MEDIA_ATTACHED, () => void play());
  hls.on(Hls.Events.LEVEL_LOADED, (_, { details }) => {
    // Only the last minute of a stream that is over: not worth beginning with.
    if (!details.live && firstFrameMs === null) setTimeout(() => { end(details.url); }, 0);
  });
  follower = new LiveFollower(hls, video);
  follower.onChange = showFollowing;
  hls.loadSource(source);
  hls.attachMedia(video);
}

function stopPlayer(): void {
  clearTimeout(retryTimer);
  hls?.destroy();
  hls = null;
  if (shoal) logs.push(shoal.takeLog());
  shoal = follower = null;
}

async function play(): Promise<void> {
  video.muted = parameters.get('muted') === '1';
  try {
    await video.play();
  } catch (error) {
    // Browsers let pages start by themselves without sound only.
    if (!(error instanceof DOMException) || error.name !== 'NotAllowedError') return;
    video.muted = true;
    await video.play().catch(() => undefined);
  }
  showUnmute();
}

function showFollowing(): void {
  byId('go-live').hidden = state !== 'playing' || follower === null || follower.isFollowing || !follower.isBehind;
}

function showUnmute(): void {
  byId('unmute').hidden = !video.muted || video.paused;
}

function handleError(data: ErrorData): void {
  if (!data.fatal) return;
  if (data.type === Hls.ErrorTypes.MEDIA_ERROR && performance.now() - recoveredAt > 5_000) {
    recoveredAt = performance.now();
    hls?.recoverMediaError();
    return;
  }
  const status = data.response?.code ?? 0;
  lookAgain(status === 404 || status === 410 ? 'waiting' : 'offline');
}

/** Ends the player and looks for the stream until it is there (again). */
function lookAgain(why: 'waiting' | 'offline' | 'ended'): void {
  stopPlayer();
  setState(why);
  retryTimer = setTimeout(() => void look(why), RETRY_MS * (0.5 + 0.5 * Math.random()));
}

async function look(why: 'waiting' | 'offline' | 'ended'): Promise<void> {
  let next = why;
  try {
    const response = await fetch(source, { cache: 'no-store', signal: AbortSignal.timeout(5_000) });
    const epoch = response.ok ? epochOf(await response.text()) : null;
    if (response.ok && (endedEpoch === null || epoch !== endedEpoch)) {
      setState('loading');
      start();
      return;
    }
    if (why === 'offline' && response.status < 500) next = 'waiting';
  } catch {
    if (why !== 'ended') next = 'offline';
  }
  lookAgain(next);
}

function epochOf(playlist: string): string | null {
  return /DATA-ID="live\.shoal\.epoch",VALUE="([^"]*)"/.exec(playlist)?.[1] ?? null;
}

function endStall(): void {
  if (stalledSince === null) return;
  rebufferMs += performance.now() - stalledSince;
  stalledSince = null;
}

/** The stream is over; `url` is of its playlist, and names the publication. */
function end(url: string): void {
  endedEpoch = /\/([0-9a-f]{32})\//.exec(url)?.[1] ?? '';
  endStall();
  lookAgain('ended');
}

function watchVideo(): void {
  video.addEventListener('playing', () => {
    endStall();
    setState('playing');
    showUnmute();
  });
  video.addEventListener('waiting', () => {
    if (firstFrameMs === null || video.paused || video.seeking || stalledSince !== null) return;
    stalledSince = performance.now();
    rebufferCount++;
  });
  video.addEventListener('timeupdate', () => {
    // Chromium does not always say `playing` after a short wait.
    if (stalledSince !== null && video.readyState > HTMLMediaElement.HAVE_CURRENT_DATA) endStall();
    if (state === 'stalled') setState('playing');
  });
  video.addEventListener('pause', endStall);
  video.addEventListener('ended', () => {
    end(hls?.levels[0]?.uri ?? '');
  });
  video.addEventListener('volumechange', showUnmute);
  const onFrame = (): void => {
    firstFrameMs ??= performance.now();
  };
  // Older Firefox has no callback for frames: there the first progress is close enough.
  if ('requestVideoFrameCallback' in video) video.requestVideoFrameCallback(onFrame);
  else (video as HTMLVideoElement).addEventListener('timeupdate', onFrame, { once: true });
  setInterval(() => {
    if (stalledSince !== null && performance.now() - stalledSince > STALL_WORDS_MS && state === 'playing') {
      setState('stalled');
    }
  }, 500);
}

function showStats(): void {
  const stats = shoal?.getStats() ?? null;
  if (!byId('details').hidden) showDetails(stats);
  if (!stats) return;
  const now = stats.peerShareNow ?? stats.peerShare;
  setText('share', now === null ? '–' : `${Math.round(100 * now)} %`);
  const bar = byId('bar');
  bar.classList.toggle('has-data', now !== null);
  (bar.firstElementChild as HTMLElement).style.transform = `scaleX(${(now ?? 0).toFixed(3)})`;
  setText('neighbors', String(stats.neighbors));
  setText('neighbors-noun', stats.neighbors === 1 ? 'neighbor' : 'neighbors');
  setText('behind', stats.latencyMs > 0 ? `${(stats.latencyMs / 1000).toFixed(1)} s` : '–');
  byId('consent').hidden = !stats.needsConsent;
}

/** Only who looks at the details downloads what they are put into words and drawn by. */
function showDetails(stats: ShoalStats | null): void {
  void import('./details.ts').then(
    ({ drawGraph, figures, sharingWords }) => {
      setText('sharing-words', sharingWords(sharing.checked, stats));
      if (!stats) return;
      for (const [id, text] of Object.entries(figures(stats, hls, video))) setText(id, text);
      drawGraph(byId<HTMLCanvasElement>('graph'), stats.history);
    },
    () => undefined,
  );
}

/** Where the switch's place is kept, if the browser lets pages keep anything. */
function storage(): Storage | null {
  try {
    return localStorage;
  } catch {
    return null;
  }
}

function setUpControls(): void {
  sharing.checked = (parameters.get('sharing') ?? storage()?.getItem('sharing')) !== 'off';
  sharing.addEventListener('change', () => {
    shoal?.setSharing(sharing.checked);
    showStats();
    // Last, because a full storage throws: what the viewer wants counts all the same.
    storage()?.setItem('sharing', sharing.checked ? 'on' : 'off');
  });
  byId('go-live').addEventListener('click', () => follower?.goLive());
  byId('unmute').addEventListener('click', () => {
    video.muted = false;
    video.focus();
  });
  byId('allow').addEventListener('click', () => {
    hasConsented = true;
    shoal?.consent();
    showStats();
  });
  const expand = byId('expand');
  expand.addEventListener('click', () => {
    const isOpen = expand.getAttribute('aria-expanded') !== 'true';
    expand.setAttribute('aria-expanded', String(isOpen));
    byId('details').hidden = !isOpen;
    showStats();
  });
  const save = byId('save-log');
  if (parameters.has('log')) {
    // Beforehand: when the log is wanted the server may have other files.
    void import('./details.ts').then(({ saveLog }) => {
      save.hidden = false;
      save.addEventListener('click', () => { saveLog(`${stream}.swarmlog`, [...logs, shoal?.takeLog() ?? '']); });
    });
  }
}

function setUp(): void {
  setText('name', stream);
  document.title = `${stream} · Shoal`;
  window.shoal = {
    get state() { return state; },
    get player() { return hls; },
    get plugin() { return shoal; },
    video,
    get firstFrameMs() { return firstFrameMs; },
    get rebuffer() {
      return { ms: rebufferMs + (stalledSince === null ? 0 : performance.now() - stalledSince), count: rebufferCount };
    },
    getStats: () => shoal?.getStats() ?? null,
    getAudit: () => shoal?.getAudit() ?? Promise.resolve([]),
    readLatency: async () => (await import('../clock.ts')).readLatency(video),
  };
  setUpControls();
  watchVideo();
  if (!STREAM_NAME.test(stream)) setState('waiting');
  else if (Hls.isSupported()) {
    start();
    addEventListener('pagehide', stopPlayer);
    // Back from the browser's page cache: the player is gone, so begin anew.
    addEventListener('pageshow', ({ persisted }) => {
      if (persisted) start();
    });
  } else if (video.canPlayType('application/vnd.apple.mpegurl') !== '') {
    // An iPhone without ManagedMediaSource: its own player, without peers.
    video.src = source;
    void play();
  } else setState('unsupported');
}

setUp();
