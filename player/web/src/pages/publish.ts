/** The publish page: choose a source, look at it, go live, see how it goes, stop. */

import { canCaptureScreen, capture, captureAdvice, captureObstacle, meterSound, release } from './capture.ts';
import type { Advice } from './capture.ts';
import { STREAM_NAME, byId, enableCopyButtons, fetchStreams, setText } from './dom.ts';
import { PublishError, Publisher, layersOf } from './whip.ts';
import type { PublishErrorCode } from './whip.ts';
import { durationWords, rateWords } from './words.ts';

/** The largest bitrate for each height, in bit/s: what looks clean in H.264 without wasting uplink. */
const BITRATES: Record<string, number> = { '1080': 4_500_000, '720': 2_500_000, '480': 1_000_000 };
/** How long a lost connection is tried to be restored, and the pauses in between, in milliseconds. */
const RECONNECT_MAX_MS = 120_000;
const RECONNECT_DELAYS_MS = [500, 1_000, 2_000, 4_000, 8_000];
/** Browsers begin below what was asked for; only when that lasts, it is worth a word, in milliseconds. */
const LIMIT_WORDS_MS = 15_000;
const STATS_INTERVAL_MS = 1_000;
const VIEWERS_INTERVAL_MS = 4_000;
const NAME_KEY = 'shoal.publish.name';

const form = byId<HTMLFormElement>('setup');
const preview = byId<HTMLVideoElement>('preview');
const nameField = byId<HTMLInputElement>('name');
const keyField = byId<HTMLInputElement>('key');
const cameraField = byId<HTMLSelectElement>('camera');
const soundField = byId<HTMLSelectElement>('sound');
const qualityField = byId<HTMLSelectElement>('quality');
const sizesField = byId<HTMLInputElement>('sizes');
const previewButton = byId<HTMLButtonElement>('start-preview');
const goLiveButton = byId<HTMLButtonElement>('go-live');

let stream: MediaStream | null = null;
let endMeter: () => void = () => undefined;
let publisher: Publisher | null = null;
let wakeLock: WakeLockSentinel | null = null;
let liveSince = 0;
let isLive = false;
let timers: ReturnType<typeof setInterval>[] = [];

function source(): 'camera' | 'screen' {
  return new FormData(form).get('source') === 'screen' ? 'screen' : 'camera';
}

function showAdvice(advice: Advice | null): void {
  const notice = byId('notice');
  notice.hidden = !advice;
  if (!advice) return;
  notice.children[0]?.replaceChildren(advice.title);
  notice.children[1]?.replaceChildren(advice.advice);
  // On a phone the notice may be below the fold.
  notice.scrollIntoView({ block: 'nearest' });
}

function showBadge(words: string, live = false): void {
  const badge = byId('badge');
  badge.hidden = words === '';
  badge.className = live ? 'badge live' : 'badge';
  badge.textContent = words;
}

function updateButtons(): void {
  // Nothing to be gained below a certain size.
  sizesField.disabled = layersOf(Number(qualityField.value), 1, true).length === 1;
  goLiveButton.disabled = !stream || !nameField.checkValidity();
  previewButton.textContent = stream ? 'Change source' : 'Start preview';
}

async function startPreview(): Promise<void> {
  showAdvice(null);
  previewButton.disabled = true;
  const chosen = source();
  try {
    const next = await capture({
      source: chosen,
      camera: cameraField.value,
      sound: soundField.value,
      height: Number(qualityField.value),
    });
    endPreview();
    stream = next;
    preview.srcObject = next;
    byId('stage').classList.toggle('mirrored', chosen === 'camera');
    byId('cover').hidden = true;
    showBadge('Preview');
    for (const track of next.getTracks()) {
      track.onended = () => {
        handleTrackEnd(track);
      };
    }
    const hasSound = next.getAudioTracks().length > 0;
    byId('meter').hidden = !hasSound;
    if (hasSound) {
      endMeter = meterSound(next, (level) => {
        byId('level').style.transform = `scaleX(${level.toFixed(3)})`;
      });
    }
    await listDevices();
  } catch (error) {
    showAdvice(captureAdvice(error, chosen));
  }
  previewButton.disabled = false;
  updateButtons();
}

function endPreview(): void {
  endMeter();
  endMeter = () => undefined;
  release(stream);
  stream = null;
  preview.srcObject = null;
  byId('cover').hidden = false;
  byId('meter').hidden = true;
  showBadge('');
  updateButtons();
}

function handleTrackEnd(track: MediaStreamTrack): void {
  const wasLive = isLive;
  stop();
  endPreview();
  const what = track.kind === 'audio' ? 'The microphone' : source() === 'screen' ? 'The screen' : 'The camera';
  showAdvice({
    title: `${what} is no longer shared`,
    advice: wasLive ? 'The stream was stopped. Choose a source and go live again.' : 'Choose a source again.',
  });
}

