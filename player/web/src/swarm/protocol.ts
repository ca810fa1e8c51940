/**
 * Messages between a viewer and the tracker, as TypeScript types.
 *
 * Normative: `tracker/protocol/PROTOCOL.md`; a test feeds its examples to {@link parseTrackerMessage}. What viewers say
 * to each other over data channels is encoded by the swarm core and is not known here.
 */

/** The version of the protocol, sent in `join`. */
export const PROTOCOL_VERSION = 1;

/** A viewer's number in its swarm, issued by the tracker. */
export type PeerId = number;

/** Which piece of the stream. */
export interface Piece {
  /** The rendition's number: the order of the multivariant playlist, videos first, then audio. */
  rendition: number;
  /** The media sequence number of the segment. */
  msn: number;
  /** The part's index in its segment. */
  part: number;
}

/** WebRTC signaling between two introduced viewers. */
export type Signal =
  | { kind: 'offer'; sdp: string }
  | { kind: 'answer'; sdp: string }
  | { kind: 'candidate'; candidate: string; mid?: string };

/** A viewer's measurements since its last report. */
export interface Report {
  uplink_kbps: number;
  renditions: number[];
  buffer_ms: number;
  behind_ms: number;
  peer_bytes: number;
  origin_bytes: number;
  sent_bytes: number;
  waste_bytes: number;
  rebuffer_ms: number;
}

/** What a viewer sends. */
export type ViewerMessage =
  | {
      type: 'join';
      version: number;
      stream: string;
      token?: string;
      resume?: string;
      shares: boolean;
      renditions?: number[];
    }
  | { type: 'consent' }
  | { type: 'signal'; to: PeerId; data: Signal }
  | { type: 'connected'; peer: PeerId; rtt_ms: number }
  | { type: 'lost'; peer: PeerId; was_connected: boolean }
  | ({ type: 'report' } & Report)
  | { type: 'accuse'; peer: PeerId; piece: Piece }
  | { type: 'silent'; peer: PeerId; rendition: number; stripe: number }
  | { type: 'share'; shares: boolean }
  | { type: 'ping' };

/** A published piece and its signed digest record. */
export interface PublishedPiece {
  piece: Piece;
  /** Relative to the multivariant playlist's URL. */
  uri: string;
  /** Base64, standard alphabet, padded. */
  record: string;
}

/** A viewer's place in one stripe's tree. */
export interface Place {
  stripe: number;
  root?: boolean;
  parent?: PeerId;
  children?: PeerId[];
  expected_ms?: number;
}

/** What a viewer needs to take part. */
export interface Welcome {
  type: 'welcome';
  version: number;
  peer: PeerId;
  swarm: string;
  resume: string;
  ice_servers: { urls: string[]; username?: string; credential?: string }[];
  sharing: boolean;
  relay_only?: boolean;
  consent_required?: boolean;
  neighbors_max: number;
  upload_ratio_max_percent: number;
  report_interval_ms: number;
  silence_max_ms: number;
  recent: PublishedPiece[];
}

/** Why the tracker refused a message. */
export type ErrorCode =
  | 'malformed'
  | 'out_of_order'
  | 'version'
  | 'unknown_stream'
  | 'refused'
  | 'not_introduced'
  | 'rate_limited'
  | 'full';

/** What the tracker sends. */
export type TrackerMessage =
  | Welcome
  | { type: 'introduce'; peer: PeerId; offers: boolean }
  | { type: 'signal'; from: PeerId; data: Signal }
  | ({ type: 'published' } & PublishedPiece)
  | { type: 'plan'; rendition: number; stripes: number; places: Place[] }
  | { type: 'part'; peer: PeerId }
  | { type: 'sharing'; on: boolean }
  | { type: 'drain'; reconnect_within_ms: number }
  | { type: 'ended' }
  | { type: 'pong' }
  | { type: 'error'; code: ErrorCode; message: string; fatal: boolean; retry_after_ms?: number };

/** A tracker message longer than this is refused unread: the largest legitimate one, a welcome with the records of
 * some seconds, stays under 200 kB. */
export const MESSAGE_CHARS_MAX = 1 << 20;

type Fields = Record<string, unknown>;
type Check = (value: unknown) => boolean;

const isNumber: Check = (value) => Number.isSafeInteger(value) && (value as number) >= 0;
const isText: Check = (value) => typeof value === 'string';
const isFlag: Check = (value) => typeof value === 'boolean';
const isOptional = (check: Check): Check => (value) => value === undefined || check(value);
const isListOf = (check: Check): Check => (value) => Array.isArray(value) && value.every(check);
const isRecord = (checks: Record<string, Check>): Check => (value) => {
  if (typeof value !== 'object' || value === null) return false;
  for (const name in checks) {
    if (!checks[name]?.((value as Fields)[name])) return false;
  }
  return true;
};

const piece = isRecord({ rendition: isNumber, msn: isNumber, part: isNumber });
const published = { piece, uri: isText, record: isText };

const signal: Check = (value) =>
  isRecord({ kind: isText })(value) &&
  ((value as Fields)['kind'] === 'candidate'
    ? isRecord({ candidate: isText, mid: isOptional(isText) })(value)
    : ['offer', 'answer'].includes((value as Fields)['kind'] as string) && isRecord({ sdp: isText })(value));

const messages: Record<TrackerMessage['type'], Check> = {
  welcome: isRecord({
    version: isNumber,
    peer: isNumber,
    swarm: isText,
    resume: isText,
    ice_servers: isListOf(
      isRecord({ urls: isListOf(isText), username: isOptional(isText), credential: isOptional(isText) }),
    ),
    sharing: isFlag,
    relay_only: isOptional(isFlag),
    consent_required: isOptional(isFlag),
    neighbors_max: isNumber,
    upload_ratio_max_percent: isNumber,
    report_interval_ms: isNumber,
    silence_max_ms: isNumber,
    recent: isListOf(isRecord(published)),
  }),
  introduce: isRecord({ peer: isNumber, offers: isFlag }),
  signal: isRecord({ from: isNumber, data: signal }),
  published: isRecord(published),
  plan: isRecord({
    rendition: isNumber,
    stripes: isNumber,
    places: isListOf(
      isRecord({
        stripe: isNumber,
        root: isOptional(isFlag),
        parent: isOptional(isNumber),
        children: isOptional(isListOf(isNumber)),
        expected_ms: isOptional(isNumber),
      }),
    ),
  }),
  part: isRecord({ peer: isNumber }),
  sharing: isRecord({ on: isFlag }),
  drain: isRecord({ reconnect_within_ms: isNumber }),
  ended: isRecord({}),
  pong: isRecord({}),
  error: isRecord({ code: isText, message: isText, fatal: isFlag, retry_after_ms: isOptional(isNumber) }),
};

/**
 * Reads a text frame of the tracker socket. Returns null for what is not a message of this protocol; messages of
 * types that a newer tracker may send are such, and are skipped.
 */
export function parseTrackerMessage(text: string): TrackerMessage | null {
  if (text.length > MESSAGE_CHARS_MAX) return null;
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return null;
  }
  if (!isRecord({ type: isText })(value)) return null;
  const check = Object.hasOwn(messages, (value as TrackerMessage).type)
    ? messages[(value as TrackerMessage).type]
    : undefined;
  return check?.(value) === true ? (value as TrackerMessage) : null;
}
