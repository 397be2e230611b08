// The page: what is watched, what becomes of it, and questions about pictures, wired together.

import { mediaUrl, request, setKey } from "/web/api.js";
import { AskView } from "/web/ask.js";
import { Captions } from "/web/captions.js";
import { Numbers } from "/web/charts.js";
import { $, clock, element, recall, remember } from "/web/dom.js";
import { FrameGrabber } from "/web/frames.js";
import { Overlay } from "/web/overlay.js";
import { Player, offerClips } from "/web/player.js";
import { subRip, webVTT } from "/web/subtitles.js";
import { tabs } from "/web/tabs.js";
import { Timeline } from "/web/timeline.js";
import { Transcript } from "/web/transcript.js";

const FPS = 2; // what the models are trained with

const video = $("video");
const timeline = new Timeline($("strip"), (time) => seekTo(time));
const transcript = new Transcript($("transcript"), (time) => seekTo(time));
const overlay = new Overlay($("caption"), video);
const numbers = new Numbers();
const captions = new Captions({ timeline, transcript, overlay, numbers }, setState, () => video.pause());
const grabber = new FrameGrabber(video, FPS, (timestamp, canvas) => {
  replay(false);
  return captions.frame(timestamp, canvas);
});
const player = new Player(video, {
  onNew: startOver,
  onLoaded: () => {
    grabber.begin();
    boundSeeking();
    startOver();
  },
  onStopped: () => captions.end(),
  onProblem: (reason) => {
    transcript.note(reason, "problem");
    setState("error", "Cannot play");
  },
});
let replaying = false; // what is on the screen was captioned before
let streaming = "Ready";

function setState(state, text) {
  document.body.dataset.state = state;
  streaming = text;
  showStatus();
}

function replay(known) {
  replaying = known;
  showStatus();
}

function showStatus() {
  const text = replaying ? "Playback" : streaming;
  if ($("status-text").textContent !== text) $("status-text").textContent = text;
}

const length = () => (Number.isFinite(grabber.length) ? grabber.length : 0); // 0: not known

function startOver() {
  grabber.forget();
  replay(false);
  captions.clear(length(), 1 / FPS);
}

// -- the video's time -----------------------------------------------------------------------------------------

function seekTo(time) {
  if (length()) grabber.seek(Math.min(Math.max(0, time), length() - 0.01));
}

function boundSeeking() {
  $("seek").max = length() || 1;
  $("seek").disabled = !length();
}

video.addEventListener("durationchange", boundSeeking); // a file may tell its length bit by bit
video.addEventListener("latestart", () => {
  boundSeeking();
  startOver();
});
video.addEventListener("play", () => grabber.look(grabber.now)); // the picture that was there before it began to move
// Each half second is captioned once: what was captioned is shown again, with its words.
video.addEventListener("seeking", () => {
  overlay.clear();
  replay(grabber.has(grabber.now));
});
video.addEventListener("ended", () => captions.end());
$("seek").addEventListener("input", () => seekTo(Number($("seek").value)));
$("strip").addEventListener("keydown", (event) => {
  const to = { ArrowLeft: grabber.now - 1 / FPS, ArrowRight: grabber.now + 1 / FPS, Home: 0, End: length() }[event.key];
  if (to === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  seekTo(to);
});
document.addEventListener("keydown", (event) => {
  const elsewhere = event.target !== document.body && event.target !== $("strip") && event.target !== $("transcript");
  if (event.key !== " " || elsewhere || $("view-live").hidden) return;
  event.preventDefault(); // the page would scroll
  player.toggle();
});

function follow() {
  const time = grabber.now;
  timeline.moveTo(time);
  if (replaying) overlay.replay(transcript.phrases, time);
  if (document.activeElement !== $("seek") || !video.paused) $("seek").value = time;
  const total = length() ? ` / ${clock(length())}` : "";
  const shown = `${clock(Math.max(0, time))}${total}`;
  if ($("clock").value !== shown) $("clock").value = shown;
  requestAnimationFrame(follow);
}

// -- what is asked and kept -----------------------------------------------------------------------------------

function submitOnEnter(field) {
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    field.form.requestSubmit();
  });
}

