import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { utf8 } from "../src/bytes.js";
import { parseDocument } from "../src/policy/document.js";
import { decodeToml, decodeTomlText, literal, parseDuration, quote, sortedTexts } from "../src/policy/toml.js";
import { Refusal } from "../src/refusal.js";
import { digestOf, edited, grouped, keyLine } from "./policyhouse.js";
import { repository } from "./vectors.js";

/** Texts that the Go code accepts too, with the same values; each is `x` in one line. */
const accepted: [source: string, value: string][] = [
  ["x = 1", "1"], ["x = +1", "1"], ["x = -0", "0"], ["x = 1_000", "1000"], ["x = 0x1F", "31"], ["x = 0o17", "15"], ["x = 0b101", "5"],
  ["x = 9007199254740991", "9007199254740991"],
  ["x = true # c", "true"], ["'x' = 1", "1"], ['"x" = 1', "1"], ['"\\u0078" = 1', "1"],
  ['x = "a\\tb\\u0041\\U00000042\\x43\\e"', '"a\\tbABC\\x1b"'], ["x = 'a\\b'", '"a\\\\b"'],
  ['x = """\na\\\n   b"""', '"ab"'], ['x = """a"""""', '"a\\"\\""'], ["x = '''\n'a''''", "\"'a'\""],
  ['x = "\\u202e\\u007f\\u0000é😀"', '"\\u202e\\x7f\\x00\\u00e9\\U0001f600"'],
  ["x = [1, [\"a\"], # c\n]", '[1, ["a"]]'], ["x = { a = 1, b.c = 2 }", "{ a = 1, b = { c = 2 } }"], ["x = {\n a = 1, # c\n}", "{ a = 1 }"],
  ["x.b = 1\nx.a = 2", "{ a = 2, b = 1 }"], ["[x]\na = 1\n[x.b]\nc = 2", "{ a = 1, b = { c = 2 } }"], ["[x.b]\nc = 2\n[x]\na = 1", "{ a = 1, b = { c = 2 } }"],
  ["[[x]]\na = 1\n[[x]]\n[x.b]\n", "[{ a = 1 }, { b = {  } }]"], ["x = {}", "{  }"], ["x = []", "[]"],
  ["x = { __proto__ = 1 }", "{ __proto__ = 1 }"], ["[x.__proto__]\na = 1", "{ __proto__ = { a = 1 } }"], ["x.constructor = 1\nx.toString = 2", "{ constructor = 1, toString = 2 }"],
  ['x = { "a b" = 1, "" = 2 }', '{ "" = 2, "a b" = 1 }'],
  ...["2026-11-22T09:00:00Z", "2026-11-22 09:00:00Z", "2026-11-22t09:00:00z", "2026-11-22T09:00:00+00:00", "2026-11-22T09:00:00-00:00", "2026-11-22T09:00:00.000Z", "2026-11-22T09:00Z"]
    .map((s): [string, string] => [`x = ${s}`, "2026-11-22T09:00:00Z"]),
  ["x = 2028-02-29T23:59:59Z", "2028-02-29T23:59:59Z"], ['x = "2026-02-30T09:00:00Z"', '"2026-02-30T09:00:00Z"'], ["x = 1 # 2026-02-30T09:00:00Z \"", "1"],
  ["x = '2026-02-30T09:00:00Z'", '"2026-02-30T09:00:00Z"'], ["x = { 2026-11-22 = 2026-11-22T09:00:00Z }", "{ 2026-11-22 = 2026-11-22T09:00:00Z }"],
];

