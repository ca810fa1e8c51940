/**
 * A WHIP client (RFC 9725): publishes tracks to an endpoint and ends the session again.
 *
 * Knows nothing of the page; each way in which publishing can fail has a {@link PublishErrorCode}, and the page puts
 * it into words.
 */

/** No media path within this time: the network drops UDP, in milliseconds. */
const CONNECT_TIMEOUT_MS = 8_000;
/** Host candidates are gathered in a few milliseconds; the offer does not wait longer than this for others. */
const GATHERING_MAX_MS = 300;
/** A session whose path is broken for this long is lost, in milliseconds: longer than a Wi-Fi roam. */
const DISCONNECTED_MAX_MS = 5_000;

/** A server that doesn't answer gets nothing more after this time, in milliseconds. */
const DELETE_TIMEOUT_MS = 2_000;
/** Nor is it waited for with the question why a session has ended, in milliseconds. */
const STATS_TIMEOUT_MS = 2_000;

/** The bitrate to begin with, as a share of the largest: what most uplinks carry, and enough for the full size. */
const START_BITRATE_SHARE = 0.5;

/** Why publishing did not come about, or ended. */
export type PublishErrorCode =
  /** 409: another publisher holds the name. */
  | 'name-taken'
  /** 406, 415 or 422: none of the offered codecs is of use to the server. */
  | 'codec-refused'
  /** 401 or 403: the key is missing or wrong. */
  | 'key-refused'
  /** 429 or 503: the server has no room. */
  | 'server-full'
  /** Any other answer. */
  | 'refused'
  /** No answer. */
  | 'server-away'
  /** The server answered, but media does not get through. */
  | 'udp-blocked'
  /** The media path broke after it had worked. */
  | 'connection-lost'
  /** The server ended the session: what was sent can't be published. It says why. */
  | 'media-refused'
  /** This browser has no WebRTC. */
  | 'no-webrtc';

/** Carries a code, and the server's own words where it sent any. */
export class PublishError extends Error {
  constructor(
    readonly code: PublishErrorCode,
    readonly detail = '',
  ) {
    super(detail ? `${code}: ${detail}` : code);
    this.name = 'PublishError';
  }
}

/** What to publish, and where. */
export interface PublishOptions {
  endpoint: string;
  tracks: MediaStreamTrack[];
  key?: string;
  /** The video's encodings, largest first. More than one is simulcast, where browser and server can do it. */
  layers: Layer[];
}

/** One size in which the video is sent. */
export interface Layer {
  /** Its name in the session description. */
  rid: string;
  scaleResolutionDownBy: number;
  /** In bit/s. */
  maxBitrate: number;
}

/** What is known of a running session. */
export interface PublishStats {
  width: number;
  height: number;
  framesPerSecond: number;
  bitrateBps: number;
  /** Milliseconds, 0 while unknown. */
  rttMs: number;
  /** Fraction of packets that the server missed, 0 to 1. */
  lossRatio: number;
  /** Why the browser sends less than it could: `cpu`, `bandwidth`, or empty. */
  limitedBy: string;
  /** The sizes beside that one which are being sent, largest first. */
  others: { width: number; height: number }[];
}

/** The video codecs in the order in which they are offered: H.264 first, because the server passes it through. */
export function preferH264<T extends { mimeType: string; sdpFmtpLine?: string }>(codecs: T[]): T[] {
  const rank = ({ mimeType, sdpFmtpLine = '' }: T): number => {
    if (mimeType.toLowerCase() !== 'video/h264') return 2;
    return sdpFmtpLine.includes('packetization-mode=1') ? 0 : 1;
  };
  return [...codecs].sort((left, right) => rank(left) - rank(right));
}

/** The bitrate that each smaller size needs, as a share of the next larger one's: a quarter of the pixels, which compress less well. */
const LAYER_BITRATE_SHARE = 0.3;
/** Smaller pictures help nobody: who has no line for that has none for live video. */
const LAYER_HEIGHT_MIN = 270;

/** The sizes for a picture of this height: itself, and with `isInSizes` halves of it, each half the one before, three at most. */
export function layersOf(height: number, bitrateMax: number, isInSizes: boolean): Layer[] {
  const layers: Layer[] = [];
  let [scale, bitrate] = [1, bitrateMax];
  for (const rid of ['h', 'm', 'l']) {
    if (scale > 1 && (!isInSizes || height / scale < LAYER_HEIGHT_MIN)) break;
    layers.push({ rid, scaleResolutionDownBy: scale, maxBitrate: Math.round(bitrate) });
    [scale, bitrate] = [scale * 2, bitrate * LAYER_BITRATE_SHARE];
  }
  return layers;
}

/**
 * Lets Chromium begin with this bitrate instead of feeling its way up from 300 kbit/s, which costs viewers half a minute
 * of tiny pictures and as many changes of format. Other browsers ignore the parameter.
 */
