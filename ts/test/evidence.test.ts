/** Wrappers, measurements, `checked`, the order of appraisal, and the soft platform. */
import assert from "node:assert/strict";
import { createPublicKey, generateKeyPairSync, sign } from "node:crypto";
import { test } from "node:test";
import { concat, digestText, equal, fromBase64, fromHex, hex, sha256, u64, utf8 } from "../src/bytes.js";
import {
  appraise, type Appraiser, checkDevices, type Claims, encodeEvidence, encodeMeasurement, type Evidence, evidenceOf, inspect, match, type Measurement,
  parseEvidence, parseFetched, parseMeasurement, type Platform, type Question, type Result, type Rules,
} from "../src/evidence/evidence.js";
import { checkBits, setBits, snpGuestPolicy, snpPlatformInfo, tdAttributes, xfam } from "../src/evidence/rules.js";
import { parseSoft, soft } from "../src/evidence/soft.js";
import { frame, framedField, hash } from "../src/frame.js";
import { Refusal } from "../src/refusal.js";
import { fuzz, generator } from "./fuzz.js";
import { vector } from "./vectors.js";

const refusal = (reason: string) => (e: unknown) => e instanceof Refusal && (assert.equal(e.reason, reason, String(e)), true);
const refuses = (f: () => unknown, reason: string) => assert.throws(f, refusal(reason));

/** Inputs of Go's tests of package attest, with the reason of each refusal. */
interface ParseCase { kind: "evidence" | "measurement"; input: string; reason: string }
const parseCases = vector<ParseCase[]>("ts/test/vectors/evidence.json");
const bytesOf = (c: ParseCase): Uint8Array => (c.kind === "evidence" ? Uint8Array.from(c.input, (d) => d.charCodeAt(0)) : fromBase64(c.input));
const inputs = (kind: string) => parseCases.filter((c) => c.kind === kind).map(bytesOf);

test("wrappers and measurements are read as the Go code reads them", () => {
  for (const c of parseCases) {
    const parse = () => (c.kind === "evidence" ? parseEvidence : parseMeasurement)(bytesOf(c));
    if (c.reason === "") parse();
    else assert.throws(parse, refusal(c.reason), c.input.slice(0, 200));
  }
  assert.ok(parseCases.length > 80);
});

test("evidence has one encoding", () => {
  for (const c of parseCases.filter((p) => p.kind === "evidence" && p.reason === "")) {
    assert.equal(encodeEvidence(parseEvidence(c.input)), c.input);
    assert.deepEqual(evidenceOf(JSON.parse(c.input)), parseEvidence(c.input));
  }
  for (const json of [undefined, null, 4, "x", [], {}, { __proto__: ["a", "b"] }]) refuses(() => evidenceOf(json), "malformed");
});

test("sizes of evidence", () => {
  const record = (size: number) => encodeEvidence({ platform: "soft", raw: new Uint8Array(size), endorsed: new Map(), devices: [] });
  assert.equal(parseEvidence(record(256 * 1024)).raw.length, 256 * 1024);
  refuses(() => parseEvidence(record(256 * 1024 + 1)), "malformed");
  refuses(() => parseEvidence(" ".repeat(512 * 1024 + 1)), "too-large");
  refuses(() => parseEvidence(new Uint8Array(512 * 1024 + 1)), "too-large");
  const composite = (count: number): Evidence => {
    const part = (platform: Platform, n: number): Evidence => ({ platform, raw: Uint8Array.of(n), endorsed: new Map(), devices: [] });
    return { ...part("soft", 1), devices: Array.from({ length: count }, (_, i) => part("nvidia-gpu", i)) };
  };
  assert.equal(parseEvidence(encodeEvidence(composite(16))).devices.length, 16);
  refuses(() => parseEvidence(encodeEvidence(composite(17))), "malformed");
  const many = encodeEvidence(composite(7600));
  assert.ok(many.length < 512 * 1024 && many.length > 500 * 1024);
  assert.throws(() => parseEvidence(many), (e) => e instanceof Refusal && e.reason === "malformed" && e.got === "17", "devices are counted before all are read");
});

