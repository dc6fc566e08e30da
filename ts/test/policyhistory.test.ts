import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { test } from "node:test";
import { fromBase64, utf8 } from "../src/bytes.js";
import { frame } from "../src/frame.js";
import type { Appraiser, Result } from "../src/evidence/evidence.js";
import { appraiseUnit } from "../src/channel/appraise.js";
import type { Unit } from "../src/channel/unit.js";
import { History, parseSteps, type Step } from "../src/history.js";
import { noRecords } from "../src/policy/group.js";
import { addStatement, nextGroups } from "../src/policy/steps.js";
import { admit, admitAuthority, admitMember, approvalStatus, approvedUntil, consents, cutOff, type Facts, groupById, groupRoots, hosts, inForce, indexOfHead, lastCut, lastCutOfHeirs, type Policy, serves, zeroDigest } from "../src/policy/policy.js";
import { Refusal } from "../src/refusal.js";
import { adopt, digestOf, edited, found, grouped, groupRoot, heard, keyDigestOf, keyLine, nextPolicy, policyStep, start, statement, statementStep } from "./policyhouse.js";
import { repository, vector } from "./vectors.js";

/** Asserts that a call is refused with a reason. */
async function refused(reason: string, f: () => unknown): Promise<void> {
  await assert.rejects(async () => f(), (e) => {
    assert.ok(e instanceof Refusal, String(e));
    assert.equal(e.reason, reason, e.message);
    return true;
  });
}

const trial = (h: History) => h.policy.groupStates.get("trial")!;
const hour = 3_600_000;

test("cut vectors", async () => {
  const folder = repository + "policy/testdata/vectors/cuts/";
  const read = (name: string) => readFileSync(folder + name, "utf8");
  const first = await found(read("first.toml"), "ana");
  const id = first.policy.tasks.get("keys")!.releases.get("1")!.id;
  const unit = (platform: string, chip: string): Facts => ({
    task: "keys", release: "", identity: id, group: "", role: "", party: zeroDigest, root: zeroDigest,
    unit: "01" + "00".repeat(15), platform, chip, head: first.head, shared: false,
  });
  const units = [unit("nitro", "i-0123456789abcdef-enc0123456789abcdef"), unit("sgx", "00".repeat(15) + "01"), unit("snp", "1".repeat(128)), unit("tdx", "00".repeat(15) + "aa")];
  let count = 0;
  for (const name of readdirSync(folder).filter((n) => n.startsWith("after-"))) {
    const source = read(name);
    const after = await first.extend([policyStep(source, "ana")]);
    const refusals = units.filter((u) => {
      cutOff(first.policy, u, start);
      try {
        cutOff(after.policy, u, start);
        return false;
      } catch (e) {
        assert.equal((e as Refusal).reason, "cut-off", name);
        return true;
      }
    });
    const got = `# expect: cut ${lastCut(after.policy, id, "") === after.head}, refused ${[...refusals.map((u) => u.platform), "end"].join(" ")}`;
    assert.equal(got, source.split("\n")[0], name);
    count++;
  }
  assert.ok(count >= 28);
});

interface TrustPage {
  entries: { policy: string; signatures: string[] }[];
}

test("the history of the trust vector", async () => {
  const v = vector<{ input: { genesis: string; pages: TrustPage[] }; accepted: { sequence: number; policy_head: string; authority_root: string; identities: Record<string, string> }; refused: { name: string; set: { path: string; value: unknown }[]; reason: string }[] }>("client/testdata/vectors/trust.json");
  const replay = async (input: typeof v.input) => {
    let h = History.begin(input.genesis);
    for (const page of input.pages) h = await h.extend(parseSteps(page.entries));
    return h;
  };
  const h = await replay(v.input);
  assert.equal(h.head, v.accepted.policy_head);
  assert.equal(h.policy.sequence, v.accepted.sequence);
  assert.equal(h.policy.authority.root, v.accepted.authority_root);
  for (const [release, id] of Object.entries(v.accepted.identities)) assert.equal(h.policy.tasks.get("scoring")!.releases.get(release)!.id, id);
  let count = 0;
  for (const change of v.refused) {
    const [set] = change.set;
    if (change.set.length !== 1 || !/^\/genesis$|^\/pages\/0\/entries\/1/.test(set!.path)) continue;
    const input = structuredClone(v.input) as Record<string, any>;
    const steps = set!.path.slice(1).split("/");
    let at = input;
    for (const step of steps.slice(0, -1)) at = at[step];
    at[steps.at(-1)!] = set!.value;
    await refused(change.reason, () => replay(input as typeof v.input));
    count++;
  }
  assert.ok(count >= 5);
});