/** Texts that the Go code refuses, in decoding or because no key of a policy has such a value. */
const refused = [
  "x = 1\nx = 2", "x = 1\n'x' = 2", "x.a = 1\nx.a = 2", "x = 1\nx.a = 2", "x = {}\nx.a = 1", "x = { a = 1, a = 2 }", "x = { a = 1, a.b = 2 }", "x = { a = { b = 1 }, a.c = 2 }",
  "[x]\n[x]", "x.a = 1\n[x]", "[x]\na.b = 1\n[x.a]", "x = []\n[[x]]", "[[x]]\n[x]", "x = [{}]\n[x.a]", "x = {}\n[x.a]",
  "[x]\n[[x]]", "[a]\nb = 1\n[a.b]", "a = { b = 1 }\n[a.c]\n", "__proto__ = 1\n__proto__ = 2",
  "x = 01", "x = 1__0", "x = _1", "x = 1_", "x = 0xg", "x = +0x1", "x = 1.", "x = .5", "x = 1e", "x = True", "x = tru", "x = truefalse", "x = 1 2", "x = ", "x", "x 1", "x true", "x 'a'", "{ a 1 }", "= 1", "x = 1 y = 2", "x = [1", "x = [1 2]", "x = [,]", "x = {,}", "x = { a = 1 b = 2 }",
  "x = 1.5", "x = 1e3", "x = 1.0", "x = inf", "x = nan", "x = 9007199254740993", "x = 9223372036854775808", "x = -99999999999999999999",
  'x = "a', "x = 'a", 'x = """a""', 'x = "a\nb"', "x = '''a'''''''", 'x = "\\q"', 'x = "\\ud800"', 'x = "\\U00110000"', 'x = "\\u12"', 'x = """a\\ b"""',
  "x = 2026-11-22", "x = 09:00:00", "x = 2026-11-22T09:00:00", "x = 2026-11-22T09:00:00+01:00", "x = 2026-02-30T09:00:00Z", "x = 2026-02-29T09:00:00Z", "x = 2026-13-01T00:00:00Z", "x = 2026-11-22T24:00:00Z", "x = 2026-11-22T23:59:60Z",
  "x = 2026-11-22T09:00:00.0000001Z", "x = 2026-11-22T09:00:00.5Z", "x = 2026-11-22T9:00:00Z", "x = 2026-11-22T 9:00:00Z", "x = 2026-11-22T09:00:00ZZ", "x = 2026-11-22T09:00:00+0000", "x = 2026-11-22  09:00:00Z", "x = 2026-11-22T09:00:00 Z", "x = 1999-11-22T09:00:00Z", "x = 9000-11-22T09:00:00Z",
  "x = 1\r\n", "x = 1 # \u202e", "x = 1 # \0", "x = '\u200b'", "\ufeffx = 1", "x = 1\u00a0", "x = 1 # \u{e0041}", "x = 1\u2028", "[x", "[]", "[x]]", "[[x]", "[x] y = 1", "é = 1",
  "x = " + "[".repeat(200) + "]".repeat(200),
];

test("TOML has the values that the Go code reads", () => {
  for (const [source, value] of accepted) {
    assert.equal(literal(decodeToml(utf8(source)).get("x")), value, source);
    assert.equal(literal(decodeTomlText(`${source}\n`).get("x")), value, source);
  }
  for (const source of refused) {
    assert.throws(() => decodeToml(utf8(source)), (e) => e instanceof Refusal && e.reason === "policy", JSON.stringify(source));
  }
  assert.throws(() => decodeToml(Uint8Array.of(0x78, 0xff)), (e) => e instanceof Refusal && e.rule === "encoding");
  decodeToml(utf8(`#${"x".repeat((256 << 10) - 1)}`));
  assert.throws(() => decodeToml(utf8(`#${"x".repeat(256 << 10)}`)), (e) => e instanceof Refusal && e.rule === "size in bytes");
});

// A reader whose time grows with the square of the size would take minutes.
test("hostile texts of the greatest size are read at once", { timeout: 60_000 }, () => {
  for (const piece of ['"""\n', "\\\"\"\"\n", "''' ", "'\\", '"\\', "[", "{", "a.", "a=1\n", "2026-11-22T09:00:", "#\"\n", "[[a]]\n", "a={", "[a.b]\n"]) {
    try {
      decodeToml(utf8(piece.repeat(Math.floor((256 << 10) / piece.length))));
    } catch (e) {
      assert.ok(e instanceof Refusal, String(e));
    }
  }
});

