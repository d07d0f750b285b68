// What happened, newest first: the history that the daemon tells at the beginning, then what it tells
// as it happens.

import { because, by, count, el, some, time } from "./words.js";

const KEPT = 60;
/// By what it is, so that what arrives twice is shown once.
let entries = new Map();

/// With which the outage of a backend began, kept apart because it may be older than the history.
let began = new Map();

export function history({ transitions, began: outages }) {
  began = new Map(outages.map((transition) => [transition.backend, transition]));
  const others = [...entries].filter(([, entry]) => !entry.transition);
  entries = new Map(others);
  for (const transition of transitions) note("transition", transition);
  draw();
}

export function happened(name, data) {
  if (note(name, data)) draw();
}

/// Takes each backend's newest transition: one may have fallen between the history and the events.
export function state(view) {
  const oldest = entries.size < KEPT ? "" : [...entries.values()].at(-1).at;
  for (const { name, breaker } of Object.values(view.backends)) {
    if (breaker.last_transition?.at >= oldest) happened("transition", { ...breaker.last_transition, backend: name });
  }
}

/// With what the newest outage of a backend began.
export const beginning = (backend) => began.get(backend);

function note(name, data) {
  const what = words(name, data);
  if (!what) return false;
  const who = data.backend ?? (name === "system_state" ? "system" : "daemon");
  const older = began.get(who)?.at > data.at;
  if (name === "transition" && data.from === "CLOSED" && !older) began.set(who, data);
  const key = `${data.at} ${who} ${what.change ?? what.text}`;
  const news = !entries.has(key);
  entries.set(key, { at: data.at, who, ...what, transition: name === "transition" });
  return news;
}

function words(name, data) {
  switch (name) {
    case "transition":
      return { change: `${data.from} → ${data.to}`, to: data.to, text: because(data) };
    case "system_state":
      return { change: `${data.from} → ${data.to}`, to: data.to, text: data.reasons.join("; ") };
    case "offline":
      return { text: data.offline ? "offline by an operator’s order" : "online again" };
    case "dead_letter":
      return { text: "a queued call became a dead letter" };
    case "replay":
      if (data.phase === "started") return { text: `replay began, ${some(data.waiting, "call")} wait` };
      if (data.phase === "drained") return { text: `queue drained, ${count(data.replayed)} replayed` };
      if (data.phase === "paused") return { text: `replay paused: ${data.reason}` };
      return undefined;
    case "run":
      return { text: data.text };
    default:
      return undefined;
  }
}

function draw() {
  const newest = [...entries].sort(([, a], [, b]) => (a.at < b.at ? 1 : a.at > b.at ? -1 : 0));
  entries = new Map(newest.slice(0, KEPT));
  const rows = [...entries.values()].map((entry) => el("tr", { role: "row" },
    el("td", { role: "cell" }, el("time", { datetime: entry.at, title: entry.at }, time(entry.at))),
    el("th", { scope: "row", role: "rowheader" }, entry.who),
    el("td", { role: "cell" }, entry.change && el("strong", { "data-to": entry.to }, entry.change),
      entry.change && entry.text ? ": " : null, entry.text)));
  by("timeline").replaceChildren(...(rows.length > 0
    ? rows : [el("tr", {}, el("td", { colspan: 3 }, "Nothing yet."))]));
}
