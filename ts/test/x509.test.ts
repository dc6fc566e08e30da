import assert from "node:assert/strict";
import { constants, createHash, generateKeyPairSync, type KeyObject, sign } from "node:crypto";
import { test } from "node:test";
import { base64, concat, fromHex, hex, utf8 } from "../src/bytes.js";
import { isSignedBy, parseCertificate, parsePublicKey, type PublicKey, verifySignature, verifySignedBy } from "../src/x509.js";
import { parsePem, parseRevocationList } from "../src/evidence/crl.js";
import { der, derId, forgeCertificate, namedKey } from "./forge.js";
import { fuzz } from "./fuzz.js";
import { vector } from "./vectors.js";

const { certificates } = vector<{ certificates: Record<string, string> }>("identity/testdata/vectors/identity.json");
const certificate = (name: string) => parseCertificate(fromHex(certificates[name]!));
const root = certificate("authority root");

test("certificates of an authority", async () => {
  for (const name of Object.keys(certificates)) certificate(name);
  assert.deepEqual([root.isCA, root.pathLength, root.keyUsage, root.unknownCritical, root.key.kind], [true, 1, 1 << 5, [], "P-256"]);
  assert.deepEqual([root.subjectName, root.issuerName], ["authority root 2db50f13", "authority root 2db50f13"]);
  const leaf = certificate("authority");
  assert.deepEqual([leaf.uris, leaf.dnsNames, leaf.isCA, leaf.pathLength], [["spiffe://clinic.example/authority"], ["authority.clinic.example"], false, undefined]);
  assert.deepEqual([leaf.notBefore.toISOString(), leaf.serial], ["2026-11-22T11:59:00.000Z", "7c3357d774dd17a0ccc09685fede9ac1dcbe6b"]);
  await verifySignedBy(root, root);
  await verifySignedBy(leaf, root);
  await verifySignedBy(certificate("cross"), root);
  await verifySignedBy(certificate("unit of scoring"), certificate("cross"));
  await assert.rejects(verifySignedBy(certificate("unit of keys"), certificate("cross")), { reason: "chain" });
  await assert.rejects(verifySignedBy(forgeCertificate(leaf, namedKey("stranger")), root), { reason: "signature" });
  const changed = leaf.tbs.slice();
  changed[20]! ^= 1;
  assert.equal(await isSignedBy({ ...leaf, tbs: changed }, root.key), false);
});

/** Algorithm identifiers. */
const none = der(0x05);
const pkcs1 = der(0x30, derId("1.2.840.113549.1.1.12"), none);
const sha384Id = der(0x30, derId("2.16.840.1.101.3.4.2.2"), none);
const pss = (salt: number, ...rest: Uint8Array[]) =>
  der(0x30, derId("1.2.840.113549.1.1.10"), der(0x30, der(0xa0, sha384Id), der(0xa1, der(0x30, derId("1.2.840.113549.1.1.8"), sha384Id)), der(0xa2, der(0x02, Uint8Array.of(salt))), ...rest));
const trailer = der(0xa3, der(0x02, Uint8Array.of(1)));

/** Signs the root's content, with another algorithm, by a key. */
function signAs(algorithm: Uint8Array, make: (tbs: Uint8Array) => Uint8Array, edit: (parts: Uint8Array[]) => Uint8Array[] = (parts) => parts): Uint8Array {
  const name = der(0x30);
  const time = (text: string) => der(0x17, utf8(text));
  const parts = edit([
    der(0xa0, der(0x02, Uint8Array.of(2))), der(0x02, Uint8Array.of(1)), algorithm, name, der(0x30, time("260101000000Z"), time("491231235959Z")), name, root.key.spki,
  ]);
  const tbs = der(0x30, ...parts);
  return der(0x30, tbs, algorithm, der(0x03, Uint8Array.of(0), make(tbs)));
}

const spkiOf = (key: KeyObject): PublicKey => parsePublicKey(new Uint8Array(key.export({ type: "spki", format: "der" })));