test("when documents were fetched", () => {
  const { checked, framed } = vector<{ checked: { role: string; digest: string; checked: string; until: string }[]; framed: string }>("attest/testdata/vectors/checked.json");
  const got = parseFetched(new Map([["checked", fromHex(framed)]]));
  assert.deepEqual(got.map((f) => [f.role, digestText(f.digest), f.checked, f.until]), checked.map((c) => [c.role, c.digest, Date.parse(c.checked), Date.parse(c.until)]));
  assert.deepEqual(parseFetched(new Map()), []);
  const crl = utf8("crl"), sum = new Uint8Array(32), at = u64(1);
  const rows = (...fields: Uint8Array[]) => frame("cohort checked v1", ...fields);
  const one = rows(crl, sum, at, at);
  assert.equal(parseFetched(new Map([["checked", one]])).length, 1);
  const cases: [string, Uint8Array][] = [
    ["empty", new Uint8Array(0)], ["another label", frame("cohort register v1")], ["cut", one.subarray(0, -1)], ["three fields", rows(crl, sum, at)],
    ["short digest", rows(crl, sum.subarray(1), at, at)], ["short time", rows(crl, sum, at.subarray(1), at)], ["long time", rows(crl, sum, at, concat(at, Uint8Array.of(1)))],
    ["time without end", rows(crl, sum, at, u64(1n << 40n))], ["no role", rows(new Uint8Array(0), sum, at, at)], ["role of digits", rows(utf8("crl1"), sum, at, at)],
    ["role twice", rows(crl, sum, at, at, crl, sum, at, at)], ["roles in another order", rows(utf8("tcb_info"), sum, at, at, crl, sum, at, at)],
  ];
  for (const [name, raw] of cases) assert.throws(() => parseFetched(new Map([["checked", raw]])), refusal("malformed"), name);
});

const noon = Date.parse("2026-11-22T12:00:00Z"), day = 86_400_000;
const data = Uint8Array.from({ length: 64 }, (_, i) => i + 1);
const program: Measurement = { platform: "soft", registers: [{ name: "program", value: Uint8Array.of(1) }] };

/** An appraiser that states given claims. */
const stating = (claims: Partial<Claims>, platform: Platform = "soft"): ReadonlyMap<string, Appraiser> =>
  new Map([[platform, { platform, appraise: async () => ({ measurement: program, reportData: data, debug: false, dynamic: false, chip: "1", notVerified: [], details: {}, ...claims }) }]]);
const evidence = (platform: Platform, ...devices: Evidence[]): Evidence => ({ platform, raw: Uint8Array.of(1), endorsed: new Map(), devices });
const question = (change: Partial<Question>): Question => ({ evidence: evidence("soft"), reportData: data, rules: new Map([["soft", {}]]), at: noon, appraisers: stating({}), ...change });
const outcome = (q: Question) => appraise(q).then(() => "", (e: unknown) => (e instanceof Refusal ? e.reason : String(e)));

test("the checks of the verifier, in order", async () => {
  const result = await appraise(question({ appraisers: stating({ issued: noon - 1, dynamic: true }) }));
  assert.deepEqual([result.chip, result.platform, result.issued, result.dynamic, result.debug, result.at, result.devices], ["1", "soft", noon - 1, true, false, noon, []]);
  const debugging = stating({ debug: true });
  const rows: [string, Partial<Question>, string][] = [
    ["report data of zeros", { reportData: new Uint8Array(64), rules: new Map() }, "nonce"],
    ["no time", { at: new Date("noon") }, "clock"],
    ["report data of 63 bytes", { reportData: data.subarray(1) }, "nonce"],
    ["a platform that policy does not name", { rules: new Map([["snp", {}]]) }, "platform"],
    ["a platform without an appraiser", { appraisers: stating({}, "snp") }, "platform"],
    ["the measurement of another platform", { appraisers: stating({ measurement: { ...program, platform: "snp" }, reportData: new Uint8Array(64) }) }, "platform"],
    ["another report data", { appraisers: stating({ reportData: new Uint8Array(64), debug: true }) }, "nonce"],
    ["half of the report data", { appraisers: stating({ reportData: data.subarray(0, 32) }) }, "nonce"],
    ["its digest", { appraisers: stating({ reportData: await sha256(data) }) }, ""],
    ["debug", { appraisers: debugging, endorsements: new Map([["checked", new Uint8Array(1)]]) }, "debug"],
    ["debug that policy allows", { appraisers: debugging, rules: new Map([["soft", { debug: true }]]) }, ""],
    ["a role checked that is none", { endorsements: new Map([["checked", new Uint8Array(1)]]) }, "malformed"],
    ["a device alone", { evidence: evidence("nvidia-gpu"), rules: new Map([["nvidia-gpu", {}]]), appraisers: stating({ measurement: { ...program, platform: "nvidia-gpu" } }, "nvidia-gpu") }, "platform"],
    ["a TEE beside a TEE", { evidence: evidence("soft", evidence("soft")) }, "platform"],
    ["a device that policy does not name", { evidence: evidence("soft", evidence("nvidia-gpu")) }, "platform"],
    ["a device of a device", { evidence: evidence("soft", evidence("nvidia-gpu", evidence("nvidia-gpu"))) }, "malformed"],
  ];
  for (const [name, change, want] of rows) assert.equal(await outcome(question(change)), want, name);
});

