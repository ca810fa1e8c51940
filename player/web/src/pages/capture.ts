/** Cameras, microphones and screens: what is there, how to open it, and what to do when it can't be opened. */

/** What to capture. */
export interface CaptureOptions {
  source: 'camera' | 'screen';
  /** A device id, or empty for the default. */
  camera: string;
  /** A device id, empty for the default, `screen` for the screen's own sound, `none`. */
  sound: string;
  /** Lines of picture. */
  height: number;
}

/** Something for people: what is wrong, and what to do about it. */
export interface Advice {
  title: string;
  advice: string;
}

const FRAME_RATE = 30;

/** Whether this page may capture at all; advice where it may not. */
export function captureObstacle(): Advice | null {
  if (!window.isSecureContext) {
    return {
      title: 'Browsers give no camera to this page',
      advice:
        'It was opened over plain http from another machine. Open it over https, or on the server itself as http://localhost. OBS, ffmpeg and “shoal publish” work from here without https.',
    };
  }
  if (!('mediaDevices' in navigator)) {
    return { title: 'This browser can’t capture', advice: 'Use a current Firefox, Chrome, Edge or Safari.' };
  }
  return null;
}

/** Whether screens can be captured; phones can't. */
export function canCaptureScreen(): boolean {
  return 'mediaDevices' in navigator && 'getDisplayMedia' in navigator.mediaDevices;
}

/** Opens what was chosen. Rejects with the browser's error: see {@link captureAdvice}. */
export async function capture(options: CaptureOptions): Promise<MediaStream> {
  const { source, camera, sound, height } = options;
  const size = { width: { ideal: Math.round((height * 16) / 9) }, height: { ideal: height } };
  const microphone =
    sound === 'none' || sound === 'screen' ? false : sound === '' ? true : { deviceId: { exact: sound } };
  if (source === 'camera') {
    const device = camera === '' ? {} : { deviceId: { exact: camera } };
    const video = { ...size, frameRate: { ideal: FRAME_RATE }, ...device };
    return hinted(await navigator.mediaDevices.getUserMedia({ video, audio: microphone }), 'motion');
  }
  const stream = await navigator.mediaDevices.getDisplayMedia({
    video: { ...size, frameRate: { ideal: FRAME_RATE } },
    audio: sound === 'screen',
  });
  try {
    const own = microphone === false ? null : await navigator.mediaDevices.getUserMedia({ audio: microphone });
    for (const track of own?.getAudioTracks() ?? []) stream.addTrack(track);
  } catch (error) {
    release(stream);
    throw error;
  }
  // Text must stay sharp: the encoder lowers the frame rate before the resolution.
  return hinted(stream, 'detail');
}

function hinted(stream: MediaStream, hint: string): MediaStream {
  for (const track of stream.getVideoTracks()) track.contentHint = hint;
  return stream;
}

/** Stops all tracks, so that the camera's light goes out. */
export function release(stream: MediaStream | null): void {
  for (const track of stream?.getTracks() ?? []) {
    track.onended = null;
    track.stop();
  }
}

/** A failure to capture, in words. Null when the person just closed the screen picker. */
export function captureAdvice(error: unknown, source: 'camera' | 'screen'): Advice | null {
  const name = error instanceof DOMException ? error.name : '';
  switch (name) {
    case 'NotAllowedError':
      if (source === 'screen') return null;
      return {
        title: 'No permission to use camera or microphone',
        advice:
          'Allow it by the camera symbol in the address bar, or in the system’s privacy settings, and start the preview again.',
      };
    case 'NotFoundError':
      return {
        title: 'No camera or microphone found',
        advice: 'Connect one, or choose “No sound” if only the microphone is missing. A screen can be sent without either.',
      };
    case 'NotReadableError':
    case 'AbortError':
      return {
        title: 'The device can’t be opened',
        advice: 'Another program may be using it. Close that program, or choose another device.',
      };
    case 'OverconstrainedError':
      return { title: 'That device is gone', advice: 'Choose another one.' };
    default:
      return { title: 'Capturing failed', advice: error instanceof Error ? error.message : String(error) };
  }
}

/** Shows the loudness of a stream; returns what ends it. */
export function meterSound(stream: MediaStream, show: (level: number) => void): () => void {
  const context = new AudioContext();
  const analyser = context.createAnalyser();
  analyser.fftSize = 1024;
  context.createMediaStreamSource(stream).connect(analyser);
  const samples = new Float32Array(analyser.fftSize);
  let frame = 0;
  const draw = (): void => {
    analyser.getFloatTimeDomainData(samples);
    const power = samples.reduce((sum, sample) => sum + sample * sample, 0) / samples.length;
    // From -60 dB to full scale.
    show(power > 0 ? Math.min(1, Math.max(0, (10 * Math.log10(power) + 60) / 60)) : 0);
    frame = requestAnimationFrame(draw);
  };
  draw();
  return () => {
    cancelAnimationFrame(frame);
    void context.close();
  };
}
