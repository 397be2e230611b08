// The words over the picture: as they come while the model watches, and at their times when it is shown again.

import { element } from "/web/dom.js";
import { saidAt } from "/web/subtitles.js";

const WORD_DELAY_MS = 90;
const LONGEST_WORDS = 12;
const GAP_S = 0.8; // silence after which the next words start anew
const FADE_AFTER_MS = 3200;

export class Overlay {
  /** @param {HTMLElement} holder @param {HTMLVideoElement} video */
  constructor(holder, video) {
    [this.holder, this.video] = [holder, video];
    this.clear();
  }

  clear() {
    clearTimeout(this.fade);
    [this.words, this.last, this.shown] = [0, -Infinity, ""];
    this.holder.replaceChildren();
    this.holder.classList.remove("fading");
  }

  /** Words that have just come. */
  say(time, text) {
    const words = text.split(/\s+/).filter(Boolean);
    if (time < this.last || time - this.last > GAP_S || this.words + words.length > LONGEST_WORDS) this.clear();
    this.shown = "";
    const line = this.holder.firstChild ?? this.holder.appendChild(element("span", "line"));
    words.forEach((word, index) => {
      const span = element("span", "", `${word} `);
      span.style.animationDelay = `${index * WORD_DELAY_MS}ms`;
      line.append(span);
    });
    [this.words, this.last] = [this.words + words.length, time];
    this.holder.classList.remove("fading");
    clearTimeout(this.fade);
    this.fade = setTimeout(() => !this.video.paused && this.holder.classList.add("fading"), FADE_AFTER_MS);
  }

  /** What was said at a time that was captioned before. */
  replay(phrases, time) {
    const text = saidAt(phrases, time);
    if (text === this.shown && (text || !this.words)) return;
    this.clear();
    if (!text) return;
    this.shown = text;
    const line = element("span", "line");
    line.append(element("span", "still", text));
    this.holder.append(line);
  }
}
