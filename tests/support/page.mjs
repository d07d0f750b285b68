// A headless Chromium that does what it is told: one JSON command a line on standard input, one JSON
// answer a line on standard output. The tests decide what to do and what is right.
//
// usage: page.mjs CHROMIUM
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";

const require = createRequire(import.meta.url);
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

const profile = mkdtempSync(join(tmpdir(), "fusebox-page-"));
const context = await chromium.launchPersistentContext(profile, {
  executablePath: process.argv[2],
  headless: true,
  chromiumSandbox: false,
  args: ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"],
});
// As a script of the browser's own, which the page's policy does not concern.
await context.addInitScript({ content: axe });

const complaints = [];
const requests = [];
const page = context.pages()[0];
page.on("console", (said) => {
  if (said.type() === "error" || said.type() === "warning") {
    complaints.push(`${said.text()} (${said.location().url})`);
  }
});
page.on("pageerror", (error) => complaints.push(`uncaught: ${error.stack ?? error}`));
page.on("dialog", (dialog) => {
  complaints.push(`a dialog of the browser's: ${dialog.message()}`);
  dialog.dismiss();
});
context.on("request", (request) => requests.push(request.url()));

/// The visible elements of a selector whose text matches, where one is given.
async function visible({ selector, text }) {
  const found = [];
  for (const element of await page.locator(selector).filter({ visible: true }).all()) {
    if (!text || new RegExp(text, "s").test(await element.innerText({ timeout: 1_000 }).catch(() => ""))) {
      found.push(element);
    }
  }
  return found;
}

/// The first of them, waited for.
async function first(what, within) {
  for (const until = Date.now() + within; ; await page.waitForTimeout(50)) {
    const [found] = await visible(what);
    if (found) return found;
    if (Date.now() > until) {
      const says = await page.locator("body").innerText();
      throw new Error(`not seen: ${what.selector} ${what.text ?? ""}; the page says:\n${says}`);
    }
  }
}

const commands = {
  async look({ width, height, scheme }) {
    await page.setViewportSize({ width, height });
    await page.emulateMedia({ colorScheme: scheme, reducedMotion: "reduce" });
  },
  async open({ url }) {
    await page.goto(url);
  },
  async sees({ within, ...what }) {
    await first(what, within);
  },
  count: async (what) => (await visible(what)).length,
  heights: ({ selector }) => page.locator(selector).evaluateAll((all) =>
    all.map((element) => element.getBoundingClientRect().height)),
  text: ({ selector }) => page.locator(selector).first().innerText(),
  async click(what) {
    await (await first(what, 10_000)).click({ timeout: 10_000 });
  },
  async fill({ selector, text }) {
    await page.locator(selector).fill(text, { timeout: 10_000 });
  },
  async press({ key }) {
    await page.keyboard.press(key);
  },
  focus: () => page.evaluate(() => {
    const { id, tagName, textContent, ariaLabel } = document.activeElement;
    return { id, tag: tagName, text: ariaLabel ?? textContent.trim().slice(0, 80),
      inDialog: document.activeElement.closest("dialog") !== null };
  }),
  /// Rules that are broken, by element.
  axe: () => page.evaluate(async () => {
    const { violations } = await axe.run(document, { resultTypes: ["violations"] });
    return violations.flatMap((rule) => rule.nodes.map((node) =>
      `${rule.id}: ${node.target.join(" ")}: ${node.any.concat(node.all, node.none).map((it) => it.message).join("; ")}`));
  }),
  overflow: () => page.evaluate(() => {
    const { scrollWidth, clientWidth } = document.documentElement;
    return scrollWidth - clientWidth;
  }),
  kept: async () => ({
    cookies: (await context.cookies()).length,
    local: await page.evaluate(() => Object.values(localStorage)),
    session: await page.evaluate(() => Object.values(sessionStorage)),
  }),
  requests: () => requests,
  complaints: () => complaints,
  async shot({ path, full }) {
    await page.screenshot({ path, fullPage: full ?? true });
  },
};

console.log(JSON.stringify({ ready: true }));
for await (const line of createInterface({ input: process.stdin })) {
  const { what, ...how } = JSON.parse(line);
  try {
    console.log(JSON.stringify({ answer: (await commands[what](how)) ?? null }));
  } catch (error) {
    console.log(JSON.stringify({ error: String(error.message ?? error) }));
  }
}
await context.close();
rmSync(profile, { recursive: true, force: true });
