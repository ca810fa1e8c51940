/** A WebSocket client made of bytes, because well-behaved clients cannot send what tests want to send. */

import { randomBytes } from 'node:crypto';
import net from 'node:net';

import { until } from './wait.ts';

/** What a frame carries. */
export const Opcode = {
  Text: 1,
  Binary: 2,
  Close: 8,
} as const;

/** A connection after the handshake. */
export class RawSocket {
  readonly messages: string[] = [];
  isClosed = false;
  readonly #socket: net.Socket;
  #buffer = Buffer.alloc(0);
  #isUpgraded = false;

  private constructor(socket: net.Socket) {
    this.#socket = socket;
    socket.on('data', (data) => this.#read(data));
    socket.on('close', () => (this.isClosed = true));
    socket.on('error', () => (this.isClosed = true));
  }

  static async open(url: string): Promise<RawSocket> {
    const { hostname, port, pathname, host } = new URL(url);
    const socket = net.connect(Number(port), hostname);
    const raw = new RawSocket(socket);
    socket.write(
      `GET ${pathname} HTTP/1.1\r\nHost: ${host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n` +
        `Sec-WebSocket-Key: ${randomBytes(16).toString('base64')}\r\nSec-WebSocket-Version: 13\r\n\r\n`,
    );
    await until('the handshake is answered', () => raw.#isUpgraded || raw.isClosed, 5_000);
    return raw;
  }

  /** Sends one frame; unmasked ones break the rules. */
  send(opcode: number, payload: string | Buffer, isMasked = true): void {
    const data = Buffer.from(payload);
    const length = Buffer.alloc(data.length < 126 ? 1 : data.length < 65_536 ? 3 : 9);
    if (length.length === 1) length.writeUInt8(data.length);
    else if (length.length === 3) length.writeUInt8(126), length.writeUInt16BE(data.length, 1);
    else length.writeUInt8(127), length.writeBigUInt64BE(BigInt(data.length), 1);
    if (isMasked) length[0] = (length[0] ?? 0) | 0x80;
    // A mask of zeros leaves the payload as it is.
    this.#socket.write(Buffer.concat([Buffer.from([0x80 | opcode]), length, Buffer.alloc(isMasked ? 4 : 0), data]));
  }

  /** Writes bytes that are no frame at all. */
  write(bytes: Buffer): void {
    this.#socket.write(bytes);
  }

  /** Waits for a message that contains `text`. */
  async untilMessage(text: string): Promise<string> {
    return until(`a message with ${text}; there were: ${this.messages.join(' ').slice(0, 500)}`, () =>
      this.messages.find((message) => message.includes(text)),
    );
  }

  async untilClosed(): Promise<void> {
    await until('the server closes the connection', () => this.isClosed);
  }

  destroy(): void {
    this.#socket.destroy();
  }

  #read(data: Buffer): void {
    this.#buffer = Buffer.concat([this.#buffer, data]);
    if (!this.#isUpgraded) {
      const end = this.#buffer.indexOf('\r\n\r\n');
      if (end < 0) return;
      this.#isUpgraded = this.#buffer.subarray(0, 12).toString() === 'HTTP/1.1 101';
      if (!this.#isUpgraded) this.isClosed = true;
      this.#buffer = this.#buffer.subarray(end + 4);
    }
    for (;;) {
      const short = (this.#buffer[1] ?? 0) & 0x7f;
      const header = short < 126 ? 2 : short === 126 ? 4 : 10;
      if (this.#buffer.length < header) return;
      const length = short < 126 ? short : short === 126 ? this.#buffer.readUInt16BE(2) : Number(this.#buffer.readBigUInt64BE(2));
      if (this.#buffer.length < header + length) return;
      if (((this.#buffer[0] ?? 0) & 0x0f) === Opcode.Text) this.messages.push(this.#buffer.subarray(header, header + length).toString());
      this.#buffer = this.#buffer.subarray(header + length);
    }
  }
}
