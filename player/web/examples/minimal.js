// On another site's page: the same two files under https://YOUR-SERVER/assets/. With a bundler: see README.md.
import Hls from './hls.js';
import { LiveFollower, attach, liveConfig } from './shoal-player.js';

const stream = new URLSearchParams(location.search).get('stream') ?? 'demo';
const hls = new Hls(liveConfig());
const shoal = attach(hls);
shoal.on('stats', ({ peerShare, neighbors }) => console.log({ peerShare, neighbors }));
hls.loadSource(`/live/${stream}/index.m3u8`);
const video = document.getElementById('video');
hls.attachMedia(video);
new LiveFollower(hls, video);
