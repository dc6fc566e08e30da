import assert from "node:assert/strict";
import { test } from "node:test";
import { fromBase64url, hex } from "../src/bytes.js";
import { Budget, decide, hintOf, Times } from "../src/channel/hints.js";
import { type CallRequest, type Gateways, NotExecuted, OutcomeUnknown, Transport, type TransportOptions, Unreachable } from "../src/channel/transport.js";
import type { UnitTrust } from "../src/channel/unit.js";
import { makeCall, makeResponse, servedBy } from "../src/fetch.js";
import { reasonOf, refuse } from "../src/refusal.js";
import { meetHint, standing } from "./exchange.js";
import { FakeCluster, problem, stream } from "./unit.js";
import { vector } from "./vectors.js";

interface Setup {
  cluster: FakeCluster;
  transport: Transport;
  clock: ReturnType<typeof standing>;
  renewed: () => number;
  fetch: (input: string, init?: RequestInit, receipt?: CallRequest["receipt"]) => Promise<Response>;
}

async function setup(count: number, options: Partial<TransportOptions> & { trust_?: (t: UnitTrust) => UnitTrust; streams?: boolean } = {}): Promise<Setup> {
  const cluster = await FakeCluster.make(count);
  const clock = standing(cluster);
  let renewed = 0;
  const current = () => (options.trust_ ?? ((t) => t))(cluster.trust());
  const gateways: Gateways = { streams: options.streams ?? true, fetch: (path, init) => cluster.fetch("https://gateway.example" + path, init) };
  const trust = { current, renew: async () => (renewed++, current()), newestHead: () => undefined, receivedHead: () => {} };
  const { trust_: _, streams: __, ...rest } = options;
  const transport = new Transport({ gateways, pin: cluster.pin, trust, clock, ...rest });
  return {
    cluster, transport, clock, renewed: () => renewed,
    async fetch(input, init, receipt) {
      const call = await makeCall(input, init, "https://scoring.clinic.example", () => {});
      call.request.receipt = receipt;
      return makeResponse(call, await transport.call(call.request));
    },
  };
}

interface RetryCase {
  hint: string;
  request: string;
  attempts: number;
  bound: number;
  units: number;
  tickets: number;
  sessions: number;
  seconds: number;
  outcome: string;
}

for (const want of vector<RetryCase[]>("internal/channelhttp/testdata/vectors/retries.json")) {
  test(`each attempt: ${want.hint}, ${want.request}`, async () => {
    const { error, ...got } = await meetHint(want.hint, want.request);
    assert.deepEqual({ ...want, ...got }, want);
    assert.equal(error instanceof OutcomeUnknown, want.outcome === "outcome-unknown");
    assert.equal(error instanceof Unreachable, want.outcome === "unavailable");
  });
}

test("requests of all sizes and methods arrive whole, at any unit", async () => {
  const { cluster, transport, fetch } = await setup(3);
  cluster.handler = async (head, content) => {
    const parts: Uint8Array[] = [];
    for (let piece = await content.read(); piece; piece = await content.read()) parts.push(piece.slice());
    const body = Buffer.concat(parts);
    return { status: 200, fields: [["x-method", head.method], ["x-path", head.path], ["x-length", String(head.length ?? -1)]], body };
  };
  for (const size of [0, 1, 300, 16 << 10, (16 << 10) + 1, (64 << 10) - 40, 64 << 10, 300_000]) {
    const body = new Uint8Array(size).map((_, i) => (i * 31 + (i >> 8)) & 255);
    const forms: [string, BodyInit, number][] = [
      ["bytes", body, size],
      ["blob", new Blob([body]), size],
      ["stream", stream([body.subarray(0, size >> 1), body.subarray(size >> 1)]), -1],
    ];
    for (const [form, content, length] of forms) {
      const response = await fetch("/score?a=b", { method: "POST", body: content });
      assert.equal(response.status, 200);
      assert.deepEqual(new Uint8Array(await response.arrayBuffer()), body, `${form} of ${size}`);
      assert.equal(response.headers.get("x-length"), String(length), `${form} of ${size}`);
      assert.equal(response.headers.get("x-path"), "/score?a=b");
      assert.equal(servedBy(response)?.length, 32);
    }
  }
  assert.equal(transport.opens, 1);
  assert.equal(new Set(cluster.log.filter((l) => l.target).map((l) => l.target)).size > 1, true);
});

