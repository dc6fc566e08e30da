/**
 * The appraisers of Intel TDX and SGX (docs/spec/evidence-dcap.md): DCAP quotes of version 3 to 5
 * with their PCK certificate chain, and Intel's collateral as endorsements. They trust the Intel
 * roots that policy names. They refuse chains that do not verify or are revoked or out of their
 * time, collateral that is missing or of another platform, signatures that do not verify, quoting
 * enclaves and TDX modules that are not Intel's, and then what the rules do not accept. Forgery is
 * refused before policy: rules are compared with signed fields only.
 */

import { type Bytes, concat, digestText, equal, fromHex, hex, sha256, utf8 } from "../bytes.js";
import { DerReader, oid, onlyElement, Tag, unsigned } from "../der.js";
import { Refusal, refuse } from "../refusal.js";
import { type Certificate, extension } from "../x509.js";
import type { Appraiser, Claims, Endorsements } from "./evidence.js";
import { certificates, checkRevocation, checkValidity, pointOn, newestIssue, type Validity, validities, type Vendor, verifyChain, verifyEcdsa } from "./pki.js";
import { accepts, checkBits, type DcapRules, type List, type Rules, setBits, tdAttributes, xfam } from "./rules.js";
import { assess, checkEnclave, parseQeIdentity, parseTcbInfo, type Pck, type QeIdentity, type TcbInfo, type Verdict } from "./tcb.js";

type DcapPlatform = "tdx" | "sgx";

/** The appraiser of platform `tdx`. */
export const tdx: Appraiser = { platform: "tdx", appraise: (...of) => appraise("tdx", ...of) };
/** The appraiser of platform `sgx`. */
export const sgx: Appraiser = { platform: "sgx", appraise: (...of) => appraise("sgx", ...of) };

const intel: Vendor = { name: "dcap", algorithm: "ECDSA-SHA256" };

const maxQuote = 256 * 1024;
/** Sizes in bytes of the bodies: SGX report, TD report, and that of TDX 1.5. */
const enclaveSize = 384, guestSize = 584, guest15Size = 648;
/** The QE vendor id of Intel, the only one there is. */
const intelQe = "939a7233f79c4ca9940a0db3957f0607";

async function appraise(platform: DcapPlatform, raw: Uint8Array, endorsed: Endorsements, rules: Rules, at: number): Promise<Claims> {
  const quote = parseQuote(raw, platform);
  const vouched = await verifyEndorsements(platform, quote, endorsed);
  if (!rules.roots?.includes(vouched.root)) throw refuse("unknown-root", "dcap: root of the PCK certificate", vouched.root, "a root that policy names");
  checkValidity(intel, at, vouched.times);
  await verifyQuote(quote, vouched.key);
  checkEnclave(vouched.qe, quote.qe);
  const verdict = assess(vouched.tcb, vouched.qe, vouched.pck, quote.qe, platform === "tdx" ? quote.body : undefined);
  if (!vouched.hasLists && rules.crl !== "if-present") {
    throw refuse("crl-missing", "dcap: revocation lists", "fewer than two", "that of the root and that of the PCK authority");
  }
  permit(vouched, verdict, rules);
  if (platform === "tdx") permitGuest(quote.body, rules.dcap ?? {});
  else permitEnclave(quote.body, rules.dcap ?? {});
  return claimsOf(platform, quote, vouched, verdict);
}

/** A quote taken apart, every field a part of its bytes. Nothing is checked but its form. */
interface Quote {
  version: number;
  /** Header, body descriptor and body. */
  signed: Uint8Array;
  body: Uint8Array;
  /** By the attestation key, over `signed`: R and S, 32 bytes each. */
  signature: Uint8Array;
  /** The attestation key: X and Y. */
  key: Uint8Array;
  /** Report of the quoting enclave, 384 bytes, and the PCK's signature over it. */
  qe: Uint8Array;
  qeSignature: Uint8Array;
  qeAuth: Uint8Array;
  /** PCK certificate chain, PEM. */
  chain: Uint8Array;
}