submitOnEnter($("query"));
submitOnEnter($("question"));
$("query-form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (player.stream) {
    captions.end();
    transcript.note("Captioned anew from here.");
  } else if (player.loaded) {
    grabber.seek(0);
    startOver();
    player.play();
  }
});
$("prompt-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const query = $("prompt").value.trim();
  if (!query) return;
  if (captions.ask(query)) $("prompt").value = "";
  else transcript.note("No stream is running that could be asked: play something first.", "problem");
});
for (const [id, file, write] of [["save-vtt", "captions.vtt", webVTT], ["save-srt", "captions.srt", subRip]]) {
  $(id).addEventListener("click", () => {
    const link = element("a", "");
    link.href = URL.createObjectURL(new Blob([write(transcript.phrases)], { type: "text/plain" }));
    link.download = file;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
}
$("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  if (file) player.watchFile(file);
  event.target.value = ""; // the same file may be chosen again
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  $("screen").addEventListener(kind, (event) => {
    event.preventDefault();
    $("screen").classList.toggle("over", kind === "dragover");
    const [file] = kind === "drop" ? event.dataTransfer.files : [];
    if (!file) return;
    chooseSource($("tab-file"));
    player.watchFile(file);
  });
}
// A file that is dropped beside its place would take the page away, and all that was said.
for (const kind of ["dragover", "drop"]) document.addEventListener(kind, (event) => event.preventDefault());

// -- the page -------------------------------------------------------------------------------------------------

const chooseSource = tabs($("sources"));
tabs($("views"), (tab) => {
  if (tab.id === "tab-ask" && !player.stream) video.pause(); // a camera is captioned while pictures are asked about
});
$("captions-below").checked = recall("localStorage", "captions-below") === "yes";
$("captions-below").addEventListener("change", placeCaptions);
function placeCaptions() {
  const below = $("captions-below").checked;
  remember("localStorage", "captions-below", below ? "yes" : "no");
  $("screen").classList.toggle("captions-below", below);
}
placeCaptions();
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || !$("settings").open) return;
  $("settings").open = false;
  $("settings").querySelector("summary").focus();
});
document.addEventListener("click", (event) => {
  if (!$("settings").contains(event.target)) $("settings").open = false;
});

const askView = new AskView(video);
requestAnimationFrame(follow);

function offerModels(models) {
  $("model").textContent = $("model").title = models[0].id;
  $("models").replaceChildren(...models.map((model) => new Option(model.id)));
  $("models").hidden = models.length === 1;
  $("model").hidden = models.length > 1;
  $("models").onchange = (event) => {
    const model = models[event.target.selectedIndex];
    $("model").textContent = $("model").title = captions.model = model.id;
    askView.use(model);
    captions.end(); // what comes next is for a session of its own
    transcript.note(`${model.id} answers from here on.`);
  };
}

async function begin() {
  const models = (await (await request("/v1/models")).json()).data;
  offerModels(models);
  await askView.begin(models[0]);
  offerClips((await (await request("/demo/clips")).json()).clips, async (clip) => {
    $("query").value = clip.query;
    player.watch(await mediaUrl(clip.url));
  });
}

async function tryToBegin() {
  try {
    await begin();
    setState("idle", "Ready");
  } catch (error) {
    setState("error", error.status === 401 ? "Needs a key" : "No answer");
    if (error.status !== 401) {
      transcript.note(error.message, "problem");
      return;
    }
    $("key-hint").textContent = error.message;
    $("settings").open = true;
    $("api-key").focus();
  }
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey($("api-key").value.trim());
  $("settings").open = false;
  tryToBegin();
});
tryToBegin();
