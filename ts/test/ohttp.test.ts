import assert from "node:assert/strict";
import { createPrivateKey, createPublicKey } from "node:crypto";
import { test } from "node:test";
import { Content, encodeResponse, parseRequest, parseResponse } from "../src/bhttp.js";
import { concat, digestText, fromHex, hex, own, parseDigest, u64, utf8 } from "../src/bytes.js";
import { ByteReader, ChunkPlaintext, pad } from "../src/channel/chunk.js";
import { type CallRequest, type Gateways, Unreachable } from "../src/channel/transport.js";
import { encodePin, verifyFields } from "../src/channel/unit.js";
import { makeCall, makeResponse } from "../src/fetch.js";
import { frame, hkdf, unframe } from "../src/frame.js";
import { AEAD_AES_128_GCM, AEAD_AES_256_GCM, CipherSuite, KDF_HKDF_SHA256, type KeyPair } from "hpke";
import { chunks, type Crypt, type Form, hpkeInfo, MessageReader, parseKeys, responseCrypt, sealChunks, sealFinal, sealWhole, suiteOf, whole } from "../src/ohttp.js";
import { OneOffTransport, verifySignedKeys } from "../src/oneoff.js";
import { reasonOf } from "../src/refusal.js";
import { parsePublicKey } from "../src/x509.js";
import { fuzz } from "./fuzz.js";
import { FakeCluster, Ring, signFields, stream, sum } from "./unit.js";
import { vector } from "./vectors.js";

const directory = "internal/channel/testdata/vectors/";

function values(file: string): (name: string) => Uint8Array {
  const v = vector<{ in: Record<string, string>; out: Record<string, string> }>(directory + file + ".json");
  return (name) => fromHex(v.in[name] ?? v.out[name]!);
}

/** Returns the suite of a header in the library, so that the key schedule of this package is tried against another one. */
function libraryOf(header: Uint8Array): { suite: CipherSuite; keySize: 16 | 32 } {
  const { suite: { kem, aead }, keySize } = suiteOf(header);
  return { suite: new CipherSuite(() => kem, KDF_HKDF_SHA256, aead === 1 ? AEAD_AES_128_GCM : AEAD_AES_256_GCM), keySize };
}

/** Opens an encapsulated request as a unit does, and returns what its response needs. */
async function openRequest(form: Form, privateKey: Uint8Array | { seed: Uint8Array }, message: Uint8Array) {
  const header = message.subarray(0, 7);
  const { suite, keySize } = libraryOf(header);
  const key = privateKey instanceof Uint8Array ? await suite.DeserializePrivateKey(privateKey, true) : (await suite.DeriveKeyPair(privateKey.seed)).privateKey;
  const size = header[1] === 0x64 ? 1120 : 32;
  const enc = message.slice(7, 7 + size);
  const pair = privateKey instanceof Uint8Array ? key : await suite.DeriveKeyPair(privateKey.seed);
  const context = await suite.SetupRecipient(pair, enc, { info: hpkeInfo(form, header) });
  const reader = new MessageReader(form, new ByteReader(stream([message.subarray(7 + size)])), (data, bytes) => context.Open(bytes, data));
  return { reader, of: { export: (label: Uint8Array, length: number) => context.Export(label, length), enc, keySize } };
}

async function all(reader: MessageReader): Promise<Uint8Array> {
  const parts: Uint8Array[] = [];
  for (let chunk = await reader.next(); chunk; chunk = await reader.next()) parts.push(chunk.plaintext);
  return concat(...parts);
}

for (const [file, form] of [["ohttp-rfc9458", whole], ["ohttp-chunked-draft", chunks]] as const) {
  test("vector " + file, async () => {
    const v = values(file);
    const key = await parseKeys(concat(new Uint8Array([0, v("key_configuration").length]), v("key_configuration")));
    assert.equal(hex(key.header).slice(0, 6), hex(v("key_configuration").subarray(0, 3)));
    const { reader, of } = await openRequest(form, v("private_key"), v("encapsulated_request"));
    assert.equal(hex(await all(reader)), hex(v("request")));
    const response = v("encapsulated_response");
    const nonce = v("response_nonce");
    assert.equal(hex(response.subarray(0, nonce.length)), hex(nonce));
    const open = await responseCrypt(form, of, nonce);
    assert.equal(hex(await all(new MessageReader(form, new ByteReader(stream([response.subarray(nonce.length)])), open))), hex(v("response")));
    if (!form.chunked) {
      const seal = await responseCrypt(form, of, nonce, "seal");
      assert.equal(hex(concat(nonce, await sealWhole(form, seal, v("response")))), hex(response));
    }
  });
}

