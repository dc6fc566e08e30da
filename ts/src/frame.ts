/**
 * The framing inside digests, signatures and keys (docs/spec/evidence.md, section 1): the length of
 * the label in one byte, the label, and for each field its length in four bytes, big-endian, and the
 * field.
 */

import { type Bytes, concat, own, sha256, sha512, utf8 } from "./bytes.js";
import { refuse } from "./refusal.js";

/** Encodes fields under a label. */
export function frame(label: string, ...fields: Uint8Array[]): Bytes {
  return concat(Uint8Array.of(label.length), utf8(label), ...fields.map(framedField));
}

/** Encodes one field: its length in four bytes, and the field. */
export function framedField(field: Uint8Array): Bytes {
  const length = new Uint8Array(4);
  new DataView(length.buffer).setUint32(0, field.length);
  return concat(length, field);
}

/**
 * Decodes the fields under a label. Another label, another number of fields than `count`, a length
 * beyond the end and trailing bytes are refused as malformed. Without `count` any number is
 * accepted. The fields are views of the bytes.
 */
export function unframe(label: string, bytes: Uint8Array, count?: number): Uint8Array[] {
  const head = frame(label);
  if (bytes.length < head.length || head.some((b, i) => bytes[i] !== b)) {
    throw refuse("malformed", "framing: label", "bytes that do not begin with the label", label);
  }
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const fields: Uint8Array[] = [];
  for (let at = head.length; at < bytes.length; ) {
    if (bytes.length - at < 4) throw refuse("malformed", `framing: ${label}`, "a cut length", "4 bytes");
    const size = view.getUint32(at);
    at += 4;
    if (bytes.length - at < size) throw refuse("malformed", `framing: ${label}`, "a cut field", "its whole length");
    fields.push(bytes.subarray(at, at + size));
    at += size;
  }
  if (count !== undefined && fields.length !== count) {
    throw refuse("malformed", `framing: ${label}: number of fields`, fields.length, count);
  }
  return fields;
}

/** Returns the SHA-256 over the framing of fields under a label. */
export function hash(label: string, ...fields: Uint8Array[]): Promise<Bytes> {
  return sha256(frame(label, ...fields));
}

/** Returns the report data of evidence: the SHA-512 over the framing of fields under a label. */
export function reportData(label: string, ...fields: Uint8Array[]): Promise<Bytes> {
  return sha512(frame(label, ...fields));
}

/** Derives a key: HKDF-SHA256 without salt, with the framing as info. */
export async function hkdf(secret: Uint8Array, size: number, label: string, ...fields: Uint8Array[]): Promise<Bytes> {
  const key = await crypto.subtle.importKey("raw", own(secret), "HKDF", false, ["deriveBits"]);
  const parameters = { name: "HKDF", hash: "SHA-256", salt: new Uint8Array(0), info: frame(label, ...fields) };
  return new Uint8Array(await crypto.subtle.deriveBits(parameters, key, 8 * size));
}

/** Derives a key: the second half of HKDF alone (RFC 5869, section 2.3), 32 bytes. */
export async function hkdfExpand(secret: Uint8Array, label: string, ...fields: Uint8Array[]): Promise<Bytes> {
  const key = await crypto.subtle.importKey("raw", own(secret), { name: "HMAC", hash: "SHA-256" }, false, ["sign"]);
  return new Uint8Array(await crypto.subtle.sign("HMAC", key, concat(frame(label, ...fields), Uint8Array.of(1))));
}
