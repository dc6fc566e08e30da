/**
 * X.509 certificates (RFC 5280): a strict reader, and signatures by WebCrypto.
 * It trusts no certificate: which keys, names and extensions are accepted, the caller decides. It
 * reads ECDSA on P-256 and P-384 and RSA; certificates with other keys or signatures are parsed,
 * and refused where they must verify something.
 */

import { compare, equal, hex, text as utf8Text } from "./bytes.js";
import { DerReader, type Element, Tag, onlyElement, unsigned } from "./der.js";
import { type DigestSize, type PublicKey, type SignatureAlgorithm, identifier, parsePublicKey, verifySignature, wholeBits } from "./publickey.js";
import { refuse } from "./refusal.js";

export { type PublicKey, type SignatureAlgorithm, parsePublicKey, verifySignature } from "./publickey.js";

/** The largest certificate or revocation list that is read, in bytes. */
const maxEncoding = 1 << 20;

/** One extension of a certificate or revocation list. */
export interface Extension {
  /** The dotted object identifier. */
  id: string;
  critical: boolean;
  value: Uint8Array;
}

/** Bits of a key usage. */
export const KeyUsage = { DigitalSignature: 1 << 0, CertSign: 1 << 5, CrlSign: 1 << 6 } as const;

/** A parsed certificate. Nothing in it is verified. */
export interface Certificate {
  /** The whole encoding, DER. */
  raw: Uint8Array;
  /** The signed part, TBSCertificate. */
  tbs: Uint8Array;
  /** The serial number, hexadecimal, as it is encoded: two equal numbers have equal text. */
  serial: string;
  /** Names, DER. */
  issuer: Uint8Array;
  subject: Uint8Array;
  /** Common names, empty where there is none. */
  issuerName: string;
  subjectName: string;
  /** First and last second of the validity. */
  notBefore: Date;
  notAfter: Date;
  key: PublicKey;
  algorithm: SignatureAlgorithm;
  signature: Uint8Array;
  extensions: Extension[];
  /** Basic constraints: whether it is a CA. */
  isCA: boolean;
  /** The path length constraint, or undefined. */
  pathLength: number | undefined;
  /** Bits of {@link KeyUsage}, 0 without the extension. */
  keyUsage: number;
  /** Object identifiers of the extended key usage. */
  extendedKeyUsage: string[];
  dnsNames: string[];
  uris: string[];
  /** Object identifiers of critical extensions that this reader does not know. */
  unknownCritical: string[];
}

/** Parses one certificate in DER. Every other encoding is refused as malformed. */
export function parseCertificate(der: Uint8Array): Certificate {
  const { tbs, algorithm, signature, outer } = signedParts(der);
  const reader = onlyElement(tbs, Tag.Sequence);
  const version = smallIn(reader.enter(0xa0));
  if (version !== 2) throw refuse("malformed", "certificate: version", version + 1, 3);
  const serial = serialOf(reader.read(Tag.Integer));
  checkSameAlgorithm(reader.read(Tag.Sequence), outer);
  const issuer = reader.read(Tag.Sequence).raw;
  const validity = reader.enter(Tag.Sequence);
  const notBefore = time(validity.read());
  const notAfter = time(validity.read());
  validity.end();
  const subject = reader.read(Tag.Sequence).raw;
  const key = parsePublicKey(reader.read(Tag.Sequence).raw);
  const extensions = reader.done ? [] : parseExtensions(reader.enter(0xa3));
  reader.end();
  const certificate: Certificate = {
    raw: der, tbs, serial, issuer, subject, issuerName: commonName(issuer), subjectName: commonName(subject),
    notBefore, notAfter, key, algorithm, signature, extensions,
    isCA: false, pathLength: undefined, keyUsage: 0, extendedKeyUsage: [], dnsNames: [], uris: [], unknownCritical: [],
  };
  for (const extension of extensions) readExtension(certificate, extension);
  return certificate;
}

/** Returns the value of an extension, or undefined. */
export function extension(of: { extensions: Extension[] }, id: string): Uint8Array | undefined {
  return of.extensions.find((e) => e.id === id)?.value;
}

/**
 * Verifies that a certificate names `issuer` as its issuer (else `chain`) and that the issuer's key
 * signed it (else `signature`). Whether the issuer is a CA, the caller checks.
 */
export async function verifySignedBy(certificate: Certificate, issuer: Certificate): Promise<void> {
  if (!equal(certificate.issuer, issuer.subject)) {
    throw refuse("chain", "certificate: issuer", certificate.issuerName, issuer.subjectName);
  }
  if (!(await isSignedBy(certificate, issuer.key))) {
    throw refuse("signature", "certificate: signature", `one that does not verify, of ${certificate.subjectName}`, `a signature by ${issuer.subjectName}`);
  }
}

