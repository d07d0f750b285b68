// Dead letters and what else wants rights: over TCP the token, asked for here, kept for this tab, and
// sent in a header alone.

import { by, count, el, say, show, some, time, whole } from "./words.js";

const KEY = "fusebox-token";
const PAGE = 50;
const dialog = by("dialog");

const state = {
  /// What the daemon says of this listener: "admin", "token" or "none".
  rights: "none",
  token: stored(),
  /// Dead letters per backend.
  counts: new Map(),
  limit: PAGE,
  asked: "",
};

function stored() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return "";
  }
}

function keep(token) {
  state.token = token;
  try {
    if (token) sessionStorage.setItem(KEY, token);
    else sessionStorage.removeItem(KEY);
  } catch {
    // Then it is kept until the page is left.
  }
}

const allowed = () => state.rights === "admin" || (state.rights === "token" && state.token !== "");

/// Asks the daemon. Throws what it says if it refuses.
async function ask(method, path, body, token = state.token) {
  const headers = { accept: "application/json" };
  if (state.rights === "token") headers.authorization = `Bearer ${token}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  const response = await fetch(path, { method, headers, cache: "no-store", body: body && JSON.stringify(body) });
  const answer = await response.json().catch(() => ({}));
  if (response.ok) return answer;
  if (response.status === 401 && token === state.token) {
    keep("");
    draw();
  }
  throw Object.assign(new Error(answer.detail ?? `the daemon answers ${response.status}`), { status: response.status });
}

const path = (...parts) => parts.map(encodeURIComponent).join("/");

/// Takes what the daemon says of this listener's rights.
export function rights(word) {
  state.rights = word;
  state.asked = "";
  draw();
}

/// Takes a new state.
export function take(view) {
  state.counts = new Map(Object.values(view.backends)
    .map((backend) => [backend.name, backend.queue.dead_letters]));
  draw();
}

function draw() {
  const all = [...state.counts].filter(([, dead]) => dead > 0);
  const total = all.reduce((sum, [, dead]) => sum + dead, 0);
  const may = allowed();
  document.body.dataset.orders = may ? "yes" : "no";
  show(by("give-token"), state.rights === "token" && !may);
  show(by("forget-token"), state.rights === "token" && may);
  const where = all.map(([name, dead]) => `${name} ${count(dead)}`).join(", ");
  const which = total === 0
    ? `None.${state.rights === "token" && !may ? " With the token, this page also shows the waiting calls and the error messages." : ""}` : `${some(total, "call")} given up by replay: ${where}.`;
  const how = total === 0 ? ""
    : may ? " Requeue the calls that may be tried again, and discard the others."
    : state.rights === "token" ? " To see them, enter the token from http.token_file."
    : " This listener has no token: on the host, `fusebox queue ls --dead` shows them.";
  say(by("dead-intro"), which + how);
  const wanted = may && total > 0 ? JSON.stringify([all, state.limit]) : "";
  if (wanted === state.asked) return;
  state.asked = wanted;
  if (wanted) load(wanted, all.map(([name]) => name));
  else by("dead-list").replaceChildren();
}

async function load(wanted, names) {
  try {
    const pages = await Promise.all(names.map((name) =>
      ask("GET", `${path("v1", "backends", name, "queue")}?state=dead&limit=${state.limit}`)));
    if (state.asked !== wanted) return;
    const calls = pages.flatMap((page, index) => page.calls.map((call) => ({ ...call, backend: names[index] })));
    const shown = new Map([...by("dead-list").children].map((node) => [node.dataset.call, node]));
    by("dead-list").replaceChildren(...calls.map((call) =>
      shown.get(call.op_id + call.sequence) ?? letter(call)));
    const more = pages.reduce((sum, page) => sum + page.total - page.calls.length, 0);
    if (more > 0) by("dead-list").append(el("li", {}, button(`Show ${count(Math.min(more, PAGE))} more`, () => {
      state.limit += PAGE;
      draw();
    }), ` ${some(more, "other")} not shown`));
  } catch (error) {
    state.asked = "";
    said(`The list could not be loaded: ${error.message}`);
  }
}

function letter(call) {
  const of = `${call.op_id} of ${call.backend}`;
  return el("li", { class: "card letter", "data-call": call.op_id + call.sequence },
    el("dl", { class: "figures" },
      el("dt", {}, "Backend"), el("dd", {}, call.backend),
      el("dt", {}, "Lane"), el("dd", {}, el("code", {}, call.lane)),
      el("dt", {}, "Accepted"), el("dd", {}, `${time(call.enqueued_at)} (${whole(call.age_ms)} ago), ${some(call.attempts, "attempt")}`),
      el("dt", {}, "Why"), el("dd", { class: "why" }, call.last_error ?? "not known"),
      el("dt", {}, "op_id"), el("dd", {}, el("code", {}, call.op_id))),
    el("p", { class: "buttons" },
      button("Show", () => details(call), `Show ${of}`),
      button("Requeue …", () => requeue(call), `Requeue ${of}`),
      button("Discard …", () => discard(call), `Discard ${of}`, "danger")));
}

function button(text, act, label, cls) {
  const node = el("button", { type: "button", "aria-label": label, class: cls }, text);
  node.addEventListener("click", act);
  return node;
}

const said = (text) => say(by("dead-said"), text);

// ---- dialogs: one element, which keeps the focus inside and gives it back ----

/// Opens the dialog. `act` runs when it is confirmed; what it throws is shown, else the dialog closes.
function open(title, content, confirm, act) {
  say(by("dialog-heading"), title);
  say(by("dialog-error"), "");
  by("dialog-body").replaceChildren(...content);
  const close = button(act ? "Cancel" : "Close", () => dialog.close());
  const go = act && el("button", { type: "submit", class: confirm === "Discard" ? "danger" : "primary" }, confirm);
  by("dialog-buttons").replaceChildren(...(go ? [close, go] : [close]));
  by("dialog-form").onsubmit = async (event) => {
    event.preventDefault();
    if (!act || go.disabled) return;
    go.disabled = true;
    try {
      await act(go);
      dialog.close();
    } catch (error) {
      say(by("dialog-error"), error.message);
    }
    go.disabled = false;
  };
  dialog.showModal();
  (by("dialog-body").querySelector("input, pre") ?? close).focus();
}

dialog.addEventListener("close", () => {
  by("dialog-body").replaceChildren();
  // What had the focus may be gone with its dead letter.
  if (document.activeElement === document.body) by("dead-heading").focus();
});

by("give-token").addEventListener("click", () => {
  const field = el("input", { type: "password", id: "token", autocomplete: "off", required: true });
  open("Enter the token", [
    el("p", {}, "It is in the file that http.token_file names. Only this tab keeps it, until the tab is closed."),
    el("p", {}, el("label", { for: "token" }, "Token "), field),
  ], "Use it", async () => {
    const token = field.value.trim();
    await ask("GET", "v1/backends", undefined, token);
    keep(token);
    said("");
    draw();
  });
});

by("forget-token").addEventListener("click", () => {
  keep("");
  draw();
  by("give-token").focus();
});

function order(title, call, words, confirm, act) {
  open(title, [
    el("p", {}, words),
    el("dl", { class: "figures" },
      el("dt", {}, "Backend"), el("dd", {}, call.backend),
      el("dt", {}, "Lane"), el("dd", {}, el("code", {}, call.lane)),
      el("dt", {}, "op_id"), el("dd", {}, el("code", {}, call.op_id))),
  ], confirm, async (go) => {
    said(await act(go));
    state.asked = "";
    draw();
  });
}

function requeue(call) {
  let force = false;
  order("Requeue this call?", call, "It goes to the tail of its lane and is replayed from there.", "Requeue",
    async (go) => {
      try {
        await ask("POST", path("admin", "backends", call.backend, "queue", call.op_id, "requeue"), { force });
      } catch (error) {
        if (error.status === 409 && !force) {
          force = true;
          say(go, "Requeue anyway");
        }
        throw error;
      }
      return `${call.op_id} was requeued.`;
    });
}

function discard(call) {
  order("Discard this call for good?", call,
    "It was acknowledged to its caller and will never be applied. This cannot be undone.", "Discard",
    async () => {
      await ask("DELETE", path("admin", "backends", call.backend, "queue", call.op_id));
      return `${call.op_id} was discarded.`;
    });
}

async function inform(title, make) {
  let content;
  try {
    content = await make();
  } catch (error) {
    content = [el("p", {}, error.message)];
  }
  open(title, content);
}

const code = (value) => el("pre", { tabindex: 0 }, JSON.stringify(value, null, 2));

const details = (call) => inform(`${call.op_id} of ${call.backend}`, async () =>
  [code(await ask("GET", path("v1", "backends", call.backend, "queue", call.op_id)))]);

/// An error with its code, once.
const withCode = ({ code, message }) =>
  message.startsWith(`${code} `) ? message : `${code}: ${message}`;

/// Why the breaker of a backend is in its state, with what its errors said.
export const explain = (name) => inform(`Why ${name} is as it is`, async () => {
  const told = await ask("GET", path("v1", "backends", name, "explain"));
  const errors = told.last_errors.map((error) =>
    el("li", {}, `${time(error.at)} ${withCode(error)}`));
  return [...told.story.map((line) => el("p", {}, line)),
    ...(errors.length > 0 ? [el("h3", {}, "Last errors"), el("ul", {}, ...errors)] : [])];
});

/// The oldest calls in the queue of a backend.
export const waiting = (name) => inform(`What waits in the queue of ${name}`, async () => {
  const page = await ask("GET", `${path("v1", "backends", name, "queue")}?state=pending&limit=${PAGE}`);
  if (page.total === 0) return [el("p", {}, "Nothing.")];
  const rows = page.calls.map((call) => el("tr", {}, el("th", { scope: "row" }, el("code", {}, call.lane)),
    el("td", {}, call.state), el("td", {}, whole(call.age_ms)), el("td", {}, call.last_error ?? "")));
  return [el("p", {}, `${some(page.total, "call")}, the oldest first.`),
    el("table", {}, el("thead", {}, el("tr", {}, ...["Lane", "State", "Age", "Last error"]
      .map((title) => el("th", { scope: "col" }, title)))), el("tbody", {}, ...rows))];
});
