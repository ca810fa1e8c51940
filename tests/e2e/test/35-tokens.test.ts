/** A private stream: tokens bound to a viewer's certificate, in pages and natively; renewed, copied, used up and missing. */

import assert from 'node:assert/strict';
import { createHmac } from 'node:crypto';
import path from 'node:path';
import { after, before, test } from 'node:test';

import { startChromium } from '../src/browsers.ts';
import type { Browser, Tab } from '../src/browsers.ts';
import { Program, run, scratchFolder, Server, shoalPath } from '../src/program.ts';
import { Opcode, RawSocket } from '../src/socket.ts';
import { SHOWN_FRAMES } from '../src/viewer.ts';
import type { Stats } from '../src/viewer.ts';
import { until } from '../src/wait.ts';

const STREAM = 'private';
const SECRET = "a secret of the broadcaster's back end";
const SMALL = ['--size', '256x144', '--fps', '15', '--bitrate', '300k'];
/** The tracker takes a token for so much longer than it says: clocks differ. */
const LEEWAY_S = 10;

let browser: Browser;
let server: Server;
let publisher: Program;
const tabs: Tab[] = [];
/** Two pages with good tokens: control, and those whom the others could meet. */
let one: Page;
let other: Page;

before(async () => {
  browser = await startChromium();
  server = await Server.start({ TRACKER_VIEWER_TOKEN_SECRET: SECRET, TRACKER_TOKENS_REQUIRED: 'true' });
  publisher = await server.publish(STREAM, SMALL);
});
after(async () => {
  for (const tab of tabs) await tab.close();
  await publisher?.stop();
  await server?.stop();
  await browser?.close();
});

/** As the broadcaster's back end signs it; good for so many seconds from now on. */
function token(seconds: number, claims: Record<string, unknown>): string {
  const exp = Math.floor(Date.now() / 1000) + seconds - LEEWAY_S;
  const encode = (value: unknown): string => Buffer.from(JSON.stringify(value)).toString('base64url');
  const signed = `${encode({ alg: 'HS256', typ: 'JWT' })}.${encode({ stream: STREAM, exp, ...claims })}`;
  return `${signed}.${createHmac('sha256', SECRET).update(signed).digest('base64url')}`;
}

interface Page {
  tab: Tab;
  fingerprint: string;
}

/** A page that knows its fingerprint and plays nothing yet. */
async function open(): Promise<Page> {
  const tab = await browser.open({ width: 320, height: 200 });
  tabs.push(tab);
  await tab.goto(`${server.url}/`);
  const ask = "import('/assets/shoal-player.js').then((player) => player.fingerprint())";
  const fingerprint = await tab.evaluate<string>(ask);
  assert.match(fingerprint, /^([0-9A-F]{2}:){31}[0-9A-F]{2}$/);
  assert.equal(await tab.evaluate(ask), fingerprint, 'it is the same for the life of the page');
  return { tab, fingerprint };
}

/** Plays the stream; `token` is the option of that name, as code. */
async function play(tab: Tab, token: string, upload = true): Promise<void> {
  await tab.evaluate(`(async () => {
    const { default: Hls } = await import('/assets/hls.js');
    const { attach, liveConfig } = await import('/assets/shoal-player.js');
    const hls = new Hls(liveConfig());
    globalThis.shoal = attach(hls, { token: ${token}, upload: ${upload} });
    hls.loadSource('/live/${STREAM}/index.m3u8');
    const video = document.createElement('video');
    video.muted = true;
    document.body.append(video);
    hls.attachMedia(video);
    void video.play();
  })()`);
}

/** A token that is asked for whenever one is needed, and given by {@link give}. */
const ASKED = 'async () => new Promise((resolve) => { globalThis.asks = (globalThis.asks ?? 0) + 1; globalThis.give = resolve; })';

/** Waits until the page has asked for its `count`th token, and gives it. */
async function give(tab: Tab, count: number, value: () => string): Promise<void> {
  await until(`it asks for token ${count}`, async () => (await tab.evaluate<number>('globalThis.asks ?? 0')) === count, 45_000);
  await tab.evaluate(`globalThis.give('${value()}')`);
}

const stats = (tab: Tab): Promise<Stats> => tab.evaluate('globalThis.shoal.getStats()');

/** Waits for what a page's statistics say; where it does not come, they are told. */
async function untilStats(what: string, tab: Tab, isIt: (stats: Stats) => boolean): Promise<void> {
  await until(what, async () => isIt(await stats(tab)), 45_000).catch(async (error: unknown) => {
    throw new Error(`${String(error)}\n${JSON.stringify(await stats(tab))}\n${tab.errors.join('\n')}`);
  });
}

