/** Opening a session (docs/spec/channel.md, section 2): the client's open request, and the checks of the response in their order. */

import { concat, digestText, equal, fromU64, hex, parseDigest, sha256, u64 } from "../bytes.js";
import type { Result } from "../evidence/evidence.js";
import { frame, hash, hkdf, reportData, unframe } from "../frame.js";
import { type Digest, indexOfHead, zeroDigest } from "../policy/policy.js";
import { Refusal, refuse } from "../refusal.js";
import { decapsulate, encapsulatedSize, type KemKeys, makeKemKeys, suite } from "./kem.js";
import { Session } from "./session.js";
import { checkPin, checkSigner, checkSkew, encodePin, holdersOf, maxChain, parseTime, type Pin, ringCutSince, type UnitTrust, verifyFields } from "./unit.js";

/** Largest response to an open request in bytes. */
export const maxOpenResponse = 544 << 10;
const maxEvidence = 512 << 10;
const maxTicket = 1 << 10;

/** Bits of `wants`. */
const Want = { evidence: 1, receipts: 2, head: 4 } as const;

/** What a session is opened for. */
export interface HandshakeOptions {
  pin: Pin;
  freshEvidence?: boolean | undefined;
  receipts?: boolean | undefined;
  /** Policy head that the unit must have got to; zeroDigest: none. */
  least?: Digest | undefined;
  /** In place of random ones, for vectors: the key pair and 32 bytes. */
  keys?: KemKeys;
  nonce?: Uint8Array;
}

/** An open request that is under way. Its KEM key is used once. */
export interface Handshake {
  options: HandshakeOptions;
  keys: KemKeys;
  nonce: Uint8Array;
  pin: Uint8Array;
  wants: Uint8Array;
  least: Uint8Array;
  /** The content of the request. */
  request: Uint8Array;
}

/** Makes an open request with a new KEM key and nonce. */
export async function startHandshake(options: HandshakeOptions): Promise<Handshake> {
  checkPin(options.pin);
  const keys = options.keys ?? (await makeKemKeys());
  const nonce = options.nonce ?? crypto.getRandomValues(new Uint8Array(32));
  const withHead = options.least !== undefined && options.least !== zeroDigest;
  const least = withHead ? parseDigest(options.least!) : new Uint8Array(0);
  const wants = Uint8Array.of(
    (options.freshEvidence ? Want.evidence : 0) | (options.receipts ? Want.receipts : 0) | (withHead ? Want.head : 0),
  );
  const pin = encodePin(options.pin);
  const request = frame("cohort session open v1", suite, keys.publicBytes, nonce, pin, wants, least);
  return { options, keys, nonce, pin, wants, least, request };
}

/** A response to an open request in parts. Nothing in it is verified. */
export interface OpenResponse {
  enc: Uint8Array;
  session: Uint8Array;
  unit: Uint8Array;
  identity: Uint8Array;
  ring: Uint8Array;
  head: Uint8Array;
  expiry: Uint8Array;
  chain: Uint8Array;
  signature: Uint8Array;
  evidence: Uint8Array;
  ticket: Uint8Array;
  time: Uint8Array;
}

const sizes = { enc: encapsulatedSize, session: 24, unit: 16, identity: 32, ring: 16, head: 32, expiry: 8, time: 8 } as const;

/** Parses a response to an open request and checks the size of every field. */
export function parseOpenResponse(bytes: Uint8Array): OpenResponse {
  if (bytes.length > maxOpenResponse) throw refuse("too-large", "session response: size in bytes", bytes.length, maxOpenResponse);
  const f = unframe("cohort session response v1", bytes, 12);
  const response: OpenResponse = {
    enc: f[0]!, session: f[1]!, unit: f[2]!, identity: f[3]!, ring: f[4]!, head: f[5]!, expiry: f[6]!,
    chain: f[7]!, signature: f[8]!, evidence: f[9]!, ticket: f[10]!, time: f[11]!,
  };
  for (const [field, size] of Object.entries(sizes) as [keyof typeof sizes, number][]) {
    if (response[field].length !== size) throw refuse("malformed", "session response: size of " + field, response[field].length, size);
  }
  if (response.chain.length > maxChain || response.ticket.length > maxTicket || response.evidence.length > maxEvidence) {
    throw refuse("too-large", "session response: size of chain, ticket or evidence", response.chain.length + response.ticket.length + response.evidence.length, "their limits");
  }
  return response;
}

/** Everything that both sides sent, before the session id is known. */
export interface Transcript {
  before: Uint8Array[];
  after: Uint8Array[];
}

