// Stands in for the generated bindings where the module has not been built; `swarm/core.ts` says what is in them.
declare module '*/wasm/shoal_swarm_wasm.js';
