/**
 * Policy histories (docs/spec/policy.md, sections 3 to 5; docs/spec/trust.md, section 3). A history
 * begins with a pin, the digest of the first policy, and each step is signed by a quorum of the
 * owners of the policy before it, or is a statement of a party of a group. That its head is the
 * newest follows from a proof by the authority (head.ts), not from the history.
 */

import { refuse } from "./refusal.js";
import type { Digest, Policy } from "./policy/policy.js";

/** One step: a policy file with its owners' signatures, or a party's statement with one. Unchecked. */
export interface Step {
  policy: Uint8Array;
  /** Armored SSH signatures, at most 8,192 bytes each. */
  signatures: readonly string[];
}

/** Reads the member `entries` of a history page: an array of `{policy: base64, signatures: [text]}`. Other forms are refused as malformed. */
export function parseSteps(_entries: unknown): Step[] {
  throw refuse("internal", "not built", "", "");
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

  /** Verifies further steps and returns the history with them. */
  async extend(_steps: readonly Step[]): Promise<History> {
    throw refuse("internal", "not built", "", "");
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
    throw refuse("internal", "not built", "", "");
  }

  /** Reports whether a head is zeroDigest or the head after one of the steps. */
  knows(_head: Digest): boolean {
    throw refuse("internal", "not built", "", "");
  }

  /** Returns the policy as it was after the step of a head, or undefined for other heads. It verifies no signature again. */
  async at(_head: Digest): Promise<Policy | undefined> {
    throw refuse("internal", "not built", "", "");
  }

  /** Encodes the history for storage. */
  toBytes(): Uint8Array {
    throw refuse("internal", "not built", "", "");
  }

  /** Reads a stored history and verifies it as extend does. */
  static async fromBytes(_genesis: Digest, _bytes: Uint8Array): Promise<History> {
    throw refuse("internal", "not built", "", "");
  }
}
