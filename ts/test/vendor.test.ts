/** Refusals of TDX, SGX and SEV-SNP: the smallest change of a good appraisal that must lead to each reason. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { concat, hex, utf8 } from "../src/bytes.js";
import { appraise, type Platform, type Result, type Rules } from "../src/evidence/evidence.js";
import { Refusal } from "../src/refusal.js";
import { AmdScene, type Product, strangers } from "./amd.js";
import { der, ia5, integer, newP384, octets, pem, certify, sequence } from "./der.js";
import { IntelScene, type LevelJson, now, day, minute, stranger } from "./intel.js";

type Row<S> = readonly [what: string, change: (s: S) => unknown, want: string];

const reportData = new Uint8Array(64).fill(0xdd);

async function outcome(platform: Platform, raw: Uint8Array, endorsed: Map<string, Uint8Array>, rules: Rules, data = reportData): Promise<Result | string> {
  const question = { evidence: { platform, raw, endorsed, devices: [] }, rules: new Map([[platform, rules]]), at: now, reportData: data };
  return appraise(question).catch((e: unknown) => (e instanceof Refusal ? e.reason : `no refusal: ${(e as Error).stack}`));
}

const ofIntel = async (s: IntelScene) => outcome(s.platform, s.quote(), s.endorsements(), s.rules);
const ofAmd = async (s: AmdScene) => outcome("snp", s.evidence(), s.endorsements(), s.rules);

/** Asserts the reason of each changed scene; "" is accepted. */
function rows<S>(name: string, scene: () => S, run: (s: S) => Promise<Result | string>, all: readonly Row<S>[]): void {
  test(name, async () => {
    for (const [what, change, want] of [["no change", () => {}, ""] as Row<S>, ...all]) {
      const s = scene();
      change(s);
      const got = await run(s);
      assert.equal(typeof got === "string" ? got : "", want, what);
    }
  });
}

const edit = (at: number, ...bytes: number[]) => (s: IntelScene) => (s.after = (quote) => (quote.set(bytes, at), quote));
const flip = (at: number) => (s: IntelScene) => (s.after = (quote) => ((quote[at]! ^= 1), quote));
const body = 48, tdxEnd = body + 584, outer = tdxEnd + 4 + 128, qeAuth = outer + 6 + 448, pckType = qeAuth + 2 + 3, chain = pckType + 6;

const tdx = () => new IntelScene("tdx"), sgx = () => new IntelScene("sgx");

rows("TDX: form", tdx, ofIntel, [
  ["no quote", (s) => (s.after = () => new Uint8Array(0)), "malformed"],
  ["a header only", (s) => (s.after = (q) => q.slice(0, body)), "malformed"],
  ["one byte less", (s) => (s.after = (q) => q.slice(0, -1)), "malformed"],
  ["zeros at the end", (s) => (s.after = (q) => concat(q, new Uint8Array(1000))), ""],
  ["another byte at the end", (s) => (s.after = (q) => concat(q, Uint8Array.of(0, 1))), "malformed"],
  ["over the limit", (s) => (s.after = (q) => concat(q, new Uint8Array(256 * 1024))), "too-large"],
  ["version 2", edit(0, 2), "malformed"],
  ["version 3", edit(0, 3), "malformed"],
  ["version 6", edit(0, 6), "malformed"],
  ["attestation key of P-384", edit(2, 3), "malformed"],
  ["quote of an enclave", edit(4, 0), "malformed"],
  ["quote of an unknown TEE", edit(4, 0x82), "malformed"],
  ["another QE vendor", edit(12, 0), "malformed"],
  ["length less one", flip(tdxEnd), "malformed"],
  ["length of 4 GiB", edit(tdxEnd, 255, 255, 255, 255), "malformed"],
  ["certification data of another type", flip(outer), "malformed"],
  ["certification data of another length", flip(outer + 2), "malformed"],
  ["authentication data of another length", flip(qeAuth), "malformed"],
  ["no authentication data", (s) => (s.auth = new Uint8Array(0)), ""],
  ["certification of the QE of another type", flip(pckType), "malformed"],
  ["chain of another length", flip(pckType + 2), "malformed"],
  ["chain with other text", edit(chain + 27, 0x0c), "malformed"],
  ["XFAM without SSE", (s) => (s.body[128] = 1), "malformed"],
]);
rows("TDX: version 5", () => new IntelScene("tdx", { version: 5 }), ofIntel, [
  ["a body of type 2", (s) => ((s.descriptor = [2, 584]), (s.body = s.body.slice(0, 584))), ""],
  ["type 3 of the size of type 2", (s) => ((s.descriptor = [3, 584]), (s.body = s.body.slice(0, 584))), "malformed"],
  ["type 1", (s) => ((s.descriptor = [1, 384]), (s.body = s.body.slice(0, 384))), "malformed"],
  ["type 4 of no size", (s) => (s.descriptor = [4, 0]), "malformed"],
  ["a service TD", (s) => (s.body[600] = 1), "tcb-status"],
  ["a service TD that policy names", (s) => ((s.body[600] = 1), (s.rules.dcap!.serviceTd = ["01" + "00".repeat(47)])), ""],
]);
rows("SGX: form", sgx, ofIntel, [
  ["quote of a trust domain", edit(4, 0x81), "malformed"],
  ["an enclave that is not initialised", (s) => (s.body[48] = 4), "malformed"],
  ...[20, 31, 96, 127, 160, 191, 262, 303].map((at): Row<IntelScene> => [`reserved byte ${at}`, (s) => (s.body[at] = 1), "malformed"]),
  ["SVN 2 of 3", (s) => (s.rules.dcap!.minIsvSvn = 3), "tcb-status"],
  ["debug", (s) => (s.body[48] = 7), "debug"],
]);
rows("SGX: version 3", () => new IntelScene("sgx", { version: 3 }), ofIntel, []);
rows("SGX: version 5", () => new IntelScene("sgx", { version: 5 }), ofIntel, [["a body of type 2", (s) => (s.descriptor = [2, 384]), "malformed"]]);