test("a policy follows the one before it", async () => {
  const h = await found();
  await refused("quorum", () => found(grouped, "ana"));
  await refused("not-owner", () => found(grouped, "ana", "north"));
  await refused("quorum", () => found(grouped, "ana", "ana"));
  await refused("too-large", () => found(grouped, "ana", "ben", "eva", "ana"));
  await refused("genesis", () => History.begin(digestOf("1")).extend([policyStep(grouped)]));
  await refused("too-large", () => History.begin(h.genesis).extend([]));
  await refused("policy", () => History.begin(h.genesis).policy);
  const next = await adopt(h, ['calls = ["keys"]', 'calls = []']);
  assert.equal(next.length, 2);
  assert.equal(next.policy.steps, 2);
  assert.deepEqual([next.knows(h.head), next.knows(zeroDigest), next.knows(digestOf("1")), h.knows(next.head)], [true, true, false, false]);
  assert.deepEqual([indexOfHead(next.policy, h.head), indexOfHead(next.policy, zeroDigest)], [0, -1]);
  assert.equal(History.begin(h.genesis).knows(zeroDigest), false);
  const refusals: [string, [string, string]][] = [
    ["trust-domain", ['trust_domain = "clinic.example"', 'trust_domain = "other.example"']],
    ["sequence", ["sequence = 2\n", "sequence = 3\n"]],
    ["sequence", [h.policy.digest, digestOf("1")]],
    ["policy", ["created = 2026-11-22T09:00:00Z", "created = 2026-11-22T08:59:59Z"]],
    ["policy", ["development = true", "development = false"]],
    ["policy", ["development = true", "development = true\nunknown = 1"]],
  ];
  for (const [reason, edit] of refusals) await refused(reason, () => adopt(h, edit));
  // Signatures are verified before the file is parsed, and the owners are those of the policy before.
  const faulty = nextPolicy(h, [["development = true", "unknown = 1"]]);
  await refused("not-owner", () => h.extend([policyStep(faulty, "ana", "north")]));
  await refused("too-large", () => h.extend([policyStep(`${nextPolicy(h)}#${"x".repeat(256 << 10)}`)]));
  const quorum = await adopt(h, ["[owners]\nquorum = 2", "[owners]\nquorum = 1"]);
  await refused("quorum", () => h.extend([policyStep(nextPolicy(h, [["[owners]\nquorum = 2", "[owners]\nquorum = 1"]]), "ana")]));
  await quorum.extend([policyStep(nextPolicy(quorum), "ana")]);
  await refused("sequence", () => next.extend([next.steps[1]!]));
});

test("a root of hardware is never one of development", async () => {
  const sgx = `schema = "cohort/policy/v1"
trust_domain = "clinic.example"
sequence = 1
previous = ""
created = 2026-11-22T09:00:00Z
owners = { quorum = 1, approve_within = "1h", delay = "0s", keys = [ { name = "ana", ssh = "${keyLine("ana")}" } ] }
[platform.sgx]
roots = ["${digestOf("1")}"]
chips = "any"
[authority]
root = "${digestOf("3")}"
machines = "any"
reference = [ { platform = "sgx", mrenclave = "${digestOf("2")}", any = ["mrsigner", "configid"], isvprodid = 1 } ]
`;
  const h = await found(sgx, "ana");
  await adopt(h);
  const soft: [string, string][] = [["created", "development = true\ncreated"], ["[platform.sgx]", "[platform.soft]"], ['chips = "any"\n', ""], [`"sgx", mrenclave = "${digestOf("2")}", any = ["mrsigner", "configid"], isvprodid = 1`, `"soft", program = "${digestOf("2")}"`]];
  await found(edited(sgx, soft), "ana");
  await refused("policy", () => adopt(h, ...soft));
});

