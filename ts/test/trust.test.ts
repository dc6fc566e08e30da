import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { createServer, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { test } from "node:test";
import { base64, digestText, fromBase64, fromHex, sha256 } from "../src/bytes.js";
import { frame, unframe } from "../src/frame.js";
import { Refusal, reasonOf } from "../src/refusal.js";
import { type Source, fetchJson, gatewaySource } from "../src/source.js";
import { checkTrustStatement, parseTrustStatement } from "../src/statement.js";
import { type Trust, type TrustOptions, fetchTrust } from "../src/trust.js";
import { parseCertificate } from "../src/x509.js";
import { Authority } from "./authority.js";
import { fuzz } from "./fuzz.js";
import { repository, vector } from "./vectors.js";

/** The input of a trust vector. */
interface Input {
  at: string;
  genesis: string;
  task: string;
  min_sequence: number;
  nonce: string;
  pages: unknown[];
  chain?: string[];
  trust: Record<string, unknown>;
}

interface Change {
  name: string;
  set: { path: string; value?: unknown }[];
  reason: string;
}

interface TrustVector {
  input: Input;
  accepted: { sequence: number; policy_head: string; authority_root: string; identities: Record<string, string> };
  also_accepted?: Change[];
  refused: Change[];
}

/** Applies a change: JSON Pointers, RFC 6901. */
function changed(input: Input, { set }: Change): Input {
  const copy = structuredClone(input);
  for (const { path, value } of set) {
    const steps = path.slice(1).split("/");
    const last = steps.pop()!;
    const parent = steps.reduce<Record<string, unknown>>((at, step) => at[step] as Record<string, unknown>, copy as unknown as Record<string, unknown>);
    if (value === undefined) delete parent[last];
    else parent[last] = value;
  }
  return copy;
}

/** Fetches trust from the responses of an input. */
function trustOf(input: Input): Promise<Trust> {
  const pages = [...input.pages];
  const { chain } = input;
  const page = async () => {
    if (pages.length === 0) throw new Refusal("unavailable", "vector", "no further page", "a page");
    return pages.shift();
  };
  const source: Source = {
    name: "vector",
    history: page,
    poll: page,
    trust: () => Promise.resolve(input.trust),
    ...(chain && { chain: () => chain.map((der) => parseCertificate(fromBase64(der))) }),
  };
  return fetchTrust({
    sources: [source], genesis: input.genesis, task: input.task, minSequence: input.min_sequence, clock: () => Date.parse(input.at),
    fresh: input.nonce !== "", random: () => fromHex(input.nonce),
  });
}

// A tree without the package of trust statements has no vectors of them.
const statements = existsSync(repository + "internal/trustresponse");
test("vectors of trust statements", { skip: !statements && "this tree has none" }, () => undefined);

for (const file of ["trust.json", ...(statements ? ["trust-statement.json"] : [])]) {
  const v = vector<TrustVector>("client/testdata/vectors/" + file);
  test(`vectors of ${file}: accepted`, async () => {
    for (const input of [v.input, ...(v.also_accepted ?? []).map((change) => changed(v.input, change))]) {
      const trust = await trustOf(input);
      assert.deepEqual(
        [trust.policy.sequence, trust.policy.head, digestText(await sha256(trust.authorityRoot.key.spki)), Object.fromEntries(trust.identities.map((i) => [i.release, i.id]))],
        [v.accepted.sequence, v.accepted.policy_head, v.accepted.authority_root, v.accepted.identities],
      );
    }
  });
  for (const change of v.refused) {
    test(`vectors of ${file}: ${change.name}`, async () => {
      await assert.rejects(trustOf(changed(v.input, change)), (e) => {
        assert.equal(reasonOf(e), change.reason, String(e));
        return true;
      });
    });
  }
}

const noon = Date.parse("2026-11-22T12:00:00Z");
const scoring = "[task.scoring.release.\"2026.11\"]";
/** A further release of task scoring. */
const newRelease: [string, string] = [scoring, `[task.scoring.release."2026.12"]\nreference = [ { platform = "soft", program = "sha256:${"7".repeat(64)}" } ]\n${scoring}`];

function options(authority: Authority, more: Partial<TrustOptions> = {}): TrustOptions {
  return { genesis: authority.genesis, task: "scoring", sources: [authority.source()], clock: authority.now, ...more };
}

test("trust through a gateway: one statement for many clients", async () => {
  const authority = await Authority.found(() => noon);
  const gateway = await authority.serve();
  try {
    const trust = await fetchTrust({ genesis: authority.genesis, task: "scoring", gateways: [gateway.url + "/"], clock: () => noon });
    assert.deepEqual(trust.identities.map((i) => i.release).sort(), ["2026.10", "2026.11"]);
    assert.deepEqual(authority.requests, ["history 0", "trust"]);
    assert.deepEqual([trust.evidence.platform, trust.proved.head, trust.fetchedAt], ["soft", authority.policy.head, noon]);
    const expect = trust.expect(noon);
    assert.deepEqual([expect.kinds, expect.use, expect.ids?.length], [["unit"], "signing", 2]);
    await fetchTrust({ genesis: authority.genesis, task: "scoring", gateways: [gateway.url], fresh: true, clock: () => noon });
    assert.deepEqual(authority.requests.slice(2), ["history 0", "trust with a nonce"]);
    const behind = await Authority.found(() => noon, ["2026.10", "2026.09"]);
    const storage = { load: () => Promise.resolve(behind.history.toBytes()), store: () => Promise.resolve() };
    await assert.rejects(fetchTrust({ genesis: behind.genesis, task: "scoring", gateways: [gateway.url], storage, clock: () => noon }), { reason: "behind" });
  } finally {
    gateway.close();
  }
});

test("a copy that is older than the newest step, or too old, is requested again with a nonce", async () => {
  const authority = await Authority.found(() => noon);
  const cached = await authority.trustResponse(new Uint8Array(0));
  const later = noon + 60_000;
  const trust = await fetchTrust(options(authority, { sources: [{ ...authority.source(), trust: () => Promise.resolve(cached) }], clock: () => later }));
  assert.deepEqual([trust.fetchedAt, trust.evidenceAt], [later, noon]);
  await authority.step(newRelease);
  authority.requests.length = 0;
  const relay = authority.source();
  const source: Source = { ...relay, trust: (query, signal) => (query.nonce ? relay.trust(query, signal) : Promise.resolve(cached)) };
  assert.equal((await fetchTrust(options(authority, { sources: [source] }))).policy.sequence, 2);
  assert.deepEqual(authority.requests, ["history 0", "history 0", "trust with a nonce"]);
  const old = await Authority.found(() => noon);
  const kept = await old.trustResponse(new Uint8Array(0));
  old.now = () => noon + 11 * 60_000;
  const second: Source = { ...old.source(), trust: (query, signal) => (query.nonce ? old.source().trust(query, signal) : Promise.resolve(kept)) };
  await fetchTrust(options(old, { sources: [second], clock: old.now }));
  // A relay that never sends fresh trust is refused for the second response.
  const stubborn: Source = { ...relay, trust: () => Promise.resolve(cached) };
  await assert.rejects(fetchTrust(options(authority, { sources: [stubborn], clock: () => noon })), { reason: "behind" });
});

test("evidence of a TPM in a response for many clients is requested again with a nonce", async () => {
  const authority = await Authority.found(() => noon);
  authority.tpm = true;
  await assert.rejects(fetchTrust(options(authority)), { reason: "platform" });
  assert.deepEqual(authority.requests, ["history 0", "trust", "history 0", "trust with a nonce"]);
});

test("a proof of another head than the history leads to", async () => {
  const authority = await Authority.found(() => noon);
  const [page, response] = [await authority.historyResponse("0", 0), await authority.trustResponse(new Uint8Array(0))] as [Record<string, unknown>, unknown];
  await authority.step(newRelease);
  const relay: Source = { ...authority.source(), history: () => Promise.resolve({ ...page, proved_head: base64(authority.provedHead()) }), trust: () => Promise.resolve(response) };
  await assert.rejects(fetchTrust(options(authority, { sources: [relay] })), { reason: "behind", rule: "policy history: proved head" });
});

test("a TLS connection without certificates is no authority", async () => {
  const authority = await Authority.found(() => noon);
  await assert.rejects(fetchTrust(options(authority, { sources: [{ ...authority.source(), chain: () => [] }] })), { reason: "authority-root" });
});

test("a trust statement for another nonce, or without a digest", async () => {
  const authority = await Authority.found(() => noon);
  const { policy } = authority;
  const response = (await authority.trustResponse(new Uint8Array(0))) as { statement: string; evidence: unknown };
  const bytes = fromBase64(response.statement);
  const expect = { policy, authorityRoot: authority.root, nonce: new Uint8Array(0), evidence: new TextEncoder().encode(JSON.stringify(response.evidence)), at: noon };
  await checkTrustStatement(bytes, expect);
  await assert.rejects(checkTrustStatement(bytes, { ...expect, nonce: new Uint8Array(32) }), { reason: "nonce" });
  const fields = unframe("cohort trust statement v1", bytes, 10);
  for (const i of [0, 1, 2, 6]) {
    const zero = frame("cohort trust statement v1", ...fields.map((f, n) => (n === i ? new Uint8Array(32) : f)));
    assert.throws(() => parseTrustStatement(zero), { reason: "malformed" });
  }
});

test("sources are tried in order, and all faults are reported", async () => {
  const authority = await Authority.found(() => noon);
  const broken: Source = { ...authority.source("broken"), history: () => Promise.reject(new Refusal("unavailable", "r", "g", "w")) };
  const other = await Authority.found(() => noon, ["2026.10", "2026.09"]);
  await fetchTrust(options(authority, { sources: [broken, other.source("other"), authority.source()] }));
  await assert.rejects(fetchTrust(options(authority, { sources: [broken, other.source("other")] })), (e) => {
    assert.ok(e instanceof AggregateError);
    assert.deepEqual([reasonOf(e), e.errors.map(reasonOf)], ["unavailable", ["unavailable", "genesis"]]);
    assert.match(e.message, /broken: .*; other: /);
    return true;
  });
});

test("pins", async () => {
  const authority = await Authority.found(() => noon);
  const release = authority.policy.tasks.get("scoring")!.releases.get("2026.11")!;
  const base = { genesis: authority.genesis, sources: [authority.source()], clock: () => noon };
  for (const pin of [{ id: release.id }, { measurements: [...release.references].reverse() }]) {
    const trust = await fetchTrust({ ...base, ...pin });
    assert.deepEqual(trust.identities.map((i) => i.id), [release.id]);
  }
  const other = "sha256:" + "3".repeat(64);
  const rows: [Partial<TrustOptions>, string][] = [
    [{}, "request"],
    [{ task: "scoring", id: release.id }, "request"],
    [{ task: "scoring", role: "r" }, "request"],
    [{ task: "scoring", partyKeys: [other] }, "request"],
    [{ task: "scoring", genesis: "x" }, "malformed"],
    [{ task: "scoring", sources: [] }, "request"],
    [{ task: "scoring", authorities: ["http://localhost"] }, "request"],
    [{ task: "scoring", gateways: ["ftp://localhost"] }, "request"],
    [{ task: "scoring", gateways: ["https://user@localhost"] }, "request"],
    [{ task: "nosuch" }, "not-found"],
    [{ group: "nosuch" }, "not-found"],
    [{ id: other }, "identity"],
    [{ measurements: release.references.slice(1) }, "measurement"],
    [{ task: "scoring", minSequence: 2 }, "behind"],
  ];
  for (const [pin, reason] of rows) await assert.rejects(fetchTrust({ ...base, ...pin }), { reason }, JSON.stringify(pin));
});

test("a group: the rosters that its parties approve", async () => {
  const authority = await Authority.foundGroups(() => noon);
  const pin = (more: Partial<TrustOptions> = {}) => fetchTrust({ genesis: authority.genesis, group: "trial", sources: [authority.source()], clock: () => noon, ...more });
  await assert.rejects(pin(), { reason: "quorum" });
  await authority.state("approve", "north", "trial", 1);
  await assert.rejects(pin(), { reason: "quorum" });
  await authority.state("approve", "south", "trial", 1);
  const { id, roster } = authority.policy.groupStates.get("trial")!;
  const north = roster.parties.find((party) => party.name === "north")!.key;
  const trust = await pin({ role: "scorer", partyKeys: [north] });
  assert.deepEqual(trust.identities.map((i) => [i.id, i.group, i.task, i.cross]), [[id, "trial", "", undefined]]);
  const { kinds, group, roles, approvers, ids } = trust.expect(noon);
  assert.deepEqual([kinds, group, roles, approvers, ids], [["group"], "trial", ["scorer"], [north], undefined]);
  assert.deepEqual((await pin()).expect(noon).roles, ["holder", "scorer"]);
  assert.deepEqual((await pin({ id })).expect(noon).ids, [id]);
  await assert.rejects(pin({ id: "sha256:" + "1".repeat(64) }), { reason: "roster" });
  await assert.rejects(pin({ partyKeys: ["sha256:" + "1".repeat(64)] }), { reason: "party" });
  await assert.rejects(pin({ clock: () => noon + 60 * 24 * 3_600_000 }), { reason: "expired" });
  const edits: [string, (list: Record<string, unknown>[]) => Record<string, unknown>[]][] = [
    ["identity", (list) => list.filter((i) => i["group"] !== "trial")],
    ["identity", (list) => list.map((i) => ({ ...i, root: list.find((other) => other["group"] === "audit")!["root"] }))],
    ["kind", (list) => list.map((i) => ({ ...i, root: list[0]!["root"] }))],
  ];
  for (const [reason, edit] of edits) {
    authority.edit = (path, response) => (path === "trust" ? { ...response, identities: edit(response["identities"] as Record<string, unknown>[]) } : response);
    await assert.rejects(pin(), (e) => {
      assert.ok(reasonOf(e) === reason || (reason === "identity" && reasonOf(e) === "roster"), String(e));
      return true;
    });
  }
  authority.edit = (_, response) => response;
  await authority.state("withdraw", "south", "trial", 2);
  await assert.rejects(pin(), { reason: "quorum" });
  const later = await pin({ partyKeys: [north] }).catch((e: unknown) => reasonOf(e));
  assert.equal(later, "quorum");
  assert.equal(trust.policy.steps, 3); // it has not followed
});

test("the newest history is stored, and an older one is refused afterwards", async () => {
  const authority = await Authority.found(() => noon);
  const old = await Authority.found(() => noon);
  await authority.step(newRelease);
  let stored: Uint8Array | undefined;
  let stores = 0;
  const storage = {
    load: () => Promise.resolve(stored),
    store: (bytes: Uint8Array) => {
      [stored, stores] = [bytes, stores + 1];
      return Promise.resolve();
    },
  };
  await fetchTrust(options(authority, { storage }));
  assert.equal(stores, 1);
  authority.requests.length = 0;
  await fetchTrust(options(authority, { storage }));
  assert.deepEqual([authority.requests, stores], [["history after 2 steps, 0 ms", "trust"], 1]);
  await assert.rejects(fetchTrust(options(old, { storage })), { reason: "behind" });
  // A server with another second step has another history.
  await old.step([scoring, "# another\n" + scoring]);
  await old.step([scoring, "# another\n" + scoring]);
  await assert.rejects(fetchTrust(options(old, { storage })), { reason: "behind" });
  const forked: Source = { ...old.source(), poll: () => old.historyResponse("2", 0) };
  await assert.rejects(fetchTrust(options(old, { storage, sources: [forked] })), { reason: "behind", rule: "policy history: step after the newest seen" });
  const direct: Source = { ...old.source(), chain: () => [old.leaf, old.root] };
  await assert.rejects(fetchTrust(options(old, { storage, sources: [direct] })), { reason: "behind", rule: "policy history: step after the newest seen" });
  const foreign = await Authority.found(() => noon, ["2026.10", "2026.09"]);
  await assert.rejects(fetchTrust(options(foreign, { storage })), (e) => reasonOf(e) !== undefined);
  for (const failing of [{ ...storage, load: () => Promise.reject(new Error("broken")) }, { load: () => Promise.resolve(undefined), store: () => Promise.reject(new Error("full")) }]) {
    await assert.rejects(fetchTrust(options(authority, { storage: failing })), { reason: "store" });
  }
  stored = stored!.subarray(1);
  await assert.rejects(fetchTrust(options(authority, { storage })), (e) => reasonOf(e) !== undefined);
});

test("pages in another form, or without progress", async () => {
  const authority = await Authority.found(() => noon);
  const rows: [string, (page: Record<string, unknown>) => unknown][] = [
    ["malformed", (page) => ({ ...page, from: 1 })],
    ["malformed", (page) => ({ ...page, from: "0" })],
    ["malformed", (page) => ({ ...page, head: 7 })],
    ["malformed", (page) => ({ ...page, head: "sha256:" + "A".repeat(64) })],
    ["malformed", (page) => ({ ...page, entries: {} })],
    ["malformed", (page) => ({ ...page, entries: [null] })],
    ["malformed", (page) => ({ ...page, proved_head: "*" })],
    ["malformed", (page) => ({ ...page, proved_head: 7 })],
    ["malformed", () => null],
    ["malformed", () => []],
    ["malformed", (page) => Object.create(page) as unknown],
    ["too-large", (page) => ({ ...page, proved_head: "A".repeat(4000) })],
    ["behind", (page) => ({ ...page, proved_head: null })],
    ["behind", (page) => ({ ...page, entries: [] })],
    ["behind", (page) => ({ ...page, entries: null })],
    ["behind", (page) => ({ ...page, head: "sha256:" + "1".repeat(64), ...(page["from"] === 1 && { entries: [] }) })], // a head that no page leads to
  ];
  for (const [reason, edit] of rows) {
    authority.edit = (path, response) => (path === "history" ? edit(response) : response);
    await assert.rejects(fetchTrust(options(authority)), { reason });
  }
  const trusts: [string, (response: Record<string, unknown>) => unknown][] = [
    ["malformed", () => null],
    ["malformed", (r) => ({ ...r, authority: 7 })],
    ["malformed", (r) => ({ ...r, authority: undefined })],
    ["malformed", (r) => ({ ...r, identities: 7 })],
    ["malformed", (r) => ({ ...r, identities: [null] })],
    ["digest", (r) => ({ ...r, evidence: undefined })],
    ["malformed", (r) => ({ ...r, history: undefined })],
    ["malformed", (r) => ({ ...r, statement: "*" })],
    ["malformed", (r) => ({ ...r, statement: undefined })],
    ["too-large", (r) => ({ ...r, statement: "A".repeat(1 << 20) })],
  ];
  for (const [reason, edit] of trusts) {
    authority.edit = (path, response) => (path === "trust" ? edit(response) : response);
    await assert.rejects(fetchTrust(options(authority)), { reason });
  }
});

/** Waits until a condition is true after a change of the trust. */
async function until(trust: Trust, condition: () => boolean): Promise<void> {
  while (!condition()) {
    await new Promise<void>((resolve) => {
      const end = trust.subscribe(() => {
        end();
        resolve();
      });
    });
  }
}

test("a follower adopts each step, and fetches the root of a new release", async () => {
  const authority = await Authority.found(() => Date.now());
  const gateway = await authority.serve();
  const end = new AbortController();
  try {
    const saved: number[] = [];
    const storage = { load: () => Promise.resolve(undefined), store: (bytes: Uint8Array) => Promise.resolve(void saved.push(bytes.length)) };
    const trust = await fetchTrust({ genesis: authority.genesis, task: "scoring", gateways: [gateway.url], storage });
    const following = [trust.follow(end.signal), trust.follow(end.signal)];
    await authority.step(newRelease);
    await until(trust, () => trust.policy.sequence === 2);
    assert.equal(trust.expect(Date.now()).ids?.length, 3); // all checks of its units follow from policy
    await until(trust, () => trust.identities.length === 3);
    await authority.step([scoring, "# a step that concerns no identity\n" + scoring]);
    await until(trust, () => trust.policy.sequence === 3);
    end.abort();
    await Promise.all(following);
    assert.equal(saved.length, 3);
    const polls = authority.requests.filter((r) => r.startsWith("history after"));
    assert.ok(polls.length <= 4, polls.join()); // one poll at a time, though two follow
  } finally {
    end.abort();
    gateway.close();
  }
});

test("a follower continues at another source, and waits longer where none responds", async () => {
  const authority = await Authority.found(() => Date.now());
  let broken = 0;
  const failing: Source = { ...authority.source("failing"), poll: () => Promise.reject(new Refusal("unavailable", "r", String(broken++), "w")) };
  const trust = await fetchTrust(options(authority, { sources: [failing, authority.source()], clock: Date.now }));
  const end = new AbortController();
  const following = trust.follow(end.signal);
  await authority.step(newRelease);
  await until(trust, () => trust.policy.sequence === 2);
  assert.equal(broken, 1);
  end.abort();
  await following;
});

test("where every source is full, a follower asks without waiting", async () => {
  const authority = await Authority.found(() => Date.now());
  const relay = authority.source();
  const waits: number[] = [];
  const full: Source = {
    ...relay,
    poll(head, wait, signal) {
      waits.push(wait);
      return wait > 0 ? Promise.reject(new Refusal("rate", "r", "g", "w")) : relay.poll(head, wait, signal);
    },
  };
  const trust = await fetchTrust(options(authority, { sources: [full, full], clock: Date.now }));
  await authority.step(newRelease);
  const end = new AbortController();
  const following = trust.follow(end.signal);
  await until(trust, () => trust.policy.sequence === 2);
  assert.deepEqual(waits, [30_000, 0]);
  end.abort();
  await following;
});

test("a step without the pin refuses every unit until one has it again", async () => {
  const authority = await Authority.found(() => Date.now());
  const id = authority.policy.tasks.get("scoring")!.releases.get("2026.10")!.id;
  const trust = await fetchTrust({ genesis: authority.genesis, id, sources: [authority.source()] });
  const end = new AbortController();
  const following = trust.follow(end.signal);
  const release = /\[task\.scoring\.release\."2026\.10"\]\nreference = .*\n/.exec(Buffer.from(authority.history.steps[0]!.policy).toString())![0];
  await authority.step([release, ""]);
  await until(trust, () => trust.policy.sequence === 2);
  assert.throws(() => trust.expect(Date.now()), { reason: "identity" });
  assert.deepEqual(trust.identities, []);
  await authority.step([scoring, release + scoring]);
  await until(trust, () => trust.policy.sequence === 3);
  assert.deepEqual(trust.expect(Date.now()).ids, [id]);
  assert.equal(trust.identities.length, 1); // its root was verified before
  end.abort();
  await following;
});

test("refresh: one fetch at a time, and at most one in a second", async () => {
  let now = noon;
  const authority = await Authority.found(() => now);
  const trust = await fetchTrust(options(authority));
  await trust.refresh();
  assert.equal(authority.requests.length, 2); // too early
  now += 1000;
  await Promise.all([trust.refresh(), trust.refresh(), trust.refresh()]);
  assert.deepEqual(authority.requests.slice(2), ["history after 1 steps, 0 ms", "trust"]);
  assert.equal(trust.fetchedAt, now);
  now += 1000;
  const before = trust.policy.head;
  authority.edit = () => null;
  await assert.rejects(trust.refresh(), { reason: "malformed" });
  assert.equal(trust.policy.head, before);
});

test("a head that a unit sent makes the follower poll at once", async () => {
  const authority = await Authority.found(() => Date.now());
  const relay = authority.source();
  const waits: number[] = [];
  const deaf: Source = {
    ...relay,
    poll(head, wait, signal) {
      waits.push(wait);
      // Steps do not end a wait here.
      return wait > 0 ? new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason as Error))) : relay.poll(head, wait, signal);
    },
  };
  const trust = await fetchTrust(options(authority, { sources: [deaf], clock: Date.now }));
  const end = new AbortController();
  const following = trust.follow(end.signal);
  await trust.hintHead(authority.provedHead()); // not newer
  await authority.step(newRelease);
  const forged = authority.provedHead();
  forged[forged.length - 1]! ^= 1;
  await trust.hintHead(forged);
  await trust.hintHead(new Uint8Array(5000));
  assert.equal(trust.policy.sequence, 1);
  await trust.hintHead(authority.provedHead());
  await until(trust, () => trust.policy.sequence === 2);
  assert.deepEqual(waits.slice(0, 2), [30_000, 0]);
  end.abort();
  await following;
});

