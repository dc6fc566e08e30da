/** Certificates in PEM, and revocation lists (RFC 5280), as vendors of hardware publish them. Nothing in them is verified. */

import { fromBase64 } from "../bytes.js";
import { onlyElement, Tag } from "../der.js";
import { refuse } from "../refusal.js";
import { type Certificate, checkSameAlgorithm, commonName, type Extension, parseCertificate, parseExtensionList, parseExtensions, serialOf, type SignatureAlgorithm, signedParts, small, time } from "../x509.js";

/** A parsed revocation list. Nothing in it is verified. */
export interface RevocationList {
  raw: Uint8Array;
  /** The signed part, TBSCertList. */
  tbs: Uint8Array;
  issuer: Uint8Array;
  thisUpdate: Date;
  nextUpdate: Date | undefined;
  /** Serial numbers as in {@link Certificate}, with the time of revocation. */
  revoked: Map<string, Date>;
  algorithm: SignatureAlgorithm;
  signature: Uint8Array;
  extensions: Extension[];
}

/** Parses one revocation list in DER. Every other encoding is refused as malformed. */
export function parseRevocationList(der: Uint8Array): RevocationList {
  const { tbs, algorithm, signature, outer } = signedParts(der);
  const reader = onlyElement(tbs, Tag.Sequence);
  const version = small(reader.read(Tag.Integer));
  if (version !== 1) throw refuse("malformed", "revocation list: version", version + 1, 2);
  checkSameAlgorithm(reader.read(Tag.Sequence), outer);
  const issuer = reader.read(Tag.Sequence).raw;
  commonName(issuer);
  const thisUpdate = time(reader.read());
  const next = reader.peek();
  const nextUpdate = next === Tag.UtcTime || next === Tag.GeneralizedTime ? time(reader.read()) : undefined;
  const revoked = new Map<string, Date>();
  if (reader.peek() === Tag.Sequence) {
    for (const list = reader.enter(Tag.Sequence); !list.done; ) {
      const entry = list.enter(Tag.Sequence);
      const serial = serialOf(entry.read(Tag.Integer));
      const at = time(entry.read());
      // What an extension says of an entry makes no revoked certificate a good one.
      if (!entry.done) parseExtensionList(entry.enter(Tag.Sequence));
      entry.end();
      revoked.set(serial, at);
    }
  }
  const extensions = reader.done ? [] : parseExtensions(reader.enter(0xa0));
  reader.end();
  return { raw: der, tbs, issuer, thisUpdate, nextUpdate, revoked, algorithm, signature, extensions };
}

/**
 * Reads at most `most` certificates in PEM (RFC 7468). White space is allowed anywhere but in the
 * lines that begin and end a certificate; all other text is refused as malformed.
 */
export function parsePem(of: string, text: string, most: number): Certificate[] {
  const begin = "-----BEGIN CERTIFICATE-----";
  const end = "-----END CERTIFICATE-----";
  const certificates: Certificate[] = [];
  for (let at = skipSpace(text, 0); at < text.length; ) {
    const stop = text.startsWith(begin, at) ? text.indexOf(end, at + begin.length) : -1;
    if (stop < 0) throw refuse("malformed", of, "text outside certificates", "certificates in PEM and nothing else");
    if (certificates.length === most) throw refuse("malformed", of, "more certificates", most);
    certificates.push(parseCertificate(fromBase64(text.slice(at + begin.length, stop).replace(/[ \t\r\n]/g, ""))));
    at = skipSpace(text, stop + end.length);
  }
  return certificates;
}

function skipSpace(text: string, at: number): number {
  while (at < text.length && " \t\r\n".includes(text[at]!)) at++;
  return at;
}
