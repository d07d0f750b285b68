// The status page: takes the daemon's stream apart and hands it out.

import { Card, condition, rank, trouble } from "./backends.js";
import { ResponseTimes } from "./charts.js";
import * as letters from "./letters.js";
import { follow } from "./stream.js";
import * as timeline from "./timeline.js";
import { by, clock, count, el, list, say, show, some, time, whole, ZONE } from "./words.js";

const SIGNS = { HEALTHY: "✔", DEGRADED: "▲", CRITICAL: "✖", EMERGENCY: "‼" };
const MEANS = {
  HEALTHY: "There is no critical condition, and at least 80 % of the backends are operational.",
  DEGRADED: "Fallbacks answer for some backends, or a queue is filling up.",
  CRITICAL: "There is one critical condition: calls of low priority are answered only from fallbacks.",
  EMERGENCY: "There are two or more critical conditions: no caller’s write goes to a backend; writes are queued if possible.",
};
const cards = new Map();
const responseTimes = new ResponseTimes();
let view;
let page;
/// When the state was last heard, by this computer's clock.
let heard;
let retryAt;
let spoken = "";

const hear = {
  hello(hello) {
    page ??= hello.page;
    show(by("newer"), page !== hello.page);
    letters.rights(hello.rights);
    say(by("about"), `fusebox ${hello.version}. Times are ${ZONE}’s.`);
  },
  history(told) {
    timeline.history(told);
  },
  state(state) {
    clock.hear(state.at);
    heard = Date.now();
    if (view && view.started !== state.started) {
      const text = `the daemon was restarted; the last data before that is from ${time(view.at)}`;
      timeline.happened("run", { at: state.started, text });
    }
    view = state;
    timeline.state(view);
    system();
    backends();
    letters.take(view);
    announce();
    tick();
  },
};

function link(word, detail) {
  document.body.dataset.link = word;
  const lost = word === "lost";
  show(by("lost"), lost);
  show(by("system-was"), lost && heard !== undefined);
  retryAt = lost ? Date.now() + detail.wait : undefined;
  if (lost) {
    const seen = heard ? `Connection lost, last seen ${time(heard + clock.ahead)}.` : "The daemon does not answer.";
    say(by("lost-text"), seen + (detail.why ? ` Reason: ${detail.why}.` : ""));
    say(by("announce-link"), seen);
    say(by("link-text"), heard ? "connection lost" : "no answer");
  } else {
    say(by("announce-link"), "");
  }
  title();
  tick();
}

function title() {
  const lost = document.body.dataset.link === "lost";
  const state = lost ? "connection lost" : view?.state ?? "…";
  say(document.querySelector("title"), `${lost ? "?" : SIGNS[view?.state] ?? "…"} ${state} · fusebox ${location.host}`);
}

function system() {
  const section = by("system");
  section.dataset.state = view.state;
  say(by("system-sign"), SIGNS[view.state] ?? "?");
  say(by("system-state"), view.state);
  const allWell = Object.values(view.backends).every((backend) => backend.operational);
  say(by("system-means"), view.state === "HEALTHY" && allWell ? "Everything answers." : MEANS[view.state] ?? "");
  list(by("reasons"), view.reasons.filter((reason) => !isSaid(reason)));
  title();
  sinceWhen();
  const all = Object.values(view.backends);
  const sum = (of) => all.reduce((total, backend) => total + of(backend), 0);
  const figures = {
    Operational: `${all.filter((backend) => backend.operational).length} of ${some(all.length, "backend")} (${Math.round(view.operational_percent)} %)`,
    Queued: some(sum((backend) => backend.queue.calls), "call"),
    "Dead letters": count(sum((backend) => backend.queue.dead_letters)),
    Recoveries: `${count(view.recovery.succeeded)} worked, ${count(view.recovery.failed)} failed; ${some(view.recovery.replayed, "call")} replayed`,
  };
  if (view.stray_stores.length > 0) figures["Stores of no backend"] = view.stray_stores.join(", ");
  const totals = by("totals");
  const pairs = Object.entries(figures).flat();
  pairs.forEach((text, index) =>
    say(totals.children[index] ?? totals.appendChild(el(index % 2 ? "dd" : "dt")), text));
  while (totals.children.length > pairs.length) totals.lastElementChild.remove();
}

/// Whether a reason says no more than that a backend is down, as the list of what is broken does.
function isSaid(reason) {
  const said = reason.replace(/^critical /, "");
  return Object.values(view.backends).some(({ name, operational }) =>
    !operational && said.startsWith(`backend ${name} is down (`) && said.indexOf(")") === said.length - 1);
}

function sinceWhen() {
  const now = clock.now();
  say(by("system-since"), `since ${time(view.since)} (${whole(now - Date.parse(view.since))});` +
    ` the daemon runs since ${time(view.started)} (${whole(now - Date.parse(view.started))})`);
}

function backends() {
  const all = Object.values(view.backends);
  for (const name of cards.keys()) {
    if (!view.backends[name]) {
      cards.get(name).node.remove();
      cards.delete(name);
    }
  }
  for (const backend of all) {
    if (!cards.has(backend.name)) cards.set(backend.name, new Card(backend, letters));
    cards.get(backend.name).take(backend, Date.parse(view.at), view.started);
  }
  sort(all.sort((a, b) => rank(a) - rank(b) || (a.name < b.name ? -1 : 1)));
  troubles();
}

/// The broken ones first. Nothing is moved if the order is right, nor under a reader's focus.
function sort(sorted) {
  const nodes = sorted.map((backend) => cards.get(backend.name).node);
  const right = nodes.every((node, index) => by("backends").children[index] === node);
  if (right) return;
  if (nodes.every((node) => node.isConnected) && by("backends").contains(document.activeElement)) return;
  by("backends").replaceChildren(...nodes);
}

function troubles() {
  const broken = Object.values(view.backends).filter((backend) =>
    !backend.operational || backend.impaired_by.length > 0 || backend.queue.calls > 0);
  list(by("broken"), broken.map((backend) => trouble(backend, cards.get(backend.name).samples)));
}

/// Says aloud what changed, and only that.
function announce() {
  const states = Object.values(view.backends).map((backend) => `${backend.name} ${condition(backend)}`);
  const text = `System ${view.state}. ${states.join(", ")}.`;
  if (text !== spoken) say(by("announce"), text);
  spoken = text;
}

/// What changes by the passing of time.
function tick() {
  if (retryAt !== undefined) {
    const left = Math.max(0, Math.ceil((retryAt - Date.now()) / 1000));
    say(by("lost-next"), `Everything below is from that time. ${left > 0 ? `Next try in ${left} s.` : "Trying …"}`);
  } else if (heard !== undefined) {
    say(by("link-text"), `live, ${time(heard + clock.ahead)}`);
    sinceWhen();
    for (const card of cards.values()) card.draw();
    troubles();
  }
}

async function measure() {
  if (document.body.dataset.link === "live") {
    const times = await responseTimes.look().catch(() => undefined);
    for (const [name, card] of cards) card.timed(clock.now(), times?.get(name));
  }
  setTimeout(measure, 5_000);
}

say(by("place"), location.host);
const retry = follow((name, data) => (hear[name] ?? ((told) => timeline.happened(name, told)))(data), link);
by("retry").addEventListener("click", retry);
by("reload").addEventListener("click", () => location.reload());
setInterval(tick, 1_000);
measure();
