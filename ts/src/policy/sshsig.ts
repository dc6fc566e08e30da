/** SSH signatures (docs/spec/policy.md, section 3; PROTOCOL.sshsig of OpenSSH). */

import { refuse } from "../refusal.js";
import type { Digest } from "./document.js";

/** What a signature is for. */
export type Namespace = "cohort-policy" | "cohort-cancel" | "cohort-approve" | "cohort-withdraw" | "cohort-backup";

/** A public key that owners and parties may have. */
export interface SshKey {
  /** Such as `ssh-ed25519`. */
  type: string;
  /** Its wire form. Two keys are equal when these bytes are. */
  blob: Uint8Array;
  /** The point: 32 bytes for Ed25519, else uncompressed. */
  point: Uint8Array;
}

/** Returns the SHA-256 of a key's wire form: its fingerprint as `ssh-keygen -l` prints it, as a digest. */
export async function keyDigest(_key: SshKey): Promise<Digest> {
  throw refuse("internal", "not built", "", "");
}

/** Reads the line of a .pub file: type, base64, and an optional comment. */
export function parseKeyLine(_line: string): SshKey {
  throw refuse("internal", "not built", "", "");
}

/** Verifies an armored signature over a message and returns the key that made it. It does not show whose key it is. */
export async function verifySshSignature(_armored: string, _namespace: Namespace, _message: Uint8Array): Promise<SshKey> {
  throw refuse("internal", "not built", "", "");
}
