// The decisions as they come, and one of them with all its candidates.

import { Table, element, gauge, setText } from "./tables.js";
import * as format from "./format.js";

const share = (part, whole) => (whole ? part / whole : null);
const where = (row, pod = row.pod) => (row.rank ? `${pod} · rank ${row.rank}` : pod);

function drawCached(cell, row) {
  const [text, meter] = gauge(cell, ["gpu"]);
  setText(text, `${format.count(row.matched_tokens)} of ${format.count(row.tokens)}`);
  const width = `${(100 * (share(row.matched_tokens, row.tokens) ?? 0)).toFixed(1)}%`;
  if (meter.firstChild.style.width !== width) meter.firstChild.style.width = width;
}

function drawOutcome(cell, row) {
  if (!cell.firstChild) cell.append(element("span", { class: "outcome" }), element("span", { class: "reason" }));
  const [first, second] = cell.children;
  const known = row.outcome;
  cell.classList.toggle("known", Boolean(known));
  const failed = known && (known.error || known.status >= 400);
  setText(first, known ? [known.status, known.error?.replaceAll("_", " ")].filter(Boolean).join(" ") : "on its way");
  first.classList.toggle("bad", Boolean(failed));
  first.classList.toggle("muted", !known);
  setText(second, known && known.ttft_s !== null ? format.duration(known.ttft_s) : "");
}

export class Decisions {
  constructor() {
    this.dialog = document.getElementById("detail");
    this.table = new Table(document.getElementById("decision-table"), {
      label: "Decisions, newest first",
      limit: matchMedia("(max-width: 760px)").matches ? 6 : 10,
      key: (row) => row.id,
      empty: "No request was routed yet.",
      open: (row) => this.#open(row),
      columns: [
        { label: "Time", class: "when", draw: (cell, row) => this.#drawTime(cell, row) },
        { label: "Pod", class: "name", text: (row) => where(row) },
        { label: "Cached", title: "Tokens that the pod holds already, as predicted, of the prompt's", class: "cached", numeric: true, draw: drawCached },
        { label: "Outcome", title: "Status and time to the first token", class: "result", draw: drawOutcome },
        { label: "Missed", title: "The cause that took most of the tokens that were computed", class: "cause", text: mostMissed },
        { label: "Why", class: "why", text: (row) => row.reason },
      ],
    });
    document.getElementById("detail-close").addEventListener("click", () => this.dialog.close());
    this.dialog.addEventListener("click", (event) => { if (event.target === this.dialog) this.dialog.close(); });
  }

  show(rows) {
    this.table.show(rows);
  }

  /** A button, so that it is reached by the keyboard: the row takes clicks beside it. */
  #drawTime(cell, row) {
    if (!cell.firstChild) cell.append(element("button", { type: "button", class: "link", "aria-haspopup": "dialog" }));
    setText(cell.firstChild, format.clock(row.at));
    cell.firstChild.setAttribute("aria-label", `${format.clock(row.at)}, ${where(row)}: all candidates`);
  }

  async #open(row) {
    setText(document.getElementById("detail-title"), `${format.clock(row.at)} · ${where(row)}`);
    setText(document.getElementById("detail-sentence"), "Asking the gateway …");
    document.getElementById("detail-facts").replaceChildren();
    document.getElementById("detail-table").replaceChildren();
    if (!this.dialog.open) this.dialog.showModal();
    try {
      const answer = await fetch(`ui/decision?id=${encodeURIComponent(row.id)}`, { cache: "no-store" });
      const told = await answer.json();
      if (!answer.ok) throw new Error(told.error?.message ?? `status ${answer.status}`);
      this.#describe(told);
    } catch (error) {
      setText(document.getElementById("detail-sentence"), `It can't be shown: ${error.message}`);
    }
  }

  #describe(told) {
    const picked = told.pods.find((each) => each.pod === told.pick && each.rank === told.rank);
    setText(document.getElementById("detail-sentence"), sentence(told, picked));
    const facts = [
      ["Model", told.model ?? "not named"], ["Prompt", format.plural(told.tokens, "token")], ["Request", told.request_id],
      ...ended(told),
    ].filter(([, value]) => value);
    document.getElementById("detail-facts").replaceChildren(
      ...facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]),
    );
    const table = new Table(document.getElementById("detail-table"), {
      label: "Candidates, the best first", columns: candidates(told), limit: 24, empty: "There were no candidates.",
      key: (row) => `${row.pod}\n${row.rank}`, order: (one, other) => (other === picked) - (one === picked) || one.price - other.price,
    });
    table.show(told.pods);
    table.lines.get(`${told.pick}\n${told.rank}`)?.node.classList.add("picked");
  }
}

