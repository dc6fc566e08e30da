/**
 * The client's side of a session: its keys, the requests that it seals and the responses that it
 * opens (docs/spec/channel.md, sections 4 and 5).
 */

import { Content, encodeRequest, parseResponse, type RequestHead, type ResponseHead, responseLength, varint } from "../bhttp.js";
import { type Bytes, concat, fromHex, hex, own, text, u64 } from "../bytes.js";
import type { Result } from "../evidence/evidence.js";
import { frame } from "../frame.js";
import { cutOff, type Digest, type Policy } from "../policy/policy.js";
import { Refusal, refuse } from "../refusal.js";
import { aesKey, ByteReader, ChunkPlaintext, ChunkReader, ChunkWriter, maxPlaintext, pad } from "./chunk.js";
import { parseTime, type Pin, type RingHolders, ringCutSince, type Unit } from "./unit.js";

/** Most content in bytes of a request that is sent in one chunk. */
export const maxSmall = 16 << 10;

/** Size in bytes of the outer header of a request. */
export const headerSize = 58;

/** Bits of the flags in a header. */
export const Flag = { receipt: 1, close: 2 } as const;

/** Imports a secret as key of HKDF-Expand. */
function expandKey(secret: Uint8Array): Promise<CryptoKey> {
  return crypto.subtle.importKey("raw", own(secret), { name: "HMAC", hash: "SHA-256" }, false, ["sign"]);
}

/** Derives 32 bytes: the second half of HKDF alone (RFC 5869, section 2.3). */
async function expand(key: CryptoKey, label: string, ...fields: Uint8Array[]): Promise<Bytes> {
  return new Uint8Array(await crypto.subtle.sign("HMAC", key, concat(frame(label, ...fields), Uint8Array.of(1))));
}

/** What is known of a session that was opened. */
export interface SessionFacts {
  /** 24 bytes. */
  id: Uint8Array;
  /** The unit that opened it. */
  unit: Unit;
  /** Only the opener has it. */
  alone: boolean;
  /** Units that may have it, unless it is alone. */
  holders: RingHolders;
  /** Policy head that the unit had got to. */
  head: Digest;
  /** Result of fresh evidence; undefined where none was wanted. */
  evidence: Result | undefined;
  pin: Pin;
  /** End, in milliseconds. */
  expires: number;
  /** On the clock of the opener, in milliseconds. */
  openedAt: number;
  /** The sealed session, with which other units can join it; empty if it is alone. */
  ticket: Uint8Array;
  root: Digest;
}

/** A session. Only finishHandshake makes one. */
export class Session {
  private number = 0;
  private verdict: { head: Digest; refusal: Refusal | undefined } | undefined;
  /** The proved policy head that a request carried last. */
  sentHead: Uint8Array | undefined;

  private constructor(
    readonly facts: SessionFacts,
    private key: CryptoKey | undefined,
  ) {}

  /** Makes a session of its secret, 32 bytes. */
  static async make(secret: Uint8Array, facts: SessionFacts): Promise<Session> {
    return new Session(facts, await expandKey(secret));
  }

  /** Gives up the secret. Requests and responses that have not begun fail from then on. */
  close(): void {
    this.key = undefined;
  }

  /** Returns the key that other keys are derived from. */
  secretKey(): CryptoKey {
    if (!this.key) throw closedError();
    return this.key;
  }

  /** Makes the next request. Its number is never used again. */
  newRequest(options: RequestOptions): ClientRequest {
    this.secretKey();
    return ClientRequest.make(this, ++this.number, options);
  }

  /**
   * Refuses, with `cut-off` or the reason of a group, a session whose opener the policy cuts off, and
   * one under ring keys of a unit that the policy has cut off since. Fast while the policy is the same.
   */
  checkCutOff(policy: Policy, at: number): void {
    if (this.verdict?.head !== policy.head) this.verdict = { head: policy.head, refusal: this.cutUnder(policy, at) };
    if (this.verdict.refusal) throw this.verdict.refusal;
  }

  private cutUnder(policy: Policy, at: number): Refusal | undefined {
    try {
      cutOff(policy, this.facts.unit.facts, at);
    } catch (e) {
      if (e instanceof Refusal) return e;
      throw e;
    }
    if (!this.facts.alone && ringCutSince(policy, this.facts.holders, this.facts.head)) {
      return refuse("cut-off", "session: cut of a unit that may read it", "after policy head " + this.facts.head, "a session since the cut");
    }
    return undefined;
  }
}

/** The session or its client was closed. */
export class ClosedError extends Error {
  override readonly name = "ClosedError";
}

function closedError(): ClosedError {
  return new ClosedError("the session is closed");
}

/** What a request is made of. */
export interface RequestOptions {
  /** Unit that it is bound to, 32 digits; undefined: none. */
  target: string | undefined;
  /** Unix milliseconds after which no unit begins to execute it. */
  notAfter: number;
  flags?: number;
  /** Refuses the rest of a response, once policy has ended the session. */
  valid?: () => void;
}

/** A response of a unit, authenticated. */
export type Response =
  | { kind: "response"; unit: string; time: number; head: ResponseHead; content: Content; plaintext: ChunkPlaintext }
  | { kind: "not-executed"; unit: string; time: number; reason: string }
  | { kind: "closed"; unit: string; time: number };

