/**
 * The appraiser of AMD SEV-SNP (docs/spec/evidence-snp.md): reports of version 2 to 5, signed by a
 * VCEK or VLEK. It trusts the AMD root keys (ARK) that policy names. It refuses chains that do not
 * verify or are revoked or out of their time, certificates of another chip or firmware than the
 * report's, bytes that are neither signed nor zero, and then what the rules do not accept. Forgery
 * is refused before policy: rules are compared with signed fields only.
 */

import { concat, digestText, equal, hex, sha256, text } from "../bytes.js";
import { DerReader, Tag, unsigned } from "../der.js";
import { refuse } from "../refusal.js";
import { type Certificate, extension, parseCertificate } from "../x509.js";
import type { Appraiser, Claims, Endorsements } from "./evidence.js";
import { certificates, checkRevocation, checkValidity, pointOn, newestIssue, type Validity, validities, type Vendor, verifyChain, verifyEcdsa } from "./pki.js";
import { accepts, checkBits, type Rules, setBits, snpGuestPolicy, snpPlatformInfo, type SnpRules, type SnpTcb } from "./rules.js";

/** The appraiser of platform `snp`. */
export const snp: Appraiser = { platform: "snp", appraise };

const amd: Vendor = { name: "snp", algorithm: "RSA-PSS-SHA384" };

/** Sizes in bytes of the report, of what its signature covers, and of each number of the signature (AMD 56860, table 23). */
const reportSize = 0x4a0, signedSize = 0x2a0, numberSize = 0x48;
/** Fields at 0x188 (CPU) and at 0x1f8 (mitigations) came with these versions. */
const versionCpu = 3, versionMitigations = 5;

/** A report whose form is right. None of it is verified. */
interface Report {
  raw: Uint8Array;
  version: number;
  guestSvn: number;
  vmpl: number;
  policy: bigint;
  platformInfo: bigint;
  signer: "vcek" | "vlek";
  /** CPU generation; empty in version 2, which does not state it. */
  product: string;
  mitigations: { launch: bigint; current: bigint };
  /** The field from one offset to another. */
  at(from: number, to: number): Uint8Array;
}

async function appraise(raw: Uint8Array, endorsed: Endorsements, rules: Rules, at: number): Promise<Claims> {
  const report = parseReport(raw);
  const chain = await verifyEndorsements(report, endorsed);
  if (!rules.roots?.includes(chain.root)) throw refuse("unknown-root", `snp: root of the ${report.signer}`, chain.root, "a root that policy names");
  checkValidity(amd, at, chain.times);
  await verifyReport(report, chain);
  if (!chain.hasList && rules.crl !== "if-present") {
    throw refuse("crl-missing", `snp: revocation list of ${chain.product}`, "evidence without it", "one by its ARK");
  }
  permit(report, chain, rules);
  return claimsOf(report, chain);
}

