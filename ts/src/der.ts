/** A reader for DER (X.690) as certificates use it. It refuses every encoding but the shortest. */

import { refuse } from "./refusal.js";

/** Tags that certificates use. */
export const Tag = {
  Boolean: 0x01,
  Integer: 0x02,
  BitString: 0x03,
  OctetString: 0x04,
  Null: 0x05,
  ObjectIdentifier: 0x06,
  Utf8String: 0x0c,
  PrintableString: 0x13,
  Ia5String: 0x16,
  UtcTime: 0x17,
  GeneralizedTime: 0x18,
  Sequence: 0x30,
  Set: 0x31,
} as const;

/** One element: its tag, its content, and its whole encoding. All are views of the bytes read. */
export interface Element {
  tag: number;
  content: Uint8Array;
  raw: Uint8Array;
}

/** Reads elements one after the other. Every fault is refused as malformed. */
export class DerReader {
  private at = 0;

  constructor(private readonly bytes: Uint8Array) {}

  /** Reports whether all bytes are read. */
  get done(): boolean {
    return this.at === this.bytes.length;
  }

  /** Returns the tag of the next element, or undefined at the end. */
  peek(): number | undefined {
    return this.bytes[this.at];
  }

  /** Reads the next element, with `tag` where it is given. */
  read(tag?: number): Element {
    const begin = this.at;
    const found = this.byte();
    if (tag !== undefined && found !== tag) throw refuse("malformed", "DER: tag", found, tag);
    if ((found & 0x1f) === 0x1f) throw refuse("malformed", "DER: tag", "a tag of several bytes", "one byte");
    let size = this.byte();
    if (size & 0x80) {
      const count = size & 0x7f;
      if (count < 1 || count > 3) throw refuse("malformed", "DER: bytes of a length", count, "1 to 3");
      size = 0;
      for (let i = 0; i < count; i++) size = size * 256 + this.byte();
      if (size < 0x80 || size < 2 ** (8 * (count - 1))) {
        throw refuse("malformed", "DER: length", "a longer encoding", "the shortest");
      }
    }
    if (this.bytes.length - this.at < size) throw refuse("malformed", "DER: element", "a cut element", "its whole length");
    const content = this.bytes.subarray(this.at, this.at + size);
    this.at += size;
    return { tag: found, content, raw: this.bytes.subarray(begin, this.at) };
  }

  /** Reads the next element and returns a reader of its content. */
  enter(tag: number): DerReader {
    return new DerReader(this.read(tag).content);
  }

  /** Reads the next element if it has the tag. */
  optional(tag: number): Element | undefined {
    return this.peek() === tag ? this.read(tag) : undefined;
  }

  /** Refuses bytes that are left. */
  end(): void {
    if (!this.done) throw refuse("malformed", "DER: bytes left over", this.bytes.length - this.at, 0);
  }

  private byte(): number {
    const b = this.bytes[this.at++];
    if (b === undefined) throw refuse("malformed", "DER: element", "a cut element", "its whole length");
    return b;
  }
}

/** Reads bytes that are one element with the tag, and nothing after it. */
export function onlyElement(bytes: Uint8Array, tag: number): DerReader {
  const reader = new DerReader(bytes);
  const inner = reader.enter(tag);
  reader.end();
  return inner;
}

/** Returns the dotted form of an object identifier's content. Arcs of more than 2^53 are exact. */
export function oid(content: Uint8Array): string {
  const arcs: bigint[] = [];
  let value = 0n;
  let open = false;
  for (const b of content) {
    if (!open && b === 0x80) throw refuse("malformed", "DER: object identifier", "a leading zero", "the shortest arcs");
    value = (value << 7n) | BigInt(b & 0x7f);
    open = (b & 0x80) !== 0;
    if (!open) {
      arcs.push(value);
      value = 0n;
    }
  }
  const first = arcs[0];
  if (open || first === undefined) throw refuse("malformed", "DER: object identifier", "a cut arc", "whole arcs");
  const root = first < 40n ? 0n : first < 80n ? 1n : 2n;
  return [root, first - 40n * root, ...arcs.slice(1)].join(".");
}

/** Returns the value of an integer's content that is not negative, in its shortest form. */
export function unsigned(content: Uint8Array): bigint {
  if (content.length === 0 || content[0]! & 0x80 || (content.length > 1 && content[0] === 0 && !(content[1]! & 0x80))) {
    throw refuse("malformed", "DER: integer", "an empty, negative or longer encoding", "the shortest of a number that is not negative");
  }
  let value = 0n;
  for (const b of content) value = (value << 8n) | BigInt(b);
  return value;
}
