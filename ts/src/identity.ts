/**
 * Identities and their certificates (docs/spec/identity.md, sections 1 and 4 to 6). {@link check} is
 * the only function that makes a Peer: it verifies a chain up to the authority root that policy
 * names, or to the group root that the parties of a group approve. It trusts an approved policy and
 * nothing else. The first check that fails is thrown as a refusal.
 */

import { digestText, equal, hex, sha256 } from "./bytes.js";
import { type Measurement, encodeMeasurement } from "./evidence/measurement.js";
import { type Fields, type GroupMember, type Kind, type LeafKind, extensionId, parseFields } from "./extension.js";
import { type Digest, type Facts, type KeyMode, type Policy, cutOff, releaseId as idOf, zeroDigest } from "./policy/policy.js";
import { type Reason, refuse } from "./refusal.js";
import { type Certificate, KeyUsage, type PublicKey, extension, verifySignedBy } from "./x509.js";

export { type GroupMember, type LeafKind } from "./extension.js";

/** What a leaf is verified for: TLS, or signatures of statements such as reports and sessions. */
export type Use = "tls" | "signing";

/** A verified certificate chain. Only {@link check} makes one. */
export interface Peer {
  kind: LeafKind;
  /** The identity of a release or group; zeroDigest for kind authority outside groups. */
  id: Digest;
  /** The name of the task, `""` for kinds authority and group. */
  task: string;
  /** For kind group: the names of the group and role, else `""`. */
  group: string;
  role: string;
  keyMode: KeyMode | "";
  /**
   * The head of the policy history under which the leaf was issued. Of a leaf that several units
   * share, the head after the last step that cut one of them off, or zeroDigest.
   */
  head: Digest;
  /** Issued under a development policy: nothing is protected from the host. */
  development: boolean;
  /** Issued under a policy that accepts TEEs whose memory the host can read. */
  debug: boolean;
  /** The unit id, 32 digits; `""` in a shared leaf. */
  unit: string;
  /** Platform and chip of the unit's evidence; `""` in a shared leaf. */
  platform: string;
  chip: string;
  /** All measurements of the identity; none for kinds authority and group. */
  measurements: readonly Measurement[];
  /** For kind group: the unit's program; undefined in a shared leaf. */
  member: GroupMember | undefined;
  /** For kind group: the end of the parties' approval, milliseconds since 1970. */
  approvedUntil: number | undefined;
  /** The leaf's key. */
  key: PublicKey;
  /** First and last millisecond at which the leaf is valid, since 1970. */
  notBefore: number;
  notAfter: number;
  /** What cutOff checks of the leaf under each newer policy; undefined for kind authority. */
  facts: Facts | undefined;
}

/** The peer that a caller accepts. A member that is required and missing refuses every peer. */
export interface Expect {
  /** Trust domain, genesis and authority root come from it. */
  policy: Policy;
  /** The leaf's kind is one of these. */
  kinds: readonly LeafKind[];
  use: Use;
  /** Milliseconds since 1970. */
  at: number;
  /** The identity is one of these. For kinds shared and unit, ids or measurements are required. */
  ids?: readonly Digest[];
  /** All measurements of the identity are among these. */
  measurements?: readonly Measurement[];
  /** Required for kind group, with roles. With kind authority: the leaf that signs reports for the group. */
  group?: string;
  roles?: readonly string[];
  /** Parties that the caller pins for a role, by the digests of their SSH keys. */
  parties?: ReadonlyMap<string, readonly Digest[]>;
  /** Digests of the SSH keys of the party that the caller trusts in a group. */
  approvers?: readonly Digest[];
}

/** TLS server and client authentication. */
const tlsUsage = ["1.3.6.1.5.5.7.3.1", "1.3.6.1.5.5.7.3.2"];

/** The path length constraint of each kind of CA. The other kinds are leaves. */
const pathLengths: ReadonlyMap<string, number> = new Map([["authority-root", 1], ["identity-root", 0], ["cross", 0], ["group-root", 0], ["group-bus", 0]]);

/** Returns the identity id of code as a task: a digest over the pinned policy and all of its measurements, each once, in any order. */
export function releaseId(policy: Policy, task: string, measurements: readonly Measurement[]): Promise<Digest> {
  return idOf({ trustDomain: policy.trustDomain, root: policy.authority.root, genesis: policy.genesis }, task, measurements);
}

