// What ties the page together: the key, the stream, and who draws what of a picture.

import { Charts } from "./charts.js";
import { Decisions } from "./decisions.js";
import { Fleet, nameOf, rowsOf, standing } from "./fleet.js";
import { element, setText } from "./tables.js";
import * as format from "./format.js";

const STALE_MS = 3500;
const AGAIN_MS = 2000;
const UNSEEN_MS = 10_000; // a page that nobody sees for so long asks for nothing
const SENTENCES_MAX = 6;
const NEWS_MS = 5000; // between two things that are read out

const find = (id) => document.getElementById(id);
const fleet = new Fleet();
const decisions = new Decisions();
const charts = new Charts(find("charts"));

let stream = null;
let newest = null;
let drawn = true;
let paused = false;
let cameAt = 0;

// --- the key ---

/** Whether this browser may look; null: the gateway does not answer. */
async function mayLook(options = {}) {
  try {
    const answer = await fetch("ui/pass", { cache: "no-store", ...options });
    if (answer.status !== 200) return answer.ok ? true : answer.status === 401 ? false : null;
    const told = await answer.json();
    byPass(told.by_pass);
    return told.may_look;
  } catch {
    return null;
  }
}

/** What else is there is not for a pass: it needs the key itself. */
function byPass(is) {
  find("forget").hidden = !is;
  find("same").hidden = is;
}

async function begin() {
  const may = await mayLook();
  if (may === null) { say("lost", "The gateway does not answer: trying again"); setTimeout(begin, AGAIN_MS); return; }
  if (may) { listen(); return; }
  say("closed", "The operator key is needed");
  find("figures").hidden = true;
  find("key").hidden = false;
  document.body.dataset.closed = "";
  find("key-text").focus();
}

find("key").addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = find("key-text");
  const may = await mayLook({ method: "POST", headers: { authorization: `Bearer ${text.value}` } });
  setText(find("key-error"), may ? "" : may === false ? "This is not the operator key." : "The gateway does not answer.");
  if (!may) { text.select(); return; }
  text.value = "";
  find("key").hidden = true;
  delete document.body.dataset.closed;
  byPass(true);
  listen();
  find("main").focus();
});

find("forget").addEventListener("click", async () => {
  stop();
  await mayLook({ method: "DELETE" });
  byPass(false);
  begin();
});

// --- the stream ---

function listen() {
  stop();
  say("waiting", "Connecting");
  stream = new EventSource("ui/events");
  stream.addEventListener("course", (event) => charts.start(JSON.parse(event.data)));
  stream.addEventListener("picture", (event) => {
    newest = JSON.parse(event.data);
    cameAt = performance.now();
    charts.add(newest.point, newest.gateway.interval_s);
    drawn = false;
    requestAnimationFrame(draw);
  });
  stream.addEventListener("error", () => {
    say("lost", "Connection lost: trying again");
    if (stream?.readyState === EventSource.CLOSED) { stop(); setTimeout(begin, AGAIN_MS); }
  });
}

function stop() {
  stream?.close();
  stream = null;
}

let unseen = 0;
document.addEventListener("visibilitychange", () => {
  clearTimeout(unseen);
  if (document.hidden) unseen = setTimeout(stop, UNSEEN_MS);
  else if (!stream && find("key").hidden) begin();
});

setInterval(() => {
  if (stream && newest && !paused && performance.now() - cameAt > STALE_MS) say("lost", "No news for some seconds");
}, 1000);

/** How the page stands; read out only when it changes. */
function say(state, text) {
  find("status").dataset.state = state;
  setText(find("status").firstElementChild, text);
}

// --- what is drawn ---

function draw() {
  if (drawn || paused) return;
  drawn = true;
  say("live", "Live");
  find("figures").hidden = false;
  const rows = rowsOf(newest);
  setText(find("clock"), format.clock(newest.at));
  drawTiles(newest, rows);
  drawAlerts(newest.alerts);
  fleet.show(rows);
  decisions.show(newest.decisions);
  drawMisses(newest);
  drawCounts(rows);
  tellNews(rows);
}

const tiles = new Map();

