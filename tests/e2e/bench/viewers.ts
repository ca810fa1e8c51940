/**
 * `cargo xtask bench viewers`: real Chromium pages against a real server with a real publisher, first with sharing,
 * then without, and if asked a rival's player. Prints a table, and one JSON object on its last line.
 *
 * Counted from the first viewer's first request to the end, start-up included; "steady" from 10 s after the last
 * viewer's first frame. Bytes and requests are the origin's own counters, in its metrics.
 */

import { createHash } from 'node:crypto';
import { parseArgs } from 'node:util';

import { startChromium } from '../src/browsers.ts';
import type { Browser, Tab } from '../src/browsers.ts';
import { Program, Server, shoalPath, sumOfMetric } from '../src/program.ts';
import { RivalSite } from '../src/rival.ts';
import { Viewer } from '../src/viewer.ts';
import type { AuditEntry, Probe } from '../src/viewer.ts';
import { pause, until } from '../src/wait.ts';
import { copies, percentile, rounded, table } from './figures.ts';
import type { Figures, OriginCounters } from './figures.ts';
import { browserSeconds, processorTicks, untilCalm, yieldProcessors } from './processors.ts';
import { openRival, openShoal, openTab } from './watchers.ts';
import type { Watcher } from './watchers.ts';

const STREAM = 'bench';
const PART_MS = 500;
/** Steady state is counted from so long after the last viewer's first frame. */
const SETTLE_MS = 10_000;
/**
 * Viewers come one after the other, so that start-up is measured and not the machine's load: loading a page takes a second of
 * processor time, which the others' pages would miss, although real viewers have processors of their own.
 */
const [JOIN_INTERVAL_MIN_MS, JOIN_INTERVAL_MAX_MS] = [2_000, 15_000];
const LATENCY_INTERVAL_MS = 1_000;
/** The table tells how busy the machine was: at its limit the figures say more about it than about Shoal. */
const BUSY_SHARE = 0.9;
/** The stream's rate is taken over so long. */
const RATE_MS = 8_000;