test("claims of a quote", async () => {
  const got = (await ofIntel(sgx())) as Result;
  assert.deepEqual(got.measurement.registers.map((r) => [r.name, hex(r.value).slice(0, 6)]), [["mrenclave", "aaaaaa"], ["mrsigner", "bbbbbb"], ["isvprodid", "0001"], ["configid", "000000"]]);
  assert.deepEqual([got.chip, got.issued, got.debug], ["07".repeat(16), Date.parse("2026-11-22T00:00:00Z"), false]);
});

test("the binding of a quote and a report", async () => {
  const q = tdx(), r = new AmdScene();
  assert.equal(await outcome("tdx", q.quote(), q.endorsements(), q.rules, new Uint8Array(64).fill(1)), "nonce");
  assert.equal(await outcome("snp", r.evidence(), r.endorsements(), r.rules, new Uint8Array(64).fill(1)), "nonce");
});

rows("TDX: forgery", tdx, ofIntel, [
  ["a quote by another key", (s) => (s.signers.quote = stranger), "signature"],
  ["a QE report by another key", (s) => (s.signers.qe = stranger), "signature"],
  ["an attestation key that the QE does not name", (s) => s.qe.fill(1, 320, 352), "digest"],
  ["a QE report with more data", (s) => s.qe.fill(1, 383), "digest"],
  ["an attestation key that is no point", (s) => (s.attestationKey = new Uint8Array(64).fill(1)), "signature"],
  ["TCB info by another key", (s) => (s.signers.tcbInfo = stranger), "signature"],
  ["QE identity by another key", (s) => (s.signers.qeIdentity = stranger), "signature"],
  ["a changed body", flip(body + 136), "signature"],
]);

