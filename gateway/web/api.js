// The gateway's public API, and nothing else. The key lives in this variable and is written nowhere.
let key = "";

// Where the gateway is: beside the page, also behind a proxy that puts it under a path of its own.
export const BASE = new URL(".", location.href).href.replace(/\/$/, "");

let askForKey = async () => null;

export const hasKey = () => key !== "";

// `ask(problem)` resolves with a key, or null when the person would not give one.
export function onKeyNeeded(ask) {
  askForKey = ask;
}

// An error as the gateway tells it: problem+json, or OpenAI's object on /v1.
export class Problem extends Error {
  constructor(status, body, retryAfter) {
    const told = body?.error ?? body ?? {};
    super(told.detail ?? told.message ?? `HTTP ${status}`);
    this.status = status;
    this.title = told.title ?? told.type ?? `HTTP ${status}`;
    this.code = told.code ?? "";
    this.param = told.param ?? null;
    this.requestId = told.request_id ?? "";
    this.retryAfter = retryAfter ?? null;
  }
}

// The connection broke: before an answer, or in the middle of one.
export class Lost extends Error {}

export async function call(path, { method = "GET", body, signal, requestId } = {}) {
  for (;;) {
    const headers = {};
    if (method !== "GET") headers["content-type"] = "application/json";
    if (requestId) headers["x-request-id"] = requestId;
    if (key) headers.authorization = `Bearer ${key}`;
    const response = await reach(path, {
      method,
      headers,
      signal,
      body: body && JSON.stringify(body),
      cache: "no-store", // answers are not for the disk either
      redirect: "error",
    });
    if (response.ok) return response;
    const problem = await problemOf(response);
    if (response.status !== 401) throw problem;
    const given = await askForKey(problem);
    if (given === null) throw problem;
    key = given;
  }
}

// Asks, with no key and no opinion on the status. Throws Lost when there is no answer.
export async function reach(path, options) {
  try {
    return await fetch(BASE + path, options);
  } catch (error) {
    throw lost(error);
  }
}

// What broke in the middle, as Lost; what the person stopped stays what it is.
function lost(error) {
  return error.name === "AbortError" ? error : new Lost(error.message, { cause: error });
}

// The body of an answer. A proxy's page of HTML is no answer of the gateway's: Lost, as when it breaks off.
export async function jsonOf(response) {
  try {
    return await response.json();
  } catch (error) {
    throw lost(error);
  }
}

async function problemOf(response) {
  const body = await response.json().catch(() => null);
  return new Problem(response.status, body, response.headers.get("retry-after"));
}

export const getJson = async (path, options) => jsonOf(await call(path, options));

// A caller's own id, so that "answer now" can name the request before its first event.
export function newRequestId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return `page-${[...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

const BUSY_MS = 8; // half a frame: then the browser may paint and take clicks

// Server-sent events, as they come, in batches. Ends at [DONE]; throws Lost when it ends before, or is none of ours.
export async function* eventBatches(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let since = performance.now();
  for (;;) {
    const { value, done } = await read(reader);
    if (done) throw new Lost("the stream ended early");
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    const events = parts.map(dataOf).filter((data) => data !== null);
    const last = events.indexOf("[DONE]");
    yield (last < 0 ? events : events.slice(0, last)).map(parsed);
    if (last >= 0) return;
    if (performance.now() - since > BUSY_MS) {
      await aMoment();
      since = performance.now();
    }
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    throw lost(error);
  }
}

function parsed(data) {
  try {
    return JSON.parse(data);
  } catch (error) {
    throw lost(error);
  }
}

// The data of one event; null for a comment, which keeps the connection alive.
function dataOf(block) {
  const lines = block.split("\n").filter((line) => line.startsWith("data: "));
  return lines.length ? lines.map((line) => line.slice(6)).join("\n") : null;
}

function aMoment() {
  const { port1, port2 } = new MessageChannel();
  return new Promise((resolve) => {
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}
