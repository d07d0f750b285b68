// What the status page works out for itself, checked without a browser.
//
// usage: page_words.mjs FOLDER-OF-THE-PAGE
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";

// The page's files as modules, whatever a package.json above them says.
const folder = process.argv[2];
const urls = {};
async function load(name) {
  let text = readFileSync(join(folder, name), "utf8");
  for (const [, other] of text.matchAll(/from "\.\/([a-z]+\.js)"/g)) {
    urls[other] ??= await load(other);
    text = text.replaceAll(`"./${other}"`, JSON.stringify(urls[other]));
  }
  return `data:text/javascript,${encodeURIComponent(text)}`;
}
const { drain: drained, rank } = await import(await load("backends.js"));
const words = await import(urls["words.js"]);
/// Figures and units are glued together by a space that does not break.
const plain = (text) => text.replaceAll("\u00a0", " ");
const drain = (...how) => plain(drained(...how));
const because = (transition) => plain(words.because(transition));
const span = (millis) => plain(words.span(millis));
const percent = (share) => plain(words.percent(share));
const { ResponseTimes } = await import(urls["charts.js"]);

const view = (queue, more = {}) => ({
  name: "redis", operational: true, offline: false, critical: false, alerts: [], impaired_by: [],
  queue: { calls: 0, replay_paused: null, ...queue }, breaker: { state: "CLOSED", open_until: null }, ...more,
});
/// One sample a second: the queue's length and what has been replayed.
const samples = (...pairs) => pairs.map(([calls, replayed], second) =>
  ({ at: 1000 * second, run: 1, calls, replayed }));

// When the queue will be empty.
assert.equal(drain(view({}), samples([0, 0])), "nothing waits");
assert.equal(drain(view({ calls: 500 }), samples([500, 0])), "about to be replayed");
assert.equal(drain(view({ calls: 500 }), samples([700, 0], [600, 100], [500, 200])),
  "empty in about 5 s (100 calls/s replayed)");
assert.equal(drain(view({ calls: 600 }), samples([500, 0], [550, 100], [600, 200])),
  "not shrinking: 100 calls/s replayed, as many come in");
// It grew until now and shrinks at last.
assert.match(drain(view({ calls: 900 }), samples([500, 0], [1000, 0], [900, 100])), /^empty in about 9 s/);
// It was paused and then began.
assert.equal(drain(view({ calls: 500 }), samples([700, 0], [700, 0], [700, 0], [600, 100], [500, 200])),
  "empty in about 5 s (100 calls/s replayed)");
// What a run before this one replayed says nothing.
const restarted = [{ at: 0, run: 0, calls: 900, replayed: 5000 }, { at: 1000, run: 1, calls: 800, replayed: 0 }];
assert.equal(drain(view({ calls: 800 }), restarted), "about to be replayed");
const open = { operational: false,
  breaker: { state: "OPEN", open_until: new Date(Date.now() + 12_000).toISOString() } };
assert.equal(drain(view({ calls: 3, replay_paused: "the breaker is open" }, open), samples([3, 0])),
  "waits: the breaker is open; at the earliest in 12 s, when the breaker half-opens");

// The broken come first, the critical before all.
const down = view({}, { operational: false });
const ranks = [view({}, { operational: false, critical: true }), down, view({ calls: 1 }), view({})].map(rank);
assert.deepEqual(ranks, [0, 1, 2, 3]);

// Why.
const transition = { reason: "failure_rate", failures: 4, calls: 5, failure_threshold: 3,
  failure_rate_threshold: 0.5, last_errors: [{ code: "connect" }, { code: "timeout" }, { code: "connect" }] };
assert.equal(because(transition),
  "too many calls failed: 4 of 5 calls (trips at 3 failures and 50 %); last errors: connect ×2, timeout");
assert.equal(because({ ...transition, reason: "probes_succeeded" }), "probes succeeded");
assert.equal(because({ reason: "new_word", note: "n" }), "new_word: “n”");

assert.deepEqual([0, 1400, 59_600, 60_000, 7_200_000, 200_000_000].map(span),
  ["0 s", "1.4 s", "1 min", "1 min", "2 h", "2 d 7 h"]);
assert.deepEqual([0, 0.0001, 0.05, 0.5, 1].map(percent), ["0 %", "under 0.1 %", "5.0 %", "50 %", "100 %"]);

// Percentiles between two looks, over all labels but the backend's.
const page = (...buckets) => buckets.map(([le, value, more = ""]) =>
  `fusebox_attempt_duration_seconds_bucket{${more}le="${le}",backend="redis"} ${value}`).join("\n");
const looks = [
  page(["0.001", 100], ["0.01", 100], ["+Inf", 100]),
  page(["0.001", 150, 'class="read",'], ["0.01", 190, 'class="read",'], ["+Inf", 199, 'class="read",'],
    ["0.001", 0, 'class="write",'], ["0.01", 10, 'class="write",'], ["+Inf", 11, 'class="write",']),
  page(["0.001", 1], ["0.01", 1], ["+Inf", 1]),
];
globalThis.fetch = async () => ({ ok: true, text: async () => looks.shift() });
const times = new ResponseTimes();
assert.equal((await times.look()).get("redis"), undefined);
const { p50, p99, attempts } = (await times.look()).get("redis");
assert.equal(attempts, 110);
assert.ok(p50 > 1 && p50 < 2, `${p50}`);
assert.equal(p99, 10, "beyond the last bound there is only that bound");
assert.deepEqual((await times.look()).get("redis"), { attempts: 0 }, "the daemon started again");
