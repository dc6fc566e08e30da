/**
 * What a program sees when the world changes under it: the rows of "What a program sees" in
 * docs/how-to/javascript.md, in the order of that table. Authority, gateway and units are in memory,
 * with real signatures and certificates, and a clock that the test sets.
 */

import assert from "node:assert/strict";
import { after, test } from "node:test";
import { fromBase64, fromHex, hex, parseDigest, utf8 } from "../src/bytes.js";
import { frame } from "../src/frame.js";
import { open, type OpenOptions, OutcomeUnknown, reasonOf, Refusal, servedBy, type Session, storageIn, Unreachable } from "../src/index.js";
import { parseCertificate } from "../src/x509.js";
import { Authority } from "./authority.js";
import { standing } from "./exchange.js";
import { editFields, forgeCertificate } from "./forge.js";
import { FakeCluster, FakeUnit, problem, Ring, sum } from "./unit.js";
import { certificateOf, keys } from "./world.js";

const hour = 3_600_000;
const gateway = "https://gateway.example";
const sessions: Session[] = [];
after(() => Promise.all(sessions.map((session) => session.close())));

/** A trust domain with two units behind a gateway. */
class World {
  /** What is away. */
  readonly away = { network: false, authority: false };
  /** Chains of units that get no further certificates. */
  readonly stopped = new Map<FakeUnit, Uint8Array>();
  /** Paths of requests that arrived at the gateway. */
  readonly paths: string[] = [];
  readonly clock;

  private constructor(
    readonly authority: Authority,
    readonly cluster: FakeCluster,
  ) {
    this.clock = standing(cluster);
  }

  /** Founds a trust domain, after edits of its policy. */
  static async found(...edits: [string, string][]): Promise<World> {
    let world: World | undefined;
    let begin = 0;
    const authority = await Authority.found(() => world?.cluster.now ?? begin, ...edits);
    const cluster = new FakeCluster(2, authority.history);
    begin = cluster.now;
    const { identities } = (await authority.trustResponse(new Uint8Array(0))) as { identities: { identity: string; cross: string }[] };
    const cross = fromBase64(identities.find((i) => i.identity === cluster.identity)!.cross);
    const id = parseDigest(cluster.identity);
    const signer = await keys.identity(hex(id));
    world = new World(authority, cluster);
    const { stopped } = world;
    cluster.chains = (unit) => {
      const known = stopped.get(unit);
      if (known) return known;
      const extensions = editFields(([kind, , task, mode, , mark, , ...rest]) => [kind!, id, task!, mode!, parseDigest(cluster.head), mark!, fromHex(unit.id), ...rest]);
      const times = { notBefore: cluster.now - 60_000, notAfter: cluster.now + hour };
      const leaf = forgeCertificate(certificateOf("unit of scoring"), signer, { spki: unit.spki, extensions, ...times });
      return frame("cohort chain v1", leaf.raw, parseCertificate(cross).raw);
    };
    return world;
  }

  /** The gateway, which keeps no copies of trust. */
  fetch = async (input: RequestInfo | URL, init: RequestInit = {}): Promise<Response> => {
    init.signal?.throwIfAborted();
    if (this.away.network) throw new TypeError("fetch failed");
    const url = new URL(input as string);
    const path = url.pathname.slice("/.well-known/cohort/".length);
    this.paths.push(path);
    if (path !== "history" && path !== "trust") return this.cluster.fetch(url, init);
    if (this.away.authority) return problem(503, "unavailable");
    const query = url.searchParams;
    const body =
      path === "trust"
        ? this.authority.trustResponse(fromHex(query.get("nonce") ?? ""))
        : this.authority.historyResponse(query.get("from")!, parseInt(query.get("wait") ?? "0"), init.signal ?? undefined);
    return body.then(
      (value) => Response.json(value),
      (e: unknown) => new Response(JSON.stringify(e), { status: 409, headers: { "content-type": "application/problem+json" } }),
    );
  };

