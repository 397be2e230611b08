// Requests to the endpoint that this page comes from, with the visitor's key where it asks for one.

import { recall, remember } from "/web/dom.js";

let key = recall("sessionStorage", "api-key"); // forgotten with the tab

export function setKey(value) {
  key = value;
  remember("sessionStorage", "api-key", value);
}

/** The answer to a request.
 * @throws {Error} with the endpoint's own sentence and `status` where it refuses */
export async function request(path, options = {}) {
  let response;
  try {
    const headers = { ...options.headers, ...(key && { authorization: `Bearer ${key}` }) };
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The endpoint does not answer. Is it still running?");
  }
  if (response.ok) return response;
  const refusal = await response.json().catch(() => null);
  const reason = refusal?.error?.message ?? `The endpoint answered ${response.status}.`;
  throw Object.assign(new Error(reason), { status: response.status });
}

export async function postJson(path, body, signal) {
  const headers = { "content-type": "application/json" };
  return request(path, { method: "POST", headers, body: JSON.stringify(body), signal });
}

/** A URL for an element to load: elements send no key. */
export async function mediaUrl(path) {
  return key ? URL.createObjectURL(await (await request(path)).blob()) : path;
}

/** The JSON payloads of a stream of server-sent events. */
export async function* events(body) {
  const decoder = new TextDecoder();
  const reader = body.getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + decoder.decode(value, { stream: true })).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (!part.startsWith("data: ")) continue; // a comment keeps the connection open
      const payload = part.slice("data: ".length);
      if (payload === "[DONE]") return;
      yield JSON.parse(payload);
    }
  }
}

/** A WebSocket to a path of this endpoint. */
export function openSocket(path) {
  const scheme = location.protocol === "https:" ? "wss:" : "ws:";
  const protocols = key ? ["casa.live", `casa.key.${key}`] : []; // browsers can set no header here
  const socket = new WebSocket(`${scheme}//${location.host}${path}`, protocols);
  socket.binaryType = "arraybuffer";
  return socket;
}
