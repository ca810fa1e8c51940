/**
 * The fragment loader that hls.js is given: asks the swarm for parts and segments, and hands everything else, and
 * everything that the swarm can't answer, to the loader that hls.js would have used.
 *
 * Speaks hls.js's vocabulary (`frag`, `part`). One loader serves one request.
 */

import type {
  FragmentLoaderConstructor,
  FragmentLoaderContext,
  HlsConfig,
  Loader,
  LoaderCallbacks,
  LoaderConfiguration,
  LoaderStats,
} from 'hls.js';
import type { Request, Target } from './swarm/requests.ts';
import type { Provenance, Stored } from './swarm/store.ts';

/** What the loaders of one player share. */
export interface LoaderPort {
  /** The loader for everything that does not come from the swarm. */
  plain: FragmentLoaderConstructor;
  /** Which piece or segment the request is for; null when it is none of the swarm's: initialisation segments, byte
   * ranges, other playlists. */
  targetOf: (context: FragmentLoaderContext) => Target | null;
  /** Asks the swarm; returns what aborts the request, or null when there is no swarm to ask. */
  request: (request: Request) => (() => void) | null;
  /** Bytes that came over plain HTTP and are about to be played; false when they must not be, because a signed record
   * says otherwise. The bytes are the receiver's to keep. */
  offerLoaded: (target: Target, bytes: Uint8Array<ArrayBuffer>, tookMs: number) => Promise<boolean> | true;
  /** What hls.js takes the line to carry, in bit/s. */
  bandwidthBps: () => number;
  /** Bytes are about to be handed to the player; `offset` is their place in the resource. */
  onHandOver: (url: string, offset: number, data: ArrayBuffer, from: Provenance, isFromSwarm: boolean) => void;
}

type Callbacks = LoaderCallbacks<FragmentLoaderContext>;

/** Makes the class that goes into hls.js's `fLoader`. */
export function createLoaderClass(port: LoaderPort): FragmentLoaderConstructor {
  let last: LoaderStats | undefined;
  return class implements Loader<FragmentLoaderContext> {
    context: FragmentLoaderContext | null = null;
    stats: LoaderStats;
    /** Made at once, for its statistics: hls.js holds on to them, whoever loads. */
    readonly #plain: Loader<FragmentLoaderContext>;
    #isPlain = false;
    /** Aborted or destroyed: hls.js is not to hear of it any more. */
    #isOver = false;
    #cancel: (() => void) | null = null;
    #callbacks: Callbacks | null = null;

    constructor(private readonly config: HlsConfig) {
      this.#plain = new port.plain(config);
      this.stats = this.#plain.stats;
    }

    load(context: FragmentLoaderContext, config: LoaderConfiguration, callbacks: Callbacks): void {
      this.context = context;
      this.#callbacks = callbacks;
      // In hls.js's progressive mode bytes are played while they arrive, before anything could be verified.
      const target = this.config.progressive ? null : port.targetOf(context);
      if (!target) {
        this.#loadPlain(context, config, callbacks, null);
        return;
      }
      const { stats } = this;
      stats.loading.start = performance.now();
      let isSettled = false;
      const cancel = port.request({
        target,
        timeoutMs: config.loadPolicy.maxLoadTimeMs,
        onAnswer: (answer) => {
          isSettled = true;
          this.#cancel = null;
          fillStats(stats, answer, performance.now(), port.bandwidthBps(), parseMs(last));
          last = stats;
          port.onHandOver(context.url, 0, answer.data, answer, true);
          const response = { url: context.url, data: answer.data, code: 200 };
          callbacks.onSuccess(response, stats, context, null);
        },
        onFallback: () => {
          isSettled = true;
          this.#cancel = null;
          this.#loadPlain(context, config, callbacks, target);
        },
      });
      if (cancel) {
        // The core may answer at once, and hls.js may then have destroyed this loader already.
        // eslint-disable-next-line @typescript-eslint/no-unnecessary-condition -- set by the callbacks above
        if (!isSettled) this.#cancel = cancel;
      } else this.#loadPlain(context, config, callbacks, target);
    }

    abort(): void {
      this.#isOver = true;
      if (this.#isPlain) {
        this.#plain.abort();
        return;
      }
      this.#release();
      this.stats.aborted = true;
      if (this.context) this.#callbacks?.onAbort?.(this.stats, this.context, null);
    }

    destroy(): void {
      this.#isOver = true;
      this.#release();
      this.#plain.destroy();
      this.#callbacks = null;
      this.context = null;
    }

    getCacheAge(): number | null {
      return this.#plain.getCacheAge?.() ?? null;
    }

    getResponseHeader(name: string): string | null {
      return this.#plain.getResponseHeader?.(name) ?? null;
    }

    #release(): void {
      this.#cancel?.();
      this.#cancel = null;
    }

    #loadPlain(
      context: FragmentLoaderContext,
      config: LoaderConfiguration,
      callbacks: Callbacks,
      target: Target | null,
    ): void {
      this.#isPlain = true;
      // It starts the clock itself.
      this.stats.loading.start = 0;
      const onSuccess: Callbacks['onSuccess'] = (response, stats, answered, details) => {
        const { data } = response;
        const handOver = (): void => {
          if (data instanceof ArrayBuffer) {
            port.onHandOver(context.url, context.rangeStart ?? 0, data, { peerBytes: 0, originBytes: data.byteLength }, false);
          }
          callbacks.onSuccess(response, stats, answered, details);
        };
        const tookMs = stats.loading.end - stats.loading.start;
        // A copy, because hls.js's worker detaches what it is given.
        const verdict =
          !target || !(data instanceof ArrayBuffer) || port.offerLoaded(target, new Uint8Array(data.slice(0)), tookMs);
        if (verdict === true) {
          handOver();
          return;
        }
        void verdict.then((isGood) => {
          if (this.#isOver) return;
          if (isGood) handOver();
          else callbacks.onError({ code: 0, text: 'the bytes do not match their record' }, answered, details, stats);
        });
      };
      this.#plain.load(context, config, { ...callbacks, onSuccess });
    }
  };
}

/** How long hls.js took to parse an answer, in milliseconds: it adds that to the time that the bytes travelled. */
function parseMs(stats?: LoaderStats): number {
  return stats ? Math.max(0, stats.parsing.end - stats.loading.end) : 0;
}

/**
 * Tells hls.js how long the bytes really travelled. It divides bytes by this time to choose a rendition, so bytes that
 * lay in the piece store already must not look as if they had come in no time, nor bytes for which the core waited
 * patiently as if the line were slow. How fast peers send says how fast the line is at least: blocks come along many trees, as
 * their parents have them. Taken for the line's speed it would make viewers choose less and less.
 */
export function fillStats(stats: LoaderStats, answer: Stored, now: number, bandwidthBps: number, parsingMs: number): void {
  const total = answer.data.byteLength;
  const expectedMs = Math.max(0, (8_000 * total) / bandwidthBps - parsingMs);
  // A player of its own kind may have no estimate (NaN): then the time stands as it was.
  const tookMs = answer.originBytes === 0 && expectedMs < answer.transferMs ? expectedMs : answer.transferMs;
  stats.loading.start = stats.loading.first = now - tookMs;
  stats.loading.end = now;
  stats.loaded = stats.total = total;
  stats.chunkCount = 1;
  stats.bwEstimate = (8_000 * total) / Math.max(1, tookMs);
}
