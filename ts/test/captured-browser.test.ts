/**
 * Captured evidence of real hardware in Debian's browsers: every vector, its window and its
 * negatives. It runs with COHORT_FULL=1, and with COHORT_DEV as the other tests of browsers.
 */

import { existsSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { test } from "node:test";
import { type BrowserType, chromium, firefox } from "playwright-core";
import { rollup } from "rollup";
import { base64, fromBase64 } from "../src/bytes.js";
import type { Claims, inspect } from "../src/evidence/evidence.js";
import { type Reason, refuse } from "../src/refusal.js";
import { CapturedCase, load, missing, subjects } from "./captured.js";

const modules = new URL("../src/", import.meta.url).pathname;

/** Serves the evidence modules to pages, appraisers as modules of their own. */
async function serve() {
  const bundle = await rollup({ input: modules + "evidence/evidence.js" });
  const { output } = await bundle.generate({ format: "es", entryFileNames: "evidence.js" });
  const scripts = new Map(output.map((chunk) => ["/" + chunk.fileName, chunk.type === "chunk" ? chunk.code : ""]));
  const server = createServer((request, response) => {
    const script = scripts.get(request.url!);
    response.setHeader("content-type", script === undefined ? "text/html" : "text/javascript").end(script ?? "<!doctype html><title>test</title>");
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return { server, url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/` };
}

/** JSON with maps and bytes, which pages and tests exchange. */
const toJson = (value: unknown) =>
  JSON.stringify(value, (_, v: unknown) => (v instanceof Uint8Array ? { $bytes: base64(v) } : v instanceof Map ? { $map: [...(v as Map<unknown, unknown>)] } : v));
const fromJson = (json: string) => JSON.parse(json, (_, v: { $bytes?: string } | null) => (typeof v?.$bytes === "string" ? fromBase64(v.$bytes) : v)) as unknown;

/** What runs in the page. */
async function inPage(json: string): Promise<string> {
  const evidence = (await import("/evidence.js" as string)) as { inspect: typeof inspect };
  const question = JSON.parse(json, (_, v) => (v?.$map ? new Map(v.$map) : typeof v?.$bytes === "string" ? Uint8Array.from(atob(v.$bytes), (c) => c.charCodeAt(0)) : v));
  try {
    const claims = await evidence.inspect(question);
    return JSON.stringify(claims, (_, v) => (v instanceof Uint8Array ? { $bytes: btoa(String.fromCharCode(...v)) } : v));
  } catch (e) {
    const { reason, rule, got, want } = e as { reason?: string; rule?: string; got?: string; want?: string };
    if (reason === undefined) throw e;
    return JSON.stringify({ reason, rule, got, want });
  }
}

const browsers: readonly [name: string, path: string, type: BrowserType, options: object][] = [
  ["Chromium", "/usr/bin/chromium", chromium, { args: ["--no-sandbox", "--disable-quic", "--disable-background-networking"] }],
  ["Firefox", "/usr/bin/firefox-esr", firefox, { channel: "moz-firefox" }],
];

const wanted = process.env["COHORT_FULL"] === "1" || process.env["COHORT_DEV"] !== undefined;

for (const [name, executablePath, type, options] of browsers) {
  const skip = missing || (!wanted && "set COHORT_FULL=1") || (!existsSync(executablePath) && `NO BROWSER: ${executablePath} is not there`);
  test(`captured evidence in ${name}`, { skip }, async (t) => {
    const { server, url } = await serve();
    const browser = await type.launch({ ...options, executablePath });
    t.after(async () => {
      await browser.close();
      server.close();
    });
    const page = await browser.newPage();
    await page.goto(url);
    const inspectThere: typeof inspect = async (question) => {
      const outcome = fromJson(await page.evaluate(inPage, toJson(question))) as Claims[] | { reason: Reason; rule: string; got: string; want: string };
      if (Array.isArray(outcome)) return outcome;
      throw refuse(outcome.reason, outcome.rule, outcome.got, outcome.want);
    };
    for (const subject of subjects) {
      for (const loaded of load(subject.vectors)) {
        await t.test(`${subject.vectors}/${loaded.name}`, async () => {
          const captured = new CapturedCase(subject, loaded, inspectThere);
          await captured.verdicts();
          await captured.window();
          await captured.negatives();
        });
      }
    }
  });
}
