import assert from "node:assert/strict";
import { createHash, generateKeyPairSync, sign, type KeyObject } from "node:crypto";
import { test } from "node:test";
import { parseKeyLine, verifySshSignature } from "../src/policy/sshsig.js";
import { reasonOf, Refusal } from "../src/refusal.js";

const sha256 = (b: Uint8Array | string) => createHash("sha256").update(b).digest();
const string = (b: Uint8Array | string) => {
  const body = Buffer.from(b as Uint8Array), size = Buffer.alloc(4);
  size.writeUInt32BE(body.length);
  return Buffer.concat([size, body]);
};
const line = (type: string, ...fields: (Uint8Array | string)[]) => `${type} ${Buffer.concat([type, ...fields].map(string)).toString("base64")}`;
const blobOf = (keyLine: string) => Buffer.from(keyLine.split(" ")[1]!, "base64");
const message = Buffer.from("m");

const edwards = generateKeyPairSync("ed25519");
const edwardsPoint = edwards.publicKey.export({ format: "der", type: "spki" }).subarray(-32);
const edwardsLine = line("ssh-ed25519", edwardsPoint);
const hardwareLine = line("sk-ssh-ed25519@openssh.com", edwardsPoint, "ssh:");
const p256 = generateKeyPairSync("ec", { namedCurve: "P-256" });
const p256Point = p256.publicKey.export({ format: "der", type: "spki" }).subarray(-65);
const p256Line = line("ecdsa-sha2-nistp256", "nistp256", p256Point);

/** What a forged signature differs in. */
interface Forged {
  key?: Uint8Array;
  version?: number;
  namespace?: string;
  reserved?: string;
  hash?: string;
  value?: (covered: Buffer) => Buffer;
  behind?: string;
}

const armor = (blob: Buffer) => `-----BEGIN SSH SIGNATURE-----\n${blob.toString("base64").replace(/.{1,70}/g, "$&\n")}-----END SSH SIGNATURE-----\n`;

function forge(change: Forged = {}): string {
  const { key = blobOf(edwardsLine), version = 1, namespace = "cohort-policy", reserved = "", hash = "sha512" } = change;
  const covered = Buffer.concat([Buffer.from("SSHSIG"), string("cohort-policy"), string(""), string("sha512"), string(createHash("sha512").update(message).digest())]);
  const value = change.value?.(covered) ?? Buffer.concat([string("ssh-ed25519"), string(sign(null, covered, edwards.privateKey))]);
  return armor(Buffer.concat([Buffer.from(`SSHSIG\0\0\0${String.fromCharCode(version)}`), string(key), string(namespace), string(reserved), string(hash), string(value), Buffer.from(change.behind ?? "")]));
}

async function refused(reason: string, armored: string, what: string): Promise<void> {
  await assert.rejects(verifySshSignature(armored, "cohort-policy", message), (e) => {
    assert.ok(e instanceof Refusal, `${what}: ${e}`);
    assert.equal(e.reason, reason, `${what}: ${e.message}`);
    return true;
  });
}

