/** Owners and parties with keys that are the same in every run, and policies that they sign. */

import { createHash, createPrivateKey, createPublicKey, sign, type KeyObject } from "node:crypto";
import { History, type Step } from "../src/history.js";
import type { Digest } from "../src/policy/policy.js";

/** A time shortly after the creation of the policies. */
export const start = Date.parse("2026-11-22T09:00:00Z");

const sha256 = (b: string | Uint8Array) => createHash("sha256").update(b).digest();

/** Returns the digest whose text is one digit 64 times. */
export const digestOf = (digit: string): Digest => "sha256:" + digit.repeat(64);

function keyOf(name: string): KeyObject {
  const prefix = Buffer.from("302e020100300506032b657004220420", "hex");
  return createPrivateKey({ key: Buffer.concat([prefix, sha256(`test owner ${name}`)]), format: "der", type: "pkcs8" });
}

const string = (b: string | Uint8Array) => {
  const body = Buffer.from(b as Uint8Array);
  const size = Buffer.alloc(4);
  size.writeUInt32BE(body.length);
  return Buffer.concat([size, body]);
};

function blobOf(name: string): Buffer {
  const spki = createPublicKey(keyOf(name)).export({ format: "der", type: "spki" });
  return Buffer.concat([string("ssh-ed25519"), string(spki.subarray(spki.length - 32))]);
}

/** Returns the line of a .pub file. */
export const keyLine = (name: string) => `ssh-ed25519 ${blobOf(name).toString("base64")}`;

/** Returns the digest of a key. */
export const keyDigestOf = (name: string): Digest => "sha256:" + sha256(blobOf(name)).toString("hex");

/** Makes an armored SSH signature. */
export function signed(name: string, namespace: string, message: Uint8Array): string {
  const fields = [string(namespace), string(""), string("sha512")];
  const covered = Buffer.concat([Buffer.from("SSHSIG"), ...fields, string(createHash("sha512").update(message).digest())]);
  const value = Buffer.concat([string("ssh-ed25519"), string(sign(null, covered, keyOf(name)))]);
  const blob = Buffer.concat([Buffer.from("SSHSIG\0\0\0\x01"), string(blobOf(name)), ...fields, string(value)]);
  return `-----BEGIN SSH SIGNATURE-----\n${blob.toString("base64").replace(/.{1,70}/g, "$&\n")}-----END SSH SIGNATURE-----\n`;
}

/** A policy with three owners, two tasks and a group. Tests change it. */
export const grouped = `schema = "cohort/policy/v1"
trust_domain = "clinic.example"
sequence = 1
previous = ""
created = 2026-11-22T09:00:00Z
development = true

[owners]
quorum = 2
approve_within = "168h"
delay = "1h"
keys = [ { name = "ana", ssh = "${keyLine("ana")}" }, { name = "ben", ssh = "${keyLine("ben")}" }, { name = "eva", ssh = "${keyLine("eva")}" } ]

[platform.soft]
roots = ["${digestOf("1")}"]
debug = true

[authority]
root = "${digestOf("3")}"
machines = ["chip:0123456789abcdef"]
reference = [ { platform = "soft", program = "${digestOf("2")}" } ]

[task.keys]
key_mode = "unit"
names = ["keys.clinic.example"]
[task.keys.release."1.4"]
reference = [ { platform = "soft", program = "${digestOf("4")}", any = ["agent", "args"] } ]

[task.scoring]
key_mode = "shared"
calls = ["keys"]
[task.scoring.release."1"]
reference = [ { platform = "soft", program = "${digestOf("5")}" } ]
[task.scoring.release."2"]
reference = [ { platform = "soft", program = "${digestOf("6")}", args = ["--model", "m.json"] } ]
continues = "1"
dynamic = true

[group.trial]
key_mode = "shared"
quorum = 2
until = 2026-12-20T00:00:00Z
names = ["trial.clinic.example"]
authority = { machines = ["chip:0123456789abcdef"], platform = { soft = { roots = ["${digestOf("1")}"] } }, reference = [ { platform = "soft", program = "${digestOf("2")}" } ] }
party = [ { name = "east", ssh = "${keyLine("east")}" }, { name = "north", ssh = "${keyLine("north")}" }, { name = "south", ssh = "${keyLine("south")}" } ]
[group.trial.role]
holder = { members = [ { party = "north", task = "keys", release = "1.4" } ] }
scorer = { members = [ { party = "east", task = "scoring", release = "1" }, { party = "south", task = "scoring", release = "2" } ], calls = ["holder"] }
`;