  async open(more: Partial<OpenOptions> = {}): Promise<Session> {
    const session = await open({ gateway, genesis: this.authority.genesis, task: "scoring", clock: this.clock, fetch: (input, init) => this.fetch(input, init), ...more });
    sessions.push(session);
    return session;
  }

  /** Cuts units off. They keep their certificates. */
  async cut(...units: FakeUnit[]): Promise<void> {
    for (const unit of units) this.stopped.set(unit, unit.chain);
    const ids = units.map((unit) => JSON.stringify(unit.id));
    await this.authority.step(["[task.scoring]\n", `[task.scoring]\ncut_units = [${ids.join(", ")}]\n`]);
    this.cluster.head = this.authority.policy.head;
  }
}

/** A request, and its response as the program sees it. */
async function get(session: Session): Promise<string> {
  const response = await session.fetch("/a");
  assert.equal(await response.text(), "GET /a");
  return servedBy(response)!;
}

/** Asserts the class and the reason of a failure. */
async function fails(promise: Promise<unknown>, type: abstract new (...args: never[]) => Refusal, reason: string): Promise<Refusal> {
  let seen: unknown;
  await assert.rejects(promise, (e) => ((seen = e), true));
  assert.equal(reasonOf(seen), reason, String(seen));
  assert.ok(seen instanceof type, `${String(seen)} is no ${type.name}`);
  return seen;
}

test("no request for an hour: the next one succeeds in another session", async () => {
  const world = await World.found();
  const session = await world.open();
  const [first, expires] = [session.info.unit, session.info.expires.getTime()];
  await get(session);
  assert.equal(world.cluster.opened, 1);
  world.cluster.now += hour + 60_000;
  assert.ok(world.cluster.now > expires && first.length === 32);
  await get(session);
  assert.equal(world.cluster.opened, 2);
  assert.ok(session.info.expires.getTime() > world.cluster.now);
  assert.equal((await session.fetch("/a", { method: "POST", body: "x" })).status, 200);
});

test("the machine sleeps for an hour, and a unit is cut off meanwhile: nothing of it is accepted", async () => {
  const world = await World.found();
  const { units } = world.cluster;
  const session = await world.open();
  await get(session);
  const cut = units.find((u) => u.id === session.info.unit)!;
  const other = units.find((u) => u !== cut)!;
  world.away.network = true; // nothing arrives while the machine sleeps
  await world.cut(cut);
  world.cluster.now += hour + 60_000;
  world.away.network = false;
  let offered = 0;
  world.cluster.tamper = async (path, { body, headers }) => {
    if (!path.endsWith("/session") || headers.has("cohort-unit") || offered === 2) return undefined;
    offered++;
    return new Response(new Uint8Array(await cut.open(await body(), world.cluster.now))); // the gateway prefers it
  };
  for (let i = 0; i < 10; i++) assert.equal(await get(session), other.id);
  assert.ok(offered > 0);
  assert.equal(session.info.unit, other.id);
  assert.equal(session.trust.policy.sequence, 2);
});

test("all units are cut off: cut-off, also in the session that is open", async () => {
  const world = await World.found();
  const { units } = world.cluster;
  const session = await world.open();
  await get(session);
  world.away.network = true;
  await world.cut(...units);
  world.cluster.now += hour / 4;
  world.away.network = false;
  await session.trust.refresh(); // as the follower does within seconds
  await fails(session.fetch("/a"), Refusal, "cut-off");
  await fails(session.fetch("/a", { method: "POST", body: "x" }), Refusal, "cut-off");
});

test("the network is away and returns: unavailable, then the same session", async () => {
  const world = await World.found();
  const session = await world.open();
  await get(session);
  world.away.network = true;
  await fails(session.fetch("/a"), Unreachable, "unavailable");
  await fails(session.fetch("/a", { method: "POST", body: "x", headers: { "idempotency-key": "1" } }), Unreachable, "unavailable");
  // The platform does not report how much of it was sent.
  await fails(session.fetch("/a", { method: "POST", body: "x" }), OutcomeUnknown, "outcome-unknown");
  world.away.network = false;
  await get(session);
  assert.equal(world.cluster.opened, 1);
  // Away beyond the end of the session.
  world.away.network = true;
  world.cluster.now += 2 * hour;
  await fails(session.fetch("/a"), Unreachable, "unavailable");
  await fails(session.fetch("/a", { method: "POST", body: "x" }), Unreachable, "unavailable"); // without a session nothing was sent
  world.away.network = false;
  await get(session);
  assert.equal(world.cluster.opened, 2);
});

