// One live-caption session over the WebSocket /v1/live, on as many connections as it takes.

import { openSocket } from "/web/api.js";

const WAITING = 8; // frames kept while the connection opens; older ones give way, as on the server
const RETRY_MS = [300, 1000, 2000, 4000, 8000, 15000];
const NORMAL = 1000; // tells the server that the session is not to be kept

export class LiveSession {
  /**
   * @param {string} query what the captions should speak of
   * @param {Record<"started"|"caption"|"answer"|"dropped"|"error"|"moved"|"ended"|"lost"|"closed", Function>} on
   * @param {string | undefined} model the endpoint's first by default
   */
  constructor(query, on, model) {
    this.on = on;
    this.waiting = [];
    this.unanswered = []; // frames that were sent, with their numbers
    this.sent = 0;
    this.started = false; // frames can be sent
    this.ending = this.over = false;
    this.explained = false; // the server said why it is over
    this.id = "";
    this.after = 0; // number of the last event
    this.retries = 0;
    this.latest = -Infinity; // time of the frame pushed last
    this.#connect({ type: "session.start", query, model });
  }

  get open() {
    return !this.ending && !this.over;
  }

  /** Send a frame: eight bytes of time (float64, little-endian), then the encoded picture. */
  push(timestamp, jpeg) {
    const message = new Uint8Array(8 + jpeg.byteLength);
    new DataView(message.buffer).setFloat64(0, timestamp, true);
    message.set(new Uint8Array(jpeg), 8);
    this.waiting.push({ timestamp, message });
    if (this.started) this.#flush();
    else if (this.waiting.length > WAITING) {
      this.on.dropped({ timestamp: this.waiting.shift().timestamp, reason: "unsent" });
    }
  }

  /** Ask something further about what was shown last; false where no session is there to ask. */
  ask(query) {
    if (!this.started || !this.open) return false;
    this.#send({ type: "session.prompt", query });
    return true;
  }

  /** No more frames: the captions still owed come, then the totals. */
  end() {
    if (!this.open) return;
    this.ending = true;
    if (this.started) this.#send({ type: "session.end" });
  }

  /** Leave at once and hear nothing more. */
  drop() {
    this.ending = this.over = this.dropped = true;
    clearTimeout(this.retry);
    this.socket.onmessage = this.socket.onclose = null;
    this.socket.onopen = () => this.socket.close(NORMAL);
    if (this.socket.readyState === WebSocket.OPEN) this.socket.close(NORMAL);
  }

  #connect(first) {
    this.socket = openSocket("/v1/live");
    this.socket.onopen = () => this.#send(first);
    this.socket.onmessage = (message) => this.#receive(JSON.parse(message.data));
    this.socket.onclose = () => this.#closed();
  }

  // A connection that is lost is no end: the server keeps the session for a while.
  #closed() {
    this.started = false;
    if (this.over || !this.id || this.retries >= RETRY_MS.length) {
      this.over = true;
      this.on.closed();
      return;
    }
    this.on.lost();
    this.retry = setTimeout(
      () => this.#connect({ type: "session.resume", session_id: this.id, after: this.after }),
      RETRY_MS[this.retries++],
    );
  }

  #receive(event) {
    if (event.event) this.after = event.event;
    if (event.timestamp !== undefined && event.type !== "answer") {
      this.unanswered = this.unanswered.filter(({ timestamp }) => timestamp !== event.timestamp);
    }
    switch (event.type) {
      case "session.started":
        this.id = event.session_id;
        this.#go(event);
        break;
      case "session.resumed": // the frames on their way that have not arrived are sent again
        for (const frame of this.unanswered.filter(({ number }) => number >= event.received)) this.socket.send(frame.message);
        this.#go(event);
        break;
      case "caption": this.on.caption(event); break;
      case "answer": this.on.answer(event); break;
      case "dropped": this.on.dropped(event); break;
      case "session.moved": this.on.moved(event); break;
      case "error":
        if (this.over || event.error?.code === "session_moves") break; // it ended meanwhile, or is resumed next
        this.over = this.explained = event.fatal;
        this.on.error(event);
        break;
      case "session.ended":
        this.over = this.explained = true;
        this.on.ended(event);
        break;
    }
  }

  #go(event) {
    this.retries = 0;
    this.started = true;
    this.#flush();
    if (this.ending) this.#send({ type: "session.end" });
    this.on.started(event);
  }

  #flush() {
    for (const { timestamp, message } of this.waiting.splice(0)) {
      this.socket.send(message);
      this.unanswered.push({ timestamp, message, number: this.sent++ });
    }
  }

  #send(message) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }
}
