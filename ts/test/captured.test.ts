/** Captured evidence of real hardware: every vector, its negatives, alterations of each file, and each rule of policy. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { utf8 } from "../src/bytes.js";
import { inspect, type Platform, type Rules } from "../src/evidence/evidence.js";
import { parsePck, parseQuote } from "../src/evidence/dcap.js";
import { parseReport } from "../src/evidence/snp.js";
import { parseQeIdentity, parseTcbInfo } from "../src/evidence/tcb.js";
import { parsePem } from "../src/evidence/crl.js";
import { extension } from "../src/x509.js";
import { Refusal } from "../src/refusal.js";
import { amdRoots, intelRoot, load, missing, subjects, testCaptured } from "./captured.js";
import { fuzz } from "./fuzz.js";

for (const subject of subjects) testCaptured(subject);

type Change = (rules: Rules, files: Map<string, Uint8Array>) => void;

/** Asserts that one change of rules or files that accept a vector leads to a reason; "" is accepted. */
function rows(vectors: string, name: string, platform: Platform, good: () => Rules, all: readonly (readonly [what: string, change: Change, reason: string])[]): void {
  test(`rules: ${vectors}/${name}`, { skip: missing }, async () => {
    const { vector, content } = load(vectors).find((l) => l.name === name)!;
    for (const [what, change, want] of [["no change", () => {}, ""], ...all] as typeof all) {
      const rules = good(), files = new Map(content);
      change(rules, files);
      const raw = files.get("evidence")!;
      files.delete("evidence");
      const question = { evidence: { platform, raw, endorsed: files, devices: [] }, rules: new Map([[platform, rules]]), at: Date.parse(vector.verify_at) };
      const got = await inspect(question).then(() => "", (e: unknown) => (e instanceof Refusal ? e.reason : String(e)));
      assert.equal(got, want, what);
    }
  });
}

const without = (role: string): Change => (_, files) => void files.delete(role);
const empty = (role: string): Change => (_, files) => void files.set(role, new Uint8Array(0));
const other = (role: string, from: string): Change => (_, files) => void files.set(role, files.get(from)!);

