/** The arithmetic of the bench, apart from browsers, so that it can be tested. */

/** The figures of one run, with sharing or without. */
export interface Figures {
  /** Media bytes that the origin sent / bytes of the media that existed meanwhile. 1 is the floor, n a plain CDN. */
  copies_per_piece: number;
  /** The same from 10 s after the last viewer's first frame. */
  copies_per_piece_steady: number;
  /** 1 − media bytes that the origin sent / media bytes that viewers used. */
  offload: number;
  startup_p50_ms: number;
  startup_p95_ms: number;
  /** Glass to glass. */
  latency_p50_s: number;
  latency_p95_s: number;
  /** The sum over all viewers. */
  rebuffer_s: number;
  /** Playlists, media and records. */
  origin_requests: number;
  /** Processor time of all of the browser's processes in steady state, in percent of one core for each viewer. */
  browser_percent_per_viewer: number;
  /** Time that the swarm takes on the page's main thread, milliseconds in a second, the median viewer; null for a rival. */
  swarm_ms_per_s: number | null;
  /** Bytes given to the player that are not those of the origin; null for a player that cannot tell. */
  unverified_bytes: number | null;
}

/** The origin's counters at one moment. */
export interface OriginCounters {
  /** Bytes of parts and segments sent. */
  sentBytes: number;
  /** Bytes of parts published. */
  mediaBytes: number;
  requests: number;
}

/** The value below which `share` of the values lie (nearest rank). Not a number when there are none. */
export function percentile(values: readonly number[], share: number): number {
  if (values.length === 0) return Number.NaN;
  const sorted = [...values].sort((a, b) => a - b);
  const rank = Math.max(1, Math.ceil(share * sorted.length));
  return sorted[rank - 1] ?? Number.NaN;
}

/** Copies per piece between two moments. */
export function copies(from: OriginCounters, to: OriginCounters): number {
  return (to.sentBytes - from.sentBytes) / (to.mediaBytes - from.mediaBytes);
}

/** A number with so many decimals, for people and for JSON. */
export function rounded(value: number, decimals: number): number {
  const factor = 10 ** decimals;
  return Math.round(value * factor) / factor;
}

/** The table that is printed: a column for each run. */
export function table(runs: Record<string, Figures>): string {
  const rows: [string, keyof Figures][] = [
    ['copies per piece', 'copies_per_piece'],
    ['copies per piece, steady', 'copies_per_piece_steady'],
    ['offload', 'offload'],
    ['start-up p50, ms', 'startup_p50_ms'],
    ['start-up p95, ms', 'startup_p95_ms'],
    ['latency p50, s', 'latency_p50_s'],
    ['latency p95, s', 'latency_p95_s'],
    ['rebuffering, s', 'rebuffer_s'],
    ['origin requests', 'origin_requests'],
    ['browser, % of a core', 'browser_percent_per_viewer'],
    ['swarm, ms per s', 'swarm_ms_per_s'],
    ['unverified bytes', 'unverified_bytes'],
  ];
  const line = (cells: string[]): string => `${(cells[0] ?? '').padEnd(26)}${cells.slice(1).map((cell) => cell.padStart(15)).join('')}`;
  const names = Object.keys(runs).map((name) => name.replace('_', ' '));
  return [
    line(['', ...names]),
    ...rows.map(([name, key]) => line([name, ...Object.values(runs).map((figures) => String(figures[key] ?? '–'))])),
  ].join('\n');
}
