// Requests to the endpoint that this page comes from.

/** The answer to a request.
 * @throws {Error} with the endpoint's own sentence where it refuses */
export async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The endpoint does not answer. Is it still running?");
  }
  if (response.ok) return response;
  const refusal = await response.json().catch(() => null);
  throw new Error(refusal?.error?.message ?? `The endpoint answered ${response.status}.`);
}

export async function postJson(path, body, signal) {
  const headers = { "content-type": "application/json" };
  return request(path, { method: "POST", headers, body: JSON.stringify(body), signal });
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
  const socket = new WebSocket(`${scheme}//${location.host}${path}`);
  socket.binaryType = "arraybuffer";
  return socket;
}