test("signatures by RSA, RSA-PSS and P-384", async () => {
  const rsa = generateKeyPairSync("rsa", { modulusLength: 2048 });
  const p384 = generateKeyPairSync("ec", { namedCurve: "P-384" });
  const key = spkiOf(rsa.publicKey);
  assert.equal(key.kind, "RSA");
  const byPss = (tbs: Uint8Array) => new Uint8Array(sign("sha384", tbs, { key: rsa.privateKey, padding: constants.RSA_PKCS1_PSS_PADDING, saltLength: 48 }));
  const byRsa = (tbs: Uint8Array) => new Uint8Array(sign("sha384", tbs, rsa.privateKey));
  const byP384 = (tbs: Uint8Array) => new Uint8Array(sign("sha384", tbs, p384.privateKey));
  const ecdsa384 = der(0x30, derId("1.2.840.10045.4.3.3"));
  const rows: [string, Uint8Array, (tbs: Uint8Array) => Uint8Array, PublicKey, string, boolean][] = [
    ["PSS", pss(48), byPss, key, "RSA-PSS-SHA384", true],
    ["PSS with the trailer", pss(48, trailer), byPss, key, "RSA-PSS-SHA384", true],
    ["PSS with another salt", pss(32), byPss, key, "other", false],
    ["PKCS #1", pkcs1, byRsa, key, "RSA-SHA384", true],
    ["PSS for PKCS #1", pkcs1, byPss, key, "RSA-SHA384", false],
    ["PKCS #1 for PSS", pss(48), byRsa, key, "RSA-PSS-SHA384", false],
    ["P-384", ecdsa384, byP384, spkiOf(p384.publicKey), "ECDSA-SHA384", true],
    ["P-384 under an RSA key", ecdsa384, byP384, key, "ECDSA-SHA384", false],
    ["P-384 under P-256", ecdsa384, byP384, root.key, "ECDSA-SHA384", false],
    ["RSA under a P-384 key", pkcs1, byRsa, spkiOf(p384.publicKey), "RSA-SHA384", false],
  ];
  for (const [name, algorithm, make, by, want, ok] of rows) {
    const parsed = parseCertificate(signAs(algorithm, make));
    assert.equal(parsed.algorithm, want, name);
    assert.equal(await isSignedBy(parsed, by), ok, name);
  }
  const weak = spkiOf(generateKeyPairSync("rsa", { modulusLength: 1024 }).publicKey);
  assert.equal(await verifySignature(weak, "RSA-SHA256", utf8("a"), new Uint8Array(128)), false);
});

test("ECDSA signatures have one encoding", async () => {
  const key = namedKey("signer");
  const [message, by] = [utf8("message"), parsePublicKey(key.spki)];
  const good = new Uint8Array(sign("sha256", message, key.key));
  assert.equal(await verifySignature(by, "ECDSA-SHA256", message, good), true);
  assert.equal(await verifySignature(by, "ECDSA-SHA384", message, good), false);
  assert.equal(await verifySignature(by, "other", message, good), false);
  const r = good.subarray(2, 4 + good[3]!);
  const s = good.subarray(4 + good[3]!);
  const zero = der(0x02, Uint8Array.of(0));
  const longer = (n: Uint8Array) => der(0x02, Uint8Array.of(0, 0), n.subarray(2));
  const huge = der(0x02, new Uint8Array(33).fill(1));
  for (const bad of [der(0x30, r), der(0x30, r, s, zero), der(0x30, zero, s), der(0x30, r, zero), der(0x30, longer(r), s), der(0x30, r, huge), concat(good, Uint8Array.of(0)), new Uint8Array(0), good.subarray(1)]) {
    assert.equal(await verifySignature(by, "ECDSA-SHA256", message, bad), false, hex(bad));
  }
});

