/**
 * `cargo xtask bench viewers`: real Chromium pages against a real server with a real publisher, first with sharing,
 * then without. Prints a table, and one JSON object on its last line.
 *
 * Counted from the first viewer's first request to the end, start-up included; "steady" from 10 s after the last
 * viewer's first frame. Bytes and requests are the origin's own counters, in its metrics.
 */

import { createHash } from 'node:crypto';
import { parseArgs } from 'node:util';

import { startChromium } from '../src/browsers.ts';
import type { Browser } from '../src/browsers.ts';
import { Server, sumOfMetric } from '../src/program.ts';
import { Viewer } from '../src/viewer.ts';
import type { AuditEntry, Probe } from '../src/viewer.ts';
import { pause } from '../src/wait.ts';
import { copies, percentile, rounded, table } from './figures.ts';
import type { Figures, OriginCounters } from './figures.ts';
import { yieldProcessors } from './priority.ts';

const STREAM = 'bench';
const PART_MS = 500;
/** Steady state is counted from so long after the last viewer's first frame. */
const SETTLE_MS = 10_000;
/** Viewers come one after the other, so that start-up is measured and not the machine's load. */
const JOIN_INTERVAL_MS = 2_000;
const LATENCY_INTERVAL_MS = 1_000;
/** The table tells how busy the machine was: at its limit the figures say more about it than about Shoal. */
const BUSY_SHARE = 0.9;

const { values } = parseArgs({
  options: {
    viewers: { type: 'string', default: '4' },
    seconds: { type: 'string', default: '40' },
    size: { type: 'string', default: '640x360' },
    bitrate: { type: 'string', default: '1200k' },
  },
});
const viewers = Number(values.viewers);
const seconds = Number(values.seconds);
if (!Number.isInteger(viewers) || viewers < 1 || !Number.isInteger(seconds) || seconds < 5) {
  console.error('--viewers wants a whole number from 1, --seconds one from 5');
  process.exit(1);
}

async function counters(server: Server): Promise<OriginCounters> {
  const text = await (await fetch(`${server.url}/metrics`)).text();
  const sent = (name: string): number => sumOfMetric(text, 'origin_sent_bytes_total', `class="${name}"`);
  return {
    sentBytes: sent('part') + sent('segment'),
    mediaBytes: sumOfMetric(text, 'segmenter_media_bytes_total'),
    requests: sumOfMetric(text, 'origin_requests_total'),
  };
}

/** Compares what a player was given with what the origin has; gives the number of bytes that differ. */
async function unverifiedBytes(entries: AuditEntry[], origin: Map<string, Buffer>): Promise<number> {
  let bytes = 0;
  for (const entry of entries) {
    let resource = origin.get(entry.url);
    if (!resource) {
      const response = await fetch(entry.url);
      // What is no longer there cannot be compared and must not count as right.
      resource = response.ok ? Buffer.from(await response.arrayBuffer()) : Buffer.alloc(0);
      origin.set(entry.url, resource);
    }
    const range = resource.subarray(entry.offset, entry.offset + entry.length);
    const digest = createHash('sha256').update(range).digest('hex');
    if (range.length !== entry.length || digest !== entry.sha256) bytes += entry.length;
  }
  return bytes;
}

/** Start-ups and stalls of each viewer, for those who want to know why. */
function timeline(probes: Probe[]): string {
  return probes
    .map(({ firstFrameMs, stalls }) => {
      const words = stalls.map(({ at, took }) => `${(at / 1000).toFixed(1)} s +${took.toFixed(0)} ms`).join(', ');
      return `      first frame ${rounded(firstFrameMs ?? Number.NaN, 0)} ms; stalls: ${words || 'none'}`;
    })
    .join('\n');
}

/** Opens a viewer until it plays and throws it away, so that neither run pays for the browser's own start. */
async function warmUp(browser: Browser, server: Server): Promise<void> {
  const viewer = await Viewer.open(browser, server.url, STREAM, { sharing: false });
  await viewer.untilPlaying(60_000);
  await viewer.close();
}

