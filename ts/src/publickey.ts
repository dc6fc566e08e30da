/**
 * Public keys and signatures as certificates have them: ECDSA on P-256 and P-384 and RSA, by WebCrypto.
 * Other keys and algorithms are read, and verify nothing.
 */

import { type Bytes, base64url, concat, own } from "./bytes.js";
import { type DerReader, type Element, Tag, oid, onlyElement, unsigned } from "./der.js";
import { curves, onCurve } from "./curve.js";
import { refuse } from "./refusal.js";

/** A signature algorithm, or "other". RSA-PSS has a salt as long as the digest. */
export type SignatureAlgorithm =
  | `ECDSA-SHA${DigestSize}`
  | `RSA-SHA${DigestSize}`
  | `RSA-PSS-SHA${DigestSize}`
  | "other";

/** Sizes of SHA-2 digests in bits. */
export type DigestSize = "256" | "384" | "512";

/** A public key with its encoding, the DER SubjectPublicKeyInfo. */
export type PublicKey = { spki: Uint8Array } & (
  | { kind: "P-256" | "P-384"; /** The uncompressed point. */ point: Uint8Array }
  | { kind: "RSA"; /** Modulus and exponent, big-endian without leading zeros. */ modulus: Uint8Array; exponent: Uint8Array }
  | { kind: "other" }
);

/**
 * Reports whether a signature verifies. An algorithm that is not of the key's kind, and signatures
 * in any encoding but DER (ECDSA, RFC 3279) or full length (RSA), do not.
 */
export async function verifySignature(key: PublicKey, algorithm: SignatureAlgorithm, message: Uint8Array, signature: Uint8Array): Promise<boolean> {
  if (algorithm === "other" || key.kind === "other") return false;
  const imported = await importVerifier(key, algorithm).catch(() => undefined); // a key that WebCrypto refuses verifies nothing
  const fixed = key.kind === "RSA" ? own(signature) : fixedSignature(signature, curves[key.kind].size);
  if (!imported || !fixed) return false;
  const parameters = { name: imported.algorithm.name, hash: hashOf(algorithm), saltLength: Number(algorithm.slice(-3)) / 8 };
  return crypto.subtle.verify(parameters, imported, fixed, own(message));
}

function hashOf(algorithm: SignatureAlgorithm): string {
  return "SHA-" + algorithm.slice(-3);
}

/** Imports a key for one algorithm; undefined where the key is of another kind or size. */
async function importVerifier(key: PublicKey, algorithm: SignatureAlgorithm): Promise<CryptoKey | undefined> {
  const ecdsa = algorithm.startsWith("ECDSA");
  if (key.kind === "other" || ecdsa === (key.kind === "RSA")) return undefined;
  if (key.kind !== "RSA") return crypto.subtle.importKey("raw", own(key.point), { name: "ECDSA", namedCurve: key.kind }, false, ["verify"]);
  if (key.modulus.length < 256 || key.modulus.length > 1024) return undefined;
  const parameters = { name: algorithm.startsWith("RSA-PSS") ? "RSA-PSS" : "RSASSA-PKCS1-v1_5", hash: hashOf(algorithm) };
  // As JWK, because an SPKI of an RSA-PSS key is not imported everywhere.
  return crypto.subtle.importKey("jwk", { kty: "RSA", n: base64url(key.modulus), e: base64url(key.exponent) }, parameters, false, ["verify"]);
}

/** Parses a DER SubjectPublicKeyInfo. A point that is not on its curve is refused as malformed. */
export function parsePublicKey(spki: Uint8Array): PublicKey {
  const reader = onlyElement(spki, Tag.Sequence);
  const algorithm = reader.enter(Tag.Sequence);
  const id = identifier(algorithm);
  const parameters = algorithm.done ? undefined : algorithm.read();
  algorithm.end();
  const bits = wholeBits(reader.read(Tag.BitString));
  reader.end();
  if (id === "1.2.840.10045.2.1" && parameters?.tag === Tag.ObjectIdentifier) {
    const curve = arcs(parameters.content);
    const kind = curve === "1.2.840.10045.3.1.7" ? "P-256" : curve === "1.3.132.0.34" ? "P-384" : undefined;
    if (!kind) return { spki, kind: "other" };
    if (!onCurve(curves[kind], bits)) throw refuse("malformed", "public key", "no uncompressed point of the curve", kind);
    return { spki, kind, point: bits };
  }
  if (id === "1.2.840.113549.1.1.1") {
    const numbers = onlyElement(bits, Tag.Sequence);
    const [modulus, exponent] = [positive(numbers.read(Tag.Integer)), positive(numbers.read(Tag.Integer))];
    numbers.end();
    return { spki, kind: "RSA", modulus, exponent };
  }
  return { spki, kind: "other" };
}

/** Returns r and s of an ECDSA signature in `size` bytes each, or undefined. */
function fixedSignature(der: Uint8Array, size: number): Bytes | undefined {
  try {
    const reader = onlyElement(der, Tag.Sequence);
    const parts = [positive(reader.read(Tag.Integer)), positive(reader.read(Tag.Integer))];
    reader.end();
    if (parts.some((part) => part.length > size)) return undefined;
    return concat(...parts.flatMap((part) => [new Uint8Array(size - part.length), part]));
  } catch {
    return undefined;
  }
}

/** Returns the bytes of an integer above zero without leading zeros. */
function positive(element: Element): Uint8Array {
  const { content } = element;
  if (unsigned(content.subarray(0, 2)) === 0n) throw refuse("malformed", "DER: integer", 0, "a number above zero");
  return content[0] === 0 ? content.subarray(1) : content;
}

/** Returns the bytes of a bit string that has no unused bits. */
export function wholeBits(element: Element): Uint8Array {
  if (element.content[0] !== 0) throw refuse("malformed", "DER: bit string", "unused bits", "whole bytes");
  return element.content.subarray(1);
}

/** Reads an object identifier of a usual size: the time to decode one grows with its square. */
export function identifier(reader: DerReader): string {
  const { content } = reader.read(Tag.ObjectIdentifier);
  return arcs(content);
}

function arcs(content: Uint8Array): string {
  if (content.length > 64) throw refuse("malformed", "DER: size of an object identifier", content.length, "at most 64 bytes");
  return oid(content);
}
