/**
 * Certificates of groups: leaves of members, and the root that the parties approve
 * (docs/spec/identity.md, section 6). It is loaded where a leaf or a pin is of a group.
 */

import { equal } from "./bytes.js";
import type { Fields } from "./extension.js";
import { type Expect, keyDigest, timeText, type Under, verifyCA, verifyPins, verifySelfSigned } from "./identity.js";
import { approvedUntil, checkApprovers, type Digest, type GroupState } from "./policy/policy.js";
import { refuse } from "./refusal.js";
import { type Certificate, verifySignedBy } from "./x509.js";

/**
 * Verifies the root of a group as check does in a chain: self-signed, of a roster in force,
 * and the root that its parties approve. Of `expect` it uses policy, group, at, ids and approvers.
 */
export async function checkGroupRoot(root: Certificate, expect: Omit<Expect, "kinds" | "use">): Promise<void> {
  if ((expect.group ?? "") === "") throw refuse("group", "expect: group", "not set", "a value");
  const own = await verifySelfSigned(root, "group-root", expect);
  findApprovedGroup(own, await keyDigest(root), expect);
  verifyPins(own, expect);
}

/** Verifies the group fields of a leaf. */
export function verifyMember(certificate: Certificate, leaf: Fields, expect: Expect): void {
  const domain = certificate.uris.length === 1 ? /^[^:/]*:\/\/([^/]*)/.exec(certificate.uris[0]!)?.[1] ?? "" : undefined;
  const want = expect.policy.trustDomain;
  if (domain !== undefined && domain !== want) throw refuse("trust-domain", "leaf: trust domain", domain, want);
  if (leaf.task !== expect.group) throw refuse("group", "leaf: group", leaf.task, expect.group);
  if (!expect.roles?.includes(leaf.role)) throw refuse("role", "leaf: role", leaf.role, expect.roles);
  if (leaf.ends === undefined || expect.at > leaf.ends) {
    throw refuse("expired", "leaf: approval of the parties", timeText(expect.at), `before ${timeText(leaf.ends ?? 0)}`);
  }
}

/** Verifies the rest of a chain in a group, and returns the extension of the group root. */
export async function verifyGroupChain(chain: readonly Certificate[], authorityRoot: Certificate, leaf: Fields, expect: Expect): Promise<Fields> {
  const [certificate, root, bus] = chain;
  if (!certificate || !root || chain.length > 3) {
    throw refuse("chain", "chain: certificates in a group", chain.length, "leaf and group root, optionally a group-bus certificate");
  }
  const own = await verifySelfSigned(root, "group-root", expect);
  await verifySignedBy(certificate, root);
  if (leaf.id !== own.id || leaf.task !== own.task) throw refuse("identity", "leaf: identity", leaf.id, own.id);
  if (bus) {
    const fields = verifyCA(bus, "group-bus", expect);
    if (fields.id !== own.id || !equal(bus.key.spki, root.key.spki)) throw refuse("identity", "group-bus certificate: identity and key", fields.id, own.id);
    await verifySignedBy(bus, authorityRoot);
  }
  const state = findApprovedGroup(own, await keyDigest(root), expect);
  if (leaf.kind === "group") verifyParty(state, leaf, expect);
  return own;
}

/** Returns the group's state for the roster of a root, in force or continued by that, whose parties approve the root. */
function findApprovedGroup(root: Fields, digest: Digest, expect: Under): GroupState {
  const name = expect.group ?? "";
  const newest = expect.policy.groupStates.get(name);
  if (!newest) throw refuse("not-found", "group", name, "a group of the policy");
  const state = newest.id === root.id ? newest : newest.predecessor;
  if (!state || state.id !== root.id) throw refuse("roster", `group ${name}: identity`, root.id, newest.id);
  approvedUntil(state, digest, expect.at);
  checkApprovers(state, digest, expect.approvers ?? [], expect.at);
  return state;
}

/** Refuses, as `party`, a leaf whose party is not one that the caller pinned for its role. */
function verifyParty({ roster }: GroupState, leaf: Fields, expect: Expect): void {
  const pins = expect.parties?.get(leaf.role);
  if (!pins) return;
  const members = roster.roles.filter((r) => r.name === leaf.role).flatMap((r) => r.members.map((m) => m.party));
  for (const { name, key } of roster.parties) {
    // A leaf that all units of the role share names no party.
    const concerned = members.includes(name) && (!leaf.member || leaf.member.party === key);
    if (concerned && !pins.includes(key)) throw refuse("party", `leaf: key of the party of role ${leaf.role}`, key, pins);
  }
}
