/**
 * Which URL is which piece, and back.
 *
 * Learned from the multivariant playlist (the order of renditions), from what hls.js asks for, and from the tracker's
 * notices; where a piece was named by none of them, its URL is made by the origin's scheme.
 */

import { keyOf } from './store.ts';
import type { PieceKey } from './store.ts';
import type { Piece } from './protocol.ts';

/** URLs kept; some ten minutes of two renditions in 500 ms parts. Older ones can be made again by the scheme. */
const URLS_MAX = 2_400;

/** Everything a viewer must know of a stream, from the `EXT-X-SESSION-DATA` of its multivariant playlist. */
export interface StreamInfo {
  /** The origin's Ed25519 public key. */
  key: Uint8Array<ArrayBuffer>;
  /** Which publication of the stream, 16 bytes. */
  epoch: Uint8Array;
  /** The stream's name; of a recording, its name and epoch with a slash between. */
  stream: string;
  /** The tracker's WebSocket URL. */
  trackerUrl: string;
}

/** `EXT-X-SESSION-DATA` entries by their ids, as hls.js parses them. */
type SessionData = Record<string, Record<string, unknown>>;

/** Reads the session data; null when the playlist is not one of Shoal's, or a value makes no sense. */
export function readSessionData(
  data: SessionData | null | undefined,
  playlistUrl: string,
): StreamInfo | null {
  const value = (name: string): string => {
    const text = data?.[`live.shoal.${name}`]?.['VALUE'];
    return typeof text === 'string' ? text : '';
  };
  const key = bytesFromBase64(value('key'));
  const hex = value('epoch');
  const stream = value('stream');
  const tracker = value('tracker');
  if (key?.length !== 32 || !/^[0-9a-f]{32}$/i.test(hex) || !stream || !tracker) return null;
  const epoch = Uint8Array.from(hex.match(/../g) ?? [], (pair) => parseInt(pair, 16));
  try {
    const url = new URL(tracker, playlistUrl);
    if (url.protocol.startsWith('http')) url.protocol = url.protocol.replace('http', 'ws');
    return { key, epoch, stream, trackerUrl: url.href };
  } catch {
    return null;
  }
}

/** Decodes standard base64; null when it is not. */
export function bytesFromBase64(text: string): Uint8Array<ArrayBuffer> | null {
  try {
    return Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  } catch {
    return null;
  }
}

/** The URL's folder, without query. */
function folderOf(url: string): string {
  const end = url.search(/[?#]/);
  const path = end < 0 ? url : url.slice(0, end);
  return path.slice(0, path.lastIndexOf('/') + 1);
}

/** URLs and pieces of one epoch of one stream. */
export class Catalog {
  /** Folder of a rendition's playlist to its number. */
  #renditions = new Map<string, number>();
  #folders: string[] = [];
  #urls = new Map<PieceKey, string>();
  /** Renditions that were seen to have parts. */
  #hasParts = new Set<number>();

  /** `videoUrls` and `audioUrls` are the media playlists' URLs in the order of the multivariant playlist. A recording's
   * segments have parts, which its playlists do not list. */
  constructor(
    readonly multivariantUrl: string,
    videoUrls: string[],
    audioUrls: string[],
    readonly isRecording = false,
  ) {
    for (const url of [...videoUrls, ...audioUrls]) {
      const folder = folderOf(url);
      if (url === '' || this.#renditions.has(folder)) continue;
      this.#renditions.set(folder, this.#folders.length);
      this.#folders.push(folder);
    }
  }

  /** The number of the rendition whose playlist or media this URL is; null for one that is not of the stream. */
  renditionOf(url: string): number | null {
    return this.#renditions.get(folderOf(url)) ?? null;
  }

  /** Whether the rendition is published in parts, as far as is known. */
  hasParts(rendition: number): boolean {
    return this.isRecording || this.#hasParts.has(rendition);
  }

  /** Remembers a piece's URL. `isPart` where it is known to be a part and not a whole segment. */
  learn(piece: Piece, url: string, isPart: boolean): void {
    if (isPart) this.#hasParts.add(piece.rendition);
    const key = keyOf(piece);
    if (this.#urls.has(key)) return;
    this.#urls.set(key, url);
    if (this.#urls.size <= URLS_MAX) return;
    const [oldest] = this.#urls.keys();
    if (oldest !== undefined) this.#urls.delete(oldest);
  }

  /** Remembers the URL of a tracker's notice. False when it is outside the stream's own folder: a tracker may not
   * send viewers elsewhere. */
  learnNotice(piece: Piece, uri: string): boolean {
    let url: string;
    try {
      url = new URL(uri, this.multivariantUrl).href;
    } catch {
      return false;
    }
    if (this.renditionOf(url) !== piece.rendition) return false;
    this.learn(piece, url, piece.part > 0 || /\/part-[^/]*$/.test(url));
    return true;
  }

  /** The piece's URL; null for a rendition that the stream does not have. */
  urlOf(piece: Piece): string | null {
    const known = this.#urls.get(keyOf(piece));
    if (known !== undefined) return known;
    const isPart = piece.part > 0 || this.hasParts(piece.rendition);
    return this.#made(piece, isPart ? `part-${piece.msn}-${piece.part}` : `seg-${piece.msn}`);
  }

  /** The URL of the segment that the piece is of. */
  segmentUrlOf(piece: Piece): string | null {
    return this.#made(piece, `seg-${piece.msn}`);
  }

  #made({ rendition }: Piece, name: string): string | null {
    const folder = this.#folders[rendition];
    return folder === undefined ? null : `${folder}${name}.m4s`;
  }
}