/** Parses a quote of a platform. There is one encoding, but for zeros at its end, of which clouds add many. */
export function parseQuote(raw: Uint8Array, platform: DcapPlatform): Quote {
  if (raw.length > maxQuote) throw refuse("too-large", "dcap: size in bytes", raw.length, maxQuote);
  const malformed = (rule: string, got: unknown, want: unknown) => refuse("malformed", `dcap: ${rule}`, got, want);
  const view = new DataView(raw.buffer, raw.byteOffset, raw.length);
  let at = 0;
  const take = (size: number): Uint8Array => {
    if (raw.length - at < size) throw malformed("quote", "a cut field", "its whole length");
    return raw.subarray(at, (at += size));
  };
  const u16 = () => (take(2), view.getUint16(at - 2, true)), u32 = () => (take(4), view.getUint32(at - 4, true));
  const version = u16(), keyType = u16(), tee = u32();
  take(4); // SVNs of QE and PCE: the QE's own report counts
  const vendor = hex(take(16));
  take(20); // user data
  if (version < 3 || version > 5) throw malformed("quote version", version, "3, 4 or 5");
  if (keyType !== 2) throw malformed("attestation key type", keyType, 2);
  if (vendor !== intelQe) throw malformed("QE vendor", vendor, intelQe);
  if (tee !== (platform === "tdx" ? 0x81 : 0) || (platform === "tdx" && version === 3)) throw malformed("TEE type", tee, `that of ${platform}`);
  const sizes = platform === "tdx" ? [0, 0, guestSize, guest15Size] : [0, enclaveSize];
  let size = platform === "tdx" ? guestSize : enclaveSize;
  if (version === 5) {
    const type = u16();
    size = u32();
    if (size === 0 || size !== sizes[type]) throw malformed("body type", type, `one of ${platform} with its size`);
  }
  const body = take(size);
  const signed = raw.subarray(0, at);
  const rest = u32(), end = at + rest;
  const signature = take(64), key = take(64);
  const counted = (kind: number, of: string) => {
    const [got, length] = [u16(), u32()];
    if (got !== kind || length !== end - at) throw malformed(`certification data${of}`, got, `${kind}, to the end`);
  };
  if (version > 3) counted(6, "");
  const qe = take(enclaveSize), qeSignature = take(64), qeAuth = take(u16());
  counted(5, " of the QE");
  const chain = take(end - at);
  if (!isZero(raw.subarray(at))) throw malformed("after the quote", "bytes that are not zero", "zeros");
  if (platform === "tdx" ? (body[128]! & 3) !== 3 : (body[48]! & 1) === 0) {
    throw malformed("body", "a TEE that cannot run", platform === "tdx" ? "XFAM with x87 and SSE" : "an initialised enclave");
  }
  const reserved = platform === "tdx" ? [] : ([[20, 32], [96, 128], [160, 192], [262, 304]] as const);
  if (!reserved.every(([from, to]) => isZero(body.subarray(from, to)))) throw malformed("reserved bytes of the enclave", "others", "zeros");
  return { version, signed, body, signature, key, qe, qeSignature, qeAuth, chain };
}

function isZero(bytes: Uint8Array): boolean {
  return bytes.every((b) => b === 0);
}

/** What verified certificates and collateral vouch for. Their time is not checked yet. */
interface Vouched {
  root: string;
  /** The PCK, a point of P-256. */
  key: Uint8Array;
  pck: Pck;
  tcb: TcbInfo;
  qe: QeIdentity;
  /** Both revocation lists were there. */
  hasLists: boolean;
  times: Validity[];
}

const names = { root: "Intel SGX Root CA", authority: ["Intel SGX PCK Platform CA", "Intel SGX PCK Processor CA"], pck: "Intel SGX PCK Certificate", signing: "Intel SGX TCB Signing" };

