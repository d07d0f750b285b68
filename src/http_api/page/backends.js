// A card per backend: what state it is in and why, what will happen next, what waits and how long.

import { queueChart, responseChart } from "./charts.js";
import { beginning } from "./timeline.js";
import {
  because, clock, count, el, list, millis, percent, say, some, time, trips, whole,
} from "./words.js";

const SIGNS = { CLOSED: "✔", OPEN: "✖", HALF_OPEN: "◐", OFFLINE: "⏻", OPENING: "…" };
const SOURCES = ["live", "cache", "stale", "queued", "empty", "bypass", "error"];
const MINUTE = 60_000;
/// How far back the rate of draining looks.
const RATE_SPAN = 30_000;

/// What holds a backend back, in one word.
export const condition = (view) =>
  view.opening ? "OPENING" : view.offline ? "OFFLINE" : view.breaker.state;

/// How urgently an operator must look: smaller is more.
export function rank(view) {
  if (!view.operational) return view.critical ? 0 : 1;
  return view.alerts.length > 0 || view.impaired_by.length > 0 || view.queue.calls > 0 ? 2 : 3;
}

/// What happens next with the breaker, and when.
export function next(view) {
  const { breaker } = view;
  if (view.opening) return "Its queue is large and is still being opened: until it is open, there are no live calls, pings or replay.";
  if (view.offline) return "There are no live calls, pings or replay until an operator takes it online.";
  if (breaker.forced) {
    const { state, until, reason } = breaker.forced;
    const end = until ? `until ${time(until)} (${whole(Date.parse(until) - clock.now())} left)` : "until it is released";
    return `Forced ${state} ${end}: “${reason}”.`;
  }
  if (breaker.state === "HALF_OPEN") return "Probing: enough successes in a row close it, one failure reopens it.";
  if (breaker.state !== "OPEN") return "";
  if (!breaker.open_until) return "Stays open until an operator asks for a recovery.";
  const left = Date.parse(breaker.open_until) - clock.now();
  return left > 0 ? `Half-opens in ${whole(left)}, at ${time(breaker.open_until)}.` : "Half-opens now.";
}

/// Why the breaker is as it is.
export function why(view) {
  const last = view.breaker.last_transition;
  if (!last) return "";
  let text = `${last.from} → ${last.to} at ${time(last.at)}: ${because(last)}.`;
  const first = beginning(view.name);
  if (last.to !== "CLOSED" && first && first.at < last.at) {
    text += ` First opened at ${time(first.at)}: ${because(first)}.`;
  }
  return text;
}

/// The newest sample of the same run that is at least `age` old, or else the oldest of the run.
function earlier(samples, age) {
  const now = samples.at(-1);
  const own = samples.filter((sample) => sample.run === now.run);
  return own.findLast((sample) => now.at - sample.at >= age) ?? own[0];
}

/// When the queue will be empty, from what it did of late.
export function drain(view, samples) {
  const { calls, replay_paused: paused } = view.queue;
  if (calls === 0) return "nothing waits";
  const { breaker } = view;
  if (paused || !view.operational) {
    const left = breaker.open_until ? Date.parse(breaker.open_until) - clock.now() : undefined;
    const from = left > 0 ? `; at the earliest in ${whole(left)}, when the breaker half-opens` : "";
    return `waits: ${paused ?? `the backend is ${condition(view)}`}${from}`;
  }
  const now = samples.at(-1);
  const oldest = samples.indexOf(earlier(samples, RATE_SPAN));
  // A pause before replay began says nothing of its rate.
  const begun = samples.findIndex((it, index) => index > oldest && it.replayed > samples[oldest].replayed);
  const before = samples[Math.max(oldest, begun - 1)];
  const seconds = (now.at - before.at) / 1000;
  const replayed = now.replayed - before.replayed;
  if (!(seconds > 0) || replayed <= 0) return "about to be replayed";
  const rate = `${count(Math.max(1, Math.round(replayed / seconds)))} calls/s replayed`;
  const shrinking = (before.calls - now.calls) / seconds;
  // Of late it may have grown, and be shrinking only now.
  const empty = shrinking > 0 ? calls / shrinking : calls / (replayed / seconds);
  if (shrinking <= 0 && now.calls > before.calls && now.calls >= (samples.at(-2)?.calls ?? 0)) {
    return `not shrinking: ${rate}, as many come in`;
  }
  return `empty in about ${whole(empty * 1000)} (${rate})`;
}