test("ring keys roll: nothing, in another session", async () => {
  const world = await World.found();
  const session = await world.open();
  await get(session);
  world.cluster.ring = new Ring(sum(utf8("next ring")));
  for (const unit of world.cluster.units) unit.sessions.clear();
  for (let i = 0; i < 4; i++) await get(session);
  assert.equal(world.cluster.opened, 2);
  assert.equal((await session.fetch("/a", { method: "POST", body: "x" })).status, 200);
  // A request that may not be repeated and is the first to meet it: gateways can pretend such a response.
  world.cluster.ring = new Ring(sum(utf8("last ring")));
  for (const unit of world.cluster.units) unit.sessions.clear();
  await fails(session.fetch("/a", { method: "POST", body: "x" }), OutcomeUnknown, "outcome-unknown");
  assert.equal((await session.fetch("/a", { method: "POST", body: "x" })).status, 200);
});

test("another cluster takes the place of the pinned one: nothing is sent to it, and the next start is refused as genesis", async () => {
  const world = await World.found();
  const session = await world.open();
  await get(session);
  const other = await World.found(["quorum = 1", "quorum = 1 # another"]);
  assert.notEqual(other.authority.genesis, world.authority.genesis);
  other.cluster.now = world.cluster.now;
  let served = 0;
  other.cluster.handler = async () => (served++, { status: 200, body: "" });
  const { fetch } = world;
  world.fetch = other.fetch;
  await fails(session.fetch("/a"), Refusal, "behind"); // its units have other sessions, and other policy
  await fails(session.fetch("/a", { method: "POST", body: "x" }), Refusal, "behind");
  await fails(world.open(), Refusal, "genesis");
  assert.equal(served, 0);
  // It returns, and all is as before.
  world.fetch = fetch;
  await get(session);
});

test("the authority is away: nothing; a start needs trust that was checked before", async () => {
  const world = await World.found();
  const session = await world.open();
  world.away.authority = true;
  for (let i = 0; i < 5; i++) {
    await get(session);
    world.cluster.now += hour / 2;
  }
  assert.equal(world.cluster.opened, 3);
  const { trust } = session;
  assert.ok(world.cluster.now - trust.fetchedAt > 2 * hour);
  await get(await world.open({ trust })); // checked once, used within its validity
  const paths = world.paths.length;
  await fails(world.open(), Refusal, "unavailable");
  assert.ok(world.paths.slice(paths).every((path) => path === "history" || path === "trust"), "nothing is sent to units");
});

test("killed and started again with storage: an older policy is refused as behind", async () => {
  const world = await World.found();
  const kept = new Map<string, string>();
  const storage = storageIn({ getItem: (key) => kept.get(key) ?? null, setItem: (key, value) => void kept.set(key, value) }, "cohort");
  await world.open({ storage });
  const older = world.authority;
  await world.authority.step(['"1h"', '"50m"']);
  const session = await world.open({ storage });
  assert.equal(session.trust.policy.sequence, 2);
  await get(session);
  // A gateway with a backup of the authority from before the step.
  const restored = await World.found();
  assert.equal(restored.authority.genesis, older.genesis);
  await fails(restored.open({ storage }), Refusal, "behind");
  await fails(restored.open({ minSequence: 2 }), Refusal, "behind");
  assert.equal((await restored.open()).trust.policy.sequence, 1); // without storage nothing remembers the step
  kept.set("cohort", kept.get("cohort")!.slice(0, -8));
  await fails(world.open({ storage }), Refusal, "malformed");
});