const words = (name) => name.replaceAll("_", " ");

function mostMissed(row) {
  return row.missed ? `${words(row.missed[0])} · ${format.count(row.missed[1])}` : format.NONE;
}

/** How it ended, and where the tokens came from that were not cached. */
function ended(told) {
  const outcome = told.outcome;
  const parts = outcome ? [
    outcome.status, outcome.error && words(outcome.error),
    outcome.ttft_s !== null && `first token after ${format.duration(outcome.ttft_s)}`,
    outcome.duration_s !== null && `over after ${format.duration(outcome.duration_s)}`,
    outcome.cached_tokens !== null && `${format.plural(outcome.cached_tokens, "token")} read from the cache`,
  ] : ["on its way"];
  const attempts = told.attempts.length > 1 ? told.attempts.map((one) => `${where(one)}: ${words(String(one.result))}`).join(", then ") : "";
  return [
    ["Ended", parts.filter(Boolean).join(", ")], ["Attempts", attempts],
    ...told.missed.map((one) => [`Missed ${format.count(one.tokens)}`, one.detail ? `${words(one.cause)}: ${one.detail}` : words(one.cause)]),
  ];
}

function sentence(told, picked) {
  const among = told.pods.length === 1 ? "the only candidate" : `one of ${format.count(told.pods.length)} candidates`;
  const name = where({ rank: told.rank }, told.pick);
  const holds = told.matched_tokens
    ? `It holds ${format.count(told.matched_tokens)} of the ${format.plural(told.tokens, "token")} (${format.percent(share(told.matched_tokens, told.tokens))}).`
    : "Nothing of the prompt is promised to be cached there.";
  const load = picked && (picked.load.requests
    ? ` It had ${format.plural(picked.load.requests, "request")} in flight, and ${format.duration(picked.load.backlog_s)} of prefill to do.`
    : " It had nothing in flight.");
  return `${name}, ${among}: ${told.reason}. ${holds}${load ?? ""}`;
}

function candidates(told) {
  const byTier = (row) => Object.entries(row.matched_by_tier).map(([tier, blocks]) => `${tier} ${blocks}`).join(", ") || format.NONE;
  return [
    { label: "Pod", class: "name", value: (row) => row.pod, text: (row) => where(row) },
    { label: "Price", title: "Lower is better: predicted seconds to the first token, and what it costs others", numeric: true, value: (row) => row.price, text: (row) => row.price.toFixed(4) },
    { label: "Score", numeric: true, value: (row) => row.score, text: (row) => row.score.toFixed(2) },
    { label: "Cached", numeric: true, value: (row) => row.matched_tokens, text: (row) => `${format.count(row.matched_tokens)} · ${format.percent(share(row.matched_tokens, told.tokens))}` },
    { label: "By tier", text: byTier },
    { label: "State", class: "states", value: (row) => row.state, draw: drawState },
    { label: "In flight", numeric: true, value: (row) => row.load.requests, text: (row) => format.count(row.load.requests) },
    { label: "Backlog", numeric: true, value: (row) => row.load.backlog_s, text: (row) => format.duration(row.load.backlog_s) },
    { label: "Gives up", title: "Cached tokens that it must give up for this", numeric: true, value: (row) => row.evicted.tokens, text: (row) => format.count(row.evicted.tokens) },
  ];
}

function drawState(cell, row) {
  if (!cell.firstChild) cell.append(element("span", { class: "state" }));
  cell.firstChild.setAttribute("data-state", row.state);
  setText(cell.firstChild, row.state);
}