const { values } = parseArgs({
  options: {
    viewers: { type: 'string', default: '4' },
    seconds: { type: 'string', default: '40' },
    size: { type: 'string', default: '320x180' },
    bitrate: { type: 'string', default: '1200k' },
    fps: { type: 'string', default: '15' },
    native: { type: 'string', default: '0' },
    rival: { type: 'boolean', default: false },
  },
});
const viewers = Number(values.viewers);
const seconds = Number(values.seconds);
const native = Number(values.native);
if (!Number.isInteger(viewers) || viewers < 1 || !Number.isInteger(seconds) || seconds < 5 || !Number.isInteger(native) || native < 0) {
  console.error('--viewers wants a whole number from 1, --seconds one from 5, --native one from 0');
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

/** What each viewer got, its start-up and its stalls, for those who want to know why. */
async function timeline(open: Watcher[], probes: Probe[]): Promise<string> {
  const summaries = await Promise.all(open.map((watcher) => watcher.summary()));
  return probes
    .map(({ firstFrameMs, stalls }, index) => {
      const words = stalls.map(({ at, took }) => `${(at / 1000).toFixed(1)} s +${took.toFixed(0)} ms`).join(', ');
      return `      first frame ${rounded(firstFrameMs ?? Number.NaN, 0)} ms; stalls: ${words || 'none'}; ${summaries[index]}`;
    })
    .join('\n');
}

/** Opens a viewer until it plays and throws it away, so that no run pays for the browser's own start. */
async function warmUp(browser: Browser, server: Server): Promise<void> {
  const viewer = await Viewer.open(browser, server.url, STREAM, { sharing: false });
  await viewer.untilPlaying(60_000);
  await viewer.close();
}

/** The stream's rate in kbit/s as it is published: an encoder's limit says little of a picture that hardly moves. */
async function streamKbps(server: Server): Promise<number> {
  const from = await counters(server);
  await pause(RATE_MS);
  const to = await counters(server);
  return (8 * (to.mediaBytes - from.mediaBytes)) / RATE_MS;
}

/** Viewers without a screen, in one process, whose lines send at most twice the stream's rate each. */
async function startNative(server: Server, rateKbps: number): Promise<Program> {
  const uplink = Math.round(2 * rateKbps);
  console.error(`      native viewers: uplinks of ${uplink} kbit/s`);
  const flags = ['--count', String(native), '--uplink-kbps', String(uplink), '--join-over', String(Math.ceil(native / 2))];
  const program = new Program(shoalPath(), ['watch', `${server.url}/watch/${STREAM}`, ...flags]);
  await until('all native viewers play', () => new RegExp(`${native}/${native} playing`).test(program.stderr), 120_000);
  return program;
}

/** Ends the native viewers; gives the media bytes that they used. */
async function stopNative(program: Program): Promise<number> {
  await program.stop();
  const last = program.stdout.trim().split('\n').at(-1) ?? '';
  console.error(`      native viewers: ${last}`);
  const { peer_bytes: peers, origin_bytes: origin, waste_bytes: waste } = JSON.parse(last) as Record<string, number>;
  return (peers ?? 0) + (origin ?? 0) - (waste ?? 0);
}

/** What was used up to a moment. */
interface Usage {
  atMs: number;
  browserSeconds: number;
  /** Of those viewers who have a swarm. */
  swarmMs: number[];
}

async function usage(watchers: Watcher[]): Promise<Usage> {
  const swarmMs = await Promise.all(watchers.map((watcher) => watcher.swarmMs()));
  return { atMs: Date.now(), browserSeconds: await browserSeconds(), swarmMs: swarmMs.filter((ms) => ms !== null) };
}

async function measure(server: Server, name: string, open: (tab: Tab) => Promise<Watcher>, withNative = false): Promise<Figures> {
  const browser = await startChromium();
  await yieldProcessors();
  let helpers: Program | null = null;
  try {
    await warmUp(browser, server);
    const tabs: Tab[] = [];
    for (let index = 0; index < viewers; index++) tabs.push(await openTab(browser));
    await yieldProcessors();
    await untilCalm(JOIN_INTERVAL_MIN_MS, JOIN_INTERVAL_MAX_MS);
    const rateKbps = withNative ? await streamKbps(server) : 0;
    const from = await counters(server);
    const watchers: Watcher[] = [];
    for (const [index, tab] of tabs.entries()) {
      if (index > 0) await untilCalm(JOIN_INTERVAL_MIN_MS, JOIN_INTERVAL_MAX_MS);
      watchers.push(await open(tab));
    }
    if (withNative) helpers = await startNative(server, rateKbps);
    const begin = Date.now();
    await Promise.all(watchers.map((watcher) => watcher.untilPlaying()));
    let steadyFrom: OriginCounters | null = null;
    let usedFrom: Usage | null = null;
    const steadyAt = Date.now() + SETTLE_MS;
    const latencies: number[] = [];
    const end = Math.max(begin + seconds * 1000, steadyAt + 5_000);
    while (Date.now() < end) {
      const next = Date.now() + LATENCY_INTERVAL_MS;
      const read = await Promise.all(watchers.map((watcher) => watcher.latencyMs()));
      latencies.push(...read.filter((latency) => latency !== null));
      if (!steadyFrom && Date.now() >= steadyAt) {
        steadyFrom = await counters(server);
        usedFrom = await usage(watchers);
      }
      await pause(Math.max(0, next - Date.now()));
    }
    const to = await counters(server);
    const usedTo = await usage(watchers);
    const steadySeconds = usedFrom ? (usedTo.atMs - usedFrom.atMs) / 1000 : Number.NaN;
    const browserShare = (usedTo.browserSeconds - (usedFrom?.browserSeconds ?? 0)) / steadySeconds;
    const swarmMs = usedTo.swarmMs.map((ms, index) => (ms - (usedFrom?.swarmMs[index] ?? 0)) / steadySeconds);
    const probes = await Promise.all(watchers.map((watcher) => watcher.probe()));
    console.error(`    ${name}: ${latencies.length} latency samples\n${await timeline(watchers, probes)}`);
    let usedBytes = 0;
    for (const watcher of watchers) usedBytes += await watcher.usedBytes();
    if (helpers) usedBytes += await stopNative(helpers);
    helpers = null;
    const resources = new Map<string, Buffer>();
    let unverified: number | null = 0;
    for (const watcher of watchers) {
      const audit = await watcher.audit();
      unverified = audit === null || unverified === null ? null : unverified + (await unverifiedBytes(audit, resources));
    }
    const startups = probes.map((probe) => probe.firstFrameMs ?? Number.NaN);
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
      browser_percent_per_viewer: rounded((100 * browserShare) / viewers, 1),
      swarm_ms_per_s: swarmMs.length > 0 ? rounded(percentile(swarmMs, 0.5), 1) : null,
      unverified_bytes: unverified,
    };
  } finally {
    await helpers?.stop();
    await browser.close();
  }
}

