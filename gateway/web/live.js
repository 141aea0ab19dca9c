// The Live tab: /stats and /health, asked every two seconds while somebody looks.
import { getJson, jsonOf, Lost, Problem, reach } from "./api.js";
import { Chart, POINTS } from "./chart.js";
import { byId, copyButton, h } from "./dom.js";
import { known, say } from "./i18n.js";

const EVERY_MS = 2000;

// What one answer of /stats comes to. A field that a gateway does not have is a gap in the chart.
function sampleOf(stats, before) {
  const models = Object.values(stats.models ?? {});
  const live = stats.live ?? {};
  const at = performance.now();
  const generated = models.reduce((total, model) => total + (model.generation_tokens ?? 0), 0);
  return {
    at,
    generated,
    rate: live.tokens_per_second ?? grown(before, generated, at),
    thinkingRate: live.thinking_tokens_per_second,
    thinking: stats.tokens?.thinking ?? stats.thinking?.tokens,
    answer: stats.tokens?.answer,
    ttft50: live.ttft_p50_s ?? stats.ttft_s?.p50,
    ttft95: stats.ttft_s?.p95,
    running: stats.in_flight,
    queued: stats.queued,
    kv: models.length ? Math.max(...models.map((model) => model.kv_cache_usage ?? 0)) * 100 : null,
  };
}

// Per second since the sample before; engines' counters begin anew with each engine, and a fall is no rate.
function grown(before, generated, at) {
  if (before === undefined || generated < before.generated) return null;
  return (generated - before.generated) / ((at - before.at) / 1000);
}

export class Live {
  constructor() {
    this.samples = [];
    this.timer = null;
    this.charts = [
      new Chart("chart.throughput", "/s", [
        { name: "line.tokens", read: (sample) => sample.rate },
        { name: "line.thinkingRate", read: (sample) => sample.thinkingRate },
      ]),
      new Chart("chart.ttft", "s", [
        { name: "line.p50", read: (sample) => sample.ttft50 },
        { name: "line.p95", read: (sample) => sample.ttft95 },
      ]),
      new Chart("chart.queue", "", [
        { name: "line.running", read: (sample) => sample.running },
        { name: "line.queued", read: (sample) => sample.queued },
      ]),
      new Chart("chart.kv", "%", [{ name: "line.kv", read: (sample) => sample.kv }], 100),
      new Chart("chart.tokens", "", [
        { name: "line.thinking", read: (sample) => sample.thinking },
        { name: "line.answer", read: (sample) => sample.answer },
      ]),
    ];
    byId("charts").append(...this.charts.map((chart) => chart.element));
  }

  show(visible) {
    this.visible = visible;
    if (visible && this.timer === null) this.poll();
  }

  async poll() {
    this.timer = 0;
    try {
      if (!document.hidden) await this.look();
    } finally {
      this.timer = this.visible ? setTimeout(() => this.poll(), EVERY_MS) : null;
    }
  }

  async look() {
    try {
      const now = sampleOf(await getJson("/stats"), this.samples.at(-1));
      this.samples = [...this.samples, now].slice(-POINTS);
      this.health = await healthNow();
      say(byId("live-state"), "live.every");
    } catch (error) {
      if (error.status === 401) this.visible = false; // nobody is asked for a key every two seconds
      if (!(error instanceof Problem || error instanceof Lost)) throw error;
      say(byId("live-state"), error instanceof Lost ? "live.lost" : "live.refused", { detail: error.message });
    }
    this.draw();
  }

  draw() {
    if (this.samples.length === 0) return;
    for (const chart of this.charts) chart.draw(this.samples);
    const models = this.health?.models ?? [];
    const told = JSON.stringify(models.map((model) => ({ ...model, heartbeat_age_s: 0 })));
    if (told === this.told) return; // so that nothing moves under a reader's cursor
    this.told = told;
    byId("models").replaceChildren(...models.map(modelCard));
  }
}

// A gateway that is not ready answers 503 with the same body.
async function healthNow() {
  return jsonOf(await reach("/health", { cache: "no-store" }));
}

function modelCard(model) {
  const command = `gateway switch ${model.name} PROFILE`;
  const rows = [
    ["model.profile", model.profile],
    ["model.format", model.format ?? "–"],
    ["model.device", model.device ?? "–"],
    ["model.context", model.max_model_len ?? "–"],
    ["model.running", model.in_flight ?? 0],
    ["model.waiting", model.waiting ?? 0],
    ["model.restarts", model.restarts ?? 0],
  ];
  const state = known(`state.${model.state}`) ? { say: `state.${model.state}` } : {};
  return h(
    "section",
    { class: "model" },
    h("div", { class: "head" }, h("h4", {}, model.name), h("span", { class: `tag ${model.state === "ready" ? "pass" : "warn"}`, ...state })),
    h("dl", {}, ...rows.map(([name, value]) => h("div", {}, h("dt", { say: name }), h("dd", {}, `${value}`)))),
    h("p", { class: "note", say: "switch.how" }),
    h("div", { class: "head" }, h("code", {}, command), copyButton(() => command)),
  );
}
