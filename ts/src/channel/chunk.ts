/**
 * Messages in chunks: requests and responses of the trusted channel, each under a key of its own
 * (docs/spec/channel.md, section 4).
 *
 * A chunk is its length in 4 bytes, whose highest bit marks the final chunk, and that many bytes of
 * AES-256-GCM. The nonce is 4 zero bytes and the number of the chunk, the length is the associated
 * data. So a chunk that is missing, changed, repeated or in another place does not open.
 */

import type { Plaintext } from "../bhttp.js";
import { type Bytes, concat, own } from "../bytes.js";
import { refuse } from "../refusal.js";

/** Most plaintext in one chunk, in bytes. */
export const maxPlaintext = 64 << 10;

const tagSize = 16;
const finalBit = 0x80000000;

/** Sizes in bytes to which a message in one chunk is padded: 256 bytes, 1, 4 and 16 KiB of content, and 256 bytes for the head. */
const buckets = [512, 1280, 4352, 16640];

/** Pads a message in one chunk with zeros. One larger than 16640 bytes is not padded. */
export function pad(message: Uint8Array): Bytes {
  const size = buckets.find((b) => b >= message.length) ?? message.length;
  const padded = new Uint8Array(size);
  padded.set(message);
  return padded;
}

/** Returns the AES-GCM key for WebCrypto. */
export function aesKey(key: Uint8Array): Promise<CryptoKey> {
  return crypto.subtle.importKey("raw", own(key), "AES-GCM", false, ["encrypt", "decrypt"]);
}

function parameters(number: number, additionalData: Bytes): AesGcmParams {
  const iv = new Uint8Array(12);
  new DataView(iv.buffer).setBigUint64(4, BigInt(number));
  return { name: "AES-GCM", iv, additionalData };
}

/** Seals the chunks of one message. Its key seals no other. */
export class ChunkWriter {
  private number = 0;

  constructor(private readonly key: CryptoKey) {}

  /** Returns the next chunk. */
  async seal(plaintext: Uint8Array, final: boolean): Promise<Bytes> {
    const length = new Uint8Array(4);
    new DataView(length.buffer).setUint32(0, plaintext.length + tagSize + (final ? finalBit : 0));
    const sealed = await crypto.subtle.encrypt(parameters(this.number++, length), this.key, own(plaintext));
    return concat(length, new Uint8Array(sealed));
  }
}

/**
 * Bytes that are read ahead of their use. A fetch of Node that waits for its reader after each of many
 * small pieces copies all that has arrived each time: 64 MiB take 20 s, and 0.5 s when read ahead.
 */
const readAhead = 1 << 20;

/** Reads exact numbers of bytes from a stream. An end too soon, and a fault of the stream, are "truncated". */
export class ByteReader {
  private buffer: Uint8Array = new Uint8Array(0);
  private readonly reader: ReadableStreamDefaultReader<Uint8Array> | undefined;
  /** What was read ahead, and its size. */
  private readonly ahead: Uint8Array[] = [];
  private size = 0;
  /** Reading ahead that is under way. */
  private reading: Promise<void> | undefined;
  private ended: { fault?: unknown } | undefined;
  private arrived = () => {};

  constructor(stream: ReadableStream<Uint8Array> | null) {
    this.reader = stream?.getReader();
    if (!this.reader) this.ended = {};
  }

  /** Reads ahead until there is enough, or the stream ends. */
  private async readOn(): Promise<void> {
    try {
      while (this.size < readAhead) {
        const next = await this.reader!.read();
        if (next.done) {
          this.ended = {};
          break;
        }
        this.ahead.push(next.value);
        this.size += next.value.length;
        this.arrived();
      }
    } catch (fault) {
      this.ended = { fault };
    }
    this.reading = undefined;
    this.arrived();
  }

  /** Returns the next piece of the stream; undefined at its end. */
  private async next(): Promise<Uint8Array | undefined> {
    for (;;) {
      if (!this.ended && this.size < readAhead) this.reading ??= this.readOn();
      const piece = this.ahead.shift();
      if (piece) {
        this.size -= piece.length;
        return piece;
      }
      if (this.ended) {
        if ("fault" in this.ended) throw refuse("truncated", "stream", this.ended.fault, "a final chunk", this.ended.fault);
        return undefined;
      }
      await new Promise<void>((resolve) => (this.arrived = resolve));
    }
  }

