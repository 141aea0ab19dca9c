// Text that grows by 10,000 tokens and more. Text nodes are only ever appended to, once a frame, and a
// paragraph that gets long is continued in a new one: the browser lays out again only the one that changed.
import { h, nextFrame } from "./dom.js";

const LONG = 1500; // characters

export class Growing {
  constructor(element, scroller = null) {
    this.element = element;
    this.scroller = scroller; // kept at its end, unless somebody scrolled up to read
    this.pending = "";
    this.flush = this.flush.bind(this);
    this.clear();
  }

  clear() {
    this.element.replaceChildren();
    this.text = null;
    this.pending = "";
  }

  append(text) {
    this.pending += text;
    nextFrame(this.flush);
  }

  flush() {
    if (this.pending === "") return;
    const { scroller } = this;
    const atEnd = scroller && scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 40;
    const text = this.pending;
    this.pending = "";
    for (const [index, part] of pieces(text).entries()) this.grow(part, index > 0);
    if (atEnd) scroller.scrollTop = scroller.scrollHeight;
  }

  grow(text, anew) {
    if (anew || this.text === null || this.text.length > LONG) {
      this.text = document.createTextNode("");
      this.element.append(h("p", { class: "piece" }, this.text));
    }
    this.text.appendData(text);
  }
}

// Cut behind blank lines, and where one paragraph alone is long.
function* cuts(text) {
  for (const block of text.split(/(?<=\n[^\S\n]*\n)/)) {
    for (let at = 0; at < block.length; at += LONG) yield block.slice(at, at + LONG);
  }
}

const pieces = (text) => [...cuts(text)];