test("keys that no owner may have are refused", () => {
  const p = (1n << 255n) - 19n;
  const little = (n: bigint) => Buffer.from(n.toString(16).padStart(64, "0"), "hex").reverse();
  const over = Buffer.from(p256Point), big = Buffer.from(p256Point);
  over[64]! ^= 1;
  big.fill(0xff, 1, 33);
  const rows: [reason: string, keyLine: string][] = [
    ["malformed", ""], ["malformed", "ssh-ed25519"], ["malformed", edwardsLine.replace("ssh-ed25519 ", "ssh-ed25519  ")], ["malformed", `${edwardsLine}=`],
    ["malformed", `ssh-rsa ${edwardsLine.split(" ")[1]}`], ["malformed", `ssh-ed25519 ${p256Line.split(" ")[1]}`],
    ["malformed", "ssh-ed25519 AAAA"], ["malformed", line("ssh-other", edwardsPoint)], ["malformed", line("toString", edwardsPoint)],
    ["malformed", line("ssh-ed25519", edwardsPoint, "x")], ["malformed", line("ssh-ed25519", edwardsPoint.subarray(1))], ["malformed", line("sk-ssh-ed25519@openssh.com", edwardsPoint)],
    ["malformed", `ssh-ed25519 ${Buffer.concat([blobOf(edwardsLine), Buffer.from("x")]).toString("base64")}`],
    ["malformed", line("ecdsa-sha2-nistp256", "nistp384", p256Point)], ["malformed", line("ecdsa-sha2-nistp256", "nistp256", over)], ["malformed", line("ecdsa-sha2-nistp256", "nistp256", big)],
    ["malformed", line("ecdsa-sha2-nistp256", "nistp256", Buffer.concat([Buffer.of(2 + (p256Point[64]! & 1)), p256Point.subarray(1, 33)]))],
    ["malformed", line("ecdsa-sha2-nistp384", "nistp384", p256Point)],
    ["signature", line("ssh-rsa", "x")], ["signature", line("ssh-ed25519-cert-v01@openssh.com", "x")], ["signature", line("ssh-dss", "x")],
    ["signature", line("sk-ssh-ed25519@openssh.com", edwardsPoint, "ssh:work")], ["signature", line("sk-ssh-ed25519@openssh.com", edwardsPoint, "")],
    ...[0n, 1n, p - 1n, p, p + 1n, 1n << 255n, (1n << 255n) + 1n].map((n): [string, string] => ["signature", line("ssh-ed25519", little(n))]),
    ...[p + 2n, p + 18n, (1n << 255n) + p + 5n].map((n): [string, string] => ["signature", line("sk-ssh-ed25519@openssh.com", little(n), "ssh:")]),
  ];
  for (const [reason, keyLine] of rows) assert.throws(() => parseKeyLine(keyLine), (e) => reasonOf(e) === reason, `${keyLine}: ${reason}`);
  for (const good of [edwardsLine, `${edwardsLine} a comment`, hardwareLine, p256Line]) parseKeyLine(good);
  // A key and its form for hardware are one owner's.
  assert.equal(parseKeyLine(edwardsLine).id, parseKeyLine(hardwareLine).id);
  assert.notEqual(parseKeyLine(edwardsLine).id, parseKeyLine(p256Line).id);
  for (const [curve, name, size] of [["P-384", "nistp384", 97], ["P-521", "nistp521", 133]] as const) {
    const point = generateKeyPairSync("ec", { namedCurve: curve }).publicKey.export({ format: "der", type: "spki" }).subarray(-size);
    parseKeyLine(line(`ecdsa-sha2-${name}`, name, point));
    point[size - 1]! ^= 1;
    assert.throws(() => parseKeyLine(line(`ecdsa-sha2-${name}`, name, point)), Refusal);
  }
});

test("signatures have one encoding", async () => {
  const good = forge();
  await verifySshSignature(good, "cohort-policy", message);
  await refused("malformed", "", "nothing");
  await refused("malformed", good.slice(0, -1), "without its last line end");
  await refused("malformed", good.slice(1), "without its first byte");
  await refused("malformed", `\n${good}`, "a line before");
  await refused("malformed", good.replaceAll("\n", "\r\n"), "CR");
  await refused("malformed", good.replace("SIGNATURE-----\n", "SIGNATURE-----\n\n"), "an empty line");
  await refused("malformed", good.replace(/(.{70})\n(.)/, "$1$2\n"), "lines of another width");
  await refused("malformed", good.replace(/U1NI/, "U1N!"), "another alphabet");
  await refused("too-large", good.replace("-----END", `${"A".repeat(8192)}\n-----END`), "a large one");
  await refused("malformed", armor(Buffer.from("SSHSIG")), "magic alone");
  await refused("malformed", armor(Buffer.from("SSHSIH\0\0\0\x01")), "another magic");
  await refused("malformed", forge({ behind: "\0" }), "a byte behind");
  await refused("malformed", forge({ behind: "\0\0\0\0" }), "a string behind");
  await refused("malformed", forge({ version: 2 }), "another version");
  await refused("malformed", forge({ reserved: "x" }), "a reserved field");
  await refused("signature", forge({ namespace: "cohort-cancel" }), "another namespace");
  await refused("signature", forge({ hash: "sha256" }), "another hash");
  await refused("malformed", forge({ key: Buffer.from("x") }), "no key");
  await refused("malformed", forge({ value: () => Buffer.alloc(0) }), "no value");
  await refused("malformed", forge({ value: (c) => Buffer.concat([string("ssh-ed25519"), string(sign(null, c, edwards.privateKey)), Buffer.from("x")]) }), "a byte behind the value");
  await refused("malformed", forge({ value: (c) => Buffer.concat([string("ssh-rsa"), string(sign(null, c, edwards.privateKey))]) }), "another format");
  await refused("signature", forge({ value: () => Buffer.concat([string("ssh-ed25519"), string(Buffer.alloc(63))]) }), "a short value");
  await refused("signature", forge({ value: () => Buffer.concat([string("ssh-ed25519"), string(Buffer.alloc(64))]) }), "zeros");
});

