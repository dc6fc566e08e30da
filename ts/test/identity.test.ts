import assert from "node:assert/strict";
import { before, test } from "node:test";
import { equal, fromHex, hex, sha256, u64, utf8 } from "../src/bytes.js";
import { encodeMeasurement } from "../src/evidence/measurement.js";
import { checkProvedHead, decodeHeadField, parseProvedHead, unverifiedSteps } from "../src/head.js";
import type { History } from "../src/history.js";
import { type Expect, check, checkRoot, liveIds, releaseId, unitId } from "../src/identity.js";
import { checkGroupRoot } from "../src/groupidentity.js";
import type { Policy } from "../src/policy/policy.js";
import { frame, unframe } from "../src/frame.js";
import type { Certificate, Extension } from "../src/x509.js";
import { type Changes, decodeFields, der, derId, editExtension, editField, editFields, encodeFields, forgeCertificate, namedKey, proveHead, type SigningKey } from "./forge.js";
import { fuzz } from "./fuzz.js";
import { vector } from "./vectors.js";
import { certificateOf, groupVector, historyOf, identityVector, keys, nextText, noon } from "./world.js";

let history: History, policy: Policy, cut: Policy;
let grouped: History;
let rootKey: SigningKey, scoringKey: SigningKey, taskKey: SigningKey, groupKey: SigningKey, authorityKey: SigningKey;
const stranger = namedKey("stranger");

before(async () => {
  history = await historyOf(identityVector.policy);
  ({ policy } = history);
  cut = (await historyOf(identityVector.policy, identityVector.cut)).policy;
  grouped = await historyOf(...groupVector.steps);
  [rootKey, scoringKey, taskKey, groupKey, authorityKey] = await Promise.all([
    keys.root(), keys.identity(identityVector.identity_ids["scoring 2026.11"]!), keys.identity(identityVector.identity_ids["keys 1.4"]!), keys.groupRoot(), keys.authority(),
  ]);
});

/** Asserts that a promise is refused with a reason. */
async function refused(promise: Promise<unknown>, reason: string, name = ""): Promise<void> {
  await assert.rejects(promise, { name: "Refusal", reason }, name);
}

test("identity ids", async () => {
  const ids = identityVector.identity_ids;
  const references = (task: string, release: string) => policy.tasks.get(task)!.releases.get(release)!.references;
  assert.equal(policy.genesis, identityVector.genesis);
  for (const [task, release] of [["scoring", "2026.11"], ["keys", "1.4"]] as const) {
    const want = "sha256:" + ids[`${task} ${release}`];
    assert.equal(await releaseId(policy, task, references(task, release)), want);
    assert.equal(await releaseId(policy, task, [...references(task, release), ...references(task, release)].reverse()), want);
    assert.ok(liveIds(policy, task).includes(want));
  }
  assert.throws(() => liveIds(policy, "nosuch"), { reason: "not-found" });
});

/** A chain that is signed with the real keys, so that a test can change any one part of it. */
interface Forgery {
  root: Changes;
  cross: Changes;
  leaf: Changes;
  rootSigner: SigningKey;
  crossSigner: SigningKey;
  leafSigner: SigningKey;
  expect: Expect;
  chain?: Certificate[];
}

type Kind = "shared" | "signing" | "tls" | "authority";
const names: Record<Kind, [cross: string, leaf: string]> = {
  shared: ["cross", "shared"],
  signing: ["cross", "unit of scoring"],
  tls: ["cross of keys", "TLS leaf of a unit of keys"],
  authority: ["cross", "authority"],
};

/** Makes a good chain of one kind, applies an edit, and checks it. */
async function forge(kind: Kind, edit: (f: Forgery) => unknown = () => undefined) {
  const [cross, leaf] = names[kind].map((name) => certificateOf(name)) as [Certificate, Certificate];
  const expect: Expect = {
    policy, at: noon, kinds: [kind === "signing" || kind === "tls" ? "unit" : kind], use: kind === "signing" ? "signing" : "tls",
    ...(kind !== "authority" && { ids: liveIds(policy, kind === "tls" ? "keys" : "scoring") }),
  };
  const f: Forgery = {
    root: {}, cross: {}, leaf: {}, expect,
    rootSigner: rootKey, crossSigner: rootKey, leafSigner: kind === "authority" ? rootKey : kind === "tls" ? taskKey : scoringKey,
  };
  edit(f);
  const root = forgeCertificate(certificateOf("authority root"), f.rootSigner, f.root);
  const made = [forgeCertificate(leaf, f.leafSigner, f.leaf), ...(kind === "authority" ? [] : [forgeCertificate(cross, f.crossSigner, f.cross)])];
  return check(f.chain ?? made, root, f.expect);
}