async function listDevices(): Promise<void> {
  const devices = await navigator.mediaDevices.enumerateDevices();
  fill(cameraField, devices, 'videoinput', [['', 'Default camera']]);
  fill(soundField, devices, 'audioinput', [
    ['', 'Default microphone'],
    ...(source() === 'screen' ? ([['screen', 'The screen’s own sound']] as [string, string][]) : []),
    ['none', 'No sound'],
  ]);
}

function fill(
  select: HTMLSelectElement,
  devices: MediaDeviceInfo[],
  kind: MediaDeviceKind,
  fixed: [string, string][],
): void {
  const chosen = select.value;
  const [first, ...rest] = fixed;
  const named = devices.filter((device) => device.kind === kind && device.deviceId !== '' && device.label !== '');
  const all = [
    ...(first ? [first] : []),
    ...named.map((device): [string, string] => [device.deviceId, device.label]),
    ...rest,
  ];
  select.replaceChildren(...all.map(([value, label]) => new Option(label, value, false, value === chosen)));
}

function publishAdvice({ code, detail }: PublishError): Advice {
  const said = detail ? ` The server says: ${detail}` : '';
  const advices: Record<PublishErrorCode, Advice> = {
    'name-taken': {
      title: `“${nameField.value}” is live already`,
      advice: 'Somebody else publishes under this name. Choose another one.',
    },
    'codec-refused': {
      title: 'The server can’t use this browser’s video format',
      advice: `Use a browser that sends H.264 (Chrome, Edge or Safari), or OBS.${said}`,
    },
    'key-refused': {
      title: 'A valid publish key is needed',
      advice: `Enter the key that the server’s operator gave you.${said}`,
    },
    'server-full': { title: 'The server is full', advice: `Try again in a minute.${said}` },
    refused: { title: 'The server refused the stream', advice: detail || 'It gave no reason.' },
    'server-away': {
      title: 'The server does not answer',
      advice: 'Check your connection, and whether the server is running, and try again.',
    },
    'udp-blocked': {
      title: 'The server answers, but video does not get through',
      advice:
        'Something between here and the server blocks UDP: a firewall, a VPN, or the server’s own UDP port is closed. Try another network, or ask the operator to open the port.',
    },
    'connection-lost': {
      title: 'The connection was lost',
      advice: 'It could not be restored within two minutes. Check your network and go live again.',
    },
    'media-refused': {
      title: 'The server can’t use what this browser sends',
      advice: detail ? `It says: ${detail}.` : 'It gave no reason. Try another browser or a smaller picture.',
    },
    'no-webrtc': {
      title: 'This browser has no WebRTC',
      advice: 'It may be turned off in the settings or by an extension. Use another browser, or OBS.',
    },
  };
  return advices[code];
}

function toPublishError(error: unknown): PublishError {
  return error instanceof PublishError ? error : new PublishError('refused', String(error));
}

async function publish(): Promise<void> {
  if (!stream) return;
  const next = new Publisher({
    endpoint: `/whip/${encodeURIComponent(nameField.value)}`,
    tracks: stream.getTracks(),
    key: keyField.value,
    layers: layersOf(Number(qualityField.value), BITRATES[qualityField.value] ?? 2_500_000, sizesField.checked),
  });
  publisher = next;
  next.onLost = (error) => void reconnect(error);
  await next.start();
}

async function goLive(): Promise<void> {
  showAdvice(null);
  remember(nameField.value);
  isLive = true;
  form.hidden = true;
  byId('live').hidden = false;
  setText('live-state', 'Connecting…');
  const link = byId<HTMLAnchorElement>('watch-link');
  link.href = new URL(`/watch/${encodeURIComponent(nameField.value)}`, location.href).href;
  link.textContent = link.href;
  try {
    await publish();
  } catch (error) {
    const problem = toPublishError(error);
    stop();
    showAdvice(publishAdvice(problem));
    if (problem.code === 'key-refused') byId('key-field').hidden = false;
    return;
  }
  showOnAir();
  timers = [
    setInterval(() => void showStats(), STATS_INTERVAL_MS),
    setInterval(() => void showViewers(), VIEWERS_INTERVAL_MS),
  ];
  void showViewers();
  // A phone that goes to sleep would end the stream.
  if ('wakeLock' in navigator) wakeLock = await navigator.wakeLock.request('screen').catch(() => null);
}

function showOnAir(): void {
  if (!isLive) return;
  if (liveSince === 0) liveSince = Date.now();
  setText('live-state', 'You are live');
  showBadge('Live', true);
}

