/** Starts and ends the real programs: `shoal serve`, `shoal publish`, ffmpeg. */

import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { tmpdir } from 'node:os';
import { mkdtempSync, rmSync } from 'node:fs';
import path from 'node:path';

import { until } from './wait.ts';

const KILL_AFTER_MS = 10_000;

/** The `shoal` program under test; `cargo xtask test` says where it is. */
export function shoalPath(): string {
  const found = process.env['SHOAL_PROGRAM'];
  if (!found) throw new Error('SHOAL_PROGRAM is not set: run this with `cargo xtask test e2e`');
  return found;
}

/** A running program with what it has printed so far. */
export class Program {
  stdout = '';
  stderr = '';
  readonly exited: Promise<number>;
  readonly #child: ChildProcess;
  #code: number | null = null;

  constructor(program: string, args: string[], env: Record<string, string> = {}) {
    this.#child = spawn(program, args, {
      env: { ...process.env, ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    this.#child.stdout?.on('data', (text: Buffer) => (this.stdout += text.toString()));
    this.#child.stderr?.on('data', (text: Buffer) => (this.stderr += text.toString()));
    this.exited = new Promise((resolve, reject) => {
      this.#child.on('error', reject);
      this.#child.on('close', (code, signal) => {
        this.#code = code ?? (signal ? 128 : 1);
        resolve(this.#code);
      });
    });
    // Whoever does not wait for the end learns of a program that could not be started by what it did not print.
    this.exited.catch((error: unknown) => (this.stderr += String(error)));
  }

  get isRunning(): boolean {
    return this.#code === null;
  }

  /** Asks it to end and waits; after ten seconds it is killed. Gives the exit code. */
  async stop(signal: NodeJS.Signals = 'SIGTERM'): Promise<number> {
    if (this.#code !== null) return this.#code;
    this.#child.kill(signal);
    const timer = setTimeout(() => this.#child.kill('SIGKILL'), KILL_AFTER_MS);
    const code = await this.exited;
    clearTimeout(timer);
    return code;
  }

  /** The pid, for measuring. */
  get pid(): number {
    return this.#child.pid ?? 0;
  }
}

/** Runs a program to its end. */
export async function run(program: string, args: string[], env: Record<string, string> = {}): Promise<{ code: number; stdout: string; stderr: string }> {
  const started = new Program(program, args, env);
  const code = await started.exited;
  return { code, stdout: started.stdout, stderr: started.stderr };
}

/** `shoal serve` on ports of the system's choice. */
export class Server {
  readonly program: Program;
  /** Without a slash at the end. */
  readonly url: string;

  private constructor(program: Program, url: string) {
    this.program = program;
    this.url = url;
  }

  /** Starts a server; `settings` are environment variables without their prefix, such as `SEGMENTER_PART_MS`. */
  static async start(settings: Record<string, string> = {}, flags: string[] = []): Promise<Server> {
    const env = { HTTP_LISTEN: '127.0.0.1:0', INGEST_MEDIA_ADDRESS: '127.0.0.1:0', ...settings };
    const prefixed = Object.fromEntries(Object.entries(env).map(([name, value]) => [`SHOAL_${name}`, value]));
    const program = new Program(shoalPath(), ['serve', ...flags], prefixed);
    try {
      const port = await until('shoal serve prints where it is', () => {
        if (!program.isRunning) throw new Error(`it ended: ${program.stderr}`);
        return /publish +http:\/\/[^ ]*:(\d+)\/publish/.exec(program.stdout)?.[1];
      });
      return new Server(program, `http://127.0.0.1:${port}`);
    } catch (error) {
      await program.stop();
      throw error;
    }
  }

  get port(): number {
    return Number(new URL(this.url).port);
  }

  async stop(): Promise<number> {
    return this.program.stop();
  }

  /** Publishes the test pattern from a process of its own and waits until it is live. */
  async publish(stream: string, flags: string[] = []): Promise<Program> {
    const publisher = new Program(shoalPath(), ['publish', 'test-pattern', `${this.url}/whip/${stream}`, ...flags]);
    try {
      await this.untilLive(stream, publisher);
    } catch (error) {
      await publisher.stop();
      throw error;
    }
    return publisher;
  }

  /** Waits until a stream's playlist lists media. */
  async untilLive(stream: string, publisher?: Program): Promise<void> {
    await until(
      `${stream} is live`,
      async () => {
        if (publisher && !publisher.isRunning) throw new Error(`the publisher ended: ${publisher.stderr}`);
        const renditions = await this.mediaPlaylists(stream);
        if (renditions.length === 0) return false;
        const texts = await Promise.all(renditions.map(async (url) => (await fetch(url)).text()));
        return texts.every((text) => text.includes('#EXTINF'));
      },
      40_000,
    );
  }

  /** The media playlists that the multivariant playlist names, videos first. */
  async mediaPlaylists(stream: string): Promise<string[]> {
    const url = `${this.url}/live/${stream}/index.m3u8`;
    const response = await fetch(url);
    if (!response.ok) return [];
    const lines = (await response.text()).split('\n');
    const variants = lines.filter((line) => line !== '' && !line.startsWith('#'));
    const audio = lines.flatMap((line) => /#EXT-X-MEDIA:.*TYPE=AUDIO.*URI="([^"]+)"/.exec(line)?.[1] ?? []);
    return [...new Set([...variants, ...audio])].map((uri) => new URL(uri, url).href);
  }

  async streams(): Promise<{ name: string; state: string; viewers: number }[]> {
    return (await (await fetch(`${this.url}/api/streams`)).json()) as { name: string; state: string; viewers: number }[];
  }

  /** The sum of a metric over its labels, of those lines that contain `label`. */
  async metric(name: string, label = ''): Promise<number> {
    const text = await (await fetch(`${this.url}/metrics`)).text();
    return sumOfMetric(text, name, label);
  }
}

/** Adds up a metric's lines in Prometheus text. */
export function sumOfMetric(text: string, name: string, label = ''): number {
  return text
    .split('\n')
    .filter((line) => (line.startsWith(`${name} `) || line.startsWith(`${name}{`)) && line.includes(label))
    .reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(' ') + 1)), 0);
}

/** A folder that goes when this process ends. */
export function scratchFolder(): string {
  const folder = mkdtempSync(path.join(tmpdir(), 'shoal-e2e-'));
  process.once('exit', () => rmSync(folder, { recursive: true, force: true }));
  return folder;
}
