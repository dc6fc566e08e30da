/**
 * The key schedule of HPKE (RFC 9180, section 5.1) in base mode with HKDF-SHA256, over the KEMs and
 * the labelled KDF of the libraries. Their class of whole suites is not used: a bundler cannot leave out
 * its other modes and contexts, which are 2.6 KB of each page.
 */

import { KDF_HKDF_SHA256, type KEM, type Key, type KeyPair, LabeledExpand, LabeledExtract } from "hpke";
import { type Bytes, concat, own, utf8 } from "./bytes.js";

/** AEADs by their ids. One for the export of secrets alone has no key. */
export const Aead = { aes128: 1, aes256: 2, exportOnly: 0xffff } as const;

/** A KEM and the id of an AEAD. */
export interface Suite {
  kem: Readonly<KEM>;
  aead: number;
}

/** What both sides have of one encapsulation. */
export interface Context {
  /** Of the AEAD: its key and its first nonce; empty where there is none. */
  key: Bytes;
  nonce: Bytes;
  /** Exports a secret of at most 8,160 bytes. */
  export(label: Uint8Array, size: number): Promise<Bytes>;
}

const none = new Uint8Array(0);

/** Sizes of AEAD keys in bytes. Their nonces have 12. */
const keySizes: ReadonlyMap<number, number> = new Map([[Aead.aes128, 16], [Aead.aes256, 32]]);

function u16(value: number): Uint8Array {
  return Uint8Array.of(value >> 8, value);
}

/** Reads a public key of exactly the size of the KEM. */
export async function readPublicKey({ kem }: Suite, bytes: Uint8Array): Promise<Key> {
  if (bytes.length !== kem.Npk) throw new RangeError(`a public key of ${bytes.length} bytes, not ${kem.Npk}`);
  return kem.DeserializePublicKey(own(bytes));
}

/** Encapsulates a secret for a public key. */
export async function sendTo(suite: Suite, key: Key, info: Uint8Array): Promise<{ enc: Bytes; context: Context }> {
  const { shared_secret, enc } = await suite.kem.Encap(key);
  return { enc: own(enc), context: await schedule(suite, shared_secret, info) };
}

/** Opens an encapsulated secret with a private key. */
export async function receive(suite: Suite, pair: KeyPair, enc: Uint8Array, info: Uint8Array): Promise<Context> {
  if (enc.length !== suite.kem.Nenc) throw new RangeError(`an encapsulated secret of ${enc.length} bytes, not ${suite.kem.Nenc}`);
  return schedule(suite, await suite.kem.Decap(own(enc), pair.privateKey, pair.publicKey), info);
}

/** Derives key, nonce and exported secrets from a shared secret, as RFC 9180 does without a PSK. */
async function schedule({ kem, aead }: Suite, shared: Uint8Array, info: Uint8Array): Promise<Context> {
  const kdf = KDF_HKDF_SHA256();
  const id = concat(utf8("HPKE"), u16(kem.id), u16(kdf.id), u16(aead));
  const extract = (salt: Uint8Array, label: string, ikm: Uint8Array) => LabeledExtract(kdf, id, salt, utf8(label), ikm);
  const mode = Uint8Array.of(0);
  const context = concat(mode, await extract(none, "psk_id_hash", none), await extract(none, "info_hash", info));
  const secret = await extract(shared, "secret", none);
  const expand = async (label: string, size: number) => own(await LabeledExpand(kdf, id, secret, utf8(label), context, size));
  const keySize = keySizes.get(aead) ?? 0;
  const exporter = await expand("exp", kdf.Nh);
  return {
    key: keySize ? await expand("key", keySize) : none,
    nonce: keySize ? await expand("base_nonce", 12) : none,
    export: async (label, size) => own(await LabeledExpand(kdf, id, exporter, utf8("sec"), label, size)),
  };
}
