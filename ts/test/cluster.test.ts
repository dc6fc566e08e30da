/**
 * The client against a cluster of processes. `go test ./internal/systest` starts it, the development
 * cluster of examples/chat, and names its dev.json in COHORT_DEV, the program in COHORT_BIN.
 */

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdtempSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname } from "node:path";
import { test } from "node:test";
import { fetchTrust, oneoff, type OneOff, open, OutcomeUnknown, parseRecord, encodeRecord, reasonOf, servedBy, type Session, storageIn, Trust, verifyRecord } from "../src/index.js";
import { authorityOverTls } from "./node.js";

interface Dev {
  genesis: string;
  authority: string;
  gateway: string;
  task: string;
  server_name: string;
  units: { address: string; pid: number }[];
}

const file = process.env["COHORT_DEV"];
const dev = (): Dev => JSON.parse(readFileSync(file!, "utf8")) as Dev;
const options = file ? {} : { skip: "SKIPPED: COHORT_DEV names no cluster; go test ./internal/systest starts one" };

/** Trust of the running cluster: through its gateway where that passes trust on, else from the authority. */
async function trusted(storage?: Parameters<typeof fetchTrust>[0]["storage"]): Promise<Trust> {
  const { genesis, task, authority, gateway } = dev();
  const pin = { genesis: "sha256:" + genesis, task, ...(storage && { storage }) };
  const { status, body } = await fetch(gateway + "/.well-known/cohort/trust?task=" + task);
  await body?.cancel();
  const through = status === 200;
  console.log(`# trust through ${through ? "the gateway" : "the authority, because the gateway passes none on"}`);
  return through ? fetchTrust({ ...pin, gateways: [gateway] }) : fetchTrust({ ...pin, sources: [authorityOverTls(authority)] });
}

let trust: Trust | undefined;
const cluster = async () => {
  const { genesis, task, gateway } = dev();
  return { genesis, task, gateway, trust: (trust ??= await trusted()) };
};

async function withSession(f: (session: Session) => Promise<void>, extra: object = {}): Promise<void> {
  const session = await open({ ...(await cluster()), ...extra });
  try {
    await f(session);
  } finally {
    await session.close();
  }
}

const json = { "content-type": "application/json" };

test("a session serves requests at every unit", options, () =>
  withSession(async (session) => {
    const units = new Set<string>();
    for (let i = 0; i < 60 && units.size < 3; i++) {
      const response = await session.fetch(i % 2 ? "/" : `https://${dev().server_name}/`);
      assert.equal(response.status, 200);
      assert.equal(((await response.json()) as { service: string }).service, "chat");
      units.add(servedBy(response)!);
    }
    assert.equal(units.size, 3);
    assert.equal((await session.fetch("/absent")).status, 404);
    const { info } = session;
    assert.ok(info.expires > new Date());
    assert.deepEqual(info.verified.map((f) => f.name), ["hardware", "code", "policy", "authority", "key"]);
    assert.ok(JSON.stringify(info.verified).includes('"warning":true')); // a development cluster
  }));

test("fresh evidence is appraised here", options, () =>
  withSession(
    async (session) => {
      assert.equal(session.info.evidence?.platform, "soft");
      assert.equal((await session.fetch("/")).status, 200);
    },
    { freshEvidence: true },
  ));

test("a stream arrives token by token", options, () =>
  withSession(async (session) => {
    const body = JSON.stringify({ prompt: "The keeper", max_tokens: 20, delay_ms: 20 });
    const response = await session.fetch("/chat", { method: "POST", headers: json, body });
    let text = "";
    let pieces = 0;
    for await (const piece of response.body!.pipeThrough(new TextDecoderStream())) {
      text += piece;
      pieces++;
    }
    assert.equal(text.match(/event: token/g)!.length, 20);
    assert.ok(text.endsWith('event: done\ndata: {"tokens":20}\n\n'));
    assert.ok(pieces >= 10, `${pieces} pieces`);
  }));

test("a stream that the caller gives up ends", options, () =>
  withSession(async (session) => {
    const abort = new AbortController();
    const body = JSON.stringify({ prompt: "The keeper", max_tokens: 2000, delay_ms: 20 });
    const response = await session.fetch("/chat", { method: "POST", headers: json, body, signal: abort.signal });
    const reader = response.body!.getReader();
    await reader.read();
    abort.abort(new Error("enough"));
    await assert.rejects(async () => {
      for (;;) if ((await reader.read()).done) return;
    }, /enough/);
    assert.equal((await session.fetch("/")).status, 200);
  }));

