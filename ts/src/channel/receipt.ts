/**
 * Receipts for responses (docs/spec/channel.md, section 5), and their verification. It is
 * loaded where a program wants one.
 */

import { digestText, equal, fromU64, hex, sha256 } from "../bytes.js";
import { unframe } from "../frame.js";
import { isStatement } from "../policy/group.js";
import { cutOff, type Digest, indexOfHead, zeroDigest } from "../policy/policy.js";
import { Refusal, refuse } from "../refusal.js";
import type { Record } from "./record.js";
import { checkSkew, isoTime, maxChain, parseTime, type Pin, type Unit, type UnitTrust, verifyFields } from "./unit.js";

/** Largest receipt in bytes. */
const maxReceipt = maxChain + 1024;

/** A receipt that was verified. */
export interface Receipt {
  /** Session id in hexadecimal, and the number of the request in it. */
  session: string;
  number: number;
  unit: Unit;
  /** On the unit's clock at the end of the response, in milliseconds. */
  at: number;
  /** Policy head that the unit had got to. */
  head: Digest;
  /** The first later step that cuts the unit off; undefined: none is known. A party's statement has no time. */
  later: { head: Digest; statement: boolean; sequence: number; created: number; cause: Refusal } | undefined;
}

/**
 * Verifies a record at the time of its response, under the policy at the receipt's head and each later
 * one. Reasons: malformed, too-large, behind, those of identity.md, signature, clock, digest,
 * identity, and cut-off where a later policy cuts the unit off and the receipt is not older than it.
 */
export async function verifyReceipt(record: Record, trust: UnitTrust, pin: Pin, at: number): Promise<Receipt> {
  if (record.receipt.length > maxReceipt) throw refuse("too-large", "receipt: size in bytes", record.receipt.length, maxReceipt);
  const fields = unframe("cohort receipt v1", record.receipt, 9);
  const [session, number, request, response, unitId, time, headBytes, chain, signature] = fields as Tuple9;
  if (session.length !== 24 || number.length !== 8 || time.length !== 8 || headBytes.length !== 32) {
    throw refuse("malformed", "receipt: sizes", [session, number, time, headBytes].map((f) => f.length), "24, 8, 8 and 32 bytes");
  }
  const made = parseTime(time);
  const head = digestText(headBytes);
  const then = head === zeroDigest ? undefined : await trust.history.at(head);
  if (!then) throw refuse("behind", "receipt: policy head", head, "a head of the known history");
  const unit = await trust.checkChain(chain, pin, then, made);
  await verifyFields(unit.key, signature, "cohort receipt v1", ...fields.slice(0, 7));
  checkSkew(made, at);
  if (!equal(request, await sha256(record.request)) || !equal(response, await sha256(record.response))) {
    throw refuse("digest", "receipt: SHA-256 of request and response", "others", `${hex(request)} and ${hex(response)}, as the unit signed`);
  }
  if (hex(unitId) !== unit.unit) throw refuse("identity", "receipt: unit", hex(unitId), unit.unit);
  const later = await cutLater(trust, head, unit, made);
  return { session: hex(session), number: Number(fromU64(number)), unit, at: made, head, later };
}

type B = Uint8Array;
type Tuple9 = [B, B, B, B, B, B, B, B, B];

/** Returns the first step after a head that cuts the signer of a receipt off. */
async function cutLater(trust: UnitTrust, head: Digest, unit: Unit, made: number): Promise<Receipt["later"]> {
  let first: Receipt["later"];
  for (const next of trust.policy.heads.slice(indexOfHead(trust.policy, head)! + 1)) {
    const then = (await trust.history.at(next))!;
    try {
      cutOff(then, unit.facts, made);
    } catch (cause) {
      if (!(cause instanceof Refusal)) throw cause;
      const statement = isStatement(trust.history.steps[then.steps - 1]!.policy);
      if (!statement && made >= then.created) {
        throw refuse(cause.reason, "receipt: time", isoTime(made), `before policy ${then.sequence} of ${isoTime(then.created)}, which cuts the unit off`, cause);
      }
      first ??= { head: next, statement, sequence: then.sequence, created: then.created, cause };
    }
  }
  return first;
}
