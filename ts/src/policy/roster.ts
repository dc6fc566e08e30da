/**
 * Rosters and statements of parties: the texts of groups and their one encoding (docs/spec/group.md).
 * Nothing here shows that a party approves; group.ts does.
 */

import { type Bytes, digestText, equal, hex, sha256, text, u64, utf8 } from "../bytes.js";
import { frame, unframe } from "../frame.js";
import { refuse } from "../refusal.js";
import { type Digest, digestBytes, isDigest, zeroDigest } from "./digest.js";
import { compareMembers, confusable, isName, isReleaseName, isTrustDomain, type KeyMode, type Member, parseAuthorityLine } from "./document.js";
import { isStatement, withdrawLine } from "./group.js";
import { keyDigest, type Namespace, verifySshSignature } from "./sshsig.js";

/** A party of a roster and the SHA-256 of its SSH key. */
export interface RosterParty {
  name: string;
  key: Digest;
}

/** A member of a role, and the identity of its release. */
export interface RosterMember extends Member {
  identity: Digest;
}

/** A role of a roster. */
export interface RosterRole {
  name: string;
  calls: readonly string[];
  members: readonly RosterMember[];
}

/** Everything that the parties of a group approve. Its SHA-256 is the group's identity. */
export interface Roster {
  trustDomain: string;
  /** Digest of the authority root's SubjectPublicKeyInfo. */
  root: Digest;
  genesis: Digest;
  group: string;
  quorum: number;
  keyMode: KeyMode;
  /** Milliseconds since 1970, whole seconds. */
  until: number;
  /** The policy's demands on the members when the group was created, as one line of TOML. */
  floors: string;
  /** The authorities that may have the group's root, as one line of TOML. */
  authority: string;
  parties: readonly RosterParty[];
  roles: readonly RosterRole[];
}

/** Returns the one encoding of a roster. */
export function encodeRoster(r: Roster): Bytes {
  return frame(
    "cohort group v1",
    utf8(r.trustDomain), digestBytes(r.root), digestBytes(r.genesis), utf8(r.group), u64(r.quorum),
    utf8(r.keyMode), u64(r.until / 1000), utf8(r.floors), utf8(r.authority),
    ...r.parties.map((p) => frame("cohort group party v1", utf8(p.name), digestBytes(p.key))),
    ...r.roles.map((role) =>
      frame(
        "cohort group role v1", utf8(role.name), utf8(role.calls.join(" ")),
        ...role.members.map((m) => utf8(`${m.party} ${m.task} ${m.release} ${m.identity.slice(7)}`)),
      ),
    ),
  );
}

/** Returns the group's identity. */
export async function rosterId(r: Roster): Promise<Digest> {
  return digestText(await sha256(encodeRoster(r)));
}

/** The number of fields before parties and roles. */
const fixedFields = 9;

/**
 * Parses a roster of at most 256 KiB. Every encoding but one, and a roster that no policy could have,
 * is refused as `malformed`. A parsed roster is not an approved one.
 */
export async function parseRoster(bytes: Uint8Array): Promise<Roster> {
  if (bytes.length > 256 << 10) throw refuse("too-large", "roster: size in bytes", bytes.length, 256 << 10);
  const fields = unframe("cohort group v1", bytes);
  if (fields.length < fixedFields) throw badRoster("number of fields", fields.length, fixedFields);
  const [trustDomain, root, genesis, group, quorum, keyMode, until, floors, authority, ...rest] = fields as [Uint8Array, Uint8Array, Uint8Array, Uint8Array, Uint8Array, Uint8Array, Uint8Array, Uint8Array, Uint8Array];
  const isRole = (field: Uint8Array) => equal(field.subarray(0, roleHead.length), roleHead);
  const firstRole = [...rest, roleHead].findIndex(isRole);
  const r: Roster = {
    trustDomain: text(trustDomain), root: digest(root), genesis: digest(genesis), group: text(group), quorum: small(quorum),
    keyMode: text(keyMode) as KeyMode, until: small(until) * 1000, floors: text(floors), authority: text(authority),
    parties: rest.slice(0, firstRole).map(parseParty), roles: rest.slice(firstRole).map(parseRole),
  };
  await checkRoster(r);
  return r;
}

