/** Small helpers of the pages: finding elements, copying, lists from the server. Numbers in words: `words.ts`. */

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
