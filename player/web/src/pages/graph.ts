/** The little live graph of the watch page: what came from peers and from the origin, stacked, and what was passed on. */

import type { Sample } from '../meter.ts';
import { rateWords } from './words.ts';

/** Seconds shown. */
const SPAN = 60;
/** The scale never goes below this, so that noise near zero does not look like traffic, in bit/s. */
const SCALE_MIN_BPS = 500_000;

/** A scale's upper end: 1, 2 or 5 times a power of ten, at least `value`. */
export function roundedUp(value: number): number {
  const power = 10 ** Math.floor(Math.log10(value));
  return ([1, 2, 5, 10].find((step) => step * power >= value) ?? 10) * power;
}

/** Draws the samples, newest at the right. */
export function drawGraph(canvas: HTMLCanvasElement, samples: readonly Sample[]): void {
  const { clientWidth: width, clientHeight: height } = canvas;
  const context = canvas.getContext('2d');
  if (!context || width === 0) return;
  const ratio = window.devicePixelRatio;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const style = getComputedStyle(canvas);
  const color = (name: string): string => style.getPropertyValue(`--${name}`);
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);

  const shown = smoothed(samples).slice(-SPAN);
  const top = roundedUp(
    Math.max(SCALE_MIN_BPS, ...shown.map(({ peerBps, originBps, sentBps }) => Math.max(peerBps + originBps, sentBps))),
  );
  const x = (index: number): number => width - ((shown.length - 1 - index) / (SPAN - 1)) * width;
  const y = (bps: number): number => height - 1 - (bps / top) * (height - 18);

  context.strokeStyle = color('line');
  context.lineWidth = 1;
  context.font = `12px ${style.fontFamily}`;
  context.fillStyle = color('soft');
  for (const part of [0, 0.5, 1]) {
    const at = Math.round(y(top * part)) + 0.5;
    context.beginPath();
    context.moveTo(0, at);
    context.lineTo(width, at);
    context.stroke();
    if (part > 0) context.fillText(rateWords(top * part), 2, at - 4);
  }
  if (shown.length < 2) return;

  const area = (from: (sample: Sample) => number, to: (sample: Sample) => number, fill: string): void => {
    context.beginPath();
    shown.forEach((sample, index) => {
      context.lineTo(x(index), y(to(sample)));
    });
    for (let index = shown.length - 1; index >= 0; index--) {
      const sample = shown[index];
      if (sample) context.lineTo(x(index), y(from(sample)));
    }
    context.closePath();
    context.globalAlpha = 0.8;
    context.fillStyle = fill;
    context.fill();
    context.globalAlpha = 1;
  };
  area(() => 0, ({ peerBps }) => peerBps, color('peer'));
  area(({ peerBps }) => peerBps, ({ peerBps, originBps }) => peerBps + originBps, color('origin'));

  context.beginPath();
  shown.forEach(({ sentBps }, index) => {
    context.lineTo(x(index), y(sentBps));
  });
  context.setLineDash([4, 3]);
  context.lineWidth = 1.5;
  context.strokeStyle = color('text');
  context.stroke();
  context.setLineDash([]);
}

/** Means over three seconds: parts come in bursts, and a reader wants the trend. */
function smoothed(samples: readonly Sample[]): Sample[] {
  return samples.map((sample, index) => {
    const window = samples.slice(Math.max(0, index - 2), index + 1);
    const mean = (pick: (sample: Sample) => number): number =>
      window.reduce((sum, each) => sum + pick(each), 0) / window.length;
    return {
      at: sample.at,
      peerBps: mean((each) => each.peerBps),
      originBps: mean((each) => each.originBps),
      sentBps: mean((each) => each.sentBps),
    };
  });
}