test("chains are accepted", async () => {
  for (const kind of ["shared", "signing", "tls", "authority"] as const) await forge(kind);
  const root = certificateOf("authority root");
  for (const use of ["tls", "signing"] as const) {
    for (const chain of [[certificateOf("authority")], [certificateOf("authority"), root]]) {
      const peer = await check(chain, root, { policy, at: noon, use, kinds: ["authority"] });
      assert.deepEqual([peer.kind, peer.task, peer.facts], ["authority", "", undefined]);
    }
  }
  const signing = certificateOf("unit of keys");
  const unit = await check([certificateOf("TLS leaf of a unit of keys"), certificateOf("cross of keys")], root, { policy, at: noon, use: "tls", kinds: ["shared", "unit"], ids: liveIds(policy, "keys") });
  const { measurements, key, facts, ...rest } = unit;
  assert.deepEqual(rest, {
    kind: "unit", id: "sha256:" + identityVector.identity_ids["keys 1.4"], task: "keys", group: "", role: "", keyMode: "unit", head: policy.head, development: true, debug: false,
    unit: await unitId(signing.key), platform: "soft", chip: "chip-7", member: undefined, approvedUntil: undefined,
    notBefore: certificateOf("TLS leaf of a unit of keys").notBefore.getTime(), notAfter: certificateOf("TLS leaf of a unit of keys").notAfter.getTime(),
  });
  assert.deepEqual(measurements.map((m) => hex(encodeMeasurement(m))), policy.tasks.get("keys")!.releases.get("1.4")!.references.map((m) => hex(encodeMeasurement(m))));
  assert.ok(equal(key.spki, certificateOf("TLS leaf of a unit of keys").key.spki));
  assert.equal(facts?.unit, unit.unit);
});

test("every certificate of the vectors is parsed, and its extension has one encoding", async () => {
  for (const v of [identityVector, groupVector]) {
    for (const name of Object.keys(v.certificates)) {
      const parsed = certificateOf(name, v);
      const want = v.extensions[name];
      const value = parsed.extensions.find((e) => e.id.startsWith("1.2.840.113556"))!.value;
      if (want) assert.equal(hex(value), want);
      assert.equal(hex(encodeFields(decodeFields(value))), hex(value));
    }
  }
  for (const [name, digest] of Object.entries(identityVector.certificate_sha256)) assert.equal(hex(await sha256(certificateOf(name).raw)), digest);
});

test("a chain is valid from its first second to its last", async () => {
  const chain = [certificateOf("shared"), certificateOf("cross")];
  const [from, until] = [chain[0]!.notBefore.getTime(), chain[0]!.notAfter.getTime()];
  const at = (time: number) => check(chain, certificateOf("authority root"), { policy, at: time, kinds: ["shared"], use: "tls", ids: liveIds(policy, "scoring") });
  await at(from);
  await at(until);
  await refused(at(from - 1), "expired");
  await refused(at(until + 1), "expired");
});

const keyUsage = (...bytes: number[]) => editExtension("2.5.29.15", der(0x03, Uint8Array.from(bytes)));
const constraints = (...bytes: number[]) => editExtension("2.5.29.19", der(0x30, Uint8Array.from(bytes)));
const usages = (...ids: string[]) => editExtension("2.5.29.37", ids.length > 0 ? der(0x30, ...ids.map(derId)) : undefined);
const uris = (...list: string[]) => editExtension("2.5.29.17", list.length > 0 ? der(0x30, ...list.map((uri) => der(0x86, utf8(uri)))) : undefined);
const [server, client] = ["1.3.6.1.5.5.7.3.1", "1.3.6.1.5.5.7.3.2"];
const privateExtension = (edit: (e: Extension) => Extension) => (list: Extension[]) => list.map((e) => (e.id.startsWith("1.2.840.113556") ? edit(e) : e));
const flipped = (bytes: Uint8Array) => bytes.map((b, i) => (i === 0 ? b ^ 1 : b));

