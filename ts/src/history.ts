/**
 * Policy histories (docs/spec/policy.md, sections 3 to 5; docs/spec/trust.md, section 3). A history
 * begins with a pin, the digest of the first policy, and each step is signed by a quorum of the
 * owners of the policy before it, or is a statement of a party of a group. That its head is the
 * newest follows from a proof by the authority (head.ts), not from the history.
 */

import { type Bytes, digestText, equal, fromBase64, sha256, text, utf8 } from "./bytes.js";
import { frame, hash, unframe } from "./frame.js";
import { type Digest, digestBytes, zeroDigest } from "./policy/digest.js";
import { type Document, maxHistory, type Owners, parseDocument } from "./policy/document.js";
import { isStatement, noRecords } from "./policy/group.js";
import { knowsHead, noCuts, type Policy } from "./policy/policy.js";
import { verifySshSignature } from "./policy/sshsig.js";
import { refuse } from "./refusal.js";

/** One step: a policy file with its owners' signatures, or a party's statement with one. Unchecked. */
export interface Step {
  policy: Uint8Array;
  /** Armored SSH signatures, at most 8,192 bytes each. */
  signatures: readonly string[];
}

/** Reads the member `entries` of a history page: an array of `{policy: base64, signatures: [text]}`, or null for none. Other forms are refused as `malformed`. */
export function parseSteps(entries: unknown): Step[] {
  if (entries === null || entries === undefined) return [];
  const malformed = () => refuse("malformed", "policy history: entries", "other JSON", "a list of {policy, signatures}");
  if (!Array.isArray(entries)) throw malformed();
  if (entries.length > maxHistory) throw refuse("too-large", "policy history: steps", entries.length, maxHistory);
  return entries.map((entry: unknown) => {
    const { policy, signatures } = (typeof entry === "object" && entry !== null ? entry : {}) as Record<string, unknown>;
    if (typeof policy !== "string" || !Array.isArray(signatures) || !signatures.every((s) => typeof s === "string")) throw malformed();
    return { policy: fromBase64(policy), signatures: signatures as string[] };
  });
}

/** A verified policy history. It is immutable. */
export class History {
  private constructor(
    /** The pinned digest of the first policy. */
    readonly genesis: Digest,
    /** All steps, oldest first. */
    readonly steps: readonly Step[],
    private readonly newest: Policy | undefined,
  ) {}

  /** Begins an empty history at a pin. */
  static begin(genesis: Digest): History {
    return new History(genesis, [], undefined);
  }

  /**
   * Verifies further steps and returns the history with them: `genesis`, `sequence`, `quorum`,
   * `not-owner`, `signature`, `policy`, `trust-domain`, `too-large`, and for statements the reasons of
   * docs/spec/group.md.
   */
  async extend(steps: readonly Step[]): Promise<History> {
    const all = [...this.steps, ...steps];
    if (all.length === 0 || all.length > maxHistory) throw refuse("too-large", "policy history: steps", all.length, `1 to ${maxHistory}`);
    return new History(this.genesis, all, await replay(this.genesis, this.newest, steps, true));
  }

  /** The number of steps. */
  get length(): number {
    return this.steps.length;
  }

  /** The newest policy. An empty history has none: refused as `policy`. */
  get policy(): Policy {
    if (this.newest === undefined) throw refuse("policy", "approved policy", "an empty history", "a history from the pinned genesis");
    return this.newest;
  }

  /** The head after the last step; zeroDigest of an empty history. */
  get head(): Digest {
    return this.newest?.head ?? zeroDigest;
  }

  /** Reports whether a head is zeroDigest or the head after one of the steps. An empty history knows none. */
  knows(head: Digest): boolean {
    return this.newest !== undefined && knowsHead(this.newest, head);
  }

  /** Returns the policy as it was after the step of a head, or undefined for other heads. It verifies no signature again. */
  async at(head: Digest): Promise<Policy | undefined> {
    const index = this.newest?.heads.indexOf(head) ?? -1;
    if (index < 0) return undefined;
    return replay(this.genesis, undefined, this.steps.slice(0, index + 1), false);
  }

  /** Returns the policies after each step that follows a head, oldest first; nothing for a head that the history does not have. It verifies no signature again. */
  async *since(head: Digest): AsyncGenerator<Policy> {
    let policy = await this.at(head);
    if (policy === undefined) return;
    for (const step of this.steps.slice(policy.steps)) {
      policy = await replay(this.genesis, policy, [step], false);
      yield policy;
    }
  }

  /** Encodes the history for storage. */
  toBytes(): Bytes {
    return frame(label, ...this.steps.map((s) => frame(stepLabel, s.policy, ...s.signatures.map(utf8))));
  }

  /** Reads a stored history and verifies it as extend does. */
  static async fromBytes(genesis: Digest, bytes: Uint8Array): Promise<History> {
    const steps = unframe(label, bytes).map((field): Step => {
      const [policy, ...signatures] = unframe(stepLabel, field);
      if (policy === undefined) throw refuse("malformed", "stored history: step", "no field", "a policy and its signatures");
      return { policy, signatures: signatures.map(text) };
    });
    return steps.length === 0 ? History.begin(genesis) : History.begin(genesis).extend(steps);
  }
}

const label = "cohort stored history v1";
const stepLabel = "cohort stored step v1";

