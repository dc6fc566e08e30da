/**
 * Proved policy heads (docs/spec/head.md, section 1): an authority's signature over the head of the
 * policy history. A history is in force when the authority has signed its head.
 */

import { type Bytes, digestText, fromBase64url, fromU64, own } from "./bytes.js";
import { frame, unframe } from "./frame.js";
import { check } from "./identity.js";
import { type Digest, type Policy, zeroDigest } from "./policy/policy.js";
import { refuse } from "./refusal.js";
import { type Certificate, parseCertificate, verifySignature } from "./x509.js";

/** The largest proved head, in bytes. */
export const maxHead = 2048;

/** The most that two clocks may differ, in milliseconds. */
export const maxClockSkew = 5 * 60_000;

/** The most steps that a history has. */
const maxSteps = 10_000;

/** The longest spread, in milliseconds. */
const maxSpread = 24 * 3_600_000;

/** The first second of 2200. */
const lastSecond = Date.UTC(2200, 0) / 1000;

/** An authority's statement about its history at one time. */
export interface Head {
  /** The head of the history. */
  head: Digest;
  /** The number of its steps. */
  steps: number;
  /** The time of the signature by the authority's clock: milliseconds since 1970, whole seconds. */
  time: number;
  /** The time over which renewals after a step spread, in milliseconds. */
  spread: number;
}

/** A head that the authority has signed. Only {@link checkProvedHead} makes one. */
export interface ProvedHead extends Head {
  /** The encoding. */
  bytes: Uint8Array;
}

/** A statement with a signature by an authority's leaf. Nothing is verified. */
export interface LeafSigned {
  /** Names the statement in refusals. */
  of: string;
  /** The bytes that are signed. */
  message: Uint8Array;
  /** When it was signed, as it states: milliseconds since 1970. */
  time: number;
  leaf: Certificate;
  signature: Uint8Array;
}

/** Parses a proved head of at most 2,048 bytes in its one encoding: `too-large`, `malformed`. It verifies nothing. */
export function parseProvedHead(bytes: Uint8Array): Head & { signed: LeafSigned } {
  if (bytes.length > maxHead) throw refuse("too-large", "policy head: size in bytes", bytes.length, maxHead);
  const [head, steps, time, spread, leaf, signature] = unframe("cohort head v1", bytes, 6);
  const claim: Head = {
    head: fixedDigest("policy head: head", head!), steps: stepsOf("policy head: steps", steps!), time: timeOf("policy head: time", time!),
    spread: boundedNumber("policy head: spread", spread!, maxSpread),
  };
  if (claim.head === zeroDigest) throw refuse("malformed", "policy head: head", claim.head, "a head");
  const message = frame("cohort head v1", head!, steps!, time!, spread!);
  return { ...claim, signed: { of: "policy head", message, time: claim.time, leaf: parseCertificate(leaf!), signature: signature! } };
}

/**
 * Verifies a proved head under an approved policy, at a time of the caller's clock in milliseconds
 * since 1970. `authorityRoot` is the certificate of the root that the policy names. The reasons are
 * those of docs/spec/head.md: of parsing, `clock`, those of check, `signature`, and `behind` for a
 * head that differs from the policy's after as many steps.
 */
export async function checkProvedHead(bytes: Uint8Array, policy: Policy, authorityRoot: Certificate, at: number): Promise<ProvedHead> {
  const { signed, ...head } = parseProvedHead(bytes);
  await checkLeafSigned(signed, policy, authorityRoot, at);
  const known = policy.heads[head.steps - 1];
  if (known !== undefined && known !== head.head) throw refuse("behind", `policy head: after ${head.steps} steps`, head.head, known);
  return { ...head, bytes: bytes.slice() };
}

/** Returns the number of steps that an unverified head claims, or 0 for other bytes: heads that are not newer need no verification. */
export function unverifiedSteps(bytes: Uint8Array): number {
  try {
    return parseProvedHead(bytes).steps;
  } catch {
    return 0;
  }
}

/** Decodes a value of the HTTP field `Cohort-Head`: base64url without padding. The head in it is not verified. */
export function decodeHeadField(value: string): Bytes {
  if (value.length > Math.ceil((maxHead * 4) / 3)) throw refuse("too-large", "policy head: size of the field", value.length, Math.ceil((maxHead * 4) / 3));
  const bytes = fromBase64url(value);
  if (bytes.length === 0) throw refuse("malformed", "policy head: field", "nothing", "base64url without padding");
  return bytes;
}

/**
 * Verifies that a leaf of kind authority under the root that policy names made a signature, at a
 * time that agrees with the caller's clock: `clock`, the reasons of check, `signature`.
 */
export async function checkLeafSigned(signed: LeafSigned, policy: Policy, authorityRoot: Certificate, at: number): Promise<void> {
  const { of, leaf, time } = signed;
  const [from, until] = [leaf.notBefore.getTime(), leaf.notAfter.getTime()];
  // The nearest time within the leaf's validity: the clocks of two honest machines differ.
  const within = Math.min(Math.max(at, from), Math.max(from, until));
  if (Math.abs(within - at) > maxClockSkew || time - at > maxClockSkew || time < from || time > until) {
    throw refuse("clock", `${of}: time, and validity of its signer`, [time, from, until].map(iso).join(", "), `within 5 minutes of ${iso(at)}`);
  }
  await check([leaf], authorityRoot, { policy, kinds: ["authority"], use: "signing", at: within });
  if (!(await verifySignature(leaf.key, "ECDSA-SHA256", signed.message, signed.signature))) {
    throw refuse("signature", `${of}: signature`, `one that does not verify under ${leaf.subjectName}`, "the authority's signature");
  }
}

/** Reads a digest of 32 bytes that may be zero. */
export function fixedDigest(rule: string, bytes: Uint8Array): Digest {
  if (bytes.length !== 32) throw refuse("malformed", `${rule}: size in bytes`, bytes.length, 32);
  return digestText(bytes);
}

/** Reads a number of steps: 1 to 10,000 in 8 bytes. */
export function stepsOf(rule: string, bytes: Uint8Array): number {
  const steps = boundedNumber(rule, bytes, maxSteps);
  if (steps < 1) throw refuse("malformed", rule, steps, `1 to ${maxSteps}`);
  return steps;
}

/** Reads Unix seconds before 2200 in 8 bytes, and returns milliseconds. */
export function timeOf(rule: string, bytes: Uint8Array): number {
  return boundedNumber(rule, bytes, lastSecond) * 1000;
}

function boundedNumber(rule: string, bytes: Uint8Array, most: number): number {
  const value = fromU64(own(bytes));
  if (value > BigInt(most)) throw refuse("malformed", rule, value, `at most ${most}`);
  return Number(value);
}

function iso(time: number): string {
  return Number.isFinite(time) && Math.abs(time) <= 8.64e15 ? new Date(time).toISOString() : String(time);
}