test("certificates that are refused wherever they are", async () => {
  const places: [string, Kind, "root" | "cross" | "leaf"][] = [["root", "shared", "root"], ["cross", "shared", "cross"], ["leaf", "shared", "leaf"], ["unit", "signing", "leaf"], ["authority", "authority", "leaf"]];
  const rows: [string, string, Changes | SigningKey][] = [
    ["another key's signature", "signature", stranger],
    ["another issuer's name", "chain", { issuer: certificateOf("cross of keys").subject }],
    ["SHA-384", "chain", { sha384: true }],
    ["begins a second later", "expired", { notBefore: noon + 1000 }],
    ["ended a second ago", "expired", { notAfter: noon - 1000 }],
    ["unknown critical extension", "chain", { extensions: (list) => [...list, { id: "1.2.3", critical: true, value: Uint8Array.of(5, 0) }] }],
    ["no extension", "extension", { extensions: (list) => list.filter((e) => !e.id.startsWith("1.2.840.113556")) }],
    ["critical extension of ours", "chain", { extensions: privateExtension((e) => ({ ...e, critical: true })) }],
    ["trailing byte in the extension", "extension", { extensions: privateExtension((e) => ({ ...e, value: Uint8Array.of(...e.value, 0) })) }],
    ["a debug mark that policy does not allow", "debug", { extensions: editField(5, "development debug") }],
    ["no development mark", "platform", { extensions: editField(5, "") }],
    ["marks in another order", "extension", { extensions: editField(5, "debug development") }],
    ["no basic constraints", "chain", { extensions: editExtension("2.5.29.19", undefined) }],
    ["another key usage", "chain", { extensions: keyUsage(1, 0x86) }],
  ];
  for (const [name, reason, change] of rows) {
    for (const [of, kind, place] of places) {
      const edit = (f: Forgery) => ("key" in change ? (f[`${place}Signer`] = change) : (f[place] = change));
      await refused(forge(kind, edit), reason, `${of}: ${name}`);
    }
  }
});

test("CA certificates that are refused", async () => {
  const other = "sha256:" + "1".repeat(64);
  const genesis = fromHex("1".repeat(64));
  const shared = () => [certificateOf("shared"), certificateOf("cross")];
  const rows: [string, Kind, string, (f: Forgery) => unknown][] = [
    ["another root's key", "shared", "authority-root", (f) => (f.root = { spki: stranger.spki })],
    ["root that is no CA", "shared", "chain", (f) => (f.root = { extensions: constraints() })],
    ["root of path length 0", "shared", "chain", (f) => (f.root = { extensions: constraints(1, 1, 0xff, 2, 1, 0) })],
    ["root of path length 2", "shared", "chain", (f) => (f.root = { extensions: constraints(1, 1, 0xff, 2, 1, 2) })],
    ["root of another kind", "shared", "kind", (f) => (f.root = { extensions: editField(0, "authority") })],
    ["root of another genesis", "shared", "genesis", (f) => (f.root = { extensions: editField(4, genesis) })],
    ["cross that is no CA", "shared", "chain", (f) => (f.cross = { extensions: constraints() })],
    ["cross of path length 1", "shared", "chain", (f) => (f.cross = { extensions: constraints(1, 1, 0xff, 2, 1, 1) })],
    ["cross with path length but no CA flag", "shared", "chain", (f) => (f.cross = { extensions: constraints(2, 1, 0) })],
    ["cross without path length", "shared", "chain", (f) => (f.cross = { extensions: constraints(1, 1, 0xff) })],
    ["identity root for cross", "shared", "kind", (f) => (f.cross = { extensions: editField(0, "identity-root") })],
    ["identity root as it is for cross", "shared", "kind", (f) => (f.chain = [certificateOf("shared"), certificateOf("identity root")])],
    ["cross of another genesis", "shared", "genesis", (f) => (f.cross = { extensions: editField(4, genesis) })],
    ["cross of another identity", "shared", "identity", (f) => (f.cross = { extensions: editFields((l) => l.map((b, i) => (i === 1 ? flipped(b) : b))) })],
    ["cross with a measurement less", "shared", "identity", (f) => (f.cross = { extensions: editFields((l) => l.slice(0, -1)) })],
    ["cross of another task", "shared", "identity", (f) => (f.cross = { extensions: editField(2, "keys") })],
    ["no certificates", "shared", "chain", (f) => (f.chain = [])],
    ["no cross", "shared", "chain", (f) => (f.chain = shared().slice(0, 1))],
    ["cross and root", "shared", "chain", (f) => (f.chain = [...shared(), certificateOf("authority root")])],
    ["cross twice", "shared", "chain", (f) => (f.chain = [...shared(), certificateOf("cross")])],
    ["cross of another release", "shared", "chain", (f) => (f.chain = [certificateOf("shared"), certificateOf("cross of keys")])],
    ["authority with another CA", "authority", "chain", (f) => (f.chain = [certificateOf("authority"), certificateOf("cross")])],
    ["authority with the root twice", "authority", "chain", (f) => (f.chain = [certificateOf("authority"), certificateOf("authority root"), certificateOf("authority root")])],
  ];
  for (const [name, kind, reason, edit] of rows) await refused(forge(kind, edit), reason, name);
  assert.notEqual(policy.genesis, other);
});