test('pages with tokens bound to their certificates swap, also with renewed ones', async () => {
  // The first one's first token ends while the second one comes.
  [one, other] = [await open(), await open()];
  await play(one.tab, ASKED);
  await give(one.tab, 1, () => token(6, { fingerprint: one.fingerprint }));
  await untilStats('it joins', one.tab, ({ isTrackerJoined }) => isTrackerJoined);
  await play(other.tab, ASKED);
  await give(other.tab, 1, () => token(600, { fingerprint: other.fingerprint }));
  await give(one.tab, 2, () => token(600, { fingerprint: one.fingerprint }));
  for (const { tab } of [one, other]) await untilStats('they are neighbors', tab, ({ neighbors }) => neighbors === 1);
  const swapped = async (): Promise<number> => (await stats(one.tab)).peerBytes + (await stats(other.tab)).peerBytes;
  const before = await swapped();
  await until('they swap with the renewed token', async () => (await swapped()) > before + 20_000, 45_000);
  assert.equal(await other.tab.evaluate('globalThis.asks'), 1, 'who has a good one is not asked again');
});

test('who has no token, a copied or a used up one, plays from the origin and meets nobody', async () => {
  const [none, thief, late] = [await open(), await open(), await open()];
  const used = token(600, { fingerprint: late.fingerprint, jti: 'once', uses: 1 });
  const first = await RawSocket.open(`${server.url}/tracker`);
  first.send(Opcode.Text, JSON.stringify({ type: 'join', version: 1, stream: STREAM, token: used, shares: false }));
  await first.untilMessage('welcome');
  first.destroy();
  const refused = await server.metric('tracker_signals_refused_total');

  await play(none.tab, 'undefined');
  await play(thief.tab, `'${token(600, { fingerprint: one.fingerprint })}'`);
  await play(late.tab, `'${used}'`);
  for (const { tab } of [none, late]) {
    await untilStats('the tracker does not let it in', tab, ({ reason }) => reason === 'tracker-refused');
  }
  assert.equal(await server.metric('tracker_tokens_refused_total', 'missing'), 1);
  assert.equal(await server.metric('tracker_tokens_refused_total', 'used_up'), 1);
  // A copied token lets its bearer join, but its descriptions name a certificate that the token does not.
  await untilStats('it joins', thief.tab, ({ isTrackerJoined }) => isTrackerJoined);
  await until('it may not signal', async () => (await server.metric('tracker_signals_refused_total')) > refused, 45_000);

  for (const { tab } of [none, thief, late]) {
    await until('it plays', async () => (await tab.evaluate<number>(SHOWN_FRAMES)) > 30, 45_000);
    const { neighbors, peerBytes, sentBytes } = await stats(tab);
    assert.deepEqual({ neighbors, peerBytes, sentBytes }, { neighbors: 0, peerBytes: 0, sentBytes: 0 });
  }
  for (const { tab } of [one, other]) assert.equal((await stats(tab)).neighbors, 1, 'they met each other only');
  for (const { tab } of [none, thief, late]) await tab.close();
});

test('a native viewer with the identity that its token names meets them, and with another one nobody', async () => {
  const file = path.join(scratchFolder(), 'identity.pem');
  const { stdout } = await run(shoalPath(), ['watch', '--identity', file, '--fingerprint']);
  const value = token(600, { fingerprint: stdout.trim() });
  const watch = (...flags: string[]): Program =>
    new Program(shoalPath(), ['watch', `${server.url}/watch/${STREAM}`, '--token', value, ...flags]);
  const refused = await server.metric('tracker_signals_refused_total');
  const copied = watch();
  try {
    await until('it may not signal', async () => (await server.metric('tracker_signals_refused_total')) > refused, 45_000);
    for (const { tab } of [one, other]) assert.equal((await stats(tab)).neighbors, 1);
  } finally {
    await copied.stop();
  }
  const named = watch('--identity', file);
  try {
    for (const { tab } of [one, other]) await untilStats('it is a neighbor', tab, ({ neighbors }) => neighbors === 2);
  } finally {
    await named.stop();
  }
});

test('a page that is not to upload takes from them and gives nothing', async () => {
  const taker = await open();
  await play(taker.tab, `'${token(600, { fingerprint: taker.fingerprint })}'`, false);
  await untilStats('it takes', taker.tab, ({ peerBytes }) => peerBytes > 100_000);
  assert.equal((await stats(taker.tab)).sentBytes, 0);
  for (const { tab } of [one, other]) await untilStats('they give', tab, ({ sentBytes }) => sentBytes > 0);
});
