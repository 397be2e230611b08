// One live-caption session over the WebSocket /v1/live.

import { openSocket } from "/web/api.js";

const WAITING = 8; // frames kept while the connection opens; older ones give way, as on the server

export class LiveSession {
  /**
   * @param {string} query what the captions should speak of
   * @param {{started: Function, caption: Function, answer: Function, dropped: Function, error: Function, ended: Function, closed: Function}} on
   */
  constructor(query, on) {
    this.on = on;
    this.waiting = [];
    this.started = false;
    this.ending = false;
    this.latest = -Infinity; // time of the frame pushed last
    this.socket = openSocket("/v1/live");
    this.socket.onopen = () => this.#send({ type: "session.start", query });
    this.socket.onmessage = (message) => this.#receive(JSON.parse(message.data));
    this.socket.onclose = () => this.on.closed();
  }

  get open() {
    return !this.ending && this.socket.readyState <= WebSocket.OPEN;
  }

  /** Send a frame: eight bytes of time (float64, little-endian), then the encoded picture. */
  push(timestamp, jpeg) {
    const message = new Uint8Array(8 + jpeg.byteLength);
    new DataView(message.buffer).setFloat64(0, timestamp, true);
    message.set(new Uint8Array(jpeg), 8);
    if (this.started) {
      this.socket.send(message);
      return;
    }
    this.waiting.push(message);
    if (this.waiting.length > WAITING) this.waiting.shift();
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
    this.ending = true;
    this.socket.onmessage = this.socket.onclose = this.socket.onopen = null;
    this.socket.close();
  }

  #receive(event) {
    switch (event.type) {
      case "session.started":
        this.started = true;
        for (const message of this.waiting.splice(0)) this.socket.send(message);
        if (this.ending) this.#send({ type: "session.end" });
        this.on.started(event);
        break;
      case "caption": this.on.caption(event); break;
      case "answer": this.on.answer(event); break;
      case "dropped": this.on.dropped(event); break;
      case "error": this.on.error(event); break;
      case "session.ended": this.on.ended(event); break;
    }
  }

  #send(message) {
    this.socket.send(JSON.stringify(message));
  }
}