test("a history is stored and read again", async () => {
  const h = await heard(await adopt(await heard(await found(), "north", "south"), ['calls = ["keys"]', "calls = []"]), ["north", { withdraws: true }]);
  const again = await History.fromBytes(h.genesis, h.toBytes());
  assert.deepEqual([again.head, again.length, lastCut(again.policy, trial(h).id, "holder")], [h.head, 5, h.head]);
  assert.equal((await History.fromBytes(h.genesis, History.begin(h.genesis).toBytes())).length, 0);
  await refused("genesis", () => History.fromBytes(digestOf("1"), h.toBytes()));
  const bytes = h.toBytes();
  await refused("malformed", () => History.fromBytes(h.genesis, bytes.subarray(0, -1)));
  await refused("malformed", () => History.fromBytes(h.genesis, frame("cohort stored history v1", frame("cohort stored step v1"))));
  const later = edited(grouped, [["sequence = 1\n", "sequence = 2\n"], ['previous = ""', `previous = "${digestOf("1")}"`]]);
  await refused("sequence", () => found(later));
  for (let i = 0; i < 5; i++) {
    const then = await h.at(h.policy.heads[i]!);
    assert.deepEqual([then!.head, then!.steps, then!.heads.length], [h.policy.heads[i], i + 1, i + 1]);
  }
  assert.equal(await h.at(digestOf("1")), undefined);
  const policies: Policy[] = [];
  for await (const p of h.since(h.policy.heads[1]!)) policies.push(p);
  assert.deepEqual(policies.map((p) => p.head), h.policy.heads.slice(2));
});

test("steps of a page", async () => {
  assert.deepEqual(parseSteps(null), []);
  assert.deepEqual(parseSteps([{ policy: "YQ==", signatures: ["b"], adopted: 1 }]), [{ policy: fromBase64("YQ=="), signatures: ["b"] }]);
  for (const bad of ["a", {}, [1], [null], [{}], [{ policy: 1, signatures: [] }], [{ policy: "YQ==", signatures: {} }], [{ policy: "YQ==", signatures: [1] }], [{ policy: "YQ", signatures: [] }], [JSON.parse('{"__proto__": {"policy": "YQ==", "signatures": []}}')]]) {
    await refused("malformed", () => parseSteps(bad));
  }
  await refused("too-large", () => parseSteps(Array(10_001).fill({ policy: "", signatures: [] })));
});

test("parties agree", async () => {
  let h = await found();
  await refused("quorum", () => approvedUntil(trial(h), groupRoot, start));
  h = await heard(h, "north");
  await refused("quorum", () => approvedUntil(trial(h), groupRoot, start));
  h = await heard(h, ["south", { notAfter: "2026-11-22T10:00:00Z" }]);
  assert.equal(approvedUntil(trial(h), groupRoot, start), start + hour);
  await refused("quorum", () => approvedUntil(trial(h), groupRoot, start + hour));
  await refused("quorum", () => approvedUntil(trial(h), digestOf("b"), start));
  assert.deepEqual(groupRoots(trial(h), start), [groupRoot]);
  await refused("expired", () => consents(trial(h), groupRoot, keyDigestOf("south"), start + hour));
  await refused("quorum", () => consents(trial(h), groupRoot, keyDigestOf("east"), start));
  await refused("quorum", () => consents(trial(h), digestOf("b"), keyDigestOf("north"), start));
  await refused("party", () => consents(trial(h), groupRoot, keyDigestOf("ana"), start));
  h = await heard(h, "south");
  await refused("expired", () => approvedUntil(trial(h), groupRoot, trial(h).roster.until));
  assert.deepEqual(approvalStatus(trial(h), groupRoot, start).missing, ["east"]);
  const gone = await heard(h, ["north", { withdraws: true }]);
  await refused("quorum", () => approvedUntil(trial(gone), groupRoot, start));
  await refused("withdrawn", () => consents(trial(gone), groupRoot, keyDigestOf("north"), start));
  assert.equal(lastCut(gone.policy, trial(gone).id, "holder"), gone.head);
  assert.equal(lastCut(gone.policy, trial(gone).id, ""), gone.head);
  assert.equal(lastCut(h.policy, trial(h).id, "holder"), zeroDigest);
  approvedUntil(trial(await heard(gone, "north")), groupRoot, start);
  // An approval for less long than before is a cut too; one for longer is none.
  const shorter = await heard(h, ["north", { notAfter: "2026-11-23T00:00:00Z" }]);
  assert.equal(lastCut(shorter.policy, trial(shorter).id, "scorer"), shorter.head);
  const longer = await heard(shorter, "north");
  assert.equal(lastCut(longer.policy, trial(longer).id, "scorer"), shorter.head);
});

