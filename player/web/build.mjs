// Builds the pages and the package into dist/: `npm run build`. The WebAssembly modules must be in src/wasm first
// (`cargo xtask wasm`). Another folder can be given: `npm run build -- /tmp/dist`. File names that carry a hash may be cached for ever; the others are stable addresses.
import { execFileSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, readFileSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { brotliCompressSync } from 'node:zlib';
import { build } from 'esbuild';

const root = dirname(fileURLToPath(import.meta.url));
const dist = process.argv[2] ? resolve(process.argv[2]) : join(root, 'dist');
const modules = ['swarm.wasm', 'swarm-log.wasm', 'verify.wasm'];

if (!modules.every((name) => existsSync(join(root, 'src/wasm', name)))) {
  console.error('player/web: src/wasm lacks a module; run `cargo xtask wasm` first');
  process.exit(1);
}

rmSync(dist, { recursive: true, force: true });
mkdirSync(join(dist, 'assets'), { recursive: true });

/** What a page takes from files that others load, too, so that it changes nothing about how those are cut into chunks. */
const built = (files) => ({
  name: 'built',
  setup({ onResolve }) {
    onResolve({ filter: /./ }, ({ path }) => path in files ? { path: `./${files[path]}`, external: true } : undefined);
  },
});

/** Scripts with what they share in chunks of their own. */
async function bundle(entryPoints, plugins = [], options = {}) {
  const { metafile } = await build({
    absWorkingDir: root,
    entryPoints,
    plugins,
    outdir: join(dist, 'assets'),
    entryNames: '[name]',
    chunkNames: '[name]-[hash]',
    bundle: true,
    splitting: true,
    format: 'esm',
    target: 'es2022',
    minify: true,
    legalComments: 'none',
    metafile: true,
    logLevel: 'warning',
    ...options,
    // Minified by its makers already, and smaller than what we would make of the readable build.
    alias: { 'hls.js': join(root, 'node_modules/hls.js/dist/hls.min.mjs') },
  });
  return metafile.outputs;
}

const entries = {
  home: 'src/pages/home.ts',
  publish: 'src/pages/publish.ts',
  watch: 'src/pages/watch.ts',
  recording: 'src/pages/recording.ts',
  'shoal-player': 'src/index.ts',
  clock: 'src/clock.ts',
  hls: 'src/hls.ts',
};
// Apart, so that a viewer does not download what the pages' helpers are for elsewhere.
const { home, publish, watch, recording, hls, ...player } = entries;
const outputs = await bundle({ hls }, [], { entryNames: '[name]-[hash]' });
const hlsPath = Object.keys(outputs)[0];
const shared = { 'hls.js': basename(hlsPath) };
writeFileSync(join(dist, 'assets/hls.js'), `export{default}from"./${basename(hlsPath)}";\n`);
Object.assign(
  outputs,
  await bundle({ home, publish }),
  await bundle({ recording }, [built({ ...shared, '../index.ts': 'shoal-player.js' })]),
  await bundle(player, [built(shared)]),
  // One file of its own with all that it needs: put together it is compressed better, and most viewers open no other page.
  await bundle({ watch }, [built(shared)]),
);

const styles = await build({
  absWorkingDir: root,
  entryPoints: ['src/pages/style.css'],
  outdir: join(dist, 'assets'),
  entryNames: '[name]-[hash]',
  minify: true,
  metafile: true,
});
const style = Object.keys(styles.metafile.outputs).map((path) => basename(path)).find((name) => name.endsWith('.css'));

/** What a page's script imports statically, so that browsers can fetch it without parsing its way there. */
function imports(entry) {
  const found = new Set();
  const visit = (path) => {
    for (const { path: next, kind, external } of outputs[path].imports) {
      const target = external ? join(dirname(path), next) : next;
      if (kind !== 'import-statement' || found.has(target)) continue;
      found.add(target);
      visit(target);
    }
  };
  visit(Object.keys(outputs).find((path) => outputs[path].entryPoint === entries[entry]));
  return [...found].map((path) => basename(path));
}

const brand = readFileSync(join(root, 'src/pages/brand.html'), 'utf8').trim();
for (const [page, entry] of [['index', 'home'], ['publish', 'publish'], ['watch', 'watch'], ['recording', 'recording']]) {
  const preloads = imports(entry).map((name) => `<link rel="modulepreload" href="/assets/${name}">`);
  const head = [
    '<meta name="color-scheme" content="light dark">',
    '<link rel="icon" href="/assets/icon.svg" type="image/svg+xml">',
    `<link rel="stylesheet" href="/assets/${style}">`,
    ...preloads,
  ].join('\n  ');
  const html = readFileSync(join(root, `src/pages/${page}.html`), 'utf8');
  writeFileSync(join(dist, `${page}.html`), html.replace('{{head}}', head).replace('{{brand}}', brand));
}

cpSync(join(root, 'src/pages/icon.svg'), join(dist, 'assets/icon.svg'));
for (const name of modules) cpSync(join(root, 'src/wasm', name), join(dist, 'assets', name));
cpSync(join(root, 'node_modules/hls.js/dist/hls.worker.js'), join(dist, 'assets/hls-worker.js'));
cpSync(join(root, 'examples/minimal.html'), join(dist, 'assets/minimal.html'));
cpSync(join(root, 'examples/minimal.js'), join(dist, 'assets/minimal.js'));
execFileSync(process.execPath, [join(root, 'node_modules/typescript/bin/tsc'), '-p', 'tsconfig.types.json', '--outDir', join(dist, 'types')], {
  cwd: root,
  stdio: 'inherit',
});

// Compressed once, as well as it goes, for the server to choose from: `x.js.br` beside `x.js`. What is gzipped is added by
// `cargo xtask web` (infra/xtask/src/compress.rs).
for (const name of ['', 'assets'].flatMap((folder) => readdirSync(join(dist, folder)).map((name) => join(folder, name)))) {
  const path = join(dist, name);
  if (statSync(path).isDirectory()) continue;
  const contents = readFileSync(path);
  const compressed = brotliCompressSync(contents);
  if (compressed.length < contents.length * 0.9) writeFileSync(`${path}.br`, compressed);
}
