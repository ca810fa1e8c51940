/**
 * The socket to the tracker: joins, keeps alive, and comes back after a lost connection.
 *
 * Carries messages and understands only those that concern the connection itself; the rest goes to the driver. A lost
 * tracker is not an error for anybody: neighbors keep swapping and the origin keeps serving.
 */

import { PROTOCOL_VERSION, parseTrackerMessage } from './protocol.ts';
import type { TrackerMessage, ViewerMessage, Welcome } from './protocol.ts';

/** The first reconnection comes within this time, in milliseconds; doubled with each failure. */
const RETRY_DELAY_MS = 1_000;
/** Attempts are never further apart than this, in milliseconds: as PROTOCOL.md says. */
const RETRY_DELAY_MAX_MS = 15_000;
/** A connection attempt that takes longer than this is given up, in milliseconds. */
const CONNECT_TIMEOUT_MS = 10_000;
/** Messages are dropped when this many bytes wait in the socket: reports and candidates of a link that is stuck are
 * of no use any more. */
const WAITING_BYTES_MAX = 256 * 1024;
/** WebSocket close code for "I am coming back": 1000 would tell the neighbors that this viewer has left. */
const CLOSE_COMING_BACK = 4000;

/** What the driver wants to know. */
export interface TrackerEvents {
  /** The tracker took this viewer in, after a lost connection usually with the same peer id. */
  onWelcome: (welcome: Welcome) => void;
  /** Everything but `welcome` and `pong`. */
  onMessage: (message: TrackerMessage) => void;
  /** The connection was lost or refused; it will be tried again unless `isFinal`. */
  onLost: (isFinal: boolean) => void;
}

/** What identifies this viewer to the tracker. */
export interface Membership {
  /** `ws:` or `wss:` URL. */
  url: string;
  stream: string;
  /** What gets one is asked before each connection: tokens end. */
  token: string | (() => Promise<string>) | undefined;
  /** Asked at each connection, because the viewer may have switched in between. */
  shares: () => boolean;
  /** What is being played, as far as is known. */
  renditions: () => number[];
}

/** The delay before reconnection number `attempt` (from 0), for a random number between 0 and 1: the first
 * from nothing, so that a crowd that lost its tracker at once comes back spread evenly; later ones from half, or short draws
 * in a row would end in a long wait for a tracker that was away for a second. */
export function retryDelayMs(attempt: number, random: number): number {
  return Math.min(RETRY_DELAY_MAX_MS, RETRY_DELAY_MS * 2 ** attempt) * (attempt ? (1 + random) / 2 : random);
}

/** One viewer's connection to the tracker, with reconnection. */
export class TrackerSocket {
  #socket: WebSocket | null = null;
  /** While a draining tracker is left: the old socket, until the new one has its welcome. */
  #leaving: WebSocket | null = null;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #heartbeat: ReturnType<typeof setInterval> | undefined;
  #attempt = 0;
  #welcome: Welcome | null = null;
  #isJoined = false;
  #isClosed = false;
  #heardAt = 0;
  /** Not to be connected again before this time: what a draining tracker said, which may close before. */
  #notBefore = 0;

  constructor(
    private readonly membership: Membership,
    private readonly events: TrackerEvents,
    private readonly random: () => number = Math.random,
  ) {}

  /** Whether the tracker has taken this viewer in and the connection stands. */
  get isJoined(): boolean {
    return this.#isJoined;
  }

  /** Connects; returns at once. */
  open(): void {
    const { token } = this.membership;
    if (typeof token !== 'function') this.#connect(token);
    else Promise.resolve().then(token).then((value) => { this.#connect(value); }, () => { this.#retry(); });
  }

  #connect(token?: string): void {
    if (this.#isClosed || this.#socket) return;
    let socket: WebSocket;
    try {
      socket = new WebSocket(this.membership.url);
    } catch {
      // A URL that the page's policy or the browser refuses will be refused again.
      this.#isClosed = true;
      this.events.onLost(true);
      return;
    }
    this.#socket = socket;
    this.#timer = setTimeout(() => {
      this.#lose(socket);
    }, CONNECT_TIMEOUT_MS);
    socket.onopen = () => {
      const { stream, shares, renditions } = this.membership;
      const resume = this.#welcome?.resume;
      const join: ViewerMessage = { type: 'join', version: PROTOCOL_VERSION, stream, shares: shares() };
      if (token !== undefined) join.token = token;
      if (resume !== undefined) join.resume = resume;
      const playing = renditions();
      if (playing.length > 0) join.renditions = playing;
      socket.send(JSON.stringify(join));
    };
    socket.onmessage = ({ data }) => {
      this.#heardAt = performance.now();
      const message = typeof data === 'string' ? parseTrackerMessage(data) : null;
      // What this version does not know, or nobody should say, is skipped.
      if (message) this.#receive(socket, message);
    };
    socket.onclose = socket.onerror = () => {
      this.#lose(socket);
    };
  }

