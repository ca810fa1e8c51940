import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { gzipSync } from 'node:zlib';

const ASSETS = join(import.meta.dirname, '../../dist/assets');
/** Our script for a viewer, in bytes gzipped. */
const SCRIPT_BYTES_MAX = 16_900;
/** Script and module together. The goal is 45 kB: the best open rival's package weighs 44.8 kB. What stands between, and what
 * was tried, is in `player/wasm/README.md`; this keeps it from growing. */
const TOTAL_BYTES_MAX = 66_600;

/** A script and everything that it imports before it runs, without hls.js. What is imported on demand (the graph of the
 * details, benches' clock and ledger) is not among it. */
function loadedBy(entry: string): Map<string, Buffer> {
  const found = new Map<string, Buffer>();
  const visit = (name: string): void => {
    if (found.has(name)) return;
    const bytes = readFileSync(join(ASSETS, name));
    if (bytes.includes('hlsManifestLoading')) return;
    found.set(name, bytes);
    for (const [, next = ''] of bytes.toString().matchAll(/(?:from|import)"\.\/([\w.-]+\.js)"/g)) visit(next);
  };
  visit(entry);
  return found;
}

for (const [entry, who] of [['watch.js', 'a viewer of the watch page'], ['shoal-player.js', 'a page with the package']] as const) {
  test(`our script and module for ${who} stay small, without hls.js`, (context) => {
    assert.ok(existsSync(join(ASSETS, entry)), 'build the pages first: npm run build');
    const files = loadedBy(entry).set('swarm.wasm', readFileSync(join(ASSETS, 'swarm.wasm')));
    const sizes = [...files].map(([name, bytes]) => ({ name, bytes: gzipSync(bytes, { level: 9 }).length }));
    const total = sizes.reduce((sum, { bytes }) => sum + bytes, 0);
    const wasm = sizes.find(({ name }) => name === 'swarm.wasm')?.bytes ?? 0;
    context.diagnostic(`${total} bytes: ${sizes.map(({ name, bytes }) => `${name} ${bytes}`).join(', ')}`);
    assert.ok(wasm > 1_000 && total - wasm > 10_000, 'the module and the plug-in are among them');
    assert.ok(total - wasm <= SCRIPT_BYTES_MAX, `${total - wasm} bytes of script are more than ${SCRIPT_BYTES_MAX}`);
    assert.ok(total <= TOTAL_BYTES_MAX, `${total} bytes in all are more than ${TOTAL_BYTES_MAX}`);
  });
}
