/**
 * The newest approved policy of a history, and what follows from it for the certificates and
 * evidence of units (docs/spec/policy.md, section 8; docs/spec/group.md). Only a History (history.ts)
 * makes a Policy.
 */

import { checkDevices, type Result } from "../evidence/evidence.js";
import { match, type Measurement, type ReferenceValue } from "../evidence/measurement.js";
import { equal } from "../bytes.js";
import { refuse, Refusal } from "../refusal.js";
import { type Digest, zeroDigest } from "./digest.js";
import type { Custody, Document, Release, Task } from "./document.js";
import { approvedRoot, approvedUntil, chainsOf, consents, type GroupRecords, type Groups, type GroupState, inForce, keyOf, membersOf } from "./group.js";
import { chipRefused, platforms } from "./platforms.js";

export type { Authority, Custody, Document, Group, KeyMode, Machines, Member, Owner, Owners, Party, Release, Role, Task } from "./document.js";
export { releaseId } from "./document.js";
export { type Digest, digestBytes, isDigest, zeroDigest } from "./digest.js";
export type { ApprovalStatus, GroupState, Roster, RosterMember, RosterParty, RosterRole, SignedStatement } from "./group.js";
export { approvalStatus, approvedRoot, approvedUntil, checkApprovers, consents, groupRoots, inForce, keyOf, membersOf, signedStatements } from "./group.js";

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
  groupStates: Groups;
  /** The records of groups, for the next step. */
  records: GroupRecords;
  /** The steps that cut units off. */
  cuts: Cuts;
}

/** The index of the last step of each kind that cut units off. A step that reverts another does not undo its cut. */
export interface Cuts {
  /** That may have cut off a unit of the holder: see holderOf. */
  last: ReadonlyMap<string, number>;
  /** That may have cut off a unit of a release which continues the release of an identity, by itself or through others. */
  heirs: ReadonlyMap<Digest, number>;
  /** That cut off whatever had the identity of a release until then. */
  whole: ReadonlyMap<Digest, number>;
  /** That raised the rules of a platform in what leaves do not record, so that every older leaf is refused. */
  floors: ReadonlyMap<string, number>;
}

/** The cuts of an empty history. */
export const noCuts: Cuts = { last: new Map(), heirs: new Map(), whole: new Map(), floors: new Map() };

/** Names the units that share a leaf: those of a release, of a role in a group, or of all its roles. */
export function holderOf(identity: Digest, role: string): string {
  return `${identity} ${role}`;
}