test("leaves that are refused", async () => {
  const scoring = "spiffe://clinic.example/task/scoring";
  const rsa = fromHex("30819f300d06092a864886f70d010101050003818d0030818902818100" + "a1".repeat(128) + "0203010001");
  const leaf = (extensions: NonNullable<Changes["extensions"]>) => (f: Forgery) => (f.leaf = { extensions });
  const rows: [string, Kind, string, (f: Forgery) => unknown][] = [
    ["CA flag", "shared", "chain", leaf(constraints(1, 1, 0xff))],
    ["RSA", "shared", "chain", (f) => (f.leaf = { spki: rsa })],
    ["no EKU for TLS", "shared", "kind", leaf(usages())],
    ["server only", "shared", "kind", leaf(usages(server!))],
    ["client first", "shared", "kind", leaf(usages(client!, server!))],
    ["code signing too", "shared", "kind", leaf(usages(server!, client!, "1.3.6.1.5.5.7.3.3"))],
    ["any EKU", "shared", "kind", leaf(usages("2.5.29.37.0"))],
    ["EKU on a signing certificate", "signing", "kind", leaf(usages(server!, client!))],
    ["signing certificate for TLS", "signing", "kind", (f) => (f.expect.use = "tls")],
    ["TLS leaf of a unit for signing", "tls", "kind", (f) => (f.expect.use = "signing")],
    ["shared leaf for signing", "shared", "kind", (f) => (f.expect.use = "signing")],
    ["TLS leaf of a unit in mode shared", "tls", "kind", leaf(editField(3, "shared"))],
    ["authority without EKU", "authority", "kind", leaf(usages())],
    ["shared for unit", "shared", "kind", (f) => (f.expect.kinds = ["unit"])],
    ["shared for authority", "shared", "kind", (f) => (f.expect.kinds = ["authority"])],
    ["authority for unit or shared", "authority", "kind", (f) => Object.assign(f.expect, { kinds: ["unit", "shared"], ids: liveIds(policy, "scoring") })],
    ["a CA's kind, even when asked for", "shared", "kind", (f) => {
      f.expect.kinds = ["cross" as "shared"];
      f.chain = [certificateOf("cross"), certificateOf("cross")];
    }],
    ["cross for a leaf", "shared", "kind", (f) => (f.chain = [certificateOf("cross"), certificateOf("cross")])],
    ["no URI", "shared", "name", leaf(uris())],
    ["two URIs", "shared", "name", leaf(uris(scoring, scoring))],
    ["another task's URI", "shared", "name", leaf(uris("spiffe://clinic.example/task/keys"))],
    ["another trust domain's URI", "shared", "name", leaf(uris("spiffe://clinik.example/task/scoring"))],
    ["URI with a query", "shared", "name", leaf(uris(scoring + "?x"))],
    ["https URI", "shared", "name", leaf(uris("https://clinic.example/task/scoring"))],
    ["unit's URI at the authority", "authority", "name", leaf(uris(scoring))],
    ["another identity", "shared", "identity", leaf(editFields((l) => l.map((b, i) => (i === 1 ? flipped(b) : b))))],
    ["another task", "shared", "identity", leaf((list) => uris("spiffe://clinic.example/task/keys")(editField(2, "keys")(list)))],
    ["another unit id", "signing", "identity", leaf(editFields((l) => l.map((b, i) => (i === 6 ? flipped(b) : b))))],
    ["authority's leaf signed by an identity", "authority", "signature", (f) => (f.leafSigner = scoringKey)],
    ["leaf signed by the authority root", "shared", "chain", (f) => {
      f.leafSigner = rootKey;
      f.leaf = { issuer: certificateOf("authority root").subject };
    }],
  ];
  for (const [name, kind, reason, edit] of rows) await refused(forge(kind, edit), reason, name);
});

test("expectations that are incomplete or pin another identity are refused", async () => {
  const references = policy.tasks.get("scoring")!.releases.get("2026.11")!.references;
  const rows: [string, Kind, string, (f: Forgery) => unknown][] = [
    ["no policy", "shared", "policy", (f) => (f.expect.policy = undefined as unknown as Policy)],
    ["no kinds", "shared", "kind", (f) => (f.expect.kinds = [])],
    ["no use", "shared", "kind", (f) => (f.expect.use = undefined as unknown as "tls")],
    ["unknown use", "shared", "kind", (f) => (f.expect.use = "any" as "tls")],
    ["no time", "shared", "clock", (f) => (f.expect.at = NaN)],
    ["no pin", "shared", "identity", (f) => delete f.expect.ids],
    ["no pin beside authority", "authority", "identity", (f) => (f.expect.kinds = ["authority", "unit"])],
    ["another release", "shared", "identity", (f) => (f.expect.ids = [policy.tasks.get("scoring")!.releases.get("2026.10")!.id])],
    ["another task's id", "shared", "identity", (f) => (f.expect.ids = liveIds(policy, "keys"))],
    ["a measurement outside the pin", "shared", "identity", (f) => (f.expect.measurements = references.slice(0, 1))],
    ["only a measurement outside the pin", "shared", "identity", (f) => {
      delete f.expect.ids;
      f.expect.measurements = references.slice(1);
    }],
    ["measurements right, id not", "shared", "identity", (f) => Object.assign(f.expect, { ids: ["sha256:" + "1".repeat(64)], measurements: references })],
    ["group without a name", "shared", "group", (f) => (f.expect.kinds = ["group"])],
    ["group without roles", "shared", "role", (f) => Object.assign(f.expect, { kinds: ["group"], group: "trial" })],
  ];
  for (const [name, kind, reason, edit] of rows) await refused(forge(kind, edit), reason, name);
  await forge("shared", (f) => {
    delete f.expect.ids;
    f.expect.measurements = references;
  });
  await forge("shared", (f) => (f.expect.measurements = [...policy.tasks.get("keys")!.releases.get("1.4")!.references, ...references]));
});

