// The admin listener's page: what serves each model, and the switch. It is served by that listener itself,
// so it needs no CORS there, and no model's text is ever on it.
import { call, getJson, Lost, Problem } from "./api.js";
import { announce, byId, h } from "./dom.js";
import { frame } from "./frame.js";
import { known } from "./i18n.js";
import { problemBox } from "./problem.js";

const EVERY_MS = 1500;
let told = "";

async function look() {
  try {
    const [models, operations] = await Promise.all([getJson("/admin/models"), getJson("/admin/operations")]);
    byId("start").replaceChildren();
    const now = JSON.stringify([models, operations]);
    if (now !== told) draw(models.data, operations.data); // else nothing moves under a cursor
    told = now;
    return true;
  } catch (error) {
    complain(error);
    return error instanceof Lost; // a refused key is asked for again only by hand
  }
}

async function watch() {
  if (await look()) setTimeout(watch, EVERY_MS);
  else byId("start").append(h("button", { type: "button", say: "tryAgain", onclick: watch }));
}

function complain(error) {
  if (error instanceof Lost) {
    byId("start").replaceChildren(h("p", { class: "problem", role: "alert", say: "lost.start" }));
  } else if (error instanceof Problem) byId("start").replaceChildren(problemBox(error));
  else throw error;
}

function draw(models, operations) {
  const focused = document.activeElement?.id;
  byId("models").replaceChildren(...models.map((model) => modelRow(model, operations)));
  byId("operations").replaceChildren(...operations.map(operationRow));
  if (focused) byId(focused)?.focus();
}

const choices = new Map(); // model -> profile chosen, kept over redrawing

function modelRow(model, operations) {
  const busy = operations.some((one) => one.model === model.name && one.state === "running");
  const served = model.serving.map((slot) => `${slot.profile} (${slot.format}): ${slot.in_flight}`);
  const state = known(`state.${model.state}`) ? `state.${model.state}` : "state.loading";
  return h(
    "section",
    { class: "model" },
    h("div", { class: "head" }, h("h2", {}, model.name), h("span", { class: `tag ${model.state === "ready" ? "pass" : "warn"}`, say: state })),
    h("p", { class: "note" }, served.join("; ")),
    model.may_switch_to.length ? chooser(model, busy) : h("p", { class: "note", say: "admin.none" }),
  );
}

function chooser(model, busy) {
  const id = `to-${model.name}`;
  const profiles = model.may_switch_to.map((each) => each.profile ?? each.name ?? each);
  const select = h("select", { id }, ...profiles.map((name) => h("option", { value: name }, name)));
  if (choices.has(model.name)) select.value = choices.get(model.name);
  select.addEventListener("change", () => choices.set(model.name, select.value));
  const go = h("button", { type: "button", id: `go-${model.name}`, say: "admin.switch", disabled: busy });
  go.addEventListener("click", () => change(`/admin/models/${encodeURI(model.name)}/switch`, { profile: select.value }));
  return h("div", { class: "row" }, h("label", { for: id, say: "admin.choose" }), select, go);
}

async function change(path, body) {
  try {
    await call(path, { method: "POST", body });
    announce("admin.started");
    await look();
  } catch (error) {
    complain(error);
  }
}

function operationRow(one) {
  const given = { phase: one.phase ?? "", error: one.error?.detail ?? one.error ?? "" };
  const tone = { succeeded: "pass", failed: "fail" }[one.state] ?? "warn";
  const off = h("button", { type: "button", class: "quiet", say: "admin.cancel" });
  off.addEventListener("click", () => change(`/admin/operations/${encodeURIComponent(one.id)}/cancel`));
  return h(
    "section",
    { class: "model" },
    h(
      "div",
      { class: "head" },
      h("b", {}, `${one.model}: ${one.from_profile} → ${one.to_profile}`),
      h("span", { class: `tag ${tone}`, say: [`admin.${one.state}`, given] }),
      one.state === "running" ? off : null,
    ),
    ...(one.notes ?? []).map((note) => h("p", { class: "note", lang: "en" }, `${note}`)),
  );
}

frame(() => {
  told = "";
});
watch();
