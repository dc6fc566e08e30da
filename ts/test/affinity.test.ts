import assert from "node:assert/strict";
import { test } from "node:test";
import { blind, order } from "../src/affinity.js";
import { fromHex, hex, utf8 } from "../src/bytes.js";
import { type Gateways, Transport } from "../src/channel/transport.js";
import { makeCall, makeResponse, servedBy } from "../src/fetch.js";
import { hash } from "../src/frame.js";
import { standing } from "./exchange.js";
import { FakeCluster } from "./unit.js";
import { vector } from "./vectors.js";

test("vector order: units in the order of each key", async () => {
  const vectors = vector<{ key: string; units: string[]; scores: string[] }[]>("internal/affinity/testdata/vectors/order.json");
  assert.ok(vectors.length >= 4);
  for (const { key, units, scores } of vectors) {
    assert.deepEqual(await order(key, units.toReversed()), units);
    assert.deepEqual(await order(key, units.toSorted()), units);
    for (const [i, unit] of units.entries()) assert.equal(hex(await hash("cohort affinity v1", utf8(key), fromHex(unit))).slice(0, 16), scores[i]);
  }
  assert.deepEqual(await order("a", []), []);
});

test("a key is 16 bytes of base64url, and belongs to a secret and a name", async () => {
  const one = new Uint8Array(32).fill(1), two = new Uint8Array(32).fill(2);
  const key = await blind(one, "user@example.com");
  assert.match(key, /^[A-Za-z0-9_-]{22}$/);
  assert.equal(key, "AHjj9xvpeTh9slgLmFm-CQ");
  assert.equal(await blind(one, "user@example.com"), key);
  assert.notEqual(await blind(two, "user@example.com"), key);
  assert.notEqual(await blind(one, "user@example.net"), key);
});

test("requests with one name are bound to one unit, and to the next when that is away; units receive no field, gateways a key", async () => {
  const cluster = await FakeCluster.make(4);
  const outer: (string | null)[] = [];
  const gateways: Gateways = {
    streams: true,
    fetch: (path, init) => {
      if (path.endsWith("/request")) outer.push(new Headers(init.headers).get("cohort-affinity"));
      return cluster.fetch("https://gateway.example" + path, init);
    },
  };
  cluster.handler = async ({ fields }) => {
    assert.deepEqual(fields.filter(([name]) => name === "cohort-affinity" || name === "other"), [["other", "kept"]]);
    return { status: 200, fields: [], body: new Uint8Array(0) };
  };
  const trust = { current: () => cluster.trust(), renew: async () => cluster.trust(), newestHead: () => undefined, receivedHead: () => {} };
  const client = () => new Transport({ gateways, pin: cluster.pin, trust, clock: standing(cluster) });
  const send = async (transport: Transport, name?: string) => {
    outer.length = 0;
    const headers = { other: "kept", ...(name !== undefined && { "Cohort-Affinity": name }) };
    const call = await makeCall("/", { method: "POST", body: "x", headers }, "https://scoring.clinic.example", () => {});
    return { unit: servedBy(await makeResponse(call, await transport.call(call.request)))!, keys: [...new Set(outer)] };
  };
  const transport = client();
  assert.deepEqual((await send(transport)).keys, [null]);
  assert.deepEqual((await send(transport, "")).keys, [null]);
  const ids = cluster.units.map((u) => u.id);
  const used = new Set<string>();
  const names = Array.from({ length: 40 }, (_, i) => `user ${i}@example.com`);
  const first = new Map<string, string>();
  for (const name of names) {
    const { unit, keys } = await send(transport, name);
    assert.equal(keys.length, 1);
    assert.match(keys[0]!, /^[A-Za-z0-9_-]{22}$/);
    assert.equal(unit, (await order(keys[0]!, ids))[0]);
    assert.deepEqual(await send(transport, name), { unit, keys });
    first.set(name, keys[0]!);
    used.add(unit);
  }
  assert.ok(used.size >= 3, `40 names reach ${used.size} of 4 units`);
  assert.equal(new Set(first.values()).size, names.length);

  // Another channel of the same program has other keys.
  assert.notEqual((await send(client(), names[0])).keys[0], first.get(names[0]!));

  const away = (await order(first.get(names[0]!)!, ids))[0]!;
  cluster.units.splice(ids.indexOf(away), 1);
  await send(transport, names[1]).catch(() => {}); // its response tells which units are left
  assert.equal((await send(transport, names[0])).unit, (await order(first.get(names[0]!)!, ids))[1]);
});