/** Returns the identity ids of all releases of a task, by the names of the releases. An unknown task is refused as `not-found`. */
export function liveIds(policy: Policy, task: string): Digest[] {
  const found = policy.tasks.get(task);
  if (!found) throw refuse("not-found", "identity: task", task, "a task of the policy");
  return [...found.releases.values()].sort((a, b) => (a.name < b.name ? -1 : 1)).map((release) => release.id);
}

/** Returns the id of the unit with a signing key, 32 digits. */
export async function unitId(key: PublicKey): Promise<string> {
  return hex((await sha256(key.spki)).subarray(0, 16));
}

/**
 * Verifies the chain that a peer presents: leaf and cross-certificate; for kind authority the leaf,
 * with or without the root; in a group leaf and group root, with or without its group-bus
 * certificate. The checks and their order are those of docs/spec/identity.md, section 6.
 */
export async function check(chain: readonly Certificate[], authorityRoot: Certificate, expect: Expect): Promise<Peer> {
  validate(expect);
  await verifyAuthorityRoot(authorityRoot, expect);
  const certificate = chain[0];
  if (!certificate) throw refuse("chain", "chain: certificates", 0, "at least a leaf");
  const leaf = await verifyLeaf(certificate, expect);
  let measurements: readonly Measurement[] = [];
  let groupRoot = zeroDigest;
  let above: Fields | undefined;
  if (leaf.kind === "group" || (leaf.kind === "authority" && (expect.group ?? "") !== "")) {
    above = await (await loadGroups()).verifyGroupChain(chain, authorityRoot, leaf, expect);
    groupRoot = await keyDigest(chain[1]!);
  } else if (leaf.kind === "authority") {
    await verifyAuthorityChain(chain, authorityRoot);
  } else {
    above = await verifyUnitChain(chain, authorityRoot, leaf, expect);
    measurements = above.measurements;
  }
  const peer = peerOf(leaf, certificate, measurements, groupRoot);
  if (peer.facts && above) {
    cutOff(expect.policy, peer.facts, expect.at);
    verifyPins(above, expect);
  }
  return peer;
}

/**
 * Verifies the root of a release's identity: self-signed, with the key and identity of its
 * cross-certificate, which must be one that {@link check} accepts in a chain.
 */
export async function checkRoot(root: Certificate, cross: Certificate, authorityRoot: Certificate, expect: Expect): Promise<void> {
  validate(expect);
  await verifyAuthorityRoot(authorityRoot, expect);
  const under = await verifyCross(cross, authorityRoot, expect);
  verifyPins(under, expect);
  const own = await verifySelfSigned(root, "identity-root", expect);
  if (own.id !== under.id || !equal(root.key.spki, cross.key.spki)) {
    throw refuse("identity", "identity root: identity and key", own.id, under.id);
  }
}

/** Loads the checks of groups. */
const loadGroups = () => import("./groupidentity.js");

/** What the checks of single certificates need. */
export type Under = Omit<Expect, "kinds" | "use">;

function validate(expect: Expect): void {
  const missing = (reason: Reason, member: string) => refuse(reason, `expect: ${member}`, "not set", "a value");
  const { kinds, use } = expect;
  if (!expect.policy) throw missing("policy", "policy");
  if (kinds.length === 0) throw missing("kind", "kinds");
  if (use !== "tls" && use !== "signing") throw missing("kind", "use");
  if (!Number.isFinite(expect.at)) throw missing("clock", "time");
  if (kinds.some((k) => k === "shared" || k === "unit") && !expect.ids?.length && !expect.measurements?.length) throw missing("identity", "identities");
  if (kinds.includes("group") && (expect.group ?? "") === "") throw missing("group", "group");
  if (kinds.includes("group") && !expect.roles?.length) throw missing("role", "roles");
}

async function verifyAuthorityRoot(root: Certificate, expect: Under): Promise<void> {
  const got = await keyDigest(root);
  const want = expect.policy.authority.root;
  if (got !== want) throw refuse("authority-root", "authority root", got, want);
  await verifySelfSigned(root, "authority-root", expect);
}