/** Returns a text after edits, each of which must be found. */
export function edited(source: string, edits: readonly (readonly [string, string])[]): string {
  for (const [old, next] of edits) {
    if (!source.includes(old)) throw new Error(`the text has no ${old}`);
    source = source.replaceAll(old, next);
  }
  return source;
}

/** Returns a step: a policy that owners sign. */
export function policyStep(source: string, ...owners: string[]): Step {
  const policy = new TextEncoder().encode(source);
  return { policy, signatures: (owners.length === 0 ? ["ana", "ben"] : owners).map((name) => signed(name, "cohort-policy", policy)) };
}

/** Begins a history with a policy. */
export async function found(source: string = grouped, ...owners: string[]): Promise<History> {
  const step = policyStep(source, ...owners);
  return History.begin("sha256:" + sha256(step.policy).toString("hex")).extend([step]);
}

/** Returns the next policy of a history, after edits of its newest. */
export function nextPolicy(history: History, edits: readonly (readonly [string, string])[] = []): string {
  const last = history.steps.map((s) => new TextDecoder().decode(s.policy)).filter((s) => !s.startsWith('schema = "cohort/approve') && !s.startsWith('schema = "cohort/withdraw')).at(-1)!;
  const { sequence, previous, digest } = history.policy;
  const place: [string, string][] = [[`sequence = ${sequence}\n`, `sequence = ${sequence + 1}\n`], [sequence === 1 ? 'previous = ""' : `previous = "${previous}"`, `previous = "${digest}"`]];
  return edited(edited(last, place), edits);
}

/** Appends the next policy, after edits. */
export async function adopt(history: History, ...edits: (readonly [string, string])[]): Promise<History> {
  return history.extend([policyStep(nextPolicy(history, edits), ...["ana", "ben"].slice(0, history.policy.owners.quorum))]);
}

/** What a statement says. */
export interface Saying {
  withdraws?: boolean;
  group?: Digest;
  root?: Digest;
  number?: number | bigint;
  notAfter?: string;
  party?: string;
}

/** The group root that parties approve. */
export const groupRoot = digestOf("a");

/** Returns a statement of a party about the group of a history. */
export function statement(history: History, party: string, saying: Saying = {}): string {
  const state = history.policy.groupStates.get("trial")!;
  const key = keyDigestOf(party);
  const number = saying.number ?? (state.newest.get(key)?.number ?? 0n) + 1n;
  return `schema = "cohort/${saying.withdraws ? "withdraw" : "approve"}/v1"
trust_domain = "clinic.example"
genesis = "${history.genesis}"
group = "${saying.group ?? state.id}"
group_root = "${saying.root ?? groupRoot}"
party = "${saying.party ?? party}"
key = "${key}"
number = ${number}
not_after = ${saying.notAfter ?? "2026-12-20T00:00:00Z"}
`;
}

/** Returns a step: a statement that its party signs. */
export function statementStep(source: string, signer: string, namespace?: string): Step {
  const policy = new TextEncoder().encode(source);
  return { policy, signatures: [signed(signer, namespace ?? (source.includes("withdraw/v1") ? "cohort-withdraw" : "cohort-approve"), policy)] };
}

/** Appends statements of parties. */
export async function heard(history: History, ...parties: (string | [string, Saying])[]): Promise<History> {
  for (const entry of parties) {
    const [party, saying] = typeof entry === "string" ? [entry, {}] : entry;
    history = await history.extend([statementStep(statement(history, party, saying), party)]);
  }
  return history;
}
