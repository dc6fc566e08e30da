/**
 * The pages that people see, in Debian's Chromium: the chat page of examples/chat/page and the
 * manager's status page. Both are used by keyboard alone, reach no other host, and axe finds no
 * violation in them. `go test ./internal/systest -run TypeScript` starts the cluster, see cluster.test.ts.
 */

import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { after, test } from "node:test";
import type { AxeResults } from "axe-core";
import { type Browser, type BrowserContextOptions, chromium, type Page } from "playwright-core";

interface Dev {
  genesis: string;
  gateway: string;
  page: string;
  manager: { status: string };
}

const file = process.env["COHORT_DEV"];
const path = "/usr/bin/chromium";
const skip = !file
  ? "SKIPPED: COHORT_DEV names no cluster; go test ./internal/systest -run TypeScript starts one"
  : !existsSync(path) && `SKIPPED: ${path} is missing: make tools`;
const dev = file ? (JSON.parse(readFileSync(file, "utf8")) as Dev) : undefined;
const origin = (url: string) => new URL(url).origin;

let browser: Browser | undefined;
after(() => browser?.close());

/** A page of its own context, and the requests that it sends. */
async function visit(url: string, options: BrowserContextOptions = {}): Promise<{ page: Page; requests: URL[]; faults: string[] }> {
  browser ??= await chromium.launch({ executablePath: path, args: ["--no-sandbox", "--disable-quic", "--disable-background-networking"] });
  const page = await (await browser.newContext(options)).newPage();
  page.setDefaultTimeout(120_000); // tests of other packages may run at the same time
  const requests: URL[] = [];
  const faults: string[] = [];
  page.on("request", (request) => requests.push(new URL(request.url())));
  page.on("pageerror", (error) => faults.push(String(error)));
  page.on("console", (message) => /Content.Security.Policy|TrustedHTML/i.test(message.text()) && faults.push(message.text()));
  await page.goto(url);
  return { page, requests, faults };
}

/** Opens the chat page, once it shows the cluster that it proposes. */
async function chat(options: BrowserContextOptions = {}) {
  const visited = await visit(dev!.page, options);
  await visited.page.waitForFunction("document.getElementById('genesis').value !== ''");
  return visited;
}

async function state(page: Page, text: string): Promise<void> {
  await page.locator("#state", { hasText: text }).waitFor();
}

/** The element that has the focus: its id, or its text. */
const focused = (page: Page) => page.evaluate(() => document.activeElement!.id || document.activeElement!.textContent!.trim());

test("the chat page by keyboard alone: it verifies, streams, stops, and reaches its gateway and no other host", { skip }, async () => {
  const { page, requests, faults } = await chat();
  const order: string[] = [];
  for (let i = 0; i < 7; i++) {
    await page.keyboard.press("Tab");
    order.push(await focused(page));
  }
  assert.deepEqual(order, ["Skip to the prompt", "Connection", "gateway", "genesis", "task", "evidence", "open"]);
  await page.keyboard.press("Enter");
  await state(page, "Verified and connected");
  assert.equal(await focused(page), "prompt");
  assert.ok(await page.locator("#development").isVisible());
  assert.deepEqual(await page.locator(".branch h3").allTextContents(), [
    "Hardware verified, with a warning", "Code verified", "Policy verified", "Key verified", "Cluster verified",
  ]);
  assert.match((await page.locator(".branch .warning").first().textContent())!, /^development: /);

  await page.keyboard.press("Control+A");
  await page.keyboard.type("The keeper of the harbour");
  await page.keyboard.press("Enter");
  await page.locator("#log .foot").waitFor();
  assert.match((await page.locator("#log .foot").textContent())!, /^\d+ tokens of unit [0-9a-f]{8}$/);
  assert.ok((await page.locator("#log .theirs").textContent())!.length > "The keeper of the harbour".length + 40);
  assert.equal(await focused(page), "prompt");

  // A response that arrives slowly is stopped, and the page goes on.
  const network = await page.context().newCDPSession(page);
  await network.send("Network.enable");
  await network.send("Network.emulateNetworkConditions", { offline: false, latency: 0, downloadThroughput: 2_000, uploadThroughput: -1 });
  await page.keyboard.type("The ferry");
  await page.keyboard.press("Enter");
  await page.locator("#stop").waitFor();
  await page.keyboard.press("Tab");
  assert.equal(await focused(page), "stop");
  await page.keyboard.press("Enter");
  await page.locator("#log .theirs", { hasText: "(stopped)" }).waitFor();
  await network.send("Network.emulateNetworkConditions", { offline: false, latency: 0, downloadThroughput: -1, uploadThroughput: -1 });
  assert.equal(await focused(page), "prompt");
  assert.ok(await page.locator("#stop").isHidden());
  await page.keyboard.type("The tide");
  await page.keyboard.press("Enter");
  await page.locator("#log .foot").nth(1).waitFor();

  assert.deepEqual(new Set(requests.map((url) => url.origin)), new Set([origin(dev!.page), origin(dev!.gateway)]));
  assert.deepEqual(faults, []);
  await page.context().close();
});