/** Returns the encoding of a number of SSH. */
function mpint(n: bigint): Buffer {
  const digits = n.toString(16);
  const bytes = n === 0n ? Buffer.alloc(0) : Buffer.from(digits.padStart(digits.length + (digits.length % 2), "0"), "hex");
  return bytes.length > 0 && bytes[0]! >= 0x80 ? Buffer.concat([Buffer.alloc(1), bytes]) : bytes;
}

function numbersOf(covered: Buffer, key: KeyObject): [bigint, bigint] {
  const raw = sign("sha256", covered, { key, dsaEncoding: "ieee-p1363" }).toString("hex");
  return [BigInt(`0x${raw.slice(0, 64)}`), BigInt(`0x${raw.slice(64)}`)];
}

test("numbers of ECDSA have one encoding", async () => {
  const key = blobOf(p256Line);
  const made = (change: (r: Buffer, s: Buffer) => Buffer) => forge({
    key,
    value: (covered) => {
      const [r, s] = numbersOf(covered, p256.privateKey);
      return Buffer.concat([string("ecdsa-sha2-nistp256"), string(change(mpint(r), mpint(s)))]);
    },
  });
  await verifySshSignature(made((r, s) => Buffer.concat([string(r), string(s)])), "cohort-policy", message);
  const zero = Buffer.alloc(1);
  const rows: [string, string, (r: Buffer, s: Buffer) => Buffer][] = [
    ["malformed", "a leading zero", (r, s) => Buffer.concat([string(Buffer.concat([zero, r[0]! === 0 ? r : Buffer.concat([zero, r])])), string(s)])],
    ["malformed", "a zero of one byte", (_, s) => Buffer.concat([string(zero), string(s)])],
    ["malformed", "a long negative", (_, s) => Buffer.concat([string(Buffer.of(0xff, 0x80)), string(s)])],
    ["malformed", "one number", (r) => string(r)],
    ["malformed", "three numbers", (r, s) => Buffer.concat([string(r), string(s), string(s)])],
    ["malformed", "a byte behind", (r, s) => Buffer.concat([string(r), string(s), zero])],
    ["signature", "zero", (_, s) => Buffer.concat([string(""), string(s)])],
    ["signature", "a negative", (r) => Buffer.concat([string(r), string(Buffer.of(0x80))])],
    ["signature", "a number over the curve", (r) => Buffer.concat([string(r), string(Buffer.alloc(33, 1))])],
    ["signature", "in the other order", (r, s) => Buffer.concat([string(s), string(r)])],
  ];
  for (const [reason, what, change] of rows) await refused(reason, made(change), what);
});

test("a hardware key was touched", async () => {
  const made = (rest: Buffer, application = "ssh:") => forge({
    key: blobOf(hardwareLine),
    value: (covered) => Buffer.concat([string("sk-ssh-ed25519@openssh.com"), string(sign(null, Buffer.concat([sha256(application), rest, sha256(covered)]), edwards.privateKey)), rest]),
  });
  await verifySshSignature(made(Buffer.of(1, 0, 0, 0, 9)), "cohort-policy", message);
  await verifySshSignature(made(Buffer.of(5, 0xff, 0xff, 0xff, 0xff)), "cohort-policy", message);
  await refused("signature", made(Buffer.of(0, 0, 0, 0, 9)), "no flag");
  await refused("signature", made(Buffer.of(4, 0, 0, 0, 9)), "the flag of verification alone");
  await refused("signature", made(Buffer.of(1, 0, 0, 0, 9), "ssh:work"), "another application");
  await refused("malformed", made(Buffer.of(1, 0, 0, 0)), "a cut counter");
  await refused("malformed", made(Buffer.of(1, 0, 0, 0, 9, 0)), "a byte behind the counter");
  await refused("malformed", made(Buffer.alloc(0)), "no flags");
});
