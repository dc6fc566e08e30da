/**
 * The appraiser of the soft platform, the TEE for development (docs/spec/evidence.md, section 4).
 * It trusts the daemons whose keys policy names, needs no endorsements, and time decides nothing.
 */

import { digestText, fromHex, hex, own, sha256 } from "../bytes.js";
import { unframe } from "../frame.js";
import { refuse } from "../refusal.js";
import type { Appraiser, Claims } from "./evidence.js";
import type { Rules } from "./rules.js";

/** The bytes of a P-256 SubjectPublicKeyInfo before the coordinates. */
const spkiPrefix = fromHex("3059301306072a8648ce3d020106082a8648ce3d03010703420004");
/** Half the order of P-256: of the signatures (r, s) and (r, n-s) only the one with the smaller s counts. */
const halfOrder = 0x7fffffff800000007fffffffffffffffde737d56d38bcf4279dce5617e3192a8n;
const flagDebug = 1, flagDynamic = 2;

/** The appraiser of platform `soft`. */
export const soft: Appraiser = { platform: "soft", appraise };

async function appraise(raw: Uint8Array, _endorsed: unknown, rules: Rules): Promise<Claims> {
  const { key, signature, claims } = await parseSoft(raw);
  const root = digestText(claims.root);
  if (!rules.roots?.includes(root)) throw refuse("unknown-root", "soft evidence: root", root, "a root that policy names");
  const signed = raw.subarray(0, raw.length - 4 - signature.length);
  const low = BigInt("0x" + hex(signature.subarray(32))) <= halfOrder;
  if (!low || !(await crypto.subtle.verify({ name: "ECDSA", hash: "SHA-256" }, key, own(signature), own(signed)))) {
    throw refuse("signature", "soft evidence: signature", "a signature that does not verify", "the daemon's");
  }
  if (rules.cutChips?.includes(claims.chip)) throw refuse("platform", "soft evidence: chip", claims.chip, "one that policy accepts");
  return claims;
}

/** Parses the one encoding of evidence. Another is refused as malformed. Nothing in the claims is verified. */
export async function parseSoft(raw: Uint8Array): Promise<{ key: CryptoKey; signature: Uint8Array; claims: Claims & { root: Uint8Array } }> {
  const [spki, agent, program, args, flags, reportData, signature] = unframe("cohort soft evidence v1", raw, 7).map((field) => field.slice()) as Seven;
  if (spki.length !== spkiPrefix.length + 64 || !spkiPrefix.every((b, i) => spki[i] === b)) throw badKey(spki);
  // A point that is not on the curve is refused here.
  const key = await crypto.subtle.importKey("spki", spki, { name: "ECDSA", namedCurve: "P-256" }, false, ["verify"]).catch(() => {
    throw badKey(spki);
  });
  if (agent.length > 0) checkDigest("agent", agent);
  checkDigest("program", program);
  checkDigest("args", args);
  if (flags.length !== 1 || flags[0]! & ~(flagDebug | flagDynamic)) throw refuse("malformed", "soft evidence: flags", hex(flags), "one byte of known flags");
  if (reportData.length !== 64) throw refuse("malformed", "soft evidence: report data length", reportData.length, 64);
  if (signature.length !== 64) throw refuse("malformed", "soft evidence: signature length", signature.length, 64);
  const root = await sha256(spki);
  const registers = [{ name: "agent", value: agent }, { name: "program", value: program }, { name: "args", value: args }];
  const claims = {
    measurement: { platform: "soft", registers },
    reportData, root,
    debug: (flags[0]! & flagDebug) !== 0,
    dynamic: (flags[0]! & flagDynamic) !== 0,
    chip: hex(root.subarray(0, 8)),
    notVerified: [],
    details: {},
  };
  return { key, signature, claims };
}

type Field = Uint8Array<ArrayBuffer>;
type Seven = [Field, Field, Field, Field, Field, Field, Field];

function badKey(spki: Uint8Array): Error {
  return refuse("malformed", "soft evidence: key", `${spki.length} bytes`, "a P-256 SubjectPublicKeyInfo");
}

function checkDigest(name: string, digest: Uint8Array): void {
  if (digest.length !== 32 || digest.every((b) => b === 0)) throw refuse("malformed", `soft evidence: ${name}`, hex(digest.subarray(0, 40)), "a SHA-256 digest");
}
