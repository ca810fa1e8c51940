import assert from 'node:assert/strict';
import { test } from 'node:test';

import type { FragmentLoaderContext, HlsConfig, Loader, LoaderCallbacks, LoaderConfiguration, LoaderStats } from 'hls.js';
import { createLoaderClass, fillStats } from '../src/loader.ts';
import type { LoaderPort } from '../src/loader.ts';
import type { Request } from '../src/swarm/requests.ts';

type Context = FragmentLoaderContext;

const context = { url: 'http://h/part.m4s', frag: { sn: 5 }, part: { index: 2 } } as unknown as Context;
const configuration = { loadPolicy: { maxLoadTimeMs: 20_000, maxTimeToFirstByteMs: 5_000 } } as LoaderConfiguration;

class Plain implements Loader<Context> {
  static all: Plain[] = [];
  context: Context | null = null;
  stats = { loading: { start: 0, first: 0, end: 0 }, parsing: { start: 0, end: 0 } } as LoaderStats;
  state = 'new';
  callbacks: LoaderCallbacks<Context> | null = null;
  constructor() {
    Plain.all.push(this);
  }
  load(_context: Context, _config: LoaderConfiguration, callbacks: LoaderCallbacks<Context>): void {
    this.state = 'loading';
    this.callbacks = callbacks;
    assert.equal(this.stats.loading.start, 0, 'hls.js refuses a loader whose clock runs already');
    this.stats.loading.start = 1;
  }
  abort(): void {
    this.state = 'aborted';
    this.callbacks?.onAbort?.(this.stats, context, null);
  }
  destroy(): void {
    this.state = 'destroyed';
  }
  succeed(data: ArrayBuffer): void {
    this.callbacks?.onSuccess({ url: context.url, data }, this.stats, context, null);
  }
}

interface Setup {
  loader: Loader<Context>;
  log: string[];
  request: () => Request;
  handedOver: ArrayBuffer[];
}

function setUp(options: Partial<LoaderPort> & { progressive?: boolean } = {}): Setup {
  Plain.all = [];
  const log: string[] = [];
  const handedOver: ArrayBuffer[] = [];
  let request: Request | undefined;
  const Class = createLoaderClass({
    plain: Plain,
    targetOf: () => ({ rendition: 0, msn: 5, part: 2 }),
    request: (asked) => {
      request = asked;
      return () => log.push('cancelled');
    },
    offerLoaded: () => true,
    bandwidthBps: () => 10_000_000,
    onHandOver: (_url, _offset, data, _from, isFromSwarm) => {
      handedOver.push(data);
      log.push(isFromSwarm ? 'from swarm' : 'plain');
    },
    ...options,
  });
  const loader = new Class({ progressive: options.progressive === true } as HlsConfig);
  loader.load(context, configuration, {
    onSuccess: () => log.push('success'),
    onError: ({ text }) => log.push(`error: ${text}`),
    onTimeout: () => log.push('timeout'),
    onAbort: () => log.push('abort'),
  });
  return { loader, log, handedOver, request: () => request ?? assert.fail('the swarm was not asked') };
}

const answer = (data: ArrayBuffer, transferMs = 10): Parameters<Request['onAnswer']>[0] => ({
  data,
  transferMs,
  peerBytes: data.byteLength,
  originBytes: 0,
});

test('answer of the swarm reaches hls.js with filled statistics', () => {
  const { loader, log, request } = setUp();
  request().onAnswer(answer(new ArrayBuffer(100)));
  assert.deepEqual(log, ['from swarm', 'success']);
  assert.equal(loader.stats.loaded, 100);
  assert.ok(loader.stats.loading.end >= loader.stats.loading.first);
  assert.equal(Plain.all[0]?.state, 'new');
});

test('fallback loads the plain way, into the same statistics', () => {
  const { loader, log, request } = setUp();
  const { stats } = loader;
  request().onFallback();
  const [plain] = Plain.all;
  assert.equal(plain?.stats, stats);
  plain.succeed(new ArrayBuffer(10));
  assert.deepEqual(log, ['plain', 'success']);
});