test("a key that signs two texts with one number withdraws", async () => {
  const h = await heard(await found(), "north", "south");
  const twice = await heard(h, ["north", { number: 1, root: digestOf("b") }]);
  await refused("withdrawn", () => consents(trial(twice), groupRoot, keyDigestOf("north"), start));
  await refused("sequence", () => heard(twice, ["north", { number: 1, root: digestOf("c") }]));
  await refused("sequence", () => heard(h, ["north", { number: 1 }]));
  consents(trial(await heard(twice, "north")), groupRoot, keyDigestOf("north"), start);
});

test("statements are refused", async () => {
  const h = await heard(await found(), "north");
  const good = statement(h, "north");
  const row = (edits: [string, string][], signer = "north", namespace = "cohort-approve") => () => h.extend([statementStep(edited(good, edits), signer, namespace)]);
  await row([])();
  const other = digestOf("9");
  const rows: [string, () => Promise<History>][] = [
    ["trust-domain", row([["clinic.example", "else.example"]])],
    ["genesis", row([[h.genesis, other]])],
    ["roster", row([[trial(h).id, other]])],
    ["not-owner", row([['party = "north"', 'party = "ana"']], "ana")],
    ["not-owner", row([['party = "north"', 'party = "south"']])],
    ["not-owner", row([], "ana")],
    ["not-owner", row([], "south")],
    ["expired", row([["2026-12-20T00:00:00Z", "2026-12-20T00:00:01Z"]])],
    ["sequence", row([["number = 2", "number = 1"], [groupRoot, groupRoot]])],
    ["sequence", row([["number = 2", `number = ${1n + (1n << 32n) + 1n}`]])],
    ["signature", row([], "north", "cohort-withdraw")],
    ["signature", row([], "north", "cohort-policy")],
    ["malformed", row([["number = 2\n", "number = 2\n\n"]])],
    ["malformed", row([["2026-12-20", "2026-02-30"]])],
    ["quorum", () => h.extend([{ policy: utf8(good), signatures: [] }])],
    ["quorum", () => h.extend([{ policy: utf8(good), signatures: Array(2).fill(statementStep(good, "north").signatures[0]) }])],
  ];
  for (const [reason, f] of rows) await refused(reason, f);
  await row([["number = 2", `number = ${1n + (1n << 32n)}`]])();
});

