/**
 * Plays AMD: certificates, a revocation list and reports, made by keys of the test. A scene is one
 * good appraisal; a test changes the smallest part of it before or after it is signed.
 */

import { createHash, sign } from "node:crypto";
import { hex } from "../src/bytes.js";
import type { Rules } from "../src/evidence/evidence.js";
import { certify, type CertificateSpec, ia5, integer, type KeyPair, type ListSpec, newP384, newRsa, pem, revoke } from "./der.js";
import { day, now } from "./intel.js";

type Bytes = Uint8Array;

const keys = { ark: newRsa(), ask: newRsa(), leaf: newP384() };
/** Keys that AMD did not certify. */
export const strangers = { rsa: newRsa(), p384: newP384() };

export type Product = "Milan" | "Genoa" | "Turin";
/** CPU family and model of each generation. */
const cpus = { Milan: [0x19, 0x01], Genoa: [0x19, 0x11], Turin: [0x1a, 0x02] } as const;
const arc = (tail: string) => `1.3.6.1.4.1.3704.1.${tail}`;

/** One appraisal of a guest whose firmware is committed. */
export class AmdScene {
  readonly certificates: Record<"ark" | "ask" | "leaf", CertificateSpec>;
  readonly list: ListSpec;
  readonly report = new Uint8Array(0x4a0);
  /** Extensions of the leaf, by the last arcs. */
  readonly extensions = new Map<string, Bytes>();
  signer: KeyPair = keys.leaf;
  after: (report: Bytes) => Bytes = (report) => report;
  files: (files: Map<string, Bytes>) => void = () => {};
  rules: Rules;

  constructor(readonly product: Product = "Milan", readonly kind: "vcek" | "vlek" = "vcek", { version = 3 } = {}) {
    const certificate = (name: string, key: KeyPair, issuer: string, signer: KeyPair, serial: number, ca: boolean): CertificateSpec => ({
      name, issuer, key, signer, serial, ca, algorithm: "RSA-PSS-SHA384", from: now - 100 * day, until: now + 100 * day, keyUsage: ca ? 0x06 : undefined, extensions: [],
    });
    const ark = `ARK-${product}`, ask = kind === "vlek" ? `SEV-VLEK-${product}` : `SEV-${product}`;
    this.certificates = {
      ark: certificate(ark, keys.ark, ark, keys.ark, 1, true), ask: certificate(ask, keys.ask, ark, keys.ark, 2, true),
      leaf: certificate(`SEV-${kind.toUpperCase()}`, keys.leaf, ask, keys.ask, 0, false),
    };
    this.list = { issuer: ark, signer: keys.ark, algorithm: "RSA-PSS-SHA384", from: now - day, until: now + 30 * day, revoked: [99], critical: false };
    const turin = product === "Turin", chip = new Uint8Array(turin ? 8 : 64).fill(0xc1);
    this.extensions.set("2", ia5(`${product}-B0`)).set("3.1", integer(4)).set("3.2", integer(2)).set("3.3", integer(22)).set("3.8", integer(219));
    if (turin) this.extensions.set("3.9", integer(1));
    if (kind === "vlek") this.extensions.set("5", ia5("CN=cloud"));
    else this.extensions.set("4", chip);
    const r = this.report, view = new DataView(r.buffer);
    view.setUint32(0, version, true);
    view.setUint32(8, 0x20137, true); // ABI 1.55, and the bit that is always 1
    view.setUint32(0x34, 1, true);
    r[0x40] = 0x20;
    r[0x48] = kind === "vlek" ? 4 : 0;
    r.fill(0xdd, 0x50, 0x90);
    r.fill(0xaa, 0x90, 0xc0);
    const tcb = turin ? [1, 4, 2, 22, 0, 0, 0, 219] : [4, 2, 0, 0, 0, 0, 22, 219];
    for (const at of [0x38, 0x180, 0x1e0, 0x1f0]) r.set(tcb, at);
    if (version >= 3) r.set([...cpus[product], 1], 0x188);
    r.set(chip, 0x1a0);
    r.set([7, 55, 1], 0x1e8);
    r.set([7, 55, 1], 0x1ec);
    this.rules = { roots: [this.root], chips: "any", snp: { generations: new Map([[product, {}]]), idKeys: [hex(new Uint8Array(48))] } };
  }

  /** The digest that names the root in policy. */
  get root(): string {
    return "sha256:" + createHash("sha256").update(this.certificates.ark.key.publicKey.export({ type: "spki", format: "der" })).digest("hex");
  }

  /** The report, signed. */
  evidence(): Bytes {
    const { privateKey } = this.signer;
    const signature = sign("sha384", this.report.subarray(0, 0x2a0), { key: privateKey, dsaEncoding: "ieee-p1363" });
    this.report.set(Uint8Array.from(signature.subarray(0, 48)).reverse(), 0x2a0);
    this.report.set(Uint8Array.from(signature.subarray(48)).reverse(), 0x2e8);
    return this.after(this.report.slice());
  }

  /** The endorsements. */
  endorsements(): Map<string, Bytes> {
    const { ark, ask, leaf } = this.certificates;
    const signed = { ...leaf, extensions: [...leaf.extensions, ...[...this.extensions].map(([tail, value]) => ({ id: arc(tail), value }))] };
    const files = new Map<string, Bytes>([[this.kind, certify(signed)], ["ask_ark", pem(certify(ask), certify(ark))], ["crl", revoke(this.list)]]);
    this.files(files);
    return files;
  }
}
