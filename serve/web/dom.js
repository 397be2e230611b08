// Small helpers for the page's elements.

export const $ = (id) => document.getElementById(id);

export function element(tag, kind, text = "") {
  const made = document.createElement(tag);
  if (kind) made.className = kind;
  if (text) made.textContent = text;
  return made;
}

/** A button that says what it does; `label` is for those who do not see its sign. */
export function button(kind, text, label, onClick) {
  const made = element("button", kind, text);
  made.type = "button";
  if (label) made.setAttribute("aria-label", label);
  if (label) made.title = label;
  made.addEventListener("click", onClick);
  return made;
}

/** Seconds as m:ss, with `digits` decimals. */
export function clock(seconds, digits = 1) {
  const minutes = Math.floor(seconds / 60);
  const rest = (seconds - minutes * 60).toFixed(digits);
  return `${minutes}:${rest.padStart(digits ? 3 + digits : 2, "0")}`;
}

/** Append to a list that scrolls, and stay at its end if it was there. */
export function keepingEnd(list, change) {
  const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
  change();
  if (atEnd) list.scrollTop = list.scrollHeight;
}

/** What a store of the browser holds; "" where the visitor allows none. */
export function recall(store, name) {
  try {
    return window[store].getItem(name) ?? "";
  } catch {
    return "";
  }
}

export function remember(store, name, value) {
  try {
    window[store].setItem(name, value);
  } catch {
    // It holds until the page is left.
  }
}

export const reducedMotion = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
