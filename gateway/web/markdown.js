// The one place where a model's text becomes HTML: Markdown by marked, sanitised by DOMPurify into nodes.
// Three things stand between a model and the page: raw HTML is shown as text, a short list of tags and
// attributes, and the Content-Security-Policy (docs/page.md).
import { h } from "./dom.js";
import { Growing } from "./growing.js";
import { Marked } from "./vendor/marked.js";
import "./vendor/purify.js";

const ESCAPES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
const escaped = (text) => text.replace(/[&<>"']/g, (character) => ESCAPES[character]);

const marked = new Marked({
  gfm: true,
  async: false,
  renderer: {
    html: ({ text }) => escaped(text),
    // An image would be a request that the model makes with the reader's browser.
    image: ({ href, text }) => `<a href="${escaped(href)}">${escaped(text || href)}</a>`,
    // One level: the page's own headings are the outline.
    heading({ tokens }) {
      return `<h4>${this.parser.parseInline(tokens)}</h4>`;
    },
  },
});

const ALLOWED = {
  ALLOWED_TAGS: (
    "p br hr h4 ul ol li blockquote pre code em strong del a table thead tbody tr th td"
  ).split(" "),
  ALLOWED_ATTR: ["href", "start"],
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:)/i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

export function render(text) {
  const nodes = globalThis.DOMPurify.sanitize(marked.parse(text), ALLOWED);
  for (const link of nodes.querySelectorAll("a")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer nofollow";
  }
  return nodes;
}

const FENCE = /^ {0,3}(```|~~~)/;
const ITEM = /^\s*(?:[-*+]|\d{1,9}[.)])\s/;
const INDENTED = /^(?: {2,}|\t)/;

// Markdown that comes in pieces: a block is rendered once, when it is whole; what is not shows as it is.
export class StreamedMarkdown {
  constructor(element) {
    this.done = h("div", { class: "markdown" });
    this.rawElement = h("div", { class: "raw" });
    this.raw = new Growing(this.rawElement);
    this.block = ""; // whole lines of the block that is open
    this.line = ""; // what came of the last line
    this.fence = null;
    this.inList = this.blank = false;
    element.append(this.done, this.rawElement);
  }

  append(text) {
    const lines = (this.line + text).split("\n");
    this.line = lines.pop();
    let closed = "";
    for (const line of lines) {
      if (this.opensBlock(line)) {
        closed += this.block;
        this.block = "";
      }
      this.block += `${line}\n`;
    }
    if (closed === "") {
      this.raw.append(text);
      return;
    }
    this.done.append(block(closed));
    this.raw.clear();
    this.raw.append(this.block + this.line);
  }

  // Whether a new block begins with this line. A list goes on behind a blank line.
  opensBlock(line) {
    const mark = FENCE.exec(line)?.[1] ?? null;
    const begins =
      this.fence === null &&
      this.blank &&
      line.trim() !== "" &&
      !(this.inList && (ITEM.test(line) || INDENTED.test(line)));
    if (mark !== null) {
      if (this.fence === null) this.fence = mark;
      else if (this.fence === mark) this.fence = null;
    }
    if (line.trim() !== "") {
      this.inList = ITEM.test(line) || (this.inList && !begins);
    }
    this.blank = line.trim() === "";
    return begins;
  }

  finish() {
    this.raw.clear();
    const rest = this.block + this.line;
    this.block = this.line = "";
    if (rest.trim() !== "") this.done.append(block(rest));
  }
}

const block = (text) => h("div", { class: "block" }, render(text));
