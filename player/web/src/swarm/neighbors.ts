/**
 * Peer connections to the viewers that the tracker introduced: two data channels each, "control" (id 0, ordered) and
 * "blocks" (id 1, unordered), both agreed beforehand so that nothing is negotiated in band.
 *
 * Moves bytes and signaling; what the bytes mean is the swarm core's business. Whom to dial, and who makes the offer,
 * is the tracker's.
 */

import type { PeerId, Signal } from './protocol.ts';

/** A connection that is not up after this time is given up, in milliseconds, as PROTOCOL.md says. Home networks answer
 * within one or two seconds; relays and sleepy phones need more. */
const CONNECT_TIMEOUT_MS = 10_000;
/** A connection whose path is broken for this long is given up, in milliseconds: longer than a Wi-Fi roam. */
const DISCONNECTED_MAX_MS = 5_000;
/** Candidates taken of a neighbor, also of those that come before its description; browsers send some ten. */
const CANDIDATES_MAX = 64;
/** The largest message that is accepted, in bytes: a block with its header is a quarter of this. */
const MESSAGE_BYTES_MAX = 64 * 1024;

/** Messages kept that came before both channels were open on this side; the other may have been a little earlier. */
const EARLY_MESSAGES_MAX = 64;
/** A neighbor for which more waits takes nothing and is left, in bytes. Most is said at once in greeting: usually less than 15 KiB,
 * and a little more than half of this with the longest records that fit into a message. */
const QUEUED_BYTES_MAX = 500_000;
/** How long a goodbye has to leave before its connection is closed, in milliseconds: browsers drop what they have not sent by
 * then. A page that goes away has no timers any more; there the one who hears the goodbye closes. */
const GOODBYE_MS = 150;

/** Who this page is to all neighbors: a viewer token may be bound to it. Without it browsers make one for each connection. */
export let certificates: RTCCertificate[] = [];
let making: Promise<void> | undefined;

/** Makes the page's certificate, once; to be awaited before anybody is met. A browser that can't goes on without. */
export function makeCertificate(): Promise<void> {
  return (making ??= RTCPeerConnection.generateCertificate({ name: 'ECDSA', namedCurve: 'P-256' } as Algorithm).then(
    (certificate) => { certificates = [certificate]; },
    () => undefined,
  ));
}

/** The two channels of a connection. */
export type Channel = 'control' | 'blocks';

/** What the driver wants to know. */
export interface NeighborEvents {
  /** Both channels are open. */
  onOpen: (peer: PeerId) => void;
  /** A message came. */
  onMessage: (peer: PeerId, channel: Channel, bytes: Uint8Array<ArrayBuffer>) => void;
  /** What was queued on the blocks channel has left for the most part. */
  onDrained: (peer: PeerId) => void;
  /** The connection ended or never came up. Not called after {@link Neighbors.close}. */
  onLost: (peer: PeerId, wasConnected: boolean) => void;
  /** Signaling to be passed on by the tracker. */
  onSignal: (peer: PeerId, signal: Signal) => void;
}

/** All peer connections of this viewer. */
export class Neighbors {
  #links = new Map<PeerId, Link>();
  /** For connections to come. */
  configuration: RTCConfiguration = {};

  constructor(private readonly events: NeighborEvents) {}

  /** Whether this browser has WebRTC data channels at all. */
  static get isSupported(): boolean {
    return typeof RTCPeerConnection === 'function' && 'createDataChannel' in RTCPeerConnection.prototype;
  }