/** Parses a report. Every byte is part of a field, or reserved and zero. Nothing is verified. */
export function parseReport(raw: Uint8Array): Report {
  const malformed = (rule: string, got: unknown, want: unknown) => refuse("malformed", `snp: ${rule}`, got, want);
  if (raw.length !== reportSize) throw malformed("size of the report", raw.length, reportSize);
  const view = new DataView(raw.buffer, raw.byteOffset, raw.length);
  const u32 = (offset: number) => view.getUint32(offset, true), u64 = (offset: number) => view.getBigUint64(offset, true);
  const version = u32(0);
  if (version < 2 || version > 5) throw malformed("version of the report", version, "2 to 5");
  if (u32(0x34) !== 1) throw malformed("signature algorithm", u32(0x34), "1, ECDSA P-384 with SHA-384");
  if (version >= versionCpu && raw[0x18a]! > 15) throw malformed("CPU stepping", raw[0x18a], "0 to 15");
  const reserved = [
    [0x4c, 0x50], [version >= versionCpu ? 0x18b : 0x188, 0x1a0], [0x1eb, 0x1ec], [0x1ef, 0x1f0], [0x208, signedSize], [signedSize + 2 * numberSize, reportSize],
  ] as const;
  for (const [from, to] of reserved) {
    const used = raw.subarray(from, to).findIndex((b) => b !== 0);
    if (used >= 0) throw malformed(`reserved byte 0x${(from + used).toString(16)} of the report`, raw[from + used], 0);
  }
  const policy = u64(8), signerInfo = u32(0x48), signer = (signerInfo >>> 2) & 7, vmpl = u32(0x30);
  const mitigations = { launch: u64(0x1f8), current: u64(0x200) };
  if (!bit(policy, 17)) throw malformed("guest policy", `0x${policy.toString(16)}`, "the bit that is always 1");
  if (signerInfo >>> 5 !== 0 || signer > 1) throw malformed("signing key", `0x${signerInfo.toString(16)}`, "VCEK or VLEK");
  // The host's own reports have all bits set.
  if (vmpl > 3) throw malformed("privilege level", vmpl, "0 to 3");
  if (version < versionMitigations && (mitigations.launch | mitigations.current) !== 0n) throw malformed("mitigation vectors before version 5", "others", "zeros");
  const product = version >= versionCpu ? productOf(raw[0x188]!, raw[0x189]!) : "";
  if (product === undefined) throw refuse("platform", "snp: CPU family and model", hex(raw.subarray(0x188, 0x18b)), "Milan, Genoa or Turin; Venice and later are not read yet");
  return {
    raw, version, vmpl, policy, product, mitigations,
    guestSvn: u32(4),
    platformInfo: u64(0x40),
    signer: signer === 1 ? "vlek" : "vcek",
    at: (from, to) => raw.subarray(from, to),
  };
}

function bit(value: bigint, position: number): boolean {
  return ((value >> BigInt(position)) & 1n) === 1n;
}

/** Returns the generation of a CPU: AMD signs Bergamo and Siena (model A0h) with Genoa's keys. */
function productOf(family: number, model: number): string | undefined {
  if (family === 0x19 && model <= 0x0f) return "Milan";
  if (family === 0x19 && ((model & 0xf0) === 0x10 || (model & 0xf0) === 0xa0)) return "Genoa";
  return family === 0x1a && model <= 0x1f ? "Turin" : undefined;
}

/** Reads the TCB at an offset of the report. Its layout changed with Turin. */
function tcbAt(report: Report, product: string, offset: number): SnpTcb {
  const b = report.at(offset, offset + 8);
  return product === "Turin"
    ? { fmc: b[0]!, bootloader: b[1]!, tee: b[2]!, snp: b[3]!, microcode: b[7]! }
    : { fmc: 0, bootloader: b[0]!, tee: b[1]!, snp: b[6]!, microcode: b[7]! };
}

const components = ["fmc", "bootloader", "tee", "snp", "microcode"] as const;
const chipId = (report: Report) => report.at(0x1a0, 0x1e0);
const isHidden = (report: Report) => chipId(report).every((b) => b === 0);

/** What verified endorsements vouch for. Their time is not checked yet. */
interface Chain {
  root: string;
  /** The signing key, a point of P-384. */
  key: Uint8Array;
  product: string;
  tcb: SnpTcb;
  /** The chip's id: 64 bytes, 8 on Turin; undefined under a VLEK, which names none. */
  chip?: Uint8Array;
  /** The cloud provider, under a VLEK. */
  provider?: string;
  hasList: boolean;
  times: Validity[];
}

/** Checks everything about the endorsements that does not depend on time or rules. */
async function verifyEndorsements(report: Report, endorsed: Endorsements): Promise<Chain> {
  const { signer } = report;
  const der = endorsed.get(signer), pem = endorsed.get("ask_ark"), crl = endorsed.get("crl");
  if (!der?.length || !pem?.length) {
    throw refuse("chain", "snp: certificates", `${pem?.length ?? 0} bytes of ask_ark, ${der?.length ?? 0} of ${signer}`, `ask_ark and ${signer}`);
  }
  const above = certificates(amd, "ask_ark", pem, 2);
  if (above.length !== 2) throw refuse("malformed", "snp: certificates in ask_ark", above.length, "ASK and ARK");
  const [ask, ark] = above as [Certificate, Certificate];
  const leaf = parseCertificate(der);
  const certs = [leaf, ask, ark];
  await verifyChain(amd, certs);
  const product = checkNames(signer, leaf, ask, ark);
  const key = pointOn(amd, leaf, "P-384");
  const holder = readExtensions(leaf, signer, product);
  const times = validities(certs);
  if (crl !== undefined) times.push(await checkRevocation(amd, crl, ark, certs));
  return { root: digestText(await sha256(ark.key.spki)), key, product, ...holder, hasList: crl !== undefined, times };
}