function tile(name, value, more = "", tone = "") {
  let parts = tiles.get(name);
  if (!parts) {
    parts = [element("dd", { class: "value" }), element("dd", { class: "more" })];
    tiles.set(name, parts);
    find("tiles").append(element("div", {}, element("dt", {}, name), ...parts));
  }
  setText(parts[0], value);
  setText(parts[1], more);
  if (parts[0].dataset.tone !== tone) parts[0].dataset.tone = tone;
}

function drawTiles({ totals, gateway }, rows) {
  const fit = rows.filter((row) => row.fit).length;
  const exact = rows.filter((row) => row.state === "exact").length;
  tile("Cached, last minute", format.percent(totals.hit_ratio),
    totals.prompt_tokens ? `of ${format.count(totals.prompt_tokens)} tokens` : "no prompt yet");
  tile("First byte, p50", format.duration(totals.ttft_p50), `p95 ${format.duration(totals.ttft_p95)}`);
  tile("Requests a second", format.rate(totals.requests_per_s),
    totals.errors_per_s ? `${format.rate(totals.errors_per_s)} errors a second` : "no errors", totals.errors_per_s ? "warn" : "");
  tile("In flight", format.count(totals.in_flight), totals.waiting ? `${format.count(totals.waiting)} wait` : "nobody waits");
  tile("Fit pods", `${format.count(fit)} of ${format.count(rows.length)}`,
    fit === rows.length ? "all take requests" : `${format.plural(rows.length - fit, "pod")} out`,
    !fit ? "bad" : fit < rows.length ? "warn" : "");
  tile("Exact feeds", `${format.count(exact)} of ${format.count(rows.length)}`,
    gateway.answering < gateway.workers ? `${gateway.workers - gateway.answering} workers do not answer`
      : gateway.workers > 1 ? `${gateway.workers} workers` : "one worker",
    gateway.answering < gateway.workers || exact < rows.length ? "warn" : "");
}

/** Alerts of one name as one line: of a fleet that is down there are many. */
function byName(alerts) {
  const groups = new Map();
  for (const alert of alerts) {
    const known = groups.get(alert.name);
    if (known) { known.push(alert); } else groups.set(alert.name, [alert]);
  }
  return [...groups.values()];
}

function drawAlerts(alerts) {
  const list = find("alert-list");
  const groups = byName(alerts);
  list.hidden = !groups.length;
  find("alerts-empty").hidden = groups.length > 0;
  setText(find("alerts-empty"), "Nothing fires.");
  fill(list, groups.length, () => element("li", {}, element("strong"), element("span"), element("span", { class: "muted" })));
  groups.forEach((group, number) => {
    const [name, why, since] = list.children[number].children;
    const subjects = group.map((alert) => alert.subject).filter(Boolean);
    setText(name, group[0].name.replaceAll("_", " "));
    const whose = subjects.length ? `${subjects.slice(0, 4).join(", ")}${subjects.length > 4 ? ` and ${subjects.length - 4} others` : ""}: ` : "";
    setText(why, whose + group[0].why);
    setText(since, `since ${format.clock(Math.min(...group.map((alert) => alert.since)))}`);
  });
  badge("count-alerts", alerts.length, "firing");
}

const CAUSES = {
  first_seen: "never asked before: no cache could have it",
  changed: "the prompt differs from one before it, where a message was changed",
  evicted: "it was held, and had to go",
  routed_away: "another pod held it, and was busier than it was worth",
  other_adapter: "it is held for another LoRA adapter",
  other_salt: "it is held under another cache salt",
  tier: "it is held in a slower tier",
  block_edge: "less than a block, or the last one",
  feed_not_exact: "what the pod holds is not known for sure",
  wrong_tokens: "our tokens are not the pod's",
  pod_gone: "the pod that held it has left, or was started anew",
  no_cache_read: "the request asked for no cache",
};