test("certificates in another form are malformed", () => {
  const ecdsa = der(0x30, derId("1.2.840.10045.4.3.2"));
  const make = (edit: (parts: Uint8Array[]) => Uint8Array[]) => signAs(ecdsa, () => new Uint8Array(8), edit);
  const put = (i: number, value: Uint8Array) => (parts: Uint8Array[]) => parts.map((p, n) => (n === i ? value : p));
  const time = (tag: number, text: string) => put(4, der(0x30, der(tag, utf8(text)), der(0x17, utf8("491231235959Z"))));
  const extensions = (...list: Uint8Array[]) => (parts: Uint8Array[]) => [...parts, der(0xa3, der(0x30, ...list))];
  const extension = (id: string, value: Uint8Array, ...critical: Uint8Array[]) => der(0x30, derId(id), ...critical, der(0x04, value));
  const bits = (...bytes: number[]) => extensions(extension("2.5.29.15", der(0x03, Uint8Array.from(bytes))));
  const accepted: [string, (parts: Uint8Array[]) => Uint8Array[]][] = [
    ["nothing changed", (parts) => parts],
    ["GeneralizedTime", time(0x18, "20260101000000Z")],
    ["key usage of two bytes", bits(7, 0x80, 0x80)],
    ["explicitly not critical", extensions(extension("1.2.3", none, der(0x01, Uint8Array.of(0))))],
  ];
  for (const [name, edit] of accepted) assert.doesNotThrow(() => parseCertificate(make(edit)), name);
  const rows: [string, (parts: Uint8Array[]) => Uint8Array[]][] = [
    ["version 1", (parts) => parts.slice(1)],
    ["version 2", put(0, der(0xa0, der(0x02, Uint8Array.of(1))))],
    ["version with more", put(0, der(0xa0, der(0x02, Uint8Array.of(2)), none))],
    ["negative serial number", put(1, der(0x02, Uint8Array.of(0x80)))],
    ["serial number of 33 bytes", put(1, der(0x02, new Uint8Array(33).fill(1)))],
    ["another algorithm inside", put(2, pkcs1)],
    ["name that is a set", put(3, der(0x31))],
    ["a time without seconds", time(0x17, "2601010000Z")],
    ["a time with a zone", time(0x17, "260101000000+0000")],
    ["30 February", time(0x17, "260230000000Z")],
    ["second 60", time(0x17, "260101000060Z")],
    ["a time that is text", time(0x0c, "260101000000Z")],
    ["unique identifiers", (parts) => [...parts, der(0x81, Uint8Array.of(0))]],
    ["an extension twice", extensions(extension("1.2.3", none), extension("1.2.3", none))],
    ["critical that is 1", extensions(extension("1.2.3", none, der(0x01, Uint8Array.of(1))))],
    ["key usage of three bytes", bits(0, 1, 1, 1)],
    ["key usage with unused bits that are set", bits(7, 0xc0)],
    ["key usage with 8 unused bits", bits(8, 0)],
    ["no content in a key usage", extensions(extension("2.5.29.15", der(0x03)))],
    ["an object identifier of 65 bytes", extensions(der(0x30, der(0x06, new Uint8Array(65).fill(1)), der(0x04)))],
    ["a URI above ASCII", extensions(extension("2.5.29.17", der(0x30, der(0x86, utf8("é")))))],
    ["a path length of 2^40", extensions(extension("2.5.29.19", der(0x30, der(0x01, Uint8Array.of(255)), der(0x02, Uint8Array.of(1, 0, 0, 0, 0, 0)))))],
    ["a point off the curve", put(6, root.key.spki.map((b, i) => (i === 60 ? b ^ 1 : b)))],
    ["a compressed point", put(6, der(0x30, der(0x30, derId("1.2.840.10045.2.1"), derId("1.2.840.10045.3.1.7")), der(0x03, Uint8Array.of(0, 2), root.key.spki.subarray(27, 59))))],
  ];
  for (const [name, edit] of rows) assert.throws(() => parseCertificate(make(edit)), { name: "Refusal", reason: "malformed" }, name);
  const parameters: [string, Uint8Array][] = [
    ["ECDSA with parameters", der(0x30, derId("1.2.840.10045.4.3.2"), none)],
    ["RSA without", der(0x30, derId("1.2.840.113549.1.1.12"))],
    ["RSA with others", der(0x30, derId("1.2.840.113549.1.1.12"), der(0x02, Uint8Array.of(1)))],
    ["more than parameters", der(0x30, derId("1.2.840.113549.1.1.12"), none, none)],
  ];
  for (const [name, algorithm] of parameters) assert.throws(() => parseCertificate(signAs(algorithm, () => new Uint8Array(8))), { reason: "malformed" }, name);
  const odd = signAs(ecdsa, () => new Uint8Array(8));
  odd[odd.length - 9] = 1;
  assert.throws(() => parseCertificate(odd), { reason: "malformed" }, "unused bits in a signature");
  assert.throws(() => parseCertificate(make(extensions(extension("1.2.3", new Uint8Array(1 << 20))))), { reason: "malformed" }, "too many bytes");
  const whole = make((parts) => parts);
  assert.throws(() => parseCertificate(concat(whole, Uint8Array.of(0))), { reason: "malformed" });
  for (let cut = 0; cut < whole.length; cut++) assert.throws(() => parseCertificate(whole.subarray(0, cut)), { reason: "malformed" });
  assert.throws(() => parseCertificate(new Uint8Array((1 << 20) + 1)), { reason: "malformed" });
  const unknown = parseCertificate(make(extensions(extension("2.5.29.17", der(0x30, der(0x82, utf8("a")))), extension("1.2.3", none, der(0x01, Uint8Array.of(255))))));
  assert.deepEqual([unknown.dnsNames, unknown.unknownCritical], [["a"], ["1.2.3"]]);
});

