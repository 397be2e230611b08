// Pictures out of a playing video: one at every 1/fps seconds of its own time, as JPEG.

const LONGEST_SIDE = 640; // no model here looks closer, and a second of video stays near 100 kB
const QUALITY = 0.92;

export class FrameGrabber {
  /**
   * @param {HTMLVideoElement} video
   * @param {number} fps
   * @param {(timestamp: number, canvas: HTMLCanvasElement) => void} onFrame called at once, in order
   */
  constructor(video, fps, onFrame) {
    this.video = video;
    this.step = 1 / fps;
    this.onFrame = onFrame;
    this.last = -1;
    this.begin();
    this.#watch();
  }

  /** A new video is loaded: its first picture is at time 0, whatever its file says. */
  begin() {
    [this.zero, this.fresh] = [0, true];
  }

  // Only the first picture tells for sure: `currentTime` is 0 until then. A start of less than a step counts as
  // 0, since under load the first picture that is reported can be the second one.
  #first(mediaTime) {
    this.fresh = false;
    if (mediaTime < this.step) return;
    this.zero = mediaTime;
    this.video.dispatchEvent(new Event("latestart"));
  }

  /** Seconds since the first picture. */
  get now() {
    return this.video.currentTime - this.zero;
  }

  /** Seconds from the first picture to the end; NaN or Infinity where the video states no end. */
  get length() {
    return this.video.duration - this.zero;
  }

  /** Show the picture at a time. */
  seek(time) {
    this.video.currentTime = this.zero + time;
  }

  /** Take frames from the given time on, also those taken before. */
  rewind(time = 0) {
    this.last = Math.ceil(time / this.step - 1e-3) - 1;
  }

  #watch() {
    const next = (mediaTime) => {
      if (this.fresh) this.#first(mediaTime);
      if (!this.video.paused) this.look(mediaTime - this.zero);
      this.#watch();
    };
    // The callback names the time of the frame that is really on the screen.
    this.video.requestVideoFrameCallback
      ? this.video.requestVideoFrameCallback((_, frame) => next(frame.mediaTime))
      : requestAnimationFrame(() => next(this.video.currentTime));
  }

  /** Take the picture on the screen if it is the first at or after a sampling time. */
  look(time) {
    const index = Math.floor(time / this.step + 1e-3);
    if (index <= this.last || this.video.readyState < HTMLMediaElement.HAVE_CURRENT_DATA) return;
    this.last = index;
    this.onFrame(index * this.step, snapshot(this.video, LONGEST_SIDE));
  }
}

/** A canvas with the video's current picture. */
export function snapshot(video, longestSide) {
  const scale = Math.min(1, longestSide / Math.max(video.videoWidth, video.videoHeight));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(video.videoWidth * scale));
  canvas.height = Math.max(1, Math.round(video.videoHeight * scale));
  canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
  return canvas;
}

/** @returns {Promise<ArrayBuffer>} */
export async function jpegOf(canvas) {
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", QUALITY));
  return blob.arrayBuffer();
}
