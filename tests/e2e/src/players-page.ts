/**
 * Players of others side by side in one page, each behind the same few questions. Bundled by `players.ts`.
 *
 * Nothing here knows of Shoal: each player is set up as its manual says.
 */

import Hls from 'hls.js';
import shakaModule from 'shaka-player';
import videojsModule from 'video.js';

// Their declarations are written for bundlers' idea of a default export, which is what happens here; the compiler
// follows Node's.
const shaka = shakaModule as unknown as typeof shakaModule.default;
const videojs = videojsModule as unknown as typeof videojsModule.default;

/** What a test may ask of any player. */
export interface Player {
  video: HTMLVideoElement;
  /** The earliest moment that can be sought to. */
  seekStart(): number;
  /** The latest. */
  seekEnd(): number;
  /** The wall-clock time of the picture that is shown, in milliseconds. */
  dateMs(): number | null;
  /** The heights of the pictures that can be chosen from. */
  heights(): number[];
  /** Chooses one, from now on. */
  choose(height: number): void;
}

/** Errors that the player itself calls fatal. */
const failures: Record<string, string[]> = {};
const players: Record<string, Player> = {};

function fail(name: string, what: unknown): void {
  (failures[name] ??= []).push(String(what));
}

function element(name: string): HTMLVideoElement {
  const video = document.createElement('video');
  video.id = name;
  video.muted = true;
  video.playsInline = true;
  video.width = 160;
  document.body.append(video);
  return video;
}

function playHls(name: string, url: string, lowLatencyMode: boolean): Player {
  const video = element(name);
  const hls = new Hls({ lowLatencyMode });
  hls.on(Hls.Events.ERROR, (_, data) => {
    if (data.fatal) fail(name, `${data.details}: ${data.error.message}`);
  });
  hls.loadSource(url);
  hls.attachMedia(video);
  hls.on(Hls.Events.MANIFEST_PARSED, () => void video.play());
  const edge = (index: 'start' | 'end'): number => (video.seekable.length > 0 ? video.seekable[index](0) : 0);
  return {
    video,
    seekStart: () => edge('start'),
    seekEnd: () => edge('end'),
    dateMs: () => hls.playingDate?.getTime() ?? null,
    heights: () => hls.levels.map(({ height }) => height),
    choose: (height) => (hls.nextLevel = hls.levels.findIndex((level) => level.height === height)),
  };
}

/** Shaka's numbers for failed requests and for gaps: it is told to try again, and whether it plays on is what counts. */
const TRIED_AGAIN = [1001, 1002, 1003, 1011];

async function playShaka(name: string, url: string, lowLatencyMode: boolean): Promise<Player> {
  shaka.polyfill.installAll();
  const video = element(name);
  const player = new shaka.Player();
  await player.attach(video);
  // By itself it tries again after failed requests, but gives up where the newest segment is a gap, as while a publisher is
  // away.
  const failureCallback = (): void => void player.retryStreaming(1);
  player.configure({ streaming: { lowLatencyMode, failureCallback } });
  player.addEventListener('error', (event: Event) => {
    const { code, severity, data } = (event as Event & { detail: { code: number; severity: number; data: unknown[] } }).detail;
    if (severity === 2 && !TRIED_AGAIN.includes(code)) fail(name, `error ${code} ${JSON.stringify(data)}`);
  });
  await player.load(url);
  await video.play();
  return {
    video,
    seekStart: () => player.seekRange().start,
    seekEnd: () => player.seekRange().end,
    dateMs: () => player.getPlayheadTimeAsDate()?.getTime() ?? null,
    heights: () => player.getVariantTracks().map(({ height }) => height ?? 0),
    choose: (height) => {
      player.configure({ abr: { enabled: false } });
      const track = player.getVariantTracks().find((one) => one.height === height);
      if (track) player.selectVariantTrack(track, true);
    },
  };
}

