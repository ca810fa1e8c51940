/** What the player has asked of the swarm and not been answered yet. Every request ends in exactly one way. */

import type { Piece } from './protocol.ts';
import type { Stored } from './store.ts';

/** A request of which nothing has come for this long is taken from the core, in milliseconds, and any after the player's own
 * patience. It should rarely come to that: of what is live the core answers by the deadline. */
const ANSWER_MAX_MS = 4_000;

/** What a request is for: a piece, or where `part` is null a whole segment that has parts. */
export interface Target {
  rendition: number;
  msn: number;
  part: number | null;
}

/** One request of the player. Exactly one of `onAnswer` and `onFallback` is called, unless it is aborted. */
export interface Request {
  target: Target;
  /** The player's own patience in milliseconds. */
  timeoutMs: number;
  onAnswer: (answer: Stored) => void;
  /** The swarm can't or shouldn't: load it over plain HTTP. */
  onFallback: () => void;
}

interface Pending extends Request {
  timer: ReturnType<typeof setTimeout> | undefined;
  /** Sets the timer anew, as far as the player's patience goes. */
  wait: () => void;
}

/** Requests by the driver's numbers. */
export class Requests {
  #pending = new Map<number, Pending>();
  #next = 1;

  /** The numbers of all requests that are not answered. */
  get ids(): number[] {
    return [...this.#pending.keys()];
  }

  /** Takes a request in; `onTimeout` is called when nobody answers it in time. */
  open(request: Request, onTimeout: (id: number) => void): number {
    const id = this.#next++;
    const until = performance.now() + request.timeoutMs;
    const wait = (): void => {
      clearTimeout(pending.timer);
      pending.timer = setTimeout(() => {
        onTimeout(id);
      }, Math.min(ANSWER_MAX_MS, until - performance.now()));
    };
    const pending: Pending = { ...request, timer: undefined, wait };
    wait();
    this.#pending.set(id, pending);
    return id;
  }

  /** Takes a request out: from here on the caller answers it. Undefined when it is answered already. */
  take(id: number): Request | undefined {
    const request = this.#pending.get(id);
    if (!request) return undefined;
    clearTimeout(request.timer);
    this.#pending.delete(id);
    return request;
  }

  /** Ends a request without the swarm. */
  fallBack(id: number): void {
    this.take(id)?.onFallback();
  }

  /** Something of a piece came: the requests that it belongs to go on waiting. */
  heardOf(piece: Piece): void {
    for (const { target: { rendition, msn, part }, wait } of this.#pending.values()) {
      if (piece.rendition === rendition && piece.msn === msn && (part === null || piece.part === part)) wait();
    }
  }
}
