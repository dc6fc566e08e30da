/**
 * Groups in a history: which statements count, and when the parties agree on a roster
 * (docs/spec/group.md, Statements and Agreement). steps.ts makes their states.
 */

import { compare, equal, utf8 } from "../bytes.js";
import { refuse } from "../refusal.js";
import { type Digest, digestBytes, zeroDigest } from "./digest.js";
import type { Group } from "./document.js";
import type { Roster, RosterMember, SignedStatement, VerifiedStatement } from "./roster.js";
import type { TomlTable } from "./toml.js";

export type { Roster, RosterMember, RosterParty, RosterRole, SignedStatement } from "./roster.js";

/** The newest statement about a group of each key, by the key's digest. */
type Newest = ReadonlyMap<Digest, VerifiedStatement>;

/** The roster that was agreed on last under a group's name, and the step since which it is. */
interface ApprovedRoster {
  roster: Roster;
  id: Digest;
  since: number;
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
  /** The policy's demands on the members when the roster was introduced. */
  floors: TomlTable;
  newest: Newest;
  /** The roster agreed on last under the name, unless it is this one. */
  former: ApprovedRoster | undefined;
  /** It was agreed on before `former`. */
  succeeded: boolean;
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

/** Reports whether a statement withdraws, or counts as if it did. */
export function withdrawn(s: VerifiedStatement): boolean {
  return s.withdraws || s.other !== undefined;
}

/** Reports whether a statement approves a root, or any where none is given, whatever the time. */
export function approves(s: VerifiedStatement | undefined, root?: Digest): s is VerifiedStatement {
  return s !== undefined && !withdrawn(s) && (root === undefined || s.groupRoot === root);
}

/** Evaluates the parties' statements for a group root at a time. */
export function approvalStatus(state: GroupState, root: Digest, at: number): ApprovalStatus {
  const status = statusOf(state.roster, state.newest, root, 0, at);
  if (state.former === undefined) return status;
  const former = statusOf(state.former.roster, state.newest, root, state.former.since, at);
  const ends = status.ends === undefined || former.ends === undefined ? undefined : Math.min(status.ends, former.ends);
  return { ...status, ends, former };
}

/** Evaluates the newest statement of each party of a roster, except those of steps before `since`. */
function statusOf(r: Roster, newest: Newest, root: Digest, since: number, at: number): ApprovalStatus {
  const status: ApprovalStatus = { approved: [], missing: [], quorum: r.quorum, ends: undefined, former: undefined };
  const ends: number[] = [];
  for (const p of r.parties) {
    const s = newest.get(p.key);
    if (approves(s, root) && s.step >= since && at < s.notAfter) {
      status.approved.push(p.name);
      ends.push(s.notAfter);
    } else {
      status.missing.push(p.name);
    }
  }
  status.ends = ends.sort((a, b) => b - a)[r.quorum - 1];
  return status;
}

/** Returns the end of the parties' approval of a group root: `quorum`, `withdrawn`, `expired`. */
export function approvedUntil(state: GroupState, root: Digest, at: number): number {
  const { roster } = state, rule = `group ${roster.group}`;
  if (at >= roster.until) throw refuse("expired", `${rule}: time`, new Date(at).toISOString(), `before its end ${new Date(roster.until).toISOString()}`);
  const status = approvalStatus(state, root, at);
  if (status.ends !== undefined) return status.ends;
  if (state.succeeded) throw refuse("withdrawn", `${rule}: identity`, state.id, `that of the roster that succeeded it, ${state.former?.id}`);
  const short = status.approved.length < status.quorum ? status : status.former ?? status;
  const what = short === status ? "parties that approve" : "parties of the roster agreed on before that approve";
  throw refuse("quorum", `${rule}: ${what}`, `${short.approved.length} of ${short.quorum} (${short.approved.join(", ")})`, `also any of ${short.missing.join(", ")}`);
}

/** Returns the end of one party's own approval of a group root: `party`, `withdrawn`, `quorum`, `expired`. A quorum of others does not replace it. */
export function consents(state: GroupState, root: Digest, party: Digest, at: number): number {
  const { roster } = state;
  const name = roster.parties.find((p) => p.key === party)?.name;
  if (name === undefined) throw refuse("party", `group ${roster.group}: key of the unit's party`, party, "that of a party of the roster");
  const rule = `group ${roster.group}: approval of party ${name}`;
  const s = state.newest.get(party);
  if (s === undefined) throw refuse("quorum", rule, "no statement of the party", `of group root ${root}`);
  if (withdrawn(s)) throw refuse("withdrawn", rule, `withdrawn by statement ${s.number}`, "an approval with a higher number");
  if (s.groupRoot !== root) throw refuse("quorum", rule, `of group root ${s.groupRoot}`, `of group root ${root}`);
  if (at >= s.notAfter) throw refuse("expired", rule, new Date(at).toISOString(), `before its end ${new Date(s.notAfter).toISOString()}`);
  return s.notAfter;
}

/**
 * Refuses, as `party`, a roster in which no party has one of the keys, and a group root that a party
 * with one of the keys does not approve. Without keys it refuses nothing.
 */
export function checkApprovers(state: GroupState, root: Digest, keys: readonly Digest[], at: number): void {
  const trusted = state.roster.parties.filter((party) => keys.includes(party.key));
  for (const party of trusted) consents(state, root, party.key, at);
  if (keys.length > 0 && trusted.length === 0) {
    throw refuse("party", `group ${state.roster.group}: party that is trusted`, keys, "the key of a party of the roster");
  }
}

/** Returns the roots that a quorum of the parties of a roster approves, whatever the time, by statements of the step `since` and later. */
export function rootsOf(r: Roster, newest: Newest, since: number): Set<Digest> {
  const counts = new Map<Digest, number>();
  for (const p of r.parties) {
    const s = newest.get(p.key);
    if (approves(s) && s.step >= since) counts.set(s.groupRoot, (counts.get(s.groupRoot) ?? 0) + 1);
  }
  return new Set([...counts].filter(([, count]) => count >= r.quorum).map(([root]) => root));
}

/** Returns the group roots that a quorum of the parties approves at a time, in order. */
export function groupRoots(state: GroupState, at: number): Digest[] {
  return [...rootsOf(state.roster, state.newest, 0)].filter((root) => isApproved(state, root, at)).sort(byBytes);
}

function byBytes(a: Digest, b: Digest): number {
  return compare(digestBytes(a), digestBytes(b));
}

function isApproved(state: GroupState, root: Digest, at: number): boolean {
  return at < state.roster.until && approvalStatus(state, root, at).ends !== undefined;
}

/** Returns the first root that the parties approve at a time, else the root of one approval, else zeroDigest: approvedUntil refuses the last two. */
export function approvedRoot(state: GroupState, at: number): Digest {
  const others = [...state.newest.values()].filter((s) => approves(s)).map((s) => s.groupRoot).sort(byBytes);
  return groupRoots(state, at)[0] ?? others[0] ?? zeroDigest;
}

/** Returns the state if its parties approve it, else its predecessor if its parties approve that; refuses as approvedUntil. */
export function inForce(state: GroupState, at: number): GroupState {
  const { predecessor } = state;
  if (predecessor !== undefined && !isApproved(state, approvedRoot(state, at), at) && isApproved(predecessor, approvedRoot(predecessor, at), at)) return predecessor;
  approvedUntil(state, approvedRoot(state, at), at);
  return state;
}

/** Returns the newest statements of the parties, in the order of the parties, and both of a party that signed two with one number. */
export function signedStatements(state: GroupState): SignedStatement[] {
  return state.roster.parties.flatMap((p) => {
    const s = state.newest.get(p.key);
    return s === undefined ? [] : s.other === undefined ? [s.signed] : [s.signed, s.other];
  });
}

/** Returns the members of a role. */
export function membersOf(r: Roster, role: string): readonly RosterMember[] {
  return r.roles.find((x) => x.name === role)?.members ?? [];
}

/** Returns the digest of the key of a party, or undefined for an unknown name. */
export function keyOf(r: Roster, party: string): Digest | undefined {
  return r.parties.find((p) => p.name === party)?.key;
}

/**
 * The records of groups in a history, apart from the policy in force. They remain when a group leaves
 * the policy, so that no statement counts twice and a name always belongs to the rosters that were
 * agreed on under it. They are immutable.
 */
export interface GroupRecords {
  /** By group identity. */
  statements: ReadonlyMap<Digest, Newest>;
  /** By group name. */
  last: ReadonlyMap<string, ApprovedRoster>;
  /** Identities that were agreed on; true where another succeeded. */
  past: ReadonlyMap<Digest, boolean>;
  /** By key, the statements that count against its share. */
  spent: ReadonlyMap<Digest, number>;
  /** The number of statements. */
  made: number;
  /** The number of pairs of identity and key whose newest statement approves. */
  live: number;
}

/** The records of a history without statements. */
export const noRecords: GroupRecords = { statements: new Map(), last: new Map(), past: new Map(), spent: new Map(), made: 0, live: 0 };

/** Groups by name. */
export type Groups = ReadonlyMap<string, GroupState>;

/** Returns groups and the groups that they continue. */
export function chainsOf(groups: Groups): GroupState[] {
  const all: GroupState[] = [];
  for (const state of groups.values()) {
    for (let p: GroupState | undefined = state; p !== undefined; p = p.predecessor) all.push(p);
  }
  return all;
}

const approveLine = 'schema = "cohort/approve/v1"\n';
export const withdrawLine = 'schema = "cohort/withdraw/v1"\n';

/** Reports whether a step of a history is a statement of a party, and not a policy. */
export function isStatement(step: Uint8Array): boolean {
  return [approveLine, withdrawLine].some((line) => equal(step.subarray(0, line.length), utf8(line)));
}
