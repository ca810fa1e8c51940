/** hls.js as an asset of its own, for pages that use the package without a bundler. */

export { default } from 'hls.js';
