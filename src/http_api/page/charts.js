// Fifteen minutes of queue and response times as lines, and the response times themselves: the deltas
// of the histogram in /metrics, since a percentile since the start hardly moves.

import { count, el, millis, say, svg, whole } from "./words.js";

const SPAN = 15 * 60_000;
const WIDTH = 300;
const HEIGHT = 56;
/// A longer silence between two points is a gap.
const GAP = 20_000;

/// A figure with one line per name of `lines`; `unit` writes a value.
export class Chart {
  constructor(title, lines, unit) {
    Object.assign(this, { title, lines, unit, points: [] });
    this.paths = lines.map((line) => svg("path", { class: `line ${line}` }));
    this.picture = svg("svg", {
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img",
    }, svg("path", { class: "base", d: `M0 ${HEIGHT - 0.5}H${WIDTH}` }), ...this.paths);
    this.caption = el("figcaption");
    this.from = el("span");
    this.most = el("span");
    // The picture's label says the same.
    const unspoken = { "aria-hidden": "true" };
    this.node = el("figure", { class: "chart" }, this.caption,
      el("p", { class: "scale", ...unspoken }, this.most, el("span", {}, "0")), this.picture,
      el("p", { class: "axis", ...unspoken }, this.from, el("span", {}, "now")));
  }

  /// Adds a point: one value per line, `undefined` for none.
  add(at, values) {
    this.points.push({ at, values });
    while (this.points[0].at < at - SPAN) this.points.shift();
  }

  draw(now) {
    const all = this.points.flatMap((point) => point.values).filter(Number.isFinite);
    const most = Math.max(0, ...all);
    this.paths.forEach((path, line) => path.setAttribute("d", this.path(line, now, most || 1)));
    const last = this.points.at(-1)?.values ?? [];
    const current = this.lines.map((line, index) =>
      (this.lines.length > 1 ? `${line} ` : "") + (Number.isFinite(last[index]) ? this.unit(last[index]) : "–"));
    const span = this.span(now);
    say(this.caption, `${this.title}: ${current.join(" · ")}${most > 0 ? `, at most ${this.unit(most)}` : ""}`);
    say(this.from, `${whole(span)} ago`);
    say(this.most, most > 0 ? this.unit(most) : "");
    const spoken = `${this.title} of the last ${whole(span)}: now ${current.join(", ")}; at most ${this.unit(most)}`;
    if (this.picture.getAttribute("aria-label") !== spoken) this.picture.setAttribute("aria-label", spoken);
  }

  /// What the width shows: all that there is, from a minute to fifteen.
  span(now) {
    const age = now - (this.points[0]?.at ?? now);
    return Math.min(SPAN, Math.max(60_000, Math.ceil(age / 60_000) * 60_000));
  }

  path(line, now, most) {
    const span = this.span(now);
    let path = "";
    let before;
    for (const { at, values } of this.points) {
      const value = values[line];
      if (!Number.isFinite(value)) continue;
      const x = WIDTH * (1 - (now - at) / span);
      const y = (HEIGHT - 2) * (1 - value / most) + 1;
      const place = `${x.toFixed(1)} ${y.toFixed(1)}`;
      // A point with a gap on either side is a dot.
      path += before === undefined || at - before > GAP ? `M${place}h.1` : `L${place}`;
      before = at;
    }
    return path;
  }
}

export const calls = (value) => count(Math.round(value));

/// Percentiles of the attempts between two looks at /metrics.
export class ResponseTimes {
  #before = new Map();

  /// Each backend's `{ p50, p99, attempts }` since the last look.
  async look() {
    const response = await fetch("metrics", { cache: "no-store" });
    if (!response.ok) return new Map();
    const buckets = read(await response.text());
    const times = new Map();
    for (const [backend, now] of buckets) {
      const before = this.#before.get(backend);
      if (before) times.set(backend, between(before, now));
    }
    this.#before = buckets;
    return times;
  }
}

function read(text) {
  const backends = new Map();
  const sample = /^fusebox_attempt_duration_seconds_bucket\{(.*)\} ([0-9.e+]+)/gm;
  for (const [, labels, value] of text.matchAll(sample)) {
    const backend = /(?:^|,)backend="([^"]*)"/.exec(labels)?.[1];
    const le = /(?:^|,)le="([^"]*)"/.exec(labels)?.[1];
    if (backend === undefined || le === undefined) continue;
    const bound = le === "+Inf" ? Infinity : Number(le) * 1000;
    const own = backends.get(backend) ?? new Map();
    own.set(bound, (own.get(bound) ?? 0) + Number(value));
    backends.set(backend, own);
  }
  return backends;
}

function between(before, now) {
  const bounds = [...now.keys()].sort((a, b) => a - b);
  const grown = bounds.map((bound) => now.get(bound) - (before.get(bound) ?? 0));
  const attempts = grown.at(-1) ?? 0;
  // Less than nothing: the daemon started again.
  if (!(attempts > 0) || grown.some((value) => value < 0)) return { attempts: 0 };
  const at = (share) => {
    const index = grown.findIndex((value) => value >= share * attempts);
    const [low, high] = [bounds[index - 1] ?? 0, bounds[index]];
    if (!Number.isFinite(high)) return low;
    const [below, within] = [grown[index - 1] ?? 0, grown[index] - (grown[index - 1] ?? 0)];
    return low + (high - low) * ((share * attempts - below) / within);
  };
  return { p50: at(0.5), p99: at(0.99), attempts };
}

export const responseChart = () => new Chart("Response time", ["p50", "p99"], millis);
export const queueChart = () => new Chart("Queued calls", ["queue"], calls);