test("where requests cannot be streamed they are sent whole", async () => {
  const { cluster, fetch } = await setup(1, { streams: false });
  let streamed = false;
  const inner = cluster.fetch;
  cluster.fetch = (input, init) => {
    streamed ||= init?.body instanceof ReadableStream;
    return inner(input, init);
  };
  cluster.handler = async (_, content) => {
    let size = 0;
    for (let piece = await content.read(); piece; piece = await content.read()) size += piece.length;
    return { status: 200, body: String(size) };
  };
  assert.equal(await (await fetch("/", { method: "POST", body: stream([new Uint8Array(100_000)]) })).text(), "100000");
  assert.equal(streamed, false);
});

test("a response is passed on piece by piece", async () => {
  const { cluster, fetch } = await setup(1);
  let more!: () => void;
  const gate = new Promise<void>((resolve) => (more = resolve));
  async function* parts() {
    yield new TextEncoder().encode("one");
    await gate;
    yield new TextEncoder().encode("two");
  }
  cluster.handler = async () => ({ status: 200, parts: parts() });
  const reader = (await fetch("/")).body!.getReader();
  assert.equal(new TextDecoder().decode((await reader.read()).value), "one");
  more();
  assert.equal(new TextDecoder().decode((await reader.read()).value), "two");
  assert.equal((await reader.read()).done, true);
});

test("a response that is cut or changed fails, and never ends early", async () => {
  for (const [change, reason] of [
    [(b: Uint8Array) => b.subarray(0, b.length - 1), "truncated"],
    [(b: Uint8Array) => b.map((v, i) => (i === b.length - 1 ? v ^ 1 : v)), "signature"],
    [(b: Uint8Array) => Buffer.concat([b, Buffer.from([0])]), "malformed"],
  ] as const) {
    const { cluster, fetch } = await setup(1);
    cluster.handler = async () => ({ status: 200, body: new Uint8Array(200_000) });
    const inner = cluster.fetch;
    cluster.fetch = async (input, init) => {
      const response = await inner(input, init);
      if (!String(input).endsWith("/request")) return response;
      const bytes = new Uint8Array(await response.arrayBuffer());
      return new Response(change(bytes) as BodyInit, response);
    };
    const response = await fetch("/");
    await assert.rejects(response.arrayBuffer(), (e) => reasonOf(e) === reason);
  }
});

test("statuses without content, HEAD and fields", async () => {
  const { cluster, fetch } = await setup(1);
  cluster.handler = async (head) => ({ status: Number(head.path.slice(1)), fields: [["x-a", "1"], ["x-a", "2"], ["content-length", "7"]].slice(0, head.method === "HEAD" ? 3 : 2) as [string, string][] });
  for (const status of [204, 205, 304]) {
    const response = await fetch("/" + status);
    assert.deepEqual([response.status, response.body, response.headers.get("x-a")], [status, null, "1, 2"]);
  }
  const head = await fetch("/200", { method: "HEAD" });
  assert.deepEqual([head.status, head.headers.get("content-length"), await head.text()], [200, "7", ""]);
  assert.equal((await fetch("/302")).status, 302);
  await assert.rejects(fetch("/302", { redirect: "error" }), TypeError);
});

test("an aborted call rejects with the reason of its signal", async () => {
  const { cluster, fetch } = await setup(1);
  await assert.rejects(fetch("/", { signal: AbortSignal.abort("early") }), (e) => e === "early");
  const abort = new AbortController();
  cluster.handler = () => {
    abort.abort("late");
    return new Promise((_, reject) => setTimeout(() => reject(refuse("unavailable", "", "", "")), 5));
  };
  await assert.rejects(fetch("/", { method: "POST", body: "x", signal: abort.signal }), (e) => e === "late");
});