const roleHead = frame("cohort group role v1");

function badRoster(rule: string, got: unknown, want: unknown) {
  return refuse("malformed", `roster: ${rule}`, got, want);
}

function digest(field: Uint8Array): Digest {
  const value = `sha256:${hex(field)}`;
  if (!isDigest(value)) throw badRoster("digest", value, "32 bytes, not all zero");
  return value;
}

/** Reads a number of eight bytes below 2^38, which is more seconds than any time of a policy. */
function small(field: Uint8Array): number {
  const value = field.length === 8 ? Number(`0x${hex(field)}`) : Infinity;
  if (value >= 2 ** 38) throw badRoster("number", hex(field), "8 bytes, below 2^38");
  return value;
}

function parseParty(field: Uint8Array): RosterParty {
  const [name, key] = unframe("cohort group party v1", field, 2) as [Uint8Array, Uint8Array];
  return { name: text(name), key: digest(key) };
}

function parseRole(field: Uint8Array): RosterRole {
  const [name, calls, ...members] = unframe("cohort group role v1", field);
  if (name === undefined || calls === undefined) throw badRoster("role: fields", 0, "at least 2");
  return {
    name: text(name),
    calls: calls.length === 0 ? [] : text(calls).split(" "),
    members: members.map((m) => {
      const words = text(m).split(" ");
      const [party = "", task = "", release = "", identity = ""] = words;
      if (words.length !== 4 || !isDigest(`sha256:${identity}`)) throw badRoster("member", text(m), "party, task, release and identity");
      return { party, task, release, identity: `sha256:${identity}` };
    }),
  };
}

/** Checks a roster by the rules of policy files. */
async function checkRoster(r: Roster): Promise<void> {
  const parties = r.parties.map((p) => p.name), roles = r.roles.map((role) => role.name);
  if (!isTrustDomain(r.trustDomain) || !isName(r.group)) throw badRoster("place", `${r.trustDomain} ${r.group}`, "a group of a trust domain");
  if (r.keyMode !== "shared" && r.keyMode !== "unit") throw badRoster("key mode", r.keyMode, "shared or unit");
  if (r.quorum < 1 || r.quorum > parties.length) throw badRoster("quorum", r.quorum, "1 to the number of parties");
  if (new Set(r.parties.map((p) => p.key)).size < parties.length) throw badRoster("keys", "a key twice", "one for each party");
  if (!areOrderedNames(parties) || !areOrderedNames(roles) || roles.length === 0) {
    throw badRoster("parties and roles", [...parties, ...roles].join(" "), "names in order, each once, none confusable");
  }
  for (const role of r.roles) {
    if (role.members.length === 0) throw badRoster(`role ${role.name}`, "a role without members", "at least 1 member");
    role.members.forEach((m, i) => {
      const named = parties.includes(m.party) && isName(m.task) && isReleaseName(m.release);
      if (!named || (i > 0 && compareMembers(role.members[i - 1]!, m) >= 0)) throw badRoster(`member of role ${role.name}`, `${m.party} ${m.task} ${m.release}`, "known parties, in order, each once");
    });
    const bad = role.calls.find((call, i) => !roles.includes(call) || (i > 0 && role.calls[i - 1]! >= call));
    if (bad !== undefined) throw badRoster(`call of role ${role.name}`, bad, "known roles, in order, each once");
  }
  try {
    await parseAuthorityLine(r.authority);
  } catch (e) {
    throw refuse("malformed", "roster: authority", e, "one line of TOML, as docs/spec/group.md has it", undefined);
  }
}