test("hosts that the cluster does not serve are refused before anything is sent", options, () =>
  withSession(async (session) => {
    for (const [url, reason] of [["https://example.com/", "name"], [`http://${dev().server_name}/`, "request"], [`https://${dev().server_name}.example.com/`, "name"]] as const) {
      await assert.rejects(session.fetch(url), (e) => reasonOf(e) === reason);
    }
  }));

test("receipts verify here and by cohort verify --receipt", options, () =>
  withSession(
    async (session) => {
      const body = JSON.stringify({ prompt: "The keeper", max_tokens: 3 });
      const { response, receipt } = await session.fetchWithReceipt("/chat", { method: "POST", headers: json, body });
      const text = await response.text();
      const signed = await receipt;
      assert.equal(signed.receipt.unit.unit, servedBy(response));
      assert.ok(Buffer.from(signed.record.response).includes(text.slice(0, 40)));
      const record = parseRecord(encodeRecord(signed.record));
      assert.equal((await verifyRecord(record, session.trust, Date.now())).number, signed.receipt.number);
      record.response[40]! ^= 1;
      await assert.rejects(verifyRecord(record, session.trust, Date.now()), (e) => reasonOf(e) === "digest");
      const path = mkdtempSync(tmpdir() + "/receipt-") + "/receipt.json";
      writeFileSync(path, JSON.stringify(signed));
      const { genesis, task } = dev();
      const out = execFileSync(process.env["COHORT_BIN"]!, ["verify", "--receipt", path, "--genesis", genesis, "--task", task], { encoding: "utf8" });
      assert.ok(out.includes(signed.receipt.unit.unit), out);
    },
    { receipts: true },
  ));

test("closing is confirmed by every unit", options, async () => {
  const session = await open(await cluster());
  for (let i = 0; i < 6; i++) await (await session.fetch("/")).text();
  const closed = await session.close();
  assert.ok(closed.confirmed.length >= 2, JSON.stringify(closed));
  await assert.rejects(session.fetch("/"), /closed/);
});

test("one-off requests, in chunks and whole", options, async () => {
  for (const whole of [false, true]) {
    const one: OneOff = await oneoff({ ...(await cluster()), whole });
    try {
      for (let i = 0; i < 3; i++) assert.equal(((await (await one.fetch("/")).json()) as { service: string }).service, "chat");
      await assert.rejects(one.fetch("/chat", { method: "POST", headers: json, body: "{}" }), (e) => reasonOf(e) === "not-allowed");
      await assert.rejects(one.fetch("https://example.com/"), (e) => reasonOf(e) === "name");
    } finally {
      await one.close();
    }
  }
});

test("the newest history is kept between starts", options, async () => {
  const kept = new Map<string, string>();
  const store = { getItem: (key: string) => kept.get(key) ?? null, setItem: (key: string, value: string) => void kept.set(key, value) };
  const first = await trusted(storageIn(store, "cohort"));
  assert.equal(kept.size, 1);
  const second = await trusted(storageIn(store, "cohort"));
  assert.equal(second.policy.head, first.policy.head);
  kept.set("cohort", kept.get("cohort")!.replace(/[A-Za-z]{8}/, "AAAAAAAA"));
  await assert.rejects(trusted(storageIn(store, "cohort")));
});

test("another genesis and another task are refused", options, async () => {
  const { genesis, task, gateway, authority } = dev();
  const other = createHash("sha256").update("other").digest("hex");
  await assert.rejects(fetchTrust({ genesis: "sha256:" + other, task, sources: [authorityOverTls(authority)] }), (e) => reasonOf(e) === "genesis");
  await assert.rejects(fetchTrust({ genesis: "sha256:" + genesis, task: "other", sources: [authorityOverTls(authority)] }), (e) => reasonOf(e) === "not-found");
  await assert.rejects(open({ gateway, genesis: other, task, trust: await trusted() }), (e) => reasonOf(e) === "request");
});

