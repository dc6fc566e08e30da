/**
 * Plays Intel: certificates, collateral and quotes, made by keys of the test. A scene is one good
 * appraisal; a test changes the smallest part of it before or after it is signed.
 */

import { createHash, sign } from "node:crypto";
import { concat, fromHex, hex, utf8 } from "../src/bytes.js";
import type { Rules } from "../src/evidence/evidence.js";
import { certify, type CertificateSpec, der, identifier, integer, type KeyPair, type ListSpec, newP256, octets, pem, revoke, sequence } from "./der.js";

type Bytes = Uint8Array;

export const now = Date.parse("2026-11-22T12:00:00Z");
const day = 86_400_000, minute = 60_000;
const keys = { root: newP256(), authority: newP256(), signing: newP256(), pck: newP256(), quote: newP256() };
/** A key that Intel did not certify. */
export const stranger = newP256();

const fmspc = "90c06f000000", sgxArc = "1.2.840.113741.1.13.1";

/** Levels as Intel writes them, highest first. */
export interface LevelJson {
  tcb: { sgxtcbcomponents?: { svn: unknown }[]; tdxtcbcomponents?: { svn: unknown }[]; pcesvn?: number; isvsvn?: number };
  tcbDate?: string;
  tcbStatus: unknown;
  advisoryIDs?: unknown;
}

const sixteen = (svn: number) => Array.from({ length: 16 }, () => ({ svn }));
const one = (isvsvn: number, tcbStatus: string, ...advisoryIDs: string[]): LevelJson => ({ tcb: { isvsvn }, tcbDate: "2026-03-01T00:00:00Z", tcbStatus, ...(advisoryIDs.length > 0 ? { advisoryIDs } : {}) });

/** What a signature of 64 bytes is made by. */
function raw(key: KeyPair, message: Bytes): Bytes {
  return sign("sha256", message, { key: key.privateKey, dsaEncoding: "ieee-p1363" });
}

const u16 = (n: number) => Uint8Array.of(n & 255, n >> 8);
const u32 = (n: number) => concat(u16(n & 0xffff), u16(n >>> 16));

/** One appraisal of a trust domain or an enclave on a platform that is up to date. */
export class IntelScene {
  readonly certificates: Record<"root" | "authority" | "signing" | "pck", CertificateSpec>;
  /** Intel's extension of the PCK certificate: values by arc, and those of the TCB. */
  readonly pck = new Map<string, Bytes>();
  readonly tcb = new Map<string, Bytes>();
  readonly tcbInfo: Record<string, any>;
  readonly qeIdentity: Record<string, any>;
  readonly lists: Record<"pck" | "root", ListSpec>;
  version: number;
  /** Type and size of the body in version 5. */
  descriptor: [type: number, size: number] | undefined;
  body: Bytes;
  readonly qe = new Uint8Array(384);
  auth: Bytes = Uint8Array.of(1, 2, 3);
  attestationKey: Bytes;
  signers = { qe: keys.pck, quote: keys.quote, tcbInfo: keys.signing, qeIdentity: keys.signing };
  /** Changes the quote after it is signed. */
  after: (quote: Bytes) => Bytes = (quote) => quote;
  /** Changes the endorsements after they are made. */
  files: (files: Map<string, Bytes>) => void = () => {};
  rules: Rules;

