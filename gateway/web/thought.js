// One sample's thought: text as it comes under a budget bar, then steps that fold, shaded by confidence.
import { appendInBatches, h, nextFrame } from "./dom.js";
import { Growing } from "./growing.js";
import { known, say } from "./i18n.js";

export class Thought {
  constructor(index, alone) {
    this.exact = 0; // tokens, as the last event told
    this.since = 0; // deltas since: each is a token or more
    this.budget = null;
    this.rows = [];
    const title = alone ? ["thought"] : ["thought.of", { n: index + 1 }];
    this.fill = h("div", { class: "fill" });
    this.bar = h("div", { class: "bar", role: "progressbar", label: "budget.bar" }, this.fill);
    this.bar.setAttribute("aria-valuemin", "0");
    this.count = h("span", { class: "count" });
    this.text = h("div", { class: "text", tabindex: "0", role: "region", label: title });
    this.text.setAttribute("lang", "");
    this.growing = new Growing(this.text, this.text);
    this.end = h("p", { class: "end", hidden: true });
    this.element = h(
      "section",
      { class: "thought" },
      h("div", { class: "head" }, h("h4", { say: title }), this.count),
      this.bar,
      this.end,
      this.text,
    );
    this.draw = this.draw.bind(this);
    this.draw();
  }

  append(text) {
    this.since += 1;
    this.growing.append(text);
    nextFrame(this.draw);
  }

  progress({ tokens, budget }) {
    this.exact = tokens;
    this.since = 0;
    this.budget = budget;
    nextFrame(this.draw);
  }

  step(row) {
    this.rows.push(row);
  }

  draw() {
    const used = this.exact + this.since;
    if (this.budget === null) {
      say(this.count, "tokens", { n: used });
      this.bar.removeAttribute("aria-valuenow");
      return;
    }
    const shown = Math.min(used, this.budget);
    say(this.count, "tokens.of", { n: shown, budget: this.budget });
    this.bar.setAttribute("aria-valuemax", String(this.budget));
    this.bar.setAttribute("aria-valuenow", String(shown));
    this.fill.style.setProperty("--part", String(this.budget ? shown / this.budget : 1));
  }

  // How it ended: {end_reason, forced, tokens}. The steps take the place of the text.
  done({ end_reason: reason, forced, tokens }) {
    this.progress({ tokens, budget: this.budget });
    this.element.classList.add("over");
    this.end.hidden = false;
    this.end.replaceChildren(
      h("span", { class: `tag ${forced ? "warn" : "pass"}`, say: known(`end.${reason}`) ? `end.${reason}` : "end.other" }),
      reason === "skipped" ? "" : h("span", { say: forced ? "end.forced" : "end.own" }),
    );
    if (this.rows.length === 0) return;
    const list = h("div", { class: "steps" });
    appendInBatches(list, this.rows, stepElement);
    const toggle = h("button", { type: "button", class: "quiet", say: "steps.unfold" });
    toggle.addEventListener("click", () => {
      const steps = [...list.querySelectorAll("details")];
      const open = steps.some((step) => !step.open);
      for (const step of steps) step.open = open;
      say(toggle, open ? "steps.fold" : "steps.unfold");
    });
    this.growing.clear();
    this.text.replaceWith(h("p", { class: "legend" }, toggle, h("span", { say: "steps.legend" })), list);
  }

  // The budget that was given, which only the whole answer tells when the thought was short.
  settle(budget) {
    if (this.budget === null && budget > 0) this.progress({ tokens: this.exact + this.since, budget });
  }
}

function stepElement({ index, kind, text, confidence }) {
  const sure = confidence === null || confidence === undefined ? null : Math.round(confidence * 100);
  const first = text.split("\n", 1)[0];
  const details = h(
    "details",
    { class: "step" },
    h(
      "summary",
      {},
      h("span", { class: "number" }, `${index + 1}`),
      h("span", { class: "tag", say: known(`kind.${kind}`) ? `kind.${kind}` : "kind.other" }),
      h("span", { class: "first", lang: "" }, first.length > 90 ? `${first.slice(0, 90)}…` : first),
      sure === null ? null : h("span", { class: "sure", label: ["sure", { n: sure }], role: "img" }, `${sure} %`),
    ),
    h("p", { class: "whole", lang: "" }, text),
  );
  if (sure !== null) details.style.setProperty("--sure", String(confidence));
  return details;
}