export function withStartBitrate(answer: string, kbps: number): string {
  const [head = '', ...sections] = answer.split(/^(?=m=)/m);
  const video = (section: string): string =>
    section.replace(/^a=fmtp:\d+ (?!apt=)[^\r\n]+/gm, (line) => `${line};x-google-start-bitrate=${kbps}`);
  return head + sections.map((section) => (section.startsWith('m=video') ? video(section) : section)).join('');
}

/** One publication. {@link Publisher.start}, then {@link Publisher.stop}; not to be started twice. */
export class Publisher {
  /** Called once when a session that had worked ends by itself. */
  onLost: (error: PublishError) => void = () => undefined;
  #pc: RTCPeerConnection;
  #layers: Layer[];
  #sessionUrl: string | null = null;
  #isStopped = false;
  #before = { bytes: 0, at: 0 };

  constructor(private readonly options: PublishOptions) {
    if (typeof RTCPeerConnection !== 'function') throw new PublishError('no-webrtc');
    this.#pc = connection();
    this.#layers = options.layers;
  }

  /** Resolves when media flows. Rejects with a {@link PublishError}, and then everything is cleaned up. */
  async start(): Promise<void> {
    try {
      const bitrate = this.#layers.reduce((sum, { maxBitrate }) => sum + maxBitrate, 0);
      const answer = withStartBitrate(await this.#negotiate(), Math.round((bitrate * START_BITRATE_SHARE) / 1000));
      if (this.#isStopped) return;
      const connected = this.#connected();
      await this.#pc.setRemoteDescription({ type: 'answer', sdp: answer }).catch((error: unknown) => {
        throw new PublishError('refused', `the answer can't be used: ${String(error)}`);
      });
      await connected;
      this.#watch();
    } catch (error) {
      this.stop();
      throw error;
    }
  }

  /** Ends the session at the server; works while the page is being closed. */
  stop(): void {
    const close = this.#end();
    if (!close || this.#sessionUrl === null) {
      close?.();
      return;
    }
    // First the word that it is over: a connection that just closes is waited for, and so are its viewers.
    const headers = this.#authorization();
    const signal = AbortSignal.timeout(DELETE_TIMEOUT_MS);
    fetch(this.#sessionUrl, { method: 'DELETE', keepalive: true, headers, signal }).then(close, close);
  }

  /** Ends everything but the connection; gives what closes that, unless it has ended before. */
  #end(): (() => void) | null {
    if (this.#isStopped) return null;
    this.#isStopped = true;
    this.#pc.onconnectionstatechange = null;
    return () => {
      this.#pc.close();
    };
  }

  /** Measures the running session; rates are since the last call. */
  async stats(): Promise<PublishStats> {
    const result: PublishStats = {
      width: 0,
      height: 0,
      framesPerSecond: 0,
      bitrateBps: 0,
      rttMs: 0,
      lossRatio: 0,
      limitedBy: '',
      others: [],
    };
    const report = await this.#pc.getStats();
    let bytes = 0;
    for (const entry of report.values() as Iterable<Record<string, unknown>>) {
      const number = (name: string): number => (typeof entry[name] === 'number' ? entry[name] : 0);
      if (entry['type'] === 'outbound-rtp') {
        bytes += number('bytesSent') + number('headerBytesSent');
        if (entry['kind'] === 'video') {
          if (number('framesPerSecond') > 0) result.others.push({ width: number('frameWidth'), height: number('frameHeight') });
          result.framesPerSecond = Math.max(result.framesPerSecond, number('framesPerSecond'));
          const reason = entry['qualityLimitationReason'];
          if (reason === 'cpu' || reason === 'bandwidth') result.limitedBy = reason;
        }
      } else if (entry['type'] === 'candidate-pair' && entry['nominated'] === true) {
        result.rttMs = number('currentRoundTripTime') * 1000;
      } else if (entry['type'] === 'remote-inbound-rtp') {
        result.lossRatio = Math.max(result.lossRatio, number('fractionLost'));
        if (result.rttMs === 0) result.rttMs = number('roundTripTime') * 1000;
      }
    }
    result.others.sort((one, other) => other.width - one.width);
    const largest = result.others.shift();
    if (largest) Object.assign(result, largest);
    const at = performance.now();
    if (this.#before.at > 0) result.bitrateBps = (8_000 * (bytes - this.#before.bytes)) / (at - this.#before.at);
    this.#before = { bytes, at };
    return result;
  }

  /** Offers, and gives the answer. Several sizes that the browser or the server does not take are offered as one. */
  async #negotiate(): Promise<string> {
    try {
      return await this.#offer();
    } catch (error) {
      const [largest, ...others] = this.#layers;
      const isRefused = !(error instanceof PublishError) || error.code === 'codec-refused' || error.code === 'refused';
      if (!largest || others.length === 0 || !isRefused || this.#isStopped) throw error;
      this.#layers = [largest];
      this.#pc.close();
      this.#pc = connection();
      return this.#offer();
    }
  }

  async #offer(): Promise<string> {
    this.#addTracks();
    await this.#pc.setLocalDescription();
    await this.#gathered();
    return this.#post(this.#pc.localDescription?.sdp ?? '');
  }

  #addTracks(): void {
    for (const track of this.options.tracks) {
      const isVideo = track.kind === 'video';
      // A name for a single one would make it simulcast.
      const encodings = this.#layers.length > 1 ? this.#layers : this.#layers.map(({ maxBitrate }) => ({ maxBitrate }));
      const transceiver = this.#pc.addTransceiver(track, { direction: 'sendonly', ...(isVideo && { sendEncodings: encodings }) });
      if (!isVideo) continue;
      const codecs = RTCRtpSender.getCapabilities('video')?.codecs;
      // Firefox has no `setCodecPreferences` before 128; its order is then as good as any.
      if (codecs && 'setCodecPreferences' in transceiver) transceiver.setCodecPreferences(preferH264(codecs));
    }
  }