  constructor(readonly platform: "tdx" | "sgx", { version = 4 } = {}) {
    const certificate = (name: string, key: KeyPair, issuer: string, signer: KeyPair, serial: number, ca: boolean): CertificateSpec => ({
      name, issuer, key, signer, serial, ca, algorithm: "ECDSA-SHA256", from: now - 100 * day, until: now + 100 * day, keyUsage: ca ? 0x06 : 0x80, extensions: [],
    });
    const root = "Intel SGX Root CA", authority = "Intel SGX PCK Platform CA";
    this.certificates = {
      root: certificate(root, keys.root, root, keys.root, 1, true),
      authority: certificate(authority, keys.authority, root, keys.root, 2, true),
      signing: certificate("Intel SGX TCB Signing", keys.signing, root, keys.root, 3, false),
      pck: certificate("Intel SGX PCK Certificate", keys.pck, authority, keys.authority, 4, false),
    };
    this.pck.set("1", octets(new Uint8Array(16).fill(7))).set("3", octets(new Uint8Array(2))).set("4", octets(fromHex(fmspc))).set("5", der(0x0a, Uint8Array.of(0)));
    for (let i = 1; i <= 16; i++) this.tcb.set(String(i), integer(5));
    this.tcb.set("17", integer(11)).set("18", octets(new Uint8Array(16)));
    const list = (issuer: string, signer: KeyPair): ListSpec => ({ issuer, signer, algorithm: "ECDSA-SHA256", from: now - day, until: now + 30 * day, revoked: [99], critical: false });
    this.lists = { pck: list(authority, keys.authority), root: list(root, keys.root) };
    const issued = { issueDate: "2026-11-22T00:00:00Z", nextUpdate: "2026-12-22T00:00:00Z", tcbEvaluationDataNumber: 17 };
    const tdx = platform === "tdx";
    const level = (svn: number, tcbStatus: string, tcbDate: string): LevelJson => ({
      tcb: { sgxtcbcomponents: sixteen(svn), pcesvn: 11, ...(tdx ? { tdxtcbcomponents: sixteen(0) } : {}) }, tcbDate, tcbStatus, ...(svn < 5 ? { advisoryIDs: ["INTEL-SA-00002"] } : {}),
    });
    const module = { mrsigner: "00".repeat(48), attributes: "00".repeat(8), attributesMask: "ff".repeat(8) };
    this.tcbInfo = {
      id: tdx ? "TDX" : "SGX", version: 3, ...issued, fmspc: fmspc.toUpperCase(), pceId: "0000", tcbType: 0,
      ...(tdx ? { tdxModule: module, tdxModuleIdentities: [{ id: "TDX_01", ...module, tcbLevels: [one(3, "UpToDate"), one(2, "OutOfDate", "INTEL-SA-00001")] }] } : {}),
      tcbLevels: [level(5, "UpToDate", "2026-03-01T00:00:00Z"), level(4, "OutOfDate", "2025-03-01T00:00:00Z")],
    };
    this.qeIdentity = {
      id: tdx ? "TD_QE" : "QE", version: 2, ...issued, miscselect: "00000000", miscselectMask: "FFFFFFFF", attributes: "11" + "00".repeat(15), attributesMask: "FB" + "FF".repeat(7) + "00".repeat(8),
      mrsigner: "dc".repeat(32), isvprodid: 2, tcbLevels: [one(4, "UpToDate"), one(3, "OutOfDate", "INTEL-SA-00003")],
    };
    this.version = version;
    this.body = new Uint8Array(tdx ? (version === 5 ? 648 : 584) : 384);
    if (tdx) {
      this.body.set([3, 1], 0); // SVN and version of the module
      this.body.set([0, 0, 0, 0x10], 120);
      this.body[128] = 3;
      this.body.fill(0xaa, 136, 184);
      this.body.fill(0xdd, 520, 584);
      if (version === 5) this.body.set([3, 1], 584);
    } else {
      this.body[48] = 5;
      this.body.fill(0xaa, 64, 96);
      this.body.fill(0xbb, 128, 160);
      this.body.set([1, 0, 2, 0], 256);
      this.body.fill(0xdd, 320, 384);
    }
    if (version === 5) this.descriptor = tdx ? [3, 648] : [1, 384];
    this.qe[48] = 0x15;
    this.qe.fill(0xdc, 128, 160);
    this.qe.set([2, 0, 4, 0], 256);
    const { x, y } = keys.quote.publicKey.export({ format: "jwk" });
    this.attestationKey = new Uint8Array(Buffer.concat([Buffer.from(x!, "base64url"), Buffer.from(y!, "base64url")]));
    this.rules = { roots: [this.root], chips: ["07".repeat(16)], dcap: {} };
  }

  /** The digest that names the root in policy. */
  get root(): string {
    return "sha256:" + createHash("sha256").update(this.certificates.root.key.publicKey.export({ type: "spki", format: "der" })).digest("hex");
  }

  private arcs(base: string, values: ReadonlyMap<string, Bytes>): Bytes {
    return sequence(...[...values].map(([arc, value]) => sequence(identifier(`${base}.${arc}`), value)));
  }

  /** The quote, signed. */
  quote(): Bytes {
    const c = this.certificates;
    if (this.pck.size > 0 && c.pck.extensions.length === 0) {
      const values = new Map(this.pck);
      if (this.tcb.size > 0) values.set("2", this.arcs(`${sgxArc}.2`, this.tcb));
      c.pck.extensions.push({ id: sgxArc, value: this.arcs(sgxArc, values) });
    }
    const tee = this.platform === "tdx" ? 0x81 : 0;
    const header = concat(u16(this.version), u16(2), u32(tee), u32(0), fromHex("939a7233f79c4ca9940a0db3957f0607"), new Uint8Array(20));
    const described = this.descriptor ? concat(u16(this.descriptor[0]), u32(this.descriptor[1])) : new Uint8Array(0);
    const signed = concat(header, described, this.body);
    if (this.qe.subarray(320).every((b) => b === 0)) this.qe.set(createHash("sha256").update(this.attestationKey).update(this.auth).digest(), 320);
    const chain = concat(pem(certify(c.pck), certify(c.authority), certify(c.root)), Uint8Array.of(0));
    const certified = concat(this.qe, raw(this.signers.qe, this.qe), u16(this.auth.length), this.auth, u16(5), u32(chain.length), chain);
    const counted = this.version === 3 ? certified : concat(u16(6), u32(certified.length), certified);
    const rest = concat(raw(this.signers.quote, signed), this.attestationKey, counted);
    return this.after(concat(signed, u32(rest.length), rest));
  }

  /** The endorsements. */
  endorsements(): Map<string, Bytes> {
    const statement = (member: string, value: unknown, key: KeyPair) => {
      const text = typeof value === "string" ? value : JSON.stringify(value);
      return utf8(`{"${member}":${text},"signature":"${hex(raw(key, utf8(text)))}"}`);
    };
    const chain = pem(certify(this.certificates.signing), certify(this.certificates.root));
    const files = new Map<string, Bytes>([
      ["tcb_info", statement("tcbInfo", this.tcbInfoText ?? this.tcbInfo, this.signers.tcbInfo)], ["tcb_info_chain", chain],
      ["qe_identity", statement("enclaveIdentity", this.qeIdentity, this.signers.qeIdentity)], ["qe_identity_chain", chain],
      ["pck_crl", revoke(this.lists.pck)], ["root_crl", revoke(this.lists.root)],
    ]);
    this.files(files);
    return files;
  }

  /** TCB info as text in place of the object. */
  tcbInfoText: string | undefined;
}

export { day, minute };
