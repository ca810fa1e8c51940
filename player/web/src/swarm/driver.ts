/**
 * Runs the swarm core in a browser: carries what happens to it, and carries out what it asks for.
 *
 * Decides nothing about where bytes come from; that is the core's (`player/swarm`). Holds the bytes (`store.ts`), the
 * peer connections (`neighbors.ts`) and the fetches (`origin.ts`) of one viewer for one epoch of one stream. The
 * player's side is `loader.ts`; who makes and ends drivers is `../shoal.ts`.
 *
 * Order matters: the core is drained after every input before the next is handed in, and answers to the player go out
 * only after the drain, because hls.js may ask for the next part from inside the answer.
 */

import { BLOCK_BYTES_MAX, BLOCK_HEADER_BYTES, blockBytes, Stat, Tag } from './core.ts';
import type { Core } from './core.ts';
import { bytesFromBase64 } from './catalog.ts';
import type { Catalog } from './catalog.ts';
import { Neighbors } from './neighbors.ts';
import { fetchRange, fetchRecords } from './origin.ts';
import { Requests } from './requests.ts';
import type { Request, Target } from './requests.ts';
import { PieceStore, keyOf } from './store.ts';
import type { PieceKey } from './store.ts';
import { DIGEST_BYTES } from './verifier.ts';
import type { Verifier } from './verifier.ts';
import type { PeerId, Piece, TrackerMessage, ViewerMessage, Welcome } from './protocol.ts';

/** So many neighbors' blocks may wait to be hashed, 4 MB where they are as long as honest ones. */
const HASHING_MAX = 256;

/** Bytes counted by the driver since it was made. */
export interface Traffic {
  /** Verified bytes from peers. */
  peerBytes: number;
  /** Bytes of swarm fetches from the origin, wanted or not. */
  originBytes: number;
  /** Bytes sent to peers. */
  sentBytes: number;
}

/** What an input needs besides the time. */
type Rest<Input> = Input extends (now: number, ...rest: infer Rest) => void ? Rest : never;

/** What a driver tells its owner. */
export interface DriverEvents {
  /** To the tracker. */
  send: (message: ViewerMessage) => void;
  onNeighbors: () => void;
  /** The core threw: it must not be called again. Everything outstanding has fallen back. */
  onFailed: (error: unknown) => void;
}

/** See the file's comment. Times come from `performance.now()`. */
export class Driver {
  /** Time spent in the core and in carrying out what it asked for, in milliseconds. What is done with bytes before they are
   * handed in is not in it. */
  busyMs = 0;
  readonly traffic: Traffic = { peerBytes: 0, originBytes: 0, sentBytes: 0 };
  readonly #store: PieceStore;
  readonly #neighbors: Neighbors;
  #welcome: Welcome | null = null;
  /** Destroyed, or the core threw: it must not be called again. */
  #isOver = false;
  #inputs: ((now: number) => void)[] = [];
  #isRunning = false;
  #after: (() => void)[] = [];
  #timer: ReturnType<typeof setTimeout> | undefined;
  /** The bytes that the input being handled speaks of. */
  #current: { bytes: Uint8Array<ArrayBuffer>; isFromPeer: boolean } | null = null;
  #held = new Map<number, Uint8Array<ArrayBuffer>>();
  /** Whole pieces that wait for the core's verdict; the core lets 32 wait. */
  #loaded = new Map<PieceKey, { bytes: Uint8Array<ArrayBuffer>; tookMs: number }>();
  #fetches = new Map<number, AbortController>();
  readonly #requests = new Requests();
  /** Fulfilled when all records that the core has asked about so far are checked. */
  #checks: Promise<void> = Promise.resolve();
  /** How many neighbors' blocks are being hashed. */
  #hashing = 0;
  #renditions: number[] = [];