test("a shared leaf is refused after a cut, and one that names an unknown cut is behind", async () => {
  const root = certificateOf("authority root");
  const expect = (of: Policy): Expect => ({ policy: of, at: noon, kinds: ["shared"], use: "tls", ids: liveIds(of, "scoring") });
  await check([certificateOf("shared, after the cut"), certificateOf("cross")], root, expect(cut));
  await refused(check([certificateOf("shared"), certificateOf("cross")], root, expect(cut)), "cut-off");
  await refused(check([certificateOf("shared, after the cut"), certificateOf("cross")], root, expect(policy)), "behind");
});

test("an identity root is accepted only with its own cross-certificate", async () => {
  const [root, cross, authority] = [certificateOf("identity root"), certificateOf("cross"), certificateOf("authority root")];
  const expect = (task: string): Expect => ({ policy, at: noon, kinds: ["shared"], use: "tls", ids: liveIds(policy, task) });
  await checkRoot(root, cross, authority, expect("scoring"));
  await checkRoot(certificateOf("identity root of keys"), certificateOf("cross of keys"), authority, expect("keys"));
  await refused(checkRoot(certificateOf("identity root of keys"), cross, authority, expect("scoring")), "identity");
  await refused(checkRoot(root, certificateOf("cross of keys"), authority, expect("keys")), "identity");
  await refused(checkRoot(cross, cross, authority, expect("scoring")), "kind");
  await refused(checkRoot(root, root, authority, expect("scoring")), "kind");
  await refused(checkRoot(root, cross, authority, expect("keys")), "identity");
  await refused(checkRoot(root, cross, cross, expect("scoring")), "authority-root");
  const copy = forgeCertificate(root, stranger, { spki: stranger.spki });
  await refused(checkRoot(copy, cross, authority, expect("scoring")), "identity");
});