function playVideoJs(name: string, url: string): Player {
  const video = element(name);
  // Its low-latency mode, an experiment that is on unless told otherwise, stops at recordings and at changes of size.
  const player = videojs(video, { html5: { vhs: { llhls: false, overrideNative: true } }, liveui: true, muted: true });
  player.on('error', () => fail(name, player.error()?.message));
  player.src({ src: url, type: 'application/x-mpegURL' });
  player.ready(() => void player.play());
  // video.js moves the element into a box of its own.
  const inner = player.el().querySelector('video') ?? video;
  const edge = (index: 'start' | 'end'): number => {
    const range = player.seekable();
    return range && range.length > 0 ? range[index](0) : 0;
  };
  const dateMs = (): number | null => {
    // A list of its own kind, without an iterator.
    const tracks = Array.from(player.textTracks() as unknown as ArrayLike<TextTrack>);
    const cues = tracks.find(({ label }) => label === 'segment-metadata')?.activeCues;
    const cue = cues?.[0] as (TextTrackCue & { value: { dateTimeObject?: Date } }) | undefined;
    return cue?.value.dateTimeObject?.getTime() ?? null;
  };
  type Representation = { height?: number; enabled(is: boolean): boolean };
  // Not in its declarations, and there once it plays.
  const representations = (): Representation[] =>
    (player.tech(true) as unknown as { vhs?: { representations(): Representation[] } }).vhs?.representations() ?? [];
  return {
    video: inner,
    seekStart: () => edge('start'),
    seekEnd: () => edge('end'),
    dateMs,
    heights: () => representations().map(({ height }) => height ?? 0),
    choose: (height) => representations().forEach((one) => one.enabled(one.height === height)),
  };
}

/** Starts players, each on its own URL. */
async function start(urls: Record<string, string>): Promise<void> {
  const starts: Record<string, (name: string, url: string) => Player | Promise<Player>> = {
    'hls.js LL': (name, url) => playHls(name, url, true),
    'hls.js': (name, url) => playHls(name, url, false),
    'Shaka LL': (name, url) => playShaka(name, url, true),
    Shaka: (name, url) => playShaka(name, url, false),
    'video.js': playVideoJs,
  };
  // Entries beyond the first 250 are dropped otherwise.
  performance.setResourceTimingBufferSize(100_000);
  for (const [name, url] of Object.entries(urls)) {
    try {
      players[name] = await (starts[name] ?? (() => Promise.reject(new Error('no such player'))))(name, url);
    } catch (error) {
      fail(name, error instanceof Error ? error.message : JSON.stringify(error));
    }
  }
}

/** What a player shows. */
export interface Shown {
  position: number;
  frames: number;
  width: number;
  height: number;
  dateMs: number | null;
  hasEnded: boolean;
  failures: string[];
  /** For whoever asks why it does not play. */
  state: string;
}

/** What each player shows now. */
function look(): Record<string, Shown> {
  const names = new Set([...Object.keys(players), ...Object.keys(failures)]);
  return Object.fromEntries(
    [...names].map((name) => {
      const player = players[name];
      const { video } = player ?? {};
      return [
        name,
        {
          position: video?.currentTime ?? 0,
          frames: video?.getVideoPlaybackQuality().totalVideoFrames ?? 0,
          width: video?.videoWidth ?? 0,
          height: video?.videoHeight ?? 0,
          dateMs: player?.dateMs() ?? null,
          hasEnded: video?.ended ?? false,
          failures: failures[name] ?? [],
          state: `ready ${video?.readyState} paused ${video?.paused} seekable ${player?.seekStart()}..${player?.seekEnd()} buffered ${ranges(video?.buffered)} error ${video?.error?.message}`,
        },
      ];
    }),
  );
}

function ranges(buffered: TimeRanges | undefined): string {
  return Array.from({ length: buffered?.length ?? 0 }, (_, at) => `${buffered?.start(at)}..${buffered?.end(at)}`).join(' ');
}

/** How many low-latency parts were fetched from a host. */
function parts(host: string): number {
  const entries = performance.getEntriesByType('resource').map(({ name }) => new URL(name));
  return entries.filter(({ hostname, pathname }) => hostname === host && pathname.includes('/part-')).length;
}

/** Seeks each player: so many seconds behind the end, or to the start and so many seconds. */
function seek(from: 'start' | 'end', seconds: number): void {
  for (const player of Object.values(players)) {
    const target = from === 'start' ? player.seekStart() + seconds : player.seekEnd() - seconds;
    player.video.currentTime = Math.max(target, player.seekStart());
    void player.video.play();
  }
}

/** The heights that each player can choose from, in order. */
function heights(): Record<string, number[]> {
  return Object.fromEntries(Object.entries(players).map(([name, player]) => [name, player.heights().sort((a, b) => a - b)]));
}

/** Lets each player play the picture of this height. */
function choose(height: number): void {
  Object.values(players).forEach((player) => player.choose(height));
}

Object.assign(window, { page: { start, look, parts, seek, heights, choose } });
