/** What a viewer token can be bound to: for sites that issue tokens. In a file of its own, since few pages need it. */

import { certificates, makeCertificate } from './neighbors.ts';

/**
 * The SHA-256 fingerprint of the DTLS certificate that this page shows all its neighbors, as in SDP (`AB:CD:..`); empty
 * where the browser can't make one ahead. Good until the page is left.
 */
export async function fingerprint(): Promise<string> {
  await makeCertificate();
  if (certificates.length === 0) return '';
  // Not every browser has RTCCertificate.getFingerprints.
  const pc = new RTCPeerConnection({ certificates });
  try {
    pc.createDataChannel('');
    const { sdp } = await pc.createOffer();
    return /^a=fingerprint:sha-256 (\S+)/m.exec(sdp ?? '')?.[1] ?? '';
  } finally {
    pc.close();
  }
}