test("a safe request is bound to no unit, another one is; a unit without the session joins it by its ticket", async () => {
  const { cluster, fetch } = await setup(3);
  for (let i = 0; i < 6; i++) assert.equal((await fetch("/")).status, 200);
  for (let i = 0; i < 12; i++) assert.equal((await fetch("/", { method: "POST", body: "x" })).status, 200);
  const requests = cluster.log.filter((l) => l.path.endsWith("/request"));
  assert.ok(requests.slice(0, 6).every((r) => !r.target));
  assert.ok(requests.filter((r) => r.target).length >= 12);
  assert.ok(requests.some((r) => r.ticket) && requests.some((r) => !r.ticket));
});

test("a call of a closed unit goes to another one, unless its outcome is unknown", async () => {
  const { cluster, transport, fetch } = await setup(3);
  await transport.session();
  const dead = cluster.units[0]!;
  cluster.units.shift();
  dead.sessions.clear();
  assert.equal((await fetch("/")).status, 200);
  assert.equal((await fetch("/", { method: "PUT", body: "x", headers: { "idempotency-key": "1" } })).status, 200);
});

test("a request that units refuse, authenticated, is not executed", async () => {
  const { cluster, fetch } = await setup(2);
  let served = 0;
  cluster.notExecuted = () => (++served < 3 ? "not-allowed" : undefined);
  assert.equal((await fetch("/", { method: "POST", body: "x" })).status, 200);
  cluster.notExecuted = () => "not-allowed";
  await assert.rejects(fetch("/", { method: "POST", body: "x" }), NotExecuted);
  const once = stream([new TextEncoder().encode("x")]);
  await assert.rejects(fetch("/", { method: "POST", body: once }), (e) => reasonOf(e) === "not-executed");
});

test("the content of a caller that fails fails the call", async () => {
  const { fetch } = await setup(1);
  const failing = stream((async function* () {
    yield new Uint8Array(10);
    throw new RangeError("of the caller");
  })());
  await assert.rejects(fetch("/", { method: "POST", body: failing }), (e) => reasonOf(e) === "outcome-unknown" || e instanceof RangeError);
});

test("one session is opened for all callers, and the next one ahead of its end", async () => {
  const { cluster, transport, fetch } = await setup(2);
  await Promise.all(Array.from({ length: 20 }, () => fetch("/")));
  assert.equal(transport.opens, 1);
  cluster.now += 46 * 60_000;
  await Promise.all(Array.from({ length: 5 }, () => fetch("/")));
  await transport.session();
  for (let i = 0; i < 20 && transport.opens < 2; i++) await new Promise((resolve) => setTimeout(resolve, 5));
  assert.equal(transport.opens, 2);
  cluster.now += 2 * 3_600_000;
  await fetch("/");
  assert.equal(transport.opens, 3);
});

test("fresh evidence needs the cookie, which belongs to the same request", async () => {
  const { cluster, transport, clock } = await setup(1, { freshEvidence: true });
  cluster.cookies = true;
  const session = await transport.session();
  assert.ok(session.facts.evidence);
  assert.equal(clock.slept, 0);
});

test("a unit that introduces itself, on a TPM, is refused by the name of its platform", async () => {
  const { cluster, transport } = await setup(1, { freshEvidence: true });
  cluster.tamper = async (path) =>
    path.endsWith("/session")
      ? new Response(JSON.stringify({ reason: "cookie-wanted", introduction: "AAAA" }), { status: 428, headers: { "cohort-cookie": "AAAA", "content-type": "application/problem+json" } })
      : undefined;
  await assert.rejects(transport.session(), (e) => reasonOf(e) === "platform");
});

