// The list of what was said, asked and noted, in the order of the stream's time.

import { clock, element, keepingEnd } from "/web/dom.js";
import { addCaption } from "/web/subtitles.js";

export class Transcript {
  /** @param {HTMLElement} list @param {(time: number) => void} onSeek a time was chosen */
  constructor(list, onSeek) {
    this.list = list;
    this.onSeek = onSeek;
    this.clear();
  }

  clear() {
    this.phrases = [];
    this.rows = new Map(); // by phrase
    this.list.replaceChildren();
  }

  /** Words about a frame: the phrase that is being said goes on, or one begins. */
  addCaption(time, text) {
    const phrase = addCaption(this.phrases, { time, text });
    const known = this.rows.get(phrase);
    if (known) {
      keepingEnd(this.list, () => known.append(` ${text}`)); // a node of its own: only it is read aloud
      return;
    }
    const words = element("span", "", text);
    this.rows.set(phrase, words);
    this.#insert("said", time, this.#time(time), words);
  }

  addAnswer(time, query, text) {
    this.#insert("answered", time, this.#time(time), element("q", "", query), element("span", "", text || "(no words)"));
  }

  /** Something about the stream as a whole; `kind` is "note" or "problem". The same is not said twice in a row. */
  note(text, kind = "note") {
    const last = this.list.lastElementChild;
    if (last?.className === kind && last.textContent === text) return;
    const time = Math.max(0, ...[...this.list.children].slice(-1).map((row) => Number(row.dataset.time)));
    this.#insert(kind, time, document.createTextNode(text));
  }

  #time(time) {
    const at = element("button", "at", clock(time));
    at.type = "button";
    at.title = "Go to this time";
    at.addEventListener("click", () => this.onSeek(time));
    return at;
  }

  #insert(kind, time, ...content) {
    const row = element("li", kind);
    row.dataset.time = time;
    row.append(...content);
    let next = null;
    for (let one = this.list.lastElementChild; one && Number(one.dataset.time) > time; one = one.previousElementSibling) {
      next = one;
    }
    keepingEnd(this.list, () => this.list.insertBefore(row, next));
  }
}
