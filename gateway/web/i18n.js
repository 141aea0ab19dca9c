// Two languages. An element that `say` has spoken through speaks the other one when `speak` is called.
import { STRINGS } from "./strings.js";

const values = new WeakMap(); // element -> what its string's {places} are filled with
let language = "en";

export const languages = Object.keys(STRINGS);
export const spoken = () => language;

export function t(key, given = {}) {
  const text = STRINGS[language][key] ?? STRINGS.en[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (_, name) => given[name] ?? "");
}

export const known = (key) => key in STRINGS.en;

export function say(element, key, given = {}) {
  element.dataset.say = key;
  values.set(element, given);
  element.textContent = t(key, given);
  return element;
}

// Attributes that carry words: data-say-label -> aria-label, data-say-hint -> placeholder.
const ATTRIBUTES = { sayLabel: "aria-label", sayHint: "placeholder" };

export function label(element, key, given = {}) {
  element.dataset.sayLabel = key;
  values.set(element, given);
  element.setAttribute("aria-label", t(key, given));
  return element;
}

export function speak(wanted) {
  language = languages.includes(wanted) ? wanted : "en";
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const element of document.querySelectorAll("[data-say]")) {
    element.textContent = t(element.dataset.say, values.get(element));
  }
  for (const [name, attribute] of Object.entries(ATTRIBUTES)) {
    const selector = `[data-${name.replace("L", "-l").replace("H", "-h")}]`;
    for (const element of document.querySelectorAll(selector)) {
      element.setAttribute(attribute, t(element.dataset[name], values.get(element)));
    }
  }
}