/** Checks everything about certificates and collateral that does not depend on time or rules. */
async function verifyEndorsements(platform: DcapPlatform, quote: Quote, endorsed: Endorsements): Promise<Vouched> {
  const of = "the PCK certificate chain";
  const certs = parseChain(of, withoutZeros(quote.chain));
  const key = await verifyNamedChain(of, certs, [[names.pck], names.authority, [names.root]]);
  const root = digestText(await sha256(certs[2]!.key.spki));
  const pck = parsePck(extension(certs[0]!, sgxArc));
  const info = await verifyStatement(endorsed, root, "tcb_info", "tcb_info_chain", "tcbInfo");
  const identity = await verifyStatement(endorsed, root, "qe_identity", "qe_identity_chain", "enclaveIdentity");
  const tcb = parseTcbInfo(info.signed, platform === "tdx" ? "TDX" : "SGX");
  const qe = parseQeIdentity(identity.signed, platform === "tdx" ? "TD_QE" : "QE");
  if (!equal(tcb.fmspc, pck.fmspc) || !equal(tcb.pceId, pck.pceId)) {
    throw refuse("wrong-chip", "dcap: FMSPC and PCE id of TCB info", `${hex(tcb.fmspc)} ${hex(tcb.pceId)}`, `${hex(pck.fmspc)} ${hex(pck.pceId)}`);
  }
  const times = [...validities([...certs, ...info.certs, ...identity.certs]), tcb.validity, qe.validity];
  const lists = [
    [endorsed.get("pck_crl"), certs[1]!, [certs[0]!]],
    [endorsed.get("root_crl"), certs[2]!, [info.certs[0]!, identity.certs[0]!, certs[1]!, certs[2]!]],
  ] as const;
  for (const [der, issuer, over] of lists) if (der?.length) times.push(await checkRevocation(intel, der, issuer, over));
  return { root, key, pck, tcb, qe, hasLists: lists.every(([der]) => der?.length), times };
}

/** Removes C's end of a string, which is mostly there, from the PCK certificate chain. */
function withoutZeros(bytes: Uint8Array): Uint8Array {
  return bytes.subarray(0, bytes.findLastIndex((b) => b !== 0) + 1);
}

/** Parses certificates in PEM, leaf first: one, two or three. */
function parseChain(of: string, pem: Uint8Array): Certificate[] {
  const certs = certificates(intel, of, pem, 3);
  if (certs.length === 0) throw refuse("malformed", `dcap: ${of}`, `${pem.length} bytes without a certificate`, "certificates in PEM");
  return certs;
}

/** Checks that certificates are those of the names, leaf first, and sign one another up to a root. Each name is a choice. Returns the leaf's key. */
async function verifyNamedChain(of: string, certs: readonly Certificate[], choices: readonly (readonly string[])[]): Promise<Uint8Array> {
  if (certs.length !== choices.length) throw refuse("chain", `dcap: certificates in ${of}`, certs.length, choices.length);
  certs.forEach((cert, i) => {
    if (!choices[i]!.includes(cert.subjectName)) throw refuse("chain", `dcap: name of a certificate in ${of}`, cert.subjectName, choices[i]![0]);
  });
  if (certs[0]!.isCA) throw refuse("chain", `dcap: ${certs[0]!.subjectName}`, "a CA", "a certificate that is no CA");
  const keys = certs.map((cert) => pointOn(intel, cert, "P-256"));
  await verifyChain(intel, certs);
  return keys[0]!;
}

/** Verifies a statement of Intel's, `{"tcbInfo":…,"signature":"…"}`, and returns the bytes that are signed. */
async function verifyStatement(endorsed: Endorsements, root: string, role: string, chainRole: string, member: string): Promise<{ signed: Uint8Array; certs: Certificate[] }> {
  const document = endorsed.get(role), pem = endorsed.get(chainRole);
  if (!document?.length) throw refuse("tcb-status", `dcap: ${role}`, "evidence without this endorsement", "Intel's statement on this platform");
  if (!pem?.length) throw refuse("chain", `dcap: ${chainRole}`, "evidence without this endorsement", "the certificate of the signer");
  const certs = parseChain(chainRole, pem);
  const key = await verifyNamedChain(chainRole, certs, [[names.signing], [names.root]]);
  const got = digestText(await sha256(certs[1]!.key.spki));
  if (got !== root) throw refuse("unknown-root", `dcap: root of ${chainRole}`, got, root);
  const { signed, signature } = splitSigned(document, role, `{"${member}":`);
  if (!(await verifyEcdsa("P-256", key, signed, signature))) {
    throw refuse("signature", `dcap: signature of ${role}`, "a signature that does not verify", `one by ${names.signing}`);
  }
  return { signed, certs };
}

