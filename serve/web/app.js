// The live page: a video plays, two frames a second go to the model, its words appear as they are made.

import { AskBox } from "/web/ask.js";
import { FrameGrabber, jpegOf } from "/web/frames.js";
import { LiveSession } from "/web/live.js";
import { subRip, webVTT } from "/web/subtitles.js";
import { Timeline, clock, element } from "/web/timeline.js";

const FPS = 2; // what the models are trained with
const WORD_DELAY_MS = 90;
const PHRASE_WORDS = 9;
const PHRASE_GAP_S = 1.1; // silence after which the next words start a new caption
const FADE_AFTER_MS = 3200;
const LATENCIES = 15;
const TINY = 200; // pictures this small are shown pixel by pixel

const $ = (id) => document.getElementById(id);
const video = $("video");
const timeline = new Timeline($("strip"), (time) => seekTo(time));
const grabber = new FrameGrabber(video, FPS, onFrame);

let model = "";
let session = null;
let camera = null; // the MediaStream while the camera is on
let sending = Promise.resolve(); // keeps frames in order while they are encoded
let latencies = [];
let seen = 0;
let dropped = 0;
let phrase = { words: 0, last: -Infinity };
let fade = 0;
let said = []; // time and text of every caption that has words

// -- the session ----------------------------------------------------------------------------------------------

function openSession() {
  setState("connecting", "Connecting");
  showImagesKept(0);
  const mine = new LiveSession($("query").value.trim(), {
    started: () => {
      setState("live", "Live");
      $("prompt-send").disabled = false;
    },
    caption: onCaption,
    answer: onAnswer,
    dropped: (event) => lost(event.timestamp, "dropped: the model was busy"),
    error: (event) => onError(event),
    ended: (event) => note(`${event.frames} frames, ${event.tokens} tokens said.`),
    closed: () => {
      if (session !== mine) return;
      session = null;
      $("prompt-send").disabled = true;
      if (document.body.dataset.state === "error") return;
      setState("idle", "Ready");
    },
  });
  session = mine;
}

function restart(time = 0) {
  session?.drop();
  session = null;
  $("prompt-send").disabled = true;
  [latencies, seen, dropped, said] = [[], 0, 0, []];
  $("save-vtt").disabled = $("save-srt").disabled = true;
  phrase = { words: 0, last: -Infinity };
  for (const [id, value] of [["latency", "–"], ["text-tokens", "0"], ["frames", "0"], ["dropped", ""]]) {
    $(id).textContent = value;
  }
  showImagesKept(0);
  $("caption").replaceChildren();
  $("transcript").replaceChildren();
  timeline.clear(Number.isFinite(grabber.length) ? grabber.length : 0, 1 / FPS);
  grabber.rewind(time);
  setState("idle", "Ready");
}

function onFrame(timestamp, canvas) {
  if (!session?.open) openSession();
  const target = session;
  timeline.addFrame(timestamp, canvas);
  sending = sending
    .then(() => jpegOf(canvas))
    .then((jpeg) => target.open && target.push(timestamp, jpeg))
    .catch((error) => note(`A frame could not be sent: ${error.message}`, "problem"));
}

function onCaption(event) {
  seen += 1;
  latencies = [...latencies, event.latency_ms].slice(-LATENCIES);
  const median = [...latencies].sort((a, b) => a - b)[latencies.length >> 1];
  $("latency").textContent = median < 10 ? median.toFixed(1) : Math.round(median);
  $("text-tokens").textContent = event.text_tokens;
  showImagesKept(1); // the latest frame's keys and values; all earlier ones are gone
  $("frames").textContent = seen;
  if (!event.text) return;
  said.push({ time: event.timestamp, text: event.text });
  $("save-vtt").disabled = $("save-srt").disabled = false;
  timeline.addWords(event.timestamp, event.text);
  showWords(event.timestamp, event.text);
  const row = element("li", "");
  row.append(
    element("time", "", clock(event.timestamp)),
    element("span", "", event.text),
    element("small", "", `${Math.round(event.latency_ms)} ms`),
  );
  append(row);
}

