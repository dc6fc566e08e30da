/**
 * The encapsulation of Oblivious HTTP: key configurations, and messages in one piece (RFC 9458) or in
 * chunks (draft-ietf-ohai-chunked-ohttp), in the profile of docs/spec/ohttp.md.
 *
 * Nothing that arrives is trusted: sizes and counts are bounded, and a chunk that is changed,
 * missing, moved or repeated does not open. Whose keys they are, the caller checks.
 */

import { KEM_MLKEM768_X25519 } from "@panva/hpke-noble";
import { KEM_DHKEM_X25519_HKDF_SHA256, type Key } from "hpke";
import { type Parse, type Parsed, varint } from "./bhttp.js";
import { type Bytes, concat, own, utf8 } from "./bytes.js";
import { aesKey, type ByteReader, type ChunkSource, maxPlaintext, type OpenedChunk } from "./channel/chunk.js";
import { Aead, readPublicKey, sendTo, type Suite } from "./hpke.js";
import { refuse } from "./refusal.js";

/** One of the two forms of messages. */
export interface Form {
  readonly requestType: string;
  readonly responseType: string;
  readonly requestLabel: string;
  readonly responseLabel: string;
  readonly chunked: boolean;
}

/** Messages in one piece (RFC 9458, section 4). */
export const whole: Form = {
  requestType: "message/ohttp-req",
  responseType: "message/ohttp-res",
  requestLabel: "message/bhttp request",
  responseLabel: "message/bhttp response",
  chunked: false,
};

/** Messages in chunks (draft-ietf-ohai-chunked-ohttp). */
export const chunks: Form = {
  requestType: "message/ohttp-chunked-req",
  responseType: "message/ohttp-chunked-res",
  requestLabel: "message/bhttp chunked request",
  responseLabel: "message/bhttp chunked response",
  chunked: true,
};

/** Most plaintext of a message in one piece, and of a chunk that is sent, in bytes. */
export const maxWhole = 256 << 10;
export const maxSent = 16 << 10;

const maxKeys = 4 << 10;
const maxHeadChunks = 64;
const tagSize = 16;
const finalData = utf8("final");
const kdf = 0x0001;

/** The KEMs, with the sizes of their keys in bytes. X25519 is for lists that have no other. */
const kems = [
  { id: 0x647a, factory: KEM_MLKEM768_X25519, keySize: 1216 },
  { id: 0x0020, factory: KEM_DHKEM_X25519_HKDF_SHA256, keySize: 32 },
] as const;

/** A public key for requests: the header that they begin with, and what seals them. */
export interface PublicKey {
  /** Key id, KEM, KDF and AEAD: 7 bytes. */
  header: Bytes;
  suite: Suite;
  key: Key;
  /** Size in bytes of the AEAD's key, and of the response nonce. */
  keySize: 16 | 32;
}

/** Returns the HPKE suite of a header, for both sides. */
export function suiteOf(header: Uint8Array): { suite: Suite; keySize: 16 | 32 } {
  const view = new DataView(header.buffer, header.byteOffset, 7);
  const kem = kems.find((k) => k.id === view.getUint16(1));
  const aead = view.getUint16(5);
  if (!kem || view.getUint16(3) !== kdf || (aead !== Aead.aes128 && aead !== Aead.aes256)) {
    throw refuse("ohttp-key", "one-off: algorithms", "others", "those of a key configuration");
  }
  return { suite: { kem: kem.factory(), aead }, keySize: aead === Aead.aes128 ? 16 : 32 };
}

/**
 * Parses application/ohttp-keys and returns the first key of known algorithms. A list without one is
 * refused as malformed.
 */
export async function parseKeys(bytes: Uint8Array): Promise<PublicKey> {
  if (bytes.length > maxKeys) throw refuse("too-large", "one-off keys: size in bytes", bytes.length, maxKeys);
  let found: PublicKey | undefined;
  for (let rest = bytes; rest.length > 0; ) {
    const size = rest.length < 2 ? Infinity : rest[0]! * 256 + rest[1]!;
    if (rest.length - 2 < size) throw refuse("malformed", "one-off keys: bytes left", rest.length, "the whole length of a key");
    const key = await parseKey(rest.subarray(2, 2 + size));
    found ??= key;
    rest = rest.subarray(2 + size);
  }
  if (!found) throw refuse("malformed", "one-off keys: number of keys of a known kind", 0, "a key of MLKEM768-X25519 or X25519");
  return found;
}

