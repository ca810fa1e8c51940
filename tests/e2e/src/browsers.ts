/**
 * Real browsers, one at a time: Chromium by Playwright, Firefox by WebDriver BiDi.
 *
 * Both give {@link Tab}s, so that a test does not care which it drives. Code for the page is passed as text.
 */

import { chromium } from 'playwright-core';
import type { Browser as Playwright, BrowserContext, Page } from 'playwright-core';
import puppeteer from 'puppeteer-core';
import type { Browser as Puppeteer, Page as PuppeteerPage } from 'puppeteer-core';

/** Flags that make Chromium behave the same on every machine, in containers and with many tabs. */
const CHROMIUM_FLAGS = [
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
  '--autoplay-policy=no-user-gesture-required',
  // Candidates would name hosts by multicast DNS, which containers do not resolve.
  '--disable-features=WebRtcHideLocalIpsWithMdns',
  '--disable-background-timer-throttling',
  '--disable-renderer-backgrounding',
  '--disable-backgrounding-occluded-windows',
  '--use-fake-device-for-media-stream',
  '--use-fake-ui-for-media-stream',
  '--mute-audio',
];

const FIREFOX_PREFERENCES = {
  'media.navigator.streams.fake': true,
  'media.navigator.permission.disabled': true,
  'media.peerconnection.ice.obfuscate_host_addresses': false,
  // Tests connect over loopback, which Firefox otherwise leaves out of its candidates.
  'media.peerconnection.ice.loopback': true,
  'media.autoplay.default': 0,
  'media.autoplay.blocking_policy': 0,
  'media.volume_scale': '0.0',
};

/** What a page can be given before it loads. */
export interface TabOptions {
  /** Runs in the page before any of its own scripts. Chromium only where it has to come before modules load. */
  prelude?: string;
  width?: number;
  height?: number;
}

/** One page. */
export interface Tab {
  goto(url: string): Promise<void>;
  /** Evaluates an expression, waits if it is a promise, and gives its value. */
  evaluate<T>(expression: string): Promise<T>;
  click(selector: string): Promise<void>;
  type(selector: string, text: string): Promise<void>;
  screenshot(path?: string): Promise<Uint8Array>;
  /** Errors of the page's scripts and refusals by its policy so far. */
  errors: string[];
  close(): Promise<void>;
}

/** A browser. */
export interface Browser {
  name: string;
  open(options?: TabOptions): Promise<Tab>;
  close(): Promise<void>;
}

function required(variable: string): string {
  const path = process.env[variable];
  if (!path) throw new Error(`${variable} is not set: run this with \`cargo xtask test e2e\``);
  return path;
}

/** Starts Chromium. */
export async function startChromium(flags: string[] = []): Promise<Browser> {
  const browser: Playwright = await chromium.launch({
    executablePath: required('SHOAL_CHROMIUM'),
    headless: true,
    args: [...CHROMIUM_FLAGS, ...flags],
    // Playwright's own list disables features too, and the last flag of that name would win.
    ignoreDefaultArgs: ['--mute-audio'],
  });
  return {
    name: 'Chromium',
    async open({ prelude, width = 1280, height = 800 } = {}) {
      // A context for each viewer: its own connections, its own storage.
      const context = await browser.newContext({
        viewport: { width, height },
        permissions: ['camera', 'microphone', 'clipboard-read', 'clipboard-write'],
      });
      if (prelude) await context.addInitScript(prelude);
      return new ChromiumTab(context, await context.newPage());
    },
    close: () => browser.close(),
  };
}

class ChromiumTab implements Tab {
  readonly errors: string[] = [];
  readonly #context: BrowserContext;
  readonly #page: Page;

  constructor(context: BrowserContext, page: Page) {
    this.#context = context;
    this.#page = page;
    page.on('pageerror', (error) => this.errors.push(String(error)));
    page.on('console', (message) => {
      if (message.type() === 'error') this.errors.push(message.text());
    });
  }

  async goto(url: string): Promise<void> {
    await this.#page.goto(url, { waitUntil: 'domcontentloaded' });
  }

  evaluate<T>(expression: string): Promise<T> {
    return this.#page.evaluate(expression);
  }

  async click(selector: string): Promise<void> {
    await this.#page.click(selector);
  }

  async type(selector: string, text: string): Promise<void> {
    await this.#page.fill(selector, text);
  }

  screenshot(path?: string): Promise<Uint8Array> {
    return this.#page.screenshot({ fullPage: true, ...(path !== undefined && { path }) });
  }

  async close(): Promise<void> {
    await this.#context.close();
  }
}

/** Starts Firefox. */
export async function startFirefox(): Promise<Browser> {
  const browser: Puppeteer = await puppeteer.launch({
    browser: 'firefox',
    executablePath: required('SHOAL_FIREFOX'),
    headless: true,
    extraPrefsFirefox: FIREFOX_PREFERENCES,
  });
  return {
    name: 'Firefox',
    async open({ prelude, width = 1280, height = 800 } = {}) {
      const context = await browser.createBrowserContext();
      const page = await context.newPage();
      await page.setViewport({ width, height });
      if (prelude) await page.evaluateOnNewDocument(prelude);
      return new FirefoxTab(page);
    },
    close: () => browser.close(),
  };
}

class FirefoxTab implements Tab {
  readonly errors: string[] = [];
  readonly #page: PuppeteerPage;

  constructor(page: PuppeteerPage) {
    this.#page = page;
    page.on('pageerror', (error) => this.errors.push(String(error)));
    page.on('console', (message) => {
      if (message.type() === 'error') this.errors.push(message.text());
    });
  }

  async goto(url: string): Promise<void> {
    await this.#page.goto(url, { waitUntil: 'domcontentloaded' });
  }

  evaluate<T>(expression: string): Promise<T> {
    return this.#page.evaluate(expression) as Promise<T>;
  }

  async click(selector: string): Promise<void> {
    await this.#page.click(selector);
  }

  async type(selector: string, text: string): Promise<void> {
    await this.#page.type(selector, text);
  }

  screenshot(path?: string): Promise<Uint8Array> {
    return this.#page.screenshot({ fullPage: true, ...(path !== undefined && { path: path as `${string}.png` }) });
  }

  async close(): Promise<void> {
    await this.#page.close();
  }
}