test("vector ohttp", async () => {
  const v = values("ohttp");
  const ring = new Ring(v("follow_ring_key"));
  const seed = await hkdf(v("follow_ring_key"), 32, "cohort ohttp key v1", fromHex("647a"), ring.id);
  assert.equal(hex(seed), hex(v("seed")));
  const key = await parseKeys(v("key_configuration"));
  assert.equal(hex(key.header), hex(Uint8Array.of(ring.id[0]! & 0xfe, 0x64, 0x7a, 0, 1, 0, 2)));
  assert.equal(hex(await key.suite.kem.SerializePublicKey((await key.suite.kem.DeriveKeyPair(seed, false) as KeyPair).publicKey)), hex(await key.suite.kem.SerializePublicKey(key.key)));
  const { reader, of } = await openRequest(chunks, { seed }, v("request"));
  assert.equal(hex(await all(reader)), hex(v("request_content")));
  const response = v("response");
  const open = await responseCrypt(chunks, of, response.subarray(0, 32));
  assert.equal(hex(await all(new MessageReader(chunks, new ByteReader(stream([response.subarray(32)])), open))), hex(v("response_content")));
  assert.equal(hex(encodePin({ genesis: digestText(v("genesis")), task: "scoring" })), hex(v("pin")));
  // The signed configuration: its chain is a placeholder, so the signature is checked with the key alone.
  const pkcs8 = concat(fromHex("3041020100301306072a8648ce3d020106082a8648ce3d030107042730250201010420"), v("unit_key"));
  const spki = createPublicKey(createPrivateKey({ key: Buffer.from(pkcs8), format: "der", type: "pkcs8" })).export({ format: "der", type: "spki" });
  const f = unframe("cohort ohttp keys v1", v("signed"), 8);
  const signer = parsePublicKey(new Uint8Array(spki));
  await verifyFields(signer, f[7]!, "cohort ohttp keys v1", ...f.slice(0, 6), v("authority_root"), sum(f[6]!));
});

/** A cluster that also serves one-off requests. */
async function oneOffCluster() {
  const cluster = await FakeCluster.make(2);
  const unit = cluster.units[0]!;
  const seed = { value: sum(utf8("seed")), id: 2 };
  const { suite } = libraryOf(fromHex("02647a00010002"));
  const configuration = async () => {
    const pair = await suite.DeriveKeyPair(seed.value);
    const publicKey = await suite.SerializePublicKey(pair.publicKey);
    const one = concat(Uint8Array.of(seed.id, 0x64, 0x7a), publicKey, fromHex("000400010002"));
    return concat(Uint8Array.of(one.length >> 8, one.length & 255), one);
  };
  const state = { fetched: 0, sent: 0, refuse: undefined as Response | undefined, types: [] as (string | null)[], affinity: [] as (string | null)[], form: undefined as Form | undefined, cut: 0 };
  const sign = async (changes: { pin?: Uint8Array; expiry?: number; head?: string; plain?: Uint8Array } = {}) => {
    const plain = changes.plain ?? (await configuration());
    const expiry = u64(changes.expiry ?? Math.floor(cluster.now / 1000) + 3600);
    const fields = [changes.pin ?? encodePin(cluster.pin), parseDigest(cluster.identity), cluster.ring.id, parseDigest(changes.head ?? cluster.head), expiry, plain];
    const signature = signFields(unit.pair.privateKey, "cohort ohttp keys v1", [...fields, parseDigest(cluster.root), sum(unit.chain)]);
    return frame("cohort ohttp keys v1", ...fields, unit.chain, signature);
  };
  const gateways: Gateways = {
    streams: true,
    async fetch(_, init) {
      if (init.method === "GET") {
        state.fetched++;
        return new Response(own(await sign()), { headers: { "content-type": "application/cohort-ohttp-keys" } });
      }
      state.sent++;
      const type = new Headers(init.headers).get("content-type");
      state.types.push(type);
      state.affinity.push(new Headers(init.headers).get("cohort-affinity"));
      const form = [whole, chunks].find((f) => f.requestType === type)!;
      if (state.refuse) return state.refuse;
      const message = new Uint8Array(await new Response(init.body as BodyInit).arrayBuffer());
      if (message[0] !== seed.id) {
        const body = JSON.stringify({ type: "https://iana.org/assignments/http-problem-types#ohttp-key", title: "" });
        return new Response(body, { status: 400, headers: { "content-type": "application/problem+json" } });
      }
      const { reader, of } = await openRequest(form, { seed: seed.value }, message);
      const { head, rest, final } = await reader.head(parseRequest);
      assert.ok(!head.fields.some(([name]) => name === "cohort-affinity"));
      const content = new Content(new ChunkPlaintext(final ? { next: async () => undefined } : reader), head.length, rest);
      let size = 0;
      for (let piece = await content.read(); piece; piece = await content.read()) size += piece.length;
      const answer = state.form ?? form;
      const nonce = new Uint8Array(32).fill(7);
      const seal: Crypt = await responseCrypt(answer, of, nonce, "seal");
      const body = utf8(`${head.method} ${head.authority}${head.path} ${size} ` + "y".repeat(size));
      const plain = concat(encodeResponse({ status: 200, fields: [["content-type", "text/plain"]], length: body.length }), body);
      const sealed = answer.chunked ? concat(await sealChunks(seal, plain.subarray(0, 20)), await sealFinal(seal, plain.subarray(20))) : await sealWhole(answer, seal, pad(plain));
      const out = concat(nonce, sealed);
      return new Response(out.subarray(0, out.length - state.cut), { headers: { "content-type": answer.responseType } });
    },
  };
  const trust = { current: () => cluster.trust(), renew: async () => cluster.trust(), newestHead: () => undefined, receivedHead: () => {} };
  const clock = { now: () => cluster.now, sleep: async () => {} };
  const transport = (form?: "whole") => new OneOffTransport({ gateways, pin: cluster.pin, trust, clock, whole: form === "whole" });
  const send = async (of: OneOffTransport, path: string, init?: RequestInit) => {
    const call = await makeCall(path, init, "https://scoring.clinic.example", () => {});
    return makeResponse(call, await of.call(call.request satisfies CallRequest));
  };
  return { cluster, state, seed, sign, transport, send };
}