rows("TDX: chain", tdx, ofIntel, [
  ["another name of the root", (s) => (s.certificates.root.name = s.certificates.root.issuer = s.certificates.authority.issuer = "Root"), "chain"],
  ["another name of the authority", (s) => (s.certificates.authority.name = s.certificates.pck.issuer = "CA"), "chain"],
  ["the authority of processors", (s) => (s.certificates.authority.name = s.certificates.pck.issuer = s.lists.pck.issuer = "Intel SGX PCK Processor CA"), ""],
  ["another name of the PCK certificate", (s) => (s.certificates.pck.name = "PCK"), "chain"],
  ["another name of the signer", (s) => (s.certificates.signing.name = "Signing"), "chain"],
  ["another issuer of the PCK certificate", (s) => (s.certificates.pck.issuer = "Intel SGX Root CA"), "chain"],
  ["a PCK certificate by another key", (s) => (s.certificates.pck.signer = stranger), "chain"],
  ["an authority by another key", (s) => (s.certificates.authority.signer = stranger), "chain"],
  ["a root by another key", (s) => (s.certificates.root.signer = stranger), "chain"],
  ["a signer by another key", (s) => (s.certificates.signing.signer = stranger), "chain"],
  ["a PCK that is a CA", (s) => (s.certificates.pck.ca = true), "chain"],
  ["an authority that is none", (s) => (s.certificates.authority.ca = false), "chain"],
  ["an authority that signs no certificates", (s) => (s.certificates.authority.keyUsage = 0x80), "chain"],
  ["an authority without key usage", (s) => (s.certificates.authority.keyUsage = undefined), ""],
  ["a critical extension", (s) => s.certificates.authority.extensions.push({ id: "1.2.3", value: sequence(), critical: true }), "chain"],
  ["another extension", (s) => s.certificates.authority.extensions.push({ id: "1.2.3", value: sequence() }), ""],
  ["SHA-384", (s) => (s.certificates.pck.algorithm = "ECDSA-SHA384"), "chain"],
  ["a key of P-384", (s) => (s.certificates.pck.key = newP384()), "chain"],
  ["an unknown root", (s) => (s.rules.roots = ["sha256:" + "11".repeat(32)]), "unknown-root"],
  ["a chain that is empty", (s) => (s.files = (f) => f.set("tcb_info_chain", utf8("\n"))), "malformed"],
  ["the signer alone", (s) => (s.files = (f) => f.set("tcb_info_chain", pem(certify(s.certificates.signing)))), "chain"],
  ["three certificates", (s) => (s.files = (f) => f.set("tcb_info_chain", concat(f.get("tcb_info_chain")!, pem(certify(s.certificates.root))))), "chain"],
  ["another root of the signer", (s) => {
    const root = { ...s.certificates.root, key: stranger, signer: stranger };
    s.files = (f) => f.set("qe_identity_chain", pem(certify({ ...s.certificates.signing, signer: stranger }), certify(root)));
  }, "unknown-root"],
]);

rows("TDX: extension of the PCK certificate", tdx, ofIntel, [
  ["none", (s) => s.pck.clear(), "chain"],
  ["a PPID of 15 bytes", (s) => s.pck.set("1", octets(new Uint8Array(15))), "chain"],
  ["no PPID", (s) => s.pck.delete("1"), "chain"],
  ["an FMSPC that is a number", (s) => s.pck.set("4", integer(4)), "chain"],
  ["no versions", (s) => s.tcb.clear(), "chain"],
  ["a version of 256", (s) => s.tcb.set("3", integer(256)), "chain"],
  ["a PCE version of 65536", (s) => s.tcb.set("17", integer(65536)), "chain"],
  ["a negative version", (s) => s.tcb.set("3", der(0x02, Uint8Array.of(0x80))), "chain"],
  ["fifteen versions", (s) => s.tcb.delete("16"), "chain"],
  ["an arc below", (s) => s.pck.set("7.1", octets(new Uint8Array(1))), "chain"],
  ["an FMSPC of another model", (s) => s.pck.set("4", octets(new Uint8Array(6))), "wrong-chip"],
  ["another PCE", (s) => s.pck.set("3", octets(new Uint8Array(2).fill(1))), "wrong-chip"],
]);

const past = { from: now - 10 * day, until: now - 1000 };
rows("TDX: time", tdx, ofIntel, [
  ...(["root", "authority", "signing", "pck"] as const).flatMap((name): Row<IntelScene>[] => [
    [`${name} over`, (s) => Object.assign(s.certificates[name], past), "expired"],
    [`${name} to come`, (s) => (s.certificates[name].from = now + 1000), "expired"],
    [`${name} in its last second`, (s) => (s.certificates[name].until = now), ""],
  ]),
  ...(["pck", "root"] as const).flatMap((name): Row<IntelScene>[] => [
    [`list ${name} over`, (s) => Object.assign(s.lists[name], past), "expired"],
    [`list ${name} 2 minutes ahead`, (s) => (s.lists[name].from = now + 2 * minute), ""],
    [`list ${name} further ahead`, (s) => (s.lists[name].from = now + 2 * minute + 1000), "expired"],
  ]),
  ...(["tcbInfo", "qeIdentity"] as const).flatMap((name): Row<IntelScene>[] => [
    [`${name} over`, (s) => (s[name]["nextUpdate"] = "2026-11-22T11:59:59Z"), "expired"],
    [`${name} without an end`, (s) => delete s[name]["nextUpdate"], "expired"],
    [`${name} 2 minutes ahead`, (s) => (s[name]["issueDate"] = "2026-11-22T12:02:00Z"), ""],
    [`${name} further ahead`, (s) => (s[name]["issueDate"] = "2026-11-22T12:02:01Z"), "expired"],
  ]),
]);

