// Runs the test files one after the other: each has a server and a browser of its own, and the machine may be small.
// SHOAL_TEST_FILE=part-of-a-name runs only the files whose names contain it.
import { spawnSync } from 'node:child_process';
import { readdirSync } from 'node:fs';

const wanted = process.env.SHOAL_TEST_FILE ?? '';
const files = readdirSync(new URL('test', import.meta.url))
  .filter((name) => name.endsWith('.test.ts') && name.includes(wanted))
  .sort()
  .map((name) => `test/${name}`);
if (files.length === 0) {
  console.error(`no test file has "${wanted}" in its name`);
  process.exit(1);
}
const runner = ['--import', 'tsx', '--test', '--test-concurrency=1', '--test-timeout=240000', '--test-reporter=spec'];
const { status } = spawnSync(process.execPath, [...runner, ...files], { cwd: new URL('.', import.meta.url), stdio: 'inherit' });
process.exit(status ?? 1);
