/**
 * Hashes blocks and checks whether the origin has signed a record: by WebCrypto, off the main thread and without a byte to
 * download, or where that is absent (plain http pages) or too old, by a module of its own.
 */

import { compile } from './core.ts';

/** What says whether bytes are the origin's. */
export interface Verifier {
  /** Whether the 64 bytes at the end are the origin's signature of those before. */
  isSigned: (signed: Uint8Array<ArrayBuffer>) => Promise<boolean>;
  /** What a record has for a block of these bytes: the first 16 of their SHA-256. */
  digest: (block: Uint8Array<ArrayBuffer>) => Promise<Uint8Array>;
}

export const DIGEST_BYTES = 16;
const SIGNATURE_BYTES = 64;

/** What `player/wasm/verify` exports. */
interface Exports {
  memory: WebAssembly.Memory;
  allocate: (length: number) => number;
  verify: () => number;
  digest: () => number;
}

/** Makes what checks the signatures of the one whose public key this is. Fails where the module is needed and can't be had. */
export async function makeVerifier(key: Uint8Array<ArrayBuffer>, moduleUrl: string | URL): Promise<Verifier> {
  const subtle = crypto.subtle as SubtleCrypto | undefined;
  const native = subtle && {
    digest: async (block: Uint8Array<ArrayBuffer>) => new Uint8Array(await subtle.digest('SHA-256', block), 0, DIGEST_BYTES),
  };
  const imported = await subtle?.importKey('raw', key, 'Ed25519', false, ['verify']).catch(() => null);
  if (!native || !imported) {
    return { ...moduleVerifier(key, await WebAssembly.instantiate(await compile(moduleUrl))), ...native };
  }
  return {
    ...native,
    isSigned(signed) {
      const at = signed.length - SIGNATURE_BYTES;
      return subtle.verify('Ed25519', imported, signed.subarray(at), signed.subarray(0, at));
    },
  };
}

/** The same by an instance of the module. */
export function moduleVerifier(key: Uint8Array, instance: WebAssembly.Instance): Verifier {
  const exports = instance.exports as unknown as Exports;
  // The memory may grow when it is given something, and has another buffer then.
  const give = (...all: Uint8Array[]): void => {
    let at = exports.allocate(all.reduce((sum, bytes) => sum + bytes.length, 0));
    for (const bytes of all) {
      new Uint8Array(exports.memory.buffer, at).set(bytes);
      at += bytes.length;
    }
  };
  return {
    isSigned(signed) {
      give(key, signed);
      return Promise.resolve(exports.verify() === 1);
    },
    digest(block) {
      give(block);
      const at = exports.digest();
      return Promise.resolve(new Uint8Array(exports.memory.buffer, at, DIGEST_BYTES).slice());
    },
  };
}
