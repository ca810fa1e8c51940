import assert from 'node:assert/strict';
import { existsSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';

const ASSETS = join(import.meta.dirname, '../../dist/assets');
/** What each page downloads of ours, script and module, in bytes gzipped. The package with the module is what the best open rival's
 * package of 44.8 kB is compared with; the watch page has the package in its script. What they are made of, and what was tried:
 * `player/wasm/README.md`. */
const BYTES_MAX = { 'shoal-player.js': 45_000, 'watch.js': 47_300 };

/** A script and everything that it imports before it runs, without hls.js. What is imported on demand (the graph of the
 * details, benches' clock and ledger) is not among it. */
function loadedBy(entry: string): Set<string> {
  const found = new Set<string>();
  const visit = (name: string): void => {
    if (found.has(name)) return;
    const bytes = readFileSync(join(ASSETS, name));
    if (bytes.includes('hlsManifestLoading')) return;
    found.add(name);
    for (const [, next = ''] of bytes.toString().matchAll(/(?:from|import)"\.\/([\w.-]+\.js)"/g)) visit(next);
  };
  visit(entry);
  return found;
}

/** What a browser downloads of a file if it does not take Brotli: those that gzip hardly makes smaller are sent as they are. */
function downloadedBytes(name: string): number {
  const path = join(ASSETS, name);
  return statSync(existsSync(`${path}.gz`) ? `${path}.gz` : path).size;
}

for (const [entry, who] of [['watch.js', 'a viewer of the watch page'], ['shoal-player.js', 'a page with the package']] as const) {
  const max = BYTES_MAX[entry];
  test(`our script and module for ${who} stay small, without hls.js`, (context) => {
    for (const name of [entry, 'swarm.wasm']) {
      assert.ok(existsSync(join(ASSETS, `${name}.gz`)), `${name}.gz is missing; build the pages first: cargo xtask web`);
    }
    const sizes = [...loadedBy(entry), 'swarm.wasm'].map((name) => ({ name, bytes: downloadedBytes(name) }));
    const total = sizes.reduce((sum, { bytes }) => sum + bytes, 0);
    const wasm = sizes.find(({ name }) => name === 'swarm.wasm')?.bytes ?? 0;
    context.diagnostic(`${total} bytes: ${sizes.map(({ name, bytes }) => `${name} ${bytes}`).join(', ')}`);
    assert.ok(wasm > 1_000 && total - wasm > 10_000, 'the module and the plug-in are among them');
    assert.ok(total <= max, `${total} bytes are more than ${max}`);
  });
}
