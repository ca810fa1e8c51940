import assert from 'node:assert/strict';
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { gzipSync } from 'node:zlib';

const ASSETS = join(import.meta.dirname, '../../dist/assets');
/** What a viewer downloads of ours may weigh this much; the best open rival's package weighs 44.8 kB. */
const BUDGET_BYTES = 45_000;
/** Not downloaded by a viewer, or not ours. */
const LEFT_OUT = ['home.js', 'publish.js', 'minimal.js', 'hls.js', 'hls-worker.js'];

test('our script and module for a viewer stay under 45 kB gzipped, without hls.js', (context) => {
  assert.ok(existsSync(join(ASSETS, 'watch.js')), 'build the pages first: npm run build');
  const sizes = readdirSync(ASSETS)
    .filter((name) => /\.(js|wasm)$/.test(name) && !LEFT_OUT.includes(name))
    .map((name) => ({ name, bytes: readFileSync(join(ASSETS, name)) }))
    // hls.js is bundled into a chunk of its own.
    .filter(({ bytes }) => !bytes.includes('hlsManifestLoading'))
    .map(({ name, bytes }) => ({ name, bytes: gzipSync(bytes, { level: 9 }).length }));
  const total = sizes.reduce((sum, { bytes }) => sum + bytes, 0);
  context.diagnostic(`${total} bytes: ${sizes.map(({ name, bytes }) => `${name} ${bytes}`).join(', ')}`);
  assert.ok(sizes.some(({ name, bytes }) => name === 'swarm.wasm' && bytes > 1_000), 'the module is among them');
  assert.ok(sizes.length >= 5, 'watch page, package, their chunks and the bindings are among them');
  assert.ok(total <= BUDGET_BYTES, `${total} bytes are more than ${BUDGET_BYTES}`);
});
