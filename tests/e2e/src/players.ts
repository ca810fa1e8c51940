/** Serves the page with other people's players on it, from another origin than the stream's. */

import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';

import { build } from 'esbuild';

/** The page's URL, and how to end serving it. */
export async function servePlayers(): Promise<{ url: string; close: () => void }> {
  const { outputFiles } = await build({
    entryPoints: [new URL('players-page.ts', import.meta.url).pathname],
    bundle: true,
    write: false,
    format: 'iife',
    target: 'es2022',
    logLevel: 'error',
  });
  const script = outputFiles[0]?.contents ?? new Uint8Array();
  const server = createServer((request, response) => {
    const isScript = request.url === '/page.js';
    response.writeHead(200, { 'content-type': isScript ? 'text/javascript' : 'text/html' });
    response.end(isScript ? script : '<!doctype html><meta charset=utf-8><title>Players</title><body><script src=/page.js></script>');
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  return { url: `http://127.0.0.1:${port}/`, close: () => server.close() };
}