test("one roster succeeds another", async () => {
  let h = await heard(await found(), "north", "south");
  const old = trial(h).id;
  const change: [string, string] = [', { party = "south", task = "scoring", release = "2" } ]', " ]"];
  // Another identity, which no party approves yet: with continues the former remains.
  await refused("policy", () => adopt(h, change, ["quorum = 2\nuntil", `continues = "${digestOf("9")}"\nquorum = 2\nuntil`]));
  const continued = await adopt(h, change, ["quorum = 2\nuntil", `continues = "${old}"\nquorum = 2\nuntil`]);
  assert.notEqual(trial(continued).id, old);
  await refused("policy", () => adopt(h, ['key_mode = "shared"\nquorum = 2\nuntil', `key_mode = "unit"\ncontinues = "${old}"\nquorum = 2\nuntil`]));
  assert.equal(inForce(trial(continued), start).id, old);
  assert.equal(groupById(continued.policy, old)!.id, old);
  // The cut of role scorer is the step, for its members changed; the identity is still there.
  assert.equal(lastCut(continued.policy, old, "scorer"), zeroDigest);
  h = await heard(continued, "north");
  assert.equal(inForce(trial(h), start).id, old);
  // East and north are the quorum of the new roster, but not enough of the former's keys approve.
  h = await heard(h, "east");
  await refused("quorum", () => approvedUntil(trial(h), digestOf("b"), start));
  approvedUntil(trial(h), groupRoot, start);
  assert.equal(inForce(trial(h), start).id, trial(h).id);
  await refused("withdrawn", () => approvedUntil(groupById(h.policy, old)!, groupRoot, start));
  // A policy without the group, and back: the same identity still has its statements.
  const group = grouped.slice(grouped.indexOf("[group.trial]"));
  const away = await heard(await found(), "north", "south");
  const gone = await adopt(away, [group, ""]);
  assert.equal(gone.policy.groupStates.size, 0);
  assert.equal(lastCut(gone.policy, old, "holder"), gone.head);
  const back = await gone.extend([policyStep(edited(grouped, [["sequence = 1\n", "sequence = 3\n"], ['previous = ""', `previous = "${gone.policy.digest}"`]]))]);
  assert.equal(trial(back).id, trial(away).id);
  approvedUntil(trial(back), groupRoot, start);
});

test("a quorum of the new roster alone does not take the name", async () => {
  const h = await heard(await found(), "north", "south");
  const parties: [string, string][] = [
    [`{ name = "east", ssh = "${keyLine("east")}" }`, `{ name = "east", ssh = "${keyLine("eve")}" }`],
    [`{ name = "north", ssh = "${keyLine("north")}" }`, `{ name = "north", ssh = "${keyLine("nora")}" }`],
  ];
  let taken = await adopt(h, ...parties);
  const say = async (key: string, party: string) => taken.extend([statementStep(edited(statement(taken, key, { party }), []), key)]);
  taken = await say("eve", "east");
  taken = await say("nora", "north");
  await refused("quorum", () => approvedUntil(trial(taken), groupRoot, start));
  // Keys of the former roster transfer it.
  taken = await say("north", "north");
  taken = await say("south", "south");
  approvedUntil(trial(taken), groupRoot, start);
});

test("lower floors make another identity, higher ones do not", async () => {
  const h = await heard(await found(), "north", "south");
  const cut = await adopt(h, ["debug = true\n", 'debug = true\ncut_chips = ["1111111111111111"]\n']);
  assert.equal(trial(cut).id, trial(h).id);
  const back = await adopt(cut, ['cut_chips = ["1111111111111111"]\n', ""]);
  assert.equal(trial(back).id, trial(h).id);
  const lower = await adopt(h, [`roots = ["${digestOf("1")}"]\ndebug`, `roots = ["${digestOf("1")}", "${digestOf("8")}"]\ndebug`]);
  assert.notEqual(trial(lower).id, trial(h).id);
  await refused("policy", () => adopt(h, [`roots = ["${digestOf("1")}"]\ndebug`, `roots = ["${digestOf("1")}", "${digestOf("8")}"]\ndebug`], ["quorum = 2\nuntil", `continues = "${trial(h).id}"\nquorum = 2\nuntil`]));
});

