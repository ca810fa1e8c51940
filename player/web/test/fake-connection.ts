/** Peer connections to nobody: what is sent waits until it is let through, and is lost when the connection closes before. */

/** A channel to somebody who takes only what is let through. */
export class FakeChannel {
  readyState = 'connecting';
  bufferedAmount = 0;
  onopen: (() => void) | null = null;
  onmessage: ((event: { data: ArrayBuffer }) => void) | null = null;
  /** What has left. */
  readonly sent: Uint8Array[] = [];
  #waiting: Uint8Array[] = [];

  send(bytes: Uint8Array): void {
    if (this.readyState !== 'open') throw new Error('not open');
    if (bytes.length > 16_384) throw new TypeError('longer than the other allows');
    this.#waiting.push(bytes);
    this.bufferedAmount += bytes.length;
  }

  /** Lets through what waits. A closed channel has nothing to let through. */
  flush(): void {
    if (this.readyState === 'open') this.sent.push(...this.#waiting.splice(0));
  }
}

/** A connection with the channels that were made. */
export class FakeConnection {
  static made: FakeConnection[] = [];
  readonly channels: FakeChannel[] = [];
  readonly candidates: string[] = [];
  isClosed = false;

  constructor() {
    FakeConnection.made.push(this);
  }

  /** Puts this in the place of the browser's. */
  static install(): void {
    Object.assign(globalThis, { RTCPeerConnection: FakeConnection });
  }

  static generateCertificate(): Promise<object> {
    return Promise.resolve({});
  }

  createDataChannel(): FakeChannel {
    const channel = new FakeChannel();
    this.channels.push(channel);
    return channel;
  }

  setRemoteDescription(): Promise<void> {
    return Promise.resolve();
  }

  addIceCandidate({ candidate = '' }: RTCIceCandidateInit): Promise<void> {
    this.candidates.push(candidate);
    return Promise.resolve();
  }

  getStats(): Promise<Map<string, unknown>> {
    return Promise.resolve(new Map<string, unknown>());
  }

  /** The other is there. */
  open(): FakeChannel[] {
    for (const channel of this.channels) channel.readyState = 'open';
    this.channels[0]?.onopen?.();
    return this.channels;
  }

  close(): void {
    this.isClosed = true;
    for (const channel of this.channels) channel.readyState = 'closed';
  }
}
