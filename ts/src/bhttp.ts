/**
 * Binary HTTP (RFC 9292): requests and responses as the plaintext of an encrypted message, in the
 * profile of docs/spec/channel.md, section 4.
 *
 * The head of a message, which is control data and header fields, is encoded and parsed as a whole.
 * Content, trailers and padding come in pieces (`Content`), because a message may be longer than
 * memory. Each length is bounded by bytes that are there, or by a limit of its own, before memory
 * is taken. Faults are refused as malformed: integers in more bytes than they need, names and values
 * that HTTP/1.1 could not carry, fields of one connection, a content-length that differs from the
 * content, and padding that is not zero.
 */

import { type Bytes, concat } from "./bytes.js";
import { refuse } from "./refusal.js";

/** Field lines in their order: names in lower case, values as bytes in Latin-1. */
export type Fields = [name: string, value: string][];

/** Control data and fields of a request. Without `length` the length of the content is not known. */
export interface RequestHead {
  method: string;
  scheme: string;
  authority: string;
  path: string;
  fields: Fields;
  length: number | undefined;
}

/** Status and fields of a response. Without `length` the length of the content is not known. */
export interface ResponseHead {
  status: number;
  fields: Fields;
  length: number | undefined;
}

/** Largest trailer section in bytes. */
const maxTrailers = 16 << 10;

/** Framing indicators (RFC 9292, section 3.3). */
const Framing = { knownRequest: 0, knownResponse: 1, requestInParts: 2, responseInParts: 3 } as const;

/** Fields of one connection; they do not enter a message (RFC 9292, section 3.6). */
const hopByHop = new Set(["connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade", "host"]);

