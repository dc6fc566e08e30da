import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { test } from "node:test";
import { encodeMeasurement } from "../src/evidence/measurement.js";
import { History, type Step } from "../src/history.js";
import { parseDocument } from "../src/policy/document.js";
import { encodeRoster, parseRoster, parseStatement, type Roster, rosterId } from "../src/policy/roster.js";
import { type Namespace, verifySshSignature } from "../src/policy/sshsig.js";
import { Refusal } from "../src/refusal.js";
import { concat, utf8 } from "../src/bytes.js";
import { framedField } from "../src/frame.js";
import { zeroDigest } from "../src/policy/digest.js";
import { repository, vector } from "./vectors.js";

const bytes = (path: string) => new Uint8Array(readFileSync(repository + path));
const textOf = (path: string) => readFileSync(repository + path, "utf8");

/** Returns "accepted", or the reason of the refusal. */
async function verdict(f: () => unknown): Promise<string> {
  try {
    await f();
    return "accepted";
  } catch (e) {
    assert.ok(e instanceof Refusal, String(e));
    return e.reason;
  }
}

/** Reads lines "key: value" up to an empty line. */
function header(source: string): Map<string, string[]> {
  const fields = new Map<string, string[]>();
  for (const line of source.split("\n")) {
    const at = line.indexOf(": ");
    if (at > 0) fields.set(line.slice(0, at), [...(fields.get(line.slice(0, at)) ?? []), line.slice(at + 2)]);
  }
  return fields;
}

test("signature vectors", async () => {
  const folder = "policy/sshsig/testdata/vectors/signature/";
  const message = bytes(folder + "message");
  let count = 0;
  for (const name of readdirSync(repository + folder).filter((n) => n.endsWith(".txt"))) {
    const source = textOf(folder + name);
    const split = source.indexOf("\n\n");
    const fields = header(source.slice(0, split));
    let key = "";
    const got = await verdict(async () => {
      const made = await verifySshSignature(source.slice(split + 2), fields.get("namespace")![0] as Namespace, message);
      key = `${made.type} ${Buffer.from(made.blob).toString("base64")}`;
    });
    assert.equal(got, fields.get("expect")![0], name);
    if (got === "accepted") assert.equal(key, fields.get("key")![0], name);
    count++;
  }
  assert.ok(count >= 14);
});

test("policy vectors", async () => {
  const folder = "policy/policyfile/testdata/vectors/policy/";
  let count = 0;
  for (const name of readdirSync(repository + folder)) {
    const raw = bytes(folder + name);
    const want = textOf(folder + name).split("\n")[0]!.slice("# expect: ".length);
    let got: string;
    try {
      const d = await parseDocument(raw);
      const quoted = (s: string) => (/^[a-zA-Z0-9_-]+$/.test(s) ? s : JSON.stringify(s));
      const placed = [
        ...d.authority.references.map((r, i) => ({ path: `authority.reference[${i}]`, r })),
        ...[...d.tasks.values()].flatMap((t) => [...t.releases.values()].flatMap((rel) => rel.references.map((r, i) => ({ path: `task.${quoted(t.name)}.release.${quoted(rel.name)}.reference[${i}]`, r })))),
      ];
      got = ["accepted", ...placed.map(({ path, r }) => `${path} sha256:${createHash("sha256").update(encodeMeasurement(r)).digest("hex")}`)].join(", ");
    } catch (e) {
      assert.ok(e instanceof Refusal, `${name}: ${e}`);
      got = `${e.reason}, ${e.rule}`;
    }
    assert.equal(got, want, name);
    count++;
  }
  assert.ok(count >= 27);
});

test("history vectors", async () => {
  const folder = "policy/testdata/vectors/history/";
  for (const name of readdirSync(repository + folder).filter((n) => n.endsWith(".txt"))) {
    const fields = header(textOf(folder + name));
    const steps = fields.get("step")!.map((line): Step => {
      const [file, ...signatures] = line.split(" ");
      return { policy: bytes(folder + file), signatures: signatures.map((s) => textOf(folder + s)) };
    });
    let history: History | undefined;
    const got = await verdict(async () => {
      history = await History.begin(fields.get("pin")![0]!).extend(steps);
    });
    assert.equal(got, fields.get("expect")![0], name);
    if (history !== undefined) assert.equal(history.head, fields.get("head")![0], name);
  }
});