rows("TDX: revocation", tdx, ofIntel, [
  ["the PCK certificate", (s) => s.lists.pck.revoked.push(4), "revoked"],
  ["the authority", (s) => s.lists.root.revoked.push(2), "revoked"],
  ["the signer", (s) => s.lists.root.revoked.push(3), "revoked"],
  ["the root", (s) => s.lists.root.revoked.push(1), "revoked"],
  ["the PCK's number in the root's list", (s) => s.lists.root.revoked.push(4), ""],
  ["an empty list", (s) => (s.lists.pck.revoked = []), ""],
  ["another issuer", (s) => (s.lists.pck.issuer = "Intel SGX PCK Processor CA"), "signature"],
  ["another key", (s) => (s.lists.root.signer = stranger), "signature"],
  ["SHA-384", (s) => (s.lists.root.algorithm = "ECDSA-SHA384"), "signature"],
  ["an authority that signs no lists", (s) => (s.certificates.authority.keyUsage = 0x04), "signature"],
  ["a critical extension", (s) => (s.lists.pck.critical = true), "malformed"],
  ["no DER", (s) => (s.files = (f) => f.set("pck_crl", utf8("list"))), "malformed"],
  ["a byte after a list", (s) => (s.files = (f) => f.set("pck_crl", concat(f.get("pck_crl")!, Uint8Array.of(0)))), "malformed"],
]);

const level = (s: IntelScene, i = 0) => s.tcbInfo["tcbLevels"][i] as LevelJson;
const moduleLevels = (s: IntelScene) => s.tcbInfo["tdxModuleIdentities"][0]["tcbLevels"] as LevelJson[];
rows("TDX: collateral", tdx, ofIntel, [
  ["TCB info of enclaves", (s) => (s.tcbInfo["id"] = "SGX"), "wrong-chip"],
  ["QE identity of enclaves", (s) => (s.qeIdentity["id"] = "QE"), "wrong-chip"],
  ["TCB info of version 2", (s) => (s.tcbInfo["version"] = 2), "malformed"],
  ["QE identity of version 1", (s) => (s.qeIdentity["version"] = 1), "malformed"],
  ["another model", (s) => (s.tcbInfo["fmspc"] = "00".repeat(6)), "wrong-chip"],
  ["another PCE", (s) => (s.tcbInfo["pceId"] = "0100"), "wrong-chip"],
  ["type 1", (s) => (s.tcbInfo["tcbType"] = 1), "malformed"],
  ["no module", (s) => delete s.tcbInfo["tdxModule"], "malformed"],
  ["fifteen components", (s) => level(s).tcb.sgxtcbcomponents!.pop(), "malformed"],
  ["no components of TDX", (s) => delete level(s, 1).tcb.tdxtcbcomponents, "malformed"],
  ["a component of 256", (s) => (level(s).tcb.sgxtcbcomponents![3] = { svn: 256 }), "malformed"],
  ["a component that is text", (s) => (level(s).tcb.sgxtcbcomponents![3] = { svn: "5" }), "malformed"],
  ["a component and a half", (s) => (level(s).tcb.sgxtcbcomponents![3] = { svn: 4.5 }), "malformed"],
  ["an unknown status", (s) => (level(s, 1).tcbStatus = "Fine"), "malformed"],
  ["a status of no document", (s) => (level(s).tcbStatus = "TDRelaunchAdvised"), "malformed"],
  ["no status", (s) => (level(s).tcbStatus = undefined), "malformed"],
  ["a level of the QE without version", (s) => delete s.qeIdentity["tcbLevels"][1].tcb.isvsvn, "malformed"],
  ["a level of a module without version", (s) => delete moduleLevels(s)[1]!.tcb.isvsvn, "malformed"],
  ["a date of no calendar", (s) => (level(s).tcbDate = "2026-02-30T00:00:00Z"), "malformed"],
  ["a date in words", (s) => (level(s).tcbDate = "today"), "malformed"],
  ["advisories that are text", (s) => (level(s).advisoryIDs = "INTEL-SA-00001"), "malformed"],
  ["an advisory that is a number", (s) => (level(s).advisoryIDs = [1]), "malformed"],
  ["digits that are none", (s) => (s.qeIdentity["mrsigner"] = "xy"), "malformed"],
  ["a list in place of an object", (s) => (s.tcbInfo["tdxModule"] = []), "malformed"],
  ["no levels", (s) => (s.tcbInfo["tcbLevels"] = []), "tcb-status"],
  ["levels that are none", (s) => (s.tcbInfo["tcbLevels"] = {}), "malformed"],
  ["no JSON", (s) => (s.tcbInfoText = "{]"), "malformed"],
  ["a list", (s) => (s.tcbInfoText = "[]"), "malformed"],
  ["bytes after the frame", (s) => (s.files = (f) => f.set("tcb_info", concat(f.get("tcb_info")!, utf8(" ")))), "malformed"],
  ["another frame", (s) => (s.files = (f) => f.set("tcb_info", utf8(new TextDecoder().decode(f.get("tcb_info")).replace("tcbInfo", "TCBInfo")))), "malformed"],
  ["no digits of a signature", (s) => (s.files = (f) => f.set("tcb_info", utf8(new TextDecoder().decode(f.get("tcb_info")).slice(0, -4) + 'xx"}'))), "malformed"],
  ["a frame alone", (s) => (s.files = (f) => f.set("tcb_info", utf8('{"tcbInfo":"}'))), "malformed"],
]);