test('without a swarm, and for what is not the swarm\'s, the plain loader is used at once', () => {
  for (const options of [{ request: () => null }, { targetOf: () => null }, { progressive: true }]) {
    const { log } = setUp(options);
    Plain.all[0]?.succeed(new ArrayBuffer(10));
    assert.deepEqual(log, ['plain', 'success']);
  }
});

test('plain bytes that contradict their record are an error, and are not handed over', async () => {
  const { log, handedOver } = setUp({ request: () => null, offerLoaded: () => Promise.resolve(false) });
  Plain.all[0]?.succeed(new ArrayBuffer(10));
  assert.deepEqual(log, [], 'nothing is said before they are checked');
  await Promise.resolve();
  assert.deepEqual(log, ['error: the bytes do not match their record']);
  assert.deepEqual(handedOver, []);
});

test('plain bytes that match their record are handed over, but not to who has given up on them', async () => {
  for (const end of ['', 'abort', 'destroy'] as const) {
    const { loader, log, handedOver } = setUp({ request: () => null, offerLoaded: () => Promise.resolve(true) });
    Plain.all[0]?.succeed(new ArrayBuffer(10));
    if (end) loader[end]();
    await Promise.resolve();
    assert.equal(log.includes('success'), end === '', end);
    assert.equal(handedOver.length, end === '' ? 1 : 0, end);
  }
});

test('what is offered to the swarm is a copy', () => {
  let offered: Uint8Array | undefined;
  setUp({
    request: () => null,
    offerLoaded: (_target, bytes) => {
      offered = bytes;
      return true;
    },
  });
  const data = Uint8Array.of(1, 2, 3).buffer;
  Plain.all[0]?.succeed(data);
  structuredClone(data, { transfer: [data] });
  assert.deepEqual([...(offered ?? [])], [1, 2, 3]);
});

test('aborted fragment cancels its request', () => {
  const { loader, log } = setUp();
  loader.abort();
  assert.deepEqual(log, ['cancelled', 'abort']);
  assert.equal(loader.stats.aborted, true);
  loader.destroy();
  assert.deepEqual(log, ['cancelled', 'abort']);
});

test('abort after a fallback aborts the plain loader', () => {
  const { loader, log, request } = setUp();
  request().onFallback();
  loader.abort();
  assert.equal(Plain.all[0]?.state, 'aborted');
  assert.deepEqual(log, ['abort']);
});

test('destroyed loader cancels its request without a word', () => {
  const { loader, log } = setUp();
  loader.destroy();
  assert.deepEqual(log, ['cancelled']);
});

test('hls.js is told how long the bytes travelled, whenever they did', () => {
  const { loader } = setUp();
  const fromOrigin = { ...answer(new ArrayBuffer(50_000), 200), originBytes: 50_000 };
  fillStats(loader.stats, fromOrigin, 1_001, 10_000_000, 0);
  const { start, first, end } = loader.stats.loading;
  assert.deepEqual([start, first, end], [801, 801, 1_001]);
  assert.equal(loader.stats.bwEstimate, 2_000_000);
});

test('peers that send slowly do not make hls.js think that the line is slow, and fast ones show that it is fast', () => {
  const { loader } = setUp();
  const estimateBps = 10_000_000;
  for (const [transferMs, parsingMs, expectedMs] of [[300, 0, 40], [300, 8, 32], [300, 90, 0], [20, 8, 20]] as const) {
    fillStats(loader.stats, answer(new ArrayBuffer(50_000), transferMs), 1_000, estimateBps, parsingMs);
    assert.equal(1_000 - loader.stats.loading.start, expectedMs, `${transferMs} ms on the way, ${parsingMs} ms of parsing`);
  }
  fillStats(loader.stats, answer(new ArrayBuffer(50_000), 300), 1_000, Number.NaN, 0);
  assert.equal(loader.stats.loading.start, 700, 'without an estimate the time stands');
});