test("statements have bounds", async () => {
  const h = await heard(await found(), "north");
  const p = h.policy;
  const records = { ...p.records };
  const place = (made: number, live: number, steps: number, spent = 0) => ({
    document: p, genesis: p.genesis, groups: p.groupStates, steps,
    records: { ...records, made, live, spent: new Map([[keyDigestOf("north"), spent], [keyDigestOf("south"), spent]]) },
  });
  const say = (at: ReturnType<typeof place>, party: string, withdraws = false) => {
    const step = statementStep(statement(h, party, { withdraws }), party);
    return addStatement(at, step.policy, step.signatures, true);
  };
  await say(place(7990, 8, 9000), "south"); // one approval and room for its withdrawal
  await refused("too-large", () => say(place(7990, 9, 9000), "south"));
  await say(place(7990, 9, 9000), "north"); // it has an approval already
  await refused("too-large", () => say(place(7990, 10, 9000), "north"));
  await say(place(7990, 10, 9000), "north", true);
  await say(place(10, 1, 9997), "south");
  await refused("too-large", () => say(place(10, 1, 9998), "south"));
  await say(place(10, 1, 9999), "north", true);
  await say(place(1994, 6, 3000, 2000), "south"); // three keys share 6000
  await refused("too-large", () => say(place(1994, 6, 3000, 2001), "south"));
  await say(place(1994, 6, 3000, 2001), "north", true);
  assert.equal(noRecords.made, 0);
  assert.equal((await nextGroups(new Map(), p, p.genesis)).get("trial")!.id, trial(h).id);
});

test("leaves are cut off", async () => {
  const h = await found();
  const [release1, release2] = ["1", "2"].map((r) => h.policy.tasks.get("scoring")!.releases.get(r)!.id) as [string, string];
  const leaf: Facts = { task: "scoring", release: "", identity: release2, group: "", role: "", party: zeroDigest, root: zeroDigest, unit: "11".repeat(16), platform: "soft", chip: "0123456789abcdef", head: h.head, shared: false };
  const pair: Facts = { ...leaf, head: zeroDigest, shared: true };
  const edit = (old: string, next: string): [string, string] => [old, next];
  cutOff(h.policy, leaf, start);
  cutOff(h.policy, pair, start);
  await refused("cut-off", () => cutOff(h.policy, { ...leaf, identity: digestOf("1") }, start));
  await refused("cut-off", () => cutOff(h.policy, { ...leaf, platform: "snp" }, start));
  await refused("cut-off", () => cutOff(h.policy, { ...pair, identity: digestOf("1") }, start));
  await refused("behind", () => cutOff(h.policy, { ...pair, head: digestOf("1") }, start));
  await refused("cut-off", () => cutOff(h.policy, { ...pair, head: h.head }, start));
  cutOff(h.policy, { ...leaf, head: digestOf("1") }, start); // newer than the policy known here

  const unit = await adopt(h, edit('key_mode = "shared"\ncalls', `key_mode = "shared"\ncut_units = ["${leaf.unit}"]\ncalls`));
  await refused("cut-off", () => cutOff(unit.policy, leaf, start));
  cutOff(unit.policy, { ...leaf, unit: "22".repeat(16) }, start);
  await refused("cut-off", () => cutOff(unit.policy, pair, start));
  cutOff(unit.policy, { ...pair, head: unit.head }, start);
  const chip = await adopt(h, edit("debug = true\n", 'debug = true\ncut_chips = ["0123456789abcdef"]\n'));
  await refused("cut-off", () => cutOff(chip.policy, leaf, start));
  cutOff(chip.policy, { ...leaf, chip: "1123456789abcdef" }, start);
  const debug = await adopt(h, edit("debug = true\n", ""));
  await refused("cut-off", () => cutOff(debug.policy, leaf, start));
  cutOff(debug.policy, { ...leaf, head: debug.head }, start);
  // A step that reverts a cut does not undo it.
  const undone = await adopt(debug, edit("\n[authority]\n", "debug = true\n[authority]\n"));
  await refused("cut-off", () => cutOff(undone.policy, leaf, start));
  const dynamic = await adopt(h, edit("dynamic = true\n", ""));
  await refused("cut-off", () => cutOff(dynamic.policy, leaf, start));
  assert.equal(lastCut(dynamic.policy, release2, ""), dynamic.head);
  assert.equal(lastCut(dynamic.policy, release1, ""), zeroDigest);
  assert.equal(lastCutOfHeirs(dynamic.policy, release1), dynamic.head);
  const retired = await adopt(h, edit('continues = "1"', 'continues = "1"\nretired = true'));
  cutOff(retired.policy, leaf, start);
  cutOff(retired.policy, pair, start);
});