/** Reports whether a key signed a certificate or revocation list. */
export function isSignedBy(of: { tbs: Uint8Array; algorithm: SignatureAlgorithm; signature: Uint8Array }, key: PublicKey): Promise<boolean> {
  return verifySignature(key, of.algorithm, of.tbs, of.signature);
}

/** Splits what is signed from its signature. */
export function signedParts(der: Uint8Array) {
  if (der.length > maxEncoding) throw refuse("malformed", "certificate: size in bytes", der.length, maxEncoding);
  const reader = onlyElement(der, Tag.Sequence);
  const tbs = reader.read(Tag.Sequence).raw;
  const outer = reader.read(Tag.Sequence).raw;
  const signature = wholeBits(reader.read(Tag.BitString));
  reader.end();
  return { tbs, outer, signature, algorithm: signatureAlgorithm(outer) };
}

export function checkSameAlgorithm(inner: Element, outer: Uint8Array): void {
  if (compare(inner.raw, outer) !== 0) {
    throw refuse("malformed", "certificate: signature algorithm", "two different ones", "the same inside and outside the signed part");
  }
}

const digests: Record<string, DigestSize> = {
  "2.16.840.1.101.3.4.2.1": "256",
  "2.16.840.1.101.3.4.2.2": "384",
  "2.16.840.1.101.3.4.2.3": "512",
};

const algorithms: Record<string, SignatureAlgorithm> = {
  "1.2.840.10045.4.3.2": "ECDSA-SHA256",
  "1.2.840.10045.4.3.3": "ECDSA-SHA384",
  "1.2.840.10045.4.3.4": "ECDSA-SHA512",
  "1.2.840.113549.1.1.11": "RSA-SHA256",
  "1.2.840.113549.1.1.12": "RSA-SHA384",
  "1.2.840.113549.1.1.13": "RSA-SHA512",
};

function signatureAlgorithm(der: Uint8Array): SignatureAlgorithm {
  const reader = onlyElement(der, Tag.Sequence);
  const id = identifier(reader);
  if (id === "1.2.840.113549.1.1.10") return pssAlgorithm(reader);
  const algorithm = algorithms[id] ?? "other";
  const parameters = reader.done ? undefined : reader.read();
  if (algorithm !== "other") {
    reader.end();
    const wanted = algorithm.startsWith("RSA") ? parameters?.tag === Tag.Null && parameters.content.length === 0 : parameters === undefined;
    if (!wanted) throw refuse("malformed", `certificate: parameters of ${algorithm}`, "others", "those of its RFC");
  }
  return algorithm;
}

/** Returns the variant of RSA-PSS (RFC 4055, section 3.1): one digest throughout, and a salt of its size. */
function pssAlgorithm(reader: DerReader): SignatureAlgorithm {
  const parameters = reader.enter(Tag.Sequence);
  reader.end();
  const hash = digestOf(parameters.enter(0xa0));
  const mask = parameters.enter(0xa1).enter(Tag.Sequence);
  const generator = identifier(mask);
  const maskHash = digestOf(mask);
  const salt = smallIn(parameters.enter(0xa2));
  // Some vendors encode the trailer, although it is the default.
  const trailer = parameters.done ? 1 : smallIn(parameters.enter(0xa3));
  parameters.end();
  const usual = hash !== undefined && maskHash === hash && generator === "1.2.840.113549.1.1.8" && salt === Number(hash) / 8 && trailer === 1;
  return usual ? `RSA-PSS-SHA${hash}` : "other";
}

function digestOf(reader: DerReader): DigestSize | undefined {
  const algorithm = reader.enter(Tag.Sequence);
  reader.end();
  const id = identifier(algorithm);
  if (!algorithm.done) algorithm.read(Tag.Null);
  algorithm.end();
  return Object.hasOwn(digests, id) ? digests[id] : undefined;
}

export function serialOf(element: Element): string {
  if (element.content.length > 32) throw refuse("malformed", "certificate: size of a serial number", element.content.length, "at most 32 bytes");
  unsigned(element.content); // refuses other forms
  return hex(element.content);
}

/** Returns a number below 2^31. */
export function small(element: Element): number {
  if (element.content.length > 4) throw refuse("malformed", "DER: integer", `${element.content.length} bytes`, "a small number");
  return Number(unsigned(element.content));
}

/** Reads the number that is all that is left. */
function smallIn(reader: DerReader): number {
  const value = small(reader.read(Tag.Integer));
  reader.end();
  return value;
}

export function parseExtensions(wrapper: DerReader): Extension[] {
  const list = wrapper.enter(Tag.Sequence);
  wrapper.end();
  return parseExtensionList(list);
}

