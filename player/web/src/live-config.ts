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
    // What was played is kept for small steps back only: memory is wanted for the piece store.
    backBufferLength: 10,
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
