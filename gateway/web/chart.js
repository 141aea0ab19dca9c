// A line chart of the last minutes, drawn as SVG. Its newest values are beside it as text.
import { h, svg } from "./dom.js";

const WIDTH = 300;
const HEIGHT = 80;
export const POINTS = 120;

export class Chart {
  // `lines`: [{ name: key of a string, read: sample -> number or null }]; `unit` behind each value.
  constructor(title, unit, lines, top = null) {
    this.lines = lines;
    this.unit = unit;
    this.top = top; // fixed upper end; null: the largest value
    this.paths = lines.map((_, index) => svg("path", { class: `line line${index}`, d: "" }));
    const grid = [0, 0.5, 1].map((part) =>
      svg("line", { class: "rule", x1: 0, x2: WIDTH, y1: y(part, 1), y2: y(part, 1) }),
    );
    const view = { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" };
    this.scale = h("span", { class: "scale" });
    this.values = lines.map(() => h("b", {}, "–"));
    const legend = lines.map((line, index) =>
      h("li", {}, h("i", { class: `key line${index}` }), h("span", { say: line.name }), this.values[index]),
    );
    this.element = h(
      "figure",
      {},
      h("figcaption", {}, h("b", { say: title }), this.scale),
      svg("svg", view, ...grid, ...this.paths),
      h("ul", {}, ...legend),
    );
  }

  draw(samples) {
    const series = this.lines.map((line) => samples.map((sample) => number(line.read(sample))));
    const largest = Math.max(...series.flat().filter((value) => value !== null), 0);
    const top = this.top ?? (largest || 1);
    this.scale.textContent = shown(top, this.unit);
    for (const [index, values] of series.entries()) {
      this.paths[index].setAttribute("d", path(values, top));
      const last = values.at(-1) ?? null;
      this.values[index].textContent = last === null ? "–" : shown(last, this.unit);
    }
  }
}

const number = (value) => (Number.isFinite(value) ? value : null);
const y = (value, top) => HEIGHT - 2 - (Math.min(value, top) / top) * (HEIGHT - 4);

// Gaps where there is no value; the newest is at the right.
function path(values, top) {
  let pen = "M";
  let d = "";
  for (const [index, value] of values.entries()) {
    if (value === null) {
      pen = "M";
      continue;
    }
    const x = WIDTH - ((values.length - 1 - index) * WIDTH) / (POINTS - 1);
    d += `${pen}${x.toFixed(1)} ${y(value, top).toFixed(1)}`;
    pen = "L";
  }
  return d;
}

function shown(value, unit) {
  const digits = value >= 100 || Number.isInteger(value) ? 0 : value >= 1 ? 1 : 3;
  return `${value.toFixed(digits)} ${unit}`.trim();
}