const chipOfAlibaba = "f06984c8d9343452b997c48b36d6e678";
const alibabaService = "383c87d3bbb047b2d171eaca95312ede99f258088dc788f6ae2ccf8b6dd848fe8d47629e08b3f6cbd4a00dd47a5a033d";
rows("tdx", "v5-uptodate-alibaba-june-2025", "tdx", () => ({ roots: [intelRoot], chips: [chipOfAlibaba], crl: "if-present", dcap: { serviceTd: [alibabaService] } }), [
  ["no roots", (r) => delete r.roots, "unknown-root"],
  ["another root", (r) => (r.roots = amdRoots), "unknown-root"],
  ["no chips", (r) => delete r.chips, "platform"],
  ["any chip", (r) => (r.chips = "any"), ""],
  ["another chip", (r) => (r.chips = ["00".repeat(16)]), "platform"],
  ["a chip that is cut off", (r) => (r.cutChips = [chipOfAlibaba]), "platform"],
  ["a model that is cut off", (r) => (r.dcap!.cutModels = ["90c06f000000"]), "platform"],
  ["its evaluation number", (r) => (r.dcap!.minEvaluation = 17), ""],
  ["a higher one", (r) => (r.dcap!.minEvaluation = 18), "tcb-status"],
  ["its date", (r) => (r.dcap!.minTcbDate = Date.parse("2024-03-13T00:00:00Z")), ""],
  ["a later one", (r) => (r.dcap!.minTcbDate = Date.parse("2024-03-13T00:00:01Z")), "tcb-status"],
  ["no rule about the service TD", (r) => delete r.dcap!.serviceTd, "tcb-status"],
  ["another service TD", (r) => (r.dcap!.serviceTd = ["", "00".repeat(48)]), "tcb-status"],
  ["an owner", (r) => (r.dcap!.owner = ["11".repeat(96)]), "tcb-status"],
  ["no owner, by name", (r) => (r.dcap!.owner = ["00".repeat(96)]), ""],
  ["without PKRU", (r) => (r.dcap!.xfam = new Map([["PKRU", "clear"]])), "tcb-status"],
  ["with PERFMON", (r) => (r.dcap!.attributes = new Map([["PERFMON", "set"]])), "tcb-status"],
  ["no rules of the platform", (r) => delete r.dcap, "tcb-status"],
  ["no TCB info", without("tcb_info"), "tcb-status"],
  ["an empty TCB info", empty("tcb_info"), "tcb-status"],
  ["no chain of TCB info", without("tcb_info_chain"), "chain"],
  ["no QE identity", without("qe_identity"), "tcb-status"],
  ["no chain of QE identity", without("qe_identity_chain"), "chain"],
  ["QE identity as TCB info", other("tcb_info", "qe_identity"), "malformed"],
  ["a root alone as chain", other("tcb_info_chain", "root"), "chain"],
  ["an SGX quote", (_, files) => void files.set("evidence", load("sgx")[0]!.content.get("evidence")!), "malformed"],
]);
rows("tdx", "v4-uptodate-gce-cos113", "tdx", () => ({ roots: [intelRoot], chips: "any", dcap: {} }), [
  ["no service TD, by the rule's word", (r) => (r.dcap!.serviceTd = [""]), ""],
  ["a service TD", (r) => (r.dcap!.serviceTd = [alibabaService]), "tcb-status"],
  ["no list of the PCK authority", without("pck_crl"), "crl-missing"],
  ["an empty list of the root", empty("root_crl"), "crl-missing"],
  ["no lists, where policy allows that", (r, files) => void ((r.crl = "if-present"), files.delete("root_crl"), files.delete("pck_crl")), ""],
  ["the list of another issuer, where policy needs none", (r, files) => void ((r.crl = "if-present"), files.set("root_crl", files.get("pck_crl")!)), "signature"],
  ["a line end after TCB info", (_, files) => void files.set("tcb_info", Uint8Array.of(...files.get("tcb_info")!, 0x0a)), ""],
  ["two line ends after TCB info", (_, files) => void files.set("tcb_info", Uint8Array.of(...files.get("tcb_info")!, 0x0a, 0x0a)), "malformed"],
  ["256 KiB and a byte", (_, files) => void files.set("evidence", new Uint8Array(256 * 1024 + 1)), "too-large"],
]);
rows("sgx", "v3-swhardeningneeded", "sgx", () => ({ roots: [intelRoot], chips: "any", crl: "if-present", dcap: { statuses: ["SWHardeningNeeded"], advisories: ["INTEL-SA-00615", "INTEL-SA-00657"] } }), [
  ["no statuses", (r) => delete r.dcap!.statuses, "tcb-status"],
  ["a worse status alone", (r) => (r.dcap!.statuses = ["OutOfDate"]), "tcb-status"],
  ["no advisories", (r) => delete r.dcap!.advisories, "tcb-status"],
  ["one advisory alone", (r) => (r.dcap!.advisories = ["INTEL-SA-00615"]), "tcb-status"],
  ["SVN 0", (r) => (r.dcap!.minIsvSvn = 0), ""],
  ["SVN 1", (r) => (r.dcap!.minIsvSvn = 1), "tcb-status"],
]);