  /** Sends a message; false, and the message is gone, while there is no connection. */
  send(message: ViewerMessage): boolean {
    const socket = this.#socket;
    if (!socket || !this.#isJoined || socket.bufferedAmount > WAITING_BYTES_MAX) return false;
    socket.send(JSON.stringify(message));
    return true;
  }

  /** Ends the connection for good: the neighbors are told. */
  close(): void {
    this.#isClosed = true;
    this.#drop(1000);
  }

  #receive(socket: WebSocket, message: TrackerMessage): void {
    if (socket !== this.#socket) return;
    switch (message.type) {
      case 'welcome': {
        clearTimeout(this.#timer);
        silence(this.#leaving, CLOSE_COMING_BACK);
        this.#leaving = null;
        this.#welcome = message;
        this.#attempt = 0;
        this.#isJoined = true;
        this.#startHeartbeat(socket, message.silence_max_ms);
        this.events.onWelcome(message);
        return;
      }
      case 'pong':
        return;
      case 'drain': {
        const delayMs = this.random() * message.reconnect_within_ms;
        this.#notBefore = performance.now() + delayMs;
        clearTimeout(this.#timer);
        this.#timer = setTimeout(() => {
          if (socket !== this.#socket || this.#isClosed) return;
          // The old socket stays until the new one has its welcome.
          silence(this.#leaving, CLOSE_COMING_BACK);
          this.#leaving = socket;
          this.#socket = null;
          this.#isJoined = false;
          this.open();
        }, delayMs);
        return;
      }
      case 'error':
        this.events.onMessage(message);
        if (!message.fatal) return;
        if (this.#isJoined && message.code === 'refused' && typeof this.membership.token === 'function') {
          // The token has ended. There may be a new one.
          this.#lose(socket);
        } else if (message.retry_after_ms === undefined) {
          this.close();
          this.events.onLost(true);
        } else {
          this.#lose(socket, message.retry_after_ms);
        }
        return;
      default:
        this.events.onMessage(message);
    }
  }

  #startHeartbeat(socket: WebSocket, silenceMaxMs: number): void {
    clearInterval(this.#heartbeat);
    // Three pings fit into the tracker's patience, so that a background tab's throttled timers do no harm.
    const every = Math.max(1_000, silenceMaxMs / 3);
    this.#heartbeat = setInterval(() => {
      if (performance.now() - this.#heardAt > silenceMaxMs + every) this.#lose(socket);
      else this.send({ type: 'ping' });
    }, every);
  }

  #lose(socket: WebSocket, delayMs?: number): void {
    if (socket !== this.#socket) return;
    this.#drop(CLOSE_COMING_BACK);
    this.#retry(delayMs);
  }

  #retry(delayMs = retryDelayMs(this.#attempt++, this.random())): void {
    if (this.#isClosed) return;
    this.#timer = setTimeout(
      () => {
        this.open();
      },
      Math.max(delayMs, this.#notBefore - performance.now()),
    );
    this.events.onLost(false);
  }

  #drop(code: number): void {
    clearTimeout(this.#timer);
    clearInterval(this.#heartbeat);
    for (const socket of [this.#socket, this.#leaving]) silence(socket, code);
    this.#socket = this.#leaving = null;
    this.#isJoined = false;
  }
}

/** Closes a socket that is not to be heard any more. */
function silence(socket: WebSocket | null, code: number): void {
  if (!socket) return;
  socket.onopen = socket.onmessage = socket.onclose = socket.onerror = null;
  socket.close(code);
}
