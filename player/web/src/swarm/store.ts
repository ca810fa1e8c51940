/**
 * The piece store: bytes held for the player and for serving others, and where they came from. The swarm core decides
 * what is in it by ids and lengths; the bytes are here and only here.
 *
 * Buffers handed to hls.js are copies ({@link PieceStore.copy}): its worker detaches what it gets.
 */

import type { Piece } from './protocol.ts';

/** Pauses between two blocks of a piece count as transfer up to this long, in milliseconds; the rest of a longer one is
 * the core's patience, which says nothing about what the line could carry. */
const TRANSFER_GAP_MAX_MS = 100;

/** A map key for a piece. */
export type PieceKey = string;

/** The key of a piece. */
export function keyOf(piece: Piece): PieceKey {
  return `${piece.rendition}/${piece.msn}/${piece.part}`;
}

/** Where bytes came from. */
export interface Provenance {
  peerBytes: number;
  originBytes: number;
}

/** Bytes for the player, where they came from, and how long they travelled, in milliseconds. */
export interface Stored extends Provenance {
  data: ArrayBuffer;
  transferMs: number;
}

interface Held extends Provenance {
  bytes: Uint8Array<ArrayBuffer>;
  /** Which blocks were written: a block is written only after its digest matched. */
  blocks: Uint8Array;
  missing: number;
  writtenAt: number;
  transferMs: number;
}

/** Holds pieces block by block. The core evicts; `bytesMax` is the limit that holds even if the core miscounts. */
export class PieceStore {
  #held = new Map<PieceKey, Held>();
  #bytes = 0;

  constructor(
    readonly bytesMax: number,
    private readonly blockBytes: (length: number) => number,
  ) {}

  /** Bytes that the store occupies. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Makes room for a piece of `length` bytes. False when it would not fit. */
  open(key: PieceKey, length: number): boolean {
    const held = this.#held.get(key);
    if (held) return held.bytes.length === length;
    if (this.#bytes + length > this.bytesMax) return false;
    const count = Math.ceil(length / this.blockBytes(length));
    this.#held.set(key, {
      bytes: new Uint8Array(length),
      blocks: new Uint8Array(count),
      missing: count,
      writtenAt: Infinity,
      transferMs: 0,
      peerBytes: 0,
      originBytes: 0,
    });
    this.#bytes += length;
    return true;
  }

  /** Writes a verified block. False when the piece is not open or the length is not the block's. */
  write(key: PieceKey, block: number, bytes: Uint8Array, source: keyof Provenance, now: number): boolean {
    const held = this.#held.get(key);
    if (held?.blocks[block] === undefined) return false;
    const step = this.blockBytes(held.bytes.length);
    const at = block * step;
    if (bytes.length !== Math.min(step, held.bytes.length - at)) return false;
    if (held.blocks[block] === 1) return true;
    held.blocks[block] = 1;
    held.missing--;
    held.bytes.set(bytes, at);
    held[source] += bytes.length;
    held.transferMs += Math.min(Math.max(0, now - held.writtenAt), TRANSFER_GAP_MAX_MS);
    held.writtenAt = now;
    return true;
  }

  /** Writes a whole verified piece that came from the origin in `tookMs`. False when it does not fit. */
  writeWhole(key: PieceKey, bytes: Uint8Array, tookMs: number, now: number): boolean {
    if (!this.open(key, bytes.length)) return false;
    const step = this.blockBytes(bytes.length);
    for (let block = 0; block * step < bytes.length; block++) {
      this.write(key, block, bytes.subarray(block * step, (block + 1) * step), 'originBytes', now);
    }
    const held = this.#held.get(key);
    if (held) held.transferMs = Math.max(held.transferMs, tookMs);
    return true;
  }

  /** The bytes of a block, to be sent at once and not kept; null when it is not held. */
  block(key: PieceKey, block: number): Uint8Array<ArrayBuffer> | null {
    const held = this.#held.get(key);
    if (held?.blocks[block] !== 1) return null;
    const step = this.blockBytes(held.bytes.length);
    return held.bytes.subarray(block * step, Math.min((block + 1) * step, held.bytes.length));
  }

  /** A copy of complete pieces, one after the other, for a player that may detach it; null while blocks are missing. */
  copy(keys: PieceKey[]): Stored | null {
    const pieces = keys.map((key) => this.#held.get(key)).filter((held) => held?.missing === 0) as Held[];
    if (pieces.length !== keys.length || pieces.length === 0) return null;
    const data = new Uint8Array(pieces.reduce((sum, { bytes }) => sum + bytes.length, 0));
    const stored: Stored = { data: data.buffer, transferMs: 0, peerBytes: 0, originBytes: 0 };
    let [at, from, until] = [0, Infinity, 0];
    for (const piece of pieces) {
      data.set(piece.bytes, at);
      at += piece.bytes.length;
      stored.transferMs += piece.transferMs;
      from = Math.min(from, piece.writtenAt - piece.transferMs);
      until = Math.max(until, piece.writtenAt);
      stored.peerBytes += piece.peerBytes;
      stored.originBytes += piece.originBytes;
    }
    // Pieces that came at the same time shared the line.
    stored.transferMs = Math.min(stored.transferMs, until - from);
    return stored;
  }

  /** Forgets a piece. */
  drop(key: PieceKey): void {
    const held = this.#held.get(key);
    if (!held) return;
    this.#held.delete(key);
    this.#bytes -= held.bytes.length;
  }

  /** Forgets everything. */
  clear(): void {
    this.#held.clear();
    this.#bytes = 0;
  }
}