/** Puts a transcript together: what the client sent, and what follows from the response and the unit's chain. */
export async function makeTranscript(h: Handshake, r: OpenResponse, unit: Uint8Array, identity: Digest, root: Digest): Promise<Transcript> {
  return {
    before: [suite, h.keys.publicBytes, h.nonce, h.pin, h.wants, h.least, r.enc],
    after: [unit, parseDigest(identity), parseDigest(root), await sha256(r.chain), r.ring, r.head, r.expiry],
  };
}

/** Returns the session id: a number from the manager, and 16 bytes of a digest of the transcript. */
export async function sessionId(t: Transcript, number: bigint): Promise<Uint8Array> {
  return concat(u64(number), (await hash("cohort session id v1", ...t.before, ...t.after)).subarray(0, 16));
}

/** Returns the digest of a transcript. */
export function transcriptDigest(t: Transcript, id: Uint8Array): Promise<Uint8Array> {
  return hash("cohort session transcript v1", ...t.before, id, ...t.after);
}

/** Derives the session secret, 32 bytes, from the KEM secret. */
export function sessionSecret(kemSecret: Uint8Array, transcript: Uint8Array): Promise<Uint8Array> {
  return hkdf(kemSecret, 32, "cohort session secret v1", transcript);
}

/** Returns the report data of fresh evidence. It depends on the session's secret: the evidence proves that its maker knows it. */
export async function evidenceReportData(secret: Uint8Array, transcript: Uint8Array): Promise<Uint8Array> {
  return reportData("cohort session v1", transcript, await sha256(await hkdf(secret, 32, "cohort session confirm v1")));
}

/** The refusal of a session that is shared under ring keys of a cut unit: the unit does not know of the cut yet. */
export class BeforeCut extends Refusal {}

/**
 * Verifies the response to an open request, at a time in milliseconds, and returns the session. It
 * may be called again with the same response and newer trust. docs/spec/channel.md, section 2, has
 * the order of the checks and their reasons.
 */
export async function finishHandshake(h: Handshake, bytes: Uint8Array, trust: UnitTrust, at: number): Promise<Session> {
  const r = parseOpenResponse(bytes);
  const { pin } = h.options;
  const { policy } = trust;
  const unit = await checkSigner(trust, r.chain, pin, { head: r.head, unit: r.unit, identity: r.identity, expiry: r.expiry }, at);
  const head = digestText(r.head);
  const alone = r.ticket.length === 0;
  const holders = holdersOf(pin, unit.facts);
  if (h.least.length > 0) {
    const least = indexOfHead(policy, h.options.least!);
    if (least === undefined || indexOfHead(policy, head)! < least) {
      throw refuse("behind", "session response: policy head", head, "the wanted head, or a later one: " + h.options.least);
    }
  }
  if (!alone && ringCutSince(policy, holders, head)) {
    throw new BeforeCut("behind", "session response: policy head", "a head before a cut, of a session that is sealed for other units", "a head since the cut, or a session without a ticket");
  }
  const transcript = await makeTranscript(h, r, r.unit, unit.facts.identity, policy.authority.root);
  const id = await sessionId(transcript, fromU64(r.session.slice(0, 8)));
  if (!equal(id, r.session)) throw refuse("digest", "session response: session id", hex(r.session), hex(id));
  const digest = await transcriptDigest(transcript, id);
  await verifyFields(unit.key, r.signature, "cohort session signature v1", digest, await sha256(r.evidence), await sha256(r.ticket), r.time);
  const unitTime = parseTime(r.time);
  checkSkew(unitTime, at);
  const secret = await sessionSecret(await decapsulate(h.keys, r.enc), digest);
  const evidence = h.options.freshEvidence ? await appraiseFresh(r, secret, digest) : undefined;
  return Session.make(secret, {
    id, unit, alone, holders, head, evidence, pin,
    expires: Number(fromU64(r.expiry)) * 1000,
    openedAt: unitTime,
    ticket: r.ticket.slice(),
    root: policy.authority.root,
  });

  async function appraiseFresh(r: OpenResponse, secret: Uint8Array, digest: Uint8Array): Promise<Result> {
    if (r.evidence.length === 0 || !trust.appraise) {
      throw refuse("evidence-missing", "session response: evidence", `${r.evidence.length} bytes, with an appraiser: ${!!trust.appraise}`, "fresh evidence, and an appraiser for it");
    }
    return trust.appraise(r.evidence, await evidenceReportData(secret, digest), unit, at);
  }
}