  /** Reads exactly so many bytes. */
  async exactly(size: number): Promise<Uint8Array> {
    const bytes = new Uint8Array(size);
    for (let at = 0; at < size; ) {
      const piece = await this.some(size - at);
      if (piece === undefined) throw refuse("truncated", "stream", "an early end", "a final chunk");
      bytes.set(piece, at);
      at += piece.length;
    }
    return bytes;
  }

  /** Reads at least one and at most so many bytes; undefined at the end. */
  async some(size: number): Promise<Uint8Array | undefined> {
    while (this.buffer.length === 0) {
      const next = await this.next();
      if (next === undefined) return undefined;
      this.buffer = next;
    }
    const piece = this.buffer.subarray(0, size);
    this.buffer = this.buffer.subarray(piece.length);
    return piece;
  }

  /** Reads at most so many bytes up to the end; more are refused as too large. */
  async rest(limit: number): Promise<Bytes> {
    const pieces: Uint8Array[] = [];
    let size = 0;
    for (let piece = await this.some(limit + 1); piece !== undefined; piece = await this.some(limit + 1)) {
      size += piece.length;
      if (size > limit) throw refuse("too-large", "stream: size in bytes", `more than ${limit}`, limit);
      pieces.push(piece);
    }
    return concat(...pieces);
  }

  /** Gives up the stream: its sender may stop. */
  async cancel(reason?: unknown): Promise<void> {
    await this.reader?.cancel(reason).catch(() => {});
  }
}

/** One opened chunk. */
export interface OpenedChunk {
  plaintext: Uint8Array;
  final: boolean;
}

/** The chunks of one message, opened. */
export interface ChunkSource {
  /** Returns the next chunk; undefined after the final one, where nothing follows it. */
  next(): Promise<OpenedChunk | undefined>;
}

/**
 * Opens the chunks of one message. It refuses with "truncated" an end before the final chunk, with
 * "signature" a chunk that does not open, and with "malformed" bytes after the final chunk.
 */
export class ChunkReader implements ChunkSource {
  private number = 0;
  private final = false;
  private over = false;

  constructor(
    private readonly source: ByteReader,
    private readonly key: CryptoKey,
  ) {}

  async next(): Promise<OpenedChunk | undefined> {
    if (this.final) {
      if (!this.over && (await this.source.some(1)) !== undefined) {
        throw refuse("malformed", "stream: after the final chunk", "more bytes", "the end of the stream");
      }
      this.over = true;
      return undefined;
    }
    const length = await this.source.exactly(4);
    const word = new DataView(length.buffer, length.byteOffset).getUint32(0);
    const final = word >= finalBit;
    const size = final ? word - finalBit : word;
    if (size > maxPlaintext + tagSize || size < tagSize || (!final && size === tagSize)) {
      throw refuse("signature", "chunk: size in bytes", size, "16 to 65552, more than 16 if not final");
    }
    const sealed = await this.source.exactly(size);
    let opened: ArrayBuffer;
    try {
      opened = await crypto.subtle.decrypt(parameters(this.number, own(length)), this.key, own(sealed));
    } catch {
      throw refuse("signature", "chunk", `${size} bytes that do not decrypt`, "a chunk as the other side sent it");
    }
    this.number++;
    this.final = final;
    return { plaintext: new Uint8Array(opened), final };
  }
}

/** What is checked and kept while the plaintext of a message is read. */
export interface PlaintextOptions {
  /** Refuses the rest of the message, once it must not be used. */
  valid?: (() => void) | undefined;
  /** Receives all plaintext that a receipt covers. With it the final chunk, unless it is the only one, is the receipt. */
  record?: ((plaintext: Uint8Array) => void) | undefined;
}

/** Returns the plaintext of a message chunk by chunk. */
export class ChunkPlaintext implements Plaintext {
  done = false;
  /** The receipt in the final chunk. */
  receipt: Uint8Array | undefined;
  private begun = false;

  constructor(
    private readonly chunks: ChunkSource,
    private readonly options: PlaintextOptions = {},
  ) {}

  async next(): Promise<Uint8Array | undefined> {
    const chunk = await this.chunks.next();
    this.options.valid?.();
    if (chunk === undefined) return undefined;
    this.done = chunk.final;
    if (this.options.record && chunk.final && this.begun) {
      this.receipt = chunk.plaintext;
      return this.next();
    }
    this.begun = true;
    this.options.record?.(chunk.plaintext);
    return chunk.plaintext;
  }
}