/** Checks that the names belong together: AMD has an ARK for each generation, below it an ASK for chips and an ASVK for providers. */
function checkNames(signer: "vcek" | "vlek", leaf: Certificate, ask: Certificate, ark: Certificate): string {
  const product = /^ARK-(Milan|Genoa|Turin)$/.exec(ark.subjectName)?.[1];
  if (product === undefined) throw refuse("chain", "snp: name of the root", ark.subjectName, "ARK-Milan, ARK-Genoa or ARK-Turin");
  const names = [
    ["intermediate", ask.subjectName, signer === "vlek" ? `SEV-VLEK-${product}` : `SEV-${product}`],
    ["signing", leaf.subjectName, `SEV-${signer.toUpperCase()}`],
  ];
  for (const [which, got, want] of names) if (got !== want) throw refuse("chain", `snp: name of the ${which} certificate`, got, want);
  return product;
}

/** Arcs below 1.3.6.1.4.1.3704.1 of extensions in AMD's certificates of signing keys (AMD 57230, section 3.1). */
const arcs = { product: "2", bootloader: "3.1", tee: "3.2", snp: "3.3", microcode: "3.8", fmc: "3.9", hardwareId: "4", provider: "5" };

/** Reads what AMD certifies of the signing key: generation, firmware levels, and chip or provider. */
function readExtensions(leaf: Certificate, signer: "vcek" | "vlek", product: string): { tcb: SnpTcb; chip?: Uint8Array; provider?: string } {
  const fault = (arc: string, got: unknown, want: unknown) => refuse("chain", `snp: extension 1.3.6.1.4.1.3704.1.${arc} of ${leaf.subjectName}`, got, want);
  const value = (arc: string) => extension(leaf, "1.3.6.1.4.1.3704.1." + arc) ?? new Uint8Array(0);
  const read = <T>(arc: string, tags: number[], decode: (content: Uint8Array) => T | undefined): T => {
    try {
      const reader = new DerReader(value(arc));
      const { tag, content } = reader.read();
      reader.end();
      const decoded = tags.includes(tag) ? decode(content) : undefined;
      if (decoded !== undefined) return decoded;
    } catch {
      // refused as all other forms
    }
    throw fault(arc, hex(value(arc).subarray(0, 80)), "one value of its form");
  };
  const word = (arc: string) => read(arc, [Tag.Ia5String, Tag.PrintableString, Tag.Utf8String], text);
  const level = (arc: string) => read(arc, [Tag.Integer], (content) => (content.length <= 2 && unsigned(content) <= 255n ? Number(unsigned(content)) : undefined));
  const stated = word(arcs.product);
  if (stated.split("-")[0] !== product) throw fault(arcs.product, stated, product);
  const tcb: SnpTcb = {
    bootloader: level(arcs.bootloader), tee: level(arcs.tee), snp: level(arcs.snp), microcode: level(arcs.microcode),
    fmc: product === "Turin" ? level(arcs.fmc) : 0,
  };
  if (signer === "vlek") return { tcb, provider: word(arcs.provider) };
  const size = product === "Turin" ? 8 : 64;
  // AMD's KDS writes the bytes as they are; the OCTET STRING that they should be is accepted too.
  let chip = value(arcs.hardwareId);
  if (chip.length !== size) chip = read(arcs.hardwareId, [Tag.OctetString], (content) => (content.length === size ? content : undefined));
  return { tcb, chip };
}