  constructor(
    private readonly core: Core,
    private readonly catalog: Catalog,
    private readonly verifier: Verifier,
    storeBytesMax: number,
    private readonly events: DriverEvents,
  ) {
    // The core evicts by its own count; the slack covers pieces that are being filled while others go.
    this.#store = new PieceStore(storeBytesMax * 1.25, blockBytes);
    core.setStoreBytesMax(storeBytesMax);
    this.#neighbors = new Neighbors({
      onOpen: (peer) => {
        this.#handleOpen(peer);
      },
      onMessage: (peer, channel, bytes) => {
        if (channel === 'control') this.#tell('message', peer, bytes);
        else this.#handleBlock(peer, bytes.subarray(0, BLOCK_HEADER_BYTES), bytes.subarray(BLOCK_HEADER_BYTES));
      },
      onDrained: (peer) => {
        this.#input((now) => { core.sendQueue(now, peer, this.#neighbors.queuedBytes(peer)); });
      },
      onLost: (peer, wasConnected) => {
        events.send({ type: 'lost', peer, was_connected: wasConnected });
        if (!wasConnected) return;
        this.#tell('neighborLost', peer);
        events.onNeighbors();
      },
      onSignal: (peer, data) => {
        events.send({ type: 'signal', to: peer, data });
      },
    });
  }

  /** Peers with open channels. */
  get neighbors(): PeerId[] {
    return this.#neighbors.open;
  }

  /** Bytes held in the piece store. */
  get storeBytes(): number {
    return this.#store.bytes;
  }

  /** The core's counters; null when the driver has ended or its core failed. */
  stats(): Float64Array | null {
    return this.#isOver ? null : this.core.stats();
  }

  /** Takes a tracker's message. */
  handleTracker(message: TrackerMessage): void {
    switch (message.type) {
      case 'welcome':
        this.#handleWelcome(message);
        break;
      case 'introduce':
        this.#neighbors.meet(message.peer, message.offers);
        break;
      case 'signal':
        this.#neighbors.signal(message.from, message.data);
        break;
      case 'published':
        this.#handlePublished(message.piece, message.uri, message.record);
        break;
      case 'plan': {
        const places = message.places.flatMap(({ stripe, root, parent, children = [], expected_ms = 0 }) => [
          stripe,
          root === true ? 1 : 0,
          parent ?? -1,
          expected_ms,
          children.length,
          ...children,
        ]);
        this.#tell('plan', message.rendition, message.stripes, Float64Array.from(places));
        break;
      }
      case 'part':
        this.#close(message.peer);
        break;
      case 'sharing':
        this.#tell('sharing', message.on);
        break;
      default:
    }
  }

  /** The tracker's connection is gone. */
  handleTrackerLost(): void {
    this.#tell('trackerLost');
  }

  /** Which renditions are being played. */
  setPlaying(renditions: number[]): void {
    this.#renditions = renditions;
    this.#tell('playing', Uint8Array.from(renditions));
  }

  /** Where the player is; program date times in Unix milliseconds. */
  setPlayhead(positionMs: number, bufferedUntilMs: number, ratePercent: number, isStalled: boolean): void {
    this.#tell('playhead', positionMs, bufferedUntilMs, ratePercent, isStalled);
  }

  /** Whether the connection is metered: nothing is uploaded then. */
  setMetered(on: boolean): void {
    this.#tell('metered', on);
  }

  /** Asks for media; returns what aborts the request, or null when the driver has ended or its core failed. Where the swarm can't
   * give it the core says so at once, and knows then what the player loads itself. */
  request(request: Request): (() => void) | null {
    if (this.#isOver) return null;
    const { rendition, msn, part } = request.target;
    const ask = (number: number): void => {
      if (part === null) this.#tell('wantSegment', number, rendition, msn);
      else this.#tell('wantPiece', number, rendition, msn, part);
    };
    const id = this.#requests.open(request, (late) => {
      // Asked the same again the core refuses, and knows by that what the player loads itself: it won't fetch it as well.
      ask(late);
      this.#tell('unwant', late);
      this.#requests.fallBack(late);
    });
    ask(id);
    return () => {
      if (!this.#requests.take(id)) return;
      this.#tell('unwant', id);
    };
  }

  /**
   * Hands in what was loaded over plain HTTP; `bytes` stays the driver's. Gives false when a signed record says
   * that the bytes are not the origin's: then they must not be played. A record that is still being checked says nothing: a page that
   * starts would wait for those of all recent pieces before it plays on.
   */
  async offerLoaded(target: Target, bytes: Uint8Array<ArrayBuffer>, tookMs: number): Promise<boolean> {
    const { rendition, msn, part } = target;
    if (part !== null) return this.#offerPiece({ rendition, msn, part }, bytes, tookMs);
    const lengths = this.#isOver ? undefined : this.core.segmentParts(rendition, msn);
    if (!lengths) return true;
    if (lengths.reduce((sum, length) => sum + length, 0) !== bytes.length) return false;
    let at = 0;
    const verdicts = Array.from(lengths, (length, index) => {
      const piece = bytes.slice(at, (at += length));
      return this.#offerPiece({ rendition, msn, part: index }, piece, tookMs / lengths.length);
    });
    return (await Promise.all(verdicts)).every(Boolean);
  }

  /** Ends everything; outstanding requests fall back. */
  destroy(): void {
    if (this.#isOver) return;
    this.#tell('leave');
    this.#isOver = true;
    this.#shutDown();
  }

  #handleWelcome(welcome: Welcome): void {
    if (this.#welcome && this.#welcome.peer !== welcome.peer) {
      // The tracker has given our number away: those who know us by it must not be confused.
      for (const peer of this.#neighbors.all) this.#close(peer);
    }
    this.#welcome = welcome;
    this.#neighbors.configuration = {
      iceServers: welcome.ice_servers,
      ...(welcome.relay_only === true && { iceTransportPolicy: 'relay' }),
    };
    this.#tell(
      'welcome',
      welcome.peer,
      welcome.neighbors_max,
      welcome.upload_ratio_max_percent,
      welcome.report_interval_ms,
    );
    for (const peer of this.#neighbors.open) void this.#tellConnected(peer);
    this.#tell('sharing', welcome.sharing);
    for (const { piece, uri, record } of welcome.recent) this.#handlePublished(piece, uri, record);
  }

  #handlePublished(piece: Piece, uri: string, record: string): void {
    const bytes = bytesFromBase64(record);
    if (!bytes || !this.catalog.learnNotice(piece, uri)) return;
    this.#tell('record', bytes);
  }

  #handleOpen(peer: PeerId): void {
    this.#tell('neighborConnected', peer);
    this.events.onNeighbors();
    void this.#tellConnected(peer);
  }

  #handleBlock(peer: PeerId, header: Uint8Array, block: Uint8Array<ArrayBuffer>): void {
    // Where so much has arrived that was not looked at yet, more would only fill the memory.
    if (this.#hashing >= HASHING_MAX) return;
    this.#hashing += 1;
    // What is longer is garbage and not worth hashing; its length alone gets it refused.
    this.verifier.digest(block.subarray(0, block.length > BLOCK_BYTES_MAX ? 0 : block.length)).then((digest) => {
      this.#hashing -= 1;
      this.#inputBytes(block, true, (now) => { this.core.block(now, peer, header, block.length, digest); });
    }, this.#giveUp);
  }

  async #tellConnected(peer: PeerId): Promise<void> {
    const rttMs = await this.#neighbors.roundTripMs(peer).catch(() => 0);
    if (this.#neighbors.isOpen(peer)) this.events.send({ type: 'connected', peer, rtt_ms: rttMs });
  }

  #close(peer: PeerId): void {
    const wasOpen = this.#neighbors.isOpen(peer);
    this.#neighbors.close(peer);
    if (!wasOpen) return;
    this.#tell('neighborLost', peer);
    this.events.onNeighbors();
  }

  async #offerPiece(piece: Piece, bytes: Uint8Array<ArrayBuffer>, tookMs: number): Promise<boolean> {
    const key = keyOf(piece);
    // What waits has room in the store beside what is there. Where nothing waits everything is offered, however long it is:
    // the core knows what the origin signed.
    const held = [...this.#loaded.values()].reduce((sum, waiting) => sum + waiting.bytes.length, this.#store.bytes);
    // The core's verdict on one of two copies would be taken for the other's.
    const isLeft = this.#loaded.has(key) || held > this.#store.bytesMax;
    if (this.#isOver || isLeft) return true;
    this.#loaded.set(key, { bytes, tookMs });
    const digests = await this.#digests(bytes).catch(this.#giveUp);
    if (!digests) return true;
    const rejected = this.stats()?.[Stat.RejectedBytes];
    this.#tell('loaded', piece.rendition, piece.msn, piece.part, bytes.length, digests, tookMs);
    return (this.stats()?.[Stat.RejectedBytes] ?? rejected) === rejected;
  }

  /** The digests of a whole piece's blocks, one after the other. */
  async #digests(bytes: Uint8Array<ArrayBuffer>): Promise<Uint8Array> {
    const step = blockBytes(bytes.length);
    const blocks = Array.from({ length: Math.ceil(bytes.length / step) }, (_, index) =>
      this.verifier.digest(bytes.subarray(index * step, (index + 1) * step)));
    const digests = new Uint8Array(blocks.length * DIGEST_BYTES);
    (await Promise.all(blocks)).forEach((digest, index) => { digests.set(digest, index * DIGEST_BYTES); });
    return digests;
  }

  /** Ends everything where what hashes and checks does not work: nothing could be told from garbage. */
  readonly #giveUp = (error: unknown): void => { this.#input(() => { throw error; }); };

  /** Hands in the input that one of the core's methods is. */
  #tell<Name extends keyof Core>(name: Name, ...rest: Rest<Core[Name]>): void {
    this.#input((now) => { (this.core[name] as (now: number, ...rest: unknown[]) => void)(now, ...rest); });
  }

  /** Hands an input in, drains, and re-arms the timer. Inputs that come up meanwhile wait their turn. */
  #input(input: (now: number) => void): void {
    if (this.#isOver) return;
    this.#inputs.push(input);
    if (this.#isRunning) return;
    this.#isRunning = true;
    const begun = performance.now();
    try {
      for (let next = this.#inputs.shift(); next; next = this.#inputs.shift()) {
        next(performance.now());
        this.#drain();
        this.#current = null;
      }
      this.#arm();
    } catch (error) {
      this.#fail(error);
    } finally {
      this.#isRunning = false;
      this.busyMs += performance.now() - begun;
    }
    for (const answer of this.#after.splice(0)) answer();
  }

  #inputBytes(bytes: Uint8Array<ArrayBuffer>, isFromPeer: boolean, input: (now: number) => void): void {
    this.#input((now) => {
      this.#current = { bytes, isFromPeer };
      input(now);
    });
  }

  #arm(): void {
    clearTimeout(this.#timer);
    const deadline = this.core.nextDeadline();
    if (deadline < 0) return;
    // Timers may fire up to a millisecond early by this clock; a superfluous wake does no harm, a late one does.
    const delay = Math.max(0, Math.ceil(deadline - performance.now()));
    this.#timer = setTimeout(() => { this.#tell('wake'); }, delay);
  }

  #drain(): void {
    const { core } = this;
    const field = (index: number): number => core.field(index);
    const pieceAt = (index: number): Piece => ({
      rendition: field(index),
      msn: field(index + 1),
      part: field(index + 2),
    });
    for (let tag = core.poll(); tag !== Tag.None; tag = core.poll()) {
      switch (tag) {
        case Tag.SendControl:
          this.#neighbors.send(field(0), 'control', core.bytes() as Uint8Array<ArrayBuffer>);
          break;
        case Tag.SendBlock:
          this.#sendBlock(field(0), pieceAt(1), field(4));
          break;
        case Tag.Fetch:
          this.#fetch(field(0), pieceAt(1), field(4), field(5), field(6) === 1, field(7));
          break;
        case Tag.CancelFetch:
          this.#fetches.get(field(0))?.abort();
          this.#fetches.delete(field(0));
          break;
        case Tag.FetchRecord:
          this.#fetchRecord(pieceAt(0), field(3) === 1);
          break;
        case Tag.CheckRecord:
          this.#checkRecord(field(0), core.bytes() as Uint8Array<ArrayBuffer>);
          break;
        case Tag.Store:
          this.#storeBlock(pieceAt(0), field(3), field(4), field(5));
          break;
        case Tag.Hold:
          if (this.#current) this.#held.set(field(0), this.#current.bytes);
          break;
        case Tag.DropHeld:
          this.#held.delete(field(0));
          break;
        case Tag.KeepLoaded:
          this.#keepLoaded(pieceAt(0));
          break;
        case Tag.DropLoaded:
          this.#loaded.delete(keyOf(pieceAt(0)));
          break;
        case Tag.Evict:
          this.#store.drop(keyOf(pieceAt(0)));
          break;
        case Tag.Deliver:
          this.#deliver(field(0), pieceAt(1), field(4));
          break;
        case Tag.Fallback: {
          const request = field(0);
          this.#after.push(() => { this.#requests.fallBack(request); });
          break;
        }
        case Tag.Disconnect:
          this.#disconnect(field(0));
          break;
        case Tag.Accuse:
          this.events.send({ type: 'accuse', peer: field(0), piece: pieceAt(1) });
          break;
        case Tag.Complain:
          this.events.send({ type: 'silent', peer: field(0), rendition: field(1), stripe: field(2) });
          break;
        case Tag.Report:
          this.#report();
          break;
        default:
          throw new Error(`unknown output ${String(tag)} of the core`);
      }
    }
  }

  #sendBlock(peer: PeerId, piece: Piece, block: number): void {
    const bytes = this.#store.block(keyOf(piece), block);
    if (bytes) {
      const message = new Uint8Array(BLOCK_HEADER_BYTES + bytes.length);
      message.set(this.core.bytes());
      message.set(bytes, BLOCK_HEADER_BYTES);
      if (this.#neighbors.send(peer, 'blocks', message)) this.traffic.sentBytes += bytes.length;
    }
    this.#inputs.push((now) => { this.core.sendQueue(now, peer, this.#neighbors.queuedBytes(peer)); });
  }

  #fetch(id: number, piece: Piece, offset: number, length: number, isWhole: boolean, pieceLength: number): void {
    const { core } = this;
    const url = this.catalog.urlOf(piece);
    if (url === null) {
      this.#inputs.push((now) => { core.fetchFailed(now, id, 404); });
      return;
    }
    /** Fulfilled when the core has all blocks so far. */
    let handedIn: Promise<void> = Promise.resolve();
    const controller = fetchRange(
      { url, offset, length, isWhole, blockBytes: blockBytes(pieceLength) },
      {
        onBlock: (block, bytes) => {
          handedIn = Promise.all([handedIn, this.verifier.digest(bytes)]).then(([, digest]) => {
            this.#inputBytes(bytes, false, (now) => { core.fetchBlock(now, id, block, bytes.length, digest); });
          }, this.#giveUp);
        },
        onBytes: (count) => {
          this.traffic.originBytes += count;
        },
        onFinished: () => {
          this.#fetches.delete(id);
          void handedIn.then(() => { this.#tell('fetchFinished', id); });
        },
        onFailed: (status) => {
          this.#fetches.delete(id);
          void handedIn.then(() => { this.#tell('fetchFailed', id, status); });
        },
      },
    );
    this.#fetches.set(id, controller);
  }

  /** Fetches a piece's record, or those of all pieces of its segment. */
  #fetchRecord(piece: Piece, isOfSegment: boolean): void {
    const { rendition, msn, part } = piece;
    const url = isOfSegment ? this.catalog.segmentUrlOf(piece) : this.catalog.urlOf(piece);
    void (url === null ? Promise.resolve([]) : fetchRecords(url)).then((records) => {
      for (const record of records) this.#tell('record', record);
      if (!isOfSegment && records.length > 0) return;
      void this.#checks.then(() => { this.#tell('recordFailed', rendition, msn, part); });
    });
  }

  #checkRecord(check: number, signed: Uint8Array<ArrayBuffer>): void {
    // In the order in which they were asked about: the core takes records for published as they come.
    this.#checks = Promise.all([this.#checks, this.verifier.isSigned(signed)]).then(([, isSigned]) => {
      this.#tell('recordChecked', check, isSigned);
    }, this.#giveUp);
  }

  #storeBlock(piece: Piece, block: number, pieceLength: number, hold: number): void {
    const key = keyOf(piece);
    const bytes = hold < 0 ? this.#current?.bytes : this.#held.get(hold);
    // Only what peers send is ever held: what the origin sends has a record already.
    const isFromPeer = hold >= 0 || this.#current?.isFromPeer === true;
    this.#held.delete(hold);
    if (!bytes || !this.#store.open(key, pieceLength)) return;
    const source = isFromPeer ? 'peerBytes' : 'originBytes';
    if (!this.#store.write(key, block, bytes, source, performance.now())) return;
    if (isFromPeer) this.traffic.peerBytes += bytes.length;
    this.#requests.heardOf(piece);
  }

  #keepLoaded(piece: Piece): void {
    const key = keyOf(piece);
    const loaded = this.#loaded.get(key);
    this.#loaded.delete(key);
    if (loaded) this.#store.writeWhole(key, loaded.bytes, loaded.tookMs, performance.now());
  }

  #deliver(id: number, first: Piece, parts: number): void {
    const keys = Array.from({ length: parts }, (_, index) => keyOf({ ...first, part: first.part + index }));
    const answer = this.#store.copy(keys);
    this.#after.push(() => {
      if (answer) this.#requests.take(id)?.onAnswer(answer);
      else this.#requests.fallBack(id);
    });
  }

  #disconnect(peer: PeerId): void {
    const wasConnected = this.#neighbors.isOpen(peer);
    // Not from within the drain: whoever hears of it may end everything.
    this.#after.push(() => {
      this.#neighbors.close(peer);
      this.events.send({ type: 'lost', peer, was_connected: wasConnected });
      this.events.onNeighbors();
    });
  }

  #report(): void {
    const { core } = this;
    this.events.send({
      type: 'report',
      uplink_kbps: core.field(0),
      renditions: this.#renditions,
      buffer_ms: core.field(1),
      behind_ms: core.field(2),
      peer_bytes: core.field(3),
      origin_bytes: core.field(4),
      sent_bytes: core.field(5),
      waste_bytes: core.field(6),
      rebuffer_ms: core.field(7),
    });
  }

  #fail(error: unknown): void {
    this.#isOver = true;
    this.#shutDown();
    this.#after.push(() => { this.events.onFailed(error); });
  }

  #shutDown(): void {
    clearTimeout(this.#timer);
    this.#inputs = [];
    this.#neighbors.closeAll();
    for (const fetch of this.#fetches.values()) fetch.abort();
    this.#fetches.clear();
    this.#store.clear();
    this.#held.clear();
    this.#loaded.clear();
    for (const id of this.#requests.ids) this.#after.push(() => { this.#requests.fallBack(id); });
    if (!this.#isRunning) for (const answer of this.#after.splice(0)) answer();
  }
}
