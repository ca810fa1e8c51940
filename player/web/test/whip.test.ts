/** The publish page's WHIP client, against a made connection and a made server. */

import assert from 'node:assert/strict';
import { beforeEach, test } from 'node:test';

import { Publisher } from '../src/pages/whip.ts';
import type { PublishError } from '../src/pages/whip.ts';

/** The newest connection. */
let connection: FakeConnection;
let requests: string[];
/** What `GET <session>/stats` says. */
let stats: object | null;

class FakeConnection {
  connectionState = 'new';
  onconnectionstatechange: (() => void) | null = null;
  iceGatheringState = 'complete';
  localDescription = { sdp: 'v=0' };
  isClosed = false;
  constructor() {
    // eslint-disable-next-line @typescript-eslint/no-this-alias -- the test is to see it
    connection = this;
  }
  addTransceiver(): object {
    return {};
  }
  addEventListener(): void {}
  removeEventListener(): void {}
  setLocalDescription(): Promise<void> {
    return Promise.resolve();
  }
  setRemoteDescription(): Promise<void> {
    queueMicrotask(() => {
      this.become('connected');
    });
    return Promise.resolve();
  }
  become(state: string): void {
    this.connectionState = state;
    this.onconnectionstatechange?.();
  }
  close(): void {
    this.isClosed = true;
  }
}

function answer(url: string, method: string): Response {
  requests.push(`${method} ${new URL(url, 'http://server').pathname}`);
  if (method === 'POST') {
    const response = new Response('v=0', { status: 201, headers: { Location: '/whip/session/1' } });
    Object.defineProperty(response, 'url', { value: 'http://server/whip/cam' });
    return response;
  }
  if (method === 'GET') return stats === null ? new Response('', { status: 404 }) : Response.json(stats);
  return new Response('');
}

beforeEach(() => {
  [requests, stats] = [[], null];
  Object.assign(globalThis, {
    RTCPeerConnection: FakeConnection,
    RTCRtpSender: { getCapabilities: () => null },
    fetch: (url: string, init: RequestInit) => Promise.resolve(answer(url, init.method ?? 'GET')),
  });
});

const publisher = (): Publisher => new Publisher({ endpoint: 'http://server/whip/cam', tracks: [], layers: [] });

/** Publishes, breaks the connection, and gives what the page is told. */
async function lost(): Promise<PublishError> {
  const one = publisher();
  const told = new Promise<PublishError>((resolve) => {
    one.onLost = resolve;
  });
  await one.start();
  connection.become('failed');
  return told;
}

test('a session whose connection breaks is closed without the word that the stream is over', async () => {
  const error = await lost();
  assert.equal(error.code, 'connection-lost');
  assert.ok(connection.isClosed);
  assert.deepEqual(requests, ['POST /whip/cam', 'GET /whip/session/1/stats']);
});

test('who stops on purpose says so, and once', async () => {
  const one = publisher();
  await one.start();
  one.stop();
  one.stop();
  assert.deepEqual(requests, ['POST /whip/cam', 'DELETE /whip/session/1']);
});

test('what the server had against it is told in its words', async () => {
  stats = { state: 'ended', ended: 'refused', problem: 'the encoder uses B-frames' };
  const error = await lost();
  assert.deepEqual([error.code, error.detail], ['media-refused', 'the encoder uses B-frames']);
});

test('a server that still believes in the session, or forgot it, is come back to', async () => {
  stats = { state: 'live' };
  assert.equal((await lost()).code, 'connection-lost');
});