function onAnswer(event) {
  const row = element("li", "answered");
  row.append(element("time", "", clock(event.timestamp)), element("q", "", event.query), element("span", "", event.text || "(nothing)"));
  append(row);
}

function onError(event) {
  if (event.timestamp !== null) timeline.addLost(event.timestamp, event.error.message);
  if (!event.fatal) {
    note(event.error.message, "problem");
    return;
  }
  if (event.error.code === "session_full" || event.error.code === "frame_limit") {
    note("The session was full; a new one goes on from here.");
  } else if (event.error.code !== "session_idle") {
    note(event.error.message, "problem");
    setState("error", "Stopped");
    video.pause();
  }
}

function showImagesKept(count) {
  $("images-kept").textContent = count;
  $("images-unit").textContent = count === 1 ? "frame" : "frames";
}

function lost(timestamp, reason) {
  dropped += 1;
  $("dropped").textContent = `${dropped} dropped`;
  timeline.addLost(timestamp, reason);
}

// -- words ----------------------------------------------------------------------------------------------------

function showWords(timestamp, text) {
  const caption = $("caption");
  const words = text.split(/\s+/).filter(Boolean);
  if (timestamp - phrase.last > PHRASE_GAP_S || phrase.words + words.length > PHRASE_WORDS) {
    caption.replaceChildren();
    phrase.words = 0;
  }
  const line = caption.firstChild ?? caption.appendChild(element("span", "line"));
  words.forEach((word, index) => {
    const span = element("span", "", `${word} `);
    span.style.animationDelay = `${index * WORD_DELAY_MS}ms`;
    line.append(span);
  });
  phrase = { words: phrase.words + words.length, last: timestamp };
  caption.classList.remove("fading");
  clearTimeout(fade);
  fade = setTimeout(() => !video.paused && caption.classList.add("fading"), FADE_AFTER_MS);
}

function note(text, kind = "note") {
  append(element("li", kind, text));
}

function append(row) {
  const list = $("transcript");
  const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
  list.append(row);
  if (atEnd) list.scrollTop = list.scrollHeight;
}

function setState(state, text) {
  document.body.dataset.state = state;
  if ($("status-text").textContent !== text) $("status-text").textContent = text;
}

// -- what is watched ------------------------------------------------------------------------------------------

function watch(url, { query = "", play = true } = {}) {
  stopCamera();
  video.pause();
  video.loop = false;
  if (video.src.startsWith("blob:")) URL.revokeObjectURL(video.src);
  video.src = url;
  if (query) $("query").value = query;
  $("placeholder").hidden = true;
  if (play && !matchMedia("(prefers-reduced-motion: reduce)").matches) start();
}

function start() {
  video.play().catch((error) => {
    if (error.name === "AbortError") return; // another video was chosen meanwhile
    note(`This video cannot be played here: ${error.message}`, "problem");
    setState("error", "Cannot play");
  });
}

async function startCamera() {
  try {
    camera = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 640 } }, audio: false });
  } catch (error) {
    note(`The camera cannot be used: ${error.message}`, "problem");
    return;
  }
  video.removeAttribute("src");
  video.srcObject = camera;
  video.classList.add("mirrored");
  $("placeholder").hidden = true;
  $("camera").textContent = "Stop the camera";
  start();
}

function stopCamera() {
  if (!camera) return;
  for (const track of camera.getTracks()) track.stop();
  camera = null;
  video.srcObject = null;
  video.classList.remove("mirrored");
  $("camera").textContent = "Start the camera";
  session?.end();
}

function seekTo(time) {
  if (Number.isFinite(grabber.length)) grabber.seek(Math.min(Math.max(0, time), grabber.length - 0.01));
}

