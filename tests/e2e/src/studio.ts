/**
 * A publisher made of a browser's own WebRTC: any codec, any size, simulcast. The publish page offers what people need;
 * tests need the rest.
 *
 * The picture is a canvas with the machine-readable clock on top (the rule is in `ingest/publisher/src/clock.rs`) and
 * something that moves below; the sound is a tone.
 */

import type { Browser, Tab } from './browsers.ts';
import { until } from './wait.ts';

/** What a studio sends. */
export interface StudioOptions {
  /** `H264`, `VP8`, `VP9` or `AV1`. */
  codec: string;
  width?: number;
  height?: number;
  framesPerSecond?: number;
  /** Sends a layer of half the size as well. */
  simulcast?: boolean;
}

const SCRIPT = `
window.studio = (() => {
  const canvas = document.createElement('canvas');
  const context = canvas.getContext('2d', { alpha: false });
  let connection, session, camera;
  const draw = () => {
    const { width, height } = canvas;
    context.fillStyle = '#405060';
    context.fillRect(0, 0, width, height);
    const now = Date.now();
    context.fillStyle = '#c0a040';
    context.fillRect((now / 5) % width, height / 3, width / 8, height / 3);
    const strip = Math.max(16, Math.floor(height / 12));
    const bytes = [4, 3, 2, 1, 0].map((index) => Math.floor(now / 2 ** (8 * index)) % 256);
    bytes.push(bytes.reduce((sum, byte) => sum ^ byte, 0));
    for (let column = 0; column < 52; column++) {
      const bit = column - 2;
      const isWhite = column === 0 || column === 51
        || (bit >= 0 && bit < 48 && (bytes[bit >> 3] >> (7 - (bit & 7)) & 1) === 1);
      context.fillStyle = isWhite ? '#fff' : '#000';
      const from = Math.floor(column * width / 52);
      context.fillRect(from, 0, Math.floor((column + 1) * width / 52) - from, strip);
    }
  };
  return {
    async publish(url, { codec, width, height, framesPerSecond, simulcast }) {
      // Nobody sees it. But only a page that may use the camera learns the machine's own addresses.
      camera = await navigator.mediaDevices.getUserMedia({ video: true, audio: true });
      Object.assign(canvas, { width, height });
      draw();
      setInterval(draw, 1000 / framesPerSecond);
      const picture = canvas.captureStream(framesPerSecond).getVideoTracks()[0];
      // Keep the size, lose pictures: a busy machine must not change what is tested.
      picture.contentHint = 'detail';
      const audio = new AudioContext({ sampleRate: 48000 });
      const tone = audio.createOscillator();
      const destination = audio.createMediaStreamDestination();
      tone.connect(destination);
      tone.start();
      connection = new RTCPeerConnection();
      const stream = new MediaStream([picture, destination.stream.getAudioTracks()[0]]);
      const layers = simulcast
        ? [{ rid: 'h', maxBitrate: 1_500_000 }, { rid: 'l', scaleResolutionDownBy: 2, maxBitrate: 400_000 }]
        : [{ maxBitrate: 2_500_000 }];
      const video = connection.addTransceiver(picture, { direction: 'sendonly', streams: [stream], sendEncodings: layers });
      connection.addTransceiver(stream.getAudioTracks()[0], { direction: 'sendonly', streams: [stream] });
      const known = RTCRtpSender.getCapabilities('video').codecs;
      const wanted = known.filter(({ mimeType }) => mimeType.toLowerCase() === 'video/' + codec.toLowerCase());
      if (wanted.length === 0) throw new Error('this browser does not send ' + codec);
      video.setCodecPreferences([...wanted, ...known.filter(({ mimeType }) => mimeType.toLowerCase() === 'video/rtx')]);
      await connection.setLocalDescription();
      await new Promise((resolve) => {
        const look = () => { if (connection.iceGatheringState === 'complete') resolve(); };
        connection.addEventListener('icegatheringstatechange', look);
        look();
      });
      const headers = { 'content-type': 'application/sdp' };
      const response = await fetch(url, { method: 'POST', headers, body: connection.localDescription.sdp });
      if (response.status !== 201) throw new Error(response.status + ' ' + await response.text());
      session = new URL(response.headers.get('location'), url).href;
      await connection.setRemoteDescription({ type: 'answer', sdp: await response.text() });
    },
    resize(width, height) {
      Object.assign(canvas, { width, height });
      draw();
    },
    async setLayer(index, active) {
      const sender = connection.getSenders().find(({ track }) => track?.kind === 'video');
      const parameters = sender.getParameters();
      parameters.encodings[index].active = active;
      await sender.setParameters(parameters);
    },
    /** For whoever asks why it does not connect. */
    candidates: () => [connection?.localDescription, connection?.remoteDescription]
      .map((description) => (description?.sdp ?? '').match(/a=candidate[^\\r\\n]*/g)?.join('; ')).join(' | '),
    state: () => connection?.connectionState + ', ICE ' + connection?.iceConnectionState,
    async status() { return (await fetch(session + '/stats')).text(); },
    async stop() {
      const response = await fetch(session, { method: 'DELETE' });
      connection.close();
      return response.status;
    },
  };
})();
true`;

/** The status of a WHIP session, as far as tests look at it. */
export interface SessionStatus {
  state: string;
  problem?: string;
  tracks: { kind: string; rid?: string; codec: string | null; width: number | null; height: number | null; frames: number }[];
}

/** A publishing tab. */
export class Studio {
  readonly tab: Tab;
  #isClosed = false;

  private constructor(tab: Tab) {
    this.tab = tab;
  }

  /** Publishes, and waits until the connection stands. */
  static async publish(browser: Browser, server: string, stream: string, options: StudioOptions): Promise<Studio> {
    const tab = await browser.open();
    const studio = new Studio(tab);
    try {
      // Any page of the server: its policy lets scripts talk to the WHIP endpoint.
      await tab.goto(`${server}/publish`);
      await tab.evaluate<boolean>(SCRIPT);
      const settings = { width: 640, height: 360, framesPerSecond: 20, simulcast: false, ...options };
      const url = JSON.stringify(`${server}/whip/${stream}`);
      await tab.evaluate(`window.studio.publish(${url}, ${JSON.stringify(settings)})`);
      await until('the publisher is connected', async () => {
        const state = await tab.evaluate<string>('window.studio.state()');
        if (!state.startsWith('connected')) throw new Error(`${state}: ${await tab.evaluate<string>('window.studio.candidates()')}`);
        return true;
      });
    } catch (error) {
      await studio.vanish();
      throw error;
    }
    return studio;
  }

  /** Changes the size of the picture. */
  async resize(width: number, height: number): Promise<void> {
    await this.tab.evaluate(`window.studio.resize(${width}, ${height})`);
  }

  /** Stops sending a layer (0 is the best), or sends it again. */
  async setLayer(index: number, active: boolean): Promise<void> {
    await this.tab.evaluate(`window.studio.setLayer(${index}, ${active})`);
  }

  async status(): Promise<SessionStatus> {
    return JSON.parse(await this.tab.evaluate<string>('window.studio.status()')) as SessionStatus;
  }

  /** Ends the stream as the RFC wants it, and closes the tab. */
  async stop(): Promise<void> {
    if (!this.#isClosed) await this.tab.evaluate('window.studio.stop()');
    await this.vanish();
  }

  /** Closes the tab without a word to the server. */
  async vanish(): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
    await this.tab.close();
  }
}
