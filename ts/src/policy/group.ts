/** Groups: rosters, statements of parties, agreement and succession (docs/spec/group.md). */

import { refuse } from "../refusal.js";
import type { Digest, Group, KeyMode, Member } from "./document.js";

/** A party of a roster and the SHA-256 of its SSH key. */
export interface RosterParty {
  name: string;
  key: Digest;
}

/** A member of a role, and the identity of its release. */
export interface RosterMember extends Member {
  identity: Digest;
}

/** A role of a roster. */
export interface RosterRole {
  name: string;
  calls: readonly string[];
  members: readonly RosterMember[];
}

/** Everything that the parties of a group approve. Its SHA-256 is the group's identity. */
export interface Roster {
  trustDomain: string;
  /** Digest of the authority root's SubjectPublicKeyInfo. */
  root: Digest;
  genesis: Digest;
  group: string;
  quorum: number;
  keyMode: KeyMode;
  /** Milliseconds since 1970, whole seconds. */
  until: number;
  floors: string;
  authority: string;
  parties: readonly RosterParty[];
  roles: readonly RosterRole[];
}

/** A statement and the signature of its party. */
export interface SignedStatement {
  statement: Uint8Array;
  signature: string;
}

/** The state of a group in a history. It is immutable. */
export interface GroupState {
  /** Of the policy that introduced the roster. */
  group: Group;
  roster: Roster;
  /** The group's identity. */
  id: Digest;
  /** The group whose units continue meanwhile (key `continues`). */
  predecessor: GroupState | undefined;
}

/** The parties that approve a roster under one root at a time. */
export interface ApprovalStatus {
  approved: string[];
  missing: string[];
  quorum: number;
  /** When the quorum ends without further statements, milliseconds since 1970; undefined without a quorum. */
  ends: number | undefined;
  /** The same for the roster agreed on before under the group's name, where there is one. */
  former: ApprovalStatus | undefined;
}

/** Evaluates the parties' statements for a group root at a time. */
export function approvalStatus(_state: GroupState, _root: Digest, _at: number): ApprovalStatus {
  throw refuse("internal", "not built", "", "");
}

/** Returns the end of the parties' approval of a group root: `quorum`, `withdrawn`, `expired`. */
export function approvedUntil(_state: GroupState, _root: Digest, _at: number): number {
  throw refuse("internal", "not built", "", "");
}

/** Returns the end of one party's own approval of a group root: `party`, `withdrawn`, `quorum`, `expired`. */
export function consents(_state: GroupState, _root: Digest, _party: Digest, _at: number): number {
  throw refuse("internal", "not built", "", "");
}

/** Returns the group roots that a quorum of the parties approves at a time, in order. */
export function groupRoots(_state: GroupState, _at: number): Digest[] {
  throw refuse("internal", "not built", "", "");
}

/** Returns the first root that the parties approve at a time, else the root of one approval, else zeroDigest. */
export function approvedRoot(_state: GroupState, _at: number): Digest {
  throw refuse("internal", "not built", "", "");
}

/** Returns the state if its parties approve it, else its predecessor if its parties approve that; refuses as approvedUntil. */
export function inForce(_state: GroupState, _at: number): GroupState {
  throw refuse("internal", "not built", "", "");
}