test("opening: faults that may pass are tried again, others are not", async () => {
  const cases: [string, (n: number) => Response | undefined | Error, number, string?][] = [
    ["a gateway that is away", (n) => (n < 3 ? new TypeError("fetch failed") : undefined), 3],
    ["a gateway that stays away", () => new TypeError("fetch failed"), 6, "unavailable"],
    ["a unit that is behind", (n) => (n < 2 ? problem(412, "behind") : undefined), 2],
    ["a unit that stays behind", () => problem(412, "behind"), 6, "unavailable"],
    ["a response that is no session", () => new Response("{}", { status: 200 }), 1, "malformed"],
    ["a response without end", () => new Response(new Uint8Array(600_000), { status: 200 }), 1, "too-large"],
    ["an answer with another cookie each time", () => new Response("{}", { status: 428, headers: { "cohort-cookie": "AAAA" } }), 6, "unavailable"],
  ];
  for (const [name, answer, attempts, reason] of cases) {
    const { cluster, transport } = await setup(2);
    let n = 0;
    cluster.tamper = async () => {
      const given = answer(++n);
      if (given instanceof Error) throw given;
      return given;
    };
    const result: unknown = await transport.session().then(() => undefined, (e: unknown) => e);
    assert.deepEqual([n, reasonOf(result)], [attempts, reason], name);
  }
});

test("after a refusal trust is fetched anew, and the same response is checked once more", async () => {
  let refusing = true;
  const { transport, renewed } = await setup(1, {
    trust_: (t) => ({
      ...t,
      checkChain: async (...given) => {
        if (refusing) {
          refusing = false;
          throw refuse("identity", "chain", "a later release", "a release of the policy");
        }
        return t.checkChain(...given);
      },
    }),
  });
  await transport.session();
  assert.deepEqual([renewed(), transport.opens], [1, 1]);
});

test("a unit that is cut off is avoided: another one is named", async () => {
  const { cluster, transport } = await setup(3, {
    trust_: (t) => ({
      ...t,
      checkChain: async (...given) => {
        const unit = await t.checkChain(...given);
        if (unit.unit === first) throw refuse("cut-off", "unit", unit.unit, "one that is not cut off");
        return unit;
      },
    }),
  });
  let first = cluster.units[0]!.id;
  const named: (string | null)[] = [];
  cluster.tamper = async (path, { headers }) => {
    if (path.endsWith("/session")) named.push(headers.get("cohort-unit"));
    return undefined;
  };
  const session = await transport.session();
  assert.notEqual(session.facts.unit.unit, first);
  assert.equal(named.length, 2);
  assert.ok(named[1] && named[1] !== first);
  first = "";
});

test("a session that is alone binds every request to its opener", async () => {
  const { cluster, transport, fetch } = await setup(3);
  cluster.alone = true;
  const session = await transport.session();
  for (let i = 0; i < 4; i++) await fetch("/");
  const targets = new Set(cluster.log.filter((l) => l.path.endsWith("/request")).map((l) => l.target));
  assert.deepEqual([...targets], [session.facts.unit.unit]);
  cluster.alone = false;
  cluster.now += 6_000;
  await fetch("/");
  for (let i = 0; i < 20 && transport.opens < 2; i++) await new Promise((resolve) => setTimeout(resolve, 5));
  assert.equal(transport.opens, 2);
});

test("closing reports the units that confirmed", async () => {
  const { cluster, transport, fetch } = await setup(3);
  const session = await transport.session();
  for (const unit of cluster.units) await unit.join(session.facts.ticket);
  const gone = cluster.units.pop()!;
  const closed = await transport.close();
  assert.deepEqual(closed.confirmed.sort(), cluster.units.map((u) => u.id).sort());
  assert.ok(!closed.confirmed.includes(gone.id));
  assert.ok(closed.others);
  await assert.rejects(fetch("/"), /closed/);
  assert.deepEqual((await transport.close()).confirmed, []);
});

test("a receipt is verified at the end of its response", async () => {
  const { cluster, fetch } = await setup(2, { receipts: true });
  for (const body of ["short", "x".repeat(100_000)]) {
    let number: number | undefined;
    const response = await fetch("/", { method: "POST", body }, (_, receipt) => (number = receipt.number));
    assert.equal(number, undefined);
    await response.text();
    assert.ok(number);
  }
  cluster.units.forEach((unit) => (unit.receipt = () => new Uint8Array(4)));
  const response = await fetch("/", {}, () => assert.fail("a receipt was accepted"));
  await assert.rejects(response.text(), (e) => reasonOf(e) === "malformed");
});