/** Parses one key configuration (RFC 9458, section 3.1); undefined: of unknown algorithms. */
async function parseKey(bytes: Uint8Array): Promise<PublicKey | undefined> {
  if (bytes.length < 3) throw refuse("malformed", "one-off key: size in bytes", bytes.length, "at least 3: id and KEM");
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const kem = kems.find((k) => k.id === view.getUint16(1));
  if (!kem) return undefined;
  const pairsAt = 3 + kem.keySize + 2;
  const pairs = bytes.length - pairsAt;
  if (pairs <= 0 || pairs % 4 !== 0 || pairs !== view.getUint16(pairsAt - 2)) {
    throw refuse("malformed", "one-off key: size in bytes", bytes.length, "that of its KEM and pairs of algorithms");
  }
  for (let at = pairsAt; at < bytes.length; at += 4) {
    const aead = view.getUint16(at + 2);
    if (view.getUint16(at) !== kdf || (aead !== Aead.aes128 && aead !== Aead.aes256)) continue;
    const header = concat(bytes.subarray(0, 3), bytes.subarray(at, at + 4));
    const { suite, keySize } = suiteOf(header);
    try {
      return { header, suite, keySize, key: await readPublicKey(suite, bytes.subarray(3, 3 + kem.keySize)) };
    } catch (e) {
      throw refuse("malformed", "one-off key", e, "a public key", e);
    }
  }
  return undefined;
}

/** Returns the HPKE info, which binds a request to its form and header. */
export function hpkeInfo(form: Form, header: Uint8Array): Bytes {
  return concat(utf8(form.requestLabel), Uint8Array.of(0), header);
}

/** Seals or opens the next chunk. */
export type Crypt = (additionalData: Uint8Array, bytes: Uint8Array) => Promise<Uint8Array>;

/** Exports a secret of an HPKE context. */
export type Export = (label: Uint8Array, size: number) => Promise<Uint8Array>;

/** A request that begins: its first bytes, and what seals the rest. */
export interface Encapsulated {
  /** Header and encapsulated secret. */
  prefix: Bytes;
  enc: Bytes;
  seal: Crypt;
  export: Export;
}

/** Encapsulates a secret for a public key. */
export async function encapsulate(form: Form, to: PublicKey): Promise<Encapsulated> {
  const { enc, context } = await sendTo(to.suite, to.key, hpkeInfo(form, to.header));
  return { prefix: concat(to.header, enc), enc, seal: await crypt(context, "seal"), export: context.export };
}

/** Derives what opens (or seals) the chunks of one response from its nonce and its request. */
export async function responseCrypt(
  form: Form,
  of: { export: Export; enc: Uint8Array; keySize: number },
  nonce: Uint8Array,
  use: "open" | "seal" = "open",
): Promise<Crypt> {
  const secret = await of.export(utf8(form.responseLabel), of.keySize);
  const base = await crypto.subtle.importKey("raw", own(secret), "HKDF", false, ["deriveBits"]);
  const derive = async (info: string, size: number) => {
    const parameters = { name: "HKDF", hash: "SHA-256", salt: concat(of.enc, nonce), info: utf8(info) };
    return new Uint8Array(await crypto.subtle.deriveBits(parameters, base, 8 * size));
  };
  return crypt({ key: await derive("key", of.keySize), nonce: await derive("nonce", 12) }, use);
}

/** Returns what seals or opens messages one after the other: the number of each is added to the nonce by XOR. */
async function crypt(with_: { key: Uint8Array; nonce: Bytes }, use: "open" | "seal"): Promise<Crypt> {
  const key = await aesKey(with_.key);
  const start = new DataView(with_.nonce.buffer, with_.nonce.byteOffset, 12);
  let count = 0n;
  return async (additionalData, bytes) => {
    const iv = with_.nonce.slice();
    new DataView(iv.buffer).setBigUint64(4, start.getBigUint64(4) ^ count++);
    const parameters = { name: "AES-GCM", iv, additionalData: own(additionalData) };
    const method = use === "open" ? crypto.subtle.decrypt : crypto.subtle.encrypt;
    return new Uint8Array(await method.call(crypto.subtle, parameters, key, own(bytes)));
  };
}

