// The request as it would be made from a shell or from Python. The key is never in it, only its variable.
import { BASE } from "./api.js";
import { copyButton, h } from "./dom.js";

const NAMES = ["none", "minimal", "low", "medium", "high", "xhigh"];
const CHAT = new Set(["temperature", "top_p", "seed", "max_tokens"]); // that the SDK has as arguments

const shellQuoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

export function curl(base, request, closed) {
  const key = closed ? ` \\\n  -H "Authorization: Bearer $GATEWAY_API_KEY"` : "";
  const body = shellQuoted(JSON.stringify(request));
  return `curl -N ${base}/thinking -H 'content-type: application/json'${key} \\\n  -d ${body}`;
}

export function httpx(base, request, closed) {
  const plain = { ...request, stream: false };
  const auth = closed ? `{"Authorization": f"Bearer {os.environ['GATEWAY_API_KEY']}"}` : "{}";
  return [
    ...(closed ? ["import os", ""] : []),
    "import httpx",
    "",
    `request = ${python(plain)}`,
    `headers = ${auth}`,
    `answer = httpx.post("${base}/thinking", json=request, headers=headers, timeout=600)`,
    "answer.raise_for_status()",
    'print(answer.json()["reasoning"]["text"])',
    'print(answer.json()["answer"])',
  ].join("\n");
}

// Chat completions with OpenAI's SDK. `samples`, checks and confidence are of /thinking only.
export function openai(base, request, closed, model) {
  const { question, messages, thinking_depth: depth, samples, validate, confidence, early_exit, stream, ...rest } = request;
  const named = Object.entries(rest).filter(([name]) => CHAT.has(name));
  const extra = Object.fromEntries(Object.entries(rest).filter(([name]) => !CHAT.has(name) && name !== "model"));
  const options = [
    ...named.map(([name, value]) => `    ${name}=${python(value)},`),
    ...(depth === undefined ? [] : [`    reasoning_effort="${NAMES[depth]}",`]),
    ...(Object.keys(extra).length ? [`    extra_body=${python(extra)},`] : []),
  ];
  return [
    ...(closed ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `key = ${closed ? 'os.environ["GATEWAY_API_KEY"]' : '"none"'}`,
    `client = OpenAI(base_url="${base}/v1", api_key=key)`,
    "answer = client.chat.completions.create(",
    `    model=${python(request.model ?? model)},`,
    `    messages=${python(messages ?? [{ role: "user", content: question }])},`,
    ...options,
    ")",
    'print(answer.choices[0].message.model_dump().get("reasoning"))',
    "print(answer.choices[0].message.content)",
  ].join("\n");
}

// A value as Python writes it. JSON's strings are Python's, but for lone surrogates, which JSON escapes.
export function python(value) {
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (typeof value === "object") {
    const pairs = Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${python(item)}`);
    return `{${pairs.join(", ")}}`;
  }
  return JSON.stringify(value);
}

export function snippets(request, closed, model) {
  const texts = [
    ["snippet.curl", curl(BASE, request, closed)],
    ["snippet.httpx", httpx(BASE, request, closed)],
    ["snippet.openai", openai(BASE, request, closed, model)],
  ];
  return h(
    "details",
    { class: "box snippets" },
    h("summary", { say: "snippets" }),
    closed ? h("p", { class: "note", say: "snippets.key" }) : null,
    ...texts.map(([title, text]) =>
      h(
        "section",
        {},
        h("div", { class: "head" }, h("h4", { say: title }), copyButton(() => text)),
        h("pre", { tabindex: "0", role: "region", label: title }, text),
      ),
    ),
  );
}
