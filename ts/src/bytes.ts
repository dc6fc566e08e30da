/** Byte strings: encodings, comparison, digests. Each decoder accepts one encoding only. */

import { refuse } from "./refusal.js";

/** Bytes in memory of their own, as WebCrypto wants them. */
export type Bytes = Uint8Array<ArrayBuffer>;

/** Returns the parts one after the other. */
export function concat(...parts: Uint8Array[]): Bytes {
  const all = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

/** Reports whether two byte strings are equal, in a time that depends on their lengths alone. */
export function equal(a: Uint8Array, b: Uint8Array): boolean {
  if (a.length !== b.length) return false;
  let difference = 0;
  for (let i = 0; i < a.length; i++) difference |= a[i]! ^ b[i]!;
  return difference === 0;
}

/** Orders byte strings as Go's bytes.Compare. */
export function compare(a: Uint8Array, b: Uint8Array): number {
  for (let i = 0; i < a.length && i < b.length; i++) {
    if (a[i] !== b[i]) return a[i]! - b[i]!;
  }
  return a.length - b.length;
}

/** Returns the bytes of a text in UTF-8. */
export function utf8(text: string): Bytes {
  return new TextEncoder().encode(text) as Bytes;
}

/** Returns the text of bytes in UTF-8. Bytes that are no UTF-8 are refused as malformed. */
export function text(bytes: Uint8Array): string {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    throw refuse("malformed", "text", "other bytes", "UTF-8");
  }
}

/** Returns lower-case hexadecimal digits. */
export function hex(bytes: Uint8Array): string {
  let digits = "";
  for (const b of bytes) digits += b.toString(16).padStart(2, "0");
  return digits;
}

/** Decodes lower-case hexadecimal digits. */
export function fromHex(digits: string): Bytes {
  if (digits.length % 2 !== 0 || !/^[0-9a-f]*$/.test(digits)) {
    throw refuse("malformed", "hexadecimal digits", digits.slice(0, 80), "an even number of 0-9a-f");
  }
  const bytes = new Uint8Array(digits.length / 2);
  for (let i = 0; i < bytes.length; i++) bytes[i] = parseInt(digits.slice(2 * i, 2 * i + 2), 16);
  return bytes;
}

const standard = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const urlSafe = standard.slice(0, 62) + "-_";

function encode64(bytes: Uint8Array, alphabet: string, padding: string): string {
  const parts: string[] = [];
  for (let i = 0; i < bytes.length; i += 3) {
    const group = (bytes[i]! << 16) | ((bytes[i + 1] ?? 0) << 8) | (bytes[i + 2] ?? 0);
    const digits = alphabet[group >> 18]! + alphabet[(group >> 12) & 63] + alphabet[(group >> 6) & 63] + alphabet[group & 63];
    const missing = Math.max(0, i + 3 - bytes.length);
    parts.push(missing === 0 ? digits : digits.slice(0, 4 - missing) + padding.repeat(missing));
  }
  return parts.join("");
}

const values = [standard, urlSafe].map((alphabet) => {
  const table = new Uint8Array(128).fill(64);
  for (let i = 0; i < 64; i++) table[alphabet.charCodeAt(i)] = i;
  return table;
});

function decode64(digits: string, table: Uint8Array): Bytes {
  const bytes = new Uint8Array(Math.floor((digits.length * 3) / 4));
  let at = 0, bits = 0, count = 0;
  for (let i = 0; i < digits.length; i++) {
    const code = digits.charCodeAt(i);
    const value = code < 128 ? table[code]! : 64;
    if (value === 64) throw refuse("malformed", "base64", digits.slice(0, 80), "digits of its alphabet");
    bits = ((bits << 6) | value) & 0xffffff;
    count += 6;
    if (count >= 8) {
      count -= 8;
      bytes[at++] = (bits >> count) & 0xff;
    }
  }
  if (digits.length % 4 === 1 || (bits & ((1 << count) - 1)) !== 0) {
    throw refuse("malformed", "base64: end", digits.slice(-4), "unused bits that are zero");
  }
  return bytes;
}

/** Returns base64 with padding (RFC 4648, section 4). */
export function base64(bytes: Uint8Array): string {
  return encode64(bytes, standard, "=");
}

/** Decodes base64 with padding. */
export function fromBase64(digits: string): Bytes {
  const end = digits.endsWith("==") ? 2 : digits.endsWith("=") ? 1 : 0;
  if (digits.length % 4 !== 0) throw refuse("malformed", "base64: length", digits.length, "a multiple of 4");
  return decode64(digits.slice(0, digits.length - end), values[0]!);
}

/** Returns base64url without padding (RFC 4648, section 5). */
export function base64url(bytes: Uint8Array): string {
  return encode64(bytes, urlSafe, "");
}

/** Decodes base64url without padding. */
export function fromBase64url(digits: string): Bytes {
  return decode64(digits, values[1]!);
}

/** Returns a number below 2^64 in eight bytes, big-endian. */
export function u64(value: number | bigint): Bytes {
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(value));
  return bytes;
}

/** Reads eight bytes, big-endian. */
export function fromU64(bytes: Uint8Array): bigint {
  if (bytes.length !== 8) throw refuse("malformed", "number: length", bytes.length, 8);
  return new DataView(bytes.buffer, bytes.byteOffset, 8).getBigUint64(0);
}

/** Returns a copy in memory of its own, for functions that want such. */
export function own(bytes: Uint8Array): Bytes {
  return bytes.buffer instanceof ArrayBuffer ? (bytes as Bytes) : new Uint8Array(bytes);
}

/** Returns the SHA-256, 32 bytes. */
export async function sha256(bytes: Uint8Array): Promise<Bytes> {
  return new Uint8Array(await crypto.subtle.digest("SHA-256", own(bytes)));
}

/** Returns the SHA-384, 48 bytes. */
export async function sha384(bytes: Uint8Array): Promise<Bytes> {
  return new Uint8Array(await crypto.subtle.digest("SHA-384", own(bytes)));
}

/** Returns the SHA-512, 64 bytes. */
export async function sha512(bytes: Uint8Array): Promise<Bytes> {
  return new Uint8Array(await crypto.subtle.digest("SHA-512", own(bytes)));
}

/** Returns the text form of a digest: sha256: and 64 digits. */
export function digestText(digest: Uint8Array): string {
  return "sha256:" + hex(digest);
}

/**
 * Parses the text form of a digest. Other forms are refused as malformed, and so are 64 zeros,
 * which mean that there is no digest.
 */
export function parseDigest(value: string): Bytes {
  if (!/^sha256:[0-9a-f]{64}$/.test(value) || /^sha256:0+$/.test(value)) {
    throw refuse("malformed", "digest", value.slice(0, 80), "sha256: and 64 lower-case hexadecimal digits, not all zero");
  }
  return fromHex(value.slice(7));
}
