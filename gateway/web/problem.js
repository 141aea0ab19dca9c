import { h } from "./dom.js";
import { known } from "./i18n.js";

// An error as a person reads it: what, which field, what to do.
export function problemBox(problem) {
  const remedy = known(`remedy.${problem.code}`) ? `remedy.${problem.code}` : "remedy.other";
  return h(
    "section",
    { class: "problem", role: "alert" },
    h("p", { class: "what" }, `${problem.status} ${problem.title}`),
    h("p", { lang: "en" }, problem.message),
    problem.param ? h("p", { say: ["problem.field", { field: problem.param }] }) : null,
    h("p", { say: remedy }),
    problem.retryAfter ? h("p", { say: ["problem.retry", { n: problem.retryAfter }] }) : null,
    problem.requestId ? h("p", { class: "note", say: ["problem.id", { id: problem.requestId }] }) : null,
  );
}