test("the chat page refuses another genesis in red, with the reason, and sends nothing", { skip }, async () => {
  const { page, requests } = await chat();
  await page.locator("#genesis").fill("ab".repeat(32));
  await page.locator("#open").press("Enter");
  await state(page, "Refused: genesis");
  assert.equal(await page.locator("#state").getAttribute("data-state"), "bad");
  assert.deepEqual(await page.locator(".branch.bad h3").allTextContents(), ["Policy refused"]);
  assert.match((await page.locator(".branch.bad .fault").textContent())!, new RegExp(dev!.genesis));
  assert.equal(await page.locator("#summary").textContent(), "This page sends nothing to this cluster.");
  const red = (color: string) => color.match(/\d+/g)!.map(Number);
  for (const at of ["#state", "#summary", ".branch.bad .fault"]) {
    const [r, g, b] = red(await page.locator(at).evaluate((e) => getComputedStyle(e).color)) as [number, number, number];
    assert.ok(r > 2 * g && r > 2 * b, `${at}: ${r} ${g} ${b}`);
  }
  assert.ok(await page.locator("#send").isDisabled());
  assert.ok(await page.locator("#prompt").isDisabled());
  const paths = requests.filter((url) => url.origin === origin(dev!.gateway)).map((url) => url.pathname);
  assert.ok(paths.length > 0 && paths.every((p) => !/\/(session|request|ohttp.*)$/.test(p)), paths.join(" "));
  await page.context().close();
});

test("the chat page shows that its gateway is away, and connects once it is back", { skip }, async () => {
  const { page } = await chat();
  await page.context().setOffline(true);
  await page.locator("#open").press("Enter");
  await state(page, "unavailable");
  assert.ok(await page.locator("#send").isDisabled());
  await page.context().setOffline(false);
  await page.locator("#open").press("Enter");
  await state(page, "Verified and connected");
  await page.context().close();
});

test("the manager's status page by keyboard, without a request to another host", { skip }, async () => {
  const { page, requests, faults } = await visit(dev!.manager.status);
  const order: string[] = [];
  for (let i = 0; i < 3; i++) {
    await page.keyboard.press("Tab");
    order.push(await focused(page));
  }
  assert.deepEqual(order, ["Reload", "JSON", "Metrics"]);
  assert.ok((await page.getByRole("table").count()) >= 2);
  assert.deepEqual(new Set(requests.map((url) => url.origin)), new Set([origin(dev!.manager.status)]));
  assert.deepEqual(faults, []);
  await page.context().close();
});

const axe = createRequire(import.meta.url).resolve("axe-core/axe.min.js");

/** Fails where axe finds a violation, or where the page is wider than the screen. */
async function accessible(page: Page, name: string): Promise<void> {
  const found = await page.evaluate(() => (window as unknown as { axe: { run(): Promise<AxeResults> } }).axe.run());
  const faults = found.violations.flatMap((v) => v.nodes.map((n) => `${v.id}: ${n.target.join(" ")}: ${n.failureSummary}`));
  assert.deepEqual(faults, [], name);
  assert.ok(found.passes.length > 10, `${name}: ${found.passes.length} rules passed`);
  assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), `${name}: wider than the screen`);
}

for (const width of [390, 1280]) {
  for (const colorScheme of ["light", "dark"] as const) {
    // The page's policy allows no script but its own: axe needs a context without it.
    const options = { bypassCSP: true, colorScheme, viewport: { width, height: 800 } };
    const where = `${width} pixels, ${colorScheme}`;

    test(`axe finds no violation in the chat page: ${where}`, { skip }, async () => {
      const { page } = await chat(options);
      await page.addScriptTag({ path: axe });
      await accessible(page, "at the start");
      await page.locator("#open").click();
      await state(page, "Verified and connected");
      await page.locator("#checks").evaluate((e: HTMLDetailsElement) => (e.open = true));
      for (const details of await page.locator(".branch details").all()) await details.evaluate((e: HTMLDetailsElement) => (e.open = true));
      await page.locator("#prompt").press("Enter");
      await page.locator("#log .foot").waitFor();
      await accessible(page, "connected");
      await page.locator("#settings").evaluate((e: HTMLDetailsElement) => (e.open = true));
      await page.locator("#genesis").fill("ab".repeat(32));
      await page.locator("#open").click();
      await state(page, "Refused: genesis");
      await accessible(page, "refused");
      await page.context().close();
    });

    test(`axe finds no violation in the manager's status page: ${where}`, { skip }, async () => {
      const { page } = await visit(dev!.manager.status, options);
      await page.addScriptTag({ path: axe });
      await accessible(page, "status");
      await page.context().close();
    });
  }
}
