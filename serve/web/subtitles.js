// Captions as phrases and subtitle files: words about successive frames belong together.

const GAP_S = 0.8; // silence that ends a phrase: at 2 fps, a frame without words
const LONGEST_WORDS = 12;
const SHOWN_S = 2; // how long the last words of a phrase stand

/**
 * Put a caption into phrases in order of time.
 * @param {{start: number, until: number, text: string, captions: {time: number, text: string}[]}[]} phrases
 * @returns the phrase that has the words now
 */
export function addCaption(phrases, { time, text: said }) {
  const text = said.trim().replace(/\s+/g, " "); // an empty line would end a cue
  const after = phrases.findLastIndex((phrase) => phrase.start <= time);
  const last = phrases[after];
  const words = (last ? last.text.split(" ").length : 0) + text.split(" ").length;
  if (last && time >= last.until && time - last.until <= GAP_S && words <= LONGEST_WORDS) {
    last.text += ` ${text}`;
    last.until = time;
    last.captions.push({ time, text });
    return last;
  }
  const phrase = { start: time, until: time, text, captions: [{ time, text }] };
  phrases.splice(after + 1, 0, phrase);
  return phrase;
}

/** Start, end and text of each phrase. */
export function cues(phrases) {
  return phrases.map(({ start, until, text }, index) => {
    const next = phrases[index + 1]?.start ?? Infinity;
    return { start, end: Math.min(until + SHOWN_S, next), text };
  });
}

/** What was said of a phrase at a time, or "". */
export function saidAt(phrases, time) {
  const index = phrases.findLastIndex((phrase) => phrase.start <= time);
  if (index < 0 || time >= phrases[index].until + SHOWN_S) return "";
  return phrases[index].captions.filter((caption) => caption.time <= time).map(({ text }) => text).join(" ");
}

export function webVTT(phrases) {
  const parts = cues(phrases).map((cue) => `${stamp(cue.start, ".")} --> ${stamp(cue.end, ".")}\n${safe(cue.text)}\n`);
  return `WEBVTT\n\n${parts.join("\n")}`;
}

export function subRip(phrases) {
  const parts = cues(phrases).map(
    (cue, index) => `${index + 1}\n${stamp(cue.start, ",")} --> ${stamp(cue.end, ",")}\n${cue.text}\n`,
  );
  return parts.join("\n");
}

function stamp(seconds, point) {
  const ms = Math.round(seconds * 1000);
  const pad = (value, digits = 2) => String(value).padStart(digits, "0");
  const [h, m, s] = [Math.floor(ms / 3_600_000), Math.floor(ms / 60_000) % 60, Math.floor(ms / 1000) % 60];
  return `${pad(h)}:${pad(m)}:${pad(s)}${point}${pad(ms % 1000, 3)}`;
}

function safe(text) {
  return text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}