test("group vectors", async () => {
  const folder = "policy/testdata/vectors/group/";
  const roster = await parseRoster(new Uint8Array(Buffer.from(textOf(folder + "roster.hex").trim(), "hex")));
  assert.equal(await rosterId(roster), textOf(folder + "identity.txt").trim());
  assert.equal(Buffer.from(encodeRoster(roster)).toString("hex"), textOf(folder + "roster.hex").trim());
  assert.equal(parseStatement(bytes(folder + "approve.txt")).withdraws, false);
  assert.equal(parseStatement(bytes(folder + "withdraw.txt")).withdraws, true);
  let count = 0;
  for (const row of vector<{ name: string; text?: string; roster?: string; expect: string }[]>(folder + "texts.json")) {
    const got = await verdict(() => (row.roster === undefined ? parseStatement(new TextEncoder().encode(row.text)) : parseRoster(new Uint8Array(Buffer.from(row.roster, "hex")))));
    assert.equal(got, row.expect === "ok" ? "accepted" : row.expect, row.name);
    count++;
  }
  assert.ok(count >= 20);
});


test("rosters that no policy could have are refused", async () => {
  const good = await parseRoster(new Uint8Array(Buffer.from(textOf("policy/testdata/vectors/group/roster.hex").trim(), "hex")));
  const [holder, scorer] = good.roles as [Roster["roles"][0], Roster["roles"][0]];
  const [north, south] = good.parties as [Roster["parties"][0], Roster["parties"][0]];
  const changes: Partial<Roster>[] = [
    { trustDomain: "Clinic.example" }, { trustDomain: "" }, { group: "Trial" }, { group: "" }, { root: zeroDigest }, { genesis: zeroDigest }, { keyMode: "other" as "unit" },
    { quorum: 0 }, { quorum: 3 }, { quorum: 2 ** 45 }, { until: 2 ** 38 * 1000 }, { authority: "" }, { authority: "1" }, { authority: good.authority.replace("soft", "hard") },
    { parties: [south, north] }, { parties: [] }, { parties: [north, { ...south, key: north.key }] }, { parties: [north, { ...south, key: zeroDigest }] }, { parties: [north, { ...south, name: "South" }] },
    { parties: [{ ...north, name: "s0uth" }, south] }, { parties: [{ ...north, name: "so-uth" }, south] }, { parties: [north, north] },
    { roles: [] }, { roles: [scorer, holder] }, { roles: [holder, { ...scorer, name: "h0lder" }] }, { roles: [{ ...holder, members: [] }, scorer] }, { roles: [holder, { ...scorer, calls: ["other"] }] },
    { roles: [holder, { ...scorer, calls: ["scorer", "holder"] }] }, { roles: [holder, { ...scorer, calls: ["holder", "holder"] }] }, { roles: [holder, { ...scorer, calls: ["", "holder"] }] },
    ...[{ party: "west" }, { task: "Keys" }, { release: "" }, { identity: zeroDigest }, { task: "a b" }].map((m) => ({ roles: [{ ...holder, members: [{ ...holder.members[0]!, ...m }] }, scorer] })),
    { roles: [{ ...holder, members: [holder.members[0]!, holder.members[0]!] }, scorer] }, { roles: [{ ...holder, members: [{ ...holder.members[0]!, party: "south" }, holder.members[0]!] }, scorer] },
  ];
  for (const change of changes) assert.equal(await verdict(() => parseRoster(encodeRoster({ ...good, ...change }))), "malformed", JSON.stringify(change));
  const bytes = encodeRoster(good);
  for (const bad of [bytes.subarray(0, 300), bytes.subarray(0, 16), concat(bytes, Uint8Array.of(0)), concat(bytes, framedField(utf8("x"))), concat(bytes, framedField(bytes)), bytes.map((b, i) => (i === 3 ? b ^ 1 : b))]) {
    assert.equal(await verdict(() => parseRoster(bad)), "malformed");
  }
  const party = encodeRoster({ ...good, roles: [] }).subarray(encodeRoster({ ...good, parties: [], roles: [] }).length);
  assert.equal(await verdict(() => parseRoster(concat(encodeRoster({ ...good, parties: [] }), party))), "malformed", "parties after roles");
  assert.equal(await verdict(() => parseRoster(new Uint8Array((256 << 10) + 1))), "too-large");
  assert.equal(await verdict(() => parseRoster(encodeRoster({ ...good, until: good.until + 1000 }))), "accepted");
});
