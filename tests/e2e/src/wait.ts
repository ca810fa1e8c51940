/** Waiting for conditions. Tests wait for what they want to see, never for a time to pass. */

/** Asks until the answer is neither null, undefined nor false; fails with `what` after `timeoutMs`. */
export async function until<T>(
  what: string,
  ask: () => Promise<T | null | undefined | false> | T | null | undefined | false,
  timeoutMs = 20_000,
): Promise<T> {
  const deadline = Date.now() + timeoutMs;
  let failure = '';
  for (;;) {
    try {
      const answer = await ask();
      if (answer !== null && answer !== undefined && answer !== false) return answer;
      failure = '';
    } catch (error) {
      failure = `; last error: ${String(error)}`;
    }
    if (Date.now() > deadline) throw new Error(`not within ${timeoutMs} ms: ${what}${failure}`);
    await pause(100);
  }
}

/** For measuring over a time, and for the pause between two questions. */
export function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
