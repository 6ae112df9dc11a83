// The pods and their feeds.

import { Table, byName, element, gauge, setAttribute, setText } from "./tables.js";
import * as format from "./format.js";

const TROUBLES = ["unfit", "blind", "degraded", "exact"];
const WORDS = { unfit: "not fit", blind: "blind", degraded: "degraded", exact: "exact" };
const TIERS = ["gpu", "predicted", "cpu", "disk"];

/** One word for what stands in the way, the worst first. */
export const standing = (row) => (row.fit ? row.state : "unfit");
export const nameOf = (row) => (row.ranks > 1 ? `${row.pod} · rank ${row.rank}` : row.pod);

const held = (row) => TIERS.reduce((sum, tier) => sum + row[tier], 0);
const byTrouble = (one, other) => TROUBLES.indexOf(standing(one)) - TROUBLES.indexOf(standing(other))
  || byName(one.pod, other.pod) || one.rank - other.rank;

const byFeed = (one, other) => TROUBLES.indexOf(one.state) - TROUBLES.indexOf(other.state)
  || byName(one.pod, other.pod) || one.rank - other.rank;

/** The rows of a picture as objects, each with how many ranks its pod has. */
export function rowsOf({ columns, pods }) {
  const rows = pods.map((values) => {
    const row = { values };
    columns.forEach((name, number) => { row[name] = values[number]; });
    row.values[columns.indexOf("reasons")] = row.reasons.join("; "); // to be compared as one
    return row;
  });
  const ranks = new Map();
  for (const { pod } of rows) ranks.set(pod, (ranks.get(pod) ?? 0) + 1);
  for (const row of rows) row.ranks = ranks.get(row.pod);
  return rows;
}

function drawState(cell, row) {
  const state = standing(row);
  if (!cell.firstChild) {
    cell.append(element("span", { class: "state" }), element("span", { class: "reason" }));
  }
  const [word, reason] = cell.children;
  setAttribute(word, "data-state", state);
  setText(word, WORDS[state]);
  setText(reason, row.reasons.join("; "));
}

/** Blocks by tier as a bar of the pod's whole cache, where its size is known, else of all that it holds. */
function drawBlocks(cell, row) {
  const [text, meter] = gauge(cell, TIERS);
  const all = held(row);
  const whole = Math.max(row.blocks_max ?? 0, all, 1);
  setText(text, format.count(all));
  setAttribute(cell, "title", TIERS.map((tier) => `${tier} ${row[tier]}`).join(", ") + (row.blocks_max ? ` of ${row.blocks_max}` : ""));
  TIERS.forEach((tier, number) => {
    const width = `${((100 * row[tier]) / whole).toFixed(1)}%`;
    if (meter.children[number].style.width !== width) meter.children[number].style.width = width;
  });
}

const load = (row) => (row.prefill_tokens ? `${format.count(row.prefill_tokens)} tok, ${format.duration(row.backlog_s)}` : format.NONE);

const FLEET = [
  { label: "Pod", class: "name", value: nameOf, text: nameOf },
  { label: "State", class: "states", value: (row) => TROUBLES.indexOf(standing(row)), draw: drawState },
  { label: "In flight", numeric: true, value: (row) => row.requests, text: (row) => format.count(row.requests) },
  {
    label: "Prefill to do", title: "Prompt tokens promised to the pod and not computed yet, and how long they take",
    numeric: true, value: (row) => row.backlog_s, text: load,
  },
  {
    label: "Blocks", title: "Known to be held: gpu, predicted, cpu, disk", numeric: true, class: "blocks",
    value: held, draw: drawBlocks,
  },
  {
    label: "Hit ratio", title: "Cached share of the prompt tokens that the pod served", numeric: true,
    value: (row) => row.hit_ratio, text: (row) => format.percent(row.hit_ratio),
  },
  {
    label: "TTFT", title: "Time to the first token, of late", numeric: true,
    value: (row) => row.ttft_s, text: (row) => format.duration(row.ttft_s),
  },
  {
    label: "Speed", title: "Prefill tokens a second, as learned", numeric: true,
    value: (row) => row.tokens_per_s, text: (row) => `${format.count(row.tokens_per_s)}/s`,
  },
];

function drawRule(cell, row) {
  if (!cell.firstChild) cell.append(element("span"), element("span", { class: "reason" }));
  setText(cell.children[0], row.rule);
  setText(cell.children[1], row.proven ? "proven" : "not proven yet");
}

