import assert from "node:assert/strict";
import { createPrivateKey, createPublicKey } from "node:crypto";
import { test } from "node:test";
import { base64url, concat, digestText, fromHex, hex, parseDigest, sha256, utf8 } from "../src/bytes.js";
import { ByteReader, ChunkReader, aesKey, pad } from "../src/channel/chunk.js";
import { finishHandshake, parseOpenResponse, startHandshake } from "../src/channel/handshake.js";
import { makeKemKeys } from "../src/channel/kem.js";
import { verifyReceipt } from "../src/channel/receipt.js";
import { encodeRecord, parseRecord } from "../src/channel/record.js";
import { verifyFields } from "../src/channel/unit.js";
import { frame, hkdfExpand, unframe } from "../src/frame.js";
import { reasonOf } from "../src/refusal.js";
import { parsePublicKey } from "../src/x509.js";
import { Content, parseRequest } from "../src/bhttp.js";
import { keysOf, readResponse, requestOf } from "./exchange.js";
import { fuzz } from "./fuzz.js";
import { FakeCluster, FakeUnit, parseSealed, Ring, signFields, stream, sum } from "./unit.js";
import { vector } from "./vectors.js";

interface File {
  in: Record<string, string>;
  out: Record<string, string>;
}

const directory = "internal/channel/testdata/vectors/";
const noon = Date.UTC(2026, 10, 22, 12);

/** Returns the values of a vector by their names. */
function values(file: string, replaced: Record<string, string> = {}): (name: string) => Uint8Array {
  const v = vector<File>(directory + file + ".json");
  return (name) => fromHex(replaced[name] ?? v.in[name] ?? v.out[name]!);
}

/** The public key of a P-256 scalar. */
function publicKey(scalar: Uint8Array) {
  const pkcs8 = concat(fromHex("3041020100301306072a8648ce3d020106082a8648ce3d030107042730250201010420"), scalar);
  const key = createPrivateKey({ key: Buffer.from(pkcs8), format: "der", type: "pkcs8" });
  return parsePublicKey(new Uint8Array(createPublicKey(key).export({ format: "der", type: "spki" })));
}

for (const [file, options] of [["open", {}], ["open-evidence", { freshEvidence: true }], ["open-head", { least: true }]] as const) {
  test("vector " + file, async () => {
    const v = values(file);
    const keys = await makeKemKeys(v("client_seed"));
    const h = await startHandshake({
      pin: { genesis: digestText(v("genesis")), task: "scoring" },
      freshEvidence: "freshEvidence" in options,
      least: "least" in options ? digestText(v("policy_head")) : undefined,
      keys,
      nonce: sum(utf8("nonce")),
    });
    assert.equal(hex(h.request), hex(v("open_request")));
    assert.equal(hex(h.pin), hex(v("pin")));
    const { r, id, transcript: digest, kemSecret, secret, reportData } = await keysOf(h, v("response"), digestText(v("identity")), digestText(v("authority_root")));
    const derived = { session_id: id, transcript: digest, kem_secret: kemSecret, session_secret: secret, evidence_report_data: reportData };
    for (const [name, got] of Object.entries(derived)) assert.equal(hex(got), hex(v(name)), name);
    assert.equal(hex(r.session), hex(id));
    const key = publicKey(v("unit_key"));
    assert.equal(hex((await sha256(key.spki)).subarray(0, 16)), hex(v("unit_id")));
    await verifyFields(key, r.signature, "cohort session signature v1", digest, await sha256(r.evidence), await sha256(r.ticket), r.time);
    assert.equal(hex(r.ticket), hex(v("sealed_session")));
    assert.equal(hex(r.time), hex(v("unit_time")));
    const sealed = parseSealed("cohort sealed session v1", "cohort sealed session header v1", r.ticket);
    const body = await new Ring(v("follow_ring_key")).open(sealed, v("identity"));
    assert.equal(hex(unframe("cohort sealed session body v1", body, 4)[0]!), hex(secret));
    assert.equal(hex(new Ring(v("follow_ring_key")).id), hex(v("ring_id")));
  });
}

const requestFor = (v: (name: string) => Uint8Array) => requestOf(v("session_secret"), v("header"));
const readFor = (v: (name: string) => Uint8Array, message: Uint8Array) => readResponse(v("session_secret"), v("header"), message);

