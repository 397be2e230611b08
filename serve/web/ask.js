// Questions about pictures through the chat API: several pictures, several turns, answers word by word.

import { events, mediaUrl, postJson, request } from "/web/api.js";
import { $, button, element, keepingEnd } from "/web/dom.js";
import { jpegOf, snapshot } from "/web/frames.js";
import { prepared } from "/web/pictures.js";
import { Tray } from "/web/tray.js";

const FRAME_SIDE = 1024;
const IMAGES = 16; // where the endpoint does not state its limits
const BODY_BYTES = 20 * 1024 * 1024;
const BASE64 = 4 / 3;
const MARGIN = 0.9; // of a body, for pictures; the rest is text

export class AskView {
  /** @param {HTMLVideoElement} video */
  constructor(video) {
    this.video = video;
    this.messages = [];
    this.running = null; // stops the answer that is being made
    this.tray = new Tray($("tray"), () => this.#say(""));
    $("ask-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#ask($("question").value.trim());
    });
    $("stop").addEventListener("click", () => this.running?.abort());
    $("clear").addEventListener("click", () => this.#clear());
    $("use-frame").addEventListener("click", () => this.#addFrame());
    $("picture-file").addEventListener("change", (event) => {
      this.#addFiles([...event.target.files]);
      event.target.value = "";
    });
    this.#takeDropped($("talk"));
    document.addEventListener("paste", (event) => {
      const files = [...event.clipboardData.files];
      if ($("view-ask").hidden || !files.length) return;
      event.preventDefault();
      this.#addFiles(files);
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !$("view-ask").hidden) this.running?.abort();
    });
  }

  /** @param {{id: string, limits?: object}} model as /v1/models lists it */
  async begin(model) {
    this.use(model);
    await this.#offerExamples();
  }

  /** Ask this model from now on; the conversation goes on. */
  use(model) {
    this.model = model;
    this.images = model.limits?.images_per_request ?? IMAGES;
    this.bodyBytes = model.limits?.body_bytes ?? BODY_BYTES;
    const { image_pixels: each = Infinity, request_pixels: all = Infinity } = model.limits ?? {};
    this.pixels = Math.min(each, all / this.images);
  }

  // -- pictures -----------------------------------------------------------------------------------------------

  #takeDropped(place) {
    for (const kind of ["dragover", "dragleave", "drop"]) {
      place.addEventListener(kind, (event) => {
        if (!event.dataTransfer.types.includes("Files")) return;
        event.preventDefault();
        place.classList.toggle("over", kind === "dragover");
        if (kind === "drop") this.#addFiles([...event.dataTransfer.files]);
      });
    }
  }

