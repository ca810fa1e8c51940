/** Small helpers of the three pages: finding elements, copying, numbers in words. */

/** The element with this id; the page's HTML is ours, so a missing one, or one of another kind, is a bug. */
// eslint-disable-next-line @typescript-eslint/no-unnecessary-type-parameters -- shorter than a cast at each call
export function byId<T extends HTMLElement = HTMLElement>(id: string): T {
  const element = document.getElementById(id);
  if (!element) throw new Error(`the page has no #${id}`);
  return element as T;
}

/** Sets an element's text, touching the page only when it changed. */
export function setText(id: string, text: string): void {
  const element = byId(id);
  if (element.textContent !== text) element.textContent = text;
}

/** Makes every `[data-copy]` button copy the text (or the link) of the element it names. */
export function enableCopyButtons(): void {
  for (const button of document.querySelectorAll<HTMLButtonElement>('[data-copy]')) {
    const words = button.textContent;
    button.addEventListener('click', () => {
      const source = byId(button.dataset['copy'] ?? '');
      const text = source instanceof HTMLAnchorElement ? source.href : source.textContent;
      void copy(text, source).then((isCopied) => {
        button.textContent = isCopied ? 'Copied' : 'Press Ctrl+C';
        setTimeout(() => {
          button.textContent = words;
        }, 2_000);
      });
    });
  }
}

async function copy(text: string, source: HTMLElement): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // No clipboard on plain http: select the text, so that the keyboard can do it.
    getSelection()?.selectAllChildren(source);
    return false;
  }
}

/** A rate in bit/s for people: `850 kbit/s`, `2.4 Mbit/s`. */
export function rateWords(bps: number): string {
  return bps < 999_500 ? `${Math.round(bps / 1000)} kbit/s` : `${(bps / 1e6).toFixed(1)} Mbit/s`;
}

/** An amount of bytes for people. */
export function bytesWords(bytes: number): string {
  if (bytes < 1e6) return `${Math.round(bytes / 1000)} kB`;
  return bytes < 1e9 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(2)} GB`;
}

/** A duration for people: `0:42`, `12:05`, `1:02:05`. */
export function durationWords(ms: number): string {
  const seconds = Math.max(0, Math.floor(ms / 1000));
  const [h, m, s] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60];
  const two = (value: number): string => String(value).padStart(2, '0');
  return h > 0 ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}

/** `1 viewer`, `2 viewers`. */
export function countWords(count: number, noun: string): string {
  return `${count} ${noun}${count === 1 ? '' : 's'}`;
}

/** A stream in `/api/streams`. */
export interface StreamEntry {
  name: string;
  state: string;
  viewers: number;
  started_ms: number;
  renditions: unknown[];
  /** The path of its poster; another query, another picture. */
  poster_url?: string;
}

/** A list of the server's, such as what is live now; null when it can't be reached or answers nonsense. */
export async function fetchList<T>(path: string): Promise<T[] | null> {
  try {
    const response = await fetch(path, { signal: AbortSignal.timeout(5_000), cache: 'no-store' });
    const list: unknown = response.ok ? await response.json() : null;
    return Array.isArray(list) ? (list as T[]) : null;
  } catch {
    return null;
  }
}

/** What is live now. */
export const fetchStreams = (): Promise<StreamEntry[] | null> => fetchList('/api/streams');

/** What a stream may be called; the server accepts the same. */
export const STREAM_NAME = /^[A-Za-z0-9_-]{1,64}$/;
