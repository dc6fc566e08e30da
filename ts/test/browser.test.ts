/**
 * The package in browsers: Debian's Chromium and Firefox, and with COHORT_FULL=1 WebKitGTK's
 * MiniBrowser, open a page of another origin than the gateway, which verifies the cluster, sends
 * requests and streams through OpenAI's SDK.
 * `go test ./internal/systest -run TypeScript` starts the cluster, see cluster.test.ts.
 */

import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { after, test } from "node:test";
import { nodeResolve } from "@rollup/plugin-node-resolve";
import { type Browser, chromium, firefox, type Page } from "playwright-core";
import { rollup } from "rollup";
import { hex } from "../src/bytes.js";
import { authorityOverTls } from "./node.js";
import { inWebKit, webKitInstalled } from "./webdriver.js";

interface Dev {
  genesis: string;
  authority: string;
  gateway: string;
  task: string;
  server_name: string;
}

const file = process.env["COHORT_DEV"];
const here = new URL("../../", import.meta.url).pathname;

/** What a browser returns for a page's function. */
interface Seen {
  got: Awaited<ReturnType<typeof inPage>>;
  version: string;
}

const full = process.env["COHORT_FULL"] === "1";

const browsers: { name: string; missing: string | false; run: (url: string, argument: Parameters<typeof inPage>[0]) => Promise<Seen> }[] = [
  {
    name: "Chromium",
    missing: !existsSync("/usr/bin/chromium") && "/usr/bin/chromium is missing: make tools",
    run: withPlaywright(() => chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox", "--disable-quic", "--disable-background-networking"] })),
  },
  {
    name: "Firefox",
    missing: !existsSync("/usr/bin/firefox-esr") && "/usr/bin/firefox-esr is missing: make tools",
    run: withPlaywright(() => firefox.launch({ channel: "moz-firefox", executablePath: "/usr/bin/firefox-esr" } as never)),
  },
  {
    name: "WebKitGTK",
    missing: full ? !webKitInstalled() && "WebKitGTK's MiniBrowser is missing: make tools-full" : "only with COHORT_FULL=1",
    run: (url, argument) => inWebKit(url, inPage, argument),
  },
];

/** Returns a function that opens the page in a browser which Playwright drives. */
function withPlaywright(launch: () => Promise<Browser>): (typeof browsers)[number]["run"] {
  return async (url, argument) => {
    const browser = await launch();
    try {
      const page: Page = await browser.newPage();
      const lines: string[] = [];
      page.on("console", (message) => lines.push(message.text()));
      page.on("pageerror", (error) => lines.push(String(error)));
      await page.goto(url);
      const got = await page.evaluate(inPage, argument).catch((e: unknown) => {
        throw new Error(`${String(e)}\n${lines.join("\n")}`);
      });
      return { got, version: browser.version() };
    } finally {
      await browser.close();
    }
  };
}

/** Bundles a module for pages. */
async function bundled(entry: string): Promise<string> {
  const bundle = await rollup({ input: entry, plugins: [nodeResolve({ browser: true })], onwarn: () => {} });
  const { output } = await bundle.generate({ format: "es", inlineDynamicImports: true });
  await bundle.close();
  return output[0].code;
}

/** A server of pages. It passes requests for trust on to the authority, with the chain that it presents, while gateways pass none on. */
async function serve(dev: Dev): Promise<Server> {
  const { single } = (await import(here + "tools/bundle.mjs")) as { single(entry: string): Promise<string> };
  const scripts = new Map([
    ["/cohort.js", await single(here + "build/src/index.js")],
    ["/openai.js", await bundled(here + "node_modules/openai/index.mjs")],
    ["/x509.js", await bundled(here + "build/src/x509.js")],
  ]);
  const source = authorityOverTls(dev.authority);
  const server = createServer((request, response) => {
    const url = new URL(request.url!, "http://page");
    const script = scripts.get(url.pathname);
    response.setHeader("content-security-policy", `default-src 'none'; script-src 'self'; connect-src 'self' ${dev.gateway}`);
    if (script !== undefined) return void response.setHeader("content-type", "text/javascript").end(script);
    if (url.pathname === "/") return void response.setHeader("content-type", "text/html").end("<!doctype html><title>test</title>");
    const ended = new AbortController();
    response.on("close", () => ended.abort());
    const { signal } = ended;
    const query = (name: string) => url.searchParams.get(name) ?? "";
    const answers: Record<string, () => Promise<unknown>> = {
      "/history": () => source.history(Number(query("from")), signal),
      "/poll": () => source.poll(query("head"), Number(query("wait")), signal),
      "/trust": () => source.trust({ task: query("task"), nonce: new Uint8Array(Buffer.from(query("nonce"), "hex")) }, signal),
    };
    const answer = answers[url.pathname];
    if (!answer) return void response.writeHead(404).end();
    answer().then(
      (body) => response.setHeader("content-type", "application/json").end(JSON.stringify({ body, chain: source.chain!().map((c) => hex(c.raw)) })),
      (e: unknown) => response.writeHead(500).end(String(e)),
    );
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return server;
}

/** What runs in the page. Its results are of JSON. */
async function inPage({ genesis, gateway, task, through }: Dev & { through: boolean }) {
  const load = (path: string) => import(path);
  const { open, oneoff, fetchTrust, reasonOf } = (await load("/cohort.js")) as typeof import("../src/index.js");
  const { parseCertificate } = (await load("/x509.js")) as typeof import("../src/x509.js");
  const { default: OpenAI } = (await load("/openai.js")) as typeof import("openai");
  let chain: ReturnType<typeof parseCertificate>[] = [];
  const ask = async (path: string, query: Record<string, string>, signal: AbortSignal) => {
    const response = await fetch(path + "?" + new URLSearchParams(query).toString(), { signal });
    const answer = (await response.json()) as { body: unknown; chain: string[] };
    chain = answer.chain.map((der) => parseCertificate(Uint8Array.from(der.match(/../g)!, (b) => parseInt(b, 16))));
    return answer.body;
  };
  const source = {
    name: "page's server",
    chain: () => chain,
    history: (from: number, signal: AbortSignal) => ask("/history", { from: String(from) }, signal),
    poll: (head: string, wait: number, signal: AbortSignal) => ask("/poll", { head, wait: String(wait) }, signal),
    trust: (q: { task?: string; nonce?: Uint8Array }, signal: AbortSignal) =>
      ask("/trust", { task: q.task!, nonce: Array.from(q.nonce!, (b) => b.toString(16).padStart(2, "0")).join("") }, signal),
  };
  const pin = { genesis: "sha256:" + genesis, task };
  const begin = performance.now();
  const trust = await fetchTrust(through ? { ...pin, gateways: [gateway] } : { ...pin, sources: [source] });
  const trusted = performance.now();
  const session = await open({ gateway, genesis, task, trust, freshEvidence: true, receipts: true });
  const opened = performance.now();
  const times: number[] = [];
  for (let i = 0; i < 20; i++) {
    const before = performance.now();
    const response = await session.fetch("/");
    if (response.status !== 200 || ((await response.json()) as { service: string }).service !== "chat") throw new Error("status " + response.status);
    times.push(performance.now() - before);
  }
  const client = new OpenAI({ apiKey: "none", baseURL: `https://${task}.dev.test/v1`, fetch: session.fetch, dangerouslyAllowBrowser: true, maxRetries: 0 });
  let tokens = 0;
  let text = "";
  const completions = (await session.fetch("/v1/models")).status === 200;
  if (completions) {
    const chunks = await client.chat.completions.create({ model: "harbour", messages: [{ role: "user", content: "The keeper" }], max_tokens: 12, stream: true });
    for await (const chunk of chunks) {
      tokens++;
      text += chunk.choices[0]?.delta.content ?? "";
    }
  } else {
    const plain = new OpenAI({ apiKey: "none", baseURL: `https://${task}.dev.test`, fetch: session.fetch, dangerouslyAllowBrowser: true, maxRetries: 0 });
    const events = (await plain.post("/chat", { body: { prompt: "The keeper", max_tokens: 12 }, stream: true })) as unknown as AsyncIterable<{ token?: string }>;
    for await (const event of events) {
      tokens++;
      text += event.token ?? "";
    }
  }
  const upload = await session.fetch("/chat", { method: "POST", headers: { "content-type": "application/json" }, body: new Blob([" ".repeat(200_000)]) });
  const { response, receipt } = await session.fetchWithReceipt("/");
  await response.text();
  const signed = await receipt;
  const one = await oneoff({ gateway, genesis, task, trust });
  const single = await (await one.fetch("/")).text();
  await one.close();
  const refused = await session.fetch("https://example.com/").then(() => "", (e: unknown) => reasonOf(e) ?? String(e));
  const abort = new AbortController();
  const stream = await session.fetch("/chat", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ prompt: "a", max_tokens: 2000, delay_ms: 20 }), signal: abort.signal });
  const reader = stream.body!.getReader();
  await reader.read();
  abort.abort();
  const aborted = await reader.read().then(() => "read", (e: unknown) => (e as Error).name);
  const verified = session.info.verified.map((f) => f.name);
  const closed = await session.close();
  times.sort((a, b) => a - b);
  return {
    verified, tokens, text, completions, upload: upload.status, receipt: signed.receipt.unit.unit.length, single, refused, aborted,
    confirmed: closed.confirmed.length, evidence: session.info.evidence?.platform,
    trustMs: trusted - begin, openMs: opened - trusted, requestMs: times[10]!,
  };
}

