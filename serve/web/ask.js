// Questions about one picture, through the chat API, answered word by word.

import { snapshot } from "/web/frames.js";
import { element } from "/web/timeline.js";

const LONGEST_SIDE = 1024;
const TINY = 200;

export class AskBox {
  /** @param {HTMLVideoElement} video @param {() => string} modelName */
  constructor(video, modelName) {
    this.video = video;
    this.modelName = modelName;
    this.image = document.getElementById("picture");
    this.hint = document.getElementById("picture-hint");
    this.answers = document.getElementById("answer");
    this.button = document.getElementById("ask");
    this.question = document.getElementById("question");
    const drop = document.getElementById("picture-drop");
    document.getElementById("use-frame").addEventListener("click", () => this.#useFrame());
    document.getElementById("picture-file").addEventListener("change", (event) => this.#useFile(event.target.files[0]));
    document.getElementById("ask-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#ask(this.question.value.trim());
    });
    for (const kind of ["dragover", "dragleave", "drop"]) {
      drop.addEventListener(kind, (event) => {
        event.preventDefault();
        drop.classList.toggle("over", kind === "dragover");
        if (kind === "drop") this.#useFile(event.dataTransfer.files[0]);
      });
    }
  }

  #useFrame() {
    if (!this.video.videoWidth) {
      this.#say("Play a video first, or upload a picture.");
      return;
    }
    this.#show(snapshot(this.video, LONGEST_SIDE).toDataURL("image/png"));
  }

  #useFile(file) {
    if (!file) return;
    const reader = new FileReader();
    reader.onload = () => this.#show(reader.result);
    reader.readAsDataURL(file);
  }

  #show(uri) {
    this.image.onload = () => this.image.classList.toggle("tiny", this.image.naturalWidth < TINY);
    this.image.src = uri;
    this.image.hidden = false;
    this.hint.hidden = true;
  }

  async #ask(question) {
    if (this.image.hidden) this.#useFrame();
    if (this.image.hidden || !question) return;
    const entry = element("article", "newest");
    this.answers.querySelector(".newest")?.classList.remove("newest");
    const [asked, answer, account] = [element("q", "", question), element("p", ""), element("small", "")];
    entry.append(asked, answer, account);
    this.answers.append(entry);
    this.answers.scrollTop = -this.answers.scrollHeight;
    this.button.disabled = true;
    try {
      await this.#stream(question, answer, account);
    } catch (error) {
      answer.className = "problem";
      answer.textContent = error.message;
    } finally {
      this.button.disabled = false;
    }
  }

  async #stream(question, answer, account) {
    const began = performance.now();
    const content = [{ type: "image_url", image_url: { url: this.image.src } }, { type: "text", text: question }];
    const response = await fetch("/v1/chat/completions", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({
        model: this.modelName(), messages: [{ role: "user", content }],
        stream: true, stream_options: { include_usage: true },
      }),
    });
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const chunk of events(response.body)) {
      if (chunk.error) throw new Error(chunk.error.message);
      answer.textContent += chunk.choices[0]?.delta.content ?? "";
      if (chunk.usage) {
        const { prompt_tokens, completion_tokens, prompt_tokens_details: details } = chunk.usage;
        const elapsed = Math.round(performance.now() - began);
        account.textContent = `${elapsed} ms · ${prompt_tokens} text tokens in, ${completion_tokens} out · `
          + `${details.image_tokens} image tokens beside them`;
      }
    }
    if (!answer.textContent) answer.textContent = "(no words)";
  }

  #say(text) {
    this.hint.hidden = false;
    this.hint.textContent = text;
  }
}

/** The JSON payloads of a stream of server-sent events. */
async function* events(body) {
  const decoder = new TextDecoder();
  const reader = body.getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + decoder.decode(value, { stream: true })).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const payload = part.replace(/^data: /, "");
      if (payload === "[DONE]") return;
      yield JSON.parse(payload);
    }
  }
}