/** Returns the plaintext of all chunks of a message. */
async function plaintexts(message: Uint8Array, key: Uint8Array): Promise<Uint8Array[]> {
  const reader = new ChunkReader(new ByteReader(stream([message])), await aesKey(key));
  const all: Uint8Array[] = [];
  for (let chunk = await reader.next(); chunk; chunk = await reader.next()) all.push(chunk.plaintext);
  return all;
}

test("vectors request and stream", async () => {
  for (const file of ["request", "stream"]) {
    const v = values(file);
    const up = await hkdfExpand(v("session_secret"), "cohort request key v1", v("header"));
    assert.equal(hex(v("request").subarray(0, 58)), hex(v("header")));
    assert.equal(hex(concat(...(await plaintexts(v("request").subarray(58), up)))), hex(v("request_content")));
    const { request, response, content } = await readFor(v, v("response"));
    assert.ok(response.kind === "response");
    assert.equal(response.time, noon);
    assert.equal(response.head.status, 200);
    assert.deepEqual(response.head.fields, [["content-type", "text/plain"]]);
    assert.equal(new TextDecoder().decode(content), file === "request" ? "it" : "cd");
    if (file === "request") {
      assert.equal(hex(concat(...request.recorded!.response)), hex(v("response_content")));
      assert.equal(hex(response.plaintext.receipt!), hex(v("receipt")));
    } else {
      assert.deepEqual(response.content.trailer, [["sum", "4"]]);
      assert.equal(new TextDecoder().decode(v("ticket_field")), base64url(v("sealed_session")));
    }
  }
});

test("a request is sealed as in the vector", async () => {
  const v = values("request");
  const request = await requestFor(v);
  const head = { method: "POST", scheme: "https", authority: "scoring.clinic.example", path: "/score", fields: [["accept", "text/plain"]] as [string, string][], length: 11 };
  assert.equal(hex(await request.whole(head, utf8("what is it?"))), hex(v("request")));
});

test("a request of unknown length is sealed chunk by chunk", async () => {
  const v = values("stream");
  const request = await requestFor(v);
  const head = { method: "POST", scheme: "https", authority: "scoring.clinic.example", path: "/score", fields: [["accept", "text/plain"]] as [string, string][], length: undefined };
  const all: Uint8Array[] = [];
  for await (const piece of request.stream(head, stream([utf8("a"), utf8("b")]))) all.push(piece);
  const want = v("request");
  const got = concat(...all);
  const trailerAt = want.length - got.length;
  assert.ok(trailerAt > 0); // the vector has a trailer
  assert.equal(hex(got.subarray(0, got.length - 21)), hex(want.subarray(0, got.length - 21)));
});

test("vector close", async () => {
  const v = values("close");
  assert.equal(hex(await hkdfExpand(v("session_secret"), "cohort close key v1")), hex(v("close_key")));
  const request = await requestFor(v);
  assert.equal(hex(await request.whole()), hex(v("request")));
  assert.deepEqual((await readFor(v, v("closed"))).response, { kind: "closed", unit: hex(v("closed").subarray(0, 16)), time: noon });
  const answer = v("not_executed");
  const key = await hkdfExpand(v("session_secret"), "cohort response key v1", v("header"), answer.subarray(0, 16), answer.subarray(16, 32));
  assert.equal(hex(concat(...(await plaintexts(answer.subarray(32), key)))), hex(pad(v("not_executed_content"))));
  const open = values("open");
  const tombstone = parseSealed("cohort tombstone v1", "cohort tombstone header v1", v("tombstone"));
  assert.equal((await new Ring(open("follow_ring_key")).open(tombstone, open("identity"))).length, 0);
});

interface Refused {
  cases: { name: string; file: string; message: string; edits?: { at: number; remove?: number; insert?: string }[]; with?: Record<string, string>; times?: number; reason: string }[];
}

/** A unit that has the secret, identity and ring key of the vectors, which reads messages of clients. */
async function vectorUnit(): Promise<FakeUnit> {
  const open = values("open");
  const cluster = await FakeCluster.make(1);
  Object.defineProperties(cluster, { ring: { value: new Ring(open("follow_ring_key")) }, identity: { value: digestText(open("identity")) } });
  const unit = cluster.units[0]!;
  Object.defineProperty(unit, "id", { value: hex(open("unit_id")) });
  return unit;
}

