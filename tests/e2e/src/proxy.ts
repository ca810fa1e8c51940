/** A door to a server's port that can be shut: stands for a tracker that dies while the origin lives. */

import net from 'node:net';

/** Passes bytes on between viewers and a server until it is shut. */
export class Door {
  readonly port: number;
  readonly #server: net.Server;
  readonly #sockets = new Set<net.Socket>();
  /** How many connections came through. */
  connections = 0;

  private constructor(server: net.Server, target: number) {
    this.#server = server;
    this.port = (server.address() as net.AddressInfo).port;
    server.on('connection', (inner) => {
      this.connections += 1;
      const outer = net.connect(target, '127.0.0.1');
      for (const [from, to] of [[inner, outer], [outer, inner]] as const) {
        this.#sockets.add(from);
        from.pipe(to);
        from.on('error', () => to.destroy());
        from.on('close', () => {
          this.#sockets.delete(from);
          to.destroy();
        });
      }
    });
  }

  static async open(target: number): Promise<Door> {
    const server = net.createServer();
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    return new Door(server, target);
  }

  /** Cuts what is open and lets nobody in any more. */
  async shut(): Promise<void> {
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    for (const socket of this.#sockets) socket.destroy();
    await closed;
  }
}

/** A port on which nobody listens. */
export async function deadPort(): Promise<number> {
  const server = net.createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as net.AddressInfo;
  await new Promise<void>((resolve) => server.close(() => resolve()));
  return port;
}
