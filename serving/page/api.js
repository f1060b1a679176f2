// Requests to the server that the page came from.

import { askForKey } from "./key.js";

let key = "";

/** Whether the server has asked for a key. */
export const usesKey = () => key !== "";

/**
 * The answer to GET, or to POST where there is a body.
 *
 * Throws an Error whose message is the sentence of the server's error.
 */
export async function ask(path, body, signal) {
  return (await respond(path, body, signal)).json();
}

/** The values of a stream of server-sent events; throws if it does not come to its end. */
export async function* stream(path, body, signal) {
  const response = await respond(path, body, signal);
  let kept = "";
  let isWhole = false;
  for await (const text of pieces(response.body.pipeThrough(new TextDecoderStream()))) {
    const events = (kept + text).split("\n\n");
    kept = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") {
        isWhole = true;
        continue;
      }
      const value = JSON.parse(data);
      if (value.error) throw new Error(value.error.message);
      yield value;
    }
  }
  if (!isWhole) throw new Error("the answer broke off; try again");
}

// Not every browser can iterate over a stream.
async function* pieces(readable) {
  const reader = readable.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function respond(path, body, signal) {
  for (;;) {
    const tried = key;
    const response = await send(path, body, signal);
    if (response.ok) return response;
    const message = await sentence(response);
    if (response.status !== 401) throw new Error(message);
    if (tried === key) {
      const given = await askForKey(tried ? message : "");
      if (given === null) throw new Error(message);
      key = given;
    }
  }
}

async function send(path, body, signal) {
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  const options = { headers, signal, cache: "no-store" };
  if (body !== undefined) {
    options.method = "POST";
    options.body = JSON.stringify(body);
    headers["content-type"] = "application/json";
  }
  try {
    return await fetch(path, options);
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Error("the server does not answer; see whether it runs, and try again");
  }
}

async function sentence(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered with status ${response.status}`;
  }
}
