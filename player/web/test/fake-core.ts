/** A scripted core: remembers what it was told, and asks for what the test queued. */

import type { Core } from '../src/swarm/core.ts';

/** An output as `poll` gives it. */
export interface FakeOutput {
  tag: number;
  fields: number[];
  bytes?: Uint8Array;
}

type Script = (...args: never[]) => FakeOutput[];

/** Inputs by name are answered by the scripts; everything else the driver calls works and says nothing. */
export function fakeCore(scripts: Record<string, Script> = {}): Core & { calls: [string, ...unknown[]][]; counters: Float64Array } {
  const calls: [string, ...unknown[]][] = [];
  const counters = new Float64Array(36);
  let queue: FakeOutput[] = [];
  let current: FakeOutput | undefined;
  const fixed: Record<string, unknown> = {
    calls,
    counters,
    poll: () => {
      current = queue.shift();
      return current?.tag ?? 0;
    },
    field: (index: number) => current?.fields[index] ?? 0,
    bytes: () => current?.bytes ?? new Uint8Array(),
    nextDeadline: () => -1,
    stats: () => counters.slice(),
    segmentParts: () => undefined,
  };
  return new Proxy(fixed, {
    get: (target, name: string) => {
      if (name in target && !(name in scripts)) return target[name];
      return (...args: never[]) => {
        if (queue.length > 0 && name !== 'segmentParts') throw new Error(`${name} before the core was drained`);
        calls.push([name, ...args]);
        const result = scripts[name]?.(...args);
        if (name === 'segmentParts') return result;
        queue = queue.concat(result ?? []);
        return undefined;
      };
    },
  }) as never;
}
