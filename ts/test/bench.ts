/**
 * What the client costs, for BenchmarkTypeScript of bench/, which measures the Go client in the same
 * rounds: `node bench.js node|chromium`. It reads commands, lines of JSON, and writes one line of JSON
 * with the milliseconds of one operation for each; of the bundle's sizes at the start.
 */

import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";
import type { Session, Trust } from "../src/index.js";

/** One measurement: how often it does what, and with which cluster. */
interface Command {
  what: "contact" | "open" | "request" | "token";
  n: number;
  gateway: string;
  genesis: string;
  task: string;
}

/** Measures in Node or in a page. The trust and one session remain for the next command. */
async function measure({ what, n, gateway, genesis, task, module }: Command & { module: string }): Promise<number> {
  const { open, fetchTrust } = (await import(module)) as typeof import("../src/index.js");
  const kept = ((globalThis as { kept?: { trust?: Trust; session?: Session } }).kept ??= {});
  const options = { gateway, genesis, task };
  if (what === "contact") {
    void (await open({ ...options, freshEvidence: true })); // closed with the program: closing is not contact
    return 0;
  }
  const trust = (kept.trust ??= await fetchTrust({ genesis: "sha256:" + genesis, task, gateways: [gateway] }));
  const session = (kept.session ??= await open({ ...options, trust }));
  const opened: Session[] = [];
  const steps = {
    open: async () => void opened.push(await open({ ...options, trust, freshEvidence: true })),
    request: async () => void (await (await session.fetch("/")).text()),
    token: async () => {
      const body = JSON.stringify({ prompt: "The keeper", max_tokens: 2000, delay_ms: 0 });
      await (await session.fetch("/chat", { method: "POST", headers: { "content-type": "application/json" }, body })).text();
    },
  };
  const begin = performance.now();
  for (let i = 0; i < n; i++) await steps[what]();
  const cost = (performance.now() - begin) / n;
  for (const s of opened) await s.close();
  return cost;
}

const { single, sizes } = (await import(new URL("../../tools/bundle.mjs", import.meta.url).href)) as {
  single(entry: string): Promise<string>;
  sizes(entry: string): Promise<{ core: number; all: number }>;
};
const entry = new URL("../src/index.js", import.meta.url).pathname;

/** Returns what measures in a page of Chromium. */
async function inChromium(): Promise<(command: Command) => Promise<number>> {
  const script = await single(entry);
  const server = createServer((request, response) => {
    const [type, body] = request.url === "/cohort.js" ? ["text/javascript", script] : ["text/html", "<!doctype html><title>bench</title>"];
    response.setHeader("content-type", type).end(body);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox", "--disable-quic", "--disable-background-networking"] });
  const page = await browser.newPage();
  await page.goto(`http://127.0.0.1:${(server.address() as AddressInfo).port}/`);
  return (command) => page.evaluate(measure, { ...command, module: "/cohort.js" });
}

const run = process.argv[2] === "chromium" ? await inChromium() : (command: Command) => measure({ ...command, module: entry });
const write = (value: unknown) => process.stdout.write(JSON.stringify(value) + "\n");
write(await sizes(entry));
for await (const line of createInterface({ input: process.stdin })) write(await run(JSON.parse(line) as Command));
process.exit(0); // with the browser
