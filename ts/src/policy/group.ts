/**
 * Groups in a history: which statements count, when the parties agree on a roster, which roster
 * succeeds another (docs/spec/group.md, Statements and Agreement).
 */

import { compare, equal } from "../bytes.js";
import { refuse } from "../refusal.js";
import { floorsFell, floorsOf } from "./compare.js";
import { type Digest, digestBytes, zeroDigest } from "./digest.js";
import { type Document, type Group, maxHistory } from "./document.js";
import { keyDigest } from "./sshsig.js";
import { parseStatement, type Roster, rosterId, type RosterMember, type RosterParty, type SignedStatement, type VerifiedStatement, verifyStatement } from "./roster.js";
import { literal, sortedKeys, type TomlTable } from "./toml.js";

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
function withdrawn(s: VerifiedStatement): boolean {
  return s.withdraws || s.other !== undefined;
}

/** Reports whether a statement approves a root, or any where none is given, whatever the time. */
function approves(s: VerifiedStatement | undefined, root?: Digest): s is VerifiedStatement {
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

/** Returns the roots that a quorum of the parties of a roster approves, whatever the time, by statements of the step `since` and later. */
function rootsOf(r: Roster, newest: Newest, since: number): Set<Digest> {
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

function withEntry<K, V>(map: ReadonlyMap<K, V>, key: K, value: V): Map<K, V> {
  return new Map(map).set(key, value);
}

async function stateOf(group: Group, d: Document, genesis: Digest, floors: TomlTable): Promise<GroupState> {
  const parties: RosterParty[] = [];
  for (const p of group.parties) parties.push({ name: p.name, key: await keyDigest(p.key) });
  const roster: Roster = {
    trustDomain: d.trustDomain, root: d.authority.root, genesis, group: group.name, quorum: group.quorum, keyMode: group.keyMode, until: group.until,
    floors: literal(floors), authority: group.authority.line, parties,
    roles: sortedKeys(group.roles).map((name) => ({
      name,
      calls: group.roles.get(name)!.calls,
      members: group.roles.get(name)!.members.map((m) => ({ ...m, identity: d.tasks.get(m.task)!.releases.get(m.release)!.id })),
    })),
  };
  return { group, roster, id: await rosterId(roster), predecessor: undefined, floors, newest: new Map(), former: undefined, succeeded: false };
}

/**
 * Returns the groups of a policy that follows. A group keeps its identity, and the statements of its
 * parties, as long as its roster is unchanged and no floor is below those with which it was introduced.
 */
export async function nextGroups(before: Groups, d: Document, genesis: Digest): Promise<Map<string, GroupState>> {
  const groups = new Map<string, GroupState>();
  for (const name of sortedKeys(d.groups)) {
    const group = d.groups.get(name)!, old = before.get(name), floors = floorsOf(d, group);
    let next = await stateOf(group, d, genesis, floors);
    if (old !== undefined && !floorsFell(old.floors, floors)) {
      const kept = await stateOf(group, d, genesis, old.floors);
      if (kept.id === old.id) next = kept;
    }
    groups.set(name, { ...next, predecessor: predecessorOf(next, old, d) });
  }
  return groups;
}

/** Returns the group that a group names with `continues`: the one in force before it, or the predecessor of that. */
function predecessorOf(next: GroupState, old: GroupState | undefined, d: Document): GroupState | undefined {
  const want = next.group.continues, rule = `group ${next.group.name}`;
  if (want === zeroDigest) return undefined;
  for (let p = old; p !== undefined; p = p.predecessor) {
    if (p.id !== want || want === next.id) continue;
    if (p.group.keyMode !== next.group.keyMode) throw refuse("policy", `${rule}: key mode`, next.group.keyMode, "that of the group it continues");
    if (floorsFell(p.floors, floorsOf(d, p.group))) throw refuse("policy", `${rule}: continues`, want, "a group whose floors have not fallen");
    return { ...p, predecessor: undefined };
  }
  throw refuse("policy", `${rule}: continues`, want, "the identity that this group had until now");
}

/**
 * Adds the statements of the records to groups, and records those that become agreed on at a step.
 * It returns the records and the groups.
 */
export function assign(records: GroupRecords, step: number, groups: Groups): { records: GroupRecords; groups: Map<string, GroupState> } {
  let l = records;
  const settle = (p: GroupState): GroupState => {
    const x = assigned(l, p);
    const last = l.last.get(x.roster.group);
    if (last?.id === x.id || !becomesApproved(x)) return x;
    const past = withEntry(l.past, x.id, false);
    if (last !== undefined) past.set(last.id, true);
    l = { ...l, last: withEntry(l.last, x.roster.group, { roster: x.roster, id: x.id, since: step }), past };
    return assigned(l, x);
  };
  const out = new Map<string, GroupState>();
  for (const [name, state] of groups) {
    const predecessor = state.predecessor && settle(state.predecessor); // the older first
    const next = settle(state);
    // The group may have succeeded its predecessor.
    out.set(name, { ...next, predecessor: predecessor && assigned(l, predecessor) });
  }
  return { records: l, groups: out };
}

/** Returns a group with its statements, and the roster that was agreed on before it. */
function assigned(l: GroupRecords, p: GroupState): GroupState {
  const last = l.last.get(p.roster.group);
  return { ...p, newest: l.statements.get(p.id) ?? new Map(), former: last?.id === p.id ? undefined : last, succeeded: l.past.get(p.id) ?? false };
}

/** Reports whether the parties of a group, and those of the roster agreed on before it, approve it under one root, whatever the time. */
function becomesApproved(p: GroupState): boolean {
  const roots = rootsOf(p.roster, p.newest, 0);
  const former = p.former && rootsOf(p.former.roster, p.newest, p.former.since);
  return [...roots].some((root) => former === undefined || former.has(root));
}

/** The most statements of a history. */
const maxStatements = 8000;
/** How far a number may be above the last: no key comes near the end of its numbers. */
const maxNumberStep = 1n << 32n;

/** What a statement is checked against: a history, as far as it concerns groups. */
export interface StatementPlace {
  document: Document;
  genesis: Digest;
  groups: Groups;
  records: GroupRecords;
  /** The number of steps before the statement. */
  steps: number;
}

/** Verifies a party's statement and returns the records and the groups after it. Without `verifies` its signature was verified before. */
export async function addStatement(place: StatementPlace, statement: Uint8Array, signatures: readonly string[], verifies: boolean): Promise<{ records: GroupRecords; groups: Map<string, GroupState> }> {
  const { document: d, groups, records, steps } = place;
  const s = parseStatement(statement);
  const [signature] = signatures;
  if (signature === undefined || signatures.length !== 1) throw refuse("quorum", "statement: signatures", signatures.length, "1, of the party");
  if (s.trustDomain !== d.trustDomain) throw refuse("trust-domain", "statement: trust domain", s.trustDomain, d.trustDomain);
  if (s.genesis !== place.genesis) throw refuse("genesis", "statement: genesis", s.genesis, place.genesis);
  const p = chainsOf(groups).find((x) => x.id === s.group);
  if (p === undefined) throw refuse("roster", "statement: group identity", s.group, "that of a group of the policy in force");
  const party = [...p.roster.parties, ...(p.former?.roster.parties ?? [])].find((x) => x.key === s.key);
  if (party?.name !== s.party) throw refuse("not-owner", "statement: party and key", `${s.party} ${s.key}`, "those of a party of the group");
  const signed = { statement, signature };
  const h = verifies ? await verifyStatement(p.roster, s, signed, steps) : { ...s, signed, other: undefined, step: steps };
  const last = p.newest.get(s.key);
  checkFollows(h, last);
  const ends = approves(last) && (h.number === last.number || h.withdraws);
  if (!ends) checkRoom(place, h, last);
  const next = record(records, h, last, ends);
  const after = assign(next, steps, new Map([[p.group.name, groups.get(p.group.name)!]]));
  return { records: after.records, groups: new Map([...groups, ...after.groups]) };
}

/** Refuses a statement that may not follow the last of its key: an older number, the same text, one that changes nothing, and a number far above. */
function checkFollows(h: VerifiedStatement, last: VerifiedStatement | undefined): void {
  const number = last?.number ?? 0n;
  if (h.number > number && h.number - number <= maxNumberStep) return;
  if (last !== undefined && h.number === number && !withdrawn(last) && !equal(h.signed.statement, last.signed.statement)) return;
  throw refuse("sequence", "statement: number", h.number, `${number + 1n} to ${number + maxNumberStep}`);
}

/**
 * Refuses a statement for which the history has no room. Each approval reserves room for the
 * withdrawal that may follow it. Of the rest each key may use an equal share.
 */
function checkRoom(place: StatementPlace, h: VerifiedStatement, last: VerifiedStatement | undefined): void {
  const { records: l, groups } = place;
  const need = h.withdraws || approves(last) ? 1 : 2;
  if (l.made + l.live + need > maxStatements) throw refuse("too-large", "history: statements, and withdrawals that may follow", l.made + l.live + need, `at most ${maxStatements}`);
  checkStepRoom(place.steps, l, need);
  const keys = new Set(chainsOf(groups).flatMap((p) => [...p.roster.parties, ...(p.former?.roster.parties ?? [])].map((x) => x.key)));
  const share = Math.floor((maxStatements - l.made - l.live) / Math.max(keys.size, 1));
  const spent = l.spent.get(h.key) ?? 0;
  if (spent > share) throw refuse("too-large", "history: statements of one key", spent + 1, `at most ${share + 1} while others share the rest`);
}

/** Refuses steps that would use the room reserved for withdrawals. */
export function checkStepRoom(steps: number, records: GroupRecords, more: number): void {
  const got = steps + records.live + more;
  if (got > maxHistory) throw refuse("too-large", "history: steps, and withdrawals that may follow", got, `at most ${maxHistory}`);
}

/** Returns the records with one more statement. */
function record(l: GroupRecords, h: VerifiedStatement, last: VerifiedStatement | undefined, ends: boolean): GroupRecords {
  // Another text of the same number is recorded beside the first.
  const now = last !== undefined && h.number === last.number ? { ...last, other: h.signed } : h;
  return {
    ...l,
    spent: ends ? l.spent : withEntry(l.spent, h.key, (l.spent.get(h.key) ?? 0) + 1),
    statements: withEntry(l.statements, h.group, withEntry(l.statements.get(h.group) ?? new Map<Digest, VerifiedStatement>(), h.key, now)),
    made: l.made + 1,
    live: l.live - (approves(last) ? 1 : 0) + (approves(now) ? 1 : 0),
  };
}

/** Reports whether a party that approved a group root no longer does, or not for as long: a unit of its was admitted for that. */
export function isTakenBack(was: VerifiedStatement | undefined, now: VerifiedStatement | undefined): boolean {
  return approves(was) && (!approves(now, was.groupRoot) || now.notAfter < was.notAfter);
}
