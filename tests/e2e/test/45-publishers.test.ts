/** Publishers that are not ours: browsers with every codec, aiortc; what comes out is decoded by ffmpeg and played. */

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';

import { startChromium, startFirefox } from '../src/browsers.ts';
import type { Browser, Tab } from '../src/browsers.ts';
import { assertConforms } from '../src/checks.ts';
import { assertClockRuns, decode } from '../src/decoded.ts';
import { Program, Server } from '../src/program.ts';
import { Studio } from '../src/studio.ts';
import { Viewer } from '../src/viewer.ts';
import { until } from '../src/wait.ts';

const SECONDS = 5;
let server: Server;

before(async () => {
  // All addresses, as by default: Firefox pairs loopback with loopback alone, and has no such candidate everywhere.
  server = await Server.start({ INGEST_MEDIA_ADDRESS: '0.0.0.0:0' });
});
after(async () => {
  await server?.stop();
});

/** What the multivariant playlist says of the first video. */
async function codecsOf(stream: string): Promise<string> {
  const text = await (await fetch(`${server.url}/live/${stream}/index.m3u8`)).text();
  return /CODECS="([^"]+)"/.exec(text)?.[1] ?? '';
}

/** Checks what viewers get of a stream that is live. */
async function checkOutput(stream: string, codecs: RegExp): Promise<void> {
  await server.untilLive(stream);
  assert.match(await codecsOf(stream), codecs);
  const [decoded] = await Promise.all([
    decode(`${server.url}/live/${stream}/index.m3u8`, SECONDS),
    assertConforms(server.url, stream),
  ]);
  assertClockRuns(decoded, SECONDS);
}

/** What each codec becomes. */
const CODECS: [string, RegExp][] = [
  ['H264', /^avc1\.[0-9a-f]{6},mp4a\.40\.2$/],
  // Transcoded: no HLS player takes it.
  ['VP8', /^avc1\.[0-9a-f]{6},mp4a\.40\.2$/],
  ['VP9', /^vp09\.00\.\d\d\.08,mp4a\.40\.2$/],
  ['AV1', /^av01\.0\.\d\dM\.08,mp4a\.40\.2$/],
];