test("leaves of groups are cut off", async () => {
  const h = await heard(await found(), "north", "south");
  const p = trial(h);
  const leaf: Facts = { task: "keys", release: "1.4", identity: p.id, group: "trial", role: "holder", party: keyDigestOf("north"), root: groupRoot, unit: "11".repeat(16), platform: "soft", chip: "0123456789abcdef", head: h.head, shared: false };
  const pair: Facts = { ...leaf, task: "", release: "", party: zeroDigest, head: zeroDigest, shared: true };
  cutOff(h.policy, leaf, start);
  cutOff(h.policy, pair, start);
  await refused("withdrawn", () => cutOff(h.policy, { ...leaf, identity: digestOf("1") }, start));
  await refused("withdrawn", () => cutOff(h.policy, { ...leaf, group: "other" }, start));
  await refused("quorum", () => cutOff(h.policy, { ...leaf, root: digestOf("b") }, start));
  await refused("party", () => cutOff(h.policy, { ...leaf, party: keyDigestOf("ana") }, start));
  await refused("cut-off", () => cutOff(h.policy, { ...leaf, party: keyDigestOf("south") }, start));
  await refused("cut-off", () => cutOff(h.policy, { ...leaf, role: "scorer" }, start));
  await refused("expired", () => cutOff(h.policy, leaf, p.roster.until));
  // A quorum of others does not replace a party's own approval.
  const others = await heard(h, "east", ["north", { withdraws: true }]);
  await refused("withdrawn", () => cutOff(others.policy, leaf, start));
  await refused("cut-off", () => cutOff(others.policy, pair, start));
  cutOff(others.policy, { ...pair, head: others.head }, start);
});

test("hosts", async () => {
  const p = (await found()).policy;
  assert.deepEqual(hosts(p, "keys", ""), ["keys", "keys.clinic.example"]);
  assert.deepEqual(hosts(p, "scoring", ""), ["scoring"]);
  assert.deepEqual(hosts(p, "", "trial"), ["trial", "trial.clinic.example"]);
  assert.deepEqual(hosts(p, "keys", "trial"), ["trial", "trial.clinic.example"]);
  assert.deepEqual([hosts(p, "gone", ""), hosts(p, "keys", "gone"), hosts(p, "", "")], [[], [], []]);
  for (const yes of ["keys", "KEYS:8443", "keys.clinic.example", "Keys.Clinic.Example:443", "keys:"]) assert.ok(serves(p, "keys", "", yes), yes);
  for (const no of ["", ":443", "keys.clinic.example.evil.example", "evil.example", "keys@evil.example", "user@keys", "keys:port", "127.0.0.1", "[::1]:443", "scoring", "keys:1:2"]) assert.ok(!serves(p, "keys", "", no), no);
});