test("chains in a group", async () => {
  const authority = certificateOf("authority root", groupVector);
  const of = (name: string) => certificateOf(name, groupVector);
  const state = grouped.policy.groupStates.get("trial")!;
  assert.equal(state.id, groupVector.group_identity);
  const base: Expect = { policy: grouped.policy, at: noon, kinds: ["group"], use: "tls", group: "trial", roles: ["scorer"] };
  const shared = [of("shared leaf of scorer"), of("group root")];
  const peer = await check(shared, authority, base);
  assert.deepEqual([peer.kind, peer.id, peer.group, peer.role, peer.task, peer.unit, peer.member], ["group", groupVector.group_identity, "trial", "scorer", "", "", undefined]);
  await check([...shared, of("group-bus")], authority, base);
  const signing: Expect = { ...base, use: "signing" };
  const unit = await check([of("unit of scorer"), of("group root")], authority, signing);
  assert.equal(unit.member?.task, "scoring");
  assert.equal(unit.facts?.root, groupVector.group_root);
  await check([of("authority leaf of trial"), of("group root")], authority, { ...base, kinds: ["authority"], use: "signing" });
  await checkGroupRoot(of("group root"), base);

  const south = state.roster.parties.find((p) => p.name === "south")!.key;
  const north = state.roster.parties.find((p) => p.name === "north")!.key;
  await check([of("unit of scorer"), of("group root")], authority, { ...signing, parties: new Map([["scorer", [south]]]), approvers: [north], ids: [groupVector.group_identity] });
  const rows: [string, string, Certificate[], Expect][] = [
    ["another group", "group", shared, { ...base, group: "audit" }],
    ["another role", "role", shared, { ...base, roles: ["holder"] }],
    ["another party", "party", [of("unit of scorer"), of("group root")], { ...signing, parties: new Map([["scorer", [north]]]) }],
    ["another party of a shared leaf", "party", shared, { ...base, parties: new Map([["scorer", [north]]]) }],
    ["no such approver", "party", shared, { ...base, approvers: ["sha256:" + "1".repeat(64)] }],
    ["another id", "identity", shared, { ...base, ids: ["sha256:" + "1".repeat(64)] }],
    ["measurements of a group", "identity", shared, { ...base, measurements: policy.tasks.get("keys")!.releases.get("1.4")!.references }],
    ["no root", "chain", shared.slice(0, 1), base],
    ["bus certificate for the root", "kind", [shared[0]!, of("group-bus")], base],
    ["root for the bus certificate", "kind", [...shared, of("group root")], base],
    ["four certificates", "chain", [...shared, of("group-bus"), of("group-bus")], base],
    ["authority of a group for none", "group", [of("authority leaf of trial"), of("group root")], { policy: grouped.policy, at: noon, kinds: ["authority"], use: "signing" }],
    ["authority of a group for TLS", "kind", [of("authority leaf of trial"), of("group root")], { ...base, kinds: ["authority"] }],
    ["a policy without approvals", "quorum", shared, { ...base, policy: (await historyOf(groupVector.steps[0]!)).policy }],
    ["after the approvals", "expired", [forgeCertificate(shared[0]!, groupKey, { extensions: editField(10, u64(noon / 1000 - 1)) }), shared[1]!], base],
    ["another trust domain", "trust-domain", [forgeCertificate(shared[0]!, groupKey, { extensions: uris("spiffe://clinik.example/group/trial/role/scorer") }), shared[1]!], base],
    ["another identity", "identity", [forgeCertificate(shared[0]!, groupKey, { extensions: editFields((l) => l.map((b, i) => (i === 1 ? flipped(b) : b))) }), shared[1]!], base],
    ["another key's root", "quorum", [forgeCertificate(shared[0]!, stranger), forgeCertificate(shared[1]!, stranger, { spki: stranger.spki })], base],
    ["another roster", "roster", [
      forgeCertificate(shared[0]!, groupKey, { extensions: editFields((l) => l.map((b, i) => (i === 1 ? flipped(b) : b))) }),
      forgeCertificate(shared[1]!, groupKey, { extensions: editFields((l) => l.map((b, i) => (i === 1 ? flipped(b) : b))) }),
    ], base],
    ["a bus certificate of another key", "identity", [...shared, forgeCertificate(of("group-bus"), rootKey, { spki: stranger.spki })], base],
    ["a bus certificate of another issuer", "signature", [...shared, forgeCertificate(of("group-bus"), stranger)], base],
  ];
  for (const [name, reason, chain, expect] of rows) await refused(check(chain, authority, expect), reason, name);
  await refused(checkGroupRoot(of("group root"), { policy: grouped.policy, at: noon }), "group");
  await refused(checkGroupRoot(of("group root"), { ...base, group: "nosuch" }), "not-found");
  await refused(checkGroupRoot(of("group root"), { ...base, ids: ["sha256:" + "1".repeat(64)] }), "identity");
  const fields: [string, (fields: Uint8Array[]) => Uint8Array[]][] = [
    ["a field of a member", (l) => [...l, utf8("keys")]],
    ["no end", (l) => l.slice(0, 10)],
    ["an end of 7 bytes", (l) => [...l.slice(0, 10), l[10]!.subarray(1)]],
    ["an end beyond 2^63", (l) => [...l.slice(0, 10), u64(1n << 63n)]],
    ["no role", (l) => [...l.slice(0, 9), new Uint8Array(0), l[10]!]],
    ["a member of no unit", (l) => [...l, utf8("keys"), utf8("1.4"), new Uint8Array(32).fill(1)]],
    ["key mode unit in a shared leaf", (l) => [...l.slice(0, 3), utf8("unit"), ...l.slice(4)]],
  ];
  for (const [name, edit] of fields) await refused(check([forgeCertificate(shared[0]!, groupKey, { extensions: editFields(edit) }), shared[1]!], authority, base), "extension", name);
  const members: [string, (fields: Uint8Array[]) => Uint8Array[]][] = [
    ["a unit of no member", (l) => l.slice(0, 11)],
    ["a zero party", (l) => [...l.slice(0, 13), new Uint8Array(32)]],
    ["a short party", (l) => [...l.slice(0, 13), new Uint8Array(31)]],
    ["a release that is no name", (l) => [...l.slice(0, 12), utf8("A"), l[13]!]],
  ];
  for (const [name, edit] of members) {
    await refused(check([forgeCertificate(of("unit of scorer"), groupKey, { extensions: editFields(edit) }), shared[1]!], authority, signing), "extension", name);
  }
  const late = forgeCertificate(shared[0]!, groupKey, { extensions: editField(10, u64((1n << 63n) - 1n)) });
  assert.equal((await check([late, shared[1]!], authority, base)).approvedUntil, 8.64e15);
});

