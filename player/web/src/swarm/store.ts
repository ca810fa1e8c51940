/**
 * The piece store: bytes held for the player and for serving others. The swarm core decides what is in it by ids and
 * lengths; the bytes are here and only here.
 *
 * Bounded in bytes. Buffers handed to hls.js are copies ({@link PieceStore.copy}): its worker detaches what it gets.
 */

import type { Piece } from './protocol.ts';

/** A map key for a piece. */
export type PieceKey = string;

/** The key of a piece. */
export function keyOf(piece: Piece): PieceKey {
  return `${piece.rendition}/${piece.msn}/${piece.part}`;
}

interface Held {
  bytes: Uint8Array<ArrayBuffer>;
  /** Which blocks were written: a block is written only after its digest matched. */
  blocks: Uint8Array;
  missing: number;
}

/** Holds pieces block by block. The core evicts; `bytesMax` is the limit that holds even if the core miscounts. */
export class PieceStore {
  #held = new Map<PieceKey, Held>();
  #bytes = 0;

  constructor(
    readonly bytesMax: number,
    readonly blockBytes: number,
  ) {}

  /** Bytes that the store occupies. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Pieces that have room in the store. */
  get size(): number {
    return this.#held.size;
  }

  /** Makes room for a piece of `length` bytes. False when it would not fit. */
  open(key: PieceKey, length: number): boolean {
    const held = this.#held.get(key);
    if (held) return held.bytes.length === length;
    if (this.#bytes + length > this.bytesMax) return false;
    const count = Math.ceil(length / this.blockBytes);
    this.#held.set(key, { bytes: new Uint8Array(length), blocks: new Uint8Array(count), missing: count });
    this.#bytes += length;
    return true;
  }

  /** Writes a verified block. False when the piece is not open or the length is not the block's. */
  write(key: PieceKey, block: number, bytes: Uint8Array): boolean {
    const held = this.#held.get(key);
    if (held?.blocks[block] === undefined) return false;
    const at = block * this.blockBytes;
    if (bytes.length !== Math.min(this.blockBytes, held.bytes.length - at)) return false;
    if (held.blocks[block] === 0) {
      held.blocks[block] = 1;
      held.missing--;
      held.bytes.set(bytes, at);
    }
    return true;
  }

  /** The bytes of a block, to be sent at once and not kept; null when it is not held. */
  block(key: PieceKey, block: number): Uint8Array<ArrayBuffer> | null {
    const held = this.#held.get(key);
    if (held?.blocks[block] !== 1) return null;
    const at = block * this.blockBytes;
    return held.bytes.subarray(at, Math.min(at + this.blockBytes, held.bytes.length));
  }

  /** The length of a piece that is open, in bytes. */
  lengthOf(key: PieceKey): number | null {
    return this.#held.get(key)?.bytes.length ?? null;
  }

  /** Whether every block of the piece is held. */
  isComplete(key: PieceKey): boolean {
    return this.#held.get(key)?.missing === 0;
  }

  /** A copy of a complete piece, for a player that may detach it; null while blocks are missing. */
  copy(key: PieceKey): ArrayBuffer | null {
    const held = this.#held.get(key);
    return held?.missing === 0 ? held.bytes.buffer.slice(0) : null;
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
