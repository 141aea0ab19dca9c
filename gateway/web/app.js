// The page: starts here. Tabs, language, theme, key, and the conversation.
import { getJson, Lost, Problem } from "./api.js";
import { announce, byId, h } from "./dom.js";
import { applyOffer, requestOf, showLimits } from "./form.js";
import { spoken } from "./i18n.js";
import { Live } from "./live.js";
import { frame, remembered } from "./frame.js";
import { problemBox } from "./problem.js";
import { Turn } from "./turn.js";

let turns = [];
let running = null;
const live = new Live();

async function start() {
  const box = byId("start");
  box.replaceChildren();
  try {
    applyOffer(await getJson("/thinking"));
  } catch (error) {
    if (!(error instanceof Problem || error instanceof Lost)) throw error;
    const told = error instanceof Lost ? lostStart() : problemBox(error);
    box.append(told, h("button", { type: "button", say: "tryAgain", onclick: start }));
  }
}

const lostStart = () =>
  h("section", { class: "problem", role: "alert" }, h("p", { class: "what", say: "lost" }), h("p", { say: "lost.start" }));

// `instead`: the turn that this one is asked in place of.
async function ask(question, instead = null) {
  if (running !== null || question.trim() === "") return;
  if (instead !== null) turns = turns.filter((turn) => turn !== instead);
  const request = requestOf(question, turns.flatMap((turn) => turn.messages()));
  const turn = new Turn(question, request, ask);
  turns.push(turn);
  byId("turns").append(turn.element);
  byId("new").hidden = false;
  byId("ask").disabled = true;
  running = turn;
  turn.element.scrollIntoView({ block: "start" });
  try {
    await turn.run();
  } finally {
    running = null;
    byId("ask").disabled = false;
  }
}

function submit(event) {
  event?.preventDefault();
  const field = byId("question");
  if (running !== null || field.value.trim() === "") return;
  ask(field.value);
  field.value = "";
}

function startAnew() {
  running?.aborter.abort();
  turns = [];
  byId("turns").replaceChildren();
  byId("new").hidden = true;
  byId("question").focus();
  announce("new.done");
}

// Tabs as https://www.w3.org/WAI/ARIA/apg/patterns/tabs/ has them: arrows move, one stop for Tab.
const TABS = ["ask", "live"];

function open(name) {
  for (const each of TABS) {
    const tab = byId(`tab-${each}`);
    tab.setAttribute("aria-selected", String(each === name));
    tab.tabIndex = each === name ? 0 : -1;
    byId(`panel-${each}`).hidden = each !== name;
  }
  live.show(name === "live");
  remembered({ tab: name === "ask" ? "" : name });
}

function onTabKey(event) {
  const steps = { ArrowLeft: -1, ArrowRight: 1 };
  const step = steps[event.key];
  if (step === undefined) return;
  const at = TABS.findIndex((name) => event.target.id === `tab-${name}`);
  const name = TABS[(at + step + TABS.length) % TABS.length];
  open(name);
  byId(`tab-${name}`).focus();
}

for (const name of TABS) {
  byId(`tab-${name}`).addEventListener("click", () => open(name));
  byId(`tab-${name}`).addEventListener("keydown", onTabKey);
}
byId("form").addEventListener("submit", submit);
byId("form").addEventListener("input", showLimits);
byId("new").addEventListener("click", startAnew);
byId("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit(event);
});

const wanted = frame(() => {
  showLimits();
  live.draw(spoken());
});
if (wanted.tab === "live") open("live");
start();