export function parseExtensionList(list: DerReader): Extension[] {
  const extensions = new Map<string, Extension>();
  while (!list.done) {
    const reader = list.enter(Tag.Sequence);
    const id = identifier(reader);
    const critical = boolean(reader.optional(Tag.Boolean));
    const value = reader.read(Tag.OctetString).content;
    reader.end();
    if (extensions.has(id)) throw refuse("malformed", "certificate: extensions", `${id} twice`, "each once");
    extensions.set(id, { id, critical, value });
  }
  return [...extensions.values()];
}

function boolean(element: Element | undefined): boolean {
  if (!element) return false;
  const [value] = element.content;
  if (element.content.length !== 1 || (value !== 0 && value !== 0xff)) throw refuse("malformed", "DER: boolean", hex(element.content), "00 or ff");
  return value === 0xff;
}

/** Reads an extension that certificates commonly have into the certificate. */
function readExtension(certificate: Certificate, { id, critical, value }: Extension): void {
  switch (id) {
    case "2.5.29.15":
      certificate.keyUsage = keyUsage(onlyBits(value));
      return;
    case "2.5.29.19": {
      const reader = onlyElement(value, Tag.Sequence);
      certificate.isCA = boolean(reader.optional(Tag.Boolean));
      const length = reader.optional(Tag.Integer);
      if (length) certificate.pathLength = small(length);
      reader.end();
      return;
    }
    case "2.5.29.37":
      for (const reader = onlyElement(value, Tag.Sequence); !reader.done; ) {
        certificate.extendedKeyUsage.push(identifier(reader));
      }
      return;
    case "2.5.29.17":
      for (const reader = onlyElement(value, Tag.Sequence); !reader.done; ) {
        const name = reader.read();
        if (name.tag === 0x82) certificate.dnsNames.push(ascii(name.content));
        if (name.tag === 0x86) certificate.uris.push(ascii(name.content));
      }
      if (!critical || certificate.dnsNames.length + certificate.uris.length > 0) return;
      break;
  }
  if (critical) certificate.unknownCritical.push(id);
}

function onlyBits(value: Uint8Array): Uint8Array {
  const reader = new DerReader(value);
  const { content } = reader.read(Tag.BitString);
  reader.end();
  return content;
}

/** Returns the bits of a key usage, the first as 1. */
function keyUsage(content: Uint8Array): number {
  const unused = content[0];
  const bytes = content.subarray(1);
  if (unused === undefined || unused > 7 || bytes.length > 2 || (bytes.length === 0 && unused > 0) || (bytes.length > 0 && bytes.at(-1)! & ((1 << unused) - 1))) {
    throw refuse("malformed", "certificate: key usage", hex(content), "named bits");
  }
  let bits = 0;
  bytes.forEach((b, i) => {
    for (let bit = 0; bit < 8; bit++) if (b & (0x80 >> bit)) bits |= 1 << (8 * i + bit);
  });
  return bits;
}

function ascii(bytes: Uint8Array): string {
  if (bytes.some((b) => b >= 128)) throw refuse("malformed", "certificate: name", "bytes above 127", "ASCII");
  return utf8Text(bytes);
}

/** Checks the form of a name and returns its last common name in a usual string type. */
export function commonName(der: Uint8Array): string {
  let common = "";
  for (const name = onlyElement(der, Tag.Sequence); !name.done; ) {
    for (const set = name.enter(Tag.Set); !set.done; ) {
      const attribute = set.enter(Tag.Sequence);
      const id = identifier(attribute);
      const value = attribute.read();
      attribute.end();
      if (id !== "2.5.4.3") continue;
      if (value.tag === Tag.Utf8String) common = utf8Text(value.content);
      if (value.tag === Tag.PrintableString || value.tag === Tag.Ia5String) common = ascii(value.content);
    }
  }
  return common;
}

/** Reads a time as RFC 5280 section 4.1.2.5 writes it: to the second, in UTC. */
export function time({ tag, content }: Element): Date {
  const digits = ascii(content);
  const form = tag === Tag.UtcTime ? /^\d{12}Z$/ : tag === Tag.GeneralizedTime ? /^\d{14}Z$/ : undefined;
  if (!form?.test(digits)) throw refuse("malformed", "certificate: time", digits.slice(0, 40), "UTCTime or GeneralizedTime to the second");
  const long = tag === Tag.GeneralizedTime ? digits : (digits < "50" ? "20" : "19") + digits;
  const iso = long.replace(/^(....)(..)(..)(..)(..)(..)Z$/, "$1-$2-$3T$4:$5:$6.000Z");
  const at = new Date(iso);
  if (Number.isNaN(at.getTime()) || at.toISOString() !== iso) throw refuse("malformed", "certificate: time", digits, "a time of the calendar");
  return at;
}
