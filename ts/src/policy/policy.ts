/**
 * The newest approved policy of a history, and what follows from it for the certificates and
 * evidence of units (docs/spec/policy.md, section 8; docs/spec/group.md). Only a History (history.ts)
 * makes a Policy.
 */

import type { Result } from "../evidence/evidence.js";
import { refuse } from "../refusal.js";
import { type Custody, type Digest, type Document, type Release, type Task, zeroDigest } from "./document.js";
import type { GroupState } from "./group.js";

export type * from "./document.js";
export { zeroDigest };
export type { ApprovalStatus, GroupState, Roster, RosterMember, RosterParty, RosterRole, SignedStatement } from "./group.js";
export { approvalStatus, approvedRoot, approvedUntil, consents, groupRoots, inForce } from "./group.js";

/** The newest policy that the owners approved, and the history that led to it. It is immutable. */
export interface Policy extends Document {
  /** The pinned digest of the first policy. */
  genesis: Digest;
  /** `created` of the first policy: root certificates are valid from then on. Milliseconds since 1970. */
  founded: number;
  /** The head of the history. */
  head: Digest;
  /** The heads after each step, oldest first. */
  heads: readonly Digest[];
  /** The number of steps. */
  steps: number;
  /** The state of each group of the policy, by name. */
  groupStates: ReadonlyMap<string, GroupState>;
}

/** The fields of a unit's certificate that cutOff checks. */
export interface Facts {
  /** Of the unit's program; `""` in a shared leaf of a role. */
  task: string;
  /** In a group: the member's. */
  release: string;
  /** Of the release, or of the group. */
  identity: Digest;
  /** `""` outside groups. */
  group: string;
  /** In a group. */
  role: string;
  /** In a group: the digest of the SSH key of the member's party, or zeroDigest. */
  party: Digest;
  /** In a group: SHA-256 of the group root's SubjectPublicKeyInfo, or zeroDigest. */
  root: Digest;
  /** The unit's id, 32 digits. */
  unit: string;
  platform: string;
  /** As results of appraisal name it. */
  chip: string;
  /** Under which the leaf was issued; of a shared leaf the cut that it names. */
  head: Digest;
  /** All units of the identity, or of the role, have the leaf. */
  shared: boolean;
}

/**
 * Refuses the certificate of a unit that the policy cuts off, whatever its remaining validity
 * (docs/spec/policy.md, section 8): `cut-off`, `behind` for a shared leaf that names a cut which the
 * history does not have; in a group also `withdrawn`, `quorum`, `expired`, `party`.
 */
export function cutOff(_policy: Policy, _facts: Facts, _at: number): void {
  throw refuse("internal", "not built", "", "");
}

/**
 * Returns the head after the last step that may have cut off a unit of an identity, or zeroDigest.
 * The identity is that of a release, with role `""`, or of a group; there `""` is any role.
 */
export function lastCut(_policy: Policy, _identity: Digest, _role: string): Digest {
  throw refuse("internal", "not built", "", "");
}

/** Returns the head after the last step that may have cut off a unit of a release which continues the release of an identity, or zeroDigest. */
export function lastCutOfHeirs(_policy: Policy, _identity: Digest): Digest {
  throw refuse("internal", "not built", "", "");
}

/** Returns the place of a head in `heads`, -1 for zeroDigest, undefined for a head that the history does not have. */
export function indexOfHead(_policy: Policy, _head: Digest): number | undefined {
  throw refuse("internal", "not built", "", "");
}

/** Reports whether a head is zeroDigest or the head after one of the steps. */
export function knowsHead(policy: Policy, head: Digest): boolean {
  return indexOfHead(policy, head) !== undefined;
}

/** Returns the state of the group with an identity, those that groups continue included. */
export function groupById(_policy: Policy, _id: Digest): GroupState | undefined {
  throw refuse("internal", "not built", "", "");
}

/** Lists the hosts of requests to a task, or to a group where it is not `""`: its name, and the DNS names that the policy gives it. */
export function hosts(_policy: Document, _task: string, _group: string): string[] {
  throw refuse("internal", "not built", "", "");
}

/** Reports whether an authority (host, or host:port) names one of the hosts. */
export function serves(_policy: Document, _task: string, _group: string, _authority: string): boolean {
  throw refuse("internal", "not built", "", "");
}

/** A release that admits an attestation result, and its task. */
export interface Grant {
  task: Task;
  release: Release;
}

/**
 * Matches an attestation result with the releases of a task: `not-found`, `measurement`,
 * `device-missing`.
 */
export function admit(_policy: Document, _task: string, _result: Result): Grant {
  throw refuse("internal", "not built", "", "");
}

/**
 * Matches an attestation result with the members of a role, of the party with a key (a digest), at a
 * time: as admit, and `role`, `party`, `quorum`, `expired`, `withdrawn`.
 */
export function admitMember(_policy: Policy, _group: string, _role: string, _result: Result, _party: Digest, _at: number): Grant {
  throw refuse("internal", "not built", "", "");
}

/** Matches an attestation result with the authority's reference values (`measurement`) and machines (`wrong-chip`). */
export function admitAuthority(_custody: Custody, _result: Result): void {
  throw refuse("internal", "not built", "", "");
}