test("the curve is checked on both curves", () => {
  for (const namedCurve of ["P-256", "P-384"]) {
    const spki = new Uint8Array(generateKeyPairSync("ec", { namedCurve }).publicKey.export({ type: "spki", format: "der" }));
    assert.equal(parsePublicKey(spki).kind, namedCurve);
    spki[spki.length - 1]! ^= 1;
    assert.throws(() => parsePublicKey(spki), { reason: "malformed" });
  }
  assert.equal(spkiOf(generateKeyPairSync("ec", { namedCurve: "P-521" }).publicKey).kind, "other");
  assert.equal(spkiOf(generateKeyPairSync("ed25519").publicKey).kind, "other");
});

const issuer = namedKey("issuer");

/** Makes a revocation list. */
function revocationList(...rest: Uint8Array[]): Uint8Array {
  return listOfVersion(1, ...rest);
}

function listOfVersion(version: number, ...rest: Uint8Array[]): Uint8Array {
  const algorithm = der(0x30, derId("1.2.840.10045.4.3.2"));
  const tbs = der(0x30, der(0x02, Uint8Array.of(version)), algorithm, der(0x30), der(0x17, utf8("261101000000Z")), ...rest);
  return der(0x30, tbs, algorithm, der(0x03, Uint8Array.of(0), new Uint8Array(sign("sha256", tbs, issuer.key))));
}

test("revocation lists", async () => {
  const next = der(0x17, utf8("261201000000Z"));
  const entry = (serial: number, ...more: Uint8Array[]) => der(0x30, der(0x02, Uint8Array.of(serial)), der(0x17, utf8("261030000000Z")), ...more);
  const reason = der(0x30, der(0x30, derId("2.5.29.21"), der(0x04, der(0x0a, Uint8Array.of(8)))));
  const number = der(0xa0, der(0x30, der(0x30, derId("2.5.29.20"), der(0x04, der(0x02, Uint8Array.of(7))))));
  const list = parseRevocationList(revocationList(next, der(0x30, entry(5), entry(6, reason)), number));
  assert.deepEqual([...list.revoked.keys()], ["05", "06"]);
  assert.deepEqual([list.thisUpdate.toISOString(), list.nextUpdate?.toISOString(), list.extensions.length], ["2026-11-01T00:00:00.000Z", "2026-12-01T00:00:00.000Z", 1]);
  assert.equal(await isSignedBy(list, parsePublicKey(issuer.spki)), true);
  assert.equal(await isSignedBy(list, root.key), false);
  const empty = parseRevocationList(revocationList());
  assert.deepEqual([empty.revoked.size, empty.nextUpdate], [0, undefined]);
  assert.throws(() => parseRevocationList(revocationList(next, next)), { reason: "malformed" });
  assert.throws(() => parseRevocationList(revocationList(next, der(0x30, entry(0x85)))), { reason: "malformed" });
  assert.throws(() => parseRevocationList(listOfVersion(2)), { reason: "malformed" });
  assert.throws(() => parseRevocationList(root.raw), { reason: "malformed" });
});

test("certificates in PEM", () => {
  const pem = `-----BEGIN CERTIFICATE-----\n${base64(root.raw)}\n-----END CERTIFICATE-----\n`;
  assert.equal(parsePem("chain", pem + "\r\n" + pem, 2).length, 2);
  assert.equal(parsePem("chain", " \n", 2).length, 0);
  for (const bad of [pem + pem + pem, "x" + pem, pem + "x", pem.slice(0, -8), pem.replace("M", "*"), "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----"]) {
    assert.throws(() => parsePem("chain", bad, 2), { reason: "malformed" });
  }
});

const seeds = Object.values(certificates).map((digits) => fromHex(digits));
fuzz("certificate", seeds, (bytes) => {
  const parsed = parseCertificate(bytes);
  assert.equal(createHash("sha256").update(parsed.raw).digest("hex"), createHash("sha256").update(bytes).digest("hex"));
}, { runs: 50_000 });
fuzz("revocation list", [revocationList(der(0x30, der(0x30, der(0x02, Uint8Array.of(5)), der(0x17, utf8("261030000000Z")))))], parseRevocationList, { runs: 50_000 });
