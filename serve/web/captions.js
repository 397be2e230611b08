// What becomes of the frames: sessions are opened for them, and their words go to every place that shows them.

import { $ } from "/web/dom.js";
import { jpegOf } from "/web/frames.js";
import { LiveSession } from "/web/live.js";

const EXPECTED = new Set(["session_idle", "session_full", "frame_limit"]); // a new session goes on from here

export class Captions {
  /**
   * @param {{timeline, transcript, overlay, numbers}} shown
   * @param {(state: string, text: string) => void} onState
   * @param {() => void} onFailure the endpoint ended the stream for good
   */
  constructor(shown, onState, onFailure) {
    Object.assign(this, shown);
    [this.onState, this.onFailure] = [onState, onFailure];
    this.session = null;
    this.taken = new Map(); // when each frame was taken that nothing came of yet
    this.sending = Promise.resolve(); // keeps frames in order while they are encoded
  }

  /** A frame, of any time: one earlier than the session's latest is for a session of its own. */
  frame(timestamp, canvas) {
    if (this.session && timestamp <= this.session.latest) this.end();
    if (!this.session?.open || this.session.leaving) this.#open();
    const target = this.session;
    target.latest = timestamp;
    this.taken.set(timestamp, performance.now());
    this.timeline.addFrame(timestamp, canvas);
    this.sending = this.sending
      .then(() => jpegOf(canvas))
      .then((jpeg) => jpeg.arrayBuffer())
      .then((jpeg) => target.open && target.push(timestamp, jpeg))
      .catch((error) => this.transcript.note(`A frame could not be sent: ${error.message}`, "problem"));
  }

  /** @returns whether a stream is there to be asked */
  ask(query) {
    return this.session?.ask(query) ?? false;
  }

  /** No more frames come; the words still owed do. */
  end() {
    const mine = this.session;
    if (!mine) return;
    mine.leaving = true;
    this.sending = this.sending.then(() => mine.end());
  }

  /** Leave the session and forget all that was shown. */
  clear(duration, step) {
    this.session?.drop();
    this.session = null;
    this.taken.clear();
    $("prompt-send").disabled = true;
    $("save-vtt").disabled = $("save-srt").disabled = true;
    for (const place of [this.numbers, this.overlay, this.transcript]) place.clear();
    this.timeline.clear(duration, step);
    this.onState("idle", "Ready");
  }

  #open() {
    this.onState("connecting", "Connecting");
    const mine = new LiveSession($("query").value.trim(), {
      started: () => {
        if (this.session !== mine) return;
        this.onState("live", "Live");
        $("prompt-send").disabled = false;
      },
      caption: (event) => this.#caption(event, mine),
      answer: (event) => this.transcript.addAnswer(event.timestamp, event.query, event.text),
      dropped: (event) => {
        this.numbers.drop();
        this.#lost(event.timestamp, "dropped: the model was busy");
      },
      error: (event) => this.#error(event),
      ended: (event) => this.transcript.note(`${event.frames} frames, ${event.tokens} tokens said.`),
      closed: () => this.#closed(mine),
    });
    this.session = mine;
  }

  #closed(session) {
    if (this.session !== session) return;
    this.session = null;
    $("prompt-send").disabled = true;
    if (document.body.dataset.state !== "error") this.onState("idle", "Ready");
  }

  #caption(event, session) {
    const lag = performance.now() - (this.taken.get(event.timestamp) ?? performance.now());
    this.taken.delete(event.timestamp);
    this.numbers.caption(event, lag);
    if (!event.text) return;
    $("save-vtt").disabled = $("save-srt").disabled = false;
    this.timeline.addWords(event.timestamp, event.text);
    this.transcript.addCaption(event.timestamp, event.text);
    if (this.session === session) this.overlay.say(event.timestamp, event.text);
  }

  #lost(timestamp, reason) {
    this.taken.delete(timestamp);
    this.timeline.addLost(timestamp, reason);
  }

  #error(event) {
    if (event.timestamp !== null) this.#lost(event.timestamp, event.error.message);
    if (event.fatal && EXPECTED.has(event.error.code)) {
      if (event.error.code !== "session_idle") this.transcript.note("The session was full; a new one goes on from here.");
      return;
    }
    this.transcript.note(event.error.message, "problem");
    if (!event.fatal) return;
    this.onState("error", "Stopped");
    this.onFailure();
  }
}