test("heads travel once in each session", async () => {
  const cluster = await FakeCluster.make(1);
  const head = new Uint8Array([1, 2, 3]);
  const received: string[] = [];
  const seen: (string | null)[] = [];
  cluster.tamper = async (_, { headers }) => {
    seen.push(headers.get("cohort-head"));
    return undefined;
  };
  const transport = new Transport({
    gateways: { streams: true, fetch: (path, init) => cluster.fetch("https://gateway.example" + path, init) },
    pin: cluster.pin, clock: standing(cluster),
    trust: { current: () => cluster.trust(), renew: async () => cluster.trust(), newestHead: () => head, receivedHead: (f) => received.push(f) },
  });
  const call = async () => makeResponse(await makeCall("/", {}, "https://scoring.clinic.example", () => {}), await transport.call((await makeCall("/", {}, "https://scoring.clinic.example", () => {})).request));
  for (let i = 0; i < 3; i++) await (await call()).text();
  assert.deepEqual(seen.map((f) => f && hex(fromBase64url(f))), ["010203", "010203", null, null]);
});

test("turns: 8 calls probe at a time", async () => {
  const { cluster, fetch } = await setup(1, { clock: { now: () => cluster_.now, sleep: (ms) => new Promise((resolve) => setTimeout(resolve, ms / 10)) } });
  let cluster_ = cluster;
  let active = 0;
  let most = 0;
  let begun = 0;
  cluster.tamper = async (path) => {
    if (!path.endsWith("/request")) return undefined;
    active++;
    if (++begun > 24) most = Math.max(most, active); // the first attempts need no turn
    await new Promise((resolve) => setTimeout(resolve, 2));
    active--;
    return problem(503, "unavailable");
  };
  const results = await Promise.all(Array.from({ length: 24 }, () => fetch("/").catch((e: unknown) => reasonOf(e))));
  assert.ok(results.every((r) => r === "unavailable"));
  assert.equal(most, 8);
  assert.ok(begun > 24 + 8);
});

test("hints are bounded, and only their form counts", () => {
  const hint = (status: number, headers: Record<string, string>) => hintOf({ status, headers: new Headers(headers) });
  const id = "ab".repeat(16);
  assert.deepEqual(hint(421, { "cohort-units": `${id}, ${id.toUpperCase()},x,,${id}0` }), { reason: "misdirected", units: [id] });
  assert.equal(hint(200, { "cohort-units": Array(3000).fill(id).join(",") }).units!.length, 1024);
  assert.deepEqual(hint(412, { "cohort-time": "12" }), { reason: "expired", time: 12 });
  for (const bad of ["-1", "1e3", "9".repeat(20), "0x1", " "]) assert.equal(hint(412, { "cohort-time": bad }).time, undefined);
  assert.equal(hint(503, { "cohort-time": "12" }).time, undefined);
});

test("decisions", () => {
  const facts = { safe: false, marked: false, left: true, notExecuted: false, whole: true };
  assert.equal(decide(facts), "outcome-unknown");
  for (const fact of ["safe", "marked", "notExecuted"]) assert.equal(decide({ ...facts, [fact]: true }), "repeat");
  assert.equal(decide({ ...facts, left: false }), "repeat");
  assert.equal(decide({ ...facts, safe: true, whole: false }), "give-up");
  const budget = new Budget();
  assert.deepEqual([budget.allow("rekey"), budget.allow("rekey"), budget.isSpent("rekey"), budget.isSpent("ticket-wanted")], [true, false, true, false]);
});

test("the end of an attempt follows the clocks of units", () => {
  const times = new Times();
  times.opened("a", 1_000_500, 1_000_000);
  assert.equal(times.notAfter("a", 1_000_000, 30_000), 1_030_500);
  assert.equal(times.notAfter("b", 1_000_000, 30_000), 1_090_500);
  times.note("b", 1_060_000, 1_000_000);
  assert.equal(times.notAfter("b", 1_000_000, 30_000), 1_090_000);
  assert.equal(times.notAfter(undefined, 1_000_000, 30_000), 1_000_500 + 120_000 - 59_500);
  times.note("c", 1_000_000 + 301_000, 1_000_000);
  assert.equal(times.notAfter("c", 1_000_000, 30_000), 1_000_500 + 120_000 - 59_500);
});

