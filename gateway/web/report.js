// What the whole answer tells beside the answer: checks, confidence, budget, vote, usage.
import { h } from "./dom.js";
import { known } from "./i18n.js";

const percent = (value) => `${Math.round(value * 100)} %`;

export function report(body) {
  return h(
    "div",
    { class: "report" },
    body.samples ? vote(body) : null,
    body.validation ? checks(body.validation) : null,
    body.confidence ? confidence(body.confidence) : null,
    figures(body),
  );
}

const section = (title, ...children) => h("section", {}, h("h4", { say: title }), ...children);

function checks({ status, checks: rows }) {
  const items = rows.map((row) =>
    h(
      "li",
      {},
      h("span", { class: `tag ${row.status}`, say: `check.${row.status}` }),
      known(`check.${row.name}`) ? h("b", { say: `check.${row.name}` }) : h("b", {}, row.name),
      h("span", { class: "detail", lang: "en" }, row.detail),
    ),
  );
  const title = { passed: "pass", warnings: "warn", failed: "fail" }[status] ?? "skip";
  const box = h(
    "details",
    { class: "box", open: title !== "pass" },
    h("summary", {}, h("span", { class: `tag ${title}`, say: `checks.${status}` })),
    h("ul", { class: "checks" }, ...items),
    h("p", { class: "note", say: "checks.note" }),
  );
  return section("checks", box);
}

function confidence({ score, calibrated, method, components }) {
  const rows = Object.entries(components ?? {}).filter(([, value]) => typeof value === "number");
  const meter = h("meter", { min: 0, max: 1, value: score, label: "confidence" });
  return section(
    "confidence",
    h("p", { class: "score" }, h("b", {}, percent(score)), meter),
    h("p", { class: "note", say: calibrated ? "confidence.calibrated" : "confidence.raw" }),
    h(
      "details",
      { class: "box" },
      h("summary", { say: ["confidence.parts", { method }] }),
      table(["part", "value"], rows.map(([name, value]) => [name, round(value)])),
    ),
  );
}

// The sample whose answer was given, and how many agree with its value.
function vote({ samples, answer }) {
  const winner = samples.find((row) => row.answer === answer);
  const tally = new Map();
  for (const { value } of samples) if (value !== null) tally.set(value, (tally.get(value) ?? 0) + 1);
  const bars = [...tally].sort((a, b) => b[1] - a[1]).map(([value, votes]) => {
    const bar = h("span", { class: "votes" });
    bar.style.setProperty("--part", String(votes / samples.length));
    return h("li", {}, h("b", { lang: "" }, value), h("span", { say: ["votes", { n: votes, all: samples.length }] }), bar);
  });
  const rows = samples.map((row) => [
    `${row.index + 1}${row === winner ? " ✓" : ""}`,
    row.value ?? short(row.answer),
    row.confidence === null ? "–" : percent(row.confidence),
    row.tokens,
    h("span", { say: known(`sample.${row.status}`) ? `sample.${row.status}` : "sample.other" }),
  ]);
  return section(
    "vote",
    bars.length ? h("ul", { class: "tally" }, ...bars) : h("p", { class: "note", say: "vote.free" }),
    table(["sample", "answer", "confidence", "tokens.name", "state"], rows),
  );
}

const short = (text) => (text ? `${text.slice(0, 60)}${text.length > 60 ? "…" : ""}` : "–");
const round = (value) => (Number.isInteger(value) ? value : value.toFixed(3));

function figures(body) {
  const { usage, budget } = body;
  const details = usage.completion_tokens_details ?? {};
  const rows = [
    ["figure.thinking", details.reasoning_tokens],
    ["figure.answer", details.answer_tokens],
    ["figure.forced", details.forced_tokens],
    ["figure.prompt", usage.prompt_tokens],
    ["figure.rate", body.tokens_per_second],
    ["figure.time", `${body.generation_time_s.toFixed(2)} s`],
    ["figure.id", body.id],
  ].map(([name, value]) => [h("span", { say: name }), value ?? "–"]);
  const given = [
    budget.requested === null ? "budget.given" : "budget.exactly",
    { applied: budget.applied, requested: budget.requested, reserve: budget.answer_reserve },
  ];
  return section(
    "figures",
    h("p", { say: given }),
    budget.clamped ? h("p", { class: "note", say: "budget.clamped" }) : null,
    body.answer_source === "model" ? null : h("p", { class: "note", say: "answer.extracted" }),
    body.status === "incomplete" ? h("p", { class: "note", say: "answer.cut" }) : null,
    table(["figure", "value"], rows),
  );
}

function table(heads, rows) {
  return h(
    "table",
    {},
    h("thead", {}, h("tr", {}, ...heads.map((head) => h("th", { scope: "col", say: `col.${head}` })))),
    h("tbody", {}, ...rows.map((row) => h("tr", {}, ...row.map((cell) => h("td", {}, cell instanceof Node ? cell : `${cell}`))))),
  );
}