test("one-off requests in both forms, and both forms of responses", async () => {
  const { state, transport, send } = await oneOffCluster();
  for (const form of ["whole", undefined] as const) {
    for (const answer of [whole, chunks]) {
      state.form = answer;
      const of = transport(form);
      assert.equal((await (await send(of, "/a?b")).text()).trim(), "GET scoring.clinic.example/a?b 0");
      const headers = { "idempotency-key": "1" };
      for (const size of [10, 20_000, 100_000]) {
        for (const body of [new Uint8Array(size), stream([new Uint8Array(size)])]) {
          const text = await (await send(of, "/", { method: "POST", body, headers })).text();
          assert.equal(text.length, `POST scoring.clinic.example/ ${size} `.length + size);
        }
      }
    }
  }
  assert.ok(state.types.includes("message/ohttp-req") && state.types.includes("message/ohttp-chunked-req"));
  assert.equal(state.fetched, 4);
});

test("gateways receive an affinity key with a one-off request that names something", async () => {
  const { state, transport, send } = await oneOffCluster();
  const of = transport();
  const named = { headers: { "cohort-affinity": "user@example.com" } };
  for (const init of [named, named, { headers: { "cohort-affinity": "another" } }, {}]) await (await send(of, "/", init)).text();
  await (await send(transport(), "/", named)).text();
  const [one, same, other, none, elsewhere] = state.affinity;
  for (const key of [one, other, elsewhere]) assert.match(key!, /^[A-Za-z0-9_-]{22}$/);
  assert.deepEqual([same, none], [one, null]);
  assert.equal(new Set([one, other, elsewhere]).size, 3);
});

test("what one-off requests refuse without sending it", async () => {
  const { state, transport, send } = await oneOffCluster();
  const of = transport("whole");
  await assert.rejects(send(of, "/", { method: "POST", body: "x" }), (e) => reasonOf(e) === "not-allowed");
  await assert.rejects(send(of, "/", { method: "POST", body: new Uint8Array(300_000), headers: { "idempotency-key": "1" } }), (e) => reasonOf(e) === "too-large");
  assert.equal(state.sent, 0);
});

test("other keys are fetched where units do not know these, once for a request", async () => {
  const { state, seed, transport, send } = await oneOffCluster();
  const of = transport();
  await send(of, "/");
  seed.value = sum(utf8("other"));
  seed.id = 4;
  assert.equal((await send(of, "/")).status, 200);
  assert.deepEqual([state.fetched, state.sent], [2, 3]);
  seed.id = 6;
  const once = stream([new Uint8Array(20_000)]);
  await assert.rejects(send(of, "/", { method: "PUT", body: once, headers: { "idempotency-key": "1" } }), (e) => reasonOf(e) === "ohttp-key");
});