function areOrderedNames(names: readonly string[]): boolean {
  return names.every((name, i) => isName(name) && (i === 0 || names[i - 1]! < name)) && !confusable(names);
}

/** A statement of a party about a group: it approves the group under one root until a time, or withdraws. */
export interface Statement {
  withdraws: boolean;
  trustDomain: string;
  genesis: Digest;
  /** The group's identity. */
  group: Digest;
  /** SHA-256 of the group root's SubjectPublicKeyInfo. */
  groupRoot: Digest;
  party: string;
  /** Digest of the SSH key that signs it. */
  key: Digest;
  /** From 1 to 2^63 - 1. */
  number: bigint;
  /** Milliseconds since 1970, whole seconds. */
  notAfter: number;
}

/** The most bytes of a statement. */
const maxStatement = 4096;

const digestPattern = '"(sha256:[0-9a-f]{64})"';
const statementPattern = new RegExp(
  "^" + ['trust_domain = "([^"\\\\\n]*)"', `genesis = ${digestPattern}`, `group = ${digestPattern}`, `group_root = ${digestPattern}`, 'party = "([a-z0-9-]{1,63})"', `key = ${digestPattern}`, "number = ([1-9]\\d{0,18})", "not_after = (\\d{4}-\\d\\d-\\d\\dT\\d\\d:\\d\\d:\\d\\dZ)"].join("\n") + "\n$",
);

/** Parses a statement of nine lines and at most 4 KiB. Every other text is refused as `malformed`. It verifies no signature. */
export function parseStatement(bytes: Uint8Array): Statement {
  const malformed = () => refuse("malformed", "statement", `a text of ${bytes.length} bytes`, "the output of `cohort group approve` or `withdraw`");
  if (bytes.length > maxStatement || !isStatement(bytes)) throw malformed();
  const source = text(bytes);
  const parts = statementPattern.exec(source.slice(source.indexOf("\n") + 1));
  if (parts === null) throw malformed();
  const [, trustDomain, genesis, group, groupRoot, party, key, digits, end] = parts as unknown as [string, string, string, string, string, string, string, string, string];
  const number = BigInt(digits);
  const notAfter = Date.parse(end);
  // A day that the month does not have is read as one of the next month, or not at all.
  const isTime = !Number.isNaN(notAfter) && `${new Date(notAfter).toISOString().slice(0, 19)}Z` === end;
  if (!isTime || number >= 1n << 63n || [genesis, group, groupRoot, key].includes(zeroDigest)) throw malformed();
  return { withdraws: source.startsWith(withdrawLine), trustDomain, genesis, group, groupRoot, party, key, number, notAfter };
}

/** A statement and the signature of its party. */
export interface SignedStatement {
  statement: Uint8Array;
  /** Armored SSH signature. */
  signature: string;
}

/** A statement whose signature was verified. */
export interface VerifiedStatement extends Statement {
  signed: SignedStatement;
  /** Another text of the same number. A key that signed two is in two places, so both count as a withdrawal. */
  other: SignedStatement | undefined;
  /** The step of the history. */
  step: number;
}

/**
 * Verifies a statement about the roster's group: it is signed with the key that it names, and ends no
 * later than the group. It does not check that the key is a party's.
 */
export async function verifyStatement(r: Roster, s: Statement, signed: SignedStatement, step: number): Promise<VerifiedStatement> {
  if (s.notAfter > r.until) throw refuse("expired", "statement: not_after", new Date(s.notAfter).toISOString(), `not after the group's end ${new Date(r.until).toISOString()}`);
  const namespace: Namespace = s.withdraws ? "cohort-withdraw" : "cohort-approve";
  const key = await keyDigest(await verifySshSignature(signed.signature, namespace, signed.statement));
  if (key !== s.key) throw refuse("not-owner", "statement: key", key, s.key);
  return { ...s, signed, other: undefined, step };
}
