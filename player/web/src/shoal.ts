/**
 * The plug-in: joins an hls.js player to its stream's swarm.
 *
 * Composes the loader, the swarm driver and the tracker's socket, and decides which of them exist: nothing while
 * sharing is off, nothing where the browser lacks WebRTC or refuses WebAssembly. Whatever is missing or fails, hls.js
 * goes on with plain HTTP; nothing here is ever fatal to playback.
 */

import type Hls from 'hls.js';
import type { FragmentLoaderConstructor, FragmentLoaderContext, HlsListeners, ManifestLoadedData } from 'hls.js';

import type { ShoalErrorCode, ShoalEvents, ShoalOptions, ShoalState, ShoalStats } from './api.ts';
import type { Audit, AuditEntry } from './audit.ts';
import { Emitter } from './emitter.ts';
import { createLoaderClass } from './loader.ts';
import type { Log } from './log.ts';
import { Meter } from './meter.ts';
import {
  bufferedAhead,
  connection,
  defaultStoreBytesMax,
  isPhone,
  isStallOver,
  playingUrls,
  programTimeAt,
} from './playback.ts';
import { Catalog, readSessionData } from './swarm/catalog.ts';
import type { StreamInfo } from './swarm/catalog.ts';
import { Stat, loadCore, randomSeed } from './swarm/core.ts';
import type { CoreFactory } from './swarm/core.ts';
import { makeVerifier } from './swarm/verifier.ts';
import type { Verifier } from './swarm/verifier.ts';
import { Driver } from './swarm/driver.ts';
import { Neighbors, makeCertificate } from './swarm/neighbors.ts';
import type { Target } from './swarm/requests.ts';
import { TrackerSocket } from './swarm/tracker.ts';

/** The playhead is reported to the core this often while nothing happens, in milliseconds. */
const PLAYHEAD_INTERVAL_MS = 1_000;
/** Who has not played for so long leaves the swarm, which goes on sending the stream, until playback goes on; in milliseconds. */
const PAUSE_MAX_MS = 60_000;
/** The module is loaded and the swarm joined when the first picture is there, at the latest after this time, in
 * milliseconds: start-up needs the line and the processor for itself. */
const JOIN_DELAY_MAX_MS = 3_000;
/** Whole pieces loaded before the core is ready, kept for it, in bytes: the start of a 4 Mbit/s stream. */
const EARLY_BYTES_MAX = 8 * 1024 * 1024;

interface Source {
  info: StreamInfo;
  catalog: Catalog;
}

interface Early {
  target: Target;
  bytes: Uint8Array<ArrayBuffer>;
  tookMs: number;
}

/** A player's membership in a swarm. Made by {@link attach}. */
export class Shoal extends Emitter<ShoalEvents> {
  readonly #hls: Hls;
  readonly #options: ShoalOptions;
  readonly #plain: FragmentLoaderConstructor;
  readonly #ownFLoader: FragmentLoaderConstructor | undefined;
  readonly #meter = new Meter();
  /** Loaded only where it was asked for. */
  readonly #audit: Promise<Audit> | null;
  /** Loaded with the first core, and only where it was asked for. */
  #log: Log | undefined;
  readonly #cleanUps: (() => void)[] = [];
  #isSharing: boolean;
  #isDestroyed = false;
  #state: ShoalState = 'idle';
  #reason: ShoalErrorCode | null = null;
  #source: Source | null = null;
  #driver: Driver | null = null;
  #tracker: TrackerSocket | null = null;
  /** Grows with each start, so that a module that arrives late can tell that nobody waits for it any more. */
  #run = 0;
  #early: Early[] = [];
  #needsConsent = false;
  #hasConsent = false;
  #media: HTMLMediaElement | null = null;
  #hasPlayed = false;
  #isStalled = false;
  /** The video element's time when the stall began. */
  #stalledTime = 0;
  /** Ends the wait for the first picture. */
  #warmUp: () => void = () => undefined;
  #playing: number[] = [];
  /** When playback was last seen going on, or began to be waited for. */
  #activeAt = 0;

