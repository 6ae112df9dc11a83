// Curves over time, by uPlot (vendored beside this file).

import { element, setText } from "./tables.js";
import * as format from "./format.js";

const HEIGHT = 132;

const CURVES = [
  {
    title: "Cached share of prompt tokens", floor: 1, value: format.percent,
    series: [{ label: "cached", column: "hit_ratio", color: "--accent", fill: true }],
  },
  {
    title: "Time to first byte", value: format.duration,
    series: [
      { label: "p95", column: "ttft_p95", color: "--second" }, { label: "p50", column: "ttft_p50", color: "--accent" },
    ],
  },
  {
    title: "Requests a second", value: format.rate,
    series: [
      { label: "all", column: "requests_per_s", color: "--accent", fill: true },
      { label: "errors", column: "errors_per_s", color: "--bad" },
    ],
  },
  {
    title: "Prefix store, text blocks", value: format.count, beside: { column: "prefix_bytes", value: format.bytes },
    series: [{ label: "blocks", column: "prefix_blocks", color: "--accent", fill: true }],
  },
  {
    title: "Index, blocks", value: format.count, beside: { column: "index_bytes", value: format.bytes },
    series: [{ label: "blocks", column: "index_blocks", color: "--accent", fill: true }],
  },
  {
    title: "Evictions a second", value: format.rate,
    series: [
      { label: "prefix store", column: "prefix_evictions_per_s", color: "--accent" },
      { label: "index", column: "index_evictions_per_s", color: "--second" },
    ],
  },
];

let probe = null;
const colors = new Map();

/** What a colour of the style sheet is in the theme of now: a canvas does not know it. */
function color(name, alpha = 1) {
  if (!colors.has(name)) {
    probe ??= document.body.appendChild(element("span", { class: "hidden", "aria-hidden": "true" }));
    probe.style.color = `var(${name})`;
    colors.set(name, getComputedStyle(probe).color);
  }
  const found = colors.get(name);
  return alpha === 1 ? found : found.replace(/^rgb\(/, "rgba(").replace(/\)$/, `, ${alpha})`);
}

export class Charts {
  constructor(place) {
    this.columns = [];
    this.points = [];
    this.kept = 600;
    this.interval = 1;
    this.charts = CURVES.map((curve) => new Chart(place, curve));
    new ResizeObserver(() => this.charts.forEach((chart) => chart.fit())).observe(place);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
  }

  start({ columns, points }) {
    this.columns = columns;
    this.points = points;
    this.kept = Math.max(this.kept, points.length);
    this.#draw();
  }

  add(point, interval) {
    this.interval = interval;
    if (this.points.at(-1)?.[0] === point[0]) return;
    this.points.push(point);
    if (this.points.length > this.kept) this.points.shift();
    this.#draw();
  }

  redraw() {
    colors.clear();
    this.charts.forEach((chart) => chart.redraw());
  }

  #draw() {
    if (!this.columns.length || !this.points.length) return;
    const points = this.#withGaps();
    const column = (name) => points.map((point) => point[this.columns.indexOf(name)]);
    const at = column("at");
    const newest = Object.fromEntries(this.columns.map((name, number) => [name, this.points.at(-1)[number]]));
    for (const chart of this.charts) chart.show(at, column, newest);
  }

  /** Where nobody looked there is nothing, and no line over it. */
  #withGaps() {
    const told = [];
    for (const point of this.points) {
      const before = told.at(-1);
      if (before && point[0] - before[0] > 4 * this.interval) {
        told.push([before[0] + this.interval, ...new Array(point.length - 1).fill(null)]);
      }
      told.push(point);
    }
    return told;
  }
}

class Chart {
  constructor(place, curve) {
    this.curve = curve;
    this.now = element("span", { class: "now" });
    this.canvas = element("div", { class: "plot", role: "img", "aria-label": curve.title });
    this.nothing = element("p", { class: "empty" }, "Nothing measured yet");
    const names = curve.series.map((each) => element("span", { class: `name ${each.color.slice(2)}` }, each.label));
    const keys = element("span", { class: "names" }, ...(curve.series.length > 1 ? names : []));
    place.append(element(
      "figure", {}, element("figcaption", {}, element("span", { class: "title" }, curve.title), this.now, keys),
      this.canvas, this.nothing,
    ));
    this.plot = null;
  }

  show(at, column, newest) {
    const { curve } = this;
    const values = curve.series.map((each) => column(each.column));
    const known = values.some((each) => each.some((value) => value !== null));
    const told = curve.series.map((each) => curve.value(newest[each.column])).join(" · ");
    setText(this.now, curve.beside ? `${told} · ${curve.beside.value(newest[curve.beside.column])}` : told);
    this.canvas.hidden = !known;
    this.nothing.hidden = known;
    if (!known) return;
    if (!this.plot) this.plot = this.#made([at, ...values]);
    else this.plot.setData([at, ...values]);
  }

  fit() {
    const width = this.canvas.clientWidth;
    if (this.plot && width && width !== this.plot.width) this.plot.setSize({ width, height: HEIGHT });
  }

  redraw() {
    this.plot?.redraw(false);
  }

  #made(data) {
    const { curve } = this;
    const line = () => color("--line");
    const axis = { stroke: () => color("--muted"), font: "11px system-ui, sans-serif", ticks: { show: false } };
    return new uPlot({
      width: this.canvas.clientWidth || 300,
      height: HEIGHT,
      padding: [8, 4, 0, 0],
      legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false }, points: { size: 6 } },
      scales: { y: { range: (_, low, high) => [0, curve.floor ?? (high > 0 ? high * 1.15 : 1)] } },
      axes: [
        { ...axis, grid: { show: false }, size: 24, space: 80, values: (_, splits) => splits.map(format.clock) },
        {
          ...axis, size: 52, gap: 4, space: 36, grid: { stroke: line, width: 1 },
          values: (_, splits) => splits.map(curve.value),
        },
      ],
      series: [{}, ...curve.series.map((each) => ({
        label: each.label,
        stroke: () => color(each.color),
        fill: each.fill ? () => color(each.color, 0.1) : undefined,
        width: 1.5,
        points: { show: false },
        spanGaps: false,
      }))],
    }, data, this.canvas);
  }
}