/** Returns the policy after steps that follow one. Without `verifies` their signatures were verified before. */
async function replay(genesis: Digest, from: Policy | undefined, steps: readonly Step[], verifies: boolean): Promise<Policy> {
  let policy = from;
  const heads = [...(from?.heads ?? [])];
  for (const step of steps) {
    // All steps of one replay share the list of heads, so that a long history is not copied at each.
    const next: Policy = await (policy === undefined ? firstPolicy(genesis, step, verifies) : isStatement(step.policy) ? afterStatement(policy, step, verifies) : nextPolicy(policy, step, verifies));
    next.head = digestText(await hash("cohort history v1", digestBytes(policy?.head ?? zeroDigest), await sha256(step.policy)));
    heads.push(next.head);
    next.heads = heads;
    next.steps = heads.length;
    policy = next;
  }
  return policy!;
}

/** Loads what steps after the first and groups need. */
const loadSteps = () => import("./policy/steps.js");

/** Approves the first policy: its digest is the pin, and a quorum of its own owners signed it. */
async function firstPolicy(genesis: Digest, step: Step, verifies: boolean): Promise<Policy> {
  const digest = digestText(await sha256(step.policy));
  if (digest !== genesis) throw refuse("genesis", "genesis: digest of the first policy", digest, genesis);
  const d = await parseDocument(step.policy);
  if (d.sequence !== 1) throw refuse("sequence", "genesis: sequence", d.sequence, 1);
  if (verifies) await checkQuorum(d.owners, step);
  return { ...d, genesis, founded: d.created, ...emptyChain, groupStates: d.groups.size === 0 ? new Map() : await (await loadSteps()).nextGroups(new Map(), d, genesis), records: noRecords, cuts: noCuts };
}

/** The chain of a policy before its step is appended. */
const emptyChain = { head: zeroDigest, heads: [] as readonly Digest[], steps: 0 };

/** Approves a policy that follows: a quorum of the owners of the one before signed it. Signatures are verified before the file is parsed. */
async function nextPolicy(now: Policy, step: Step, verifies: boolean): Promise<Policy> {
  if (verifies) await checkQuorum(now.owners, step);
  const d = await parseDocument(step.policy, now.genesis);
  checkSuccessor(now, d);
  const { assign, checkStepRoom, cutsByPolicy, nextGroups } = await loadSteps();
  checkStepRoom(now.steps, now.records, 1);
  const { records, groups } = assign(now.records, now.steps, await nextGroups(now.groupStates, d, now.genesis));
  const cuts = cutsByPolicy(now.cuts, now.steps, now, d, now.groupStates, groups);
  return { ...d, genesis: now.genesis, founded: now.founded, ...emptyChain, groupStates: groups, records, cuts };
}

async function afterStatement(now: Policy, step: Step, verifies: boolean): Promise<Policy> {
  const place = { document: now, genesis: now.genesis, groups: now.groupStates, records: now.records, steps: now.steps };
  const { addStatement, cutsByStatement } = await loadSteps();
  const { records, groups } = await addStatement(place, step.policy, step.signatures, verifies);
  return { ...now, groupStates: groups, records, cuts: cutsByStatement(now.cuts, now.steps, now.groupStates, groups) };
}

/** Checks that a policy may follow another. */
function checkSuccessor(now: Document, next: Document): void {
  if (next.trustDomain !== now.trustDomain) throw refuse("trust-domain", "next policy: trust domain", next.trustDomain, now.trustDomain);
  if (next.sequence !== now.sequence + 1) throw refuse("sequence", "next policy: sequence", next.sequence, now.sequence + 1);
  if (next.previous !== now.digest) throw refuse("sequence", "next policy: previous", next.previous, now.digest);
  if (next.created < now.created) throw refuse("policy", "next policy: created", new Date(next.created).toISOString(), `not before ${new Date(now.created).toISOString()}`);
  // A root that was once in a development TEE is never one of hardware.
  if (next.development !== now.development) throw refuse("policy", "next policy: development", next.development, now.development);
}

/** Verifies the signatures of a step: each is by an owner, and as many distinct owners signed as the quorum requires. */
async function checkQuorum(owners: Owners, step: Step): Promise<void> {
  if (step.policy.length > 256 << 10) throw refuse("too-large", "policy: size in bytes", step.policy.length, 256 << 10);
  if (step.signatures.length > owners.keys.length) throw refuse("too-large", "policy: number of signatures", step.signatures.length, `one for each of ${owners.keys.length} owners`);
  const signed = new Set<string>();
  for (const signature of step.signatures) {
    const key = await verifySshSignature(signature, "cohort-policy", step.policy);
    const owner = owners.keys.find((o) => equal(o.key.blob, key.blob));
    if (owner === undefined) throw refuse("not-owner", "signature: key", key.type, `a key of ${owners.keys.map((o) => o.name).join(", ")}`);
    signed.add(owner.name);
  }
  if (signed.size < owners.quorum) {
    const missing = owners.keys.map((o) => o.name).filter((name) => !signed.has(name));
    throw refuse("quorum", "policy: owners who signed", `${signed.size} of ${owners.quorum} (${[...signed].join(", ")})`, `${owners.quorum - signed.size} more of ${missing.join(", ")}`);
  }
}