test("quotes and orders are those of Go", () => {
  assert.equal(quote('a"b\\c\x07\b\f\n\r\t\v\x01\x7f\u00a0\u00ad\u2028\u{1f600}\u{e0001}'), '"a\\"b\\\\c\\a\\b\\f\\n\\r\\t\\v\\x01\\x7f\\u00a0\\u00ad\\u2028\\U0001f600\\U000e0001"');
  assert.deepEqual(sortedTexts(["b", "", "a\u{1f600}", "a\uffff", "a", "B"]), ["", "B", "a", "a\uffff", "a\u{1f600}", "b"]);
});

test("durations are those of Go", () => {
  const rows: [string, bigint | undefined][] = [
    ["0", 0n], ["1s", 10n ** 9n], ["-1s", -(10n ** 9n)], ["+5m", 300n * 10n ** 9n], ["1h30m", 5400n * 10n ** 9n], ["1.5h", 5400n * 10n ** 9n], [".5s", 5n * 10n ** 8n], ["1.s", 10n ** 9n],
    ["1ns", 1n], ["1us", 1000n], ["1µs", 1000n], ["1μs", 1000n], ["1ms", 10n ** 6n], ["8760h", 8760n * 3600n * 10n ** 9n], ["0.000000001s", 1n], ["1.0000000009s", 10n ** 9n], ["0.1h", 360n * 10n ** 9n],
    ["", undefined], ["1", undefined], ["s", undefined], [".s", undefined], ["1d", undefined], ["1 s", undefined], ["1s ", undefined], ["--1s", undefined], ["-", undefined], ["1e3s", undefined], ["1,5s", undefined], ["1mh", undefined],
  ];
  for (const [source, want] of rows) assert.equal(parseDuration(source), want, source);
});

