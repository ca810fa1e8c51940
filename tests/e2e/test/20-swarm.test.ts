/** Viewers in different browsers take parts from each other, and every fallback plays on. */

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';

import { startChromium, startFirefox } from '../src/browsers.ts';
import type { Browser } from '../src/browsers.ts';
import { assertVerified } from '../src/checks.ts';
import { Server } from '../src/program.ts';
import type { Program } from '../src/program.ts';
import { Viewer } from '../src/viewer.ts';
import { until } from '../src/wait.ts';

let server: Server;
let publisher: Program;
let chromium: Browser;
let firefox: Browser;

before(async () => {
  // Parts of half a second whose pictures need blocks of every length.
  server = await Server.start({ SEGMENTER_PART_MS: '500' });
  publisher = await server.publish('mixed', ['--size', '640x360', '--bitrate', '2000k']);
  // A name that is not the machine's own, so that browsers withhold there what they give to secure pages only.
  chromium = await startChromium(['--host-resolver-rules=MAP plain.test 127.0.0.1']);
  firefox = await startFirefox();
});
after(async () => {
  await firefox?.close();
  await chromium?.close();
  await publisher?.stop();
  await server?.stop();
});

test('Chromium and Firefox take parts from each other', async () => {
  const viewers = [await Viewer.open(chromium, server.url, 'mixed'), await Viewer.open(firefox, server.url, 'mixed')];
  for (const viewer of viewers) await viewer.untilPlaying(45_000);
  for (const [index, viewer] of viewers.entries()) {
    await until(
      `viewer ${index} has bytes from the other`,
      async () => {
        const { neighbors, peerBytes, sentBytes } = await viewer.stats();
        return neighbors === 1 && peerBytes > 100_000 && sentBytes > 100_000;
      },
      60_000,
    ).catch(async (error: unknown) => {
      throw new Error(`${String(error)}\n${await viewer.describe()}`);
    });
  }
  for (const viewer of viewers) {
    const audit = await viewer.audit();
    assert.ok(audit.some((entry) => entry.peerBytes > 0), 'bytes from the other viewer were played');
    await assertVerified(audit);
    const { rejectedBytes } = await viewer.stats();
    assert.equal(rejectedBytes, 0, 'blocks are cut as the origin cut them');
    for (const [from, to] of [[1, 0x1_0000], [0x1_0001, 0x2_0000], [0x2_0001, 0x10_0000]] as const) {
      assert.ok(audit.some(({ length }) => length >= from && length <= to), `a part of ${from} to ${to} bytes was played`);
    }
    assert.ok((await viewer.framesIn(2_000)) > 20, 'pictures move');
  }
  for (const viewer of viewers) await viewer.close();
});

test('on a plain http page a viewer takes part like any other, with a module that checks signatures', async () => {
  const plain = await Viewer.open(chromium, `http://plain.test:${server.port}`, 'mixed');
  const secure = await Viewer.open(chromium, server.url, 'mixed');
  const loaded = "performance.getEntriesByType('resource').some(({ name }) => name.endsWith('/verify.wasm'))";
  for (const viewer of [plain, secure]) {
    await viewer.untilPlaying(45_000);
    await until('it has bytes from the other', async () => (await viewer.stats()).peerBytes > 100_000, 60_000).catch(
      async (error: unknown) => {
        throw new Error(`${String(error)}\n${await viewer.describe()}`);
      },
    );
    assert.equal((await viewer.stats()).rejectedBytes, 0);
    assert.equal(await viewer.tab.evaluate('isSecureContext'), viewer === secure);
    assert.equal(await viewer.tab.evaluate(loaded), viewer === plain);
  }
  for (const viewer of [plain, secure]) await viewer.close();
});
