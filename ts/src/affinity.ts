/**
 * Affinity (docs/spec/channel.md, section 6): requests with one key reach one unit, whose caches they
 * find warm. A key is a hint, on which no decision of trust depends. It is loaded where a request has one.
 */

import { base64url, compare, fromHex, own, utf8 } from "./bytes.js";
import { frame, hash } from "./frame.js";


/**
 * Returns the key for a name under a secret of 32 bytes: 16 bytes of HMAC-SHA-256 in base64url. A gateway
 * learns that two keys of one client are the same, and not what was named.
 */
export async function blind(secret: Uint8Array, name: string): Promise<string> {
  const key = await crypto.subtle.importKey("raw", own(secret), { name: "HMAC", hash: "SHA-256" }, false, ["sign"]);
  return base64url(new Uint8Array(await crypto.subtle.sign("HMAC", key, frame("cohort affinity key v1", utf8(name))), 0, 16));
}

/** Returns ids of units, 32 digits each, in the order of a key: by descending score, then by ascending id. */
export async function order(key: string, units: readonly string[]): Promise<string[]> {
  const scored = await Promise.all(
    units.map(async (unit) => {
      const id = fromHex(unit);
      return { unit, id, score: (await hash("cohort affinity v1", utf8(key), id)).subarray(0, 8) };
    }),
  );
  return scored.sort((a, b) => compare(b.score, a.score) || compare(a.id, b.id)).map(({ unit }) => unit);
}