const some = (row, field) => (row.sequence === null && row.heard_s_ago === null && field !== "rule" ? null : row[field]);
const pair = (one, other) => (one === null || one === undefined ? format.NONE : other ? `${format.count(one)} (${format.count(other)})` : format.count(one));

const FEEDS = [
  { label: "Pod", class: "name", value: nameOf, text: nameOf },
  {
    label: "Feed", class: "states", value: (row) => TROUBLES.indexOf(row.state),
    draw: (cell, row) => {
      if (!cell.firstChild) cell.append(element("span", { class: "state" }));
      setAttribute(cell.firstChild, "data-state", row.state);
      setText(cell.firstChild, WORDS[row.state]);
    },
  },
  {
    label: "Heard", title: "Since its newest batch", numeric: true,
    value: (row) => row.heard_s_ago, text: (row) => (row.heard_s_ago === null ? format.NONE : `${format.duration(row.heard_s_ago)} ago`),
  },
  { label: "Lag", title: "Age of the newest batch when it came", numeric: true, value: (row) => row.lag_s, text: (row) => (row.heard_s_ago === null ? format.NONE : format.duration(row.lag_s)) },
  {
    label: "Gaps", title: "Gaps, and (batches missing at them)", numeric: true,
    value: (row) => row.gaps, text: (row) => pair(some(row, "gaps"), row.missed),
  },
  {
    label: "Replays", title: "Complete, and (failed)", numeric: true,
    value: (row) => row.replays, text: (row) => pair(some(row, "replays"), row.replays_failed),
  },
  { label: "Restarts", numeric: true, value: (row) => row.restarts, text: (row) => format.count(some(row, "restarts")) },
  { label: "Orphans", title: "Blocks that came without their parent", numeric: true, value: (row) => row.orphans, text: (row) => format.count(some(row, "orphans")) },
  {
    label: "Predictions off", title: "Too much promised, and (too little)", numeric: true,
    value: (row) => row.over, text: (row) => pair(some(row, "over"), row.under),
  },
  { label: "Rule of reuse", class: "rule", value: (row) => row.rule, draw: drawRule },
];

export class Fleet {
  constructor() {
    const find = (id) => document.getElementById(id);
    this.summary = find("fleet-summary");
    this.strip = find("fleet-strip");
    this.feeds = find("feeds-summary");
    this.filter = find("fleet-filter");
    const key = (row) => `${row.pod}\n${row.rank}`;
    const limit = matchMedia("(max-width: 760px)").matches ? 6 : 12;
    const empty = "There are no pods yet: set discovery, or wait for its pods to start.";
    this.table = new Table(find("fleet-table"), { label: "Fleet", columns: FLEET, key, limit, order: byTrouble, empty });
    this.feedTable = new Table(find("feed-table"), { label: "Feeds", columns: FEEDS, key, limit, order: byFeed, empty });
    this.strip.append(...TROUBLES.map((state) => element("i", { "data-state": state })));
    this.rows = [];
    this.filter.addEventListener("input", () => this.#showTable());
  }

  show(rows) {
    this.rows = rows;
    const states = rows.map(standing);
    const counts = TROUBLES.map((state) => states.filter((each) => each === state).length);
    this.#summarize(this.summary, counts);
    this.strip.hidden = !rows.length;
    counts.forEach((number, at) => {
      const width = `${(100 * number) / Math.max(1, rows.length)}%`;
      if (this.strip.children[at].style.width !== width) this.strip.children[at].style.width = width;
    });
    const feeds = rows.map((row) => row.state);
    this.#summarize(this.feeds, TROUBLES.map((state) => feeds.filter((each) => each === state).length));
    this.filter.parentElement.hidden = rows.length < 8;
    this.#showTable();
    this.feedTable.show(rows);
  }

  #showTable() {
    const words = this.filter.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const text = (row) => `${nameOf(row)} ${WORDS[standing(row)]} ${row.reasons.join(" ")}`.toLowerCase();
    this.table.show(words.length ? this.rows.filter((row) => words.every((word) => text(row).includes(word))) : this.rows);
  }

  #summarize(place, counts) {
    if (!place.firstChild) place.append(...TROUBLES.map((state) => element("span", { class: "state", "data-state": state })));
    TROUBLES.forEach((state, number) => {
      const part = place.children[number];
      part.hidden = !counts[number];
      setText(part, `${format.count(counts[number])} ${WORDS[state]}`);
    });
  }
}
