// What both pages have around them: language, theme, the key's dialog. Choices live in the address
// (#lang=zh&theme=dark), so a link carries them and nothing is stored.
import { onKeyNeeded } from "./api.js";
import { byId } from "./dom.js";
import { languages, say, speak, spoken } from "./i18n.js";

const THEMES = ["auto", "dark", "light"];

const choices = () => Object.fromEntries(new URLSearchParams(location.hash.slice(1)));

export function remembered(changes) {
  const kept = Object.entries({ ...choices(), ...changes }).filter(([, value]) => value !== "");
  const hash = new URLSearchParams(kept).toString();
  history.replaceState(null, "", hash ? `#${hash}` : location.pathname);
}

// Sets both up as the address says; `again` is called after the language has changed.
export function frame(again) {
  const { lang, theme } = choices();
  const own = navigator.language.startsWith("zh") ? "zh" : "en";
  wear(THEMES.includes(theme) ? theme : "auto");
  talk(languages.includes(lang) ? lang : own);
  byId("theme").addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length];
    wear(next);
    remembered({ theme: next === "auto" ? "" : next });
  });
  byId("language").addEventListener("click", () => {
    talk(spoken() === "en" ? "zh" : "en");
    remembered({ lang: spoken() === own ? "" : spoken() });
    again();
  });
  onKeyNeeded(askForKey);
  return choices();
}

function wear(theme) {
  document.documentElement.dataset.theme = theme;
  say(byId("theme"), `theme.${theme}`);
}

function talk(language) {
  speak(language);
  const other = byId("language");
  other.textContent = language === "en" ? "中文" : "English";
  other.lang = language === "en" ? "zh-CN" : "en";
  document.title = byId("title")?.textContent ?? document.querySelector("h1").textContent;
}

// One dialog for all that wait for a key. The field is emptied as soon as its value is taken.
let asking = null;

function askForKey(problem) {
  asking ??= dialog(problem).finally(() => (asking = null));
  return asking;
}

function dialog(problem) {
  const box = byId("key-dialog");
  const field = byId("key");
  byId("key-reason").textContent = problem.message;
  box.returnValue = "";
  box.showModal();
  field.focus();
  byId("key-cancel").onclick = () => box.close("");
  return new Promise((resolve) => {
    box.addEventListener(
      "close",
      () => {
        const given = field.value.trim();
        field.value = "";
        resolve(box.returnValue === "use" && given !== "" ? given : null);
      },
      { once: true },
    );
  });
}
