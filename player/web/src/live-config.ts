/** hls.js settings for live streams with low latency; what the watch page uses, and a good start for others. */

import type Hls from 'hls.js';
import type { HlsConfig } from 'hls.js';

/** A viewer who is more target durations behind than this jumps to the live edge: after a laptop's sleep, catching up
 * would take longer than anybody waits. Set it with {@link boundLatency}. */
const LATENCY_MAX_TARGET_DURATIONS = 8;

/** Makes hls.js jump when it is far behind. Apart from {@link liveConfig}, because hls.js takes this setting among its
 * first ones only together with a distance that would override the playlist's. */
export function boundLatency(hls: Hls): void {
  hls.config.liveMaxLatencyDurationCount = LATENCY_MAX_TARGET_DURATIONS;
}

/**
 * Settings for `new Hls(…)`. `workerPath` is where the page serves hls.js's worker script from its own origin, which
 * a strict Content-Security-Policy allows and a `blob:` worker would not be; without it hls.js works on the main
 * thread.
 */
export function liveConfig(workerPath: string | null = null): Partial<HlsConfig> {
  return {
    lowLatencyMode: true,
    // The target distance is the playlist's PART-HOLD-BACK, because nothing else is set here. A viewer who fell behind
    // comes back to it at a speed that nobody hears.
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