test("extensions of every kind refuse fields that the kind does not contain", async () => {
  const rows: [string, Kind, (fields: Uint8Array[]) => Uint8Array[]][] = [
    ["eight fields", "shared", (l) => l.slice(0, 8)],
    ["a measurement in a leaf", "shared", (l) => [...l, encodeMeasurement(policy.tasks.get("keys")!.releases.get("1.4")!.references[0]!)]],
    ["unknown kind", "shared", (l) => [utf8("other"), ...l.slice(1)]],
    ["kind of Object", "shared", (l) => [utf8("__proto__"), ...l.slice(1)]],
    ["zero identity", "shared", (l) => [l[0]!, new Uint8Array(32), ...l.slice(2)]],
    ["short identity", "shared", (l) => [l[0]!, l[1]!.subarray(1), ...l.slice(2)]],
    ["no task", "shared", (l) => [...l.slice(0, 2), new Uint8Array(0), ...l.slice(3)]],
    ["task that is no name", "shared", (l) => [...l.slice(0, 2), utf8("Scoring"), ...l.slice(3)]],
    ["task of 64 letters", "shared", (l) => [...l.slice(0, 2), utf8("a".repeat(64)), ...l.slice(3)]],
    ["no key mode", "shared", (l) => [...l.slice(0, 3), new Uint8Array(0), ...l.slice(4)]],
    ["key mode unit in a shared leaf", "shared", (l) => [...l.slice(0, 3), utf8("unit"), ...l.slice(4)]],
    ["short head", "shared", (l) => [...l.slice(0, 4), l[4]!.subarray(1), ...l.slice(5)]],
    ["unknown mark", "shared", (l) => [...l.slice(0, 5), utf8("development "), ...l.slice(6)]],
    ["unit in a shared leaf", "shared", (l) => [...l.slice(0, 6), new Uint8Array(16).fill(1), ...l.slice(7)]],
    ["platform in a shared leaf", "shared", (l) => [...l.slice(0, 7), utf8("soft"), ...l.slice(8)]],
    ["chip in a shared leaf", "shared", (l) => [...l.slice(0, 8), utf8("chip")]],
    ["zero head in a unit's leaf", "signing", (l) => [...l.slice(0, 4), new Uint8Array(32), ...l.slice(5)]],
    ["no platform", "signing", (l) => [...l.slice(0, 7), new Uint8Array(0), ...l.slice(8)]],
    ["chip of 257 bytes", "signing", (l) => [...l.slice(0, 8), new Uint8Array(257).fill(65)]],
    ["no UTF-8", "signing", (l) => [...l.slice(0, 8), Uint8Array.of(0xff)]],
    ["task of an authority", "authority", (l) => [...l.slice(0, 2), utf8("scoring"), ...l.slice(3)]],
  ];
  for (const [name, kind, edit] of rows) await refused(forge(kind, (f) => (f.leaf = { extensions: editFields(edit) })), "extension", name);
  const cross: [string, (fields: Uint8Array[]) => Uint8Array[]][] = [
    ["no measurements", (l) => l.slice(0, 9)],
    ["measurements in another order", (l) => [...l.slice(0, 9), ...l.slice(9).reverse()]],
    ["a measurement twice", (l) => [...l, l.at(-1)!]],
    ["a broken measurement", (l) => [...l.slice(0, -1), l.at(-1)!.subarray(1)]],
  ];
  for (const [name, edit] of cross) await refused(forge("shared", (f) => (f.cross = { extensions: editFields(edit) })), "extension", name);
  const measurement = (i: number) => encodeMeasurement({ platform: "soft", registers: [{ name: "program", value: u64(i) }] });
  const many = editFields((l) => [...l.slice(0, 9), ...Array.from({ length: 450 }, (_, i) => measurement(i))]);
  await refused(forge("shared", (f) => (f.cross = { extensions: many })), "extension");
  const huge = editExtension("1.2.840.113556.1.8000.2554.51898.5250.7156.19007.48674.10918900.16058849", new Uint8Array((32 << 10) + 1));
  await refused(forge("shared", (f) => (f.leaf = { extensions: huge })), "extension");
});

interface HeadVector {
  authority_root_certificate: string;
  head: string;
  steps: number;
  time: string;
  spread_ms: number;
  signed: string;
  proved_head: string;
  field: string;
}

test("the proved head of the vectors", async () => {
  const v = vector<HeadVector>("identity/testdata/vectors/head.json");
  const bytes = decodeHeadField(v.field);
  assert.equal(hex(bytes), v.proved_head);
  const root = certificateOf("authority root");
  assert.equal(hex(root.raw), v.authority_root_certificate);
  const proved = await checkProvedHead(bytes, policy, root, noon);
  assert.deepEqual([proved.head, proved.steps, proved.time, proved.spread], [v.head, v.steps, Date.parse(v.time), v.spread_ms]);
  assert.equal(hex(proved.bytes), v.proved_head);
  assert.equal(hex(parseProvedHead(bytes).signed.message), v.signed);
  assert.deepEqual([unverifiedSteps(bytes), unverifiedSteps(bytes.subarray(0, 30)), unverifiedSteps(new Uint8Array(0))], [1, 0, 0]);
  for (const field of ["", "=", "aGVhZA==", "a"]) assert.throws(() => decodeHeadField(field), { reason: "malformed" });
  assert.throws(() => decodeHeadField("A".repeat(4096)), { reason: "too-large" });
});