/** Takes the frame of a statement away without reading what is in it. One line end may follow it. */
function splitSigned(document: Uint8Array, role: string, before: string): { signed: Uint8Array; signature: Bytes } {
  const between = utf8(',"signature":"'), begin = utf8(before);
  const end = document.length - (document.at(-1) === 0x0a ? 1 : 0);
  const digits = end - 2 - 128, until = digits - between.length;
  const found = until >= begin.length && equal(document.subarray(0, begin.length), begin) && equal(document.subarray(until, digits), between);
  if (!found || !equal(document.subarray(end - 2, end), utf8('"}'))) {
    throw refuse("malformed", `dcap: ${role}`, `${document.length} bytes`, `${before}…,"signature":"…"}`);
  }
  const signature = fromHex(new TextDecoder("latin1").decode(document.subarray(digits, end - 2)).toLowerCase());
  return { signed: document.subarray(begin.length, until), signature };
}

/** Intel's extension of PCK certificates (Intel SGX PCK certificate and CRL profile, section 1.3.5). */
const sgxArc = "1.2.840.113741.1.13.1";

/** Parses Intel's extension. Every fault is refused as `chain`. */
export function parsePck(value: Uint8Array | undefined): Pck {
  const bad = (arc: string, cause?: unknown) => refuse("chain", "dcap: SGX extension of the PCK certificate", "a broken field", arc, cause);
  try {
    const values = parseArcs(value ?? new Uint8Array(0), sgxArc);
    const versions = parseArcs(values.get(2) ?? new Uint8Array(0), `${sgxArc}.2`);
    const octets = (arc: number, size: number) => {
      const content = only(values.get(arc), Tag.OctetString);
      if (content.length !== size) throw bad(`${sgxArc}.${arc}`);
      return content;
    };
    const svn = (arc: number, most: number) => {
      const content = only(versions.get(arc), Tag.Integer);
      const number = content.length <= 4 ? Number(unsigned(content)) : Infinity;
      if (number > most) throw bad(`${sgxArc}.2.${arc}`);
      return number;
    };
    return {
      ppid: octets(1, 16), pceId: octets(3, 2), fmspc: octets(4, 6),
      svns: Array.from({ length: 16 }, (_, i) => svn(i + 1, 0xff)),
      pceSvn: svn(17, 0xffff),
    };
  } catch (e) {
    throw e instanceof Refusal && e.reason === "chain" ? e : bad(sgxArc, e);
  }
}

/** Reads a sequence of pairs of an object identifier just below `base` and a value, each once. Returns encodings of values by the last arc. */
function parseArcs(der: Uint8Array, base: string): Map<number, Uint8Array> {
  const values = new Map<number, Uint8Array>();
  for (const pairs = onlyElement(der, Tag.Sequence); !pairs.done; ) {
    const pair = pairs.enter(Tag.Sequence);
    const { content } = pair.read(Tag.ObjectIdentifier);
    const id = content.length <= 32 ? oid(content) : "";
    const arc = id.startsWith(`${base}.`) ? id.slice(base.length + 1) : "";
    const { raw } = pair.read();
    pair.end();
    if (!/^\d{1,3}$/.test(arc) || values.has(Number(arc))) throw refuse("malformed", "dcap: SGX extension", id, `arcs below ${base}, each once`);
    values.set(Number(arc), raw);
  }
  return values;
}

function only(der: Uint8Array | undefined, tag: number): Uint8Array {
  const reader = new DerReader(der ?? new Uint8Array(0));
  const { content } = reader.read(tag);
  reader.end();
  return content;
}