test("devices beside a TEE", async () => {
  let chip = 0;
  const gpu: Measurement = { platform: "nvidia-gpu", registers: [] };
  const two = new Map([...stating({}), ["nvidia-gpu", { platform: "nvidia-gpu", appraise: async () => ({ measurement: gpu, reportData: data, debug: chip > 0, dynamic: false, chip: `gpu ${chip++}`, notVerified: ["it"], details: {} }) }]]) as ReadonlyMap<string, Appraiser>;
  const both = question({ evidence: evidence("soft", evidence("nvidia-gpu"), evidence("nvidia-gpu")), rules: new Map([["soft", {}], ["nvidia-gpu", { debug: true }]]), appraisers: two });
  const result: Result = await appraise(both);
  assert.deepEqual(result.devices.map((d) => d.chip), ["gpu 0", "gpu 1"]);
  assert.equal(result.debug, true, "the host reads a device");
  checkDevices(result, new Map([["nvidia-gpu", 2]]), "r");
  refuses(() => checkDevices(result, new Map([["nvidia-gpu", 3]]), "r"), "device-missing");
  const twice = stating({}, "nvidia-gpu").get("nvidia-gpu")!;
  assert.equal(await outcome({ ...both, appraisers: new Map([...stating({}), ["nvidia-gpu", { ...twice, appraise: async () => ({ ...(await twice.appraise(data, new Map(), {}, 0)), measurement: gpu }) }]]) }), "wrong-chip");
});

test("platforms without an appraiser are refused by name", async () => {
  for (const platform of ["nitro", "tpm", "azure-snp"] satisfies Platform[]) {
    const { appraisers: _, ...q } = question({ evidence: evidence(platform), rules: new Map([[platform, { roots: [] }]]) });
    await assert.rejects(appraise(q), (e) => refusal("platform")(e) && (e as Refusal).got === platform);
  }
  const { appraisers: _, ...gpu } = question({ evidence: evidence("soft", evidence("nvidia-gpu")), rules: new Map([["soft", {}], ["nvidia-gpu", {}]]) });
  await assert.rejects(inspect({ ...gpu, evidence: { ...gpu.evidence, platform: "soft" } }), refusal("malformed"), "the TEE comes first");
});

test("how long ago documents were fetched", async () => {
  const list = utf8("list"), statement = utf8("statement");
  const both = new Map([["crl", list], ["tcb_info", statement], ["vcek", utf8("certificate")]]);
  const row = async (role: string, document: Uint8Array, before: number) => [utf8(role), await sha256(document), u64((noon - before) / 1000), u64((noon + day) / 1000)];
  const rows: [string, number, Map<string, Uint8Array>, Promise<Uint8Array[]>[], string][] = [
    ["no rule", 0, both, [], ""],
    ["just within", day, both, [row("crl", list, day), row("tcb_info", statement, 0)], ""],
    ["a second longer ago", day, both, [row("crl", list, day + 1000), row("tcb_info", statement, 0)], "expired"],
    ["the statement longer ago", day, both, [row("crl", list, 0), row("tcb_info", statement, 2 * day)], "expired"],
    ["no times", day, both, [], "expired"],
    ["one without a time", day, both, [row("crl", list, 0)], "expired"],
    ["of another document", day, both, [row("crl", utf8("newer"), 0), row("tcb_info", statement, 0)], "expired"],
    ["in another role", day, both, [row("pck_crl", list, 0), row("tcb_info", statement, 0)], "expired"],
    ["a list of a GPU's model longer ago", day, new Map([["model_crl", list]]), [row("model_crl", list, 2 * day)], "expired"],
    ["as far ahead as clocks differ", day, both, [row("crl", list, -300_000), row("tcb_info", statement, 0)], ""],
    ["in the future", day, both, [row("crl", list, -301_000), row("tcb_info", statement, 0)], "clock"],
    ["in the future, without a rule", 0, both, [row("crl", list, 0), row("tcb_info", statement, -day)], "clock"],
    ["certificates alone", day, new Map([["vcek", list]]), [], ""],
  ];
  for (const [name, checkedWithin, endorsed, stated, want] of rows) {
    const framed = frame("cohort checked v1", ...(await Promise.all(stated)).flat());
    const q = question({ evidence: { ...evidence("soft"), endorsed }, endorsements: new Map([["checked", framed]]), rules: new Map([["soft", { checkedWithin }]]) });
    assert.equal(await outcome(q), want, name);
  }
});