test("policies are refused", async () => {
  const hardware = readFileSync(`${repository}policy/policyfile/testdata/vectors/policy/hardware.toml`, "utf8");
  const rows: [source: string, old: string, next: string, rule: string][] = [
    [grouped, 'schema = "cohort/policy/v1"', 'schema = "cohort/policy/v2"', "schema: value"],
    [grouped, '[authority]\nroot = "sha256:', '[authority]\n "root" = "sha256:', "authority.root: line of the root"],
    [grouped, "[owners]\nquorum = 2", "[owners]\nquorum = 4", "owners.quorum: value"],
    [grouped, "[owners]\nquorum = 2", "[owners]\nquorum = 0", "owners.quorum: value"],
    [grouped, keyLine("ben"), keyLine("ana"), "owners.keys: key twice"],
    [grouped, 'name = "ben"', 'name = "ana"', "owners.keys: owner twice"],
    [grouped, 'key_mode = "unit"\n', 'key_mode = "unit"\nlifetime = "2s"\n', "task.keys.lifetime: value"],
    [grouped, 'key_mode = "unit"\n', 'key_mode = "unit"\nlifetime = "24h1s"\n', "task.keys.lifetime: value"],
    [grouped, 'key_mode = "unit"\n', 'key_mode = "unit"\nunits = 0\n', "task.keys.units: value"],
    [grouped, '["keys.clinic.example"]', '["authority.clinic.example"]', "task.keys.names: name twice"],
    [grouped, '["keys.clinic.example"]', '["127.0.0.1"]', "task.keys.names[0]: value"],
    [grouped, 'key_mode = "unit"\n', 'key_mode = "unit"\n__proto__ = 1\n', "task.keys.__proto__: unknown key"],
    [grouped, "debug = true\n", "debug = true\nconstructor = 1\n", "platform.soft.constructor: unknown key"],
    [grouped, "[platform.soft]", "[platform.toString]", "platform.toString: name"],
    [grouped, 'calls = ["keys"]', 'calls = ["gone"]', "task.scoring.calls: task"],
    [grouped, 'continues = "1"', 'continues = "2"', 'task.scoring.release.2.continues: circle'],
    [grouped, `{ platform = "soft", program = "${digestOf("6")}", args = ["--model", "m.json"] }`, `{ platform = "soft", program = "${digestOf("5")}" }`, "task.scoring.release.2.reference[0]: measurement twice"],
    [grouped, 'any = ["agent", "args"]', 'any = ["agent", "args"], args = []', 'task.keys.release."1.4".reference[0].args: key'],
    [grouped, 'any = ["agent", "args"]', 'any = ["agent", "agent"]', 'task.keys.release."1.4".reference[0].any: element twice'],
    [grouped, `machines = ["chip:0123456789abcdef"]\nreference`, "machines = []\nreference", "authority.machines: number of machines"],
    [grouped, `machines = ["chip:0123456789abcdef"]\nreference`, 'machines = ["chip:0123"]\nreference', "authority.machines[0]: value"],
    [grouped, "until = 2026-12-20T00:00:00Z", "until = 2027-12-20T00:00:00Z", "group.trial.until: term"],
    [grouped, 'calls = ["holder"]', 'calls = ["holders"]', "group.trial.role.scorer.calls: role"],
    [grouped, `reference = [ { platform = "soft", program = "${digestOf("2")}" } ] }`, `reference = [ { platform = "soft", program = "${digestOf("4")}" } ] }`, "group.trial.authority.reference: measurement"],
    [grouped, "development = true", "development = true\r", "line ends"],
    [grouped, 'schema = "cohort/policy/v1"', '\ufeffschema = "cohort/policy/v1"', "encoding"],
    [grouped, 'keys = [ { name = "ana"', 'keys = [ 1, { name = "ana"', "owners.keys[0]: value"],
    [grouped, `roots = ["${digestOf("1")}"]\ndebug`, "roots = []\ndebug", "platform.soft.roots: number of roots"],
    [grouped, "dynamic = true\n", 'dynamic = true\nenv = { a = "b" }\n', "task.scoring.release.2.env.a: environment name"],
    [grouped, "dynamic = true\n", "dynamic = true\ndevices = { soft = 1 }\n", "task.scoring.release.2.devices.soft: platform"],
    [grouped, "dynamic = true\n", "dynamic = true\ndevices = { nvidia-gpu = 17 }\n", "task.scoring.release.2.devices.nvidia-gpu: value"],
    [grouped, "dynamic = true\n", "dynamic = true\ndevices = { nvidia-gpu = 1 }\n", "task.scoring.release.2.devices: platform"],
    [grouped, `reference = [ { platform = "soft", program = "${digestOf("5")}" } ]`, "reference = []", "task.scoring.release.1.reference: number of reference values"],
    [grouped, `reference = [ { platform = "soft", program = "${digestOf("5")}" } ]`, `reference = [ { platform = "tpm", boot = {}, any = ["pcr0", "pcr1", "pcr2", "pcr3", "pcr4", "pcr5", "pcr6", "pcr7", "pcr8", "pcr9", "pcr11", "pcr12", "pcr13", "pcr14"], program = "${digestOf("5")}" } ]`, "task.scoring.release.1.reference[0]: platform"],
    [grouped, "[task.scoring]\n", '[task.none]\nkey_mode = "unit"\nrelease = {}\n[task.scoring]\n', "task.none.release: number of releases"],
    [grouped, 'continues = "1"', 'continues = "3"', "task.scoring.release.2.continues: release"],
    [grouped, 'members = [ { party = "north", task = "keys", release = "1.4" } ]', "members = []", "group.trial.role.holder.members: number of members"],
    [grouped, 'calls = ["holder"]', 'calls = ["scorer", "holder"]', "group.trial.role.scorer.calls: order"],
    [grouped, 'calls = ["holder"]', 'calls = ["holder", "holder"]', "group.trial.role.scorer.calls: element twice"],
    [grouped, '{ party = "north", task', '{ party = "west", task', "group.trial.role.holder.members: party"],
    [grouped, 'task = "keys", release', 'task = "key", release', "group.trial.role.holder.members: task"],
    [grouped, 'task = "keys", release = "1.4"', 'task = "keys", release = "1.5"', "group.trial.role.holder.members: release"],
    [grouped, '{ party = "south", task = "scoring", release = "2" }', '{ party = "east", task = "scoring", release = "1" }', "group.trial.role.scorer.members: order"],
    [grouped, `program = "${digestOf("2")}" } ] }`, `program = "${digestOf("2")}", args = ["\\u0007"] } ] }`, "group.trial.authority: encoding"],
    [grouped, `, reference = [ { platform = "soft", program = "${digestOf("2")}" } ] }`, " }", "group.trial.authority.reference: required key"],
    [grouped, "platform = { soft = { roots = ", "platform = { tpm = { roots = ", "group.trial.authority: encoding"],
    [grouped, 'name = "north", ssh', 'name = "south", ssh', "group.trial.party: party twice"],
    [grouped, keyLine("south"), keyLine("north"), "group.trial.party: key twice"],
    [grouped, '{ name = "east", ssh', '{ name = "west", ssh', "group.trial.party: order"],
    [grouped, "[group.trial.role]\nholder", "[group.trial.role]\nsc0rer = { members = [] }\nholder", "group.trial.role.sc0rer.members: number of members"],
    [grouped, "holder = { members", `sc0rer = { members = [ { party = "north", task = "keys", release = "1.4" } ] }\nholder = { members`, "group.trial.role: names alike"],
    [grouped, grouped.slice(grouped.indexOf("[group.trial.role]")), "role = {}\n", "group.trial.role: number of roles"],
    [grouped, "[authority]\n", '[ authority ]\n', "authority.root: line of the root"],
    [edited(grouped, [["[authority]\n", "[ authority ]\n"]]), "dynamic = true\n", `dynamic = true\nenv = { X = """\n[authority]\nroot = "${digestOf("9")}"\n""" }\n`, "authority.root: line of the root"],
    [edited(grouped, [["[authority]\n", "[ authority ]\n"]]), "dynamic = true\n", 'dynamic = true\nenv = { X = """\n[authority]\nroot = "x"\n""" }\n', "authority.root: line of the root"],
    [grouped, "dynamic = true\n", `dynamic = true\nenv = { X = """\n[authority]\nroot = "${digestOf("3")}"\n""" }\n`, "authority.root: line of the root"],
    [hardware, "created = 2026-11-22T09:00:00Z\n", "created = 2026-11-22T09:00:00Z\ndevelopment = true\n", "platform.nitro: development"],
    [hardware, "ECC_EN = true", "ECC_EN = 1", "platform.snp.platform_info.ECC_EN: value"],
    [hardware, hardware.slice(hardware.indexOf("[platform.snp.generation.Milan]"), hardware.indexOf("[platform.tdx]")), "generation = {}\n", "platform.snp.generation: number of generations"],
    [hardware, "microcode = 115", "microcode = 256", "platform.snp.generation.Milan.committed.microcode: value"],
    [hardware, "[platform.snp.generation.Milan]", "[platform.snp.generation.Naples]", "platform.snp.generation.Naples: name"],
    [hardware, "hidden_chips = false", "hidden_chips = true", "platform.snp.hidden_chips: chips"],
    [hardware, 'abi = "1.55"', 'abi = "1.055"', "platform.snp.guest_policy.abi: value"],
    [hardware, "SINGLE_SOCKET = true", "DEBUG = true", "platform.snp.guest_policy.DEBUG: unknown key"],
    [hardware, "launch = [0, 63]", "launch = [0, 64]", "platform.snp.mitigations.launch[1]: value"],
    [hardware, "launch = [0, 63]", "launch = [0, 0]", "platform.snp.mitigations.launch: element twice"],
    [hardware, '"OutOfDate"', '"Revoked"', "platform.tdx.statuses[1]: value"],
    [hardware, "isvprodid = 258", "isvprodid = 65536", "task.keys.release.1.reference[2].isvprodid: value"],
    [hardware, "min_evaluation = 17", "min_evaluation = 4294967296", "platform.tdx.min_evaluation: value"],
    [hardware, "min_evaluation = 17", "min_evaluation = -1", "platform.tdx.min_evaluation: value"],
    [hardware, 'max_age = "5m"', 'max_age = "3h0m0.000000001s"', "platform.nitro.max_age: value"],
    [hardware, 'checked_within = "72h"', 'checked_within = "24h59m"', "platform.snp.checked_within: value"],
  ];
  await parseDocument(utf8(grouped));
  await parseDocument(utf8(hardware));
  for (const [source, old, next, rule] of rows) {
    await assert.rejects(parseDocument(utf8(edited(source, [[old, next]]))), (e) => {
      assert.ok(e instanceof Refusal && e.reason === "policy", String(e));
      assert.equal(e.rule, rule, `${old} → ${next}: ${e.message}`);
      return true;
    });
  }
});