  /** Use {@link attach}. */
  constructor(hls: Hls, options: ShoalOptions) {
    super();
    this.#hls = hls;
    this.#options = options;
    this.#isSharing = options.sharing ?? true;
    this.#audit = options.audit ? import('./audit.ts').then(({ Audit }) => new Audit()) : null;
    this.#ownFLoader = hls.config.fLoader;
    this.#plain = this.#ownFLoader ?? (hls.config.loader as unknown as FragmentLoaderConstructor);
    hls.config.fLoader = this.#makeLoader();
    this.#listen();
    const timer = setInterval(() => {
      this.#tick();
    }, PLAYHEAD_INTERVAL_MS);
    this.#cleanUps.push(() => {
      clearInterval(timer);
    });
  }

  /** The state now; changes are announced by the event of the same name. */
  get state(): ShoalState {
    return this.#state;
  }

  /** Whether this viewer takes part in the swarm. */
  get isSharing(): boolean {
    return this.#isSharing;
  }

  /** Turns sharing on or off, at once: off closes every connection to other viewers and to the tracker. */
  setSharing(on: boolean): void {
    if (on === this.#isSharing || this.#isDestroyed) return;
    this.#isSharing = on;
    if (on) this.#start();
    else {
      this.#stop();
      this.#setState(this.#source ? 'off' : 'idle');
    }
  }

  /** The viewer agrees to connect to other viewers, where {@link ShoalStats.needsConsent} says that this is asked for. */
  consent(): void {
    this.#hasConsent = true;
    if (!this.#needsConsent) return;
    this.#needsConsent = false;
    this.#tracker?.send({ type: 'consent' });
  }

  /** Whether nothing is uploaded: uploading would cost the viewer money, as far as the browser tells, or is not wished. Phones
   * whose browser does not tell, as on iOS, may be on cellular. */
  #isMetered(): boolean {
    const network = connection();
    const { upload } = this.#options;
    if (!network) return !(upload ?? !isPhone());
    return upload === false || network.saveData === true || network.type === 'cellular';
  }

  /** Measurements so far. */
  getStats(): ShoalStats {
    const totals = this.#totals();
    const core = this.#driver?.stats();
    const recent = this.#meter.mean(15);
    const rates = this.#meter.mean(5);
    const media = this.#media;
    return {
      state: this.#state,
      reason: this.#state === 'origin' ? this.#reason : null,
      isSharing: this.#isSharing,
      isMetered: this.#isMetered(),
      needsConsent: this.#needsConsent,
      isTrackerJoined: this.#tracker?.isJoined === true,
      neighbors: this.#driver?.neighbors.length ?? 0,
      ...totals,
      wasteBytes: (core?.[Stat.DuplicateBytes] ?? 0) + (core?.[Stat.LateBytes] ?? 0),
      rejectedBytes: core?.[Stat.RejectedBytes] ?? 0,
      peerShare: share(totals.peerBytes, totals.originBytes),
      peerShareNow: share(recent.peerBps, recent.originBps),
      peerRateBps: rates.peerBps,
      originRateBps: rates.originBps,
      sentRateBps: rates.sentBps,
      latencyMs: this.#hls.latency * 1000,
      bufferMs: media ? bufferedAhead(media.buffered, media.currentTime) * 1000 : 0,
      busyMs: this.#driver?.busyMs ?? 0,
      storeBytes: this.#driver?.storeBytes ?? 0,
      uplinkBps: core?.[Stat.UplinkBps] ?? 0,
      history: this.#meter.history,
      counters: Array.from(core ?? []),
    };
  }

  /** Everything that hls.js was given, with digests; empty unless attached with `audit`. */
  getAudit(): Promise<AuditEntry[]> {
    return this.#audit?.then((audit) => audit.entries()) ?? Promise.resolve([]);
  }

  /** All inputs of the swarm core since it was attached, also of cores that have ended or failed; the native core replays them
   * with the same outputs. Empty unless attached with `log`. */
  takeLog(): Uint8Array<ArrayBuffer> {
    return this.#log?.bytes ?? new Uint8Array();
  }

  /** Leaves the swarm and gives hls.js its own loader back. */
  destroy(): void {
    if (this.#isDestroyed) return;
    this.#isDestroyed = true;
    this.#stop();
    for (const cleanUp of this.#cleanUps.splice(0)) cleanUp();
    // hls.js drops its configuration when it is destroyed, so there may be nothing to give back.
    const config = this.#hls.config as Hls['config'] | undefined;
    if (!config) return;
    if (this.#ownFLoader) config.fLoader = this.#ownFLoader;
    else delete config.fLoader;
  }

  #makeLoader(): FragmentLoaderConstructor {
    return createLoaderClass({
      plain: this.#plain,
      targetOf: (context) => this.#targetOf(context),
      request: (request) => this.#driver?.request(request) ?? null,
      offerLoaded: (target, bytes, tookMs) => this.#offerLoaded(target, bytes, tookMs),
      bandwidthBps: () => this.#hls.bandwidthEstimate,
      onHandOver: (url, offset, data, from, isFromSwarm) => {
        if (!isFromSwarm) this.#meter.plainBytes += data.byteLength;
        if (this.#audit) {
          // hls.js's worker detaches what it is given.
          const copy = data.slice(0);
          void this.#audit.then((audit) => { audit.note(url, offset, copy, from, isFromSwarm); });
        }
        if (isFromSwarm) this.emit('delivered', { url, peerBytes: from.peerBytes, originBytes: from.originBytes });
      },
    });
  }

  #listen(): void {
    const hls = this.#hls;
    // From the player's own class, so that this module brings no second hls.js along.
    const { Events, ErrorDetails } = hls.constructor as typeof Hls;
    const onSwitch = (): void => {
      this.#tellPlaying();
    };
    const handlers: Partial<HlsListeners> = {
      [Events.MANIFEST_LOADING]: () => {
        this.#stop();
        this.#source = null;
        this.#setState('idle');
      },
      [Events.MANIFEST_LOADED]: (_, data) => {
        this.#handleManifest(data);
      },
      [Events.MEDIA_ATTACHED]: (_, { media }) => {
        this.#watchMedia(media);
      },
      [Events.LEVEL_SWITCHING]: onSwitch,
      [Events.AUDIO_TRACK_SWITCHED]: onSwitch,
      [Events.ERROR]: (_, { details }) => {
        if (details === ErrorDetails.BUFFER_STALLED_ERROR) this.#setStalled(true);
      },
      [Events.DESTROYING]: () => {
        this.destroy();
      },
    };
    // eslint-disable-next-line @typescript-eslint/no-unsafe-enum-assignment -- these are the keys named above
    for (const [event, handle] of Object.entries(handlers) as [keyof HlsListeners, () => void][]) {
      hls.on(event, handle);
      this.#cleanUps.push(() => { hls.off(event, handle); });
    }
    if (hls.media) this.#watchMedia(hls.media);
    const network = connection();
    const onNetwork = (): void => {
      const isMetered = this.#isMetered();
      this.#driver?.setMetered(isMetered);
      this.#tracker?.send({ type: 'share', shares: !isMetered });
    };
    network?.addEventListener('change', onNetwork);
    this.#cleanUps.push(() => network?.removeEventListener('change', onNetwork));
  }

  #watchMedia(media: HTMLMediaElement): void {
    if (media === this.#media) return;
    this.#media = media;
    const abort = new AbortController();
    const on = (name: string, handle: () => void): void => {
      media.addEventListener(name, handle, { signal: abort.signal });
    };
    on('playing', () => {
      this.#hasPlayed = true;
      this.#isStalled = false;
      if (this.#state === 'idle' && this.#isSharing) this.#start();
      this.#tellPlayhead();
    });
    on('loadeddata', () => { this.#warmUp(); });
    on('waiting', () => {
      this.#setStalled(this.#hasPlayed && !media.paused && !media.seeking);
    });
    // Not every stall ends with `playing`: Chromium goes on without a word after a short one. This must not stick: a viewer that
    // has been stalled for three seconds uploads a quarter of what it could, and waits for no record.
    on('timeupdate', () => {
      if (isStallOver(this.#stalledTime, media.currentTime)) this.#setStalled(false);
    });
    for (const name of ['pause', 'seeking', 'ratechange']) on(name, () => { this.#tellPlayhead(); });
    this.#cleanUps.push(() => {
      abort.abort();
    });
  }

  #handleManifest(data: ManifestLoadedData): void {
    const info = readSessionData(data.sessionData, data.url);
    if (!info) {
      this.#fail('not-shoal', 'no live.shoal.* session data');
      return;
    }
    const videos = data.levels.map(({ url }) => url);
    const audios = data.audioTracks.map(({ url }) => url);
    this.#source = { info, catalog: new Catalog(data.url, videos, audios, info.stream.includes('/')) };
    if (this.#isSharing) this.#start();
    else this.#setState('off');
  }

  #start(): void {
    const source = this.#source;
    if (!source || this.#isDestroyed) return;
    if (!Neighbors.isSupported) {
      this.#fail('webrtc-absent', 'no RTCPeerConnection');
      return;
    }
    const run = ++this.#run;
    this.#setState('joining');
    // Written out, because bundlers look for it so.
    const ours = this.#options.log ? new URL('swarm-log.wasm', import.meta.url) : new URL('swarm.wasm', import.meta.url);
    const url = this.#options.wasmUrl ?? ours;
    const verifyUrl = this.#options.verifyUrl ?? new URL('verify.wasm', import.meta.url);
    const load = (): Promise<CoreFactory> => loadCore(url);
    const loadRecorded = (): Promise<CoreFactory> =>
      import('./log.ts').then(({ Log }) => (this.#log ??= new Log()).load(load));
    const loadAll = (): Promise<[CoreFactory, Verifier]> =>
      Promise.all([this.#options.log ? loadRecorded() : load(), makeVerifier(source.info.key, verifyUrl)]);
    this.#firstPicture().then(makeCertificate).then(loadAll).then(
      (loaded) => {
        if (run === this.#run) this.#join(source, ...loaded);
      },
      (error: unknown) => {
        if (run === this.#run) this.#fail('wasm-refused', String(error));
      },
    );
  }

  #firstPicture(): Promise<void> {
    return new Promise((resolve) => {
      this.#warmUp = resolve;
      const isThere = (this.#media?.readyState ?? 0) >= HTMLMediaElement.HAVE_CURRENT_DATA;
      setTimeout(resolve, isThere ? 0 : JOIN_DELAY_MAX_MS);
    });
  }

  #join({ info, catalog }: Source, factory: CoreFactory, verifier: Verifier): void {
    let driver: Driver;
    try {
      const core = factory(info.epoch, randomSeed(), catalog.isRecording);
      driver = new Driver(core, catalog, verifier, this.#options.storeBytesMax ?? defaultStoreBytesMax(), {
        send: (message) => this.#tracker?.send(message),
        onNeighbors: () => {
          this.#handleNeighbors();
        },
        onFailed: (error) => {
          this.#stop();
          this.#fail('core-failed', String(error));
        },
      });
    } catch (error) {
      this.#fail('core-failed', String(error));
      return;
    }
    this.#driver = driver;
    this.#activeAt = performance.now();
    driver.setMetered(this.#isMetered());
    this.#playing = [];
    this.#tellPlaying();
    this.#tellPlayhead();
    for (const { target, bytes, tookMs } of this.#early.splice(0)) void driver.offerLoaded(target, bytes, tookMs);
    const tracker = new TrackerSocket(
      {
        url: info.trackerUrl,
        stream: info.stream,
        token: this.#options.token,
        shares: () => !this.#isMetered(),
        renditions: () => this.#playing,
      },
      {
        onWelcome: (welcome) => {
          driver.handleTracker(welcome);
          this.#needsConsent = welcome.consent_required === true;
          if (this.#hasConsent) this.consent();
          this.#setState('swarm');
        },
        onMessage: (message) => {
          if (message.type === 'ended') this.emit('ended', undefined);
          driver.handleTracker(message);
        },
        onLost: (isFinal) => {
          driver.handleTrackerLost();
          this.#handleAlone(isFinal ? 'tracker-refused' : 'tracker-away');
        },
      },
    );
    this.#tracker = tracker;
    tracker.open();
  }

  #handleNeighbors(): void {
    this.emit('neighbors', this.#driver?.neighbors.length ?? 0);
    if (this.#state === 'swarm' && this.#tracker?.isJoined !== true) this.#handleAlone('tracker-away');
  }

  /** The tracker is gone. With neighbors left the swarm goes on without it. */
  #handleAlone(code: ShoalErrorCode): void {
    if (this.#driver?.neighbors.length === 0) this.#fail(code, 'no tracker, no neighbors');
  }

  #stop(): void {
    this.#run++;
    this.#meter.absorb(this.#driver?.traffic);
    const [tracker, driver] = [this.#tracker, this.#driver];
    this.#tracker = this.#driver = null;
    tracker?.close();
    driver?.destroy();
    this.#early = [];
    if (driver) this.emit('neighbors', 0);
  }

  #targetOf({ frag, part, url, rangeEnd }: FragmentLoaderContext): Target | null {
    const catalog = this.#source?.catalog;
    const rendition = catalog?.renditionOf(url);
    if (!catalog || rendition == null || typeof frag.sn !== 'number' || Boolean(rangeEnd)) return null;
    if (part) {
      catalog.learn({ rendition, msn: frag.sn, part: part.index }, url, true);
      return { rendition, msn: frag.sn, part: part.index };
    }
    if (catalog.hasParts(rendition)) return { rendition, msn: frag.sn, part: null };
    // Not known to have parts: a segment in a playlist without parts is a piece of its own.
    const hasParts = this.#hls.latestLevelDetails?.partList != null;
    if (hasParts) return { rendition, msn: frag.sn, part: null };
    catalog.learn({ rendition, msn: frag.sn, part: 0 }, url, false);
    return { rendition, msn: frag.sn, part: 0 };
  }

  #offerLoaded(target: Target, bytes: Uint8Array<ArrayBuffer>, tookMs: number): Promise<boolean> | true {
    if (this.#driver) return this.#driver.offerLoaded(target, bytes, tookMs);
    const held = this.#early.reduce((sum, early) => sum + early.bytes.length, 0);
    if (this.#state === 'joining' && held + bytes.length <= EARLY_BYTES_MAX) {
      this.#early.push({ target, bytes, tookMs });
    }
    return true;
  }

  #tellPlaying(): void {
    const { catalog } = this.#source ?? {};
    if (!catalog || !this.#driver) return;
    const renditions = playingUrls(this.#hls)
      .map((url) => catalog.renditionOf(url))
      .filter((rendition) => rendition !== null);
    if (renditions.join() === this.#playing.join() || renditions.length === 0) return;
    this.#playing = renditions;
    this.#driver.setPlaying(renditions);
  }

  #tellPlayhead(): void {
    const [media, details] = [this.#media, this.#hls.latestLevelDetails];
    // Without data, as after hls.js has recovered from an error of the decoder, the element is at its beginning.
    if (!media?.readyState || !details || !this.#driver) return;
    const position = programTimeAt(details, media.currentTime);
    if (position === null) return;
    const ahead = bufferedAhead(media.buffered, media.currentTime) * 1000;
    const isRunning = this.#hasPlayed && !media.paused && !media.ended;
    const rate = isRunning ? Math.round(media.playbackRate * 100) : 0;
    this.#driver.setPlayhead(Math.round(position), Math.round(position + ahead), rate, isRunning && this.#isStalled);
  }

  #setStalled(isStalled: boolean): void {
    if (this.#isStalled === isStalled) return;
    this.#isStalled = isStalled;
    this.#stalledTime = this.#media?.currentTime ?? 0;
    this.#tellPlayhead();
  }

  #tick(): void {
    const now = performance.now();
    if (this.#media?.paused === false) this.#activeAt = now;
    else if (this.#driver && now - this.#activeAt > PAUSE_MAX_MS) {
      this.#stop();
      this.#setState('idle');
    }
    this.#tellPlaying();
    this.#tellPlayhead();
    this.#meter.sample(this.#totals());
    this.emit('stats', this.getStats());
  }

  #totals(): { peerBytes: number; originBytes: number; sentBytes: number } {
    return this.#meter.totals(this.#driver?.traffic);
  }

  #setState(state: ShoalState): void {
    if (state === this.#state) return;
    this.#state = state;
    this.emit('state', state);
  }

  #fail(code: ShoalErrorCode, message: string): void {
    this.#early = [];
    this.#reason = code;
    this.#setState('origin');
    this.emit('error', { code, message, fatal: false });
  }
}

function share(peer: number, origin: number): number | null {
  return peer + origin > 0 ? peer / (peer + origin) : null;
}

/**
 * Joins an hls.js player to the swarm of what it plays. To be called before `hls.loadSource`. Streams of other origins
 * play as if it had not been called.
 */
export function attach(hls: Hls, options: ShoalOptions = {}): Shoal {
  return new Shoal(hls, options);
}