async function loadClips() {
  const { clips } = await (await fetch("/demo/clips")).json();
  const buttons = clips.map((clip) => {
    const button = element("button", "button", clip.title);
    button.type = "button";
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => {
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      $("query").value = clip.query;
      watch(clip.url);
    });
    return button;
  });
  $("clips").replaceChildren(...buttons);
  if (buttons.length) buttons[0].click();
  else $("clips").append(element("span", "hint", "This endpoint has no demo clips: choose a video of your own."));
}

// -- wiring ---------------------------------------------------------------------------------------------------

function boundSeeking() {
  const known = Number.isFinite(grabber.length);
  $("seek").max = known ? grabber.length : 1;
  $("seek").disabled = !known;
}

video.addEventListener("loadedmetadata", () => {
  video.classList.toggle("tiny", video.videoWidth < TINY);
  $("play").disabled = false;
  grabber.begin();
  boundSeeking();
  restart(0);
});
video.addEventListener("durationchange", boundSeeking); // a file may tell its length bit by bit
video.addEventListener("latestart", () => {
  boundSeeking();
  restart(0);
});
video.addEventListener("play", () => {
  document.body.classList.add("playing");
  $("play").setAttribute("aria-label", "Pause");
  grabber.look(grabber.now); // the picture that was there before it began to move
});
video.addEventListener("pause", () => {
  document.body.classList.remove("playing");
  $("play").setAttribute("aria-label", "Play");
});
video.addEventListener("seeking", () => {
  if (grabber.now < grabber.last / FPS) restart(grabber.now);
});
video.addEventListener("ended", () => sending.then(() => session?.end()));
video.addEventListener("error", () => {
  if (!video.getAttribute("src")) return;
  note("This video cannot be played by this browser.", "problem");
  setState("error", "Cannot play");
});
$("play").addEventListener("click", () => (video.paused ? start() : video.pause()));
$("seek").addEventListener("input", () => seekTo(Number($("seek").value)));
$("query-form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (camera) {
    session?.end();
    session = null;
    note("New question to the captions.");
  } else if (video.src) {
    grabber.seek(0);
    restart(0);
    start();
  }
});
$("prompt-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const query = $("prompt").value.trim();
  if (!query) return;
  if (session?.ask(query)) $("prompt").value = "";
  else note("No stream is running that could be asked: play something first.", "problem");
});
for (const [id, file, write] of [["save-vtt", "captions.vtt", webVTT], ["save-srt", "captions.srt", subRip]]) {
  $(id).addEventListener("click", () => {
    const link = element("a", "");
    link.href = URL.createObjectURL(new Blob([write(said)], { type: "text/plain" }));
    link.download = file;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
}
$("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  if (file) watch(URL.createObjectURL(file));
});
$("camera").addEventListener("click", () => (camera ? stopCamera() : startCamera()));

const tabs = [...document.querySelectorAll("[role=tab]")];
const select = (tab) => {
  for (const other of tabs) {
    const chosen = other === tab;
    other.setAttribute("aria-selected", String(chosen));
    other.tabIndex = chosen ? 0 : -1;
    $(other.getAttribute("aria-controls")).hidden = !chosen;
  }
};
tabs.forEach((tab, index) => {
  tab.addEventListener("click", () => select(tab));
  tab.addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!move) return;
    const next = tabs[(index + move + tabs.length) % tabs.length];
    select(next);
    next.focus();
  });
});

function follow() {
  const time = grabber.now;
  timeline.moveTo(time);
  if (document.activeElement !== $("seek") || !video.paused) $("seek").value = time;
  const total = Number.isFinite(grabber.length) ? ` / ${clock(grabber.length)}` : "";
  const shown = `${clock(time)}${total}`;
  if ($("clock").value !== shown) $("clock").value = shown;
  requestAnimationFrame(follow);
}

new AskBox(video, () => model);
requestAnimationFrame(follow);
model = (await (await fetch("/v1/models")).json()).data[0].id;
$("model").textContent = model;
await loadClips();