const none = new Uint8Array(0);

/** Seals a message in one piece, of at most 256 KiB. */
export async function sealWhole(form: Form, seal: Crypt, plaintext: Uint8Array): Promise<Bytes> {
  if (!form.chunked) {
    if (plaintext.length > maxWhole) throw refuse("too-large", "one-off: size in bytes", plaintext.length, maxWhole);
    return own(await seal(none, plaintext));
  }
  return sealFinal(seal, plaintext);
}

/** Seals plaintext in chunks that every receiver accepts. */
export async function sealChunks(seal: Crypt, plaintext: Uint8Array): Promise<Bytes> {
  const parts: Uint8Array[] = [];
  for (let at = 0; at < plaintext.length; at += maxSent) {
    const sealed = await seal(none, plaintext.subarray(at, at + maxSent));
    parts.push(varint(sealed.length), sealed);
  }
  return concat(...parts);
}

/** Seals the last plaintext of a message in chunks. The length of the final chunk is 0: it extends to the end. */
export async function sealFinal(seal: Crypt, plaintext: Uint8Array): Promise<Bytes> {
  const end = plaintext.length === 0 ? 0 : (Math.ceil(plaintext.length / maxSent) - 1) * maxSent;
  const before = await sealChunks(seal, plaintext.subarray(0, end));
  return concat(before, Uint8Array.of(0), await seal(finalData, plaintext.subarray(end)));
}

/**
 * Opens the chunks of one message; one in one piece is a final chunk. It refuses with "truncated" an
 * end before the final chunk, with "signature" a chunk that does not open, and with "too-large" one
 * above its limit.
 */
export class MessageReader implements ChunkSource {
  private final = false;

  constructor(
    private readonly form: Form,
    private readonly source: ByteReader,
    private readonly open: Crypt,
  ) {}

  async next(): Promise<OpenedChunk | undefined> {
    if (this.final) return undefined;
    const length = this.form.chunked ? await this.length() : 0;
    const final = length === 0;
    if (!final && (length < tagSize || length > maxPlaintext + tagSize)) {
      throw refuse("too-large", "one-off: size of a chunk in bytes", length, "16 to 65552");
    }
    const limit = this.form.chunked ? maxPlaintext : maxWhole;
    const sealed = final ? await this.source.rest(limit + tagSize) : await this.source.exactly(length);
    let plaintext: Uint8Array;
    try {
      plaintext = await this.open(this.form.chunked && final ? finalData : none, sealed);
    } catch {
      throw refuse("signature", "one-off: chunk", `${sealed.length} bytes that do not decrypt`, "a chunk as the peer sent it");
    }
    this.final = final;
    return { plaintext, final };
  }

  /** Reads the length of a chunk. Any encoding is accepted: nothing authenticates it. */
  private async length(): Promise<number> {
    const first = (await this.source.exactly(1))[0]!;
    let value = first & 0x3f;
    for (const b of await this.source.exactly((1 << (first >> 6)) - 1)) value = value * 256 + b;
    return value;
  }

  /** Reads the head of a message, which may extend over the first chunks. */
  async head<Head>(parse: Parse<Head>): Promise<Parsed<Head> & { final: boolean }> {
    let bytes: Uint8Array = none;
    for (let count = 0; count < maxHeadChunks; count++) {
      const chunk = await this.next();
      bytes = concat(bytes, chunk!.plaintext);
      const parsed = parse(bytes, chunk!.final);
      if (parsed) return { ...parsed, final: chunk!.final };
      if (bytes.length > maxPlaintext) break;
    }
    throw refuse("too-large", "one-off: size of the head in bytes", `more than ${bytes.length}`, `${maxHeadChunks} chunks and ${maxPlaintext} bytes`);
  }
}
