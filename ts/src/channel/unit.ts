/**
 * What authenticates a unit to a client: pins, certificate chains in messages of units, signatures
 * and receipts (docs/spec/channel.md, sections 2 and 5).
 *
 * It trusts the approved policy and what checks chains under it. It refuses a unit that identity.md
 * refuses or that policy cuts off, a policy head that is not known, a time that differs by more than
 * 5 minutes from the client's, and each signature that does not have the lower s.
 */

import { digestText, fromU64, hex, parseDigest, utf8 } from "../bytes.js";
import { onlyElement, Tag, unsigned } from "../der.js";
import { frame, unframe } from "../frame.js";
import type { Result } from "../evidence/evidence.js";
import type { History } from "../history.js";
import { check, type Expect, liveIds, type Peer } from "../identity.js";
import { type Digest, type Facts, type Policy, indexOfHead, lastCut, lastCutOfHeirs, zeroDigest } from "../policy/policy.js";
import { refuse } from "../refusal.js";
import { type Certificate, parseCertificate, type PublicKey, verifySignature } from "../x509.js";

/** The largest difference between the clocks of two honest machines, in milliseconds. */
export const maxSkew = 5 * 60_000;

/** Largest certificate chain in bytes. */
export const maxChain = 16 << 10;

/** A session is at most this long, in seconds. */
const maxSession = 3600;

/** A certificate begins this long before it is made, in milliseconds. */
const windowLead = 60_000;

/**
 * The units that a client accepts: a release by identity id, all releases of a task, or the rosters
 * of a group, all roles or one. Exactly one of id, task and group is set; a group may have the id of
 * one roster beside it.
 */
export interface Pin {
  genesis: Digest;
  id?: Digest | undefined;
  task?: string | undefined;
  group?: string | undefined;
  role?: string | undefined;
}

const name = /^[a-z0-9-]{1,63}$/;

/** Refuses, with "request", a pin that does not name exactly one identity, task or group. */
export function checkPin(pin: Pin): void {
  const named = [pin.task, pin.group, pin.group ? undefined : pin.id].filter((v) => v).length;
  const formed =
    (!pin.task || name.test(pin.task)) && (!pin.group || name.test(pin.group)) && (!pin.role || (!!pin.group && name.test(pin.role)));
  if (named !== 1 || !formed || !pin.genesis || pin.genesis === zeroDigest) {
    throw refuse("request", "session: pin", JSON.stringify(pin), "a genesis, and an identity id, a task, or a group");
  }
}

/** Returns the encoding of a pin in messages. */
export function encodePin(pin: Pin): Uint8Array {
  const [kind, what] = pin.task
    ? ["task", utf8(pin.task)]
    : pin.role
      ? ["role", utf8(pin.group + "/" + pin.role)]
      : pin.group
        ? ["group", utf8(pin.group)]
        : ["id", parseDigest(pin.id!)];
  return frame("cohort pin v1", utf8(kind as string), what as Uint8Array, parseDigest(pin.genesis));
}

/** The units that have certain ring keys: of a release or role (strict), or of a task or whole group (follow). */
export interface RingHolders {
  /** Of the release, or of the group. */
  identity: Digest;
  /** In a group, for a strict key only; else `""`. */
  role: string;
  follow: boolean;
}

function follows(pin: Pin): boolean {
  return !!pin.task || (!!pin.group && !pin.role);
}

/** Returns the units that have the ring keys for sessions of the pin which a unit opens. */
export function holdersOf(pin: Pin, facts: Facts): RingHolders {
  return { identity: facts.identity, role: pin.role ?? "", follow: follows(pin) };
}

function ringCut(policy: Policy, of: RingHolders): Digest {
  if (!of.follow) return lastCut(policy, of.identity, of.role);
  const own = lastCut(policy, of.identity, "");
  const heirs = lastCutOfHeirs(policy, of.identity);
  return (indexOfHead(policy, heirs) ?? -1) > (indexOfHead(policy, own) ?? -1) ? heirs : own;
}

/** Reports whether a step after a head cut off a unit that may have the ring keys. */
export function ringCutSince(policy: Policy, of: RingHolders, head: Digest): boolean {
  const since = indexOfHead(policy, head);
  return since !== undefined && (indexOfHead(policy, ringCut(policy, of)) ?? -1) > since;
}

/** Returns the head after the last step that cut off a unit which may have ring keys of the pin's sessions, or zeroDigest. */
export function lastCutOf(pin: Pin, policy: Policy): Digest {
  let ids = pin.id ? [pin.id] : [];
  if (pin.task) ids = [...(policy.tasks.get(pin.task)?.releases.values() ?? [])].map((r) => r.id);
  if (pin.group) {
    ids = [];
    for (let state = policy.groupStates.get(pin.group); state; state = state.predecessor) ids.push(state.id);
  }
  let last = zeroDigest;
  for (const identity of ids) {
    const cut = ringCut(policy, { identity, role: pin.role ?? "", follow: follows(pin) });
    if ((indexOfHead(policy, cut) ?? -1) > (indexOfHead(policy, last) ?? -1)) last = cut;
  }
  return last;
}

/** A unit whose chain was checked. */
export type Unit = Peer & { facts: Facts };

/** What units are verified under. */
export interface UnitTrust {
  policy: Policy;
  history: History;
  /** Checks a chain in a unit's message against a pin, under a policy at a time in milliseconds: see checkUnitChain. */
  checkChain(chain: Uint8Array, pin: Pin, policy: Policy, at: number): Promise<Unit>;
  /** Appraises fresh evidence of a unit. Without it fresh evidence is refused. */
  appraise?: ((evidence: Uint8Array, reportData: Uint8Array, unit: Unit, at: number) => Promise<Result>) | undefined;
}

