/** Those whom the bench watches watching: pages with Shoal's player, and with its best open rival. */

import type { Browser, Tab } from '../src/browsers.ts';
import { latencyMs, look } from '../src/rival.ts';
import type { RivalSite } from '../src/rival.ts';
import { PROBE, readProbe, SHOWN_FRAMES, Viewer } from '../src/viewer.ts';
import type { AuditEntry, Probe } from '../src/viewer.ts';
import { until } from '../src/wait.ts';

/** Small, because eight pictures are drawn on the same processors. */
const PAGE = { width: 480, height: 360 };

/** One page that plays. */
export interface Watcher {
  untilPlaying(): Promise<void>;
  /** Glass to glass; null where a frame has no clock. */
  latencyMs(): Promise<number | null>;
  probe(): Promise<Probe>;
  /** Media bytes that its player was given. */
  usedBytes(): Promise<number>;
  /** What its player was given, byte range by byte range; null where a player keeps no such ledger. */
  audit(): Promise<AuditEntry[] | null>;
  /** Time that its swarm has taken on the page's main thread, in milliseconds; null where that is not counted. */
  swarmMs(): Promise<number | null>;
  /** What it got from where, for people. */
  summary(): Promise<string>;
}

/** A tab for a watcher. A viewer's browser runs before he goes to a page: starting it costs more than all that the page does. */
export function openTab(browser: Browser): Promise<Tab> {
  return browser.open({ prelude: PROBE, ...PAGE });
}

/** Shoal's watch page. */
export async function openShoal(tab: Tab, server: string, stream: string, sharing: boolean): Promise<Watcher> {
  const viewer = await Viewer.load(tab, server, stream, sharing);
  let audit: Promise<AuditEntry[]> | null = null;
  const ledger = (): Promise<AuditEntry[]> => (audit ??= viewer.audit());
  return {
    untilPlaying: () => viewer.untilPlaying(60_000),
    latencyMs: () => viewer.latencyMs(),
    probe: () => viewer.probe(),
    usedBytes: async () => (await ledger()).reduce((sum, entry) => sum + entry.length, 0),
    audit: ledger,
    swarmMs: async () => (await viewer.stats()).busyMs,
    async summary() {
      const { neighbors, peerBytes, originBytes, wasteBytes, rejectedBytes } = await viewer.stats();
      const share = Math.round((100 * peerBytes) / Math.max(1, peerBytes + originBytes));
      return `${neighbors} neighbors, ${share} % from peers, ${wasteBytes} B wasted, ${rejectedBytes} B rejected`;
    },
  };
}

/** A page with p2p-media-loader. */
export async function openRival(tab: Tab, site: RivalSite, swarm: string, isTuned: boolean): Promise<Watcher> {
  await site.load(tab, { swarm, isTuned });
  return {
    untilPlaying: () => until('the rival shows moving pictures', () => tab.evaluate<boolean>(`${SHOWN_FRAMES} > 10`), 60_000).then(() => undefined),
    latencyMs: () => latencyMs(tab),
    probe: () => readProbe(tab),
    usedBytes: async () => (await look(tab)).used,
    audit: () => Promise.resolve(null),
    swarmMs: () => Promise.resolve(null),
    async summary() {
      const { peers, received, used } = await look(tab);
      return `${peers} peers met, ${Math.round((100 * received) / Math.max(1, used))} % from peers`;
    },
  };
}