async function reconnect(lost: PublishError): Promise<void> {
  if (lost.code === 'media-refused') {
    // It would be refused again.
    stop();
    showAdvice(publishAdvice(lost));
    return;
  }
  const until = Date.now() + RECONNECT_MAX_MS;
  setText('live-state', 'Connection lost. Reconnecting…');
  showBadge('Reconnecting');
  for (let attempt = 0; isLive && Date.now() < until; attempt++) {
    const pause = RECONNECT_DELAYS_MS[Math.min(attempt, RECONNECT_DELAYS_MS.length - 1)] ?? 0;
    await new Promise((resolve) => setTimeout(resolve, pause));
    // eslint-disable-next-line @typescript-eslint/no-unnecessary-condition -- the person may have stopped meanwhile
    if (!isLive) return;
    try {
      await publish();
      showOnAir();
      return;
    } catch (error) {
      const { code } = toPublishError(error);
      // The server may not have noticed yet that the old session is gone: the name is ours, and taken.
      if (code === 'codec-refused' || code === 'key-refused') break;
    }
  }
  if (!isLive) return;
  stop();
  showAdvice(publishAdvice(new PublishError('connection-lost')));
}

async function showStats(): Promise<void> {
  if (!publisher || liveSince === 0) return;
  const stats = await publisher.stats();
  setText('on-air', durationWords(Date.now() - liveSince));
  const fps = stats.framesPerSecond > 0 ? `, ${Math.round(stats.framesPerSecond)} fps` : '';
  const others = stats.others.map(({ width, height }) => `, ${width} × ${height}`).join('');
  setText('resolution', stats.width > 0 ? `${stats.width} × ${stats.height}${fps}${others}` : '–');
  setText('bitrate', stats.bitrateBps > 0 ? rateWords(stats.bitrateBps) : '–');
  setText('rtt', stats.rttMs > 0 ? `${Math.max(1, Math.round(stats.rttMs))} ms` : '–');
  setText('loss', `${(100 * stats.lossRatio).toFixed(1)} %`);
  const limit = byId('limit');
  limit.hidden = stats.limitedBy === '' || Date.now() - liveSince < LIMIT_WORDS_MS;
  setText(
    'limit',
    stats.limitedBy === 'cpu'
      ? 'This computer is busy: the browser sends a smaller picture than asked for.'
      : 'The uplink is slow: the browser sends a smaller picture than asked for.',
  );
}

async function showViewers(): Promise<void> {
  const entry = (await fetchStreams())?.find(({ name }) => name === nameField.value);
  setText('viewers', entry ? String(entry.viewers) : '–');
}

/** Ends the publication, keeps the preview. */
function stop(): void {
  isLive = false;
  liveSince = 0;
  publisher?.stop();
  publisher = null;
  for (const timer of timers.splice(0)) clearInterval(timer);
  void wakeLock?.release();
  wakeLock = null;
  byId('live').hidden = true;
  form.hidden = false;
  showBadge(stream ? 'Preview' : '');
  updateButtons();
}

function remember(name: string): void {
  try {
    localStorage.setItem(NAME_KEY, name);
  } catch {
    // Storage may be switched off; then the name is typed again next time.
  }
}

function remembered(): string {
  try {
    return localStorage.getItem(NAME_KEY) ?? '';
  } catch {
    return '';
  }
}

function setUp(): void {
  const obstacle = captureObstacle();
  showAdvice(obstacle);
  if (obstacle) for (const element of form.elements) (element as HTMLInputElement).disabled = true;
  byId('screen-choice').hidden = !canCaptureScreen();
  const wanted = new URLSearchParams(location.search).get('name') ?? remembered();
  nameField.value = STREAM_NAME.test(wanted) ? wanted : `live-${Math.random().toString(36).slice(2, 6)}`;
  form.addEventListener('change', ({ target }) => {
    if (target === nameField || target === keyField || target === sizesField) return;
    byId('camera-field').hidden = source() === 'screen';
    updateButtons();
    void ('mediaDevices' in navigator ? listDevices() : undefined);
    // Another device is wanted: show it at once. A screen is picked by a click only, so that its picker explains itself.
    if (stream && source() === 'camera') void startPreview();
    else if (stream) endPreview();
  });
  nameField.addEventListener('input', updateButtons);
  previewButton.addEventListener('click', () => void startPreview());
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    if (!goLiveButton.disabled) void goLive();
  });
  byId('stop').addEventListener('click', stop);
  addEventListener('pagehide', () => publisher?.stop());
  // Back from the browser's page cache: the stream ended when the page was left.
  addEventListener('pageshow', ({ persisted }) => {
    if (persisted && isLive) stop();
  });
  enableCopyButtons();
  updateButtons();
}

setUp();
