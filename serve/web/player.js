// What is watched: a sample, a file, the camera or a screen, in one video element.

import { $, button, element, reducedMotion } from "/web/dom.js";

const TINY = 200; // pictures this small are shown pixel by pixel
const STREAMS = {
  camera: {
    open: () => navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 640 } }, audio: false }),
    start: "Start the camera", stop: "Stop the camera", refused: "The camera cannot be used",
  },
  share: {
    open: () => navigator.mediaDevices.getDisplayMedia({ video: true, audio: false }),
    start: "Share a screen or window", stop: "Stop sharing", refused: "No screen is shared",
  },
};

export class Player {
  /**
   * @param {HTMLVideoElement} video
   * @param {{onNew: () => void, onLoaded: () => void, onStopped: () => void, onProblem: (text: string) => void}} on
   */
  constructor(video, on) {
    [this.video, this.on] = [video, on];
    this.stream = null;
    this.sources = 0; // how many were tried: what comes late of an earlier one is not for the present one
    video.addEventListener("loadedmetadata", () => this.#loaded());
    video.addEventListener("error", () => this.#failed());
    for (const kind of Object.keys(STREAMS)) {
      $(kind).addEventListener("click", () => (this.stream?.kind === kind ? this.stopStream() : this.#startStream(kind)));
    }
    $("play").addEventListener("click", () => this.toggle());
    video.addEventListener("click", () => this.toggle());
    video.addEventListener("play", () => this.#playing(true));
    video.addEventListener("pause", () => this.#playing(false));
  }

  get loaded() {
    return Boolean(this.video.srcObject || this.video.getAttribute("src"));
  }

  watch(url) {
    this.stopStream();
    if (this.video.src.startsWith("blob:")) URL.revokeObjectURL(this.video.src);
    this.#begin();
    this.video.src = url;
    if (!reducedMotion()) this.play();
  }

  watchFile(file) {
    $("file-name").textContent = file.name;
    this.watch(URL.createObjectURL(file));
  }

  toggle() {
    if ($("play").disabled) return;
    if (this.video.paused) this.play();
    else this.video.pause();
  }

  play() {
    const source = this.sources;
    this.video.play().catch((error) => {
      // Another source was chosen meanwhile, or the visitor must press Play first.
      if (source !== this.sources || ["AbortError", "NotAllowedError"].includes(error.name)) return;
      this.#cannotPlay("This browser cannot play the file: it is no video, or of a format that the browser lacks. H.264 in MP4 works.");
    });
  }

  stopStream() {
    if (!this.stream) return;
    const { kind, media } = this.stream;
    this.stream = null;
    for (const track of media.getTracks()) track.stop();
    this.video.srcObject = null;
    this.video.classList.remove("mirrored");
    $(kind).textContent = STREAMS[kind].start;
    $("play").disabled = true;
    this.on.onStopped();
  }

  #begin() {
    this.sources += 1;
    this.reported = false;
    this.video.pause();
    this.video.loop = false;
    $("play").disabled = true;
    $("placeholder").hidden = true;
    this.on.onNew();
  }

  async #startStream(kind) {
    let media;
    try {
      if (!navigator.mediaDevices) throw new Error("this page must come over https or from this machine for that");
      media = await STREAMS[kind].open();
    } catch (error) {
      this.on.onProblem(`${STREAMS[kind].refused}: ${error.message}.`.replace(/\.+$/, "."));
      return;
    }
    this.stopStream();
    this.#begin();
    this.stream = { kind, media };
    for (const track of media.getTracks()) {
      track.addEventListener("ended", () => this.stream?.media === media && this.stopStream()); // from the browser's own bar
    }
    this.video.removeAttribute("src");
    this.video.srcObject = media;
    this.video.classList.toggle("mirrored", kind === "camera");
    $(kind).textContent = STREAMS[kind].stop;
    this.play();
  }

  #loaded() {
    const { videoWidth: width, videoHeight: height } = this.video;
    if (!width) {
      this.#cannotPlay("This file has sound but no picture that the browser can show: choose a video.");
      return;
    }
    this.video.classList.toggle("tiny", width < TINY);
    $("view-live").style.setProperty("--aspect", width / height);
    $("play").disabled = false;
    this.on.onLoaded();
  }

  #failed() {
    if (!this.video.getAttribute("src")) return;
    const broken = this.video.error.code === MediaError.MEDIA_ERR_DECODE && this.video.readyState > 0;
    this.#cannotPlay(
      broken
        ? "The video is damaged and ends here."
        : "This browser cannot play the file: it is no video, or of a format that the browser lacks. H.264 in MP4 works.",
    );
  }

  /** Once for each source: the element and its promise both tell of a file that fails. */
  #cannotPlay(reason) {
    if (this.reported) return;
    this.reported = true;
    this.video.pause();
    $("play").disabled = true;
    $("placeholder").textContent = "Nothing can be shown of this file.";
    $("placeholder").hidden = false;
    this.on.onProblem(reason);
  }

  #playing(plays) {
    document.body.classList.toggle("playing", plays);
    $("play").setAttribute("aria-label", plays ? "Pause" : "Play");
  }
}

/** Buttons for the endpoint's own clips; the first is played. */
export function offerClips(clips, choose) {
  const buttons = clips.map((clip) =>
    button("button clip", clip.title, "", () => {
      buttons.forEach((other, index) => other.setAttribute("aria-pressed", String(clips[index] === clip)));
      choose(clip);
    }),
  );
  buttons.forEach((one, index) => {
    one.title = clips[index].title;
    one.setAttribute("aria-pressed", "false");
  });
  $("clips").replaceChildren(...buttons);
  if (buttons.length) buttons[0].click();
  else $("clips").append(element("span", "hint", "This endpoint has no samples: choose a video of your own."));
}
