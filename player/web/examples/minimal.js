// From npm: import Hls from 'hls.js'; import { attach, boundLatency, liveConfig } from '@shoal/player';
import Hls from './hls.js';
import { attach, boundLatency, liveConfig } from './shoal-player.js';

const stream = new URLSearchParams(location.search).get('stream') ?? 'demo';
const hls = new Hls(liveConfig());
boundLatency(hls);
const shoal = attach(hls);
shoal.on('stats', ({ peerShare, neighbors }) => console.log({ peerShare, neighbors }));
hls.loadSource(`/live/${stream}/index.m3u8`);
hls.attachMedia(document.getElementById('video'));