test("measurements match reference values", () => {
  const m = (...values: (string | undefined)[]): Measurement => ({
    platform: "tdx",
    registers: values.map((v, i) => (v === undefined ? { name: `r${i}`, value: new Uint8Array(0), any: true } : { name: `r${i}`, value: utf8(v) })),
  });
  match(m("a", "b"), m("a", "b"));
  match(m("a", undefined), m("a", "b"));
  const others: [Measurement, Measurement][] = [
    [m("a", "b"), m("a", "c")], [m("a", "b"), m("a")], [m("a"), m("a", "b")], [m(), m()], [m("a"), { ...m("a"), platform: "sgx" }], [m(undefined), m(undefined)],
    [m("a"), { platform: "tdx", registers: [{ name: "r1", value: utf8("a") }] }], [m("ab"), m("a")],
  ];
  for (const [reference, got] of others) refuses(() => match(reference, got), "measurement");
  assert.throws(() => match(m("a", "b"), m("a", "c")), (e) => e instanceof Refusal && e.got === "63" && e.want === "62" && e.rule === "measurement: r1");
});

test("kinds of registers", () => {
  const of = (kind: string, value: string) => frame("cohort measurement v1", utf8("soft"), frame("cohort register v1", utf8("r"), utf8(kind), utf8(value)));
  assert.deepEqual(parseMeasurement(of("any", "")).registers[0]!.any, true);
  for (const [kind, value] of [["any", "v"], ["all", ""], ["", ""], ["ANY", ""]] as const) refuses(() => parseMeasurement(of(kind, value)), "malformed");
});

interface SoftVectors {
  roots: string[];
  vectors: { name: string; evidence: string; expect: string; measurement?: string; statement?: { agent?: string; program: string; args: string[]; arguments: string; debug: boolean; dynamic: boolean; report_data: string } }[];
}
const softVectors = vector<SoftVectors>("attest/soft/testdata/vectors/evidence.json");

for (const v of softVectors.vectors) {
  test(`soft: ${v.name}`, async () => {
    const claims = soft.appraise(fromHex(v.evidence), new Map(), { roots: softVectors.roots }, 0);
    if (v.expect !== "accepted") return assert.rejects(claims, refusal(v.expect));
    const got = await claims, s = v.statement!;
    assert.equal(digestText(await hash("cohort arguments v1", ...s.args.map(utf8))), s.arguments);
    assert.equal(digestText(await sha256(encodeMeasurement(got.measurement))), v.measurement);
    assert.deepEqual(got.measurement.registers.map((r) => hex(r.value)), [s.agent?.slice(7) ?? "", s.program.slice(7), s.arguments.slice(7)]);
    assert.deepEqual([got.debug, got.dynamic, hex(got.reportData), got.chip], [s.debug, s.dynamic, s.report_data, softVectors.roots[0]!.slice(7, 23)]);
    return undefined;
  });
}

test("soft: every bit is covered, and every cut is malformed", async () => {
  const good = fromHex(softVectors.vectors[2]!.evidence);
  const rules: Rules = { roots: softVectors.roots };
  for (let at = 0; at < good.length; at++) {
    const altered = good.slice();
    altered[at]! ^= 1 << at % 8;
    await assert.rejects(soft.appraise(altered, new Map(), rules, 0), (e) => e instanceof Refusal, `byte ${at}`);
    await assert.rejects(soft.appraise(good.subarray(0, at), new Map(), rules, 0), refusal("malformed"), `${at} bytes`);
  }
  const { chip } = await soft.appraise(good, new Map(), rules, 0);
  await assert.rejects(soft.appraise(good, new Map(), { ...rules, cutChips: [chip] }, 0), refusal("platform"));
  await assert.rejects(soft.appraise(good, new Map(), {}, 0), refusal("unknown-root"));
});

