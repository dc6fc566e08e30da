import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import type { History } from "../src/history.js";
import { chainsOf } from "../src/policy/group.js";
import { approvalStatus, groupRoots, inForce, type Policy } from "../src/policy/policy.js";
import { adopt, digestOf, edited, found, groupRoot, heard, keyLine, start } from "./policyhouse.js";
import { Refusal } from "../src/refusal.js";
import { repository } from "./vectors.js";

/** What follows from a history, as the Go code computes it. */
interface State {
  head: string;
  cuts: Record<string, string>;
  heirs: Record<string, string>;
  /** By identity, the digest of the roster. */
  groups: Record<string, { predecessor: string; former: string; succeeded: boolean; ends: number; roots: string[]; inForce: string }>;
}

function stateOf(p: Policy): State {
  const heads = (map: ReadonlyMap<string, number>) => Object.fromEntries([...map].map(([key, i]): [string, string] => [key, p.heads[i]!]).sort());
  const groups = chainsOf(p.groupStates).map((g): [string, State["groups"][string]] => {
    let inForceId = "";
    try {
      inForceId = inForce(g, start).id;
    } catch {
      // Its parties do not approve it.
    }
    return [g.id, {
      predecessor: g.predecessor?.id ?? "", former: g.former?.id ?? "", succeeded: g.succeeded,
      ends: approvalStatus(g, groupRoot, start).ends ?? 0, roots: groupRoots(g, start), inForce: inForceId,
    }];
  });
  return { head: p.head, cuts: heads(p.cuts.last), heirs: heads(p.cuts.heirs), groups: Object.fromEntries(groups.sort()) };
}

/** The hardware policy with a group, whose floors have values of every kind. */
function hardware(): string {
  const source = readFileSync(`${repository}policy/policyfile/testdata/vectors/policy/devices.toml`, "utf8");
  const lines = source.split("\n").slice(1).join("\n");
  return edited(lines, [["devices = { nvidia-gpu = 2 }\n", 'devices = { nvidia-gpu = 2 }\nenv = { LANG = "C\\t\\"é\\u202e\\\\", A_1 = "" }\n']]) + `
[group.trial]
key_mode = "unit"
quorum = 1
until = 2026-12-20T00:00:00Z
party = [ { name = "north", ssh = "${keyLine("north")}" }, { name = "south", ssh = "${keyLine("south")}" } ]
[group.trial.authority]
machines = "any"
reference = [ { platform = "sgx", mrenclave = "@signer", any = ["mrsigner"], isvprodid = 7, configid = "${"0".repeat(128)}" } ]
[group.trial.authority.platform.sgx]
roots = ["${digestOf("2")}"]
chips = "any"
min_tcb_date = 2026-01-01t00:00:00.000z
[group.trial.role.holder]
members = [ { party = "north", task = "keys", release = "1" }, { party = "south", task = "keys", release = "1" } ]
`;
}

/** Histories whose states are in vectors/groups.json, with a step after each edit or statement. */
async function histories(): Promise<History[]> {
  const edit = (old: string, next: string): [string, string] => [old, next];
  let a = await heard(await found(), "north", ["south", { notAfter: "2026-12-01T00:00:00Z" }]);
  const old = a.policy.groupStates.get("trial")!.id;
  a = await adopt(a, edit("debug = true\n", 'debug = true\ncut_chips = ["1111111111111111"]\n'));
  a = await adopt(a, edit(', { party = "south", task = "scoring", release = "2" } ]', " ]"), edit("quorum = 2\nuntil", `continues = "${old}"\nquorum = 2\nuntil`));
  a = await heard(a, "north", ["east", { root: digestOf("b") }], "east", "south", ["north", { withdraws: true }], ["south", { number: 1, root: digestOf("c") }]);
  a = await adopt(a, edit('cut_chips = ["1111111111111111"]\n', ""), edit("dynamic = true\n", ""));
  a = await heard(await adopt(a, edit(`continues = "${old}"\n`, "")), "north");
  let b = await heard(await found(hardware(), "ana"), "south");
  const step = async (...edits: [string, string][]) => {
    b = await adopt(b, ...edits);
  };
  await step(edit("snp = 8,", "snp = 22,"));
  await step(edit("min_tcb_date = 2025-05-14T00:00:00Z", "min_tcb_date = 2025-06-14T00:00:00Z"), edit('"OutOfDate"]', "]"));
  await step(edit("ECC_EN = true", 'ECC_EN = "any"'));
  await step(edit("nvidia-gpu = 2", "nvidia-gpu = 1"));
  await step(edit("retired = true\n", ""));
  b = await heard(b, "north");
  return [a, b];
}

test("groups have the identities, approvals and cuts that the Go code computes", async () => {
  const expected = JSON.parse(readFileSync(`${repository}ts/test/vectors/groups.json`, "utf8")) as State[][];
  const all = await histories();
  for (const [i, h] of all.entries()) {
    for (const [j, head] of h.policy.heads.entries()) assert.deepEqual(stateOf((await h.at(head))!), expected[i]![j], `history ${i}, step ${j}`);
    assert.equal(h.length, expected[i]!.length);
    assert.deepEqual(stateOf(h.policy), expected[i]!.at(-1));
  }
});

test("no authority of a group in a policy of hardware is a development platform", async () => {
  const soft = edited(hardware(), [
    [`{ platform = "sgx", mrenclave = "@signer", any = ["mrsigner"], isvprodid = 7, configid = "${"0".repeat(128)}" }`, '{ platform = "soft", program = "@signer" }'],
    ["[group.trial.authority.platform.sgx]", "[group.trial.authority.platform.soft]"],
    ['chips = "any"\nmin_tcb_date = 2026-01-01t00:00:00.000z\n', ""],
  ]);
  await assert.rejects(found(soft, "ana"), (e) => e instanceof Refusal && e.rule === "group.trial.authority.platform.soft: development");
});