/** Checks that the PCK vouches for the QE, the QE for the attestation key, and that for the quote. */
async function verifyQuote(quote: Quote, pck: Uint8Array): Promise<void> {
  if (!(await verifyEcdsa("P-256", pck, quote.qe, quote.qeSignature))) {
    throw refuse("signature", "dcap: signature of the QE report", "a signature that does not verify", "one by the PCK");
  }
  const want = concat(await sha256(concat(quote.key, quote.qeAuth)), new Uint8Array(32));
  const got = quote.qe.subarray(320, 384);
  if (!equal(got, want)) throw refuse("digest", "dcap: report data of the QE", hex(got), `${hex(want)}, the digest of the attestation key`);
  if (!(await verifyEcdsa("P-256", concat(Uint8Array.of(4), quote.key), quote.signed, quote.signature))) {
    throw refuse("signature", "dcap: signature of the quote", "a signature that does not verify", "one by the attestation key");
  }
}

/** Compares a genuine quote's platform with the rules. Debug is compared for all platforms alike, outside. */
function permit(vouched: Vouched, verdict: Verdict, all: Rules): void {
  const rules = all.dcap ?? {}, { pck, tcb, qe } = vouched;
  const ppid = hex(pck.ppid), fmspc = hex(pck.fmspc);
  const tcbFault = (rule: string, got: unknown, want: unknown) => refuse("tcb-status", `dcap: ${rule}`, got, want);
  if (all.cutChips?.includes(ppid) || !accepts(all.chips, ppid)) throw refuse("platform", "dcap: chip", ppid, "one that policy accepts");
  if (rules.cutModels?.includes(fmspc)) throw refuse("platform", "dcap: model (FMSPC)", fmspc, "one that policy does not cut off");
  for (const { id, evaluation } of [tcb, qe]) {
    if (evaluation < (rules.minEvaluation ?? 0)) throw tcbFault(`evaluation number of ${id}`, evaluation, `at least ${rules.minEvaluation}`);
  }
  // UpToDate needs no permission, and Revoked gets none.
  const accepted = verdict.overall === "UpToDate" || (!verdict.revoked && rules.statuses?.includes(verdict.overall));
  if (!accepted) throw tcbFault("TCB status", verdict.overall, ["UpToDate", ...(rules.statuses ?? [])].join(", "));
  if (rules.minTcbDate !== undefined && !(verdict.date !== undefined && verdict.date >= rules.minTcbDate)) {
    throw tcbFault("tcbDate of the platform", verdict.date === undefined ? "none" : dateText(verdict.date), `not before ${dateText(rules.minTcbDate)}`);
  }
  const advisory = verdict.advisories.find((id) => !rules.advisories?.includes(id));
  if (advisory !== undefined) throw tcbFault("advisory", advisory, "one that policy accepts");
}

function permitEnclave(body: Uint8Array, rules: DcapRules): void {
  const svn = u16At(body, 258);
  if (svn < (rules.minIsvSvn ?? 0)) throw refuse("tcb-status", "dcap: isvsvn", svn, `at least ${rules.minIsvSvn}`);
}

/** Compares how the host set the trust domain up: no register contains any of it. */
function permitGuest(body: Uint8Array, rules: DcapRules): void {
  if (body[123]! & 0x20 && !rules.migration) throw refuse("tcb-status", "dcap: TD attributes", "migration allowed", "not allowed");
  checkBits(tdAttributes, u64At(body, 120), rules.attributes);
  checkBits(xfam, u64At(body, 128), rules.xfam);
  const owners = body.subarray(232, 328), service = body.subarray(600);
  if (!acceptsOrZero(rules.owner, owners)) throw refuse("tcb-status", "dcap: MROWNER and MROWNERCONFIG", hex(owners), "zeros, or a pair under owner in policy");
  if (!acceptsOrZero(rules.serviceTd, service)) {
    throw refuse("tcb-status", "dcap: MRSERVICETD", hex(service) || "none, as in every quote before TDX 1.5", "zeros, or a value under servicetd in policy");
  }
}