export class Card {
  constructor(view, orders) {
    const part = (tag, cls, ...children) => (this[cls] = el(tag, { class: cls }, ...children));
    this.samples = [];
    this.name = view.name;
    this.queue = queueChart();
    this.response = responseChart();
    this.sign = el("span", { class: "sign", "aria-hidden": "true" });
    this.word = el("span");
    this.figures = new Map();
    this.mix = el("tbody");
    this.track = el("div", { class: "track", "aria-hidden": "true" }, this.fill = el("i"), this.mark = el("b"));
    const explain = el("button", { type: "button" }, "Explain …");
    const waiting = el("button", { type: "button" }, "What waits …");
    explain.addEventListener("click", () => orders.explain(this.name));
    waiting.addEventListener("click", () => orders.waiting(this.name));
    const id = `backend-${view.name}`;
    this.node = el("article", { class: "card", "data-backend": view.name, "aria-labelledby": id },
      el("h3", { id }, view.name), part("p", "target"),
      el("p", { class: "breaker" }, el("strong", { class: "badge" }, this.sign, " ", this.word), " ", part("span", "held")),
      part("ul", "flags"), part("p", "ahead"), part("p", "cause"), part("ul", "alerts"),
      el("dl", { class: "figures" },
        ...this.figure("failures", "Failures", this.track), ...this.figure("times", "Response times"),
        ...this.figure("waits", "Queue"), ...this.figure("drain", "Drain"),
        ...this.figure("dead", "Dead letters")),
      el("div", { class: "charts" }, this.queue.node, this.response.node),
      el("table", { class: "mix" }, el("caption", {}, "Answers by source"),
        el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Source"),
          this.span = el("th", { scope: "col" }), el("th", { scope: "col" }, "since start"))),
        this.mix),
      el("p", { class: "buttons needs-rights" }, explain, waiting));
  }

  figure(name, title, ...more) {
    const value = el("span");
    this.figures.set(name, value);
    return [el("dt", {}, title), el("dd", {}, value, ...more)];
  }

  /// Takes a new state of the daemon's run `run`.
  take(view, at, run) {
    this.view = view;
    const { queue, calls } = view;
    this.samples.push({ at, run, calls: queue.calls, replayed: queue.replayed, mix: calls.by_source });
    while (this.samples[0].at < at - 2 * MINUTE) this.samples.shift();
    this.queue.add(at, [queue.calls]);
    this.draw();
    this.queue.draw(at);
    this.response.draw(at);
  }

  /// Takes the response times of the last seconds.
  timed(at, times) {
    this.recent = times;
    this.response.add(at, times?.attempts > 0 ? [times.p50, times.p99] : [undefined, undefined]);
  }

  /// Draws what changes with time too.
  draw() {
    const { view } = this;
    const { breaker, queue } = view;
    const state = condition(view);
    this.node.dataset.state = state;
    say(this.sign, SIGNS[state] ?? "?");
    say(this.word, state);
    say(this.held, `since ${time(breaker.since)} (${whole(clock.now() - Date.parse(breaker.since))})`);
    say(this.target, view.target);
    list(this.flags, flags(view));
    say(this.ahead, next(view));
    say(this.cause, why(view));
    list(this.alerts, [...view.alerts, ...view.connector.warnings, ...queue.findings]);
    const figure = (name, text) => say(this.figures.get(name), text);
    figure("failures", `${count(breaker.window_failures)} of ${some(breaker.window_calls, "call")}` +
      ` (${percent(breaker.failure_rate)}) in ${whole(breaker.window_seconds * 1000)};` +
      ` ${trips(breaker.failure_threshold, breaker.failure_rate_threshold)}` +
      (breaker.window_slow > 0
        ? `; ${count(breaker.window_slow)} took longer than ${millis(breaker.slow_call_ms)}` : "") +
      (breaker.pings_failed > 0 ? `; ${some(breaker.pings_failed, "ping")} failed in a row` : ""));
    this.fill.style.width = `${100 * breaker.failure_rate}%`;
    this.mark.style.left = `${100 * breaker.failure_rate_threshold}%`;
    const since = view.calls.response_ms;
    const recent = this.recent?.attempts > 0
      ? `p50 ≈ ${millis(this.recent.p50)}, p99 ≈ ${millis(this.recent.p99)} just now; ` : "";
    figure("times", since.max > 0
      ? `${recent}p50 ${millis(since.p50)}, p99 ${millis(since.p99)} since the start` : "no calls yet");
    figure("waits", queue.calls === 0 ? `empty (holds ${count(queue.limit_calls)})`
      : `${some(queue.calls, "call")}, ${percent(queue.fill_percent / 100)} full,` +
        ` oldest ${whole(queue.oldest_age_ms + clock.now() - this.samples.at(-1).at)}`);
    this.figures.get("waits").dataset.calls = queue.calls;
    figure("drain", drain(view, this.samples) + (queue.store_refuses ? `; the store refuses writes: ${queue.store_refuses}` : ""));
    figure("dead", queue.dead_letters === 0 ? "none" : count(queue.dead_letters));
    this.sources();
  }

  sources() {
    const now = this.samples.at(-1);
    const before = earlier(this.samples, MINUTE);
    say(this.span, now === before ? "lately" : `last ${whole(now.at - before.at)}`);
    const total = now.mix;
    const used = [...SOURCES, ...Object.keys(total).filter((it) => !SOURCES.includes(it))]
      .filter((source) => total[source] > 0);
    const recent = used.map((source) => total[source] - (before.mix[source] ?? 0));
    const all = recent.reduce((sum, value) => sum + value, 0);
    const share = (value) => (all > 0 ? `${count(value)} (${percent(value / all)})` : "–");
    const rows = used.map((source, index) => [source, share(recent[index]), count(total[source])]);
    if (rows.length === 0) rows.push(["none yet", "–", "0"]);
    rows.forEach(([source, ...cells], index) => {
      const row = this.mix.rows[index] ?? this.mix.appendChild(el("tr", {},
        el("th", { scope: "row" }), el("td"), el("td")));
      [source, ...cells].forEach((text, cell) => say(row.cells[cell], text));
    });
    while (this.mix.rows.length > rows.length) this.mix.lastElementChild.remove();
  }
}

