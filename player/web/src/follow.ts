/**
 * Keeps a viewer at the live edge.
 *
 * hls.js plays a little faster while a viewer is at most about one target duration behind its goal, and takes anybody
 * further back for somebody who wants to be there. But a viewer usually fell back by a stall or a sleeping laptop:
 * then this jumps forward inside what is buffered already, which costs no waiting. Who sought back or paused
 * stays, until {@link LiveFollower.goLive}.
 */

import type Hls from 'hls.js';

import { bufferedAhead } from './playback.ts';

/** How often the distance is looked at, in milliseconds. */
const INTERVAL_MS = 1_000;
/** After a jump the player gets this long to settle, in milliseconds. */
const SETTLE_MS = 5_000;
/** A seek back is one by at least this much, in seconds. */
const SEEK_BACK_MIN_S = 0.5;
/** The goal must be buffered with at least this much after it, in seconds, or the jump would be the next stall. */
const BUFFER_MIN_S = 0.5;
/** Far behind and without a buffer up to the goal, hls.js jumps by itself at this many target durations. */
const LATENCY_MAX_TARGET_DURATIONS = 8;

/** Where a player is, in seconds. */
export interface Position {
  latency: number;
  targetLatency: number;
  targetDuration: number;
  /** Where the playhead should be. */
  goal: number;
  /** The end of the buffered range that the playhead is in. */
  bufferedEnd: number;
}

/** Whether playback is further behind than speed alone makes good. */
export function isBehind({ latency, targetLatency, targetDuration }: Position): boolean {
  return latency - targetLatency > targetDuration;
}

/** Whether to jump to the goal: behind, and the goal is there to be played. */
export function isJumpWorthwhile(position: Position): boolean {
  return isBehind(position) && position.bufferedEnd - position.goal >= BUFFER_MIN_S;
}

/** Follows the live edge for one player; ends with it. */
export class LiveFollower {
  /** Called when {@link LiveFollower.isFollowing} or {@link LiveFollower.isBehind} may have changed. */
  onChange: () => void = () => undefined;
  #isFollowing = true;
  /** Where the playhead was before a seek. */
  #time = 0;
  #jumpedAt = -Infinity;
  readonly #abort = new AbortController();
  readonly #timer: ReturnType<typeof setInterval>;

  constructor(
    private readonly hls: Hls,
    private readonly video: HTMLVideoElement,
  ) {
    // Sets what is not among hls.js's first settings: there it is taken only together with a distance that overrides the
    // playlist's.
    this.#follow(true);
    const { signal } = this.#abort;
    video.addEventListener('timeupdate', () => {
      if (!video.seeking) this.#time = video.currentTime;
    }, { signal });
    video.addEventListener('seeking', () => { this.#handleSeek(); }, { signal });
    video.addEventListener('pause', () => { this.#follow(video.ended); }, { signal });
    video.addEventListener('play', () => { this.#handleSeek(); }, { signal });
    this.#timer = setInterval(() => { this.#tick(); }, INTERVAL_MS);
    const { Events } = hls.constructor as typeof Hls;
    hls.on(Events.DESTROYING, () => { this.destroy(); });
  }

  /** Whether the viewer is kept at the live edge; false after seeking back or pausing. */
  get isFollowing(): boolean {
    return this.#isFollowing;
  }

  /** Whether playback is visibly behind the live edge. */
  get isBehind(): boolean {
    const position = this.#position();
    return position !== null && isBehind(position);
  }

  /** Back to the live edge. */
  goLive(): void {
    const { liveSyncPosition } = this.hls;
    if (liveSyncPosition === null) return;
    this.#follow(true);
    this.#jump(liveSyncPosition);
    void this.video.play().catch(() => undefined);
  }

  /** Stops following. */
  destroy(): void {
    clearInterval(this.#timer);
    this.#abort.abort();
  }

  #tick(): void {
    const position = this.#position();
    if (position && this.#isFollowing && !this.video.paused && !this.video.seeking) {
      const isSettled = performance.now() - this.#jumpedAt > SETTLE_MS;
      if (isSettled && isJumpWorthwhile(position)) this.#jump(position.goal);
    }
    this.onChange();
  }

  #jump(goal: number): void {
    this.#jumpedAt = performance.now();
    this.video.currentTime = goal;
  }

  #handleSeek(): void {
    // Only going back is a viewer's wish: hls.js itself seeks forward, by a little over gaps and by much to the edge.
    const isBack = this.video.currentTime < this.#time - SEEK_BACK_MIN_S;
    if (!this.isBehind) this.#follow(true);
    else if (isBack) this.#follow(false);
  }

  #follow(on: boolean): void {
    this.#isFollowing = on;
    // Who wants to be further back must not be brought here by hls.js either.
    this.hls.config.liveMaxLatencyDurationCount = on ? LATENCY_MAX_TARGET_DURATIONS : Infinity;
    this.onChange();
  }

  #position(): Position | null {
    const { hls, video } = this;
    const { latestLevelDetails: details, liveSyncPosition: goal, targetLatency } = hls;
    if (!details?.live || goal === null || targetLatency === null || video.readyState === 0) return null;
    const { buffered, currentTime } = video;
    const bufferedEnd = currentTime + bufferedAhead(buffered, currentTime);
    // Not `hls.latency`: it is of the last `timeupdate`, so that after a seek it speaks of the place before.
    const latency = details.edge + details.age - currentTime;
    return { latency, targetLatency, targetDuration: details.targetduration, goal, bufferedEnd };
  }
}
