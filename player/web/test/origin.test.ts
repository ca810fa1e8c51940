import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { RequestListener } from 'node:http';
import { test } from 'node:test';

import { BlockAssembler, fetchRange, fetchRecords } from '../src/swarm/origin.ts';

const BLOCK_BYTES = 4096;
const bytes = Uint8Array.from({ length: 3 * BLOCK_BYTES + 100 }, (_, index) => (index * 31) % 251);

async function withServer(handler: RequestListener, run: (url: string) => Promise<void>): Promise<void> {
  const server = createServer(handler);
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  try {
    await run(`http://127.0.0.1:${(server.address() as AddressInfo).port}/part.m4s`);
  } finally {
    server.closeAllConnections();
    server.close();
  }
}

interface Outcome {
  blocks: Map<number, Uint8Array>;
  status: number | 'finished';
}

function fetched(url: string, offset: number, length: number, isWhole = false): Promise<Outcome> {
  return new Promise((resolve) => {
    const blocks = new Map<number, Uint8Array>();
    fetchRange(
      { url, offset, length, isWhole, blockBytes: BLOCK_BYTES },
      {
        onBlock: (block, data) => void blocks.set(block, data),
        onBytes: () => undefined,
        onFinished: () => {
          resolve({ blocks, status: 'finished' });
        },
        onFailed: (status) => {
          resolve({ blocks, status });
        },
      },
    );
  });
}

test('blocks come out whole however the bytes are cut', () => {
  for (const size of [1, 7, 1_000, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, bytes.length]) {
    const blocks: [number, Uint8Array][] = [];
    const assembler = new BlockAssembler(BLOCK_BYTES, bytes.length - BLOCK_BYTES, BLOCK_BYTES, (block, data) => blocks.push([block, data]));
    for (let at = 0; at < bytes.length; at += size) assembler.push(at, bytes.subarray(at, at + size));
    assert.ok(assembler.isDone);
    assert.deepEqual(blocks.map(([block]) => block), [1, 2, 3], `cuts of ${size}`);
    for (const [block, data] of blocks) {
      assert.deepEqual(data, bytes.slice(block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES), `cuts of ${size}`);
    }
  }
});

test('range is asked for and its blocks are handed over', async () => {
  await withServer(
    (request, response) => {
      assert.equal(request.headers.range, `bytes=${BLOCK_BYTES}-${2 * BLOCK_BYTES - 1}`);
      response.writeHead(206).end(bytes.subarray(BLOCK_BYTES, 2 * BLOCK_BYTES));
    },
    async (url) => {
      const { blocks, status } = await fetched(url, BLOCK_BYTES, BLOCK_BYTES);
      assert.equal(status, 'finished');
      assert.deepEqual([...blocks.keys()], [1]);
    },
  );
});

test('server that ignores ranges is understood', async () => {
  await withServer(
    (_, response) => response.writeHead(200).end(bytes),
    async (url) => {
      const { blocks, status } = await fetched(url, 2 * BLOCK_BYTES, BLOCK_BYTES + 100);
      assert.equal(status, 'finished');
      assert.deepEqual(blocks.get(3), bytes.slice(3 * BLOCK_BYTES));
    },
  );
});

test('errors, short and overlong bodies fail with their status', async () => {
  await withServer(
    (_, response) => response.writeHead(404).end(),
    async (url) => {
      assert.equal((await fetched(url, 0, 10)).status, 404);
    },
  );
  await withServer(
    (_, response) => response.writeHead(206).end(bytes.subarray(0, 50)),
    async (url) => {
      assert.equal((await fetched(url, 0, 100)).status, 0);
    },
  );
  await withServer(
    (_, response) => response.writeHead(200).end(bytes),
    async (url) => {
      assert.equal((await fetched(url, 0, bytes.length - 1, true)).status, 0);
    },
  );
  assert.equal((await fetched('http://127.0.0.1:1/', 0, 10)).status, 0);
});

test('aborted fetch says nothing more', async () => {
  await withServer(
    (_, response) => response.writeHead(206).write(bytes.subarray(0, 10)),
    async (url) => {
      const heard: string[] = [];
      const controller = fetchRange(
        { url, offset: 0, length: BLOCK_BYTES, isWhole: false, blockBytes: BLOCK_BYTES },
        {
          onBlock: () => heard.push('block'),
          onBytes: () => {
            controller.abort();
            setTimeout(finish, 50);
          },
          onFinished: () => heard.push('finished'),
          onFailed: () => heard.push('failed'),
        },
      );
      let finish: () => void = () => undefined;
      await new Promise<void>((resolve) => (finish = resolve));
      assert.deepEqual(heard, []);
    },
  );
});

test('record is fetched beside its piece, and refused when it is too long', async () => {
  await withServer(
    (request, response) => {
      assert.equal(request.url, '/part.m4s.digest?token=x');
      response.end('record');
    },
    async (url) => {
      const records = await fetchRecords(`${url}?token=x`);
      assert.deepEqual(records.map((record) => Buffer.from(record).toString()), ['record']);
    },
  );
  await withServer(
    (_, response) => response.end(Buffer.from('\0\0\0\x03one\0\0\0\x05three', 'latin1')),
    async (url) => {
      const records = await fetchRecords(url.replace('part.m4s', 'seg-7.m4s'));
      assert.deepEqual(records.map((record) => Buffer.from(record).toString()), ['one', 'three']);
    },
  );
  await withServer(
    (_, response) => response.end(Buffer.from('\0\0\0\x03one\0\0', 'latin1')),
    async (url) => {
      assert.deepEqual(await fetchRecords(url.replace('part.m4s', 'seg-7.m4s')), [], 'cut off');
    },
  );
  await withServer(
    (_, response) => response.end(new Uint8Array(200 * 1024)),
    async (url) => {
      assert.deepEqual(await fetchRecords(url), []);
    },
  );
});