function drawMisses({ missed, summary }) {
  const told = Object.entries(missed).filter(([, tokens]) => tokens > 0).sort((one, other) => other[1] - one[1]);
  const all = told.reduce((sum, [, tokens]) => sum + tokens, 0);
  const list = find("miss-list");
  list.hidden = !told.length;
  find("misses-empty").hidden = told.length > 0;
  setText(find("misses-empty"), "No token was missed so far.");
  setText(find("misses-summary"), told.length ? `${format.count(all)} prompt tokens were computed since the start` : "");
  fill(list, told.length, () => element("li", {}, element("span", { class: "cause" }), element("span", { class: "tokens" }),
    element("span", { class: "meter", "aria-hidden": "true" }, element("i", { class: "gpu" })), element("span", { class: "reason" })));
  told.forEach(([cause, tokens], number) => {
    const [name, value, meter, why] = list.children[number].children;
    setText(name, cause.replaceAll("_", " "));
    setText(value, `${format.count(tokens)} · ${format.percent(tokens / all)}`);
    meter.firstChild.style.width = `${((100 * tokens) / told[0][1]).toFixed(1)}%`;
    setText(why, CAUSES[cause] ?? "");
  });
  drawSentences(summary);
}

/** What the last requests say, in sentences. */
function drawSentences(summary) {
  const { prompt_tokens: asked, requests } = summary;
  const share = (tokens) => format.percent(asked ? tokens / asked : null);
  find("lately").hidden = !requests;
  setText(find("lately-head"), `Of the last ${format.plural(requests, "request")}, with ${format.count(asked)} prompt tokens: `
    + `${share(summary.reachable_tokens)} some pod held, ${share(summary.captured_tokens)} the picked pod held, `
    + `${share(summary.delivered_tokens)} were read from its cache.`);
  const list = find("lately-list");
  const sentences = summary.missed.slice(0, SENTENCES_MAX);
  fill(list, sentences.length, () => element("li"));
  sentences.forEach((one, number) => setText(list.children[number], one.sentence));
}

function fill(list, count, make) {
  while (list.childElementCount > count) list.lastChild.remove();
  while (list.childElementCount < count) list.append(make());
}

function badge(id, number, what) {
  const place = find(id);
  place.hidden = !number;
  setText(place, number ? String(number) : "");
  place.title = number ? `${number} ${what}` : "";
}

function drawCounts(rows) {
  badge("count-fleet", rows.filter((row) => !row.fit).length, "not fit");
  badge("count-feeds", rows.filter((row) => row.state !== "exact").length, "not exact");
}

// --- what is read out: only what an operator would want to be told ---

let told = null;
let toldAt = 0;

function tellNews(rows) {
  const unfit = rows.filter((row) => standing(row) === "unfit").map(nameOf);
  const firing = byName(newest.alerts).map(([alert]) => alert.name.replaceAll("_", " "));
  const now = JSON.stringify([unfit, firing]);
  if (told === null) told = now;
  if (now === told || performance.now() - toldAt < NEWS_MS) return;
  told = now;
  toldAt = performance.now();
  const pods = unfit.length ? `${format.plural(unfit.length, "pod")} not fit: ${unfit.slice(0, 3).join(", ")}${unfit.length > 3 ? " and others" : ""}.` : "All pods are fit.";
  const alerts = firing.length ? ` Alerts: ${firing.join(", ")}.` : " No alert fires.";
  setText(find("news"), pods + alerts);
}

// --- the tools ---

find("pause").addEventListener("click", () => {
  paused = !paused;
  find("pause").setAttribute("aria-pressed", String(paused));
  setText(find("pause"), paused ? "Resume" : "Pause");
  if (paused) say("paused", "Paused");
  else { drawn = newest === null; draw(); }
});

const THEMES = ["auto", "light", "dark"];

function showTheme() {
  const name = document.documentElement.dataset.theme ?? "auto";
  setText(find("theme-name"), name);
  find("theme").setAttribute("aria-label", `Theme: ${name}`);
}

find("theme").addEventListener("click", () => {
  const next = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme ?? "auto") + 1) % THEMES.length];
  if (next === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
  try { localStorage.setItem("warmroute-theme", next); } catch { /* nothing may be kept here */ }
  showTheme();
  charts.redraw();
});

showTheme();
begin();
