// Pictures out of a playing video: one at every 1/fps seconds of its own time, each once, as JPEG.

const LONGEST_SIDE = 640; // no model here looks closer, and a second of video stays near 100 kB
const QUALITY = 0.92;
const HIDDEN_MS = 400; // a video that is out of sight tells of no frames: then a timer looks

export class FrameGrabber {
  /**
   * @param {HTMLVideoElement} video
   * @param {number} fps
   * @param {(timestamp: number, canvas: HTMLCanvasElement) => boolean} onFrame called at once; whether it took it
   */
  constructor(video, fps, onFrame) {
    this.video = video;
    this.step = 1 / fps;
    this.onFrame = onFrame;
    this.told = 0;
    this.begin();
    this.#watch();
    setInterval(() => {
      if (!this.fresh && !video.paused && performance.now() - this.told > HIDDEN_MS) this.look(this.now);
    }, HIDDEN_MS);
  }

  /** A new video is loaded: its first picture is at time 0, whatever its file says; none is taken yet. */
  begin() {
    [this.zero, this.fresh, this.refused] = [0, true, -1];
    this.taken = new Set();
  }

  /** Forget what was taken. */
  forget() {
    this.refused = -1;
    this.taken.clear();
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

  /** Whether the frame of a time was taken already. */
  has(time) {
    return this.taken.has(this.#index(time));
  }

  #index(time) {
    return Math.floor(time / this.step + 1e-3);
  }

  #watch() {
    const next = (mediaTime) => {
      this.told = performance.now();
      if (this.fresh) this.#first(mediaTime);
      if (!this.video.paused) this.look(mediaTime - this.zero);
      this.#watch();
    };
    // The callback names the time of the frame that is really on the screen.
    this.video.requestVideoFrameCallback
      ? this.video.requestVideoFrameCallback((_, frame) => next(frame.mediaTime))
      : requestAnimationFrame(() => next(this.video.currentTime));
  }

  /** Take the picture on the screen if it is the first of its sampling time. */
  look(time) {
    const index = this.#index(time);
    if (index < 0 || this.taken.has(index) || this.video.readyState < HTMLMediaElement.HAVE_CURRENT_DATA) return;
    if (!this.video.videoWidth) return;
    if (index === this.refused) return;
    this.refused = this.onFrame(index * this.step, snapshot(this.video, LONGEST_SIDE)) ? -1 : index;
    if (this.refused < 0) this.taken.add(index);
  }
}

/** A canvas with the current picture of a video, or another image, no side longer than asked. */
export function snapshot(source, longestSide) {
  const [across, down] = [source.videoWidth ?? source.width, source.videoHeight ?? source.height];
  const scale = Math.min(1, longestSide / Math.max(across, down));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(across * scale));
  canvas.height = Math.max(1, Math.round(down * scale));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.fillStyle = "#fff"; // JPEG has no transparency: what shows through is white, not black
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
  return canvas;
}

/** @returns {Promise<Blob>} */
export function jpegOf(canvas, quality = QUALITY) {
  return new Promise((resolve, reject) => {
    const done = (blob) => (blob ? resolve(blob) : reject(new Error("the browser made no JPEG of it")));
    canvas.toBlob(done, "image/jpeg", quality);
  });
}
