/** The text form of digests (docs/spec/policy.md): `sha256:` and 64 lower-case hexadecimal digits. */

import { type Bytes, fromHex } from "../bytes.js";

/** A SHA-256 digest in text. */
export type Digest = string;

/** The digest of 32 zero bytes, which means that there is none. */
export const zeroDigest: Digest = "sha256:" + "0".repeat(64);

/** The form of a digest, for refusals. */
export const wantDigest = '"sha256:" and 64 lower-case hexadecimal digits';

/** Reports whether text is the text of a digest that is not zero. */
export function isDigest(value: string): boolean {
  return /^sha256:[0-9a-f]{64}$/.test(value) && value !== zeroDigest;
}

/** Returns the 32 bytes of a digest, zeroDigest included. */
export function digestBytes(digest: Digest): Bytes {
  return fromHex(digest.slice(7));
}