const FORESEEN = {
  watch: "worth watching",
  at_risk: "at risk of failing",
  unproven: "at risk of failing, though most of the last alarms were false",
};

/// What is predicted of a backend that a limit is near to, and how often such alarms were right.
function prediction(told) {
  const state = FORESEEN[told?.state];
  if (!state) return null;
  const when = told.eta_s === null ? "" : `; if this continues, p90 reaches the timeout in ${told.eta_s} s`;
  const alarms = told.hits + told.false_alarms;
  const score = alarms > 0 ? ` (${told.hits} of ${some(alarms, "alarm")} right so far)` : "";
  return `${state}: ${told.because ?? "no limit is near any longer"}${when}${score}`;
}

/// Which faults on purpose are set, and until when.
function faults({ faults: all, until, suspended }) {
  const kinds = all.map((fault) => fault.kind).join(", ");
  return `faults on purpose until ${time(until)}: ${kinds}${suspended ? `; suspended: ${suspended}` : ""}`;
}

function flags(view) {
  const { breaker } = view;
  const flags = [];
  if (view.critical) flags.push("critical");
  if (breaker.forced) flags.push(`forced ${breaker.forced.state}, underneath ${breaker.underlying}`);
  if (view.chaos) flags.push(faults(view.chaos));
  if (view.opening) flags.push(`its queue is being opened, breaker ${breaker.state}`);
  if (view.offline) flags.push(`offline, breaker ${breaker.state}`);
  if (view.impaired_by.length > 0) flags.push(`impaired by ${view.impaired_by.join(", ")}`);
  if (view.depends_on.length > 0) flags.push(`depends on ${view.depends_on.join(", ")}`);
  const { read, write } = view.calls?.in_flight_limit_would_be ?? {};
  const would = [read && `${read} reads`, write && `${write} writes`].filter(Boolean).join(" and ");
  if (would) flags.push(`at most ${view.calls.in_flight_limit} in flight; an adaptive limit would be ${would}`);
  const foreseen = prediction(view.prediction);
  if (foreseen) flags.push(foreseen);
  if (breaker.exponent > 0) flags.push(`${some(breaker.exponent, "failed recovery", "failed recoveries")}`);
  if (view.restarts > 0) flags.push(`actor restarted ${some(view.restarts, "time")}`);
  return flags;
}

/// A backend's trouble in a few words, for the top of the page. What caused it is in its card.
export function trouble(view, samples) {
  const critical = view.critical && !view.operational ? "critical backend " : "";
  const parts = [`${critical}${view.name} is ${condition(view)}`];
  const ahead = next(view);
  if (ahead) parts.push(ahead.replace(/\.$/, ""));
  if (view.impaired_by.length > 0) parts.push(`Impaired by ${view.impaired_by.join(", ")}`);
  if (view.queue.calls > 0) {
    const then = view.operational ? drain(view, samples) : "to be replayed once it is back";
    parts.push(`${some(view.queue.calls, "call")} queued, ${then}`);
  }
  return `${parts.join(". ")}.`;
}
