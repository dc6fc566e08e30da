/** Certificates, statements and policy signatures made by tests, with keys of their own choice. */

import { createECDH, createHash, createPrivateKey, createPublicKey, sign, type KeyObject } from "node:crypto";
import { base64, base64url, concat, equal, fromHex, u64, utf8 } from "../src/bytes.js";
import { frame, framedField, hkdf, unframe } from "../src/frame.js";
import { type Certificate, type Extension, parseCertificate } from "../src/x509.js";

/** Encodes one DER element. */
export function der(tag: number, ...parts: Uint8Array[]): Uint8Array {
  const content = concat(...parts);
  const digits = content.length < 0x80 ? [content.length] : [...fromHex(content.length.toString(16).padStart(content.length > 0xffff ? 6 : content.length > 0xff ? 4 : 2, "0"))];
  const length = content.length < 0x80 ? digits : [0x80 | digits.length, ...digits];
  return concat(Uint8Array.of(tag, ...length), content);
}

/** Encodes a dotted object identifier. */
export function derId(dotted: string): Uint8Array {
  const [first, second, ...rest] = dotted.split(".").map(Number) as [number, number, ...number[]];
  const bytes = [first * 40 + second, ...rest].flatMap((arc) => {
    const digits = [arc % 128];
    for (arc = Math.floor(arc / 128); arc > 0; arc = Math.floor(arc / 128)) digits.unshift(128 | (arc % 128));
    return digits;
  });
  return der(0x06, Uint8Array.from(bytes));
}

/** An ECDSA key on P-256. */
export interface SigningKey {
  key: KeyObject;
  spki: Uint8Array;
}

/** Makes a key of a scalar of 32 bytes. */
export function signingKey(scalar: Uint8Array): SigningKey {
  const pair = createECDH("prime256v1");
  pair.setPrivateKey(scalar);
  const point = pair.getPublicKey();
  const jwk = { kty: "EC", crv: "P-256", d: base64url(scalar), x: base64url(point.subarray(1, 33)), y: base64url(point.subarray(33)) };
  const key = createPrivateKey({ key: jwk, format: "jwk" });
  return { key, spki: new Uint8Array(createPublicKey(key).export({ type: "spki", format: "der" })) };
}

/** The key of a text, the same in every run. */
export function namedKey(name: string): SigningKey {
  return signingKey(new Uint8Array(createHash("sha256").update(name).digest()));
}

/** A key that an authority derives (docs/spec/identity.md, section 2). */
export async function derivedKey(secret: Uint8Array, label: string, ...fields: Uint8Array[]): Promise<SigningKey> {
  return signingKey(await hkdf(secret, 32, label, ...fields, Uint8Array.of(0)));
}

/** Signs with ECDSA and SHA-256, or another digest. */
export function ecdsa({ key }: SigningKey, message: Uint8Array, digest = "sha256"): Uint8Array {
  return new Uint8Array(sign(digest, message, key));
}

/** What a forged certificate has in place of the certificate that it is like. */
export interface Changes {
  spki?: Uint8Array;
  issuer?: Uint8Array;
  subject?: Uint8Array;
  notBefore?: number;
  notAfter?: number;
  extensions?: (list: Extension[]) => Extension[];
  sha384?: boolean;
}

/** Signs a certificate like another one, with changes. */
export function forgeCertificate(like: Certificate, signer: SigningKey, changes: Changes = {}): Certificate {
  const algorithm = der(0x30, derId(changes.sha384 ? "1.2.840.10045.4.3.3" : "1.2.840.10045.4.3.2"));
  const extensions = (changes.extensions ?? ((list) => list))(like.extensions.map((e) => ({ ...e })));
  const list = extensions.map((e) => der(0x30, derId(e.id), e.critical ? der(0x01, Uint8Array.of(0xff)) : new Uint8Array(0), der(0x04, e.value)));
  const tbs = der(
    0x30, der(0xa0, der(0x02, Uint8Array.of(2))), der(0x02, Uint8Array.of(7)), algorithm, changes.issuer ?? like.issuer,
    der(0x30, derTime(changes.notBefore ?? like.notBefore.getTime()), derTime(changes.notAfter ?? like.notAfter.getTime())),
    changes.subject ?? like.subject, changes.spki ?? like.key.spki, ...(list.length > 0 ? [der(0xa3, der(0x30, ...list))] : []),
  );
  const signature = ecdsa(signer, tbs, changes.sha384 ? "sha384" : "sha256");
  return parseCertificate(der(0x30, tbs, algorithm, der(0x03, Uint8Array.of(0), signature)));
}