/** Checks that the report is of the generation, chip and firmware of the chain, and its signature. */
async function verifyReport(report: Report, chain: Chain): Promise<void> {
  if (report.product !== "" && report.product !== chain.product) {
    throw refuse("wrong-chip", "snp: CPU generation of the certificate", chain.product, report.product);
  }
  if (chain.chip && !equal(concat(chain.chip, new Uint8Array(64 - chain.chip.length)), chipId(report))) {
    throw refuse("wrong-chip", "snp: chip id of the certificate", hex(chain.chip), hex(chipId(report)));
  }
  const reported = tcbAt(report, chain.product, 0x180);
  if (components.some((c) => reported[c] !== chain.tcb[c])) {
    throw refuse("wrong-chip", "snp: firmware of the certificate", tcbText(chain.tcb), tcbText(reported));
  }
  // The report has each number with its least significant byte first, and zeros above 48 bytes.
  const numbers = [signedSize, signedSize + numberSize].map((from) => report.at(from, from + numberSize));
  const signature = concat(...numbers.map((n) => n.slice(0, 48).reverse()));
  const inSize = numbers.every((n) => n.subarray(48).every((b) => b === 0));
  if (!inSize || !(await verifyEcdsa("P-384", chain.key, report.at(0, signedSize), signature))) {
    throw refuse("signature", "snp: signature of the report", "a signature that does not verify", `one by the ${report.signer}`);
  }
}

function tcbText(tcb: SnpTcb): string {
  return components.map((c) => `${c} ${tcb[c]}`).join(", ");
}

/** Compares a genuine report with the rules. Debug is compared for all platforms alike, outside. */
function permit(report: Report, chain: Chain, all: Rules): void {
  const rules: SnpRules = all.snp ?? {};
  const floor = rules.generations?.get(chain.product);
  if (!floor) throw refuse("platform", "snp: CPU generation", chain.product, "one that policy names");
  for (const [name, offset] of [["committed", 0x1e0], ["reported", 0x180], ["launch", 0x1f0]] as const) {
    const got = tcbAt(report, chain.product, offset), least = floor[name];
    for (const c of components) if (least && got[c] < least[c]) throw refuse("tcb-status", `snp: ${name} ${c}`, got[c], `at least ${least[c]}`);
  }
  permitHolder(report, all, rules);
  permitGuest(report, rules);
  permitSettings(report, rules);
}

function permitHolder(report: Report, all: Rules, rules: SnpRules): void {
  const cut = all.cutChips ?? [], chip = hex(chipId(report)), idKey = hex(report.at(0xe0, 0x110));
  if (isHidden(report) && (!rules.hiddenChips || cut.length > 0)) {
    throw refuse("platform", "snp: chip", "all zeros: its host hides which one it is, so no cut-off reaches it", "its id, or hidden_chips = true in policy and no cut_chips");
  }
  if (cut.includes(chip) || !accepts(all.chips, chip)) throw refuse("platform", "snp: chip", chip, "one that policy accepts");
  if (!accepts(rules.idKeys, idKey)) throw refuse("measurement", "snp: id key digest", idKey, "one that policy names");
}

function permitGuest(report: Report, rules: SnpRules): void {
  const fault = (rule: string, got: unknown, want: unknown) => refuse("tcb-status", `snp: ${rule}`, got, want);
  // Current and committed: the TCB, and build, minor and major of the firmware.
  const provisional = !equal(report.at(0x38, 0x40), report.at(0x1e0, 0x1e8)) || !equal(report.at(0x1e8, 0x1eb), report.at(0x1ec, 0x1ef));
  if (report.vmpl > (rules.vmpl ?? 0)) throw fault("privilege level", report.vmpl, `at most ${rules.vmpl ?? 0}`);
  if (bit(report.policy, 16) && !rules.smt) throw fault("guest policy", "shared cores (SMT) allowed", "not allowed");
  if (bit(report.policy, 18) && !rules.migration) throw fault("guest policy", "migration allowed", "not allowed");
  if (provisional && !rules.provisional) throw fault("firmware", "current above committed: it can be rolled back", "committed");
}

