// What becomes of the frames: sessions are opened for them, and their words go to every place that shows them.

import { $ } from "/web/dom.js";
import { jpegOf } from "/web/frames.js";
import { LiveSession } from "/web/live.js";

const MOVED = {
  true: "The stream goes on in another process, as if nothing had happened.",
  false: "The stream goes on in another process, which does not know the earlier words.",
};
const GOES_ON = { // errors after which a new session goes on from here, and what is said of them
  session_idle: "The session ended in the pause; a new one begins when frames come again.",
  session_full: "The session was full; a new one goes on from here.",
  frame_limit: "The session was full; a new one goes on from here.",
  session_not_found: "The endpoint no longer has the session; a new one goes on from here.",
  session_ended: "The endpoint no longer has the session; a new one goes on from here.",
};
const REASONS = {
  queue_full: "dropped: the model was busy",
  moved: "lost when the stream moved to another process",
  unsent: "not sent: the endpoint was out of reach",
};

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
    this.model = undefined; // whose words are asked for
    this.blocked = [0, 0]; // until when no session is opened, and how many came to nothing
    this.taken = new Map(); // when each frame was taken that nothing came of yet
    this.sending = Promise.resolve(); // keeps frames in order while they are encoded
  }

  /** A frame, of any time: one earlier than the session's latest is for a session of its own.
   * @returns whether it goes to the endpoint */
  frame(timestamp, canvas) {
    if (this.session && timestamp <= this.session.latest) this.end();
    if (!this.session?.open || this.session.leaving) {
      if (performance.now() < this.blocked[0]) {
        this.timeline.addFrame(timestamp, canvas);
        this.timeline.addLost(timestamp, REASONS.unsent);
        return false;
      }
      this.#open();
    }
    const target = this.session;
    target.latest = timestamp;
    this.taken.set(timestamp, performance.now());
    this.timeline.addFrame(timestamp, canvas);
    this.sending = this.sending
      .then(() => jpegOf(canvas))
      .then((jpeg) => jpeg.arrayBuffer())
      .then((jpeg) => {
        if (target.open) target.push(timestamp, jpeg);
        else if (!target.dropped) this.#lost(timestamp, REASONS.unsent);
      })
      .catch((error) => this.transcript.note(`A frame could not be sent: ${error.message}`, "problem"));
    return true;
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
        this.blocked = [0, 0];
        if (this.session !== mine) return;
        this.onState("live", "Live");
        $("prompt-send").disabled = false;
      },
      caption: (event) => this.#caption(event, mine),
      answer: (event) => this.transcript.addAnswer(event.timestamp, event.query, event.text),
      dropped: (event) => {
        this.numbers.drop();
        this.#lost(event.timestamp, REASONS[event.reason]);
      },
      error: (event) => this.#error(event),
      moved: (event) => this.transcript.note(MOVED[event.exact]),
      lost: () => {
        $("prompt-send").disabled = true;
        if (this.session === mine) this.onState("connecting", "Reconnecting");
      },
      ended: (event) => this.transcript.note(`${event.frames} frames, ${event.tokens} tokens said.`),
      closed: () => this.#closed(mine),
    }, this.model);
    this.session = mine;
  }

  #closed(session) {
    if (!session.explained) this.#unreachable();
    for (const { timestamp } of [...session.unanswered, ...session.waiting]) this.#lost(timestamp, REASONS.unsent);
    if (this.session !== session) return;
    this.session = null;
    $("prompt-send").disabled = true;
    if (document.body.dataset.state !== "error") this.onState("idle", "Ready");
  }

  /** No session came about: after some time, the next frame tries again. */
  #unreachable() {
    const failures = this.blocked[1] + 1;
    this.blocked = [performance.now() + Math.min(1000 * 2 ** failures, 15000), failures];
    if (failures === 1) this.transcript.note("The endpoint is out of reach; captions go on once it answers.", "problem");
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
    if (event.fatal && event.error.code in GOES_ON) {
      this.transcript.note(GOES_ON[event.error.code]);
      return;
    }
    this.transcript.note(event.error.message, "problem");
    if (!event.fatal) return;
    this.onState("error", "Stopped");
    this.onFailure();
  }
}