test("platform tables become rules", async () => {
  const hardware = await parseDocument(new Uint8Array(readFileSync(`${repository}policy/policyfile/testdata/vectors/policy/hardware.toml`)));
  const snp = hardware.rules.get("snp")!, tdx = hardware.rules.get("tdx")!, sgx = hardware.rules.get("sgx")!;
  assert.deepEqual(snp, {
    roots: [digestOf("1")], debug: false, crl: "if-present", checkedWithin: 72 * 3_600_000,
    chips: ["1".repeat(128), "c3".repeat(8) + "0".repeat(112)], cutChips: ["2".repeat(128)],
    snp: {
      generations: new Map([
        ["Milan", { committed: { fmc: 0, bootloader: 3, tee: 0, snp: 8, microcode: 115 } }],
        ["Turin", { committed: { fmc: 1, bootloader: 2, tee: 3, snp: 4, microcode: 5 }, reported: { fmc: 6, bootloader: 7, tee: 8, snp: 9, microcode: 10 }, launch: { fmc: 11, bootloader: 12, tee: 13, snp: 14, microcode: 255 } }],
      ]),
      hiddenChips: false, idKeys: ["1".repeat(96)], smt: true, migration: true, provisional: true, vmpl: 2,
      platformInfo: new Map([["SMT_EN", "clear"], ["ECC_EN", "set"], ["ALIAS_CHECK_COMPLETE", "any"]]),
      guestPolicy: new Map([["SINGLE_SOCKET", "set"], ["CXL_ALLOW", "any"]]), guestAbi: [1, 55], launchMitigations: [0, 63], currentMitigations: [1],
    },
  });
  assert.deepEqual(tdx, {
    roots: [digestOf("2")], debug: true, crl: "required", chips: "any", cutChips: ["0123456789abcdef0123456789abcdef"],
    dcap: {
      statuses: ["SWHardeningNeeded", "OutOfDate"], advisories: ["INTEL-SA-00615"], minEvaluation: 17, minTcbDate: Date.parse("2025-05-14T00:00:00Z"), cutModels: ["90c06f000000"], migration: true,
      attributes: new Map([["LASS", "set"], ["SEPT_VE_DISABLE", "any"], ["PERFMON", "clear"]]), xfam: new Map([["AMX_TILEDATA", "clear"]]),
      serviceTd: ["0".repeat(96), "1".repeat(96), ""], owner: ["1".repeat(96) + "2".repeat(96)],
    },
  });
  assert.deepEqual(sgx, { roots: [digestOf("2")], debug: false, chips: ["0".repeat(31) + "1"], dcap: { minIsvSvn: 4 } });
  assert.deepEqual(hardware.rules.get("nitro"), { roots: [digestOf("3")], debug: false });
});