if (!file) {
  test("browsers", { skip: "SKIPPED: COHORT_DEV names no cluster; go test ./internal/systest -run TypeScript starts one" }, () => {});
} else {
  const dev = JSON.parse(readFileSync(file, "utf8")) as Dev;
  const server = await serve(dev);
  after(() => {
    server.close();
    server.closeAllConnections();
  });
  const status = (await fetch(`${dev.gateway}/.well-known/cohort/trust?task=${dev.task}`)).status;
  for (const { name, missing, run } of browsers) {
    test(`${name}: a page verifies the cluster and streams`, missing === false ? {} : { skip: `SKIPPED: ${missing}` }, async () => {
      const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/`;
      const { got, version } = await run(url, { ...dev, through: status === 200 });
      console.log(`# ${name} ${version}: trust ${got.trustMs.toFixed(0)} ms, open ${got.openMs.toFixed(0)} ms, a request ${got.requestMs.toFixed(1)} ms; completions ${got.completions}`);
      assert.deepEqual(got.verified, ["hardware", "code", "policy", "authority", "key"]);
      assert.ok(got.tokens >= 12 && got.text.length > 12, JSON.stringify(got));
      assert.ok([400, 413].includes(got.upload), String(got.upload));
      assert.equal(got.receipt, 32);
      assert.ok(got.single.includes('"service":"chat"'));
      assert.equal(got.refused, "name");
      assert.equal(got.aborted, "AbortError");
      assert.equal(got.evidence, "soft");
      assert.ok(got.confirmed >= 1);
    });
  }
}
