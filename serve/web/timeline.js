// The strip below the picture: every frame the model saw, and its words at their times.

import { clock, element } from "/web/dom.js";

const PIXELS_PER_SECOND = 84;
const THUMBNAIL_HEIGHT = 46;
const LANES = 3;
const LANE_TOP = 86;
const LANE_HEIGHT = 20;
const LETTER = 7; // pixels, where the strip is out of sight
const LEFT_ALONE_MS = 4000; // after the strip was scrolled by hand
const KEPT = 600; // elements of each kind; a camera can run for hours

export class Timeline {
  /** @param {HTMLElement} holder @param {(time: number) => void} onSeek */
  constructor(holder, onSeek) {
    this.holder = holder;
    this.holder.addEventListener("click", (event) => {
      const x = event.clientX - this.track.getBoundingClientRect().left;
      onSeek(this.start + x / this.scale);
    });
    this.handled = -Infinity;
    for (const kind of ["wheel", "pointerdown", "touchmove", "keydown"]) {
      this.holder.addEventListener(kind, () => (this.handled = performance.now()), { passive: true });
    }
    this.clear(0, 0.5);
  }

  /** Start over. `duration` is 0 where it is not known; `step` is the time between frames. */
  clear(duration, step) {
    this.step = step;
    this.start = 0;
    this.duration = duration;
    this.scale = Math.max(PIXELS_PER_SECOND, duration ? this.holder.clientWidth / duration : 0);
    this.lanes = Array.from({ length: LANES }, () => []); // [left, right] of the words in each
    this.marks = new Map();
    this.track = element("div", "track");
    this.head = element("div", "head");
    this.track.append(this.head);
    this.holder.replaceChildren(this.track);
    this.#stretch(duration);
  }

  addFrame(time, canvas) {
    const known = this.marks.get(time);
    if (known) { // it was lost, and is tried again
      known.className = "mark";
      known.title = "";
      return;
    }
    const thumbnail = element("canvas", "");
    const width = Math.max(8, this.step * this.scale - 2);
    thumbnail.width = Math.round(width * 2);
    thumbnail.height = THUMBNAIL_HEIGHT * 2;
    thumbnail.style.cssText = `left:${this.#x(time)}px;width:${width}px`;
    cover(thumbnail, canvas);
    const mark = this.#place("div", "mark", time);
    this.marks.set(time, mark);
    this.track.append(thumbnail);
    if (Math.abs(time - Math.round(time)) < 1e-6) this.#place("span", "tick", time).textContent = clock(time, 0);
    this.#stretch(time + this.step);
    this.#prune();
  }

  addWords(time, text) {
    this.#mark(time, "spoke", text);
    const word = this.#place("span", "word", time);
    word.textContent = text;
    const left = this.#x(time);
    const right = left + (word.offsetWidth || text.length * LETTER) + 10;
    const free = this.lanes.findIndex((lane) => lane.every(([start, end]) => end <= left || start >= right));
    const lane = free >= 0 ? free : LANES - 1;
    word.style.top = `${LANE_TOP + lane * LANE_HEIGHT}px`;
    this.lanes[lane] = [...this.lanes[lane], [left, right]].slice(-KEPT);
  }

  /** A frame that was dropped or refused. */
  addLost(time, reason) {
    this.#mark(time, "lost", reason);
  }

  /** Move the playhead, and keep it in sight unless the visitor looks elsewhere. */
  moveTo(time) {
    const x = this.#x(time);
    this.head.style.left = `${x}px`;
    if (performance.now() - this.handled < LEFT_ALONE_MS) return;
    const { scrollLeft, clientWidth } = this.holder;
    if (x < scrollLeft || x > scrollLeft + clientWidth - 40) this.holder.scrollLeft = x - clientWidth * 0.75;
  }

  #mark(time, kind, title) {
    const mark = this.marks.get(time);
    mark?.classList.add(kind);
    if (mark) mark.title = title;
  }

  #x(time) {
    return (time - this.start) * this.scale;
  }

  #place(tag, kind, time) {
    const placed = element(tag, kind);
    placed.style.left = `${this.#x(time)}px`;
    this.track.append(placed);
    return placed;
  }

  #stretch(time) {
    const width = Math.max(this.#x(Math.max(time, this.duration)), this.track.offsetWidth);
    this.track.style.width = `${width}px`;
  }

  #prune() {
    if (this.marks.size <= KEPT) return;
    const [oldest] = this.marks.keys();
    this.marks.delete(oldest);
    const limit = this.#x(oldest) + 1;
    for (const child of [...this.track.children]) {
      if (child !== this.head && parseFloat(child.style.left) < limit) child.remove();
    }
  }
}

/** Draw `source` so that it fills `target`, cropping what does not fit. */
function cover(target, source) {
  const context = target.getContext("2d");
  context.imageSmoothingEnabled = source.width > target.width;
  const scale = Math.max(target.width / source.width, target.height / source.height);
  const [width, height] = [source.width * scale, source.height * scale];
  context.drawImage(source, (target.width - width) / 2, (target.height - height) / 2, width, height);
}
