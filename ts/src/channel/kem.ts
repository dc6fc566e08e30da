/**
 * HPKE (RFC 9180) as sessions use it: MLKEM768-X25519, HKDF-SHA256, export only, base mode. A session
 * uses the exported secret alone.
 */

import { KEM_MLKEM768_X25519 } from "@panva/hpke-noble";
import type { KeyPair } from "hpke";
import { type Bytes, own, utf8 } from "../bytes.js";
import { frame } from "../frame.js";
import { Aead, readPublicKey, receive, sendTo, type Suite } from "../hpke.js";
import { refuse } from "../refusal.js";

/** The only suite (one byte): MLKEM768-X25519, HKDF-SHA256, AES-256-GCM, ECDSA on P-256 with SHA-256. */
export const suite = Uint8Array.of(1);

/** Sizes in bytes of a KEM key and of a KEM ciphertext. */
export const kemKeySize = 1216;
export const encapsulatedSize = 1120;

const label = "cohort session kem v1";
const info = frame(label, suite);

function hpke(): Suite {
  return { kem: KEM_MLKEM768_X25519(), aead: Aead.exportOnly };
}

/** A key pair for one open request, with the bytes of its public key. */
export interface KemKeys {
  pair: KeyPair;
  publicBytes: Bytes;
}

/** Makes a key pair: random, or derived from 32 bytes for vectors. */
export async function makeKemKeys(seed?: Uint8Array): Promise<KemKeys> {
  const { kem } = hpke();
  const pair = (seed ? await kem.DeriveKeyPair(seed, false) : await kem.GenerateKeyPair(false)) as KeyPair;
  return { pair, publicBytes: own(await kem.SerializePublicKey(pair.publicKey)) };
}

/** Returns the secret, 32 bytes, in a KEM ciphertext. One that does not open is refused as malformed. */
export async function decapsulate(keys: KemKeys, ciphertext: Uint8Array): Promise<Bytes> {
  try {
    return await (await receive(hpke(), keys.pair, ciphertext, info)).export(utf8(label), 32);
  } catch (e) {
    throw refuse("malformed", "session response: KEM ciphertext", e, "a ciphertext for this client", e);
  }
}

/** Makes a secret, 32 bytes, and its ciphertext for the key of a client: the unit's side. */
export async function encapsulate(publicBytes: Uint8Array): Promise<{ enc: Bytes; secret: Bytes }> {
  const { enc, context } = await sendTo(hpke(), await readPublicKey(hpke(), publicBytes), info);
  return { enc, secret: await context.export(utf8(label), 32) };
}
