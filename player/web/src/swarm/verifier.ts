/**
 * Checks whether the origin has signed a record: by WebCrypto, off the main thread and without a byte to download, or where that
 * is absent (plain http pages) or too old, by a module of its own.
 */

import { compile } from './core.ts';

/** Says whether the 64 bytes at the end are the origin's signature of those before. */
export type Verifier = (signed: Uint8Array<ArrayBuffer>) => Promise<boolean>;

const SIGNATURE_BYTES = 64;

/** What `player/wasm/verify` exports. */
interface Exports {
  memory: WebAssembly.Memory;
  allocate: (length: number) => number;
  verify: () => number;
}

/** Makes what checks the signatures of the one whose public key this is. Fails where the module is needed and can't be had. */
export async function makeVerifier(key: Uint8Array<ArrayBuffer>, moduleUrl: string | URL): Promise<Verifier> {
  const subtle = crypto.subtle as SubtleCrypto | undefined;
  const imported = await subtle?.importKey('raw', key, 'Ed25519', false, ['verify']).catch(() => null);
  if (!subtle || !imported) return moduleVerifier(key, await WebAssembly.instantiate(await compile(moduleUrl)));
  return (signed) => {
    const at = signed.length - SIGNATURE_BYTES;
    return subtle.verify('Ed25519', imported, signed.subarray(at), signed.subarray(0, at));
  };
}

/** The same by an instance of the module. */
export function moduleVerifier(key: Uint8Array, instance: WebAssembly.Instance): Verifier {
  const exports = instance.exports as unknown as Exports;
  return (signed) => {
    const at = exports.allocate(key.length + signed.length);
    // The memory may have grown for it, and has another buffer then.
    const bytes = new Uint8Array(exports.memory.buffer, at);
    bytes.set(key);
    bytes.set(signed, key.length);
    return Promise.resolve(exports.verify() === 1);
  };
}