/** p2p-media-loader in the same browsers on the same stream, tuned and as it comes. */
async function measureRival(server: Server): Promise<Record<string, Figures>> {
  const site = await RivalSite.start(server.url, STREAM);
  try {
    const run = (name: string, isTuned: boolean): Promise<Figures> =>
      measure(server, name, (tab) => openRival(tab, site, name, isTuned));
    return { rival_tuned: await run('rival-tuned', true), rival_default: await run('rival-default', false) };
  } finally {
    site.close();
  }
}

// What viewers were given is compared at the end of each run, so the origin has to hold it until then.
const settings = { SEGMENTER_PART_MS: String(PART_MS), SEGMENTER_WINDOW_MS: String((seconds + 60) * 1000), LOG_LEVEL: 'warn' };
const server = await Server.start(settings);
try {
  const publisher = await server.publish(STREAM, ['--size', values.size, '--bitrate', values.bitrate, '--fps', values.fps]);
  try {
    console.log(`${viewers} viewers, ${seconds} s for each run, parts of ${PART_MS} ms, test pattern ${values.size}, ${values.fps} frames a second, ${values.bitrate}bit/s`);
    const [idleBefore, allBefore] = await processorTicks();
    const shoal = (sharing: boolean) => (tab: Tab): Promise<Watcher> => openShoal(tab, server.url, STREAM, sharing);
    const sharing = await measure(server, 'sharing', shoal(true), native > 0);
    const originOnly = await measure(server, 'origin only', shoal(false));
    const rivals = values.rival ? await measureRival(server) : {};
    const [idleAfter, allAfter] = await processorTicks();
    const busy = 1 - (idleAfter - idleBefore) / Math.max(1, allAfter - allBefore);
    const runs = { sharing, origin_only: originOnly, ...rivals };
    console.log(table(runs));
    const all = viewers + native;
    console.log(`bound of offload with ${all} viewers: ${rounded(1 - 1 / all, 3)}; processors busy: ${Math.round(100 * busy)} %`);
    if (native > 0) console.log(`With sharing ${native} native viewers watch, too; without, the ${viewers} browsers alone.`);
    if (values.rival) console.log('The rival is p2p-media-loader 2.3.1, which swaps whole segments and verifies nothing.');
    if (busy > BUSY_SHARE) console.log('The machine was at its limit: start-up, latency and rebuffering are its figures as much as Shoal\'s.');
    console.log(JSON.stringify({ viewers, ...(native > 0 ? { native } : {}), seconds, part_ms: PART_MS, ...runs }));
  } finally {
    await publisher.stop();
  }
} finally {
  await server.stop();
}
