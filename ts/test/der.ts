/** DER and certificates for tests: a writer, and a vendor's hand that signs what it is given. */

import { constants, generateKeyPairSync, type KeyObject, sign } from "node:crypto";
import { concat, utf8 } from "../src/bytes.js";

type Bytes = Uint8Array;

/** Encodes one element. */
export function der(tag: number, ...content: Bytes[]): Bytes {
  const all = concat(...content);
  const size: number[] = [];
  for (let n = all.length; n > 0; n >>>= 8) size.unshift(n & 255);
  return concat(Uint8Array.of(tag), all.length < 128 ? Uint8Array.of(all.length) : Uint8Array.of(0x80 | size.length, ...size), all);
}

export const sequence = (...content: Bytes[]): Bytes => der(0x30, ...content);
export const octets = (content: Bytes): Bytes => der(0x04, content);
const bits = (content: Bytes): Bytes => der(0x03, Uint8Array.of(0), content);
export const ia5 = (value: string): Bytes => der(0x16, utf8(value));

export function integer(value: number | bigint): Bytes {
  const digits: number[] = [];
  for (let n = BigInt(value); n > 0n; n >>= 8n) digits.unshift(Number(n & 255n));
  return der(0x02, Uint8Array.of(...(digits.length === 0 || digits[0]! & 0x80 ? [0] : []), ...digits));
}

export function identifier(dotted: string): Bytes {
  const [first, second, ...arcs] = dotted.split(".").map(Number) as [number, number, ...number[]];
  const content = [40 * first + second, ...arcs].flatMap((arc) => {
    const septets = [arc & 127];
    for (let n = arc >>> 7; n > 0; n >>>= 7) septets.unshift((n & 127) | 128);
    return septets;
  });
  return der(0x06, Uint8Array.of(...content));
}

function time(at: number): Bytes {
  return der(0x18, utf8(new Date(at).toISOString().replace(/[-:T]|\.\d+/g, "")));
}

const commonName = (name: string): Bytes => sequence(der(0x31, sequence(identifier("2.5.4.3"), der(0x0c, utf8(name)))));

/** How a key signs certificates. */
export type Algorithm = "ECDSA-SHA256" | "ECDSA-SHA384" | "RSA-PSS-SHA384" | "RSA-SHA384";

function algorithmIdentifier(algorithm: Algorithm): Bytes {
  const none = der(0x05);
  const sha384 = sequence(identifier("2.16.840.1.101.3.4.2.2"), none);
  switch (algorithm) {
    case "ECDSA-SHA256":
      return sequence(identifier("1.2.840.10045.4.3.2"));
    case "ECDSA-SHA384":
      return sequence(identifier("1.2.840.10045.4.3.3"));
    case "RSA-SHA384":
      return sequence(identifier("1.2.840.113549.1.1.12"), none);
    case "RSA-PSS-SHA384":
      return sequence(identifier("1.2.840.113549.1.1.10"), sequence(der(0xa0, sha384), der(0xa1, sequence(identifier("1.2.840.113549.1.1.8"), sha384)), der(0xa2, integer(48))));
  }
}

function signWith(algorithm: Algorithm, key: KeyObject, message: Bytes): Bytes {
  const hash = algorithm.endsWith("256") ? "sha256" : "sha384";
  return sign(hash, message, algorithm === "RSA-PSS-SHA384" ? { key, padding: constants.RSA_PKCS1_PSS_PADDING, saltLength: 48 } : key);
}

function signed(tbs: Bytes, algorithm: Algorithm, key: KeyObject): Bytes {
  return sequence(tbs, algorithmIdentifier(algorithm), bits(signWith(algorithm, key, tbs)));
}

export interface KeyPair {
  publicKey: KeyObject;
  privateKey: KeyObject;
}

export const newP256 = (): KeyPair => generateKeyPairSync("ec", { namedCurve: "P-256" });
export const newP384 = (): KeyPair => generateKeyPairSync("ec", { namedCurve: "P-384" });
export const newRsa = (): KeyPair => generateKeyPairSync("rsa", { modulusLength: 2048 });

/** Everything about a certificate. A test changes the smallest part of a good one. */
export interface CertificateSpec {
  name: string;
  issuer: string;
  key: KeyPair;
  signer: KeyPair;
  algorithm: Algorithm;
  serial: number;
  from: number;
  until: number;
  ca: boolean;
  keyUsage: number | undefined;
  extensions: { id: string; value: Bytes; critical?: boolean }[];
}

const critical = der(0x01, Uint8Array.of(0xff));

/** Makes a certificate in DER. */
export function certify(c: CertificateSpec): Bytes {
  const extension = (id: string, value: Bytes, isCritical = false) => sequence(identifier(id), ...(isCritical ? [critical] : []), octets(value));
  const extensions = [
    extension("2.5.29.19", sequence(...(c.ca ? [critical] : [])), true),
    ...(c.keyUsage === undefined ? [] : [extension("2.5.29.15", der(0x03, Uint8Array.of(31 - Math.clz32(c.keyUsage & -c.keyUsage), c.keyUsage)), true)]),
    ...c.extensions.map((e) => extension(e.id, e.value, e.critical)),
  ];
  const tbs = sequence(
    der(0xa0, integer(2)), integer(c.serial), algorithmIdentifier(c.algorithm), commonName(c.issuer), sequence(time(c.from), time(c.until)), commonName(c.name),
    c.key.publicKey.export({ type: "spki", format: "der" }), der(0xa3, sequence(...extensions)),
  );
  return signed(tbs, c.algorithm, c.signer.privateKey);
}

/** Everything about a revocation list. */
export interface ListSpec {
  issuer: string;
  signer: KeyPair;
  algorithm: Algorithm;
  from: number;
  until: number;
  revoked: number[];
  critical: boolean;
}

/** Makes a revocation list in DER. */
export function revoke(l: ListSpec): Bytes {
  const entries = l.revoked.map((serial) => sequence(integer(serial), time(l.from)));
  const tbs = sequence(
    integer(1), algorithmIdentifier(l.algorithm), commonName(l.issuer), time(l.from), time(l.until), ...(entries.length > 0 ? [sequence(...entries)] : []),
    der(0xa0, sequence(sequence(identifier("2.5.29.20"), octets(integer(1))), ...(l.critical ? [sequence(identifier("2.5.29.28"), critical, octets(sequence()))] : []))),
  );
  return signed(tbs, l.algorithm, l.signer.privateKey);
}

/** Writes certificates in PEM. */
export function pem(...ders: Bytes[]): Bytes {
  return utf8(ders.map((d) => `-----BEGIN CERTIFICATE-----\n${Buffer.from(d).toString("base64").replace(/.{64}/g, "$&\n")}\n-----END CERTIFICATE-----\n`).join(""));
}
