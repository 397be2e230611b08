// Captions as subtitle files: words that follow one another closely are one cue.

const GAP_S = 0.8; // silence after which the next words start a new cue: a frame without words, at 2 fps
const LONGEST_WORDS = 12;
const SHOWN_S = 2; // how long the last words of a cue stand

/** @param {{time: number, text: string}[]} captions in order */
export function cues(captions) {
  const found = [];
  for (const { time, text: said } of captions) {
    const text = said.trim().replace(/\s+/g, " "); // an empty line would end the cue
    const last = found.at(-1);
    const words = text.split(/\s+/).length;
    if (last && time - last.until <= GAP_S && last.words + words <= LONGEST_WORDS) {
      last.text += ` ${text}`;
      last.words += words;
      last.until = time;
    } else {
      found.push({ start: time, until: time, text, words });
    }
  }
  return found.map(({ start, until, text }, index) => {
    const next = found[index + 1]?.start ?? Infinity;
    return { start, end: Math.min(until + SHOWN_S, next), text };
  });
}

export function webVTT(captions) {
  const parts = cues(captions).map((cue) => `${stamp(cue.start, ".")} --> ${stamp(cue.end, ".")}\n${safe(cue.text)}\n`);
  return `WEBVTT\n\n${parts.join("\n")}`;
}

export function subRip(captions) {
  const parts = cues(captions).map(
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
