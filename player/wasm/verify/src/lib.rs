//! Checks records' signatures and hashes blocks in browsers that can't do it themselves: WebCrypto is absent on plain http pages,
//! and knows Ed25519 since 2025 in all of the large ones. The page loads this module only then, so that others need not download
//! the curve: `player/web/src/swarm/verifier.ts`.
//!
//! The module imports nothing. `allocate(length)` gives the address of a buffer, which the next call speaks of.
//! `verify()`: the origin's key (32 bytes), what was signed and its signature (64 bytes) lie in it one after the other; it says 1
//! where they belong together. `digest()` gives the address of the 16 bytes that a record has for a block of what lies in it.

use shoal_digest::OriginKey;

/// Whether the key in front has signed what follows it. No to bytes that are no key.
#[must_use]
pub fn is_signed(bytes: &[u8]) -> bool {
    let Some((key, signed)) = bytes.split_first_chunk() else { return false };
    OriginKey::from_bytes(key).is_ok_and(|key| key.has_signed(signed))
}

// Exporting a function under a fixed name is what the compiler calls unsafe here: it could clash with another crate's.
#[cfg(target_arch = "wasm32")]
#[allow(unsafe_code)]
mod exports {
    use std::sync::{Mutex, MutexGuard, PoisonError};

    use shoal_digest::BlockDigest;
    use talc::wasm::{WasmDynamicTalc, new_wasm_dynamic_allocator};

    #[global_allocator]
    static ALLOCATOR: WasmDynamicTalc = new_wasm_dynamic_allocator();

    static BYTES: Mutex<Vec<u8>> = Mutex::new(Vec::new());

    fn bytes() -> MutexGuard<'static, Vec<u8>> {
        BYTES.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[unsafe(no_mangle)]
    extern "C" fn allocate(length: usize) -> *const u8 {
        let mut bytes = bytes();
        *bytes = vec![0; length];
        bytes.as_ptr()
    }

    #[unsafe(no_mangle)]
    extern "C" fn verify() -> bool {
        super::is_signed(&bytes())
    }

    #[unsafe(no_mangle)]
    extern "C" fn digest() -> *const u8 {
        let mut bytes = bytes();
        *bytes = BlockDigest::of(&bytes).0.to_vec();
        bytes.as_ptr()
    }
}
