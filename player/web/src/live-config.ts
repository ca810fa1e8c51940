/** hls.js settings for live streams with low latency; what the watch page uses, and a good start for others. */

import type { HlsConfig } from 'hls.js';

/**
 * Settings for `new Hls(…)`. `workerPath` is where the page serves hls.js's worker script from its own origin, which
 * a strict Content-Security-Policy allows and a `blob:` worker would not be; without it hls.js works on the main
 * thread.
 */
export function liveConfig(workerPath: string | null = null): Partial<HlsConfig> {
  return {
    lowLatencyMode: true,
    // The target distance is the playlist's PART-HOLD-BACK, because nothing else is set here. A viewer who is a
    // little behind comes back to it at a speed that nobody hears; `LiveFollower` is for those further back.
    maxLiveSyncPlaybackRate: 1.1,
    // A stall moves the target back by this much, so that a bad network finds its own distance.
    liveSyncOnStallIncrease: 0.25,
    liveDurationInfinity: true,
    // What was played is left for the browser to evict, which it does when its quota for media is full. When hls.js trims it
    // (1.7.4), a part that is being appended just then counts as not loaded any more, and loading stands still until the
    // playlist lists no parts of that segment: a pause of about 5 s, once or twice in a minute.
    backBufferLength: Infinity,
    maxBufferLength: 20,
    enableWorker: workerPath !== null,
    workerPath,
    // A part is worth nothing after a few seconds; the playlist's own timeouts stay as they are.
    fragLoadPolicy: {
      default: {
        maxTimeToFirstByteMs: 5_000,
        maxLoadTimeMs: 20_000,
        timeoutRetry: { maxNumRetry: 4, retryDelayMs: 0, maxRetryDelayMs: 0 },
        errorRetry: { maxNumRetry: 6, retryDelayMs: 500, maxRetryDelayMs: 4_000 },
      },
    },
  };
}
