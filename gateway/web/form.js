// The controls, and the request they make. What the server offers comes from GET /thinking.
import { byId, h } from "./dom.js";
import { say, t } from "./i18n.js";

// Empty means: not sent, so the server's own default holds. The server judges the values, not the page.
const NUMBERS = ["thinking_budget", "max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed"];
const CHOICES = ["confidence", "early_exit"];

let offer = null;

export function applyOffer(given) {
  offer = given;
  const depth = byId("thinking_depth");
  depth.max = String(offer.depths.length - 1);
  depth.value = String(offer.default_depth);
  byId("samples").max = String(offer.max_samples);
  const select = byId("model");
  select.replaceChildren(...offer.models.map((model) => h("option", { value: model.id }, model.id)));
  for (const name of CHOICES) {
    const options = offer[name].map((value) => h("option", { value, say: `${name}.${value}` }));
    byId(name).replaceChildren(...options);
    byId(name).value = name === "confidence" ? "auto" : "off";
  }
  byId("ask").disabled = false;
  showLimits();
}

export const defaultModel = () => offer?.models[0]?.id ?? "";

const chosen = () => offer.models.find((model) => model.id === byId("model").value) ?? offer.models[0];

// What the depth means here and now: its cap, and the ceiling where that is lower.
export function showLimits() {
  if (offer === null) return;
  const slider = byId("thinking_depth");
  const depth = offer.depths[Number(slider.value)];
  const total = Number(byId("max_tokens").value) || chosen().max_tokens;
  const cap = Math.min(depth.max_tokens, Math.floor(depth.share * total));
  slider.setAttribute("aria-valuetext", t("depth.value", { n: slider.value, name: depth.name }));
  say(byId("depth-shown"), "depth.shown", { n: slider.value, name: depth.name, tokens: cap });
  const limits = { context: chosen().max_model_len ?? "–", total: chosen().max_tokens };
  say(byId("limits"), "limits", limits);
  byId("ceiling").hidden = offer.ceiling === null;
  if (offer.ceiling !== null) say(byId("ceiling"), "ceiling", { n: offer.ceiling });
  byId("max_tokens").placeholder = String(chosen().max_tokens);
}

// The body of POST /thinking. With earlier turns it is a conversation.
export function requestOf(question, earlier) {
  const request = earlier.length
    ? { messages: [...earlier, { role: "user", content: question }] }
    : { question };
  if (offer.models.length > 1) request.model = byId("model").value;
  request.thinking_depth = Number(byId("thinking_depth").value);
  for (const name of NUMBERS) {
    const { value } = byId(name);
    if (value.trim() !== "") request[name] = asNumber(value);
  }
  const samples = asNumber(byId("samples").value || "1");
  if (samples !== 1) request.samples = samples;
  if (byId("confidence").value !== "auto") request.confidence = byId("confidence").value;
  if (byId("early_exit").value !== "off") request.early_exit = byId("early_exit").value;
  if (!byId("validate").checked) request.validate = false;
  request.stream = true;
  return request;
}

// What is no number goes to the server as it is, which says so.
function asNumber(text) {
  const number = Number(text);
  return Number.isNaN(number) ? text : number;
}