function derTime(at: number): Uint8Array {
  return der(0x18, utf8(new Date(at).toISOString().replace(/[-:T]|\.\d+/g, "")));
}

const privateId = "1.2.840.113556.1.8000.2554.51898.5250.7156.19007.48674.10918900.16058849";

/** Changes the fields of the private extension. */
export function editFields(edit: (fields: Uint8Array[]) => Uint8Array[]): (list: Extension[]) => Extension[] {
  return (list) => list.map((e) => (e.id === privateId ? { ...e, value: encodeFields(edit(decodeFields(e.value))) } : e));
}

/** Changes one field of the private extension. */
export function editField(i: number, value: Uint8Array | string): (list: Extension[]) => Extension[] {
  return editFields((fields) => fields.map((f, n) => (n === i ? (typeof value === "string" ? utf8(value) : value) : f)));
}

export function decodeFields(value: Uint8Array): Uint8Array[] {
  const skip = value[1]! < 0x80 ? 2 : 2 + (value[1]! & 0x7f);
  return unframe("cohort certificate v1", value.subarray(skip));
}

export function encodeFields(fields: Uint8Array[]): Uint8Array {
  return der(0x04, frame("cohort certificate v1", ...fields));
}

/** Changes the value of an extension, or removes it. */
export function editExtension(id: string, value: Uint8Array | undefined): (list: Extension[]) => Extension[] {
  return (list) => {
    const rest = list.filter((e) => e.id !== id);
    const critical = id === "2.5.29.15" || id === "2.5.29.19";
    return value ? [{ id, critical, value }, ...rest] : rest;
  };
}

/** Signs fields as an authority signs heads and trust statements. */
export function signFields(label: string, signer: SigningKey, leaf: Uint8Array, ...fields: Uint8Array[]): Uint8Array {
  const message = frame(label, ...fields);
  return concat(message, framedField(leaf), framedField(ecdsa(signer, message)));
}

/** A proved head. */
export function proveHead(signer: SigningKey, leaf: Uint8Array, head: Uint8Array, steps: number, time: number, spread = 2000): Uint8Array {
  return signFields("cohort head v1", signer, leaf, head, u64(steps), u64(Math.floor(time / 1000)), u64(spread));
}

/** An Ed25519 SSH key of an owner or party, from a seed of 32 bytes. */
export interface SshSigner {
  key: KeyObject;
  /** The public key as SSH encodes it. */
  blob: Uint8Array;
}

export function sshSigner(seed: Uint8Array): SshSigner {
  const key = createPrivateKey({ key: Buffer.concat([fromHex("302e020100300506032b657004220420"), seed]), format: "der", type: "pkcs8" });
  const point = new Uint8Array(createPublicKey(key).export({ type: "spki", format: "der" }).subarray(-32));
  return { key, blob: concat(framedField(utf8("ssh-ed25519")), framedField(point)) };
}

/** The key of an owner of the project's tests. */
export function testSigner(name: string): SshSigner {
  return sshSigner(new Uint8Array(createHash("sha256").update(name).digest()));
}

/** The public key as policy files contain it. */
export function sshText({ blob }: SshSigner): string {
  return "ssh-ed25519 " + base64(blob);
}

/** Makes an armored SSH signature (PROTOCOL.sshsig of OpenSSH). */
export function sshSign({ key, blob }: SshSigner, namespace: string, message: Uint8Array): string {
  const magic = utf8("SSHSIG");
  const field = (value: string | Uint8Array) => framedField(typeof value === "string" ? utf8(value) : value);
  const digest = new Uint8Array(createHash("sha512").update(message).digest());
  const signature = new Uint8Array(sign(null, concat(magic, field(namespace), field(""), field("sha512"), field(digest)), key));
  const inner = concat(field("ssh-ed25519"), field(signature));
  const outer = concat(magic, Uint8Array.of(0, 0, 0, 1), field(blob), field(namespace), field(""), field("sha512"), field(inner));
  return `-----BEGIN SSH SIGNATURE-----\n${base64(outer).replace(/.{1,70}/g, "$&\n")}-----END SSH SIGNATURE-----\n`;
}

/** Reports whether two certificates are the same. */
export function same(a: Certificate | undefined, b: Certificate | undefined): boolean {
  return !!a && !!b && equal(a.raw, b.raw);
}