/** Delivers a message as often as the case says; the last delivery is refused. */
async function deliver(c: Refused["cases"][number]): Promise<void> {
  const v = values(c.file, c.with);
  let message = v(c.message);
  for (const e of [...(c.edits ?? [])].reverse()) {
    message = concat(message.subarray(0, e.at), fromHex(e.insert ?? ""), message.subarray(e.at + (e.remove ?? 0)));
  }
  if (["response", "closed"].includes(c.message)) return void (await readFor(v, message));
  const unit = await vectorUnit();
  if (c.message === "request" || c.message === "tombstone") await unit.join(values("open")("sealed_session"));
  for (let time = 0; time < (c.times ?? 1); time++) {
    if (c.message === "open_request") await unit.open(message, noon);
    else if (c.message === "sealed_session") await unit.join(message);
    else if (c.message === "tombstone") {
      await unit.cluster.ring.open(parseSealed("cohort tombstone v1", "cohort tombstone header v1", message), parseDigest(unit.cluster.identity));
    } else {
      const x = await unit.request(new ByteReader(stream([message])), null, noon);
      if (x.closes) continue;
      const { head, rest } = parseRequest(x.first, true)!;
      const content = new Content(x.plaintext, head.length, rest);
      while (await content.read()) continue;
    }
  }
}

const refused = vector<Refused>(directory + "refused.json").cases;

test("there are as many refused messages as there were", () => assert.ok(refused.length >= 96));

for (const c of refused) {
  test(`refused: ${c.file}, ${c.message}: ${c.name}`, async () => {
    await deliver({ name: c.name, file: c.file, message: c.message, reason: "" });
    await assert.rejects(deliver(c), (e) => {
      assert.equal(reasonOf(e), c.reason, String(e));
      return true;
    });
  });
}

/** A handshake with the first unit of a cluster. */
async function handshake(cluster: FakeCluster, options: { freshEvidence?: boolean } = {}) {
  const h = await startHandshake({ pin: cluster.pin, ...options });
  return { h, response: await cluster.units[0]!.open(h.request, cluster.now) };
}

test("a session is opened, with fresh evidence", async () => {
  const cluster = await FakeCluster.make(1);
  for (const freshEvidence of [false, true]) {
    const { h, response } = await handshake(cluster, { freshEvidence });
    const session = await finishHandshake(h, response, cluster.trust(), cluster.now);
    assert.equal(session.facts.unit.unit, cluster.units[0]!.id);
    assert.equal(session.facts.evidence !== undefined, freshEvidence);
  }
});

test("a changed response to an open request is refused", async () => {
  const cluster = await FakeCluster.make(1);
  const { h, response } = await handshake(cluster, { freshEvidence: true });
  const other = await handshake(cluster);
  const f = unframe("cohort session response v1", response, 12);
  const edited = (at: number, field: Uint8Array) => frame("cohort session response v1", ...f.map((v, i) => (i === at ? field : v)));
  const flipped = (at: number) => edited(at, Uint8Array.from(f[at]!, (b, i) => (i === f[at]!.length - 1 ? b ^ 1 : b)));
  const cases: [string, Uint8Array, string, number?][] = [
    ["bytes after it", concat(response, Uint8Array.of(0)), "malformed"],
    ["too large", concat(response, new Uint8Array(544 << 10)), "too-large"],
    ["a short KEM ciphertext", edited(0, f[0]!.subarray(1)), "malformed"],
    ["a large chain", edited(7, new Uint8Array((16 << 10) + 1)), "too-large"],
    ["an unknown policy head", flipped(5), "behind"],
    ["no policy head", edited(5, new Uint8Array(32)), "malformed"],
    ["another unit", flipped(2), "identity"],
    ["another identity", flipped(3), "identity"],
    ["an expiry that is past", edited(6, new Uint8Array(8)), "expired"],
    ["an expiry far ahead", edited(6, new Uint8Array(8).fill(255)), "expired"],
    ["another session id", flipped(1), "digest"],
    ["another KEM ciphertext", flipped(0), "digest"],
    ["another ring", flipped(4), "digest"],
    ["another signature", flipped(8), "signature"],
    ["other evidence", flipped(9), "signature"],
    ["another ticket", flipped(10), "signature"],
    ["another time", flipped(11), "signature"],
    ["the response to another request", other.response, "digest"],
    ["a client's clock that is ahead", response, "clock", cluster.now + 301_000],
  ];
  for (const [name, message, reason, at] of cases) {
    await assert.rejects(finishHandshake(h, message, cluster.trust(), at ?? cluster.now), (e) => {
      assert.equal(reasonOf(e), reason, `${name}: ${String(e)}`);
      return true;
    });
  }
  await finishHandshake(h, response, cluster.trust(), cluster.now);
  const { appraise: _, ...without } = cluster.trust();
  await assert.rejects(finishHandshake(h, response, without, cluster.now), (e) => reasonOf(e) === "evidence-missing");
  cluster.highS = true;
  const high = await handshake(cluster);
  await assert.rejects(finishHandshake(high.h, high.response, cluster.trust(), cluster.now), (e) => reasonOf(e) === "signature");
});

