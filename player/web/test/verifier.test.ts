/** What says whether bytes are the origin's: WebCrypto, or the module where there is none. */
import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import type { Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { mock, test } from 'node:test';

import { makeVerifier, moduleVerifier } from '../src/swarm/verifier.ts';
import { KEY, digestOf, recordOf } from './real-core.ts';

const MODULE_BYTES = readFileSync(join(import.meta.dirname, '../../src/wasm/verify.wasm'));
const NOWHERE = 'http://127.0.0.1:1/verify.wasm';
const CONTEXT = Buffer.from('shoal digest record 1\0');

const key = Uint8Array.from(KEY);
const signed = Uint8Array.from([...CONTEXT, ...recordOf(5, new Uint8Array(200_000).fill(7))]);

function changed(bytes: Uint8Array, at: number): Uint8Array<ArrayBuffer> {
  return bytes.map((byte, index) => (index === at ? byte ^ 1 : byte));
}

async function serve(): Promise<{ server: Server; url: string; count: () => number }> {
  let count = 0;
  const server = createServer((_, response) => {
    count += 1;
    response.writeHead(200).end(MODULE_BYTES);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return { server, url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/verify.wasm`, count: () => count };
}

test('WebCrypto and the module agree on what the origin has signed and on what blocks hash to', async () => {
  const module = await WebAssembly.compile(MODULE_BYTES);
  // No point of the curve has this y.
  const noPoint = Uint8Array.from({ length: 32 }, (_, at) => (at === 0 ? 2 : 0));
  for (const [by, is] of [[key, true], [changed(key, 3), false], [noPoint, false]] as const) {
    const verifiers = [await makeVerifier(by, NOWHERE), moduleVerifier(by, await WebAssembly.instantiate(module))];
    for (const verifier of verifiers) {
      const verify = verifier.isSigned;
      assert.equal(await verify(signed), is);
      for (const at of [0, 30, signed.length - 64, signed.length - 1]) assert.equal(await verify(changed(signed, at)), false);
      assert.equal(await verify(signed.slice(0, 63)), false, 'too short');
      assert.equal(await verify(new Uint8Array()), false);
      assert.equal(await verify(signed), is, 'one answer says nothing of the next');
      for (const length of [0, 1, 4096, 16_384]) {
        const block = Uint8Array.from({ length }, (_, at) => at % 251);
        assert.deepEqual(Buffer.from(await verifier.digest(block)), Buffer.from(digestOf(block)), `${length} bytes`);
      }
    }
  }
});

test('the module is loaded where WebCrypto is absent or too old, and nowhere else', async (context) => {
  const { server, url, count } = await serve();
  try {
    await makeVerifier(key, url);
    assert.equal(count(), 0);
    const importKey = mock.method(crypto.subtle, 'importKey', () => Promise.reject(new DOMException('Ed25519?', 'NotSupportedError')));
    context.after(() => { mock.restoreAll(); });
    const hashes = mock.method(crypto.subtle, 'digest');
    const old = await makeVerifier(key, url);
    assert.equal(await old.isSigned(signed), true, 'too old');
    await old.digest(signed);
    assert.equal(hashes.mock.callCount(), 1, 'it can hash');
    assert.equal(importKey.mock.callCount(), 1);
    mock.restoreAll();
    mock.getter(crypto, 'subtle', () => undefined);
    assert.equal(crypto.subtle, undefined);
    const { isSigned: verify, digest } = await makeVerifier(key, url);
    assert.deepEqual(Buffer.from(await digest(signed)), Buffer.from(digestOf(signed)));
    assert.deepEqual([await verify(signed), await verify(changed(signed, 50))], [true, false], 'absent');
    assert.equal(count(), 1, 'once for all players of the page');
    await assert.rejects(makeVerifier(key, NOWHERE));
  } finally {
    server.close();
  }
});
