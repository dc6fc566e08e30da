/**
 * What platforms share whose vendors vouch by X.509: chains, revocation lists, validity. It trusts
 * no certificate: which roots and names count, the appraiser of the platform checks.
 */

import { equal, own } from "../bytes.js";
import { refuse } from "../refusal.js";
import { type Certificate, type SignatureAlgorithm, isSignedBy, KeyUsage } from "../x509.js";
import { parsePem, parseRevocationList } from "./crl.js";

/** How one vendor signs certificates and revocation lists. The name begins its refusals. */
export interface Vendor {
  name: string;
  algorithm: SignatureAlgorithm;
}

/** When a certificate, list or statement counts, both ends included, in milliseconds since 1970. */
export interface Validity {
  of: string;
  from: number;
  until: number;
  /** `from` is when a list or statement was issued. It counts from 2 minutes before, for clocks differ. */
  issued?: boolean;
}

const clockJump = 2 * 60_000;

/** Parses at most `most` certificates in PEM. Other text is refused as malformed. */
export function certificates(vendor: Vendor, of: string, pem: Uint8Array, most: number): Certificate[] {
  return parsePem(`${vendor.name}: ${of}`, new TextDecoder("latin1").decode(pem), most);
}

/** Verifies that each certificate is signed by the next and the last one by itself. Faults are refused as `chain`. */
export async function verifyChain(vendor: Vendor, certs: readonly Certificate[]): Promise<void> {
  for (const [i, child] of certs.entries()) {
    const parent = certs[Math.min(i + 1, certs.length - 1)]!;
    const fault = (what: string, got: unknown, want: unknown) => refuse("chain", `${vendor.name}: ${what} of ${child.subjectName}`, got, want);
    if (child.algorithm !== vendor.algorithm) throw fault("signature algorithm", child.algorithm, vendor.algorithm);
    if (!equal(child.issuer, parent.subject)) throw fault("issuer", child.issuerName, parent.subjectName);
    if (child.unknownCritical.length > 0) throw fault("critical extension", child.unknownCritical[0], "none that is unknown");
    if (!parent.isCA || !mayUse(parent, KeyUsage.CertSign)) throw fault("issuer", `${parent.subjectName}, which signs no certificates`, "a CA");
    if (!(await isSignedBy(child, parent.key))) throw fault("signature", "one that does not verify", `one by ${parent.subjectName}`);
  }
}

function mayUse(cert: Certificate, usage: number): boolean {
  return cert.keyUsage === 0 || (cert.keyUsage & usage) !== 0;
}

/** A curve of a signing key, which states the digest too: SHA-256 or SHA-384. */
export type Curve = "P-256" | "P-384";

/** Returns the key of a certificate, the uncompressed point. A key that is not on the curve is refused as `chain`. */
export function pointOn(vendor: Vendor, cert: Certificate, curve: Curve): Uint8Array {
  if (cert.key.kind !== curve) throw refuse("chain", `${vendor.name}: key of ${cert.subjectName}`, cert.key.kind, `ECDSA ${curve}`);
  return cert.key.point;
}

/** Verifies an ECDSA signature, R and S of the curve's size, big-endian. A key that is no point of the curve verifies nothing. */
export async function verifyEcdsa(curve: Curve, point: Uint8Array, message: Uint8Array, signature: Uint8Array): Promise<boolean> {
  try {
    const key = await crypto.subtle.importKey("raw", own(point), { name: "ECDSA", namedCurve: curve }, false, ["verify"]);
    return await crypto.subtle.verify({ name: "ECDSA", hash: curve === "P-256" ? "SHA-256" : "SHA-384" }, key, own(signature), own(message));
  } catch {
    return false;
  }
}

/**
 * Parses a revocation list in DER, verifies that the issuer signed it, and refuses certificates on
 * it. Faults are refused as `malformed`, `signature` and `revoked`. Returns when the list counts.
 */
export async function checkRevocation(vendor: Vendor, der: Uint8Array, issuer: Certificate, over: readonly Certificate[]): Promise<Validity> {
  const of = `the revocation list of ${issuer.subjectName}`;
  const list = parseRevocationList(der);
  if (!equal(list.issuer, issuer.subject)) throw refuse("signature", `${vendor.name}: issuer of ${of}`, "another name", issuer.subjectName);
  if (list.algorithm !== vendor.algorithm) throw refuse("signature", `${vendor.name}: signature algorithm of ${of}`, list.algorithm, vendor.algorithm);
  if (!issuer.isCA || !mayUse(issuer, KeyUsage.CrlSign) || !(await isSignedBy(list, issuer.key))) {
    throw refuse("signature", `${vendor.name}: signature of ${of}`, "one that does not verify", "one by its issuer");
  }
  // A critical extension may state that the list is not of all certificates.
  const critical = list.extensions.find((e) => e.critical);
  if (critical) throw refuse("malformed", `${vendor.name}: critical extension of ${of}`, critical.id, "none that is unknown");
  for (const cert of over) {
    const since = list.revoked.get(cert.serial);
    if (since) throw refuse("revoked", `${vendor.name}: serial of ${cert.subjectName}`, `revoked ${since.toISOString()}`, "not revoked");
  }
  return { of, from: list.thisUpdate.getTime(), until: list.nextUpdate?.getTime() ?? -Infinity, issued: true };
}

/** Returns when certificates count. */
export function validities(certs: readonly Certificate[]): Validity[] {
  return certs.map((c) => ({ of: c.subjectName, from: c.notBefore.getTime(), until: c.notAfter.getTime() }));
}

/** Refuses, as `expired`, what does not count at a time. */
export function checkValidity(vendor: Vendor, at: number, all: readonly Validity[]): void {
  const date = (time: number) => (Number.isFinite(time) ? new Date(time).toISOString() : "no time");
  for (const { of, from, until, issued } of all) {
    if (!(at >= (issued ? from - clockJump : from) && at <= until)) {
      throw refuse("expired", `${vendor.name}: validity of ${of}`, date(at), `${date(from)} to ${date(until)}`);
    }
  }
}

/** Returns when the newest list or statement was issued, undefined without any. */
export function newestIssue(all: readonly Validity[]): number | undefined {
  const times = all.filter((v) => v.issued).map((v) => v.from);
  return times.length > 0 ? Math.max(...times) : undefined;
}
