/** Counts media bytes by source over the life of a player, and keeps one sample a second of the last minute. */

import type { Traffic } from './swarm/driver.ts';

/** Samples kept: one minute. */
const SAMPLES_MAX = 60;

/** Rates of one second. */
export interface Sample {
  /** `performance.now()` milliseconds at its end. */
  at: number;
  peerBps: number;
  originBps: number;
  sentBps: number;
}

/** Drivers come and go as sharing is switched; the meter stays. */
export class Meter {
  /** Media bytes that hls.js loaded the plain way. */
  plainBytes = 0;
  #past: Traffic = { peerBytes: 0, originBytes: 0, sentBytes: 0 };
  #last: Traffic & { at: number } = { peerBytes: 0, originBytes: 0, sentBytes: 0, at: 0 };
  #samples: Sample[] = [];

  /** Samples of the last minute, oldest first. */
  get history(): readonly Sample[] {
    return this.#samples;
  }

  /** Takes over the counts of a driver that ends. */
  absorb(traffic: Traffic | undefined): void {
    if (!traffic) return;
    this.#past.peerBytes += traffic.peerBytes;
    this.#past.originBytes += traffic.originBytes;
    this.#past.sentBytes += traffic.sentBytes;
  }

  /** Everything so far, with what the running driver has counted. */
  totals(running: Traffic | undefined): Traffic {
    return {
      peerBytes: this.#past.peerBytes + (running?.peerBytes ?? 0),
      originBytes: this.#past.originBytes + this.plainBytes + (running?.originBytes ?? 0),
      sentBytes: this.#past.sentBytes + (running?.sentBytes ?? 0),
    };
  }

  /** Notes a sample; to be called about once a second. */
  sample(totals: Traffic, now = performance.now()): void {
    const seconds = (now - this.#last.at) / 1000;
    if (this.#last.at > 0 && seconds > 0) {
      this.#samples.push({
        at: now,
        peerBps: (8 * (totals.peerBytes - this.#last.peerBytes)) / seconds,
        originBps: (8 * (totals.originBytes - this.#last.originBytes)) / seconds,
        sentBps: (8 * (totals.sentBytes - this.#last.sentBytes)) / seconds,
      });
      if (this.#samples.length > SAMPLES_MAX) this.#samples.shift();
    }
    this.#last = { ...totals, at: now };
  }

  /** The mean of the last `count` samples; zeros when there are none. */
  mean(count: number): Omit<Sample, 'at'> {
    const samples = this.#samples.slice(-count);
    const mean = (pick: (sample: Sample) => number): number =>
      samples.length === 0 ? 0 : samples.reduce((sum, sample) => sum + pick(sample), 0) / samples.length;
    return {
      peerBps: mean((sample) => sample.peerBps),
      originBps: mean((sample) => sample.originBps),
      sentBps: mean((sample) => sample.sentBps),
    };
  }
}