  #gathered(): Promise<void> {
    return new Promise((resolve) => {
      const done = (): void => {
        clearTimeout(timer);
        this.#pc.removeEventListener('icegatheringstatechange', check);
        resolve();
      };
      const check = (): void => {
        if (this.#pc.iceGatheringState === 'complete') done();
      };
      const timer = setTimeout(done, GATHERING_MAX_MS);
      this.#pc.addEventListener('icegatheringstatechange', check);
      check();
    });
  }

  async #post(offer: string): Promise<string> {
    let response: Response;
    try {
      response = await fetch(this.options.endpoint, {
        method: 'POST',
        headers: { 'Content-Type': 'application/sdp', ...this.#authorization() },
        body: offer,
        signal: AbortSignal.timeout(10_000),
      });
    } catch {
      throw new PublishError('server-away');
    }
    const body = await response.text().catch(() => '');
    if (response.status !== 201) throw new PublishError(codeOf(response.status), plainWords(response, body));
    const location = response.headers.get('Location');
    if (location !== null) this.#sessionUrl = new URL(location, response.url).href;
    if (this.#isStopped && this.#sessionUrl !== null) {
      // Stopped while the answer was on its way: the session exists and must not hold the name.
      this.#isStopped = false;
      this.stop();
    }
    return body;
  }

  #connected(): Promise<void> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        reject(new PublishError('udp-blocked'));
      }, CONNECT_TIMEOUT_MS);
      this.#pc.onconnectionstatechange = () => {
        const state = this.#pc.connectionState;
        if (state !== 'connected' && state !== 'failed') return;
        clearTimeout(timer);
        if (state === 'connected') resolve();
        else reject(new PublishError('udp-blocked'));
      };
    });
  }

  #watch(): void {
    let timer: ReturnType<typeof setTimeout> | undefined;
    const lose = async (): Promise<void> => {
      // Without the word that it is over: the server keeps the stream for whoever comes back.
      const close = this.#end();
      if (!close) return;
      close();
      this.onLost(await this.#whyLost());
    };
    this.#pc.onconnectionstatechange = () => {
      clearTimeout(timer);
      const state = this.#pc.connectionState;
      if (state === 'failed' || state === 'closed') void lose();
      else if (state === 'disconnected') timer = setTimeout(() => void lose(), DISCONNECTED_MAX_MS);
    };
  }

  /** What the server knows of the end of the session, if it can be asked. */
  async #whyLost(): Promise<PublishError> {
    try {
      const response = await fetch(`${this.#sessionUrl ?? ''}/stats`, { signal: AbortSignal.timeout(STATS_TIMEOUT_MS) });
      const { ended, problem } = (await response.json()) as { ended?: string; problem?: string };
      if (ended === 'refused') return new PublishError('media-refused', problem ?? '');
    } catch {
      // It is away, or never knew: the connection is lost, for whatever reason.
    }
    return new PublishError('connection-lost');
  }

  #authorization(): Record<string, string> {
    return this.options.key ? { Authorization: `Bearer ${this.options.key}` } : {};
  }
}

function connection(): RTCPeerConnection {
  return new RTCPeerConnection({ bundlePolicy: 'max-bundle' });
}

function codeOf(status: number): PublishErrorCode {
  switch (status) {
    case 409:
      return 'name-taken';
    case 406:
    case 415:
    case 422:
      return 'codec-refused';
    case 401:
    case 403:
      return 'key-refused';
    case 429:
    case 503:
      return 'server-full';
    default:
      return status >= 502 ? 'server-away' : 'refused';
  }
}

/** The server's explanation, if it is one for people: short and not a page. */
function plainWords(response: Response, body: string): string {
  const type = response.headers.get('Content-Type') ?? '';
  if (type.includes('json')) {
    try {
      const { detail, title, error } = JSON.parse(body) as Record<string, unknown>;
      const words = [detail, title, error].find((value) => typeof value === 'string');
      return (words ?? '').slice(0, 300);
    } catch {
      return '';
    }
  }
  return type.includes('html') ? '' : body.trim().slice(0, 300);
}