/** Verifies everything in a leaf but its signature. */
async function verifyLeaf(certificate: Certificate, expect: Expect): Promise<Fields & { kind: LeafKind }> {
  const { kind, ...fields } = verifyProfile(certificate, expect);
  if (!isLeaf(kind) || !expect.kinds.includes(kind)) throw refuse("kind", "leaf: kind", kind, expect.kinds);
  if (certificate.isCA || !certificate.extensions.some((e) => e.id === "2.5.29.19") || certificate.keyUsage !== KeyUsage.DigitalSignature) {
    throw refuse("chain", "leaf: CA, and key usage", `${certificate.isCA}, ${certificate.keyUsage}`, "false, digital signature");
  }
  const leaf = { kind, ...fields };
  await verifyUse(certificate, leaf, expect);
  const group = expect.group ?? "";
  let path = `/task/${leaf.task}`;
  if (kind === "authority") {
    if (leaf.task !== group) throw refuse("group", "leaf: group of an authority", leaf.task, group);
    path = "/authority";
  } else if (kind === "group") {
    (await loadGroups()).verifyMember(certificate, leaf, expect);
    path = `/group/${leaf.task}/role/${leaf.role}`;
  }
  const want = `spiffe://${expect.policy.trustDomain}${path}`;
  if (certificate.uris.length !== 1 || certificate.uris[0] !== want) throw refuse("name", "leaf: URI", certificate.uris, want);
  return leaf;
}

function isLeaf(kind: Kind): kind is LeafKind {
  return !pathLengths.has(kind);
}

/**
 * Verifies that a leaf is for the expected use: TLS needs the extended key usage of TLS, which a
 * unit's signing certificate does not have, nor the leaf that signs reports for a group.
 */
async function verifyUse(certificate: Certificate, leaf: Fields, { use }: Expect): Promise<void> {
  const ofUnit = leaf.kind === "unit" || leaf.kind === "group";
  const reporter = leaf.kind === "authority" && leaf.task !== "";
  const want = (ofUnit && use === "signing") || reporter ? [] : tlsUsage;
  const got = certificate.extendedKeyUsage;
  if (got.length !== want.length || got.some((id, i) => id !== want[i])) throw refuse("kind", "leaf: extended key usage", got, want);
  if (leaf.kind === "shared" && use === "signing") throw refuse("kind", "leaf: use of kind shared", "signing statements", "TLS");
  if (reporter && use === "tls") throw refuse("kind", "leaf: use of a group's kind authority", "serving TLS", "signing reports");
  if (use === "tls" && leaf.kind === "unit" && leaf.keyMode !== "unit") throw refuse("kind", "leaf: key mode of a unit's TLS leaf", leaf.keyMode, "unit");
  if (ofUnit && use === "signing") {
    const id = await unitId(certificate.key);
    if (leaf.unit !== id) throw refuse("identity", "leaf: unit id", leaf.unit, id);
  }
}

async function verifyAuthorityChain(chain: readonly Certificate[], root: Certificate): Promise<void> {
  if (chain.length > 2 || (chain.length === 2 && !equal(chain[1]!.raw, root.raw))) {
    throw refuse("chain", "chain: certificates of an authority", chain.length, "leaf alone, or leaf and authority root");
  }
  await verifySignedBy(chain[0]!, root);
}

/** Verifies the rest of a unit's chain, and returns the extension of the cross-certificate. */
async function verifyUnitChain(chain: readonly Certificate[], authorityRoot: Certificate, leaf: Fields, expect: Expect): Promise<Fields> {
  if (chain.length !== 2) throw refuse("chain", "chain: certificates of a unit", chain.length, "leaf and cross-certificate");
  const cross = await verifyCross(chain[1]!, authorityRoot, expect);
  await verifySignedBy(chain[0]!, chain[1]!);
  if (leaf.id !== cross.id || leaf.task !== cross.task) throw refuse("identity", "leaf: identity", leaf.id, cross.id);
  return cross;
}

/** Verifies that the authority root signed a cross-certificate, and that its id is the digest of its measurements. */
async function verifyCross(certificate: Certificate, authorityRoot: Certificate, expect: Expect): Promise<Fields> {
  const cross = verifyCA(certificate, "cross", expect);
  await verifySignedBy(certificate, authorityRoot);
  const id = await releaseId(expect.policy, cross.task, cross.measurements);
  if (id !== cross.id) throw refuse("identity", "cross-certificate: identity of its measurements", cross.id, id);
  return cross;
}