const token = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/;
const lowerToken = /^[!#$%&'*+\-.^_`|~0-9a-z]+$/;
const visible = /^[\x21-\x7e]*$/;

/** Reports whether a text can be the value of a field: no control characters but tabs, no spaces around it. */
function isFieldValue(value: string): boolean {
  for (let i = 0; i < value.length; i++) {
    const c = value.charCodeAt(i);
    if ((c < 0x20 && c !== 0x09) || c === 0x7f || c > 0xff) return false;
  }
  return value === "" || (value.charCodeAt(0) > 0x20 && value.charCodeAt(value.length - 1) > 0x20);
}

/** Encodes an integer below 2^53 as RFC 9000, section 16, in the fewest bytes. */
export function varint(value: number): Bytes {
  if (value < 1 << 6) return Uint8Array.of(value);
  const bytes = new Uint8Array(value < 1 << 14 ? 2 : value < 2 ** 30 ? 4 : 8);
  const view = new DataView(bytes.buffer);
  if (bytes.length === 2) view.setUint16(0, value | 0x4000);
  else if (bytes.length === 4) view.setUint32(0, value + 2 ** 31);
  else view.setBigUint64(0, BigInt(value) | (3n << 62n));
  return bytes;
}

/** Returns the size in bytes of an integer whose encoding begins with this byte. */
function varintSize(first: number): number {
  return 1 << (first >> 6);
}

/**
 * Reads an integer of exactly these bytes. A longer encoding than the shortest is refused. Values
 * above 2^53 are rounded: no message is so long, so a length of that size is refused later.
 */
function readVarint(bytes: Uint8Array): number {
  let value = bytes[0]! & 0x3f;
  for (let i = 1; i < bytes.length; i++) value = value * 256 + bytes[i]!;
  const least = [0, 0, 1 << 6, 0, 1 << 14, 0, 0, 0, 2 ** 30][bytes.length]!;
  if (value < least) throw malformed("bytes of an integer", bytes.length, "the fewest");
  return value;
}

function malformed(rule: string, got: unknown, want: unknown) {
  return refuse("malformed", "binary http: " + rule, got, want);
}

/** Returns the bytes of a text whose characters are bytes. */
function latin1(text: string): Bytes {
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

/** Returns the text whose characters are these bytes. */
function fromLatin1(bytes: Uint8Array): string {
  let text = "";
  for (const b of bytes) text += String.fromCharCode(b);
  return text;
}

function lengthAnd(text: string): Bytes {
  return concat(varint(text.length), latin1(text));
}

/** Encodes a field section for a message of known length, or in parts. Fields of a connection are left out. */
function encodeSection(fields: Fields, known: boolean): Bytes {
  const lines: Uint8Array[] = [];
  for (const [given, value] of fields) {
    const name = given.toLowerCase();
    if (hopByHop.has(name)) continue;
    if (!token.test(given)) throw refuse("request", "field: name", given, "a token");
    if (!isFieldValue(value)) {
      throw refuse("request", "field: value of " + name, "control characters, or spaces around it", "neither");
    }
    lines.push(lengthAnd(name), lengthAnd(value));
  }
  const all = concat(...lines);
  return known ? concat(varint(all.length), all) : concat(all, Uint8Array.of(0));
}

/** Encodes the head of a request. What HTTP/1.1 could not carry is refused with "request". */
export function encodeRequest(head: RequestHead): Bytes {
  const { method, scheme, authority, path, fields, length } = head;
  for (const part of [scheme, authority, path]) {
    if (!visible.test(part)) throw refuse("request", "request: URL", part, "visible ASCII");
  }
  if (!token.test(method)) throw refuse("request", "request: method", method, "a token");
  const known = length !== undefined;
  return concat(
    Uint8Array.of(known ? Framing.knownRequest : Framing.requestInParts),
    ...[method, scheme, authority, path].map(lengthAnd),
    encodeSection(fields, known),
    known ? varint(length) : new Uint8Array(0),
  );
}

/** Encodes the head of a response. */
export function encodeResponse(head: ResponseHead): Bytes {
  const known = head.length !== undefined;
  return concat(
    Uint8Array.of(known ? Framing.knownResponse : Framing.responseInParts),
    varint(head.status),
    encodeSection(head.fields, known),
    known ? varint(head.length!) : new Uint8Array(0),
  );
}

/** Encodes a trailer section. */
export function encodeTrailers(fields: Fields, known: boolean): Bytes {
  return encodeSection(fields, known);
}

/** The head ends beyond the bytes that are there. */
class Short extends Error {}

/** Takes the head of a message apart. With `more` the bytes are only the beginning of the message. */
class Parser {
  constructor(
    public rest: Uint8Array,
    private readonly more: boolean,
    public known = false,
  ) {}

  /** The fault of a message that ends too soon. */
  private cut(rule: string, got: unknown, want: unknown): Error {
    return this.more ? new Short() : malformed(rule, got, want);
  }

  integer(): number {
    const first = this.rest[0];
    if (first === undefined || this.rest.length < varintSize(first)) {
      throw this.cut("bytes of an integer", this.rest.length, "all its bytes");
    }
    const size = varintSize(first);
    const value = readVarint(this.rest.subarray(0, size));
    this.rest = this.rest.subarray(size);
    return value;
  }

  bytes(): Uint8Array {
    const size = this.integer();
    if (size > this.rest.length) throw this.cut("length", size, "within the message");
    const bytes = this.rest.subarray(0, size);
    this.rest = this.rest.subarray(size);
    return bytes;
  }

  visibleText(what: string): string {
    const text = fromLatin1(this.bytes());
    if (!visible.test(text)) throw malformed(what, text, "visible ASCII");
    return text;
  }

  section(): Fields {
    if (this.rest.length === 0 && !this.more) return [];
    return this.known ? new Parser(this.bytes(), false, true).fields() : this.fields();
  }

  /** Takes field lines up to the end of a known section, or the terminator. */
  fields(): Fields {
    const fields: Fields = [];
    while (this.rest.length > 0) {
      const name = fromLatin1(this.bytes());
      if (name === "" && !this.known) return fields;
      const value = fromLatin1(this.bytes());
      if (!lowerToken.test(name) || (hopByHop.has(name) && name !== "host") || !isFieldValue(value)) {
        throw malformed("field", name, "a lower-case name that is not a connection's, a value without control characters");
      }
      fields.push([name, value]);
    }
    if (!this.known) throw this.cut("field section", "no end", "a terminator");
    return fields;
  }

  /** Takes the length of the content, if it is known. A message may end where only zeros would follow. */
  contentLength(): number | undefined {
    if (!this.known) return undefined;
    return this.rest.length > 0 || this.more ? this.integer() : 0;
  }
}

/** A head, and the bytes after it. */
export interface Parsed<Head> {
  head: Head;
  rest: Uint8Array;
}

/** Parses a head; undefined: it goes on beyond the bytes. */
export type Parse<Head> = (bytes: Uint8Array, whole: boolean) => Parsed<Head> | undefined;

function parse<Head>(bytes: Uint8Array, whole: boolean, read: (p: Parser) => Head): Parsed<Head> | undefined {
  const parser = new Parser(bytes, !whole);
  try {
    const head = read(parser);
    return { head, rest: parser.rest };
  } catch (e) {
    if (e instanceof Short) return undefined;
    throw e;
  }
}

/** Parses the head of a request. With `whole` nothing follows the bytes in the message but left-out zeros. */
export const parseRequest: Parse<RequestHead> = (bytes, whole) =>
  parse(bytes, whole, (p) => {
    const framing = p.integer();
    if (framing !== Framing.knownRequest && framing !== Framing.requestInParts) {
      throw malformed("framing indicator", framing, "a request's");
    }
    const method = p.visibleText("method");
    const scheme = p.visibleText("scheme");
    const authority = p.visibleText("authority");
    const path = p.visibleText("path");
    if (!token.test(method)) throw malformed("method", method, "a token");
    p.known = framing === Framing.knownRequest;
    const fields = p.section();
    return { method, scheme, authority, path, fields, length: p.contentLength() };
  });

/** Parses the head of a response. Informational responses before it are checked and left out. */
export const parseResponse: Parse<ResponseHead> = (bytes, whole) =>
  parse(bytes, whole, (p) => {
    const framing = p.integer();
    if (framing !== Framing.knownResponse && framing !== Framing.responseInParts) {
      throw malformed("framing indicator", framing, "a response's");
    }
    p.known = framing === Framing.knownResponse;
    let status = p.integer();
    while (status >= 100 && status < 200) {
      p.section();
      status = p.integer();
    }
    if (status < 200 || status > 599) throw malformed("status", status, "200 to 599");
    const fields = p.section();
    return { status, fields, length: p.contentLength() };
  });

/**
 * Returns the length of a response's content as the framing or the field content-length states it;
 * undefined: neither does. A field that differs from the framing is refused. In the response to a HEAD and with
 * status 304 the field is the length of content that is not sent (RFC 9110, section 8.6).
 */
export function responseLength(head: ResponseHead, method: string): number | undefined {
  const field = head.fields.filter(([name]) => name === "content-length").map(([, value]) => value);
  const without = method === "HEAD" || head.status === 304;
  if (field.length === 0) return head.length;
  const stated = /^(0|[1-9][0-9]{0,17})$/.test(field[0]!) ? Number(field[0]) : -1;
  if (field.length > 1 || stated < 0 || (!without && head.length !== undefined && head.length !== stated)) {
    throw malformed("content length", field.join(", "), head.length);
  }
  return without ? head.length : stated;
}

/** The plaintext of a message in pieces. */
export interface Plaintext {
  /** Returns the next piece, and undefined at the end of the message. */
  next(): Promise<Uint8Array | undefined>;
  /** Whether `next` returned the last piece. */
  readonly done: boolean;
}

/** Reads the content of a message, then its trailers and its padding. */
export class Content {
  /** The trailers, once the content was read. */
  trailer: Fields = [];
  private readonly known: boolean;
  private left: number;
  private seen = 0;
  private ended = false;

  /**
   * @param chunks the message after the chunk that the head ended in
   * @param framed the length that the framing states; undefined: the content comes in parts
   * @param buffer what followed the head in its chunk
   * @param length the length that the content must have; undefined: any
   */
  constructor(
    private readonly chunks: Plaintext,
    framed: number | undefined,
    private buffer: Uint8Array,
    private readonly length = framed,
  ) {
    this.known = framed !== undefined;
    this.left = framed ?? 0;
  }

  /**
   * Returns the next piece of content, not empty; undefined once the whole message, trailers and
   * padding included, was read and is in order.
   */
  async read(): Promise<Uint8Array | undefined> {
    if (this.ended) return undefined;
    if (this.left === 0 && !this.known) this.left = await this.integer();
    if (this.left === 0) return this.finish();
    while (this.buffer.length === 0) {
      if (!(await this.fill())) throw malformed("content", `an end after ${this.seen} bytes`, "all its bytes");
    }
    const piece = this.buffer.subarray(0, this.left);
    this.buffer = this.buffer.subarray(piece.length);
    this.left -= piece.length;
    this.seen += piece.length;
    if (this.length !== undefined && this.seen > this.length) throw malformed("content length", this.seen, this.length);
    return piece;
  }

  /** Reads trailers and padding up to the end of the message. */
  private async finish(): Promise<undefined> {
    await this.trailers();
    do {
      if (this.buffer.some((b) => b !== 0)) throw malformed("padding", "other bytes", "zeros");
    } while (await this.fill());
    if (this.length !== undefined && this.seen !== this.length) throw malformed("content length", this.seen, this.length);
    this.ended = true;
    return undefined;
  }

  /** Makes the next chunk the buffer, and reports whether there is one. */
  private async fill(): Promise<boolean> {
    const next = await this.chunks.next();
    this.buffer = next ?? new Uint8Array(0);
    return next !== undefined;
  }

  /** Reads an integer that may lie across chunks; 0 at the end of the message, where zeros may be left out. */
  private async integer(): Promise<number> {
    const bytes: number[] = [];
    do {
      while (this.buffer.length === 0) {
        if (await this.fill()) continue;
        if (bytes.length === 0) return 0;
        throw malformed("bytes of an integer", bytes.length, "all its bytes");
      }
      bytes.push(this.buffer[0]!);
      this.buffer = this.buffer.subarray(1);
    } while (bytes.length < varintSize(bytes[0]!));
    return readVarint(Uint8Array.from(bytes));
  }

  private async trailers(): Promise<void> {
    if (this.known) {
      const size = await this.integer();
      if (size > 0) this.trailer = new Parser(await this.take(size, 0), false, true).fields();
      return;
    }
    const lines: Uint8Array[] = [];
    let total = 0;
    for (let part = 0; ; part = 1 - part) {
      const size = await this.integer();
      if (size === 0 && part === 0) break;
      const length = varint(size);
      lines.push(length, await this.take(size, total + length.length));
      total += length.length + size;
    }
    if (total > 0) this.trailer = new Parser(concat(...lines, Uint8Array.of(0)), false).fields();
  }

  /** Reads bytes of a trailer section of which `before` bytes were read. */
  private async take(size: number, before: number): Promise<Uint8Array> {
    if (before + size > maxTrailers) throw refuse("too-large", "binary http: trailers: size in bytes", before + size, maxTrailers);
    const bytes = new Uint8Array(size);
    for (let at = 0; at < size; ) {
      if (this.buffer.length === 0) {
        if (!(await this.fill())) throw malformed("trailers", `an end with ${size - at} bytes missing`, "all their bytes");
        continue;
      }
      const piece = this.buffer.subarray(0, size - at);
      bytes.set(piece, at);
      this.buffer = this.buffer.subarray(piece.length);
      at += piece.length;
    }
    return bytes;
  }
}
