/** What viewers and the operator decide: nobody is connected before he agrees, and sharing is switched while people watch. */

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';

import { startChromium } from '../src/browsers.ts';
import type { Browser } from '../src/browsers.ts';
import { Server } from '../src/program.ts';
import type { Program } from '../src/program.ts';
import { Viewer } from '../src/viewer.ts';
import { pause, until } from '../src/wait.ts';

const STREAM = 'asked';
const ADMIN = 'the operator';
/** Counts the peer connections that the page makes: without one no candidate is gathered. */
const COUNT = `
  globalThis.made = 0;
  globalThis.RTCPeerConnection = new Proxy(RTCPeerConnection, {
    construct(target, values) { globalThis.made += 1; return new target(...values); },
  });
`;

let browser: Browser;
let server: Server;
let publisher: Program;
const viewers: Viewer[] = [];

before(async () => {
  browser = await startChromium();
  server = await Server.start({ TRACKER_CONSENT_REQUIRED: 'true', TRACKER_ADMIN_TOKEN: ADMIN });
  publisher = await server.publish(STREAM, ['--size', '256x144', '--fps', '15', '--bitrate', '300k']);
});
after(async () => {
  for (const viewer of viewers) await viewer.close();
  await publisher?.stop();
  await server?.stop();
  await browser?.close();
});

const made = ({ tab }: Viewer): Promise<number> => tab.evaluate('globalThis.made');
const isAsked = ({ tab }: Viewer): Promise<boolean> => tab.evaluate("!document.querySelector('#consent').hidden");

async function untilNeighbors(viewer: Viewer, count: number): Promise<void> {
  await until(`it has ${count} neighbors`, async () => (await viewer.stats()).neighbors === count, 45_000).catch(
    async (error: unknown) => {
      throw new Error(`${String(error)}\n${await viewer.describe()}`);
    },
  );
}

async function switchSharing(percent: number): Promise<void> {
  const response = await fetch(`${server.url}/api/tracker/sharing`, {
    method: 'PUT',
    headers: { authorization: `Bearer ${ADMIN}`, 'content-type': 'application/json' },
    body: JSON.stringify({ percent }),
  });
  assert.equal(response.status, 204);
}

test('nobody is connected before he agrees, and who does not agree plays all the same', async () => {
  for (let index = 0; index < 3; index++) viewers.push(await Viewer.open(browser, server.url, STREAM, { prelude: COUNT }));
  const [one, other, silent] = viewers as [Viewer, Viewer, Viewer];
  for (const viewer of viewers) {
    await viewer.untilPlaying(45_000);
    await until('it is asked', () => isAsked(viewer), 45_000);
  }
  await one.tab.click('#allow');
  assert.equal(await isAsked(one), false);
  // Longer than an introduction takes.
  await pause(2_000);
  for (const viewer of viewers) assert.equal(await made(viewer), 0, 'one alone meets nobody');
  await other.tab.click('#allow');
  for (const viewer of [one, other]) await untilNeighbors(viewer, 1);
  await until('they swap', async () => (await one.stats()).peerBytes + (await other.stats()).peerBytes > 20_000, 45_000);
  assert.equal(await made(silent), 0);
  assert.equal(await isAsked(silent), true);
  assert.ok((await silent.framesIn(1_000)) > 5, 'it plays from the origin');
});

test('the operator switches sharing off and on while people watch', async () => {
  const [one, other, silent] = viewers as [Viewer, Viewer, Viewer];
  await switchSharing(0);
  for (const viewer of [one, other]) await untilNeighbors(viewer, 0);
  assert.ok((await one.framesIn(1_000)) > 5, 'it plays on');
  const before = await made(one);
  await switchSharing(100);
  for (const viewer of [one, other]) await untilNeighbors(viewer, 1);
  assert.ok((await made(one)) > before, 'by a new connection');
  assert.equal(await made(silent), 0, 'who has not agreed is not connected by this either');
});
