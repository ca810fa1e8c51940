/**
 * Fetches from the HTTP origin for the swarm core: byte ranges of pieces, handed over block by block as they stream
 * in, and signed records.
 */

/** A record that is larger is refused unread: 64 MiB of media have a record of 66 kB. */
const RECORD_BYTES_MAX = 128 * 1024;
/** A response that sends nothing for this long is given up, in milliseconds. The core has hedged by then. */
const SILENCE_MAX_MS = 5_000;

/** Which bytes to fetch. Begins at a block's first byte and ends at a block's last. */
export interface RangeRequest {
  url: string;
  offset: number;
  length: number;
  /** The whole resource, so that no `Range` header is needed. */
  isWhole: boolean;
  /** The length of the piece's blocks. */
  blockBytes: number;
}

/** What happens to a fetch; exactly one of `onFinished` and `onFailed` comes, and neither after an abort. */
export interface RangeEvents {
  /** One whole block; `bytes` is the receiver's to keep. */
  onBlock: (block: number, bytes: Uint8Array<ArrayBuffer>) => void;
  /** Bytes came over the network, wanted or not. */
  onBytes: (count: number) => void;
  onFinished: () => void;
  /** The HTTP status, or 0 for a network error or a body of the wrong length. */
  onFailed: (status: number) => void;
}

/** Starts a fetch; abort it by the returned controller. */
export function fetchRange(request: RangeRequest, events: RangeEvents): AbortController {
  const controller = new AbortController();
  void run(request, events, controller);
  return controller;
}

async function run(request: RangeRequest, events: RangeEvents, controller: AbortController): Promise<void> {
  const { offset, length, isWhole, blockBytes } = request;
  let timer: ReturnType<typeof setTimeout> | undefined;
  let isSilent = false;
  const heard = (): void => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      isSilent = true;
      controller.abort();
    }, SILENCE_MAX_MS);
  };
  const failed = (status: number): void => {
    clearTimeout(timer);
    const isAborted = controller.signal.aborted && !isSilent;
    controller.abort();
    if (!isAborted) events.onFailed(status);
  };
  try {
    heard();
    const response = await fetch(request.url, {
      signal: controller.signal,
      // Chromium's cache lets one range of a URL through at a time, so that six would take six round trips. And what was wrong
      // once must not come from it again.
      cache: 'no-store',
      ...(!isWhole && { headers: { Range: `bytes=${offset}-${offset + length - 1}` } }),
    });
    if ((response.status !== 200 && response.status !== 206) || !response.body) {
      failed(response.status);
      return;
    }
    // A server that ignores `Range` sends everything from the start: what comes before is skipped.
    const start = response.status === 206 ? offset : 0;
    const assembler = new BlockAssembler(offset, length, blockBytes, events.onBlock);
    let at = start;
    const reader = response.body.getReader();
    while (!assembler.isDone) {
      const { done, value } = await reader.read();
      if (controller.signal.aborted) return;
      if (done) break;
      heard();
      events.onBytes(value.length);
      assembler.push(at, value);
      at += value.length;
    }
    clearTimeout(timer);
    if (!assembler.isDone || ((response.status === 206 || isWhole) && at > offset + length)) {
      failed(0);
      return;
    }
    if (response.status === 200 && !isWhole) controller.abort();
    events.onFinished();
  } catch {
    failed(0);
  }
}

/** Cuts a stream of bytes into blocks. */
export class BlockAssembler {
  #at: number;
  readonly #end: number;
  #block: Uint8Array<ArrayBuffer> | null = null;
  #filled = 0;

  constructor(
    offset: number,
    length: number,
    private readonly blockBytes: number,
    private readonly onBlock: (block: number, bytes: Uint8Array<ArrayBuffer>) => void,
  ) {
    this.#at = offset;
    this.#end = offset + length;
  }

  /** Whether every byte of the range came. */
  get isDone(): boolean {
    return this.#at >= this.#end;
  }

  /** Takes bytes that begin at `position` of the resource; those outside the range are skipped. */
  push(position: number, bytes: Uint8Array): void {
    let from = Math.max(0, this.#at - position);
    while (from < bytes.length && !this.isDone) {
      const index = Math.floor(this.#at / this.blockBytes);
      this.#block ??= new Uint8Array(Math.min(this.blockBytes, this.#end - index * this.blockBytes));
      const taken = bytes.subarray(from, from + this.#block.length - this.#filled);
      this.#block.set(taken, this.#filled);
      this.#filled += taken.length;
      this.#at += taken.length;
      from += taken.length;
      if (this.#filled < this.#block.length) return;
      const block = this.#block;
      this.#block = null;
      this.#filled = 0;
      this.onBlock(index, block);
    }
  }
}

/** Fetches the signed record of a piece, or those of a segment's pieces; none when there are none to be had. */
export async function fetchRecords(mediaUrl: string): Promise<Uint8Array[]> {
  try {
    const url = new URL(mediaUrl);
    url.pathname += '.digest';
    const response = await fetch(url, { signal: AbortSignal.timeout(SILENCE_MAX_MS) });
    if (!response.ok || Number(response.headers.get('Content-Length') ?? 0) > RECORD_BYTES_MAX) return [];
    const bytes = new Uint8Array(await response.arrayBuffer());
    if (bytes.length > RECORD_BYTES_MAX) return [];
    if (!/\/seg-[^/]*$/.test(mediaUrl)) return [bytes];
    const records: Uint8Array[] = [];
    for (let at = 0; at < bytes.length; ) {
      const from = at + 4;
      at = from + new DataView(bytes.buffer).getUint32(at);
      records.push(bytes.subarray(from, at));
    }
    return records;
  } catch {
    return [];
  }
}
