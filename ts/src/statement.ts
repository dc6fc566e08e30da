/**
 * Trust statements (docs/spec/trust.md, section 7): an authority's signature over its own evidence, so
 * that any relay can pass the evidence on, and keep it for a while.
 */

import { type Bytes, digestText, equal, hex, own, parseDigest, sha256, u64 } from "./bytes.js";
import { frame, reportData, unframe } from "./frame.js";
import { type LeafSigned, checkLeafSigned, fixedDigest, stepsOf, timeOf } from "./head.js";
import { type Digest, type Policy, zeroDigest } from "./policy/policy.js";
import { refuse } from "./refusal.js";
import { type Certificate, parseCertificate } from "./x509.js";

/** The largest trust statement, in bytes. */
const maxStatement = 2048;

/** The largest log checkpoint in a statement, in bytes. */
const maxCheckpoint = 512;

/** How old a statement may be, in milliseconds. */
const lifetime = 10 * 60_000;

/** The size of a client's nonce, in bytes. */
export const nonceSize = 32;

/** A trust statement. */
export interface TrustStatement {
  genesis: Digest;
  /** Of the authority root's SubjectPublicKeyInfo. */
  root: Digest;
  head: Digest;
  steps: number;
  /** When evidence and statement were made, by the authority's clock: milliseconds since 1970, whole seconds. */
  time: number;
  /** That the client sent: 32 bytes, or none in a statement for many clients. */
  nonce: Uint8Array;
  /** SHA-256 of the evidence as it was sent. */
  evidence: Digest;
  /** Of a transparency log. It is not interpreted. */
  checkpoint: Uint8Array;
}

/** What a client requires of a trust statement. */
export interface StatementExpect {
  /** The newest policy of the history. */
  policy: Policy;
  authorityRoot: Certificate;
  /** That the client sent; empty where it sent none. */
  nonce: Uint8Array;
  /** The encoding of the evidence that came with the statement. */
  evidence: Uint8Array;
  /** Milliseconds since 1970. */
  at: number;
}

/** Parses a trust statement of at most 2,048 bytes in its one encoding: `too-large`, `malformed`. It verifies nothing. */
export function parseTrustStatement(bytes: Uint8Array): TrustStatement & { signed: LeafSigned } {
  if (bytes.length > maxStatement) throw refuse("too-large", "trust statement: size in bytes", bytes.length, maxStatement);
  const fields = unframe("cohort trust statement v1", bytes, 10);
  const [genesis, root, head, steps, time, nonce, evidence, checkpoint, leaf, signature] = fields as Fields;
  const claim: TrustStatement = {
    genesis: digest("genesis", genesis), root: digest("authority root", root), head: digest("policy head", head),
    steps: stepsOf("trust statement: steps", steps), time: timeOf("trust statement: time", time), nonce, evidence: digest("evidence", evidence), checkpoint,
  };
  if ((nonce.length !== 0 && nonce.length !== nonceSize) || checkpoint.length > maxCheckpoint) {
    throw refuse("malformed", "trust statement: sizes of nonce and checkpoint", `${nonce.length}, ${checkpoint.length}`, `0 or ${nonceSize}, at most ${maxCheckpoint}`);
  }
  const message = frame("cohort trust statement v1", ...fields.slice(0, 8));
  return { ...claim, signed: { of: "trust statement", message, time: claim.time, leaf: parseCertificate(leaf), signature } };
}

type B = Uint8Array;
type Fields = [B, B, B, B, B, B, B, B, B, B];

function digest(name: string, bytes: Uint8Array): Digest {
  const value = fixedDigest(`trust statement: ${name}`, bytes);
  if (value === zeroDigest) throw refuse("malformed", `trust statement: ${name}`, value, "a digest");
  return value;
}

/**
 * Verifies a trust statement (docs/spec/trust.md, step 4 of section 7.2): those of parsing, `clock`,
 * the reasons of check, `signature`, `expired`, `genesis`, `authority-root`, `behind`, `nonce`, `digest`.
 */
export async function checkTrustStatement(bytes: Uint8Array, expect: StatementExpect): Promise<TrustStatement> {
  const { signed, ...statement } = parseTrustStatement(bytes);
  const { policy, at } = expect;
  await checkLeafSigned(signed, policy, expect.authorityRoot, at);
  if (at - statement.time > lifetime) {
    throw refuse("expired", "trust statement: age in seconds", (at - statement.time) / 1000, `at most ${lifetime / 1000}`);
  }
  if (statement.genesis !== policy.genesis) throw refuse("genesis", "trust statement: genesis", statement.genesis, policy.genesis);
  if (statement.root !== policy.authority.root) throw refuse("authority-root", "trust statement: authority root", statement.root, policy.authority.root);
  if (statement.head !== policy.head || statement.steps !== policy.steps) {
    throw refuse("behind", "trust statement: policy head", `${statement.head} after ${statement.steps} steps`, `${policy.head} after ${policy.steps} steps`);
  }
  if (!equal(statement.nonce, expect.nonce)) throw refuse("nonce", "trust statement: nonce", hex(statement.nonce), hex(expect.nonce));
  const evidence = digestText(await sha256(expect.evidence));
  if (statement.evidence !== evidence) throw refuse("digest", "trust statement: evidence", evidence, statement.evidence);
  return statement;
}

/** Returns the report data that evidence of the authority for one client has: 64 bytes. */
export function trustReportData(nonce: Uint8Array, policy: Policy): Promise<Bytes> {
  return reportData("cohort trust v1", own(nonce), parseDigest(policy.authority.root), parseDigest(policy.head));
}

/** Returns the report data that evidence of the authority for many clients has: 64 bytes. `time` is that of the statement, in milliseconds. */
export function timedReportData(time: number, policy: Policy): Promise<Bytes> {
  return reportData("cohort timed trust v1", parseDigest(policy.authority.root), parseDigest(policy.head), u64(time / 1000));
}
