// Elements are made here, and text goes in as text. Only markdown.js has to do with HTML.
import { label, say } from "./i18n.js";

// h("button", { class: "x", say: "stop", type: "button", onclick: stop }, child, "text")
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "say") say(element, ...[value].flat());
    else if (name === "label") label(element, ...[value].flat());
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

export function svg(tag, properties = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(properties)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export const byId = (id) => document.getElementById(id);

// Work for the next frame, each piece once however often it is asked for: tokens come faster than frames.
const waiting = new Set();

export function nextFrame(work) {
  if (waiting.size === 0) requestAnimationFrame(flush);
  waiting.add(work);
}

function flush() {
  const works = [...waiting];
  waiting.clear();
  for (const work of works) work();
}

const BATCH = 12;

// Many elements into one, some in each frame, so that no frame is late for them.
export function appendInBatches(element, items, make) {
  let at = 0;
  const some = () => {
    element.append(...items.slice(at, at + BATCH).map(make));
    at += BATCH;
    if (at < items.length) nextFrame(some);
  };
  some();
}

// What screen readers are told: a phase now and then, never tokens.
export function announce(key, given) {
  say(byId("status"), key, given);
}

export function copyButton(text) {
  const button = h("button", { type: "button", class: "quiet", say: "copy" });
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text());
      say(button, "copied");
    } catch {
      say(button, "copy.byHand"); // over plain HTTP from afar browsers have no clipboard
    }
  });
  return button;
}