/** Refuses an identity outside the caller's pins. */
export function verifyPins(identity: Fields, { ids, measurements }: Under): void {
  if (ids?.length && !ids.includes(identity.id)) throw refuse("identity", "identity", identity.id, ids);
  if (!measurements?.length) return;
  const pins = measurements.map((m) => hex(encodeMeasurement(m)));
  const got = identity.measurements.map((m) => hex(encodeMeasurement(m)));
  if (got.length === 0 || got.some((m) => !pins.includes(m))) {
    throw refuse("identity", "identity: measurements", got.length, "those that are pinned");
  }
}

export async function verifySelfSigned(certificate: Certificate, kind: Kind, expect: Under): Promise<Fields> {
  const fields = verifyCA(certificate, kind, expect);
  await verifySignedBy(certificate, certificate);
  return fields;
}

/** Verifies everything in a CA certificate but its signature. */
export function verifyCA(certificate: Certificate, kind: Kind, expect: Under): Fields {
  const fields = verifyProfile(certificate, expect);
  if (fields.kind !== kind) throw refuse("kind", "ca: kind", fields.kind, kind);
  if (!certificate.isCA || certificate.pathLength !== pathLengths.get(kind) || certificate.keyUsage !== KeyUsage.CertSign) {
    throw refuse("chain", "ca: CA, path length and key usage", `${certificate.isCA}, ${certificate.pathLength}, ${certificate.keyUsage}`, `true, ${pathLengths.get(kind)}, certificate signing`);
  }
  if (fields.head !== expect.policy.genesis) throw refuse("genesis", "ca: genesis", fields.head, expect.policy.genesis);
  return fields;
}

/** Verifies what all certificates of a chain share. */
function verifyProfile(certificate: Certificate, { policy, at }: Under): Fields {
  if (certificate.algorithm !== "ECDSA-SHA256") throw refuse("chain", "certificate: signature algorithm", certificate.algorithm, "ECDSA-SHA256");
  if (certificate.key.kind !== "P-256") throw refuse("chain", "certificate: key", certificate.key.kind, "P-256");
  if (certificate.unknownCritical.length > 0) throw refuse("chain", "certificate: critical extension", certificate.unknownCritical, "no unknown ones");
  if (at < certificate.notBefore.getTime() || at > certificate.notAfter.getTime()) {
    throw refuse("expired", "certificate: time", timeText(at), `${certificate.notBefore.toISOString()} to ${certificate.notAfter.toISOString()}`);
  }
  const value = certificate.extensions.some((e) => e.id === extensionId && !e.critical) ? extension(certificate, extensionId) : undefined;
  if (!value) throw refuse("extension", "extension", `none in ${certificate.subjectName}`, extensionId);
  const fields = parseFields(value);
  if (fields.development !== policy.development) throw refuse("platform", "certificate: development mark", fields.development, policy.development);
  if (fields.debug && ![...policy.rules.values()].some((rules) => rules.debug)) {
    throw refuse("debug", "certificate: debug mark", "set: its policy accepted TEEs that their host can read", "not set");
  }
  return fields;
}

function peerOf(leaf: Fields & { kind: LeafKind }, certificate: Certificate, measurements: readonly Measurement[], groupRoot: Digest): Peer {
  const grouped = leaf.kind === "group";
  const { id, unit, platform, chip, head, member, role } = leaf;
  const facts: Facts = {
    task: grouped ? member?.task ?? "" : leaf.task, release: member?.release ?? "", identity: id, group: grouped ? leaf.task : "", role,
    party: member?.party ?? zeroDigest, root: grouped ? groupRoot : zeroDigest, unit, platform, chip, head, shared: unit === "",
  };
  return {
    kind: leaf.kind, id, task: grouped || leaf.kind === "authority" ? "" : leaf.task, group: facts.group, role, keyMode: leaf.keyMode, head,
    development: leaf.development, debug: leaf.debug, unit, platform, chip, measurements: grouped || leaf.kind === "authority" ? [] : measurements, member,
    approvedUntil: leaf.ends, key: certificate.key, notBefore: certificate.notBefore.getTime(), notAfter: certificate.notAfter.getTime(),
    facts: leaf.kind === "authority" ? undefined : facts,
  };
}

export async function keyDigest(certificate: Certificate): Promise<Digest> {
  return digestText(await sha256(certificate.key.spki));
}

export function timeText(at: number): string {
  return Number.isFinite(at) && Math.abs(at) <= 8.64e15 ? new Date(at).toISOString() : String(at);
}
