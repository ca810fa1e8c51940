/**
 * Keeps what a player's swarm cores were told, for a replay. Loaded only where it was asked for.
 *
 * Each core's log is taken after each input, because a core that threw can't be asked any more, and that is when the log is
 * wanted. A player has one core after the other as sharing is switched or playback paused: their logs lie one behind the
 * other, each with its own beginning.
 */

import type { Core, CoreFactory } from './swarm/core.ts';

/** A player's log ends here, in bytes; a core's own at half of it, after an hour with a dozen neighbors. */
const LOG_BYTES_MAX = 64 * 1024 * 1024;

/** A core of `swarm-log.wasm`. */
export interface RecordingCore extends Core {
  startLog(): void;
  /** Puts what was recorded since the last call, or since `startLog`, where `bytes` finds it. */
  takeLog(): void;
}

/** The methods of a core that are no input. */
type Rest = 'segmentParts' | 'poll' | 'field' | 'bytes' | 'nextDeadline' | 'stats' | 'setStoreBytesMax';
type InputName = Exclude<keyof Core, Rest>;
type Method = (now: number, ...rest: unknown[]) => void;

/** An object, so that the compiler misses a new input. */
const INPUTS: Record<InputName, true> = {
  wake: true,
  welcome: true,
  trackerLost: true,
  record: true,
  recordChecked: true,
  recordFailed: true,
  plan: true,
  sharing: true,
  neighborConnected: true,
  neighborLost: true,
  message: true,
  block: true,
  sendQueue: true,
  fetchBlock: true,
  fetchFinished: true,
  fetchFailed: true,
  loaded: true,
  playing: true,
  playhead: true,
  wantPiece: true,
  wantSegment: true,
  unwant: true,
  metered: true,
  leave: true,
};

/** The log of one player. */
export class Log {
  #bytes = new Uint8Array(1 << 16);
  #length = 0;
  #isFull = false;

  /** A copy of everything so far. */
  get bytes(): Uint8Array<ArrayBuffer> {
    return this.#bytes.slice(0, this.#length);
  }

  /** Makes a factory whose cores are recorded. Each of them needs an instance of the module more. */
  async load(load: () => Promise<CoreFactory>): Promise<CoreFactory> {
    const [make, makeSpare] = await Promise.all([load(), load()]);
    return (...what) => this.#recorded(recording(make(...what)), recording(makeSpare(...what)));
  }

  #recorded(core: RecordingCore, spare: RecordingCore): Core {
    const recorded = { ...core };
    let last = Number.NaN;
    for (const name of Object.keys(INPUTS) as InputName[]) {
      const input: Method = (now, ...rest) => {
        // Its beginning has the settings, which may be changed until the first input.
        if (Number.isNaN(last)) {
          core.startLog();
          this.#add(taken(core));
          last = 0;
        }
        try {
          (core[name] as Method)(now, ...rest);
        } catch (error) {
          this.#add(written(spare, last, name, [now, ...rest]));
          throw error;
        }
        this.#add(taken(core));
        last = now;
      };
      recorded[name] = input;
    }
    return recorded;
  }

  #add(bytes: Uint8Array): void {
    const length = this.#length + bytes.length;
    // Nothing behind a gap makes sense.
    this.#isFull ||= length > LOG_BYTES_MAX;
    if (this.#isFull) return;
    if (length > this.#bytes.length) {
      const larger = new Uint8Array(Math.max(length, 2 * this.#bytes.length));
      larger.set(this.#bytes);
      this.#bytes = larger;
    }
    this.#bytes.set(bytes, this.#length);
    this.#length = length;
  }
}

/** The module that most pages load has no log. */
function recording(core: Core): RecordingCore {
  if (!('takeLog' in core)) throw new Error('this module keeps no log: swarm-log.wasm does');
  return core as RecordingCore;
}

function taken(core: RecordingCore): Uint8Array {
  core.takeLog();
  return core.bytes();
}

/** One input as the log has it. The core that threw on it keeps it for ever; one that knows nothing writes the same. */
function written(spare: RecordingCore, last: number, name: InputName, args: [now: number, ...rest: unknown[]]): Uint8Array {
  try {
    spare.startLog();
    // Times are written as what has passed since the input before.
    spare.wake(last);
    taken(spare);
    (spare[name] as Method)(...args);
    return taken(spare);
  } catch {
    // It throws on it, too. All before it is in the log.
    return new Uint8Array();
  }
}