/** Compares how the host set its machine up, and with what the guest was launched: the launch digest contains none of it. */
function permitSettings(report: Report, rules: SnpRules): void {
  checkBits(snpPlatformInfo, report.platformInfo, rules.platformInfo);
  checkBits(snpGuestPolicy, policyBits(report), rules.guestPolicy);
  const [major, minor] = abiOf(report), [leastMajor, leastMinor] = rules.guestAbi ?? [0, 0];
  if (major < leastMajor || (major === leastMajor && minor < leastMinor)) {
    throw refuse("tcb-status", "snp: least firmware ABI of the guest policy", `${major}.${minor}`, `at least ${leastMajor}.${leastMinor}`);
  }
  for (const [name, demanded] of [["launch", rules.launchMitigations], ["current", rules.currentMitigations]] as const) {
    const missing = demanded?.find((position) => !bit(report.mitigations[name], position));
    if (missing !== undefined) {
      throw refuse("tcb-status", `snp: ${name} mitigation vector`, `0x${report.mitigations[name].toString(16)}, in a report of version ${report.version}`, `bit ${missing} set: it comes with version ${versionMitigations}`);
    }
  }
}

/** The guest policy without the ABI in its low 16 bits and the bit that is always 1. */
function policyBits(report: Report): bigint {
  return report.policy & ~0x2ffffn;
}

function abiOf(report: Report): [major: number, minor: number] {
  return [report.raw[9]!, report.raw[8]!];
}

function claimsOf(report: Report, chain: Chain): Claims {
  const { version, policy, platformInfo, mitigations } = report;
  const at = (from: number, to: number) => hex(report.at(from, to));
  const hexNumber = (value: bigint) => `0x${value.toString(16)}`;
  const issued = newestIssue(chain.times);
  return {
    measurement: {
      platform: "snp",
      registers: [{ name: "measurement", value: report.at(0x90, 0xc0).slice() }, { name: "host-data", value: report.at(0xc0, 0xe0).slice() }],
    },
    reportData: report.at(0x50, 0x90).slice(),
    debug: bit(policy, 19),
    dynamic: false,
    chip: chipOf(report, chain),
    ...(issued !== undefined ? { issued } : {}),
    notVerified: [],
    details: {
      product: chain.product, report_version: version, signing_key: report.signer,
      policy: hexNumber(policy), policy_bits: setBits(snpGuestPolicy, policyBits(report)), policy_abi: abiOf(report).join("."),
      vmpl: report.vmpl, guest_svn: report.guestSvn,
      platform_info: hexNumber(platformInfo), platform_bits: setBits(snpPlatformInfo, platformInfo),
      chip_id: at(0x1a0, 0x1e0), id_key_digest: at(0xe0, 0x110), author_key_digest: at(0x110, 0x140),
      family_id: at(0x10, 0x20), image_id: at(0x20, 0x30), report_id: at(0x140, 0x160), report_id_ma: at(0x160, 0x180),
      current_tcb: at(0x38, 0x40), reported_tcb: at(0x180, 0x188), committed_tcb: at(0x1e0, 0x1e8), launch_tcb: at(0x1f0, 0x1f8),
      current_version: report.at(0x1e8, 0x1eb).slice().reverse().join("."), committed_version: report.at(0x1ec, 0x1ef).slice().reverse().join("."),
      ...(version >= versionMitigations ? { launch_mitigations: hexNumber(mitigations.launch), current_mitigations: hexNumber(mitigations.current) } : {}),
      ...(version >= versionCpu ? { cpuid: at(0x188, 0x18b) } : {}),
      ...(chain.provider !== undefined ? { csp_id: chain.provider } : {}),
    },
  };
}

/** Names the device: its chip id, or where the host hides it the provider that holds the VLEK. */
function chipOf(report: Report, chain: Chain): string {
  if (chain.chip) return hex(chain.chip);
  if (isHidden(report)) return `vlek:${chain.provider}`;
  return hex(chipId(report).subarray(0, chain.product === "Turin" ? 8 : 64));
}
