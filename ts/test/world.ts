/** The trust domains of identity/testdata/vectors, with the keys of their authority. */

import { fromHex, parseDigest, digestText, sha256, utf8 } from "../src/bytes.js";
import { History, type Step } from "../src/history.js";
import type { Policy } from "../src/policy/policy.js";
import { type Certificate, parseCertificate } from "../src/x509.js";
import { derivedKey, type SigningKey, type SshSigner, sshSign, testSigner } from "./forge.js";
import { vector } from "./vectors.js";

/** The time of the vectors. */
export const noon = Date.parse("2026-11-22T12:00:00Z");

/** identity.json, as far as tests read it. */
interface IdentityVector {
  root_secret: string;
  policy: string;
  cut: string;
  genesis: string;
  identity_ids: Record<string, string>;
  extensions: Record<string, string>;
  certificates: Record<string, string>;
  certificate_sha256: Record<string, string>;
}

/** group.json, as far as tests read it. */
interface GroupVector {
  root_secret: string;
  group_secret: string;
  steps: string[];
  group_identity: string;
  group_root: string;
  extensions: Record<string, string>;
  certificates: Record<string, string>;
}

export const identityVector = vector<IdentityVector>("identity/testdata/vectors/identity.json");
export const groupVector = vector<GroupVector>("identity/testdata/vectors/group.json");

/** The owner of the policies, and the parties of the groups. */
export const owner = testSigner("identity test owner");
export const parties: ReadonlyMap<string, SshSigner> = new Map(["north", "south"].map((name) => [name, testSigner("identity test party " + name)]));

/** Signs a policy or a party's statement as a step. */
export function signStep(text: string): Step {
  const policy = utf8(text);
  const verb = /^schema = "cohort\/(approve|withdraw)\/v1"/.exec(text)?.[1];
  if (!verb) return { policy, signatures: [sshSign(owner, "cohort-policy", policy)] };
  const party = /^party = "(.*)"$/m.exec(text)![1]!;
  return { policy, signatures: [sshSign(parties.get(party)!, "cohort-" + verb, policy)] };
}

/** Returns the history of policies and statements. */
export async function historyOf(...texts: string[]): Promise<History> {
  const genesis = digestText(await sha256(utf8(texts[0]!)));
  return History.begin(genesis).extend(texts.map(signStep));
}

/** Returns the policy that follows another: the same, after edits. */
export function nextText(policy: Policy, text: string, ...edits: [string, string][]): string {
  let next = text.replace(/^sequence .*$/m, `sequence = ${policy.sequence + 1}`).replace(/^previous .*$/m, `previous = "${policy.digest}"`);
  for (const [from, to] of edits) {
    if (!next.includes(from)) throw new Error(`the policy does not contain ${from}`);
    next = next.replace(from, to);
  }
  return next;
}

/** Returns a certificate of identity.json or group.json. */
export function certificateOf(name: string, of: { certificates: Record<string, string> } = identityVector): Certificate {
  const hex = of.certificates[name];
  if (!hex) throw new Error(`no certificate ${name}`);
  return parseCertificate(fromHex(hex));
}

const secret = fromHex(identityVector.root_secret);

/** Keys of the authority of identity.json. */
export const keys = {
  root: (): Promise<SigningKey> => derivedKey(secret, "cohort authority root v1"),
  identity: (id: string): Promise<SigningKey> => derivedKey(secret, "cohort identity ca v1", fromHex(id)),
  authority: (): Promise<SigningKey> => derivedKey(secret, "cohort authority leaf v1", fromHex(windowOf(noon))),
  groupRoot: (): Promise<SigningKey> => derivedKey(fromHex(groupVector.group_secret), "cohort group root key v1", parseDigest(groupVector.group_identity)),
};

/** The window of an hour that contains a time, 8 bytes in hexadecimal. */
function windowOf(at: number): string {
  return Math.floor((3 * at) / (2 * 3_600_000)).toString(16).padStart(16, "0");
}