/** Signs and adopts the policy that follows the newest one, after an edit. */
function adopt(edit: (policy: string) => string): void {
  const { genesis, authority } = dev();
  const directory = mkdtempSync(tmpdir() + "/policy-");
  const run = (...args: string[]) => execFileSync(process.env["COHORT_BIN"]!, ["policy", ...args], { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] });
  const at = ["--authority", authority, "--genesis", genesis, "--state", directory + "/seen.json"];
  const cluster = dirname(file!) + "/" + readdirSync(dirname(file!)).find((name) => name.startsWith("cluster-"))!;
  writeFileSync(directory + "/now.toml", run("show", ...at));
  run("next", directory + "/now.toml", "--out", directory + "/next.toml");
  const next = edit(readFileSync(directory + "/next.toml", "utf8"));
  writeFileSync(directory + "/next.toml", next);
  run("propose", directory + "/next.toml", ...at, "--ssh-key", cluster + "/owners/owner-1");
  run("approve", createHash("sha256").update(next).digest("hex"), ...at, "--ssh-key", cluster + "/owners/owner-2");
}

test("a unit that the owners cut off is refused within seconds, in a response that has begun too", options, () =>
  withSession(async (session) => {
    const cut = session.info.unit;
    const question = { method: "POST", headers: { ...json, "idempotency-key": "1" }, body: JSON.stringify({ prompt: "The keeper", max_tokens: 2000, delay_ms: 50 }) };
    const stream = await session.fetch("/chat", question);
    const reading = stream.text().then(() => undefined, (e: unknown) => e);
    adopt((policy) => policy.replace(`[task.${dev().task}]\n`, `[task.${dev().task}]\ncut_units = [${JSON.stringify(cut)}]\n`));
    const begin = Date.now();
    // "truncated" where the unit has the step before the client, and ends the response itself.
    assert.match(reasonOf(await reading) ?? "", /^(cut-off|truncated)$/);
    assert.ok(Date.now() - begin < 10_000);
    await until(() => session.trust.policy.sequence === 2, []);
    for (let i = 0; i < 20; i++) {
      const response = await session.fetch("/");
      assert.equal(response.status, 200);
      assert.notEqual(servedBy(response), cut);
      await response.text();
    }
    assert.notEqual(session.info.unit, cut);
    console.log(`# cut off after ${Date.now() - begin} ms; the session is ${session.info.alone ? "alone" : "shared"} now`);
  }));

/** Waits until a condition is true, or a caller fails. */
async function until(condition: () => boolean, callers: Promise<void>[]): Promise<void> {
  const failed = Promise.all(callers);
  while (!condition()) await Promise.race([failed, new Promise((resolve) => setTimeout(resolve, 10))]);
}

// The last one: for some seconds the gateway hints at the unit that was killed, and a request to it whose
// outcome must not be guessed ends in OutcomeUnknown.
test("a unit is killed while calls run: those that may be repeated succeed", options, () =>
  withSession(async (session) => {
    const victim = dev().units[0]!;
    let stopped = false;
    const results = { ok: 0, unknown: 0 };
    const caller = async (init?: RequestInit, repeatable = true) => {
      while (!stopped) {
        try {
          const response = await session.fetch(init ? "/chat" : "/", init);
          await response.text();
          assert.equal(response.status, 200);
          results.ok++;
        } catch (e) {
          // Content that was cut after the head arrived is no attempt that may be repeated.
          if (reasonOf(e) !== "truncated" && (repeatable || !(e instanceof OutcomeUnknown))) throw e;
          results.unknown++;
          // The gateway names the unit for some seconds more.
          await new Promise((resolve) => setTimeout(resolve, 100));
        }
      }
    };
    const question = { method: "POST", headers: json, body: JSON.stringify({ prompt: "The keeper", max_tokens: 2 }) };
    const callers = [caller(), caller(), caller(question, false), caller({ ...question, headers: { ...json, "idempotency-key": "1" } })];
    await until(() => results.ok > 20, callers);
    process.kill(victim.pid, "SIGKILL");
    const before = results.ok;
    await until(() => results.ok > before + 60, callers);
    await until(() => dev().units[0]!.pid !== victim.pid, callers);
    stopped = true;
    await Promise.all(callers);
    console.log(`# ${results.ok} calls succeeded, the outcome of ${results.unknown} is unknown`);
  }));