test("responses are bounded, and no redirect is followed", async () => {
  let respond: (response: ServerResponse) => void = () => undefined;
  const server = createServer((_, response) => respond(response));
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const get = (ms = 5000) => fetchJson(fetch, url, { signal: AbortSignal.timeout(ms) });
  const problem = (status: number, body: unknown) => (r: ServerResponse) => r.writeHead(status, { "content-type": "application/problem+json; charset=utf-8" }).end(typeof body === "string" ? body : JSON.stringify(body));
  try {
    respond = (r) => r.end('{"__proto__": {"a": 1}, "b": 2}');
    assert.equal(Object.hasOwn((await get()) as object, "__proto__"), true);
    const rows: [string, (response: ServerResponse) => unknown][] = [
      ["malformed", (r) => r.end("{")],
      ["malformed", (r) => r.end(Buffer.from([0xff]))],
      ["unavailable", (r) => r.writeHead(500).end("{}")],
      ["unavailable", (r) => r.writeHead(204).end()],
      ["unavailable", (r) => r.writeHead(302, { location: url + "/elsewhere" }).end()],
      ["unavailable", (r) => r.destroy()],
      ["unavailable", (r) => void r.writeHead(200, { "content-length": "100" }).write("{", () => r.destroy())],
      ["behind", problem(409, { reason: "behind", rule: "r", got: "g\u001b[2J", want: "w" })],
      ["internal", problem(400, { reason: "no such reason" })],
      ["internal", problem(400, { reason: 7 })],
      ["internal", problem(400, "null")],
      ["malformed", problem(400, "{")],
      ["too-large", problem(400, JSON.stringify("a".repeat(17 << 10)))],
      ["too-large", (r) => {
        const chunk = Buffer.alloc(1 << 20, 0x20);
        const write = () => {
          while (!r.destroyed && r.write(chunk));
        };
        r.on("drain", write);
        write();
      }],
    ];
    for (const [reason, how] of rows) {
      respond = how;
      await assert.rejects(get(), (e) => {
        assert.equal(reasonOf(e), reason, String(e));
        assert.ok(!String(e).includes("\u001b"));
        return true;
      });
    }
    respond = () => undefined; // no response
    await assert.rejects(get(50), { reason: "unavailable" });
    const end = new AbortController();
    const pending = fetchJson(fetch, url, { signal: end.signal });
    end.abort(new Error("the caller's"));
    await assert.rejects(pending, { message: "the caller's" });
  } finally {
    server.close();
    server.closeAllConnections();
  }
});

