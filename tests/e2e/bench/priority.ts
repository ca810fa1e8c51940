/**
 * Lets the server and the publisher go first. Viewers take their own processors everywhere but here, where a browser
 * that starts would make the stream itself late and the bench would measure that.
 */

import { readFile, readdir, writeFile } from 'node:fs/promises';
import { constants, setPriority } from 'node:os';

const NICE = constants.priority.PRIORITY_BELOW_NORMAL;

/** Lowers the priority of every browser that this process has started. Where that can't be done, nothing changes. */
export async function yieldProcessors(): Promise<void> {
  for (const pid of await descendants(process.pid)) {
    const name = await readFile(`/proc/${pid}/comm`, 'utf8').catch(() => '');
    if (!name.startsWith('chrom')) continue;
    try {
      setPriority(pid, NICE);
    } catch {
      continue; // it has ended
    }
    // A browser is a session of its own; where the kernel shares processors among sessions, only this has an effect.
    await writeFile(`/proc/${pid}/autogroup`, String(NICE)).catch(() => undefined);
  }
}

async function descendants(pid: number): Promise<number[]> {
  const all: number[] = [];
  for (const thread of await readdir(`/proc/${pid}/task`).catch(() => [])) {
    const children = await readFile(`/proc/${pid}/task/${thread}/children`, 'utf8').catch(() => '');
    for (const child of children.split(' ').filter(Boolean).map(Number)) all.push(child, ...(await descendants(child)));
  }
  return all;
}
