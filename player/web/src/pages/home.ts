/** The first page: what is live, and how to go live. */

import { byId, countWords, durationWords, enableCopyButtons, fetchStreams, setText } from './dom.ts';
import type { StreamEntry } from './dom.ts';

/** How often the list is asked for, in milliseconds. */
const REFRESH_MS = 4_000;

const STATES: Record<string, string> = { waiting: 'Waiting', live: 'Live', away: 'Pausing', ended: 'Ended' };

/** Posters by stream: the list is made anew each time, and a picture that stays the same must not flicker. */
const posters = new Map<string, HTMLImageElement>();

function poster(stream: StreamEntry): HTMLImageElement | null {
  if (!stream.poster_url) return null;
  let image = posters.get(stream.name);
  if (!image) {
    image = document.createElement('img');
    image.className = 'poster';
    // The name stands beside it.
    image.alt = '';
    posters.set(stream.name, image);
  }
  if (image.getAttribute('src') !== stream.poster_url) image.src = stream.poster_url;
  return image;
}

function card(stream: StreamEntry): HTMLLIElement {
  const item = document.createElement('li');
  const link = document.createElement('a');
  link.className = 'card';
  link.href = `/watch/${encodeURIComponent(stream.name)}`;
  const name = document.createElement('span');
  name.className = 'name';
  name.append(stream.name);
  const badge = document.createElement('span');
  badge.className = stream.state === 'live' ? 'badge live' : 'badge';
  badge.textContent = STATES[stream.state] ?? stream.state;
  name.append(badge);
  const facts = document.createElement('span');
  facts.className = 'soft';
  const age = stream.started_ms > 0 ? ` · ${durationWords(Date.now() - stream.started_ms)} on air` : '';
  facts.textContent = countWords(stream.viewers, 'viewer') + age;
  const picture = poster(stream);
  if (picture) link.append(picture);
  link.append(name, facts);
  item.append(link);
  return item;
}

function show(streams: StreamEntry[] | null): void {
  if (!streams) {
    setText('summary', 'The server does not answer. Trying again…');
    return;
  }
  setText(
    'summary',
    streams.length === 0 ? 'Nothing is live right now.' : countWords(streams.length, 'stream') + ' to watch.',
  );
  for (const name of posters.keys()) if (!streams.some((stream) => stream.name === name)) posters.delete(name);
  const list = byId('streams');
  const focused = document.activeElement instanceof HTMLAnchorElement ? document.activeElement.href : '';
  list.replaceChildren(...[...streams].sort((a, b) => b.viewers - a.viewers).map(card));
  // The list is made anew each time; whoever walks it by keyboard keeps the place.
  for (const link of list.querySelectorAll('a')) if (link.href === focused) link.focus({ preventScroll: true });
  byId('ways').hidden = false;
}

async function refresh(): Promise<void> {
  if (document.visibilityState === 'visible') show(await fetchStreams());
  setTimeout(() => void refresh(), REFRESH_MS);
}

setText('whip-url', `${location.origin}/whip/NAME`);
setText('pattern', `shoal publish test-pattern ${location.origin}/whip/demo`);
enableCopyButtons();
void refresh();