test("soft: the key has one encoding", async () => {
  const { publicKey, privateKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
  const usual = new Uint8Array(publicKey.export({ type: "spki", format: "der" }));
  const compressed = concat(fromHex("3039301306072a8648ce3d020106082a8648ce3d030107032200"), Uint8Array.of(2 + (usual.at(-1)! & 1)), usual.subarray(27, 59));
  assert.deepEqual(createPublicKey({ key: Buffer.from(compressed), type: "spki", format: "der" }).export({ format: "jwk" }), publicKey.export({ format: "jwk" }), "the same key");
  for (const [spki, want] of [[usual, ""], [compressed, "malformed"]] as const) {
    const digest = new Uint8Array(32).fill(1), none = new Uint8Array(0);
    const statement = frame("cohort soft evidence v1", spki, none, digest, digest, Uint8Array.of(0), data);
    let signature: Buffer;
    do signature = sign("sha256", statement, { key: privateKey, dsaEncoding: "ieee-p1363" });
    while (signature[32]! >= 0x7f); // the smaller of the two numbers
    const got = soft.appraise(concat(statement, framedField(signature)), new Map(), { roots: [digestText(await sha256(spki))] }, 0);
    if (want === "") await got;
    else await assert.rejects(got, refusal(want));
  }
});

test("bits that the host sets", () => {
  const bit = (n: number) => 1n << BigInt(n);
  checkBits(tdAttributes, bit(28));
  checkBits(tdAttributes, bit(28) | bit(0) | bit(29) | bit(63)); // debug and migration have rules of their own
  checkBits(tdAttributes, bit(62), new Map([["TPA", "any"], ["SEPT_VE_DISABLE", "any"]]));
  checkBits(xfam, 3n);
  checkBits(snpPlatformInfo, bit(5));
  checkBits(snpGuestPolicy, 0n);
  const rows: [typeof xfam, bigint, [string, "any" | "set" | "clear"][], string][] = [
    [tdAttributes, 0n, [], "dcap: TD attributes: SEPT_VE_DISABLE"], [tdAttributes, bit(28) | bit(62), [], "dcap: TD attributes: TPA"], [tdAttributes, bit(28) | bit(1), [], "dcap: TD attributes: bit 1"],
    [tdAttributes, bit(28), [["PERFMON", "set"]], "dcap: TD attributes: PERFMON"], [xfam, 1n, [], "dcap: XFAM: SSE"], [xfam, 7n, [["AVX", "clear"]], "dcap: XFAM: AVX"], [xfam, 3n | bit(63), [], "dcap: XFAM: bit 63"],
    [snpPlatformInfo, 0n, [], "snp: platform info: ALIAS_CHECK_COMPLETE"], [snpPlatformInfo, bit(5) | bit(8), [], "snp: platform info: bit 8"], [snpGuestPolicy, bit(21), [], "snp: guest policy: CXL_ALLOW"],
    [snpGuestPolicy, bit(26), [], "snp: guest policy: bit 26"], [snpGuestPolicy, 0n, [["SINGLE_SOCKET", "set"]], "snp: guest policy: SINGLE_SOCKET"],
  ];
  for (const [field, value, demands, rule] of rows) {
    assert.throws(() => checkBits(field, value, new Map(demands)), (e) => e instanceof Refusal && e.reason === "tcb-status" && (assert.equal(e.rule, rule), true));
  }
  assert.deepEqual(setBits(snpGuestPolicy, bit(16) | bit(40)), ["SMT", "bit 40"]);
});

fuzz("evidence", inputs("evidence"), parseEvidence, {
  accepted: (result, input) => assert.equal(encodeEvidence(result as Evidence), new TextDecoder("latin1").decode(input)),
});
fuzz("measurement", inputs("measurement"), parseMeasurement, {
  accepted: (result, input) => assert.ok(equal(encodeMeasurement(result as Measurement), input)),
});
fuzz("checked", [fromHex(vector<{ framed: string }>("attest/testdata/vectors/checked.json").framed)], (input) => parseFetched(new Map([["checked", input]])));
fuzz("soft evidence", softVectors.vectors.map((v) => fromHex(v.evidence)), parseSoft);

test("the generator of the fuzzer is the same for the same seed", () => {
  const [a, b] = [generator(7), generator(7)];
  assert.deepEqual(Array.from({ length: 100 }, () => a(10)), Array.from({ length: 100 }, () => b(10)));
});