async function measure(server: Server, sharing: boolean): Promise<Figures> {
  const browser = await startChromium();
  await yieldProcessors();
  try {
    await warmUp(browser, server);
    const from = await counters(server);
    const open: Viewer[] = [];
    for (let index = 0; index < viewers; index++) {
      if (index > 0) await pause(JOIN_INTERVAL_MS);
      open.push(await Viewer.open(browser, server.url, STREAM, { sharing, width: 480, height: 360 }));
    }
    const begin = Date.now();
    await Promise.all(open.map((viewer) => viewer.untilPlaying(60_000)));
    let steadyFrom: OriginCounters | null = null;
    const steadyAt = Date.now() + SETTLE_MS;
    const latencies: number[] = [];
    const end = Math.max(begin + seconds * 1000, steadyAt + 5_000);
    while (Date.now() < end) {
      const next = Date.now() + LATENCY_INTERVAL_MS;
      const read = await Promise.all(open.map((viewer) => viewer.latencyMs()));
      latencies.push(...read.filter((latency) => latency !== null));
      if (!steadyFrom && Date.now() >= steadyAt) steadyFrom = await counters(server);
      await pause(Math.max(0, next - Date.now()));
    }
    const to = await counters(server);
    const probes = await Promise.all(open.map((viewer) => viewer.probe()));
    const stats = await Promise.all(open.map((viewer) => viewer.stats()));
    const audits = await Promise.all(open.map((viewer) => viewer.audit()));
    const usedBytes = audits.flat().reduce((sum, entry) => sum + entry.length, 0);
    const resources = new Map<string, Buffer>();
    let unverified = 0;
    for (const audit of audits) unverified += await unverifiedBytes(audit, resources);
    const startups = probes.map((probe) => probe.firstFrameMs ?? Number.NaN);
    console.error(
      `    ${sharing ? 'sharing' : 'origin only'}: neighbors ${stats.map((stat) => stat.neighbors).join(' ')}, ` +
        `from peers ${stats.map((stat) => `${Math.round((100 * stat.peerBytes) / Math.max(1, stat.peerBytes + stat.originBytes))} %`).join(' ')}, ` +
        `waste ${stats.map((stat) => stat.wasteBytes).join(' ')} B, rejected ${stats.map((stat) => stat.rejectedBytes).join(' ')} B, ` +
        `${latencies.length} latency samples\n${timeline(probes)}`,
    );
    return {
      copies_per_piece: rounded(copies(from, to), 3),
      copies_per_piece_steady: rounded(steadyFrom ? copies(steadyFrom, to) : Number.NaN, 3),
      offload: rounded(1 - (to.sentBytes - from.sentBytes) / usedBytes, 3),
      startup_p50_ms: rounded(percentile(startups, 0.5), 0),
      startup_p95_ms: rounded(percentile(startups, 0.95), 0),
      latency_p50_s: rounded(percentile(latencies, 0.5) / 1000, 3),
      latency_p95_s: rounded(percentile(latencies, 0.95) / 1000, 3),
      rebuffer_s: rounded(probes.reduce((sum, probe) => sum + probe.rebufferMs, 0) / 1000, 2),
      origin_requests: to.requests - from.requests,
      unverified_bytes: unverified,
    };
  } finally {
    await browser.close();
  }
}

/** Ticks of all processors since the machine started: [idle, all]. */
async function processorTicks(): Promise<[number, number]> {
  const { readFile } = await import('node:fs/promises');
  const numbers = (await readFile('/proc/stat', 'utf8').catch(() => 'cpu 0')).split('\n')[0]?.split(/ +/).slice(1).map(Number) ?? [];
  return [(numbers[3] ?? 0) + (numbers[4] ?? 0), numbers.reduce((sum, ticks) => sum + ticks, 0)];
}

// What viewers were given is compared at the end of each run, so the origin has to hold it until then.
const settings = { SEGMENTER_PART_MS: String(PART_MS), SEGMENTER_WINDOW_MS: String((seconds + 60) * 1000), LOG_LEVEL: 'warn' };
const server = await Server.start(settings);
try {
  const publisher = await server.publish(STREAM, ['--size', values.size, '--bitrate', values.bitrate]);
  try {
    console.log(`${viewers} viewers, ${seconds} s for each run, parts of ${PART_MS} ms, test pattern ${values.size} at ${values.bitrate}bit/s`);
    const [idleBefore, allBefore] = await processorTicks();
    const sharing = await measure(server, true);
    const originOnly = await measure(server, false);
    const [idleAfter, allAfter] = await processorTicks();
    const busy = 1 - (idleAfter - idleBefore) / Math.max(1, allAfter - allBefore);
    console.log(table(sharing, originOnly));
    const bound = Math.min(1 - 1 / viewers, 1);
    console.log(`bound of offload with ${viewers} viewers: ${rounded(bound, 3)}; processors busy: ${Math.round(100 * busy)} %`);
    if (busy > BUSY_SHARE) console.log('The machine was at its limit: start-up, latency and rebuffering are its figures as much as Shoal\'s.');
    console.log(JSON.stringify({ viewers, seconds, part_ms: PART_MS, sharing, origin_only: originOnly }));
  } finally {
    await publisher.stop();
  }
} finally {
  await server.stop();
}