  /** Peers with a connection, open or on its way. */
  get all(): PeerId[] {
    return [...this.#links.keys()];
  }

  /** Peers with open channels. */
  get open(): PeerId[] {
    return [...this.#links].filter(([, link]) => link.isOpen).map(([peer]) => peer);
  }

  /** Whether the peer's channels are open. */
  isOpen(peer: PeerId): boolean {
    return this.#links.get(peer)?.isOpen === true;
  }

  /** Starts to connect to an introduced peer. */
  meet(peer: PeerId, offers: boolean): void {
    if (this.#links.has(peer)) return;
    try {
      this.#links.set(peer, new Link(peer, offers, this.configuration, this.events, this.#forget));
    } catch {
      // Browsers bound the number of connections, and policies may refuse them: the peer is simply not reached.
      this.events.onLost(peer, false);
    }
  }

  /** Takes signaling from an introduced peer; from anybody else it is ignored. */
  signal(peer: PeerId, signal: Signal): void {
    const link = this.#links.get(peer);
    if (!link) return;
    if (signal.kind !== 'offer' || !link.hasRemote) {
      link.handleSignal(signal);
      return;
    }
    // A second offer comes from a peer that lost the connection and was introduced again: start over.
    link.lose();
    this.meet(peer, false);
    this.#links.get(peer)?.handleSignal(signal);
  }

  /** Sends one message; false when the channel is not open. */
  send(peer: PeerId, channel: Channel, bytes: Uint8Array<ArrayBuffer>): boolean {
    return this.#links.get(peer)?.send(channel, bytes) === true;
  }

  /** Bytes queued on the peer's blocks channel that have not left yet. */
  queuedBytes(peer: PeerId): number {
    return this.#links.get(peer)?.queuedBytes ?? 0;
  }

  /** The connection's round trip in milliseconds, 0 while unknown. */
  async roundTripMs(peer: PeerId): Promise<number> {
    return (await this.#links.get(peer)?.roundTripMs()) ?? 0;
  }

  /** Closes one connection without a word to the driver, when what was just sent has left. */
  close(peer: PeerId): void {
    this.#links.get(peer)?.closeSoon();
    this.#links.delete(peer);
  }

  /** Closes all connections, likewise. */
  closeAll(): void {
    for (const peer of this.all) this.close(peer);
  }

  #forget = (peer: PeerId, link: Link): void => {
    if (this.#links.get(peer) === link) this.#links.delete(peer);
  };
}

class Link {
  readonly #pc: RTCPeerConnection;
  readonly #channels: Record<Channel, RTCDataChannel>;
  #candidates: RTCIceCandidateInit[] = [];
  #candidateCount = 0;
  #hasRemote = false;
  #isClosed = false;
  #wasOpen = false;
  #early: [Channel, Uint8Array<ArrayBuffer>][] = [];
  #timer: ReturnType<typeof setTimeout> | undefined;
  /** Descriptions are applied one after the other. */
  #work: Promise<void> = Promise.resolve();

  constructor(
    private readonly peer: PeerId,
    offers: boolean,
    configuration: RTCConfiguration,
    private readonly events: NeighborEvents,
    private readonly forget: (peer: PeerId, link: Link) => void,
  ) {
    const pc = (this.#pc = new RTCPeerConnection({ ...configuration, certificates }));
    this.#channels = {
      control: pc.createDataChannel('control', { negotiated: true, id: 0, ordered: true }),
      blocks: pc.createDataChannel('blocks', { negotiated: true, id: 1, ordered: false }),
    };
    for (const name of ['control', 'blocks'] as const) this.#listen(name);
    pc.onicecandidate = ({ candidate }) => {
      if (this.#isClosed) return;
      const signal: Signal = { kind: 'candidate', candidate: candidate?.candidate ?? '' };
      if (candidate?.sdpMid != null) signal.mid = candidate.sdpMid;
      this.events.onSignal(peer, signal);
    };
    pc.onconnectionstatechange = () => {
      this.#handleState();
    };
    this.#giveUpAfter(CONNECT_TIMEOUT_MS);
    if (offers) this.#enqueue(() => this.#describe());
  }

  get hasRemote(): boolean {
    return this.#hasRemote;
  }

  get isOpen(): boolean {
    return Object.values(this.#channels).every((channel) => channel.readyState === 'open');
  }

  get queuedBytes(): number {
    return this.#channels.blocks.bufferedAmount;
  }

  send(channel: Channel, bytes: Uint8Array<ArrayBuffer>): boolean {
    const to = this.#channels[channel];
    // Who asks and takes no answers would have us keep them all. Of blocks the core has never as much under way.
    if (to.bufferedAmount > QUEUED_BYTES_MAX) this.lose();
    if (to.readyState !== 'open') return false;
    try {
      to.send(bytes);
      return true;
    } catch {
      // The other's description decides how long messages may be.
      return false;
    }
  }

  handleSignal(signal: Signal): void {
    if (signal.kind === 'candidate') {
      if (++this.#candidateCount > CANDIDATES_MAX) return;
      const candidate: RTCIceCandidateInit = { candidate: signal.candidate, sdpMid: signal.mid ?? '0' };
      if (this.#hasRemote) this.#enqueue(() => this.#pc.addIceCandidate(candidate));
      else this.#candidates.push(candidate);
      return;
    }
    this.#enqueue(async () => {
      await this.#pc.setRemoteDescription({ type: signal.kind, sdp: signal.sdp });
      this.#hasRemote = true;
      if (signal.kind === 'offer') await this.#describe();
      for (const candidate of this.#candidates.splice(0)) await this.#pc.addIceCandidate(candidate).catch(() => undefined);
    }, true);
  }

  async roundTripMs(): Promise<number> {
    const stats = await this.#pc.getStats();
    for (const entry of stats.values() as Iterable<RTCIceCandidatePairStats>) {
      if (entry.type === 'candidate-pair' && entry.nominated && entry.currentRoundTripTime !== undefined) {
        return Math.round(entry.currentRoundTripTime * 1000);
      }
    }
    return 0;
  }

  close(): void {
    if (this.#isClosed) return;
    this.#fallSilent();
    this.#pc.close();
  }

  /** Hears nothing more, and closes when a goodbye that was just sent has left. */
  closeSoon(): void {
    if (this.#isClosed) return;
    this.#fallSilent();
    setTimeout(() => { this.#pc.close(); }, GOODBYE_MS);
  }

  #fallSilent(): void {
    this.#isClosed = true;
    clearTimeout(this.#timer);
    for (const channel of Object.values(this.#channels)) {
      channel.onopen = channel.onmessage = channel.onclose = channel.onbufferedamountlow = null;
    }
    this.#pc.onicecandidate = this.#pc.onconnectionstatechange = null;
  }

  #listen(name: Channel): void {
    const channel = this.#channels[name];
    channel.binaryType = 'arraybuffer';
    channel.onopen = () => {
      if (this.#wasOpen || !this.isOpen) return;
      this.#wasOpen = true;
      clearTimeout(this.#timer);
      this.events.onOpen(this.peer);
      for (const [from, bytes] of this.#early.splice(0)) this.events.onMessage(this.peer, from, bytes);
    };
    channel.onclose = () => {
      this.lose();
    };
    // When nothing waits any more, which is the mark that channels begin with: browsers tell it only when the number falls
    // from above, so that a short block under a higher mark would look queued for ever.
    if (name === 'blocks') channel.onbufferedamountlow = () => {
      this.events.onDrained(this.peer);
    };
    channel.onmessage = ({ data }: MessageEvent<unknown>) => {
      // Text and oversized messages are not of our protocol: whoever sends them is not one of us.
      const isOurs = data instanceof ArrayBuffer && data.byteLength <= MESSAGE_BYTES_MAX;
      if (!isOurs || this.#early.length >= EARLY_MESSAGES_MAX) this.lose();
      else if (this.#wasOpen) this.events.onMessage(this.peer, name, new Uint8Array(data));
      else this.#early.push([name, new Uint8Array(data)]);
    };
  }

  async #describe(): Promise<void> {
    await this.#pc.setLocalDescription();
    const description = this.#pc.localDescription;
    if (this.#isClosed || !description) return;
    this.events.onSignal(this.peer, { kind: description.type === 'offer' ? 'offer' : 'answer', sdp: description.sdp });
  }

  #enqueue(work: () => Promise<void>, isVital = false): void {
    this.#work = this.#work.then(async () => {
      if (this.#isClosed) return;
      try {
        await work();
      } catch {
        // A candidate that can't be parsed is one path less; a description that can't ends the attempt.
        if (isVital) this.lose();
      }
    });
  }

  #handleState(): void {
    switch (this.#pc.connectionState) {
      case 'failed':
      case 'closed':
        this.lose();
        break;
      case 'disconnected':
        this.#giveUpAfter(DISCONNECTED_MAX_MS);
        break;
      case 'connected':
        if (this.#wasOpen) clearTimeout(this.#timer);
        break;
      default:
    }
  }

  #giveUpAfter(delayMs: number): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      this.lose();
    }, delayMs);
  }

  /** Ends the connection and tells the driver. */
  lose(): void {
    if (this.#isClosed) return;
    this.close();
    this.forget(this.peer, this);
    this.events.onLost(this.peer, this.#wasOpen);
  }
}
