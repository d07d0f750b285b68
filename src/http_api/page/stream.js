// The daemon's stream, followed for as long as the page is open. Not by EventSource: that keeps an
// answer's status and words to itself, gives up after some of them, and does not notice silence.

const SILENCE = 12_000;
const FIRST_WAIT = 500;
const LONGEST_WAIT = 10_000;

/// `hear(name, data)` is called for each event, `link(state, detail)` when the connection comes
/// ("live") or goes ("lost", { why, wait }). Returns what ends a wait at once.
export function follow(hear, link) {
  let wake = () => {};
  run(hear, link, (resolve) => (wake = resolve));
  const now = () => wake();
  addEventListener("online", now);
  document.addEventListener("visibilitychange", () => document.hidden || now());
  return now;
}

async function run(hear, link, waiting) {
  for (let failures = 0; ; failures += 1) {
    const why = await once((name, data) => {
      if (name === "state") failures = 0;
      hear(name, data);
    }, link);
    const wait = Math.min(LONGEST_WAIT, FIRST_WAIT * 2 ** failures) * (0.75 + Math.random() / 2);
    link("lost", { why, wait });
    await new Promise((resolve) => {
      waiting(resolve);
      setTimeout(resolve, wait);
    });
  }
}

/// Listens until the connection ends, and says why it did; "" if nobody answers.
async function once(hear, link) {
  const abort = new AbortController();
  let timer = setTimeout(() => abort.abort(), SILENCE);
  try {
    const response = await fetch("health/stream", { signal: abort.signal, cache: "no-store" });
    if (!response.ok) {
      const problem = await response.json().catch(() => ({}));
      return problem.detail ?? `the daemon answers ${response.status}`;
    }
    link("live");
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let text = ""; ; ) {
      const { done, value } = await reader.read();
      if (done) return "the daemon ended it";
      clearTimeout(timer);
      timer = setTimeout(() => abort.abort(), SILENCE);
      const events = (text + value).split("\n\n");
      text = events.pop();
      for (const event of events) tell(event, hear);
    }
  } catch {
    return abort.signal.aborted ? "nothing was heard for 12 s" : "";
  } finally {
    clearTimeout(timer);
    abort.abort();
  }
}

function tell(text, hear) {
  let name = "message";
  const data = [];
  for (const line of text.split("\n")) {
    if (line.startsWith("event:")) name = line.slice(6).trim();
    else if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
  }
  if (data.length > 0) hear(name, JSON.parse(data.join("\n")));
}
