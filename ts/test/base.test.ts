import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { base64, base64url, fromBase64, fromBase64url, fromHex, hex, parseDigest, utf8 } from "../src/bytes.js";
import { DerReader, oid, unsigned } from "../src/der.js";
import { frame, unframe } from "../src/frame.js";
import { reasonOf, reasons, Refusal } from "../src/refusal.js";
import { repository } from "./vectors.js";

/** Asserts that a function refuses with a reason. */
function refuses(f: () => unknown, reason: string): void {
  assert.throws(f, (e) => e instanceof Refusal && e.reason === reason);
}

test("the reasons are those of the project", () => {
  const listed = JSON.parse(readFileSync(repository + "docs/api/reasons.json", "utf8")) as { reason: string }[];
  assert.deepEqual([...reasons], listed.map((r) => r.reason));
});

test("a refusal is found behind other errors", () => {
  const inner = new Refusal("nonce", "r", "g", "w");
  assert.equal(reasonOf(new Error("outer", { cause: inner })), "nonce");
  assert.equal(reasonOf(new Error("outer")), undefined);
});

test("base64 has one encoding", () => {
  for (let size = 0; size < 70; size++) {
    const bytes = Uint8Array.from({ length: size }, (_, i) => (i * 89 + size * 31) & 255);
    assert.deepEqual(fromBase64(base64(bytes)), bytes);
    assert.deepEqual(fromBase64url(base64url(bytes)), bytes);
    assert.equal(base64(bytes), Buffer.from(bytes).toString("base64"));
    assert.equal(base64url(bytes), Buffer.from(bytes).toString("base64url"));
    assert.deepEqual(fromHex(hex(bytes)), bytes);
  }
  for (const bad of ["A", "AAA", "AB==", "AAB=", "AA=A", "AA= ", "AA\n=", "====", "_-AA", "A===", "AAAA=", "AAAAé"]) refuses(() => fromBase64(bad), "malformed");
  for (const bad of ["A", "AB", "AAB", "AA==", "+/AA", "AAAAA"]) refuses(() => fromBase64url(bad), "malformed");
  for (const bad of ["a", "AB", "0x", "zz"]) refuses(() => fromHex(bad), "malformed");
});

test("digests have one text", () => {
  assert.equal(hex(parseDigest("sha256:" + "ab".repeat(32))), "ab".repeat(32));
  for (const bad of ["ab".repeat(32), "sha256:" + "AB".repeat(32), "sha256:" + "0".repeat(64), "sha256:ab"]) refuses(() => parseDigest(bad), "malformed");
});

test("framing", () => {
  const bytes = frame("a", utf8("bc"), new Uint8Array(0));
  assert.equal(hex(bytes), "0161" + "00000002" + "6263" + "00000000");
  assert.equal(unframe("a", bytes, 2).length, 2);
  assert.equal(unframe("a", bytes).length, 2);
  refuses(() => unframe("b", bytes), "malformed");
  refuses(() => unframe("a", bytes, 1), "malformed");
  for (let cut = 0; cut < bytes.length; cut++) refuses(() => unframe("a", bytes.subarray(0, cut), 2), "malformed");
  refuses(() => unframe("a", frame("ab")), "malformed");
});

test("DER has one encoding", () => {
  const reader = new DerReader(fromHex("3003020105" + "0500"));
  assert.equal(unsigned(reader.enter(0x30).read(0x02).content), 5n);
  reader.read(0x05);
  reader.end();
  for (const bad of ["", "30", "3001", "308001", "30810100", "3082000100", "3084000000010", "1f8101"]) {
    if (bad.length % 2 === 0) refuses(() => new DerReader(fromHex(bad)).read(), "malformed");
  }
  refuses(() => unsigned(fromHex("0005")), "malformed");
  refuses(() => unsigned(fromHex("80")), "malformed");
  assert.equal(oid(fromHex("2a8648ce3d030107")), "1.2.840.10045.3.1.7");
  assert.equal(oid(fromHex("883703")), "2.999.3");
  refuses(() => oid(fromHex("2a8648ce")), "malformed");
  refuses(() => oid(fromHex("2a8001")), "malformed");
  refuses(() => oid(fromHex("")), "malformed");
});
