// Elements, times and figures. Whatever the daemon says is put in as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";

/// An element with attributes and children; a child that is no node becomes text.
export function el(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

export const by = (id) => document.getElementById(id);

/// Touches the document only if something changed: a reader's place and focus stay.
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function show(node, yes) {
  if (node.hidden === yes) node.hidden = !yes;
}

/// Makes the children of a list those of `texts`.
export function list(node, texts) {
  while (node.children.length > texts.length) node.lastElementChild.remove();
  texts.forEach((text, index) => {
    const item = node.children[index] ?? node.appendChild(el("li"));
    say(item, text);
  });
  show(node, texts.length > 0);
}

/// The daemon's clock, as of its last message.
export const clock = {
  ahead: 0,
  hear(at) {
    this.ahead = Date.parse(at) - Date.now();
  },
  now() {
    return Date.now() + this.ahead;
  },
};

const TIME = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });
const DAY = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });
export const ZONE = Intl.DateTimeFormat().resolvedOptions().timeZone || "local time";

/// A time of day; with its day if that is not today.
export function time(at) {
  const date = new Date(at);
  const today = new Date(clock.now()).toDateString() === date.toDateString();
  return today ? TIME.format(date) : `${DAY.format(date)} ${TIME.format(date)}`;
}

/// A figure and its unit stay on one line.
const GLUE = "\u00a0";
const two = (large, unit, small, smaller) => `${large}${GLUE}${unit}${small > 0 ? `${GLUE}${small}${GLUE}${smaller}` : ""}`;

export function span(millis) {
  const seconds = Math.max(0, millis) / 1000;
  if (seconds < 10 && seconds % 1 > 0.05) return `${seconds.toFixed(1)}${GLUE}s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole}${GLUE}s`;
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return two(minutes, "min", whole % 60, "s");
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return two(hours, "h", minutes % 60, "min");
  return two(Math.floor(hours / 24), "d", hours % 24, "h");
}

export const whole = (millis) => span(Math.round(millis / 1000) * 1000);
const NUMBER = new Intl.NumberFormat("en");
export const count = (number) => NUMBER.format(number);
export const some = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

export function percent(share) {
  const value = share * 100;
  if (value > 0 && value < 0.05) return "under 0.1 %";
  return `${value > 0 && value < 10 ? value.toFixed(1) : Math.round(value)}${GLUE}%`;
}

export function millis(value) {
  if (!(value > 0)) return "–";
  if (value >= 1000) return `${(value / 1000).toFixed(1)}${GLUE}s`;
  if (value < 0.1) return "under 0.1 ms";
  return `${value >= 10 ? Math.round(value) : value.toPrecision(2)}${GLUE}ms`;
}

const REASONS = {
  failure_rate: "too many calls failed",
  burst: "a burst of failures",
  pings_failed: "pings failed in a row",
  probe_failed: "a probe failed",
  probe_timeout: "a probe was never answered",
  recovery_timeout: "its open time was over",
  pings_answered: "its pings are answered again",
  dependency_returned: "the backends that it depends on are back",
  forced_recovery: "an operator asked for a recovery",
  probes_succeeded: "probes succeeded",
  forced_open: "an operator forced it open",
  forced_closed: "an operator forced it closed",
  released: "an operator released it",
  force_expired: "the force expired",
  reset: "an operator reset it",
  slow_calls: "too many calls were slow",
  probe_slow: "a probe was slow",
};
const TRIPS = ["failure_rate", "burst", "pings_failed"];
const isTrip = (transition) => TRIPS.includes(transition.reason);

/// What trips a breaker; a rate of 0 is one that is not looked at.
export function trips(failures, rate) {
  return `trips at ${some(failures, "failure")}${rate > 0 ? ` and ${percent(rate)}` : ""}`;
}

/// Why a transition came about, in words and figures.
export function because(transition) {
  let text = REASONS[transition.reason] ?? String(transition.reason);
  if (["failure_rate", "burst"].includes(transition.reason)) {
    const rate = transition.reason === "burst" ? 0 : transition.failure_rate_threshold;
    text += `: ${count(transition.failures)} of ${some(transition.calls, "call")}` +
      ` (${trips(transition.failure_threshold, rate)})`;
  }
  const codes = new Map();
  const failed = isTrip(transition) || ["probe_failed", "probe_timeout"].includes(transition.reason);
  for (const error of failed ? transition.last_errors ?? [] : []) {
    codes.set(error.code, (codes.get(error.code) ?? 0) + 1);
  }
  if (codes.size > 0) {
    const told = [...codes].map(([code, times]) => (times > 1 ? `${code} ×${times}` : code));
    text += `; last errors: ${told.join(", ")}`;
  }
  if (transition.note) text += `: “${transition.note}”`;
  return text;
}