rows("TDX: quoting enclave", tdx, ofIntel, [
  ["another signer", (s) => (s.qe[128] = 0), "chain"],
  ["another product", (s) => (s.qe[256] = 3), "chain"],
  ["other attributes", (s) => (s.qe[48] = 0x17), "chain"],
  ["attributes outside the mask", (s) => ((s.qe[48] = 0x11), (s.qe[60] = 1)), ""],
  ["another MISCSELECT", (s) => (s.qe[16] = 1), "chain"],
  ["a mask of another size", (s) => (s.qeIdentity["miscselectMask"] = "FF"), "chain"],
  ["an old one", (s) => (s.qe[258] = 3), "tcb-status"],
  ["an old one that policy accepts", (s) => ((s.qe[258] = 3), (s.rules.dcap = { statuses: ["OutOfDate"], advisories: ["INTEL-SA-00003"] })), ""],
  ["one below all levels", (s) => ((s.qe[258] = 2), (s.rules.dcap = { statuses: ["OutOfDate"], advisories: ["INTEL-SA-00003"] })), "tcb-status"],
]);

const mild = (s: IntelScene) => (s.rules.dcap = { statuses: ["OutOfDate", "OutOfDateConfigurationNeeded"], advisories: ["INTEL-SA-00001", "INTEL-SA-00002", "INTEL-SA-00003"] });
rows("TDX: levels", tdx, ofIntel, [
  ["an old component", (s) => s.tcb.set("9", integer(4)), "tcb-status"],
  ["an old component that policy accepts", (s) => (s.tcb.set("9", integer(4)), mild(s)), ""],
  ["a component below all levels", (s) => (s.tcb.set("9", integer(3)), mild(s)), "tcb-status"],
  ["a PCE below all levels", (s) => (s.tcb.set("17", integer(10)), mild(s)), "tcb-status"],
  ["a TDX component below all levels", (s) => (s.tcbInfo["tcbLevels"].forEach((l: LevelJson) => (l.tcb.tdxtcbcomponents![2] = { svn: 1 })), mild(s)), "tcb-status"],
  ["the module's components count not where it has a version", (s) => (level(s).tcb.tdxtcbcomponents![1] = { svn: 200 }), ""],
  ["an old module", (s) => (s.body[0] = 2), "tcb-status"],
  ["an old module that policy accepts", (s) => ((s.body[0] = 2), mild(s)), ""],
  ["a module below all levels", (s) => ((s.body[0] = 1), mild(s)), "tcb-status"],
  ["a module of another version", (s) => ((s.body[1] = 2), mild(s)), "tcb-status"],
  ["a module of another signer", (s) => (s.body[64] = 1), "tcb-status"],
  ["a module with other attributes", (s) => (s.body[112] = 1), "tcb-status"],
  ["a module of version 0", (s) => (s.body[1] = 0), ""],
  ["a module of version 0 of another signer", (s) => ((s.body[1] = 0), (s.body[64] = 1)), "tcb-status"],
  ["its components count where it has none", (s) => ((s.body[1] = 0), (level(s).tcb.tdxtcbcomponents![0] = { svn: 4 })), "tcb-status"],
  ["Revoked, whatever the statuses", (s) => ((level(s).tcbStatus = "Revoked"), (s.rules.dcap!.statuses = ["Revoked"])), "tcb-status"],
  ["no date, and a floor on it", (s) => (delete level(s).tcbDate, (s.rules.dcap!.minTcbDate = 0)), "tcb-status"],
  ["an advisory of the best level", (s) => (level(s).advisoryIDs = ["INTEL-SA-00009"]), "tcb-status"],
  ["an advisory that policy names", (s) => ((level(s).advisoryIDs = ["INTEL-SA-00009"]), (s.rules.dcap!.advisories = ["INTEL-SA-00009"])), ""],
]);