  async #addFrame() {
    if (!this.video.videoWidth) {
      this.#say("There is no video yet: play one under “Live captions” first.", true);
      return;
    }
    await this.#addFiles([await jpegOf(snapshot(this.video, FRAME_SIDE))], "the video's frame");
  }

  async #addFiles(blobs, name = "") {
    const problems = [];
    for (const blob of blobs) {
      if (this.#pictures() >= this.images) {
        problems.push(`A conversation holds at most ${this.images} pictures: remove some, or start a new one.`);
        break;
      }
      try {
        this.tray.add(await prepared(blob, name || blob.name || "the pasted picture", this.#bytesEach(), this.pixels));
      } catch (error) {
        problems.push(error.message);
      }
    }
    this.#say(problems.join(" "), problems.length > 0);
  }

  /** How many pictures the next request would hold. */
  #pictures() {
    const asked = this.messages.flatMap(({ content }) => (Array.isArray(content) ? content : []));
    return asked.filter(({ type }) => type === "image_url").length + this.tray.pictures.length;
  }

  #bytesEach() {
    return Math.floor((this.bodyBytes * MARGIN) / BASE64 / this.images);
  }

  async #offerExamples() {
    const { pictures } = await (await request("/demo/pictures")).json();
    const offers = pictures.map(({ url, question }) => {
      const offer = button("example", "", "", async () => {
        const blob = await (await request(url)).blob();
        await this.#addFiles([blob], "a held-out sample");
        $("question").value = question;
        $("question").focus();
      });
      const image = element("img", "");
      mediaUrl(url).then((own) => (image.src = own));
      image.alt = "";
      offer.append(image, element("span", "", question));
      return offer;
    });
    $("examples").replaceChildren(...offers);
    if (pictures.length) $("question").placeholder = `Ask about the pictures: “${pictures[0].question}”`;
  }

  // -- turns --------------------------------------------------------------------------------------------------

  async #ask(question) {
    if (!question || this.running) return;
    const pictures = this.tray.take();
    const images = pictures.map(({ url }) => ({ type: "image_url", image_url: { url } }));
    const asked = { role: "user", content: [...images, { type: "text", text: question }] };
    const turn = this.#show(question, pictures);
    const { messages } = this; // of this conversation, whatever is begun meanwhile
    $("question").value = "";
    this.#busy(new AbortController());
    try {
      const answer = await this.#stream([...messages, asked], turn);
      messages.push(asked, { role: "assistant", content: answer });
    } catch (error) {
      turn.entry.classList.add("failed");
      turn.account.textContent = error.message;
      if (!$("question").value) $("question").value = question; // nothing of the visitor's is lost
      for (const picture of pictures) this.tray.add(picture);
      this.#say("The question was not answered; it is back in the box.", true);
      turn.account.scrollIntoView({ block: "nearest" });
    } finally {
      this.#busy(null);
      turn.entry.setAttribute("aria-busy", "false");
      turn.entry.classList.remove("newest");
    }
  }

  /** @returns {Promise<string>} the answer, as far as it came where it was stopped */
  async #stream(messages, { answer, account }) {
    const began = performance.now();
    const body = { model: this.model.id, messages, stream: true, stream_options: { include_usage: true } };
    const { signal } = this.running;
    let cut = false;
    try {
      const response = await postJson("/v1/chat/completions", body, signal);
      for await (const chunk of events(response.body)) {
        if (chunk.error) throw new Error(chunk.error.message);
        const words = chunk.choices[0]?.delta.content;
        if (words) keepingEnd($("log"), () => (answer.textContent += words));
        cut ||= chunk.choices[0]?.finish_reason === "length";
        if (chunk.usage) account.textContent = costs(chunk.usage, performance.now() - began);
      }
      if (cut) account.textContent += " · cut at the longest answer";
      if (!answer.textContent) account.textContent = `The model said nothing. ${account.textContent}`;
    } catch (error) {
      if (!signal.aborted) throw error;
      account.textContent = "Stopped.";
    }
    return answer.textContent;
  }

  #show(question, pictures) {
    $("welcome").hidden = true;
    const entry = element("article", "turn newest");
    entry.setAttribute("aria-busy", "true"); // read aloud once it is whole
    const shown = element("div", "shown");
    pictures.forEach(({ url, name }) => {
      const image = element("img", "");
      image.src = url;
      image.alt = name;
      shown.append(image);
    });
    const [answer, account] = [element("p", "answer"), element("small", "account")];
    const copy = button("button small copy", "Copy", "Copy this answer", () => this.#copy(answer.textContent));
    const foot = element("div", "row foot");
    foot.append(account, copy);
    entry.append(shown, element("p", "question", question), answer, foot);
    $("log").append(entry);
    $("log").scrollTop = $("log").scrollHeight;
    return { entry, answer, account };
  }

  async #copy(text) {
    try {
      await navigator.clipboard.writeText(text);
      this.#say("Copied.");
    } catch {
      this.#say("The browser does not let this page copy: select the words instead.", true);
    }
  }

  #busy(running) {
    this.running = running;
    const [shown, hidden] = running ? [$("stop"), $("ask")] : [$("ask"), $("stop")];
    const focused = document.activeElement === hidden;
    shown.hidden = false;
    hidden.hidden = true;
    if (focused) shown.focus(); // one stands in the other's place
    $("clear").disabled = !running && !this.messages.length && !$("log").querySelector(".turn");
  }

  #clear() {
    this.running?.abort();
    this.messages = [];
    for (const turn of $("log").querySelectorAll(".turn")) turn.remove();
    this.tray.take();
    $("welcome").hidden = false;
    $("clear").disabled = true;
    $("question").focus();
    this.#say("A new conversation.");
  }

  #say(text, problem = false) {
    $("ask-status").textContent = text;
    $("ask-status").classList.toggle("problem", problem);
  }
}

function costs({ prompt_tokens: inward, completion_tokens: outward, prompt_tokens_details: details }, elapsedMs) {
  const beside = details?.image_tokens === undefined ? "" : ` · ${details.image_tokens} image tokens beside them`;
  return `${Math.round(elapsedMs)} ms · ${inward} text tokens in, ${outward} out${beside}`;
}