/** Returns the releases of a document by their identities. */
export function programsOf(d: Document): Map<Digest, Grant> {
  return new Map([...d.tasks.values()].flatMap((task) => [...task.releases.values()].map((release): [Digest, Grant] => [release.id, { task, release }])));
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
export function cutOff(policy: Policy, facts: Facts, at: number): void {
  let id: Digest | undefined = facts.identity;
  if (facts.group !== "") {
    const p = groupById(policy, facts.identity);
    if (p?.group.name !== facts.group) throw refuse("withdrawn", `cut-off: identity of group ${facts.group}`, facts.identity, "that of a roster in force");
    approvedUntil(p, facts.root, at);
    // A shared leaf names no party: only units whose party approves have it, and it ends with the first of those approvals.
    if (!facts.shared) consents(p, facts.root, facts.party, at);
    id = membersOf(p.roster, facts.role).find((m) => m.task === facts.task && m.release === facts.release && keyOf(p.roster, m.party) === facts.party)?.identity;
  }
  if (facts.shared) checkPair(policy, facts);
  else checkUnit(policy, id, facts);
}

function refuseCut(rule: string, got: unknown, want: unknown): Refusal {
  return refuse("cut-off", `cut-off: ${rule}`, got, want);
}

/** Checks a leaf that several units have. */
function checkPair(policy: Policy, facts: Facts): void {
  if (facts.group === "" && !programsOf(policy).has(facts.identity)) throw refuseCut(`release of task ${facts.task}`, facts.identity, "one that policy names");
  const want = lastCut(policy, facts.identity, facts.role);
  if (facts.head === want) return;
  if (!knowsHead(policy, facts.head)) throw refuse("behind", "cut-off: cut that a shared leaf names", facts.head, "a head of the known history");
  throw refuseCut("cut that a shared leaf names", facts.head, want);
}

/** Checks the leaf of one unit that runs the release of an identity. */
function checkUnit(policy: Policy, id: Digest | undefined, facts: Facts): void {
  const own = id === undefined ? undefined : programsOf(policy).get(id);
  if (id === undefined || own === undefined) throw refuseCut(`release of task ${facts.task}`, id ?? "no member of the roster", "one that policy names");
  if (own.task.cutUnits.includes(facts.unit)) throw refuseCut("unit", facts.unit, `one that is not among cut_units of task ${own.task.name}`);
  const rules = policy.rules.get(facts.platform);
  if (rules === undefined) throw refuseCut("platform", facts.platform, "one that policy names");
  const key = chipRefused(facts.platform, rules, facts.chip);
  if (key !== "") throw refuseCut("chip", facts.chip, `one that ${key} of platform ${facts.platform} accepts`);
  const { whole, floors } = policy.cuts;
  const raised = Math.max(whole.get(id) ?? -1, ...[facts.platform, ...own.release.devices.keys()].map((p) => floors.get(p) ?? -1));
  const issued = indexOfHead(policy, facts.head);
  if (issued !== undefined && issued < raised) {
    throw refuseCut("policy head under which the leaf was issued", facts.head, `${policy.heads[raised]}, which raised what such a unit must be, or a later one`);
  }
}

/**
 * Returns the head after the last step that may have cut off a unit of an identity, or zeroDigest.
 * The identity is that of a release, with role `""`, or of a group; there `""` is any role.
 */
export function lastCut(policy: Policy, identity: Digest, role: string): Digest {
  return headAt(policy, policy.cuts.last.get(holderOf(identity, role)));
}

/** Returns the head after the last step that may have cut off a unit of a release which continues the release of an identity, or zeroDigest. */
export function lastCutOfHeirs(policy: Policy, identity: Digest): Digest {
  return headAt(policy, policy.cuts.heirs.get(identity));
}

function headAt(policy: Policy, index: number | undefined): Digest {
  return index === undefined ? zeroDigest : policy.heads[index]!;
}

/** Returns the place of a head in `heads`, -1 for zeroDigest, undefined for a head that the history does not have. */
export function indexOfHead(policy: Policy, head: Digest): number | undefined {
  if (head === zeroDigest) return -1;
  const index = policy.heads.lastIndexOf(head); // most heads asked for are new
  return index < 0 ? undefined : index;
}

/** Reports whether a head is zeroDigest or the head after one of the steps. */
export function knowsHead(policy: Policy, head: Digest): boolean {
  return indexOfHead(policy, head) !== undefined;
}

/** Returns the state of the group with an identity, those that groups continue included. */
export function groupById(policy: Policy, id: Digest): GroupState | undefined {
  return chainsOf(policy.groupStates).find((p) => p.id === id);
}

/** Lists the hosts of requests to a task, or to a group where it is not `""`: its name, and the DNS names that the policy gives it. */
export function hosts(policy: Document, task: string, group: string): string[] {
  const named = policy.groups.get(group) ?? (group === "" ? policy.tasks.get(task) : undefined);
  return named === undefined ? [] : [named.name, ...named.names];
}

/** Reports whether an authority (host, or host:port) names one of the hosts. */
export function serves(policy: Document, task: string, group: string, authority: string): boolean {
  const host = authority.replace(/:[0-9]*$/, "").toLowerCase();
  return host !== "" && hosts(policy, task, group).includes(host);
}

/** A release, and its task. */
export interface Grant {
  task: Task;
  release: Release;
}

/**
 * Matches an attestation result with the releases of a task: `not-found`, `measurement`,
 * `device-missing`.
 */
export function admit(policy: Document, task: string, result: Result): Grant {
  const found = policy.tasks.get(task);
  if (found === undefined) throw refuse("not-found", "admission: task", task, "a task of the policy");
  return admitOneOf([...found.releases.values()].map((release) => ({ task: found, release })), result);
}

/** Returns the program that a result matches, if its release admits the result. */
function admitOneOf(programs: readonly Grant[], result: Result): Grant {
  const grant = programs.find((p) => nearest(p.release.references, result.measurement) === undefined);
  if (grant === undefined) throw nearest(programs.flatMap((p) => p.release.references), result.measurement)!;
  if (result.dynamic && !grant.release.dynamic) {
    throw refuse("measurement", "admission: libraries", "a program that loads unmeasured libraries", `a static one, or dynamic = true in release ${grant.release.name}`);
  }
  checkDevices(result, grant.release.devices, grant.release.name);
  return grant;
}

/** Returns undefined if a measurement matches a reference value, else the refusal of the one with the most equal registers. */
function nearest(references: readonly ReferenceValue[], got: Measurement): Refusal | undefined {
  let refusal = refuse("measurement", "measurement", got.platform, "a reference value of the policy");
  let best = -1;
  for (const reference of references) {
    try {
      match(reference, got);
      return undefined;
    } catch (e) {
      if (!(e instanceof Refusal)) throw e;
      const count = reference.platform !== got.platform ? -1 : reference.registers.filter((r, i) => r.any || equal(r.value, got.registers[i]?.value ?? new Uint8Array(0))).length;
      if (count > best) [refusal, best] = [e, count];
    }
  }
  return refusal;
}

/**
 * Matches an attestation result with the members of a role, of the party with a key (a digest), at a
 * time: as admit, and `role`, `party`, `quorum`, `expired`, `withdrawn`. Until the parties have
 * approved a group, its predecessor admits the programs that are members of both.
 */
export function admitMember(policy: Policy, group: string, role: string, result: Result, party: Digest, at: number): Grant {
  const p = policy.groupStates.get(group);
  const programs = (name: string) => p!.group.roles.get(name)!.members.map((m): Grant => {
    const task = policy.tasks.get(m.task)!;
    return { task, release: task.releases.get(m.release)! };
  });
  if (p === undefined || !p.group.roles.has(role)) throw refuse("not-found", `admission: role of group ${group}`, role, "a role of the policy");
  let grant: Grant;
  try {
    grant = admitOneOf(programs(role), result);
  } catch (e) {
    for (const other of p.group.roles.keys()) {
      if (admits(() => admitOneOf(programs(other), result))) throw refuse("role", "admission: role", role, other);
    }
    throw e;
  }
  const state = inForce(p, at);
  const members = membersOf(state.roster, role).filter((m) => m.identity === grant.release.id);
  if (members.length === 0) approvedUntil(p, approvedRoot(p, at), at); // it waits for its parties
  if (members.filter((m) => keyOf(state.roster, m.party) === party).length !== 1) {
    throw refuse("party", `admission: party of the program in role ${role}`, members.map((m) => m.party).join(", "), `exactly one of the pinned keys ${party}`);
  }
  consents(state, approvedRoot(state, at), party, at);
  return grant;
}

function admits(check: () => unknown): boolean {
  try {
    check();
    return true;
  } catch {
    return false;
  }
}

/** Matches an attestation result with the reference values (`measurement`) and machines (`wrong-chip`) of authorities. */
export function admitAuthority(custody: Custody, result: Result): void {
  if (result.dynamic) throw refuse("measurement", "admission: libraries", "an authority that loads unmeasured libraries", "a static one");
  const refusal = nearest(custody.references, result.measurement);
  if (refusal !== undefined) throw refusal;
  if (custody.machines === "any") return;
  const form = platforms.get(result.measurement.platform)?.chip;
  const got = form?.(result.chip);
  if (got === undefined || !custody.machines.some((chip) => form!(chip) === got)) {
    throw refuse("wrong-chip", "admission: machine of the authority", result.chip, `one of authority.machines: ${custody.machines.join(", ")}`);
  }
}