test("proved heads that are refused", async () => {
  const root = certificateOf("authority root");
  const leaf = certificateOf("authority").raw;
  const newer = (await historyOf(identityVector.policy, identityVector.cut)).policy;
  const fork = (await historyOf(identityVector.policy, nextText(policy, identityVector.policy, ["quorum = 1", "quorum = 1 # one"]))).policy;
  const head = fromHex(policy.head.slice(7));
  const good = proveHead(authorityKey, leaf, head, 1, noon);
  const fields = unframe("cohort head v1", good, 6);
  const put = (i: number, field: Uint8Array) => frame("cohort head v1", ...fields.map((f, n) => (n === i ? field : f)));
  await checkProvedHead(good, policy, root, noon);
  // A newer head than the policy's is accepted: that is the purpose of proved heads.
  const ahead = proveHead(authorityKey, leaf, fromHex(newer.head.slice(7)), 2, noon);
  assert.equal((await checkProvedHead(ahead, policy, root, noon)).steps, 2);
  assert.equal((await checkProvedHead(good, newer, root, noon)).steps, 1);
  const rows: [string, string, Uint8Array, { policy?: Policy; root?: Certificate; at?: number }?][] = [
    ["nothing", "malformed", new Uint8Array(0)],
    ["another label", "malformed", frame("cohort report v1", ...fields)],
    ["a field more", "malformed", Uint8Array.of(...good, 0, 0, 0, 0)],
    ["a short head", "malformed", put(0, head.subarray(1))],
    ["no head", "malformed", put(0, new Uint8Array(32))],
    ["no steps", "malformed", put(1, u64(0))],
    ["steps beyond a history", "malformed", put(1, u64(10_001))],
    ["a time beyond all", "malformed", put(2, u64(1n << 63n))],
    ["a spread beyond all", "malformed", put(3, u64(1n << 62n))],
    ["a short spread", "malformed", put(3, new Uint8Array(7))],
    ["no certificate", "malformed", put(4, utf8("leaf"))],
    ["too many bytes", "too-large", put(5, new Uint8Array(2048))],
    ["another signature", "signature", put(5, fields[5]!.map((b, i) => (i === 1 ? b ^ 1 : b)))],
    ["no signature", "signature", put(5, new Uint8Array(0))],
    ["another head", "signature", put(0, flipped(head))],
    ["another number of steps", "signature", put(1, u64(2))],
    ["another time", "signature", put(2, u64(noon / 1000 + 1))],
    ["another spread", "signature", put(3, u64(1))],
    ["another authority", "chain", proveHead(stranger, forgeCertificate(certificateOf("authority"), stranger, { issuer: certificateOf("cross").subject }).raw, head, 1, noon)],
    ["under another root", "authority-root", good, { root: certificateOf("cross") }],
    ["by a unit", "kind", proveHead(stranger, certificateOf("unit of keys").raw, head, 1, noon)],
    ["of a fork", "behind", ahead, { policy: fork }],
    ["signed before its leaf", "clock", proveHead(authorityKey, leaf, head, 1, noon - 2 * 3_600_000)],
    ["signed after its leaf", "clock", proveHead(authorityKey, leaf, head, 1, noon + 2 * 3_600_000), { at: noon + 30 * 60_000 }],
    ["of the future", "clock", proveHead(authorityKey, leaf, head, 1, noon + 6 * 60_000)],
    ["after its leaf", "clock", good, { at: noon + 2 * 3_600_000 }],
    ["long before its leaf", "clock", good, { at: noon - 2 * 3_600_000 }],
  ];
  for (const [name, reason, bytes, under] of rows) await refused(checkProvedHead(bytes, under?.policy ?? policy, under?.root ?? root, under?.at ?? noon), reason, name);
  const { notBefore, notAfter } = certificateOf("authority");
  const times: [signed: number, at: number, ok: boolean][] = [
    [notBefore.getTime(), notBefore.getTime() - 300_000, true],
    [notBefore.getTime(), notBefore.getTime() - 301_000, false],
    [notAfter.getTime(), notAfter.getTime() + 300_000, true],
    [notAfter.getTime(), notAfter.getTime() + 301_000, false],
    [noon + 300_000, noon, true],
  ];
  for (const [signed, at, ok] of times) {
    const checked = checkProvedHead(proveHead(authorityKey, leaf, head, 1, signed), policy, root, at);
    await (ok ? checked : refused(checked, "clock"));
  }
});

fuzz("proved head", [fromHex(vector<HeadVector>("identity/testdata/vectors/head.json").proved_head)], (bytes) => parseProvedHead(bytes));
