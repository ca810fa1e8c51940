/** A broadcaster's browser goes live by clicking, two other pages watch, and people would be glad to look at it. */

import assert from 'node:assert/strict';
import { mkdirSync } from 'node:fs';
import { after, before, test } from 'node:test';

import { startChromium } from '../src/browsers.ts';
import type { Browser, Tab } from '../src/browsers.ts';
import type { Area } from '../src/checks.ts';
import { assertDiscreet, assertVerified, contrast, difference, greyPixels } from '../src/checks.ts';
import { Server, scratchFolder } from '../src/program.ts';
import { Viewer } from '../src/viewer.ts';
import { until } from '../src/wait.ts';

/** Screenshots are kept for people: they are the check that no machine makes. */
const SHOTS = new URL('../screenshots/', import.meta.url).pathname;
const STREAM = 'first-show';
const [DESKTOP, PHONE] = [{ width: 1280, height: 800 }, { width: 390, height: 844 }];

let server: Server;
let browser: Browser;
let studio: Tab;

before(async () => {
  mkdirSync(SHOTS, { recursive: true });
  server = await Server.start();
  browser = await startChromium();
});
after(async () => {
  await browser?.close();
  await server?.stop();
});

async function textOf(tab: Tab, selector: string): Promise<string> {
  return tab.evaluate<string>(`document.querySelector(${JSON.stringify(selector)})?.innerText ?? ''`);
}

test('the first page says that nothing is live', async () => {
  const tab = await browser.open(DESKTOP);
  await tab.goto(`${server.url}/`);
  await until('the list was asked for', async () => /nothing is live/i.test(await textOf(tab, '#summary')));
  assert.deepEqual(tab.errors, []);
  await tab.close();
});

test('a broadcaster goes live by clicking', async () => {
  studio = await browser.open(DESKTOP);
  await studio.goto(`${server.url}/publish`);
  await studio.click('#start-preview');
  await until('the preview moves', () => studio.evaluate<boolean>("document.querySelector('#preview').videoWidth > 0"));
  await studio.type('#name', STREAM);
  await studio.click('#go-live');
  await until('the page says that it is live', async () => /live/i.test(await textOf(studio, '#live-state')), 30_000);
  await server.untilLive(STREAM);
  await until('figures are shown', async () => {
    const figures = await Promise.all(['#resolution', '#bitrate', '#rtt'].map((id) => textOf(studio, id)));
    return figures.every((figure) => /\d/.test(figure));
  });
  assert.match(await textOf(studio, '#watch-link'), new RegExp(`/watch/${STREAM}$`));
});

test('two other pages see moving pictures and hear sound', async () => {
  const viewers = [await Viewer.open(browser, server.url, STREAM, DESKTOP), await Viewer.open(browser, server.url, STREAM, PHONE)];
  for (const viewer of viewers) {
    await viewer.untilPlaying();
    const decoded = await viewer.decodedFrames();
    await until('decoded frames advance', async () => (await viewer.decodedFrames()) > decoded + 20);
    await until('sound is not silence', async () => (await viewer.audioLevel()) > 0.01);
  }
  const [desktop, phone] = viewers as [Viewer, Viewer];
  const folder = scratchFolder();
  // The middle of the picture, so that nothing else of the page can move or have contrast in its place.
  const area = JSON.parse(
    await desktop.tab.evaluate<string>(`(() => {
      const { x, y, width, height } = document.querySelector('video').getBoundingClientRect();
      return JSON.stringify({ x: Math.round(x + width / 4), y: Math.round(y + height / 4), width: Math.round(width / 2), height: Math.round(height / 2) });
    })()`),
  ) as Area;
  const first = await greyPixels(await desktop.tab.screenshot(`${SHOTS}/watch-desktop.png`), area, folder);
  assert.ok(contrast(first) > 5, `the picture is not one colour: ${contrast(first)}`);
  await until('the picture moves on the screen', async () => {
    const later = await greyPixels(await desktop.tab.screenshot(), area, folder);
    return difference(first, later) > 1;
  });
  await phone.tab.screenshot(`${SHOTS}/watch-phone.png`);
  for (const viewer of viewers) {
    await assertVerified(await viewer.audit());
    assert.deepEqual(viewer.tab.errors, []);
  }
  assert.equal((await server.streams()).find(({ name }) => name === STREAM)?.viewers, 2);
  for (const viewer of viewers) await viewer.close();
});

test('the pages fit a phone', async () => {
  for (const [name, path] of [['home', '/'], ['publish', '/publish']] as const) {
    for (const [size, view] of [['desktop', DESKTOP], ['phone', PHONE]] as const) {
      const tab = await browser.open(view);
      await tab.goto(`${server.url}${path}`);
      if (name === 'home') await until('the stream is listed', async () => (await textOf(tab, '#streams')).includes(STREAM));
      const overflow = await tab.evaluate<number>('document.documentElement.scrollWidth - document.documentElement.clientWidth');
      assert.ok(overflow <= 0, `${name} on a ${size} is ${overflow} px too wide`);
      await tab.screenshot(`${SHOTS}/${name}-${size}.png`);
      await tab.close();
    }
  }
  await studio.screenshot(`${SHOTS}/publish-live-desktop.png`);
});

test('a name that is taken is said in words', async () => {
  const tab = await browser.open(DESKTOP);
  await tab.goto(`${server.url}/publish`);
  await tab.click('#start-preview');
  await until('the preview moves', () => tab.evaluate<boolean>("document.querySelector('#preview').videoWidth > 0"));
  await tab.type('#name', STREAM);
  await tab.click('#go-live');
  await until('the page says so', async () => /taken|already|in use|another/i.test(await textOf(tab, '#notice')));
  await tab.close();
});

test('the stop button ends the stream', async () => {
  await studio.click('#stop');
  await until(
    'the stream is no longer live',
    async () => (await server.streams()).every(({ name, state }) => name !== STREAM || state !== 'live'),
    15_000,
  );
  assert.deepEqual(studio.errors, []);
});

test('the log of all this tells no address, session description or key', () => {
  assertDiscreet(server.program.stderr);
});