test("results are admitted", async () => {
  const h = await heard(await found(), "north", "south");
  const p = h.policy;
  const resultOf = (program: string, more: Partial<Result> = {}): Result => ({
    platform: "soft", chip: "0123456789abcdef", debug: true, dynamic: false, fetched: [], notVerified: [], details: {}, devices: [], at: start,
    measurement: {
      platform: "soft",
      registers: [{ name: "agent", value: new Uint8Array(0) }, { name: "program", value: new Uint8Array(Buffer.from(program.repeat(64), "hex")) }, { name: "args", value: noArgs }],
    },
    ...more,
  });
  const noArgs = new Uint8Array(createHash("sha256").update(Buffer.from("\x13cohort arguments v1")).digest());
  assert.equal(admit(p, "keys", resultOf("4")).release.name, "1.4");
  assert.equal(admit(p, "scoring", resultOf("5")).release.name, "1");
  await refused("measurement", () => admit(p, "scoring", resultOf("4")));
  await refused("measurement", () => admit(p, "scoring", resultOf("5", { dynamic: true })));
  await refused("not-found", () => admit(p, "gone", resultOf("4")));
  admitAuthority(p.authority, resultOf("2"));
  await refused("measurement", () => admitAuthority(p.authority, resultOf("3")));
  await refused("measurement", () => admitAuthority(p.authority, resultOf("2", { dynamic: true })));
  await refused("wrong-chip", () => admitAuthority(p.authority, resultOf("2", { chip: "1123456789abcdef" })));
  admitAuthority({ ...p.authority, machines: "any" }, resultOf("2", { chip: "1123456789abcdef" }));
  assert.equal(admitMember(p, "trial", "holder", resultOf("4"), keyDigestOf("north"), start).task.name, "keys");
  await refused("role", () => admitMember(p, "trial", "scorer", resultOf("4"), keyDigestOf("north"), start));
  await refused("measurement", () => admitMember(p, "trial", "scorer", resultOf("2"), keyDigestOf("north"), start));
  await refused("party", () => admitMember(p, "trial", "holder", resultOf("4"), keyDigestOf("south"), start));
  await refused("quorum", () => admitMember(p, "trial", "scorer", resultOf("5"), keyDigestOf("east"), start));
  await refused("not-found", () => admitMember(p, "trial", "clerk", resultOf("4"), keyDigestOf("north"), start));
  await refused("expired", () => admitMember(p, "trial", "holder", resultOf("4"), keyDigestOf("north"), trial(h).roster.until));
});

test("fresh evidence in a group", async () => {
  const h = await heard(await found(), "north", ["south", { notAfter: "2026-12-01T00:00:00Z" }]);
  const old = trial(h).id;
  const reportData = new Uint8Array(64).fill(1);
  const program = (digit: string): Appraiser => ({
    platform: "soft",
    appraise: async () => ({
      reportData, chip: "0123456789abcdef", debug: false, dynamic: false, notVerified: [], details: {},
      measurement: {
        platform: "soft",
        registers: [
          { name: "agent", value: new Uint8Array(0) }, { name: "program", value: new Uint8Array(Buffer.from(digit.repeat(64), "hex")) },
          { name: "args", value: new Uint8Array(createHash("sha256").update(Buffer.from("\x13cohort arguments v1")).digest()) },
        ],
      },
    }),
  });
  const appraised = (policy: Policy, identity: string, change: Partial<Facts> = {}, digit = "4") => {
    const unit = { facts: { group: "trial", role: "holder", party: keyDigestOf("north"), identity, task: "keys", ...change } } as Unit;
    return appraiseUnit(policy, utf8('["application/vnd.cohort.soft-evidence","AAAA"]'), reportData, unit, start, new Map([["soft", program(digit)]]));
  };
  assert.equal((await appraised(h.policy, old)).chip, "0123456789abcdef");
  await refused("roster", () => appraised(h.policy, digestOf("7")));
  await refused("party", () => appraised(h.policy, old, { party: keyDigestOf("south") }));
  await refused("role", () => appraised(h.policy, old, { role: "scorer" }));
  await refused("measurement", () => appraised(h.policy, old, {}, "9"));

  // The state that admits the result is that in force: until the parties approve a group, the one that it continues.
  const edits: [string, string][] = [[', { party = "south", task = "scoring", release = "2" } ]', " ]"], ["quorum = 2\nuntil", `continues = "${old}"\nquorum = 2\nuntil`]];
  const waiting = await adopt(h, ...edits);
  const next = trial(waiting).id;
  assert.notEqual(next, old);
  await appraised(waiting.policy, old);
  await refused("roster", () => appraised(waiting.policy, next));
  const approved = await heard(waiting, "north", "south");
  await appraised(approved.policy, next);
  await refused("roster", () => appraised(approved.policy, old));
});

test("a long history", async () => {
  let h = await found();
  const steps: Step[] = [];
  for (let number = 1; number <= 300; number++) steps.push(statementStep(statement(h, number % 2 ? "north" : "south", { number: Math.ceil(number / 2), withdraws: number % 4 > 1 }), number % 2 ? "north" : "south"));
  h = await h.extend(steps);
  assert.equal(h.length, 301);
  assert.equal(h.policy.heads.length, 301);
});