/** What chains are checked with, beside policy and pin. */
export interface ChainOptions {
  /** The certificate of the authority root that policy names. */
  root: Certificate;
  /** Digests of the SSH keys of the party that the caller trusts in a group. */
  approvers?: readonly Digest[] | undefined;
}

/**
 * Checks a chain in a unit's message, Frame("cohort chain v1", unit certificate, cross-certificate or
 * group root). It must be of a signing certificate of a unit that the pin covers: the reasons of
 * docs/spec/identity.md, section 6. A certificate that begins up to 4 minutes ahead is checked at its begin.
 */
export async function checkUnitChain(options: ChainOptions, bytes: Uint8Array, pin: Pin, policy: Policy, at: number): Promise<Unit> {
  const chain = unframe("cohort chain v1", bytes, 2).map((der) => {
    try {
      return parseCertificate(der);
    } catch (e) {
      throw refuse("chain", "chain: certificate", e, "DER", e);
    }
  });
  const begin = chain[0]!.notBefore.getTime();
  const earliest = begin + windowLead - maxSkew;
  if (at < earliest) {
    throw refuse("clock", "unit: begin of the certificate against this machine's time", isoTime(at), "after " + isoTime(earliest));
  }
  if (policy.genesis !== pin.genesis) throw refuse("genesis", "session: policy", policy.genesis, pin.genesis);
  const peer = await check(chain, options.root, { ...expectOf(pin, policy), policy, use: "signing", at: Math.max(at, begin), approvers: options.approvers ?? [] });
  if (!peer.facts || !peer.unit) throw refuse("kind", "unit: certificate", peer.kind, "one of a unit");
  return { ...peer, facts: peer.facts };
}

/** Returns what a pin requires of a unit under a policy. */
function expectOf(pin: Pin, policy: Policy): Pick<Expect, "kinds" | "ids" | "group" | "roles"> {
  if (!pin.group) return { kinds: ["unit"], ids: pin.task ? liveIds(policy, pin.task) : [pin.id!] };
  const state = policy.groupStates.get(pin.group);
  if (!state) throw refuse("not-found", "session: group", pin.group, "a group of the policy");
  const roles = pin.role ? [pin.role] : [...state.group.roles.keys()];
  return { kinds: ["group"], group: pin.group, roles, ...(pin.id ? { ids: [pin.id] } : {}) };
}

const order = 0xffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551n;

/** Verifies a unit's signature over the framing of fields. Any other, and one with the higher s, is refused ("signature"). */
export async function verifyFields(key: PublicKey, signature: Uint8Array, label: string, ...fields: Uint8Array[]): Promise<void> {
  if (key.kind !== "P-256" || !(await verifySignature(key, "ECDSA-SHA256", frame(label, ...fields), signature))) {
    throw refuse("signature", label, `${signature.length} bytes that do not verify`, "a signature of the unit");
  }
  const pair = onlyElement(signature, Tag.Sequence);
  pair.read(Tag.Integer);
  if (unsigned(pair.read(Tag.Integer).content) > order / 2n) {
    throw refuse("signature", label, "a high s", "the lower s of the two (r, s) and (r, n-s)");
  }
}

/** Refuses, with "clock", a unit's time that differs by more than 5 minutes from the client's. Both in milliseconds. */
export function checkSkew(unit: number, now: number): void {
  if (Math.abs(unit - now) > maxSkew) {
    throw refuse("clock", "unit: time", isoTime(unit), "within 5 minutes of this machine's, " + isoTime(now));
  }
}

/** Returns a time in milliseconds as text, whatever number it is. */
export function isoTime(at: number): string {
  return Math.abs(at) <= 8.64e15 ? new Date(at).toISOString() : `${at} ms`;
}

/** Reads the time of a unit: Unix milliseconds, 8 bytes. */
export function parseTime(bytes: Uint8Array): number {
  const at = fromU64(bytes);
  if (at >= 1n << 63n) throw refuse("malformed", "unit: time in milliseconds", at, "below 2^63");
  return Number(at);
}

/** What a unit claims of itself in a message, unverified. */
export interface SignerClaims {
  head: Uint8Array;
  unit?: Uint8Array;
  identity: Uint8Array;
  expiry: Uint8Array;
}

/** Verifies the chain of a unit against a pin, and its claims against trust and chain. */
export async function checkSigner(trust: UnitTrust, chain: Uint8Array, pin: Pin, claims: SignerClaims, at: number): Promise<Unit> {
  const head = digestText(claims.head);
  if (head === zeroDigest) throw refuse("malformed", "unit: policy head", head, "a head that is not zero");
  checkKnown(trust.policy, head, "unit: policy head");
  const unit = await trust.checkChain(chain, pin, trust.policy, at);
  if (claims.unit && hex(claims.unit) !== unit.unit) throw refuse("identity", "unit: id beside the chain", hex(claims.unit), unit.unit);
  const identity = digestText(claims.identity);
  if (identity !== unit.facts.identity) {
    throw refuse("identity", "unit: identity", identity, `${unit.facts.identity}, of the certificate of ${unit.unit}`);
  }
  const expires = Number(fromU64(claims.expiry));
  const now = Math.floor(at / 1000);
  if (expires <= now || expires > now + maxSession + maxSkew / 1000 || expires > Math.floor(unit.notAfter / 1000)) {
    throw refuse("expired", "unit: expiry", expires, `after ${now}, within an hour and the unit's certificate`);
  }
  return unit;
}

function checkKnown(policy: Policy, head: Digest, rule: string): void {
  if (indexOfHead(policy, head) === undefined) throw refuse("behind", rule, head, "a head of the known history");
}
