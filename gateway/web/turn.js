// One question and what comes of it, from the first event to the last, an error or a lost connection.
import { call, eventBatches, hasKey, Lost, newRequestId, Problem } from "./api.js";
import { announce, h, nextFrame } from "./dom.js";
import { defaultModel } from "./form.js";
import { say, t } from "./i18n.js";
import { StreamedMarkdown } from "./markdown.js";
import { problemBox } from "./problem.js";
import { report } from "./report.js";
import { snippets } from "./snippets.js";
import { Thought } from "./thought.js";

export class Turn {
  // `again(question)` asks once more: the same, or to go on.
  constructor(question, request, again) {
    this.question = question;
    this.request = request;
    this.again = again;
    this.id = newRequestId();
    this.thoughts = [];
    this.answer = "";
    this.finished = false;
    this.aborter = new AbortController();
    this.build();
  }

  build() {
    this.state = h("span", { class: "state", say: "phase.waiting" });
    this.answerNow = h("button", { type: "button", say: "answerNow", onclick: () => this.hurry() });
    this.stop = h("button", { type: "button", class: "quiet", say: "stop", onclick: () => this.aborter.abort() });
    this.thoughtsElement = h("div", { class: "thoughts" });
    this.answerElement = h("div", { class: "answer", lang: "" });
    this.markdown = new StreamedMarkdown(this.answerElement);
    this.answerSection = h("section", { hidden: true }, h("h4", { say: "answer" }), this.answerElement);
    this.after = h("div", { class: "after" });
    this.element = h(
      "article",
      { class: "turn", tabindex: "-1" },
      h("h3", { lang: "" }, this.question),
      h("div", { class: "head" }, this.state, h("span", { class: "buttons" }, this.answerNow, this.stop)),
      this.thoughtsElement,
      this.answerSection,
      this.after,
    );
  }

  async run() {
    performance.mark("ask");
    announce("phase.waiting");
    try {
      const signal = this.aborter.signal;
      const response = await call("/thinking", { method: "POST", body: this.request, signal, requestId: this.id });
      for await (const batch of eventBatches(response)) for (const event of batch) this.take(event);
      if (!this.finished) throw new Lost("the stream ended early");
    } catch (error) {
      this.failed(error);
    } finally {
      this.answerNow.remove();
      this.stop.remove();
      this.markdown.finish();
    }
  }

  take(event) {
    const name = event.type.replace("thinking.", "");
    if (name === "failed") throw new Problem(event.response.status, event.response);
    HANDLERS[name]?.(this, event);
  }

  thought(index) {
    while (this.thoughts.length <= index) {
      const thought = new Thought(this.thoughts.length, (this.request.samples ?? 1) === 1);
      this.thoughts.push(thought);
      this.thoughtsElement.append(thought.element);
    }
    return this.thoughts[index];
  }

  firstToken() {
    if (this.began) return;
    this.began = true;
    performance.mark("first-token");
    performance.measure("time-to-first-token", "ask", "first-token");
  }

  phase(key) {
    if (this.state.dataset.say === key) return;
    say(this.state, key);
    announce(key);
  }

  async hurry() {
    this.answerNow.disabled = true;
    try {
      await call(`/thinking/${this.id}/answer_now`, { method: "POST" });
      announce("answerNow.sent");
    } catch (error) {
      if (!(error instanceof Problem && error.status === 404)) this.answerNow.disabled = false;
    }
  }

  complete(body) {
    this.finished = true;
    this.answer = body.answer;
    this.thoughts[0]?.settle(body.budget.applied);
    this.phase("phase.done");
    nextFrame(() => this.after.append(report(body), snippets(this.request, hasKey(), defaultModel())));
  }

  failed(error) {
    if (error.name === "AbortError") {
      this.phase("phase.stopped");
      this.after.append(this.buttons());
    } else if (error instanceof Lost) {
      this.phase("phase.lost");
      this.after.append(lostBox(this));
    } else if (error instanceof Problem) {
      this.phase("phase.error");
      this.after.append(problemBox(error), this.buttons(), snippets(this.request, hasKey(), defaultModel()));
    } else throw error;
  }

  buttons() {
    const again = h("button", { type: "button", say: "askAgain", onclick: () => this.again(this.question, this) });
    if (this.answer === "") return h("p", { class: "buttons" }, again);
    const goOn = h("button", { type: "button", say: "goOn", onclick: () => this.again(t("goOn.prompt"), null) });
    return h("p", { class: "buttons" }, goOn, again);
  }

  // What this turn adds to the conversation; nothing where there is no answer to it.
  messages() {
    if (this.answer === "") return [];
    return [
      { role: "user", content: this.question },
      { role: "assistant", content: this.answer },
    ];
  }
}

const HANDLERS = {
  created: (turn) => turn.phase("phase.thinking"),
  "reasoning.delta": (turn, event) => {
    turn.firstToken();
    turn.thought(event.sample_index).append(event.delta);
  },
  progress: (turn, event) => turn.thought(event.sample_index).progress(event),
  step: (turn, event) => turn.thought(event.sample_index).step(event),
  "reasoning.done": (turn, event) => {
    turn.thought(event.sample_index).done(event);
    if (turn.thoughts.every((thought) => thought.element.classList.contains("over"))) {
      turn.answerNow.disabled = true;
      turn.phase("phase.answering");
    }
  },
  "answer.delta": (turn, event) => {
    turn.firstToken();
    turn.answerSection.hidden = false;
    turn.answer += event.delta;
    turn.markdown.append(event.delta);
  },
  completed: (turn, event) => turn.complete(event.response),
};

function lostBox(turn) {
  const text = turn.answer === "" ? "lost.thinking" : "lost.answering";
  return h("section", { class: "problem", role: "alert" }, h("p", { class: "what", say: "lost" }), h("p", { say: text }), turn.buttons());
}
