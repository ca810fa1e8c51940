// Runs the test files one after the other: each has a server and a browser of its own, and the machine may be small.
// SHOAL_TEST_FILE=part-of-a-name runs only the files whose names contain it.
import { spawnSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { cpus } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';

const wanted = process.env.SHOAL_TEST_FILE ?? '';
const files = readdirSync(new URL('test', import.meta.url))
  .filter((name) => name.endsWith('.test.ts') && name.includes(wanted))
  .sort()
  .map((name) => `test/${name}`);
if (files.length === 0) {
  console.error(`no test file has "${wanted}" in its name`);
  process.exit(1);
}

const runner = ['--import', 'tsx', '--test', '--test-timeout=240000', '--test-reporter=spec'];
const passes = (file) =>
  spawnSync(process.execPath, [...runner, file], { cwd: new URL('.', import.meta.url), stdio: 'inherit' }).status === 0;

/** Waits until the processors were idle for half of five seconds, for two minutes at most. */
const untilCalm = async () => {
  const times = () => cpus().map(({ times: { idle, ...busy } }) => [idle, Object.values(busy).reduce((sum, time) => sum + time, 0)]);
  const total = (of) => of.reduce(([idle, busy], core) => [idle + core[0], busy + core[1]], [0, 0]);
  for (let tries = 0; tries < 24; tries++) {
    const [idleThen, busyThen] = total(times());
    await sleep(5_000);
    const [idle, busy] = total(times());
    if (idle - idleThen >= busy - busyThen) return;
  }
};

// Browsers and video in real time: on a machine that others use too, a file that fails gets a second try, and says so.
const failed = [];
const flaky = [];
for (const file of files) {
  console.log(`\n${file}`);
  if (passes(file)) continue;
  await untilCalm();
  console.log(`\n${file}: once more`);
  (passes(file) ? flaky : failed).push(file);
}
console.log(`\n${files.length - failed.length} of ${files.length} files passed`);
for (const file of flaky) console.log(`FLAKY, passed only the second time: ${file}`);
for (const file of failed) console.log(`FAILED: ${file}`);
process.exit(failed.length === 0 ? 0 : 1);
