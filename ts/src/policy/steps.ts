/**
 * Steps of a history after the first, and groups: what a policy or statement changes for the groups,
 * and which units it cuts off (docs/spec/policy.md, sections 7 and 8; docs/spec/group.md, Statements
 * and Agreement). It is loaded where a history has such a step, or a policy a group.
 */

import { equal } from "../bytes.js";
import { refuse } from "../refusal.js";
import { floorsFell, floorsOf, tightened } from "./compare.js";
import { type Digest, zeroDigest } from "./digest.js";
import { type Document, type Group, maxHistory, type Release } from "./document.js";
import { approves, chainsOf, type GroupRecords, type Groups, type GroupState, rootsOf, withdrawn } from "./group.js";
import { type Cuts, type Grant, holderOf, programsOf } from "./policy.js";
import { parseStatement, type Roster, rosterId, type RosterParty, type VerifiedStatement, verifyStatement } from "./roster.js";
import { keyDigest } from "./sshsig.js";
import { literal, sortedKeys, type TomlTable } from "./toml.js";

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

/** Returns the identities of the releases that a release continues, directly or through others. */
function continuedBy({ task, release }: Grant): Digest[] {
  const ids: Digest[] = [];
  for (let r = task.releases.get(release.continues); r !== undefined; r = task.releases.get(r.continues)) ids.push(r.id);
  return ids; // no release leads back to itself
}

/** Returns the cuts after a step of an index at which a policy follows another. */
export function cutsByPolicy(cuts: Cuts, index: number, old: Document, next: Document, before: Groups, after: Groups): Cuts {
  const now = { last: new Map(cuts.last), heirs: new Map(cuts.heirs), whole: new Map(cuts.whole), floors: new Map(cuts.floors) };
  const { narrowed, raised } = tightened(old, next);
  for (const name of raised) now.floors.set(name, index);
  const live = programsOf(next), cut = new Set<Digest>();
  for (const [id, was] of programsOf(old)) {
    const is = live.get(id);
    if (is === undefined || demandsMore(was.release, is.release)) {
      now.whole.set(id, index);
    } else if (!runsOn(is.release, narrowed) && is.task.cutUnits.every((u) => was.task.cutUnits.includes(u))) {
      continue;
    }
    cut.add(id);
    now.last.set(holderOf(id, ""), index);
    for (const heir of continuedBy(was)) now.heirs.set(heir, index);
  }
  const kept = new Set(chainsOf(after).map((p) => p.id));
  for (const p of chainsOf(before)) {
    for (const role of p.roster.roles) {
      if (!kept.has(p.id) || role.members.some((m) => cut.has(m.identity))) cutRole(now.last, p.id, role.name, index);
    }
  }
  return now;
}

function cutRole(last: Map<string, number>, group: Digest, role: string, index: number): void {
  last.set(holderOf(group, role), index);
  last.set(holderOf(group, ""), index);
}

/** Returns the cuts after a party's statement: of each group that the party approves less than before. */
export function cutsByStatement(cuts: Cuts, index: number, before: Groups, after: Groups): Cuts {
  const last = new Map(cuts.last);
  const now = chainsOf(after);
  for (const p of chainsOf(before)) {
    const q = now.find((x) => x.id === p.id);
    if (q === undefined || !p.roster.parties.some(({ key }) => isTakenBack(p.newest.get(key), q.newest.get(key)))) continue;
    for (const role of p.roster.roles) cutRole(last, p.id, role.name, index);
  }
  return { ...cuts, last };
}

/** Reports whether a release demands more of its units than before in what their leaves do not record. */
function demandsMore(was: Release, is: Release): boolean {
  return (was.dynamic && !is.dynamic) || [...is.devices].some(([name, count]) => count > (was.devices.get(name) ?? 0));
}

/** Reports whether units of a release are on one of the platforms, or have devices of it. */
function runsOn(r: Release, names: ReadonlySet<string>): boolean {
  return [...r.devices.keys()].some((name) => names.has(name)) || r.references.some((v) => names.has(v.platform));
}

/** Reports whether a party that approved a group root no longer does, or not for as long: a unit of its was admitted for that. */
export function isTakenBack(was: VerifiedStatement | undefined, now: VerifiedStatement | undefined): boolean {
  return approves(was) && (!approves(now, was.groupRoot) || now.notAfter < was.notAfter);
}
