/**
 * A ledger of what was handed to hls.js, for benches and tests: they compare the digests with what the origin has, so
 * that "no unverified byte was played" is measured and not believed. Off unless asked for.
 */

import type { Provenance } from './swarm/store.ts';

/** Entries kept: an hour of two renditions in 500 ms parts. */
const ENTRIES_MAX = 16_384;

/** One range of media bytes that hls.js was given. */
export interface AuditEntry extends Provenance {
  url: string;
  /** The first byte in the resource, and how many. */
  offset: number;
  length: number;
  /** `swarm`: through the swarm core, from peers or from its own fetches. `plain`: hls.js's own way. */
  source: 'swarm' | 'plain';
  /** Hex SHA-256 of the bytes; empty where the page has no WebCrypto (plain http, other than localhost). */
  sha256: string;
  /** Unix milliseconds. */
  at: number;
}

/** Collects entries; {@link Audit.entries} waits for the digests. */
export class Audit {
  #entries: Promise<AuditEntry>[] = [];

  /** Notes bytes that are about to be given away; they are read at once. */
  note(url: string, offset: number, data: ArrayBuffer, from: Provenance, isFromSwarm: boolean): void {
    if (this.#entries.length >= ENTRIES_MAX) void this.#entries.shift();
    const entry: AuditEntry = {
      url,
      offset,
      length: data.byteLength,
      source: isFromSwarm ? 'swarm' : 'plain',
      peerBytes: from.peerBytes,
      originBytes: from.originBytes,
      sha256: '',
      at: Date.now(),
    };
    // WebCrypto is typed as always there, but pages on plain http lack it.
    const subtle = crypto.subtle as SubtleCrypto | undefined;
    this.#entries.push(
      subtle
        ? subtle.digest('SHA-256', data).then((digest) => {
            entry.sha256 = Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, '0')).join('');
            return entry;
          })
        : Promise.resolve(entry),
    );
  }

  /** Everything noted so far. */
  entries(): Promise<AuditEntry[]> {
    return Promise.all(this.#entries);
  }
}
