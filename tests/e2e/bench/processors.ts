/** The processors that everything in a bench shares: who goes first, and who used how much. */

import { readFile, readdir, writeFile } from 'node:fs/promises';
import { constants, setPriority } from 'node:os';

import { pause } from '../src/wait.ts';

const SAMPLE_MS = 1_000;
const CALM_SHARE = 0.1;

const NICE = constants.priority.PRIORITY_BELOW_NORMAL;

/** The kernel counts processor time in hundredths of a second (`USER_HZ`). */
const TICKS_PER_SECOND = 100;

/**
 * Lets the server and the publisher go first, by lowering the priority of every browser that this process has started.
 * Viewers take their own processors everywhere but here, where a browser that starts would make the stream itself late and
 * the bench would measure that. Where it can't be done, nothing changes.
 */
export async function yieldProcessors(): Promise<void> {
  for (const pid of await browserProcesses()) {
    try {
      setPriority(pid, NICE);
    } catch {
      continue; // it has ended
    }
    // A browser is a session of its own; where the kernel shares processors among sessions, only this has an effect.
    await writeFile(`/proc/${pid}/autogroup`, String(NICE)).catch(() => undefined);
  }
}

/** Processor time of all processes of the browser that this process has started and that still run, in seconds. */
export async function browserSeconds(): Promise<number> {
  let ticks = 0;
  for (const pid of await browserProcesses()) {
    const text = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => '');
    // The second field is a name, which may hold spaces; user and system time are the 14th and 15th.
    const [user, system] = text.slice(text.lastIndexOf(')') + 2).split(' ').slice(11, 13).map(Number);
    ticks += (user ?? 0) + (system ?? 0);
  }
  return ticks / TICKS_PER_SECOND;
}

/** Ticks of all processors since the machine started: [idle, all]. */
export async function processorTicks(): Promise<[number, number]> {
  const text = await readFile('/proc/stat', 'utf8').catch(() => 'cpu 0');
  const numbers = text.split('\n')[0]?.split(/ +/).slice(1).map(Number) ?? [];
  return [(numbers[3] ?? 0) + (numbers[4] ?? 0), numbers.reduce((sum, ticks) => sum + ticks, 0)];
}

/**
 * Waits until the processors have caught up: a tenth of their time was idle in the last second. At least for `minMs`, and
 * not longer than `maxMs`.
 */
export async function untilCalm(minMs: number, maxMs: number): Promise<void> {
  await pause(minMs - SAMPLE_MS);
  const end = Date.now() + maxMs - minMs + SAMPLE_MS;
  let [idle, all] = await processorTicks();
  while (Date.now() < end) {
    await pause(SAMPLE_MS);
    const [idleNow, allNow] = await processorTicks();
    if (idleNow - idle >= CALM_SHARE * (allNow - all)) return;
    [idle, all] = [idleNow, allNow];
  }
}

async function browserProcesses(): Promise<number[]> {
  const browsers = [];
  for (const pid of await descendants(process.pid)) {
    const name = await readFile(`/proc/${pid}/comm`, 'utf8').catch(() => '');
    if (name.startsWith('chrom')) browsers.push(pid);
  }
  return browsers;
}

async function descendants(pid: number): Promise<number[]> {
  const all: number[] = [];
  for (const thread of await readdir(`/proc/${pid}/task`).catch(() => [])) {
    const children = await readFile(`/proc/${pid}/task/${thread}/children`, 'utf8').catch(() => '');
    for (const child of children.split(' ').filter(Boolean).map(Number)) all.push(child, ...(await descendants(child)));
  }
  return all;
}