rows("TDX: settings", tdx, ofIntel, [
  ["migration", (s) => (s.body[123] = 0x30), "tcb-status"],
  ["migration that policy accepts", (s) => ((s.body[123] = 0x30), (s.rules.dcap!.migration = true)), ""],
  ["exceptions by the host", (s) => (s.body[123] = 0), "tcb-status"],
  ["an unknown attribute", (s) => (s.body[121] = 1), "tcb-status"],
  ["an unknown feature", (s) => (s.body[129] = 4), "tcb-status"],
  ["an owner", (s) => (s.body[232] = 1), "tcb-status"],
  ["an owner's configuration", (s) => (s.body[280] = 1), "tcb-status"],
  ["an owner that policy names", (s) => ((s.body[232] = 1), (s.rules.dcap!.owner = ["01" + "00".repeat(95)])), ""],
  ["debug", (s) => (s.body[120] = 1), "debug"],
  ["a profiler", (s) => (s.body[120] = 0x20), "debug"],
  ["debug that policy allows", (s) => ((s.body[120] = 1), (s.rules.debug = true)), ""],
]);

test("TDX: the status of all parts, and of a replaced module", async () => {
  const words = ["UpToDate", "SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded", "OutOfDate", "OutOfDateConfigurationNeeded"];
  const table: Record<string, string[]> = { // platform: with an OutOfDate module, with a replaced one
    UpToDate: ["OutOfDate", "TDRelaunchAdvised"], SWHardeningNeeded: ["OutOfDate", "TDRelaunchAdvised"],
    ConfigurationNeeded: ["OutOfDateConfigurationNeeded", "TDRelaunchAdvisedConfigurationNeeded"],
    ConfigurationAndSWHardeningNeeded: ["OutOfDateConfigurationNeeded", "TDRelaunchAdvisedConfigurationNeeded"],
    OutOfDate: ["OutOfDate", "OutOfDate"], OutOfDateConfigurationNeeded: ["OutOfDateConfigurationNeeded", "OutOfDateConfigurationNeeded"],
  };
  const all = [...words, "TDRelaunchAdvised", "TDRelaunchAdvisedConfigurationNeeded"];
  for (const word of words) {
    for (const [replaced, want] of [[false, table[word]![0]], [true, table[word]![1]]] as const) {
      const s = new IntelScene("tdx", { version: 5 });
      level(s).tcbStatus = word;
      s.body.set([2], 0); // a module that is out of date at launch
      s.body.set([replaced ? 3 : 2], 584);
      s.rules.dcap = { statuses: all, advisories: ["INTEL-SA-00001"] };
      const got = await ofIntel(s);
      assert.ok(typeof got !== "string", `${word}: ${got as string}`);
      const details = got.details as { tcb_status: { overall: string }; current_tcb_status?: string };
      assert.deepEqual([details.tcb_status.overall, details.current_tcb_status], [want, replaced ? word : undefined], word);
      s.rules.dcap = { ...s.rules.dcap, statuses: all.filter((w) => w !== want) };
      assert.equal(await ofIntel(s), "tcb-status", `${word} without ${want}`);
    }
  }
});

rows("TDX: an older module under a trust domain", () => new IntelScene("tdx", { version: 5 }), ofIntel, [
  ["out of date", (s) => s.body.set([2], 584), "tcb-status"],
  ["out of date, which policy accepts", (s) => (s.body.set([2], 584), mild(s)), ""],
  ["below all levels", (s) => (s.body.set([1], 584), mild(s)), "tcb-status"],
]);