test("requests carry no credentials and name what is fetched", async () => {
  const seen: [string, RequestInit][] = [];
  const source = gatewaySource("https://gate.example/base/", (url, init) => {
    seen.push([url, init!]);
    return Promise.resolve(new Response("{}"));
  });
  const signal = AbortSignal.timeout(1000);
  await source.history(3, signal);
  await source.poll("sha256:" + "a".repeat(64), 30_000, signal);
  await source.trust({ task: "a b" }, signal);
  await source.trust({ id: "sha256:" + "b".repeat(64), nonce: new Uint8Array(32) }, signal);
  assert.deepEqual(seen.map(([url]) => url), [
    "https://gate.example/base/.well-known/cohort/history?from=3",
    `https://gate.example/base/.well-known/cohort/history?from=${"a".repeat(64)}&wait=30000ms`,
    "https://gate.example/base/.well-known/cohort/trust?task=a+b",
    `https://gate.example/base/.well-known/cohort/trust?id=sha256%3A${"b".repeat(64)}&nonce=${"0".repeat(64)}`,
  ]);
  for (const [, init] of seen) assert.deepEqual([init.redirect, init.credentials, init.referrerPolicy], ["error", "omit", "no-referrer"]);
  assert.deepEqual(seen.map(([, init]) => init.cache), ["no-store", "no-store", "default", "no-store"]);
});

test("the bytes of a statement survive base64", async () => {
  const authority = await Authority.found(() => noon);
  const { statement } = (await authority.trustResponse(new Uint8Array(0))) as { statement: string };
  const parsed = parseTrustStatement(fromBase64(statement));
  assert.deepEqual([parsed.genesis, parsed.head, parsed.steps, parsed.time, parsed.nonce.length], [authority.genesis, authority.policy.head, 1, noon, 0]);
  assert.equal(base64(fromBase64(statement)), statement);
});

const fuzzed = await Authority.found(() => noon);
const response = await fuzzed.trustResponse(new Uint8Array(0));
fuzz("trust response", [new TextEncoder().encode(JSON.stringify(response))], (bytes) => {
  let changed: unknown;
  try {
    changed = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch {
    throw new Refusal("malformed", "JSON", "other text", "JSON");
  }
  return fetchTrust(options(fuzzed, { sources: [{ ...fuzzed.source(), trust: () => Promise.resolve(changed) }], fresh: true, random: () => new Uint8Array(0) }));
}, { runs: 1500 });
fuzz("trust statement", [fromBase64((response as { statement: string }).statement)], parseTrustStatement, { runs: 50_000 });