test("responses of the gateway itself, and responses that are cut", async () => {
  const { state, transport, send } = await oneOffCluster();
  const of = transport();
  for (const [status, reason] of [[429, "rate"], [503, "unavailable"], [200, "unavailable"]] as const) {
    state.refuse = new Response("x", { status });
    await assert.rejects(send(of, "/"), (e) => reasonOf(e) === reason);
  }
  state.refuse = undefined;
  for (const cut of [1, 60, 200]) {
    state.cut = cut;
    await assert.rejects(async () => (await send(of, "/")).text(), (e) => ["truncated", "signature"].includes(reasonOf(e)!));
  }
});

test("signed keys are verified in the order of the specification", async () => {
  const { cluster, sign } = await oneOffCluster();
  const trust = cluster.trust();
  const good = await sign();
  const verified = await verifySignedKeys(good, cluster.pin, trust, cluster.now);
  assert.equal(verified.unit.unit, cluster.units[0]!.id);
  const f = unframe("cohort ohttp keys v1", good, 8);
  const edited = (at: number, field: Uint8Array) => frame("cohort ohttp keys v1", ...f.map((v, i) => (i === at ? field : v)));
  const now = Math.floor(cluster.now / 1000);
  const cases: [string, Uint8Array, string][] = [
    ["bytes after it", concat(good, Uint8Array.of(0)), "malformed"],
    ["too large", new Uint8Array(33 << 10), "too-large"],
    ["a short ring id", edited(2, new Uint8Array(15)), "malformed"],
    ["a large chain", edited(6, new Uint8Array((16 << 10) + 1)), "too-large"],
    ["another pin", await sign({ pin: encodePin({ genesis: cluster.genesis, task: "other" }) }), "identity"],
    ["an unknown head", await sign({ head: digestText(sum(utf8("unknown"))) }), "behind"],
    ["another identity", edited(1, sum(utf8("other"))), "identity"],
    ["an expiry that is past", await sign({ expiry: now }), "expired"],
    ["an expiry far ahead", await sign({ expiry: now + 3902 }), "expired"],
    ["another signature", edited(7, new Uint8Array(70)), "signature"],
    ["another configuration", edited(5, new Uint8Array(10)), "signature"],
    ["no configuration", await sign({ plain: new Uint8Array(0) }), "malformed"],
    ["an unknown KEM alone", await sign({ plain: fromHex("0007" + "02ffff00040001".slice(0, 14)) }), "malformed"],
    ["a cut configuration", await sign({ plain: fromHex("00ff02") }), "malformed"],
  ];
  for (const [name, message, reason] of cases) {
    await assert.rejects(verifySignedKeys(message, cluster.pin, trust, cluster.now), (e) => {
      assert.equal(reasonOf(e), reason, `${name}: ${String(e)}`);
      return true;
    });
  }
});

test("a gateway that is away is unreachable", async () => {
  const cluster = await FakeCluster.make(1);
  const gateways: Gateways = { streams: true, fetch: () => Promise.reject(new TypeError("fetch failed")) };
  const trust = { current: () => cluster.trust(), renew: async () => cluster.trust(), newestHead: () => undefined, receivedHead: () => {} };
  const of = new OneOffTransport({ gateways, pin: cluster.pin, trust, clock: { now: () => cluster.now, sleep: async () => {} } });
  await assert.rejects(of.currentKeys(undefined), Unreachable);
  assert.throws(() => new OneOffTransport({ gateways, pin: { genesis: cluster.genesis, group: "g" }, trust, clock: { now: () => 0, sleep: async () => {} } }), (e) => reasonOf(e) === "group");
});

const v = values("ohttp");
fuzz("key configurations", [v("key_configuration"), values("ohttp-rfc9458")("key_configuration")], parseKeys, { runs: 2_000 });

fuzz(
  "one-off responses",
  [concat(await sealWhole(chunks, async (_, b) => b, new Uint8Array(40)), new Uint8Array(16)), fromHex("1000000000000000000000000000000000" + "00" + "0140c8" + "00".repeat(20))],
  async (input) => {
    // Seals that change nothing let the parser behind them see the input.
    const reader = new MessageReader(chunks, new ByteReader(stream([input])), async (_, b) => b.subarray(0, Math.max(0, b.length - 16)));
    const { head, rest, final } = await reader.head(parseResponse);
    const content = new Content(new ChunkPlaintext(final ? { next: async () => undefined } : reader), head.length, rest);
    while (await content.read()) continue;
  },
  { runs: 10_000 },
);