test("a receipt verifies, and a changed record does not", async () => {
  const cluster = await FakeCluster.make(2);
  const unit = cluster.units[0]!;
  const header = { session: "07".repeat(24), number: 3n, target: "", notAfter: 0, flags: 1 };
  const record = { request: utf8("question"), response: utf8("response"), receipt: unit.receipt(header, utf8("question"), utf8("response"), noon) };
  const trust = cluster.trust();
  const got = await verifyReceipt(parseRecord(encodeRecord(record)), trust, cluster.pin, noon);
  assert.equal(got.later, undefined);
  assert.deepEqual([got.session, got.number, got.unit.unit, got.at], [header.session, 3, unit.id, noon]);
  const f = unframe("cohort receipt v1", record.receipt, 9);
  const edited = (at: number, field: Uint8Array) => frame("cohort receipt v1", ...f.map((v, i) => (i === at ? field : v)));
  const resigned = (at: number, field: Uint8Array) => {
    const message = f.slice(0, 7).map((v, i) => (i === at ? field : v));
    return frame("cohort receipt v1", ...message, f[7]!, signFields(unit.pair.privateKey, "cohort receipt v1", message));
  };
  const cases: [string, typeof record, string, number?][] = [
    ["another request", { ...record, request: utf8("q") }, "digest"],
    ["another response", { ...record, response: utf8("r") }, "digest"],
    ["another number", { ...record, receipt: edited(1, new Uint8Array(8)) }, "signature"],
    ["another unit's id", { ...record, receipt: resigned(4, fromHex(cluster.units[1]!.id)) }, "identity"],
    ["an unknown head", { ...record, receipt: edited(6, sum(utf8("other"))) }, "behind"],
    ["a short session id", { ...record, receipt: edited(0, new Uint8Array(23)) }, "malformed"],
    ["a time too far off", record, "clock", noon + 301_000],
    ["too large", { ...record, receipt: new Uint8Array(18 << 10) }, "too-large"],
    ["bytes after it", { ...record, receipt: concat(record.receipt, Uint8Array.of(0)) }, "malformed"],
  ];
  for (const [name, changed, reason, at] of cases) {
    await assert.rejects(verifyReceipt(changed, trust, cluster.pin, at ?? noon), (e) => {
      assert.equal(reasonOf(e), reason, name + ": " + String(e));
      return true;
    });
  }
});

test("a stream is read ahead up to a bound, and its fault comes after what arrived", async () => {
  let pulled = 0;
  const endless = new ReadableStream<Uint8Array>({ pull: (c) => void c.enqueue(new Uint8Array(64 << 10).fill(++pulled)) }, { highWaterMark: 0 });
  const reader = new ByteReader(endless);
  assert.equal((await reader.exactly(1))[0], 1);
  for (let i = 0; i < 100; i++) await new Promise((resolve) => setImmediate(resolve));
  assert.equal(pulled, 17); // 1 MiB, and the piece in use
  assert.equal((await reader.exactly(40 * (64 << 10))).at(-1), 41);
  await reader.cancel();
  const failing = new ByteReader(stream((async function* () {
    yield Uint8Array.of(1, 2);
    yield Uint8Array.of(3);
    throw new Error("reset");
  })()));
  assert.deepEqual([...(await failing.exactly(3))], [1, 2, 3]);
  for (let i = 0; i < 2; i++) await assert.rejects(failing.exactly(1), (e) => reasonOf(e) === "truncated" && (e as Error).cause instanceof Error);
  assert.equal(await new ByteReader(null).some(1), undefined);
});

const open = values("open");
fuzz("open response", [open("response")], parseOpenResponse);

const request = values("request");
const streamed = values("stream");
fuzz("response", [request("response"), streamed("response")], (input) => readFor(input[16] === request("response")[16] ? request : streamed, input), { runs: 2000 });
