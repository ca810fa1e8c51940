/** The first page: what is live, what was, and how to go live. */

import { byId, enableCopyButtons, fetchList, fetchStreams, setText } from './dom.ts';
import type { StreamEntry } from './dom.ts';
import { bytesWords, countWords, durationWords } from './words.ts';

/** How often the list is asked for, in milliseconds. */
const REFRESH_MS = 4_000;
/** Recordings are asked for every so many times, and so many of them are shown. */
const RECORDINGS_EVERY = 3;
const RECORDINGS_MAX = 60;

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

/** A recording in `/api/recordings`. */
interface Recording {
  stream: string;
  epoch: string;
  started_ms: number;
  duration_ms: number;
  bytes: number;
  /** Once it can be played. */
  url: string | null;
  mp4_url: string | null;
  poster_url?: string;
  failure: string;
}

function recordingCard(recording: Recording): HTMLLIElement {
  const item = document.createElement('li');
  const link = document.createElement('a');
  link.className = 'card';
  link.href = `/recording/${encodeURIComponent(recording.stream)}/${encodeURIComponent(recording.epoch)}`;
  if (recording.poster_url) {
    const image = document.createElement('img');
    Object.assign(image, { className: 'poster', alt: '', loading: 'lazy', src: recording.poster_url });
    link.append(image);
  }
  const name = document.createElement('span');
  name.className = 'name';
  name.append(recording.stream);
  if (recording.failure) {
    const badge = document.createElement('span');
    Object.assign(badge, { className: 'badge', textContent: 'Cut short', title: recording.failure });
    name.append(badge);
  }
  const facts = document.createElement('span');
  facts.className = 'soft';
  const began = new Date(recording.started_ms).toLocaleString(undefined, { dateStyle: 'medium', timeStyle: 'short' });
  facts.textContent = `${began} · ${durationWords(recording.duration_ms)}`;
  link.append(name, facts);
  item.append(link);
  if (recording.mp4_url) {
    const file = document.createElement('a');
    file.className = 'file';
    file.href = recording.mp4_url;
    file.download = `${recording.stream}.mp4`;
    file.textContent = `Download MP4, ${bytesWords(recording.bytes)}`;
    item.append(file);
  }
  return item;
}

let shownRecordings = '';

function showRecordings(recordings: Recording[]): void {
  const playable = recordings.filter(({ url }) => url !== null);
  // They seldom change, and pictures are not to flicker.
  const now = JSON.stringify(playable);
  if (now === shownRecordings) return;
  shownRecordings = now;
  byId('recordings').hidden = playable.length === 0;
  byId('recorded').replaceChildren(...playable.slice(0, RECORDINGS_MAX).map(recordingCard));
  byId('older').hidden = playable.length <= RECORDINGS_MAX;
  setText('older', `${countWords(playable.length - RECORDINGS_MAX, 'older recording')} in /api/recordings.`);
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

let refreshes = 0;

async function refresh(): Promise<void> {
  if (document.visibilityState === 'visible') {
    show(await fetchStreams());
    if (refreshes++ % RECORDINGS_EVERY === 0) {
      const recordings = await fetchList<Recording>('/api/recordings');
      if (recordings) showRecordings(recordings);
    }
  }
  setTimeout(() => void refresh(), REFRESH_MS);
}

setText('whip-url', `${location.origin}/whip/NAME`);
setText('pattern', `shoal publish test-pattern ${location.origin}/whip/demo`);
enableCopyButtons();
void refresh();