const generations = (floor: object) => new Map([["Genoa", floor]]);
const tcb = (microcode: number, snp = 23) => ({ fmc: 0, bootloader: 10, tee: 0, snp, microcode });
const idKey = "0356215882a825279a85b300b0b742931d113bf7e32dde2e50ffde7ec743ca491ecdd7f336dc28a6e0b2bb57af7a44a3";
const chipOfAzure = "c70912d8d216bd3f403e97bda2d476924b962752119263a3c8dba9fc40badfc99038d2352aae22520a9003b4262e1cc3136d035b42e4b022b4196f95981a45c6";
rows("sev-snp", "genoa-v3-azure", "snp", () => ({ roots: amdRoots, chips: [chipOfAzure], snp: { generations: generations({ committed: tcb(84) }), idKeys: [idKey], smt: true } }), [
  ["no roots", (r) => delete r.roots, "unknown-root"],
  ["another root", (r) => (r.roots = [intelRoot]), "unknown-root"],
  ["no generation", (r) => delete r.snp!.generations, "platform"],
  ["another generation", (r) => (r.snp!.generations = new Map([["Milan", {}]])), "platform"],
  ["a higher committed microcode", (r) => (r.snp!.generations = generations({ committed: tcb(85) })), "tcb-status"],
  ["a higher reported SNP firmware", (r) => (r.snp!.generations = generations({ reported: tcb(84, 24) })), "tcb-status"],
  ["a higher TCB at launch", (r) => (r.snp!.generations = generations({ launch: tcb(85) })), "tcb-status"],
  ["no chips", (r) => delete r.chips, "platform"],
  ["any chip", (r) => (r.chips = "any"), ""],
  ["a chip that is cut off", (r) => (r.cutChips = [chipOfAzure]), "platform"],
  ["no id keys", (r) => delete r.snp!.idKeys, "measurement"],
  ["another id key", (r) => (r.snp!.idKeys = ["00".repeat(48)]), "measurement"],
  ["no SMT", (r) => delete r.snp!.smt, "tcb-status"],
  ["SMT that must be on", (r) => (r.snp!.platformInfo = new Map([["SMT_EN", "set"]])), "tcb-status"],
  ["a guest on one socket", (r) => (r.snp!.guestPolicy = new Map([["SINGLE_SOCKET", "set"]])), "tcb-status"],
  ["the guest's ABI", (r) => (r.snp!.guestAbi = [0, 31]), ""],
  ["a higher minor ABI", (r) => (r.snp!.guestAbi = [0, 32]), "tcb-status"],
  ["a higher major ABI", (r) => (r.snp!.guestAbi = [1, 0]), "tcb-status"],
  ["a mitigation at launch", (r) => (r.snp!.launchMitigations = [63]), "tcb-status"],
  ["a mitigation now", (r) => (r.snp!.currentMitigations = [0]), "tcb-status"],
  ["no certificate of the chip", without("vcek"), "chain"],
  ["no certificates of AMD", without("ask_ark"), "chain"],
  ["no list", without("crl"), "crl-missing"],
  ["no list, where policy allows that", (r, files) => void ((r.crl = "if-present"), files.delete("crl")), ""],
]);
const milan = new Map([["Milan", {}]]);
rows("sev-snp", "milan-v3-vlek-vmpl1", "snp", () => ({ roots: amdRoots, chips: "any", crl: "if-present", snp: { generations: milan, idKeys: "any", smt: true, vmpl: 1, hiddenChips: true, provisional: true } }), [
  ["level 0", (r) => (r.snp!.vmpl = 0), "tcb-status"],
  ["firmware that can be rolled back", (r) => delete r.snp!.provisional, "tcb-status"],
  ["no hidden chips", (r) => delete r.snp!.hiddenChips, "platform"],
  ["hidden chips, and one cut off", (r) => (r.cutChips = [chipOfAzure]), "platform"],
  ["hidden chips, and a list", (r) => (r.chips = [chipOfAzure]), "platform"],
  ["the certificate as that of a chip", other("vcek", "vlek"), ""],
]);
rows("sev-snp", "milan-v2-debug", "snp", () => ({ roots: amdRoots, debug: true, chips: "any", crl: "if-present", snp: { generations: milan, idKeys: "any", smt: true, platformInfo: new Map([["ALIAS_CHECK_COMPLETE", "any"]]) } }), [
  ["no debug", (r) => delete r.debug, "debug"],
  ["memory that may have aliases", (r) => delete r.snp!.platformInfo, "tcb-status"],
]);

if (!missing) {
  const seeds = (vectors: string, role: string) => load(vectors).flatMap((l) => l.content.get(role) ?? []);
  const quotes = [...seeds("tdx", "evidence"), ...seeds("sgx", "evidence")].filter((q) => q.length < 8192);
  fuzz("quote", quotes, (input) => parseQuote(input, input[4] === 0 ? "sgx" : "tdx"));
  fuzz("SNP report", seeds("sev-snp", "evidence"), parseReport);
  const pck = quotes.flatMap((q) => {
    const chain = parseQuote(q, q[4] === 0x81 ? "tdx" : "sgx").chain;
    return extension(parsePem("chain", new TextDecoder().decode(chain).replaceAll("\0", ""), 3)[0]!, "1.2.840.113741.1.13.1")!;
  });
  fuzz("SGX extension of a PCK certificate", pck, parsePck);
  // What is signed, between the frame and the signature.
  const inner = (document: Uint8Array) => document.subarray(document.indexOf(0x3a) + 1, document.length - 144 - (document.at(-1) === 0x0a ? 1 : 0));
  // One level is as good as twenty, and an input is faster.
  const short = (document: Uint8Array) => {
    const info = JSON.parse(new TextDecoder().decode(inner(document))) as { tcbLevels: unknown[]; tdxModuleIdentities?: unknown[] };
    return utf8(JSON.stringify({ ...info, tcbLevels: info.tcbLevels.slice(0, 1), ...(info.tdxModuleIdentities ? { tdxModuleIdentities: info.tdxModuleIdentities.slice(0, 1) } : {}) }));
  };
  fuzz("TCB info", [short(seeds("tdx", "tcb_info").at(-1)!), short(seeds("sgx", "tcb_info")[0]!)], (input) => parseTcbInfo(input, "TDX"));
  fuzz("QE identity", seeds("tdx", "qe_identity").map(inner), (input) => parseQeIdentity(input, "TD_QE"));
}
