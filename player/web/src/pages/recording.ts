/**
 * The page of a recording: plays it, with what others who watch it have, and offers it as a file. Apart from the watch page,
 * which is about what is live: nobody who watches that downloads this, and helpers that both used would be a file more for
 * both.
 */

import Hls from 'hls.js';

import { attach } from '../index.ts';

const parameters = new URLSearchParams(location.search);
const [, , stream = '', epoch = ''] = location.pathname.split('/').map(decodeURIComponent);
const folder = `/vod/${encodeURIComponent(stream)}/${encodeURIComponent(epoch)}/`;
const video = document.querySelector('video');
const cover = document.getElementById('cover');

function say(title: string, text: string): void {
  if (!cover) return;
  cover.hidden = title === '';
  cover.children[0]?.replaceChildren(title);
  cover.children[1]?.replaceChildren(text);
}

/** Joins those who watch the same recording, and says what comes of it. */
function share(hls: Hls, element: HTMLVideoElement): void {
  const sharing = document.querySelector<HTMLInputElement>('#sharing');
  const consent = document.getElementById('consent');
  if (sharing && parameters.get('sharing') === 'off') sharing.checked = false;
  const shoal = attach(hls, { sharing: sharing?.checked ?? true, audit: parameters.has('audit') });
  sharing?.addEventListener('change', () => { shoal.setSharing(sharing.checked); });
  document.getElementById('allow')?.addEventListener('click', () => { shoal.consent(); });
  shoal.on('stats', ({ peerShare, neighbors, needsConsent }) => {
    document.getElementById('share')?.replaceChildren(peerShare === null ? '–' : `${Math.round(100 * peerShare)} %`);
    document.getElementById('neighbors')?.replaceChildren(String(neighbors));
    if (consent) consent.hidden = !needsConsent;
  });
  // As on the watch page, for tests and the curious.
  Object.assign(window, {
    shoal: { player: hls, plugin: shoal, video: element, getStats: () => shoal.getStats(), getAudit: () => shoal.getAudit() },
  });
}

function play(element: HTMLVideoElement): void {
  element.poster = `${folder}poster.jpg`;
  element.addEventListener('loadedmetadata', () => { say('', ''); });
  const source = `${folder}index.m3u8`;
  if (!Hls.isSupported()) {
    // An iPhone's own player.
    element.src = source;
    element.addEventListener('error', () => { say('This recording can’t be played here', 'It may have been deleted. The file below may help.'); });
    return;
  }
  const hls = new Hls({ workerPath: '/assets/hls-worker.js' });
  share(hls, element);
  let recoveredAt = -Infinity;
  hls.on(Hls.Events.ERROR, (_, data) => {
    if (!data.fatal) return;
    if (data.type === Hls.ErrorTypes.MEDIA_ERROR && performance.now() - recoveredAt > 5_000) {
      recoveredAt = performance.now();
      hls.recoverMediaError();
    } else if (data.response?.code === 404) say('There is no such recording', 'It may have been deleted.');
    else say('The server can’t be reached', 'Reload the page to try again.');
  });
  hls.loadSource(source);
  hls.attachMedia(element);
}

document.title = `${stream} · Shoal`;
document.getElementById('name')?.replaceChildren(stream);
const file = document.querySelector<HTMLAnchorElement>('#file');
if (file) {
  file.href = `${folder}recording.mp4`;
  file.download = `${stream}.mp4`;
}
if (video) play(video);