const set = (at: number, ...bytes: number[]) => (s: AmdScene) => s.report.set(bytes, at);
rows("SNP: form", () => new AmdScene(), ofAmd, [
  ["a byte less", (s) => (s.after = (r) => r.slice(0, -1)), "malformed"],
  ["a byte more", (s) => (s.after = (r) => concat(r, Uint8Array.of(0))), "malformed"],
  ["version 1", set(0, 1), "malformed"],
  ["version 6", set(0, 6), "malformed"],
  ["another algorithm", set(0x34, 2), "malformed"],
  ["a stepping of 16", set(0x18a, 16), "malformed"],
  ...[0x4c, 0x18b, 0x19f, 0x1eb, 0x1ef, 0x208, 0x29f].map((at): Row<AmdScene> => [`reserved byte ${at}`, set(at, 1), "malformed"]),
  ...[0x330, 0x49f].map((at): Row<AmdScene> => [`reserved byte ${at} after the signature`, (s) => (s.after = (r) => (r.set([1], at), r)), "malformed"]),
  ["a policy without its bit", set(0x0a, 0), "malformed"],
  ["no signer", set(0x48, 7 << 2), "malformed"],
  ["an unknown bit of the signer", set(0x48, 0x20), "malformed"],
  ["a request of the host", set(0x30, 255, 255, 255, 255), "malformed"],
  ["level 4", set(0x30, 4), "malformed"],
  ["mitigations before version 5", set(0x1f8, 1), "malformed"],
  ["current mitigations before version 5", set(0x200, 1), "malformed"],
  ["a Venice", set(0x188, 0x1a, 0x50), "platform"],
  ["a later family", set(0x188, 0x1b), "platform"],
]);
rows("SNP: version 2", () => new AmdScene("Milan", "vcek", { version: 2 }), ofAmd, [["a CPU that version 2 does not state", set(0x188, 0x19), "malformed"]]);
rows("SNP: version 5", () => new AmdScene("Turin", "vcek", { version: 5 }), ofAmd, [
  ["a mitigation", (s) => (s.report.set([2], 0x1f8), (s.rules.snp!.launchMitigations = [1])), ""],
  ["another mitigation", (s) => (s.report.set([2], 0x1f8), (s.rules.snp!.launchMitigations = [1, 2])), "tcb-status"],
  ["a mitigation now", (s) => (s.report.set([0, 0, 0, 0, 0, 0, 0, 0x80], 0x200), (s.rules.snp!.currentMitigations = [63])), ""],
  ["no mitigation now", (s) => (s.rules.snp!.currentMitigations = [63]), "tcb-status"],
  ["other firmware (FMC)", (s) => s.extensions.set("3.9", integer(2)), "wrong-chip"],
  ["no FMC", (s) => s.extensions.delete("3.9"), "chain"],
  ["a floor of the FMC", (s) => (s.rules.snp!.generations = new Map([["Turin", { committed: { fmc: 2, bootloader: 0, tee: 0, snp: 0, microcode: 0 } }]])), "tcb-status"],
  ["bytes after the chip id", set(0x1a8, 1), "wrong-chip"],
]);
for (const product of ["Milan", "Genoa", "Turin"] satisfies Product[]) {
  rows(`SNP: ${product} under a VLEK`, () => new AmdScene(product, "vlek"), ofAmd, [
    ["a report that names a VCEK", set(0x48, 0), "chain"],
    ["no provider", (s) => s.extensions.delete("5"), "chain"],
    ["another chip", set(0x1a0, 9), ""],
    ["a hidden chip", (s) => s.report.fill(0, 0x1a0, 0x1e0), "platform"],
    ["a hidden chip that policy accepts", (s) => (s.report.fill(0, 0x1a0, 0x1e0), (s.rules.snp!.hiddenChips = true)), ""],
  ]);
  rows(`SNP: ${product}`, () => new AmdScene(product), ofAmd, [["another generation's CPU", (s) => s.report.set(product === "Milan" ? [0x19, 0x11] : [0x19, 0x01], 0x188), "wrong-chip"]]);
}
rows("SNP: forgery", () => new AmdScene(), ofAmd, [
  ["another key", (s) => (s.signer = strangers.p384), "signature"],
  ["a changed report", (s) => (s.after = (r) => (r.set([1], 0x90), r)), "signature"],
  ["a number above 48 bytes", (s) => (s.after = (r) => (r.set([1], 0x2a0 + 48), r)), "signature"],
  ["a signature of zeros", (s) => (s.after = (r) => r.fill(0, 0x2a0, 0x330)), "signature"],
  ["another chip", set(0x1a0, 9), "wrong-chip"],
  ["other firmware", (s) => s.extensions.set("3.8", integer(218)), "wrong-chip"],
]);
rows("SNP: chain", () => new AmdScene(), ofAmd, [
  ["one certificate", (s) => (s.files = (f) => f.set("ask_ark", pem(certify(s.certificates.ask)))), "malformed"],
  ["three certificates", (s) => (s.files = (f) => f.set("ask_ark", concat(f.get("ask_ark")!, pem(certify(s.certificates.ark))))), "malformed"],
  ["a byte after the leaf", (s) => (s.files = (f) => f.set("vcek", concat(f.get("vcek")!, Uint8Array.of(0)))), "malformed"],
  ["an unknown generation", (s) => (s.certificates.ark.name = s.certificates.ark.issuer = s.certificates.ask.issuer = "ARK-Rome"), "chain"],
  ["an ASVK", (s) => (s.certificates.ask.name = s.certificates.leaf.issuer = "SEV-VLEK-Milan"), "chain"],
  ["another leaf", (s) => (s.certificates.leaf.name = "SEV-VLEK"), "chain"],
  ["a leaf by another key", (s) => (s.certificates.leaf.signer = strangers.rsa), "chain"],
  ["an ASK by another key", (s) => (s.certificates.ask.signer = strangers.rsa), "chain"],
  ["an ARK by another key", (s) => (s.certificates.ark.signer = strangers.rsa), "chain"],
  ["another issuer", (s) => (s.certificates.leaf.issuer = "SEV-Genoa"), "chain"],
  ["PKCS #1", (s) => (s.certificates.leaf.algorithm = "RSA-SHA384"), "chain"],
  ["a leaf key of RSA", (s) => (s.certificates.leaf.key = strangers.rsa), "chain"],
  ["an ASK that is no CA", (s) => (s.certificates.ask.ca = false), "chain"],
  ["a critical extension", (s) => s.certificates.ask.extensions.push({ id: "1.2.3", value: sequence(), critical: true }), "chain"],
  ["no product", (s) => s.extensions.delete("2"), "chain"],
  ["another product", (s) => s.extensions.set("2", ia5("Genoa-B0")), "chain"],
  ["a product that is a number", (s) => s.extensions.set("2", integer(1)), "chain"],
  ["a level of 256", (s) => s.extensions.set("3.1", integer(256)), "chain"],
  ["a negative level", (s) => s.extensions.set("3.1", der(0x02, Uint8Array.of(0x80))), "chain"],
  ["a level with a byte after it", (s) => s.extensions.set("3.1", concat(integer(4), Uint8Array.of(0))), "chain"],
  ["a chip id of 8 bytes", (s) => s.extensions.set("4", new Uint8Array(8)), "chain"],
  ["a chip id as an OCTET STRING", (s) => s.extensions.set("4", octets(new Uint8Array(64).fill(0xc1))), ""],
  ["no chip id", (s) => s.extensions.delete("4"), "chain"],
  ["an unknown root", (s) => (s.rules.roots = []), "unknown-root"],
]);
rows("SNP: time and revocation", () => new AmdScene(), ofAmd, [
  ...(["ark", "ask", "leaf"] as const).map((name): Row<AmdScene> => [`${name} over`, (s) => Object.assign(s.certificates[name], past), "expired"]),
  ["list over", (s) => Object.assign(s.list, past), "expired"],
  ["list 2 minutes ahead", (s) => (s.list.from = now + 2 * minute), ""],
  ["list further ahead", (s) => (s.list.from = now + 2 * minute + 1000), "expired"],
  ["the ASK", (s) => s.list.revoked.push(2), "revoked"],
  ["the leaf", (s) => s.list.revoked.push(0), "revoked"],
  ["another issuer", (s) => (s.list.issuer = "ARK-Genoa"), "signature"],
  ["another key", (s) => (s.list.signer = strangers.rsa), "signature"],
  ["PKCS #1", (s) => (s.list.algorithm = "RSA-SHA384"), "signature"],
  ["a critical extension", (s) => (s.list.critical = true), "malformed"],
]);
rows("SNP: settings", () => new AmdScene(), ofAmd, [
  ["SMT", set(0x0a, 3), "tcb-status"],
  ["migration", set(0x0a, 6), "tcb-status"],
  ["migration that policy accepts", (s) => (s.report.set([6], 0x0a), (s.rules.snp!.migration = true)), ""],
  ["debug", set(0x0a, 0x0a), "debug"],
  ["memory outside the machine", set(0x0a, 0x22), "tcb-status"],
  ["an unknown bit of the policy", set(0x0b, 4), "tcb-status"],
  ["an unknown bit of the platform", set(0x41, 1), "tcb-status"],
  ["memory that may have aliases", set(0x40, 0), "tcb-status"],
  ["a current TCB above the committed", set(0x3f, 220), "tcb-status"],
  ["a current build above the committed", set(0x1e8, 8), "tcb-status"],
  ["level 1", set(0x30, 1), "tcb-status"],
  ["level 1 that policy accepts", (s) => (s.report.set([1], 0x30), (s.rules.snp!.vmpl = 1)), ""],
  ["an id key", set(0xe0, 1), "measurement"],
]);