/** Seals one request and opens the response to it. */
export class ClientRequest {
  /** Plaintext of request and response, where a receipt is wanted. */
  readonly recorded: { request: Uint8Array[]; response: Uint8Array[] } | undefined;

  private constructor(
    readonly session: Session,
    readonly header: Uint8Array,
    readonly number: number,
    private readonly options: RequestOptions,
  ) {
    if (this.flags & Flag.receipt) this.recorded = { request: [], response: [] };
  }

  /** Makes a request of a number. */
  static make(session: Session, number: number, options: RequestOptions): ClientRequest {
    const header = concat(
      Uint8Array.of(1),
      session.facts.id,
      u64(number),
      options.target ? fromHex(options.target) : new Uint8Array(16),
      u64(Math.max(0, Math.floor(options.notAfter))),
      Uint8Array.of(options.flags ?? 0),
    );
    return new ClientRequest(session, header, number, options);
  }

  /** Makes a request that has this header, for vectors. */
  static ofHeader(session: Session, header: Uint8Array): ClientRequest {
    const target = hex(header.subarray(33, 49));
    return new ClientRequest(session, header, 0, { target: /[^0]/.test(target) ? target : undefined, notAfter: 0, flags: header[57]! });
  }

  private get flags(): number {
    return this.options.flags ?? 0;
  }

  private async writer(): Promise<ChunkWriter> {
    return new ChunkWriter(await aesKey(await expand(this.session.secretKey(), "cohort request key v1", this.header)));
  }

  /** Seals a request in one chunk. Without a head it is the empty request that closes a session. */
  async whole(head?: RequestHead, content: Uint8Array = new Uint8Array(0)): Promise<Bytes> {
    const plaintext = head ? pad(concat(encodeRequest(head), content)) : content;
    checkHead(plaintext.length);
    this.recorded?.request.push(plaintext);
    return concat(this.header, await (await this.writer()).seal(plaintext, true));
  }

  /**
   * Seals a request in chunks, as its reader asks for them: the head first, then content, whose
   * length is in the head or not known. A failure of `content` fails the stream.
   */
  async *stream(head: RequestHead, content: AsyncIterable<Uint8Array>): AsyncGenerator<Bytes, void, void> {
    const writer = await this.writer();
    const seal = (plaintext: Uint8Array, final: boolean) => {
      this.recorded?.request.push(plaintext);
      return writer.seal(plaintext, final);
    };
    const first = encodeRequest(head);
    checkHead(first.length);
    yield concat(this.header, await seal(first, false));
    const known = head.length !== undefined;
    const room = maxPlaintext - 4;
    let left = head.length ?? 0;
    for await (const given of content) {
      for (let at = 0; at < given.length; at += room) {
        const piece = given.subarray(at, at + room);
        if (known && (left -= piece.length) < 0) throw refuse("request", "request: content beyond its length, in bytes", -left, 0);
        yield await seal(known ? piece : concat(varint(piece.length), piece), false);
      }
    }
    if (left > 0) throw refuse("request", "request: content that is missing, in bytes", left, 0);
    yield await seal(known ? new Uint8Array(0) : Uint8Array.of(0), true);
  }

  /** Opens a response up to the end of its head. `method` is that of the request. */
  async open(source: ByteReader, method: string): Promise<Response> {
    const unit = hex(await source.exactly(16));
    const nonce = await source.exactly(16);
    if (this.options.target && unit !== this.options.target) throw refuse("identity", "response: unit", unit, this.options.target);
    const key = await this.responseKey(unit, nonce);
    const plaintext = new ChunkPlaintext(new ChunkReader(source, key), {
      valid: this.options.valid,
      record: this.recorded && ((bytes) => this.recorded!.response.push(bytes)),
    });
    const first = (await plaintext.next())!;
    if (first.length < 9) throw refuse("malformed", "response: size in bytes", first.length, "its kind and time");
    const time = parseTime(first.slice(1, 9));
    const rest = first.subarray(9);
    if (first[0] === 0) {
      const { head, rest: begun } = parseResponse(rest, true)!;
      const content = new Content(plaintext, head.length, begun, responseLength(head, method));
      return { kind: "response", unit, time, head, content, plaintext };
    }
    const reason = trimZeros(rest);
    if (first[0]! > 2) throw refuse("malformed", "response: kind", first[0], "0 to 2");
    if (first[0] === 2 && reason.length > 0) throw refuse("malformed", "response: content of closed", reason.length, 0);
    if ((await plaintext.next()) !== undefined) {
      throw refuse("malformed", "response: chunks", "a chunk after the final one of its kind", "1");
    }
    return first[0] === 1 ? { kind: "not-executed", unit, time, reason: text(reason) } : { kind: "closed", unit, time };
  }

  /** Returns the key of the response. A unit confirms a request that closes the session under the close key. */
  private async responseKey(unit: string, nonce: Uint8Array): Promise<CryptoKey> {
    let secret = this.session.secretKey();
    if (this.flags & Flag.close) secret = await expandKey(await expand(secret, "cohort close key v1"));
    return aesKey(await expand(secret, "cohort response key v1", this.header, fromHex(unit), nonce));
  }
}

function checkHead(size: number): void {
  if (size > maxPlaintext) throw refuse("too-large", "request: head: size in bytes", size, maxPlaintext);
}

function trimZeros(bytes: Uint8Array): Uint8Array {
  let end = bytes.length;
  while (end > 0 && bytes[end - 1] === 0) end--;
  return bytes.subarray(0, end);
}
