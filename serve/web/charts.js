// The numbers beside the stream, and two of them over time: how late captions are, and how much text is kept.

import { $ } from "/web/dom.js";

const POINTS = 240; // two minutes at 2 fps
const [WIDTH, HEIGHT] = [240, 40]; // of the drawing; the page stretches it
const LATENCIES = 15;

class Chart {
  /** @param {string} id @param account what stands below it @param sentence what it is for those who do not see it */
  constructor(id, account, sentence) {
    this.drawing = $(id);
    this.most = $(`${id}-most`);
    [this.account, this.sentence] = [account, sentence];
    this.clear();
  }

  clear() {
    this.values = [];
    this.#draw();
  }

  add(value) {
    this.values = [...this.values, value].slice(-POINTS);
    this.#draw();
  }

  #draw() {
    const highest = Math.max(1, ...this.values);
    const step = WIDTH / Math.max(24, this.values.length - 1);
    const place = (value, index) => `${(index * step).toFixed(1)},${(HEIGHT - 1 - (value / highest) * (HEIGHT - 3)).toFixed(1)}`;
    const points = this.values.map(place);
    this.drawing.querySelector("polyline").setAttribute("points", points.join(" "));
    const end = ((this.values.length - 1) * step).toFixed(1);
    const area = points.length ? `0,${HEIGHT} ${points.join(" ")} ${end},${HEIGHT}` : "";
    this.drawing.querySelector("polygon").setAttribute("points", area);
    this.most.textContent = this.values.length ? this.account(this.values, highest) : "";
    this.drawing.setAttribute("aria-label", this.values.length ? this.sentence(this.values, highest) : "No frames yet");
  }
}

export class Numbers {
  constructor() {
    this.lag = new Chart("lag-chart", (values, highest) => `lag up to ${shown(highest)} ms`, (values, highest) =>
      `Lag of the last ${values.length} captions: now ${shown(values.at(-1))} ms, highest ${shown(highest)} ms`);
    this.memory = new Chart("memory-chart", (values) => `over ${values.length} ${values.length === 1 ? "frame" : "frames"}`, (values) =>
      `Text kept over the last ${values.length} captions: from ${values[0]} to ${values.at(-1)} tokens`);
    this.clear();
  }

  clear() {
    [this.seen, this.dropped, this.latencies] = [0, 0, []];
    for (const [id, value] of [["latency", "–"], ["text-tokens", "0"], ["frames", "0"], ["dropped", ""]]) $(id).textContent = value;
    this.imagesKept(0);
    this.lag.clear();
    this.memory.clear();
  }

  /** @param event a caption @param {number} lagMs from the frame's taking to its words' coming */
  caption(event, lagMs) {
    this.seen += 1;
    this.latencies = [...this.latencies, event.latency_ms].slice(-LATENCIES);
    const median = [...this.latencies].sort((a, b) => a - b)[this.latencies.length >> 1];
    $("latency").textContent = shown(median);
    $("text-tokens").textContent = event.text_tokens;
    $("frames").textContent = this.seen;
    this.imagesKept(1); // the latest frame's keys and values; all earlier ones are gone
    this.lag.add(lagMs);
    this.memory.add(event.text_tokens);
  }

  drop() {
    this.dropped += 1;
    $("dropped").textContent = `${this.dropped} dropped`;
  }

  imagesKept(count) {
    $("images-kept").textContent = count;
    $("images-unit").textContent = count === 1 ? "frame" : "frames";
  }
}

const shown = (value) => (value < 10 ? value.toFixed(1) : String(Math.round(value)));