describe('Chromium', () => {
  let browser: Browser;
  before(async () => {
    browser = await startChromium();
  });
  after(async () => {
    await browser?.close();
  });

  for (const [codec, codecs] of CODECS) {
    test(`publishes ${codec}, and the output decodes and plays`, async () => {
      const stream = `chromium-${codec}`;
      const studio = await Studio.publish(browser, server.url, stream, { codec });
      try {
        await checkOutput(stream, codecs);
        const viewer = await Viewer.open(browser, server.url, stream);
        await viewer.untilPlaying();
        const played = await viewer.decodedFrames();
        await until('it goes on playing', async () => (await viewer.decodedFrames()) > played + 15);
        await until('sound is not silence', async () => (await viewer.audioLevel()) > 0.01);
        await viewer.close();
      } finally {
        await studio.stop();
      }
      await until('the stream has ended', async () =>
        (await server.streams()).every(({ name, state }) => name !== stream || state === 'ended'),
      );
    });
  }

  test('publishes two simulcast layers that become renditions with common segments', async () => {
    const stream = 'simulcast';
    const studio = await Studio.publish(browser, server.url, stream, { codec: 'H264', simulcast: true });
    try {
      await server.untilLive(stream);
      const text = await until('both layers are listed', async () => {
        const playlist = await (await fetch(`${server.url}/live/${stream}/index.m3u8`)).text();
        return [...playlist.matchAll(/RESOLUTION=(\d+x\d+)/g)].length === 2 && playlist;
      });
      assert.deepEqual([...text.matchAll(/RESOLUTION=(\d+x\d+)/g)].map(([, size]) => size), ['640x360', '320x180']);
      const [high = '', low = ''] = await server.mediaPlaylists(stream);
      // Segments of the same number are the same stretch of time, within a frame and a bit.
      const starts = async (url: string): Promise<Map<number, number>> => {
        const lines = (await (await fetch(url)).text()).split('\n');
        let number = Number(lines.find((line) => line.startsWith('#EXT-X-MEDIA-SEQUENCE:'))?.split(':')[1]);
        const found = new Map<number, number>();
        let at = Number.NaN;
        for (const line of lines) {
          if (line.startsWith('#EXT-X-PROGRAM-DATE-TIME:')) at = Date.parse(line.slice(25));
          else if (line.endsWith('.m4s') && !line.startsWith('#')) found.set(number++, at);
        }
        return found;
      };
      const common = await until('four segments of each', async () => {
        const [one, other] = [await starts(high), await starts(low)];
        const both = [...one].flatMap(([number, at]) => (other.has(number) ? [[at, other.get(number) ?? 0] as const] : []));
        return both.length >= 4 && both;
      });
      for (const [one, other] of common) assert.ok(Math.abs(one - other) <= 100, `segments begin ${one - other} ms apart`);
      const conforms = assertConforms(server.url, stream);
      const [one, other] = await Promise.all([decode(high, SECONDS), decode(low, SECONDS), conforms]);
      for (const decoded of [one, other]) assertClockRuns(decoded, SECONDS);

      // The best layer stops, as browsers do with a narrow uplink: the other goes on, and the best comes back.
      const segments = async (url: string): Promise<{ first: number; gaps: boolean[] }> => {
        const text = await (await fetch(url)).text();
        // What stands before each segment's URL belongs to it; parts are no segments.
        const heads = text.split(/^[^#\n].*\.m4s$/m).slice(0, -1);
        const gaps = heads.map((head) => head.includes('#EXT-X-GAP'));
        return { first: Number(/#EXT-X-MEDIA-SEQUENCE:(\d+)/.exec(text)?.[1]), gaps };
      };
      const isMedia = ({ gaps }: { gaps: boolean[] }, newest: number): boolean => gaps.slice(-newest).every((isGap) => !isGap);
      const { first, gaps } = await segments(low);
      const conformsOn = assertConforms(server.url, stream);
      const stops = studio.setLayer(0, false).then(() => until('the best layer is a gap while the other goes on', async () => {
        const [best, other] = [await segments(high), await segments(low)];
        return best.gaps.at(-1) === true && isMedia(other, 20) && other.first + other.gaps.length > first + gaps.length + 2;
      }, 30_000));
      await Promise.all([stops, conformsOn]);
      assertClockRuns(await decode(low, 4), 4);
      await studio.setLayer(0, true);
      await until('the best layer is back', async () => isMedia(await segments(high), 4), 30_000);
      assertClockRuns(await decode(high, 4), 4);
    } finally {
      await studio.stop();
    }
  });

  /** Goes live by clicking on the publish page; `prelude` is what its browser is like. */
  async function goLive(stream: string, prelude: string): Promise<Tab> {
    const tab = await browser.open({ prelude });
    await tab.goto(`${server.url}/publish`);
    await tab.click('#sizes');
    await tab.click('#start-preview');
    await until('the preview moves', () => tab.evaluate<boolean>("document.querySelector('#preview').videoWidth > 0"));
    await tab.type('#name', stream);
    await tab.click('#go-live');
    await server.untilLive(stream);
    return tab;
  }

  /** The sizes that a stream's multivariant playlist names. */
  async function sizesOf(stream: string): Promise<string[]> {
    const text = await (await fetch(`${server.url}/live/${stream}/index.m3u8`)).text();
    return [...text.matchAll(/RESOLUTION=(\d+x\d+)/g)].map(([, size = '']) => size);
  }

  test('sends several sizes from the publish page when that is ticked', async () => {
    const stream = 'sizes';
    const tab = await goLive(stream, '');
    const [high = '', low = '', ...more] = await until('two sizes are listed', async () => {
      const sizes = await sizesOf(stream);
      return sizes.length === 2 && sizes;
    });
    assert.deepEqual(more, []);
    const [width = 0, height = 0] = high.split('x').map(Number);
    assert.equal(low, `${width / 2}x${height / 2}`);
    for (const url of (await server.mediaPlaylists(stream)).slice(0, 2)) {
      const text = await (await fetch(url)).text();
      assert.ok(text.includes('#EXTINF'), text);
    }
    await until('the page says so', async () => {
      const words = await tab.evaluate<string>("document.querySelector('#resolution').innerText");
      return words.includes(`${width} × ${height}`) && words.includes(`${width / 2} × ${height / 2}`);
    });
    await tab.click('#stop');
    await until('the stream has ended', async () =>
      (await server.streams()).every(({ name, state }) => name !== stream || state === 'ended'),
    );
    assert.deepEqual(tab.errors, []);
    await tab.close();
  });

  const REFUSALS: [string, string][] = [
    [
      'the server',
      `const real = window.fetch;
       window.fetch = (url, options) => String(options?.body).includes('a=simulcast')
         ? Promise.resolve(new Response('no simulcast here', { status: 422 })) : real(url, options);`,
    ],
    [
      'the browser',
      `const real = RTCPeerConnection.prototype.addTransceiver;
       RTCPeerConnection.prototype.addTransceiver = function (track, init) {
         if (init?.sendEncodings?.length > 1) throw new TypeError('no simulcast here');
         return real.call(this, track, init);
       };`,
    ],
  ];
  for (const [who, prelude] of REFUSALS) {
    test(`sends one size from the publish page where ${who} refuses several`, async () => {
      const stream = `one-size-${who.slice(4)}`;
      const tab = await goLive(stream, prelude);
      assert.equal((await sizesOf(stream)).length, 1);
      await tab.click('#stop');
      await tab.close();
    });
  }

  test('changes its size twice and comes back after a crash, and the player goes on', async () => {
    const stream = 'changing';
    const options = { codec: 'H264', width: 1280, height: 720, framesPerSecond: 12 };
    let studio = await Studio.publish(browser, server.url, stream, options);
    try {
      await server.untilLive(stream);
      const viewer = await Viewer.open(browser, server.url, stream);
      await viewer.untilPlaying();
      // Other players and ffmpeg on such a stream: see 60-players.
      const untilShown = (width: number, height: number): Promise<boolean> =>
        until(
          `${width}x${height} is shown`,
          () => viewer.tab.evaluate<boolean>(`(({ videoWidth, videoHeight }) => videoWidth === ${width} && videoHeight === ${height})(document.querySelector('video'))`),
          30_000,
        ).catch(async (error: unknown) => {
          throw new Error(`${String(error)}\n${await viewer.describe()}`);
        });
      await untilShown(1280, 720);
      const conforms = assertConforms(server.url, stream);
      const resized = studio.resize(640, 360).then(() => untilShown(640, 360));
      await Promise.all([resized, conforms]);
      await studio.resize(720, 1280);
      await untilShown(720, 1280);
      await studio.vanish();
      // The server has to notice first that the tab is gone: three seconds of silence.
      const small = { ...options, width: 640, height: 360 };
      studio = await until('the publisher is let in again', () => Studio.publish(browser, server.url, stream, small), 15_000);
      await untilShown(640, 360);
      const shown = await viewer.decodedFrames();
      await until('it goes on playing', async () => (await viewer.decodedFrames()) > shown + 20);
      await viewer.close();
    } finally {
      await studio.stop();
    }
  });
});

describe('Firefox', () => {
  let browser: Browser;
  before(async () => {
    browser = await startFirefox();
  });
  after(async () => {
    await browser?.close();
  });

  for (const [codec, codecs] of CODECS.slice(1)) {
    test(`publishes ${codec}, and the output decodes`, async () => {
      const stream = `firefox-${codec}`;
      const studio = await Studio.publish(browser, server.url, stream, { codec, framesPerSecond: 15 });
      try {
        await checkOutput(stream, codecs);
      } finally {
        await studio.stop();
      }
    });
  }
});

describe('aiortc', () => {
  const python = process.env['SHOAL_PYTHON'] ?? '';
  const script = new URL('../publishers/aiortc_publish.py', import.meta.url).pathname;

  for (const [codec, codecs] of CODECS.slice(0, 2)) {
    test(`publishes ${codec} and Opus, and the output decodes`, async () => {
      const stream = `aiortc-${codec}`;
      assert.notEqual(python, '', 'SHOAL_PYTHON is not set: run this with `cargo xtask test e2e`');
      const publisher = new Program(python, [script, `${server.url}/whip/${stream}`, codec]);
      try {
        await until('aiortc is connected', () => {
          if (!publisher.isRunning) throw new Error(publisher.stderr);
          return publisher.stdout.includes('live');
        });
        await checkOutput(stream, codecs);
      } finally {
        await publisher.stop();
      }
      await until('its DELETE has ended the stream', async () =>
        (await server.streams()).every(({ name, state }) => name !== stream || state === 'ended'),
      );
    });
  }
});
