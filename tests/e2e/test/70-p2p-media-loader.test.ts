/** Another player's swarm on our tracker: p2p-media-loader 2.3.1 finds its peers through `/announce`. */

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';

import { startChromium } from '../src/browsers.ts';
import type { Browser, Tab } from '../src/browsers.ts';
import { Server } from '../src/program.ts';
import type { Program } from '../src/program.ts';
import { look, RivalSite } from '../src/rival.ts';
import type { Seen } from '../src/rival.ts';
import { until } from '../src/wait.ts';

const STREAM = 'elsewhere';
const SMALL = ['--size', '256x144', '--fps', '15', '--bitrate', '200k'];
/** Segments behind the live edge at which the first of two players plays, and the second: the first holds what it needs. */
const AHEAD = 3;
const BEHIND = 6;

let server: Server;
let publisher: Program;
let browser: Browser;
let site: RivalSite;

before(async () => {
  server = await Server.start();
  publisher = await server.publish(STREAM, SMALL);
  site = await RivalSite.start(server.url, STREAM);
  browser = await startChromium();
});
after(async () => {
  await browser?.close();
  site?.close();
  await publisher?.stop();
  await server?.stop();
});

const open = (swarm: string, behind: number): Promise<Tab> =>
  site.open(browser, { swarm, behind, isTuned: true, width: 320, height: 200 });

/** Waits for what a player has seen; where it does not come, all that it saw is told. */
async function untilSeen(what: string, tab: Tab, isIt: (seen: Seen) => boolean): Promise<void> {
  await until(what, async () => isIt(await look(tab)), 60_000).catch(async (error: unknown) => {
    throw new Error(`${String(error)}\n${JSON.stringify(await look(tab))}\n${tab.errors.join('\n')}`);
  });
}

test('two players of one swarm find each other and swap, one of another swarm stays alone', async () => {
  await until('there are enough segments', async () => {
    const [playlist] = await server.mediaPlaylists(STREAM);
    return playlist !== undefined && (await (await fetch(playlist)).text()).split('#EXTINF').length > BEHIND + 1;
  }, 60_000);
  const first = await open('one', AHEAD);
  const stranger = await open('another', AHEAD);
  const tabs = [first, stranger];
  try {
    await untilSeen('the first plays', first, ({ frames }) => frames > 10);
    const second = await open('one', BEHIND);
    tabs.push(second);
    await untilSeen('the first has a peer', first, ({ peers }) => peers >= 1);
    await untilSeen('the second has a peer', second, ({ peers }) => peers >= 1);
    await untilSeen('bytes came from it', second, ({ received }) => received > 0);
    await untilSeen('the second plays', second, ({ frames }) => frames > 10);
    assert.ok((await server.metric('tracker_announces_total')) >= 3, 'they announced to us');
    // The stranger has announced, too, and plays the same stream: it is by their swarm that the others met.
    await untilSeen('the stranger plays', stranger, ({ frames }) => frames > 10);
    assert.equal((await look(stranger)).peers, 0);
    for (const tab of tabs) assert.deepEqual((await look(tab)).warnings, [], 'the tracker understood everything');
  } finally {
    for (const tab of tabs) await tab.close();
  }
});
