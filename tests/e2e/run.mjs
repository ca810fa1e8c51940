// Runs the test files one after the other: each has a server and a browser of its own, and the machine may be small.
// SHOAL_TEST_FILE=part-of-a-name runs only the files whose names contain it.
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, readdirSync } from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
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

const here = new URL('.', import.meta.url);
const report = join(mkdtempSync(join(tmpdir(), 'shoal-e2e-')), 'tap');
const runner = [
  ...['--import', 'tsx', '--test', '--test-timeout=240000'],
  ...['--test-reporter=spec', '--test-reporter-destination=stdout'],
  ...['--test-reporter=tap', `--test-reporter-destination=${report}`],
];

/** Runs a file, or only some of its tests. */
const passes = (file, names = []) => {
  const patterns = names.map((name) => `--test-name-pattern=^${name.replace(/[^\w\s]/g, '\\$&')}$`);
  return spawnSync(process.execPath, [...runner, ...patterns, file], { cwd: here, stdio: 'inherit' }).status === 0;
};

/** The names of the tests that failed in the last run. */
const failures = () => [...readFileSync(report, 'utf8').matchAll(/^not ok \d+ - (.+)$/gm)].map(([, name]) => name);

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

// Browsers and video in real time: on a machine that others use too, what fails gets a second try, and says so: the tests that
// failed, or the whole file where it could not name any.
const failed = [];
const flaky = [];
for (const file of files) {
  console.log(`\n${file}`);
  if (passes(file)) continue;
  const names = failures();
  await untilCalm();
  console.log(`\n${file}: once more: ${names.join('; ')}`);
  (passes(file, names) ? flaky : failed).push(`${file}: ${names.join('; ')}`);
}
console.log(`\n${files.length - failed.length} of ${files.length} files passed`);
for (const file of flaky) console.log(`FLAKY, passed only the second time: ${file}`);
for (const file of failed) console.log(`FAILED: ${file}`);
process.exit(failed.length === 0 ? 0 : 1);
