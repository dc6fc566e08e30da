/** Records of receipts: what a client keeps of a request and its response (docs/spec/channel.md, section 5). */

import { base64, fromBase64 } from "../bytes.js";
import { refuse } from "../refusal.js";

/** Proves to any verifier, offline, which unit made a response: the plaintexts as they were sealed, and the unit's receipt. */
export interface Record {
  request: Uint8Array;
  response: Uint8Array;
  receipt: Uint8Array;
}

/** Encodes a record as JSON, which `cohort verify --receipt` reads. */
export function encodeRecord(record: Record): string {
  const { request, response, receipt } = record;
  return JSON.stringify({ request: base64(request), response: base64(response), receipt: base64(receipt) });
}

/** Reads a record as encodeRecord writes it. */
export function parseRecord(json: string): Record {
  let value: unknown;
  try {
    value = JSON.parse(json);
  } catch (e) {
    throw refuse("malformed", "record: JSON", e, "request, response and receipt in base64");
  }
  const member = (of: string): Uint8Array => {
    const text = typeof value === "object" && value !== null && Object.hasOwn(value, of) ? (value as { [k: string]: unknown })[of] : undefined;
    if (typeof text !== "string") throw refuse("malformed", "record: " + of, typeof text, "base64");
    return fromBase64(text);
  };
  return { request: member("request"), response: member("response"), receipt: member("receipt") };
}