/** Reports whether a list accepts a value. Without a list, zeros are accepted, and what a quote does not have. */
function acceptsOrZero(list: List | undefined, value: Uint8Array): boolean {
  return list === undefined || list.length === 0 ? isZero(value) : accepts(list, hex(value));
}

function u16At(bytes: Uint8Array, at: number): number {
  return bytes[at]! | (bytes[at + 1]! << 8);
}

function u64At(bytes: Uint8Array, at: number): bigint {
  return new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(at, true);
}

function dateText(time: number): string {
  return new Date(time).toISOString().replace(".000Z", "Z");
}

/** Registers by their offsets in the body. */
const guestRegisters = [["mrtd", 136, 48], ["mrconfigid", 184, 48], ["rtmr0", 328, 48], ["rtmr1", 376, 48], ["rtmr2", 424, 48], ["rtmr3", 472, 48]] as const;
const enclaveRegisters = [["mrenclave", 64, 32], ["mrsigner", 128, 32], ["isvprodid", 256, 2], ["configid", 192, 64]] as const;

function claimsOf(platform: DcapPlatform, quote: Quote, vouched: Vouched, verdict: Verdict): Claims {
  const body = quote.body.slice(); // claims outlive the evidence they were read from
  const { pck, tcb, qe } = vouched, { overall, module } = verdict;
  const registers = (platform === "tdx" ? guestRegisters : enclaveRegisters).map(([name, at, size]) => {
    const value = body.slice(at, at + size);
    return { name, value: name === "isvprodid" ? value.reverse() : value }; // big-endian in measurements
  });
  const issued = newestIssue(vouched.times);
  return {
    measurement: { platform, registers },
    reportData: platform === "tdx" ? body.subarray(520, 584) : body.subarray(320, 384),
    // Any of the attribute bits 0 to 7 makes a trust domain untrusted; bit 0 lets its host read it.
    debug: platform === "tdx" ? body[120] !== 0 : (body[48]! & 2) !== 0,
    dynamic: false,
    chip: hex(pck.ppid),
    ...(issued !== undefined ? { issued } : {}),
    notVerified: [],
    details: {
      ...(platform === "tdx" ? guestDetails(body) : enclaveDetails(body)),
      quote_version: quote.version, qe_svn: u16At(quote.qe, 258),
      fmspc: hex(pck.fmspc), pce_id: hex(pck.pceId), pce_svn: pck.pceSvn, tcb_evaluation_data_number: tcb.evaluation,
      tcb_status: { overall, platform: verdict.platform, qe: verdict.qe, qe_id: qe.id, ...(module !== undefined ? { module } : {}) },
      advisories: verdict.advisories,
      ...(verdict.date !== undefined ? { tcb_date: dateText(verdict.date) } : {}),
      ...(verdict.current !== undefined ? { current_tcb_status: verdict.current } : {}),
    },
  };
}

function guestDetails(body: Uint8Array): Record<string, unknown> {
  const at = (from: number, to: number) => hex(body.subarray(from, to));
  return {
    td_attributes: at(120, 128), td_attribute_bits: setBits(tdAttributes, u64At(body, 120)), xfam: at(128, 136), xfam_bits: setBits(xfam, u64At(body, 128)),
    mrseam: at(16, 64), mrsignerseam: at(64, 112), seam_attributes: at(112, 120), mrowner: at(232, 280), mrownerconfig: at(280, 328),
    mrservicetd: at(600, 648), tee_tcb_svn: at(0, 16), tee_tcb_svn_2: at(584, 600),
  };
}

function enclaveDetails(body: Uint8Array): Record<string, unknown> {
  const at = (from: number, to: number) => hex(body.subarray(from, to));
  return {
    attributes: at(48, 64), misc_select: at(16, 20), cpu_svn: at(0, 16), isv_prod_id: u16At(body, 256), isv_svn: u16At(body, 258),
    isv_ext_prod_id: at(32, 48), isv_family_id: at(304, 320), config_svn: u16At(body, 260),
  };
}
