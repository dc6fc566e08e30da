/**
 * Policy files (docs/spec/policy.md, sections 1 and 2; docs/reference/policy.md lists every key). A
 * document is one parsed file. Parsing does not show who signed it: code that acts on policy takes
 * a Policy (policy.ts).
 */

import { digestText, equal, fromHex, hex, sha256, text, utf8 } from "../bytes.js";
import { type Measurement, type ReferenceValue, type Register, encodeMeasurement } from "../evidence/measurement.js";
import type { Rules } from "../evidence/rules.js";
import { hash } from "../frame.js";
import { refuse } from "../refusal.js";
import { type Digest, digestBytes, isDigest, zeroDigest } from "./digest.js";
import { type SshKey, parseKeyLine } from "./sshsig.js";
import { code384, extended384, pcrForm, type Platform, platforms, readBytes, readPlatforms, type Register as RegisterRow } from "./platforms.js";
import { decodeToml, decodeTomlText, digits, fault, hour, isTable, joinPath, literal, second, sortedKeys, Table, type TomlTable, type TomlValue } from "./toml.js";

export type { Digest };

/** Which units have the private key of a TLS certificate: all of an identity, or each its own. */
export type KeyMode = "shared" | "unit";

/** The machines that may have the authority's root: every one, or chips as appraisal names them. */
export type Machines = "any" | readonly string[];

/** One owner of policy. */
export interface Owner {
  name: string;
  key: SshKey;
}

/** The people who sign policy: `quorum` of `keys`. */
export interface Owners {
  quorum: number;
  keys: readonly Owner[];
}

/** The table `[authority]`, or the authority of a group: programs and machines that may have a root. */
export interface Custody {
  references: readonly ReferenceValue[];
  machines: Machines;
}

/** The table `[authority]`. `root` is the digest of the authority root's SubjectPublicKeyInfo. */
export interface Authority extends Custody {
  root: Digest;
}

/** One build of a task. It is an identity. */
export interface Release {
  name: string;
  /** The identity id (docs/spec/identity.md, section 1). */
  id: Digest;
  references: readonly ReferenceValue[];
  /** The release whose sessions by task name move to this one, or `""`. */
  continues: string;
  /** No certificate is issued for it any more. */
  retired: boolean;
  /** Accepts programs that load libraries which are not measured. */
  dynamic: boolean;
  /** Accepts one-off requests. */
  oneoff: boolean;
  /** The least number of devices beside the TEE, by platform. */
  devices: ReadonlyMap<string, number>;
}

/** A computing task. */
export interface Task {
  name: string;
  keyMode: KeyMode;
  /** DNS names of its certificates. */
  names: readonly string[];
  /** Lifetime of its leaf certificates in milliseconds. */
  lifetime: number;
  /** The most units at once; 0 is unbounded. */
  units: number;
  /** Tasks that it may call. */
  calls: readonly string[];
  /** Ids of units that are cut off, 32 digits each. */
  cutUnits: readonly string[];
  releases: ReadonlyMap<string, Release>;
}

/** A party of a group. */
export interface Party {
  name: string;
  key: SshKey;
}

/** A release that a party brings into a role. */
export interface Member {
  party: string;
  task: string;
  release: string;
}

/** A role of a group, with the roles that it may call. */
export interface Role {
  name: string;
  members: readonly Member[];
  calls: readonly string[];
}

/** A group of tasks of several parties, as the policy defines it. Its state is GroupState. */
export interface Group {
  name: string;
  keyMode: KeyMode;
  quorum: number;
  /** No certificate is valid after it; milliseconds since 1970. */
  until: number;
  names: readonly string[];
  /** Lifetime of its leaf certificates in milliseconds. */
  lifetime: number;
  parties: readonly Party[];
  roles: ReadonlyMap<string, Role>;
  /** Identity of the group that it continues, or zeroDigest. */
  continues: Digest;
  authority: Custody & {
    /** Rules of the platforms of its references, by name. */
    rules: ReadonlyMap<string, Rules>;
    /** The table as one line of TOML, as in a roster. */
    line: string;
  };
}

/** One parsed policy file. It is immutable. */
export interface Document {
  /** SHA-256 of the file. */
  digest: Digest;
  trustDomain: string;
  /** 1 in the genesis. */
  sequence: number;
  /** Digest of the policy before; zeroDigest in the genesis. */
  previous: Digest;
  /** Milliseconds since 1970. */
  created: number;
  development: boolean;
  owners: Owners;
  authority: Authority;
  tasks: ReadonlyMap<string, Task>;
  groups: ReadonlyMap<string, Group>;
  /** Rules of each platform that the policy names, for appraisal. */
  rules: ReadonlyMap<string, Rules>;
  /** The file as TOML, for comparison with other files. */
  source: TomlTable;
}

/** The most steps of a history. */
export const maxHistory = 10_000;

const day = 24n * hour;
const longestWait = 365n * day;
const leastLifetime = 3n * second;
const mostLifetime = day;
const defaultLifetime = 3_600_000;
const defaultTerm = 30 * 86_400_000;

/** Reports whether text is a name of a task, party, role or group. */
export function isName(s: string): boolean {
  return /^[a-z0-9-]{1,63}$/.test(s);
}

/** Reports whether text is a name of a release. */
export function isReleaseName(s: string): boolean {
  return /^[a-z0-9.-]{1,63}$/.test(s);
}

/** Reports whether text is a DNS name in lower case of at most 253 bytes, and no IP address. */
function isDnsName(s: string): boolean {
  const labels = s.split(".");
  return s.length <= 253 && labels.every((l) => /^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$/.test(l)) && !/^[0-9]*$/.test(labels[labels.length - 1]!);
}

/** Reports whether text can be a trust domain whose authority has a DNS name. */
export function isTrustDomain(s: string): boolean {
  return isDnsName(`authority.${s}`);
}

/** What a file is read into: a document, and argument lists whose digests are not computed yet. */
interface Reading {
  measured: ReadonlyMap<string, Digest>;
  pending: { register: Register; args: readonly string[] }[];
}

/** A document while it is read. */
type Draft = { -readonly [K in keyof Document]: Document[K] };

/**
 * Parses a policy file of at most 262,144 bytes. The first broken rule is refused as `policy`.
 * `genesis` is the digest of the first policy; without it the file itself is the first.
 */
export async function parseDocument(raw: Uint8Array, genesis?: Digest): Promise<Document> {
  const source = decodeToml(raw);
  const reading: Reading = { measured: new Map(), pending: [] };
  const d = readDocument(new Table("", source), reading);
  d.digest = digestText(await sha256(raw));
  await finish(reading);
  await nameReleases(d, genesis ?? d.digest);
  checkRootLine(d, raw);
  checkDocument(d);
  return d;
}

/** Computes the digests of argument lists. */
async function finish(reading: Reading): Promise<void> {
  for (const { register, args } of reading.pending) register.value = await hash("cohort arguments v1", ...args.map(utf8));
}

function readDocument(t: Table, reading: Reading): Draft {
  t.require("schema", "trust_domain", "sequence", "previous", "created", "owners", "platform", "authority");
  t.text("schema", (s) => s === "cohort/policy/v1");
  const trustDomain = t.text("trust_domain", isTrustDomain);
  const sequence = t.number("sequence", 1, maxHistory);
  const previous = t.text("previous", (s) => s === "" || isDigest(s)) || zeroDigest;
  if (sequence === 1 && previous !== zeroDigest) throw t.fault("previous", "genesis", previous);
  if (sequence > 1 && previous === zeroDigest) throw t.fault("previous", "chain", "");
  const created = t.time("created")!;
  const development = t.flag("development");
  t.duration("max_silence", second, mostLifetime);
  const owners = readOwners(t);
  const rules = readPlatforms(t);
  reading.measured = readMeasured(t);
  const authority = readAuthority(t, reading);
  const tasks = new Map(t.namedTables("task", isName).map(([name, inner]) => [name, readTask(name, inner, reading)]));
  const d: Draft = { digest: "", trustDomain, sequence, previous, created, development, owners, authority, tasks, groups: new Map(), rules, source: t.values };
  d.groups = new Map(t.namedTables("group", isName).map(([name, inner]) => [name, readGroup(name, inner, d, reading)]));
  t.end();
  return d;
}

function readOwners(root: Table): Owners {
  const t = root.table("owners")!;
  t.require("quorum", "approve_within", "delay", "keys");
  t.duration("approve_within", second, longestWait);
  t.duration("delay", 0n, longestWait);
  const keys = t.tables("keys").map((k) => {
    const owner = readNamedKey(k);
    // Owners encrypt backups to it. A relying party needs its form only, so that no other key has its name.
    k.text("age", (s) => /^age1[a-z0-9]{58}$/.test(s));
    k.end();
    return owner;
  });
  const quorum = t.number("quorum", 1, keys.length);
  t.end();
  return { quorum, keys };
}

/** Reads the name and the SSH key of an owner or a party. */
function readNamedKey(t: Table): Owner {
  t.require("name", "ssh");
  const name = t.text("name", isName);
  let key: SshKey | undefined;
  t.text("ssh", (s) => {
    try {
      key = parseKeyLine(s);
      return true;
    } catch {
      return false;
    }
  });
  return { name, key: key! };
}

function readMeasured(root: Table): Map<string, Digest> {
  return new Map(root.namedTables("measured", isName).map(([name, t]) => {
    t.require("sha256");
    const value = t.text("sha256", (s) => isDigest(`sha256:${s}`));
    t.end();
    return [name, `sha256:${value}`];
  }));
}

function readAuthority(root: Table, reading: Reading): Authority {
  const t = root.table("authority")!;
  t.require("root", "machines", "reference");
  const rootDigest = t.digest("root");
  const references = readReferences(t, reading);
  const machines = readMachines(t, references);
  t.end();
  return { root: rootDigest, references, machines };
}

/** Reads "any" or a list of machines, each in the form of a chip of a platform of the reference values. */
function readMachines(t: Table, references: readonly ReferenceValue[]): Machines {
  if (typeof t.values.get("machines") === "string") return t.text("machines", (s) => s === "any") as "any";
  const ok = (s: string) => s.startsWith("chip:") && references.some((r) => platforms.get(r.platform)?.chip?.(s.slice(5)) !== undefined);
  const machines = t.set("machines", ok);
  if (t.has("machines") && machines.length === 0) throw t.fault("machines", "number of machines", 0);
  return machines.map((s) => s.slice(5));
}

function readTask(name: string, t: Table, reading: Reading): Task {
  t.require("key_mode", "release");
  const keyMode = readKeyMode(t);
  const names = t.set("names", isDnsName);
  const units = t.number("units", 1, 1_000_000);
  const calls = t.set("calls", isName);
  const cutUnits = t.set("cut_units", (s) => digits(16)(s) !== undefined);
  const lifetime = t.duration("lifetime", leastLifetime, mostLifetime) ?? defaultLifetime;
  const releases = new Map(t.namedTables("release", isReleaseName).map(([n, inner]) => [n, readRelease(n, inner, reading)]));
  if (releases.size === 0) throw t.fault("release", "number of releases", 0);
  t.end();
  return { name, keyMode, names, lifetime, units, calls, cutUnits, releases };
}

function readKeyMode(t: Table): KeyMode {
  return t.text("key_mode", (s) => s === "shared" || s === "unit") as KeyMode;
}

function readRelease(name: string, t: Table, reading: Reading): Release {
  t.require("reference");
  const references = readReferences(t, reading);
  const continues = t.text("continues", isReleaseName);
  const retired = t.flag("retired");
  const dynamic = t.flag("dynamic");
  readEnv(t);
  const oneoff = t.flag("oneoff");
  const devices = readDevices(t);
  t.end();
  return { name, id: "", references, continues, retired, dynamic, oneoff, devices };
}

/** Reads the environment of a program. Which variables a program may have concerns units. */
function readEnv(release: Table): void {
  const t = release.table("env");
  if (t === undefined) return;
  for (const name of sortedKeys(t.values)) {
    if (!/^[A-Z_][A-Z0-9_]{0,62}$/.test(name)) throw t.fault(name, "environment name", name);
    t.text(name, (s) => utf8(s).length <= 4096 && !s.includes("\0"));
  }
}

function readDevices(release: Table): Map<string, number> {
  const t = release.table("devices");
  if (t === undefined) return new Map();
  return new Map(sortedKeys(t.values).map((name) => {
    if (!platforms.get(name)?.device) throw t.fault(name, "platform", name);
    return [name, t.number(name, 1, 16)];
  }));
}

function readReferences(t: Table, reading: Reading): ReferenceValue[] {
  const all = t.tables("reference").map((inner) => readReference(inner, reading));
  if (t.has("reference") && all.length === 0) throw t.fault("reference", "number of reference values", 0);
  return all;
}

/** Reads one reference value: the platform, each of its registers, and `any`, the registers that match every value. */
function readReference(t: Table, reading: Reading): ReferenceValue {
  t.require("platform");
  const isTee = (p: Platform) => !p.device;
  const name = t.text("platform", (s) => platforms.has(s) && isTee(platforms.get(s)!));
  const rows = platforms.get(name)!.registers;
  const openable = rows.filter((r) => !r.shut).map((r) => r.name);
  const open = t.set("any", (s) => openable.includes(s));
  const hasPcrs = rows.some((r) => r.form === "pcr");
  const boot = hasPcrs ? t.table("boot") ?? new Table(t.keyPath("boot"), new Map()) : t;
  const registers = rows.map((row): Register => {
    const [table, key] = row.form === "pcr" ? [boot, row.name.slice(3)] : [t, row.name];
    if (open.includes(row.name)) {
      table.forbid(key);
      return { name: row.name, value: new Uint8Array(0), any: true };
    }
    const register: Register = { name: row.name, value: new Uint8Array(0) };
    readRegister(table, key, row, register, reading);
    return register;
  });
  t.end();
  if (hasPcrs) boot.end();
  return { platform: name, registers };
}

function readRegister(t: Table, key: string, row: RegisterRow, register: Register, reading: Reading): void {
  const bytes = (form: (s: string) => string | undefined) => fromHex(readBytes(t, key, form));
  switch (row.form) {
    case "needed":
      t.require(key);
      register.value = readCode(t, key, reading);
      break;
    case "digest":
      register.value = readCode(t, key, reading);
      break;
    case "arguments":
      reading.pending.push({ register, args: t.texts(key, (s) => !s.includes("\0")) });
      break;
    case "code384":
      register.value = bytes(code384);
      break;
    case "extended384":
      register.value = bytes(extended384);
      break;
    case "bytes":
      register.value = bytes(digits(row.size));
      break;
    case "number16": {
      t.require(key);
      const n = t.number(key, 0, 0xffff);
      register.value = Uint8Array.of(n >> 8, n & 0xff);
      break;
    }
    case "pcr":
      register.value = bytes(pcrForm);
  }
}

/** Reads a digest, or "@" and the name of one; empty where it is missing. */
function readCode(t: Table, key: string, reading: Reading): Uint8Array {
  const named = (s: string) => (s.startsWith("@") ? reading.measured.get(s.slice(1)) : isDigest(s) ? s : undefined);
  const value = t.text(key, (s) => named(s) !== undefined);
  return value === "" ? new Uint8Array(0) : digestBytes(named(value)!);
}

function readGroup(name: string, t: Table, d: Draft, reading: Reading): Group {
  t.require("key_mode", "quorum", "until", "party", "role");
  const keyMode = readKeyMode(t);
  const until = t.time("until")!;
  const names = t.set("names", isDnsName);
  const lifetime = t.duration("lifetime", leastLifetime, mostLifetime) ?? defaultLifetime;
  const continues = t.digest("continues");
  const parties = t.tables("party").map((p) => {
    const party = readNamedKey(p);
    p.end();
    return party;
  });
  const quorum = t.number("quorum", 1, parties.length);
  const roles = new Map(t.namedTables("role", isName).map(([n, inner]) => [n, readRole(n, inner)]));
  const term = t.duration("term", hour, longestWait) ?? defaultTerm;
  if (until > d.created + term) throw t.fault("until", "term", new Date(until).toISOString());
  const authority = readGroupCustody(t, reading);
  t.end();
  return { name, keyMode, quorum, until, names, lifetime, parties, roles, continues, authority };
}

function readRole(name: string, t: Table): Role {
  t.require("members");
  const calls = t.set("calls", isName);
  const members = t.tables("members").map((m) => {
    m.require("party", "task", "release");
    const member = { party: m.text("party", isName), task: m.text("task", isName), release: m.text("release", isReleaseName) };
    m.end();
    return member;
  });
  if (members.length === 0) throw t.fault("members", "number of members", 0);
  if (!isSorted(calls)) throw t.fault("calls", "order", calls.join(", "));
  t.end();
  return { name, members, calls };
}

/** Reports whether texts of ASCII are in order. */
function isSorted(list: readonly string[]): boolean {
  return list.every((s, i) => i === 0 || list[i - 1]! <= s);
}

/** Reads the key `authority` of a group. */
function readGroupCustody(group: Table, reading: Reading): Group["authority"] {
  group.require("authority");
  const custody = readCustody(group.table("authority")!, reading);
  try {
    parseCustody(custody.line);
  } catch (e) {
    throw group.fault("authority", "encoding", e);
  }
  return custody;
}

function readCustody(t: Table, reading: Reading): Group["authority"] {
  t.require("reference", "machines", "platform");
  const references = readReferences(t, reading);
  const rules = readPlatforms(t);
  const line = literal(resolved(t.values, reading.measured));
  const machines = readMachines(t, references);
  t.end();
  return { references, machines, rules, line };
}

/**
 * Parses the line of a roster about the authorities that may have the group's root. Every encoding
 * but one is refused as `policy`. The registers of argument lists are not computed.
 */
function parseCustody(line: string, reading: Reading = { measured: new Map(), pending: [] }): Group["authority"] {
  const root = new Table("", decodeTomlText(`authority = ${line}`));
  const t = root.table("authority");
  if (t === undefined) throw refuse("malformed", "roster: authority", line, "a table");
  const custody = readCustody(t, reading);
  const missing = custody.references.find((r) => !custody.rules.has(r.platform));
  if (missing !== undefined) throw fault(`${t.path}.reference`, "platform", missing.platform);
  root.end();
  if (custody.line !== line) throw fault(t.path, "encoding", line);
  return custody;
}

/** Parses the line of a roster about the authorities that may have the group's root, and refuses every encoding but one. */
export async function parseAuthorityLine(line: string): Promise<Group["authority"]> {
  const reading: Reading = { measured: new Map(), pending: [] };
  const custody = parseCustody(line, reading);
  await finish(reading);
  return custody;
}

/** Returns a table with a reference value's names of [measured.X] replaced by their digests. */
function resolved(values: TomlTable, measured: ReadonlyMap<string, Digest>): TomlTable {
  const list = values.get("reference");
  if (!Array.isArray(list)) return values;
  const replace = (v: TomlValue): TomlValue => (typeof v === "string" && v.startsWith("@") ? measured.get(v.slice(1)) ?? v : v);
  return new Map(values).set("reference", list.map((ref) => (isTable(ref) ? new Map([...ref].map(([key, v]) => [key, replace(v)])) : ref)));
}

/**
 * Returns the identity id of code as a task (docs/spec/identity.md, section 1): the hash of trust
 * domain, authority root, genesis, task, and the measurements in the order of their encoding, each once.
 */
export async function releaseId(of: { trustDomain: string; root: Digest; genesis: Digest }, task: string, measurements: readonly Measurement[]): Promise<Digest> {
  const sorted = new Map(measurements.map((m) => hex(encodeMeasurement(m))).sort().map((digits) => [digits, fromHex(digits)]));
  return digestText(await hash("cohort identity v1", utf8(of.trustDomain), digestBytes(of.root), digestBytes(of.genesis), utf8(task), ...sorted.values()));
}

async function nameReleases(d: Draft, genesis: Digest): Promise<void> {
  for (const task of d.tasks.values()) {
    for (const release of task.releases.values()) {
      release.id = await releaseId({ trustDomain: d.trustDomain, root: d.authority.root, genesis }, task.name, release.references);
    }
  }
}

/**
 * Demands that the root of a genesis is in the one line `root = "` between the line `[authority]` and
 * the next line that begins with `[`. This does not read TOML: a genesis follows from its draft and
 * its root.
 */
function checkRootLine(d: Document, raw: Uint8Array): void {
  if (d.sequence !== 1) return;
  const rootFault = (got: string) => fault("authority.root", "line of the root", got);
  const prefix = 'root = "';
  let sections = 0, inside = false;
  const found: string[] = [];
  for (const line of text(raw).split("\n")) {
    if (line === "[authority]") {
      inside = true;
      sections++;
    } else if (line.startsWith("[")) {
      inside = false;
    } else if (inside && line.startsWith(prefix)) {
      const value = /^[^"]*(?=")/.exec(line.slice(prefix.length))?.[0];
      if (value === undefined || !isDigest(value)) throw rootFault(value ?? "a value without its end");
      found.push(value);
    }
  }
  if (sections !== 1 || found.length !== 1) throw rootFault(`${sections} lines [authority], ${found.length} lines ${prefix} inside`);
  if (found[0] !== d.authority.root) throw rootFault(found[0]!);
}

/** Checks what no single table shows. */
function checkDocument(d: Document): void {
  refuseTwice("owners.keys", d.owners.keys, "owner");
  checkDevelopment(d);
  checkNames(d);
  for (const [name, task] of inOrder(d.tasks)) {
    const unknown = task.calls.find((call) => !d.tasks.has(call));
    if (unknown !== undefined) throw fault(`${joinPath("task", name)}.calls`, "task", unknown);
  }
  for (const [, task] of inOrder(d.tasks)) checkContinues(task);
  checkReferences(d);
  for (const [name, task] of inOrder(d.tasks)) {
    for (const [release, { devices }] of inOrder(task.releases)) {
      const missing = sortedKeys(devices).find((p) => !d.rules.has(p));
      if (missing !== undefined) throw fault(`${releasePath(name, release)}.devices`, "platform", missing);
    }
  }
  checkGroups(d);
}

function inOrder<V>(map: ReadonlyMap<string, V>): [string, V][] {
  return sortedKeys(map).map((key) => [key, map.get(key)!]);
}

function releasePath(task: string, release: string): string {
  return joinPath(`${joinPath("task", task)}.release`, release);
}

/** Refuses a name or a key that occurs twice. A key and its form for hardware are one key. */
function refuseTwice(path: string, list: readonly Owner[], what: string): void {
  const names = new Set<string>(), keys = new Map<string, string>();
  for (const { name, key } of list) {
    if (names.has(name)) throw fault(path, `${what} twice`, name);
    names.add(name);
    if (keys.has(key.id)) throw fault(path, "key twice", `${keys.get(key.id)} and ${name}`);
    keys.set(key.id, name);
  }
}

/** An authority root that was in a development TEE never vouches for hardware. */
function checkDevelopment(d: Document): void {
  for (const name of sortedKeys(d.rules)) {
    const soft = platforms.get(name)!.development;
    if (soft && !d.development) throw fault(`platform.${name}`, "development", "soft without development = true");
    if (!soft && d.development) throw fault(`platform.${name}`, "development", `${name} with development = true`);
  }
}

function checkNames(d: Document): void {
  const taken = new Set([`authority.${d.trustDomain}`]);
  const check = (kind: string, name: string, names: readonly string[]) => {
    for (const dns of names) {
      if (taken.has(dns)) throw fault(`${joinPath(kind, name)}.names`, "name twice", dns);
      taken.add(dns);
    }
  };
  for (const [name, task] of inOrder(d.tasks)) check("task", name, task.names);
  for (const [name, group] of inOrder(d.groups)) check("group", name, group.names);
}

/** Demands that each chain of `continues` ends at a release without it. */
function checkContinues(task: Task): void {
  for (const [name, release] of inOrder(task.releases)) {
    const path = `${releasePath(task.name, name)}.continues`;
    if (release.continues !== "" && !task.releases.has(release.continues)) throw fault(path, "release", release.continues);
    let at: Release | undefined = release;
    for (let i = 0; i < task.releases.size; i++) {
      at = task.releases.get(at.continues);
      if (at === undefined) break;
      if (at === release) throw fault(path, "circle", release.continues);
    }
  }
}

/** Returns every reference value, with its path, in order: the authority's, then those of releases. */
function allReferences(d: Document): { path: string; value: ReferenceValue }[] {
  const placed = (path: string, list: readonly ReferenceValue[]) => list.map((value, i) => ({ path: `${path}.reference[${i}]`, value }));
  return [
    ...placed("authority", d.authority.references),
    ...inOrder(d.tasks).flatMap(([name, task]) => inOrder(task.releases).flatMap(([release, { references }]) => placed(releasePath(name, release), references))),
  ];
}

/** Demands a table of the platform of each reference value, and that no measurement matches two. */
function checkReferences(d: Document): void {
  const all = allReferences(d);
  all.forEach((ref, i) => {
    if (!d.rules.has(ref.value.platform)) throw fault(ref.path, "platform", ref.value.platform);
    const other = all.slice(0, i).find((o) => overlap(o.value, ref.value));
    if (other !== undefined) throw fault(ref.path, "measurement twice", ref.value.platform);
  });
}

/** Reports whether one measurement could match both reference values. */
function overlap(a: ReferenceValue, b: ReferenceValue): boolean {
  return a.platform === b.platform && a.registers.every((x, i) => x.any || b.registers[i]!.any || equal(x.value, b.registers[i]!.value));
}

function checkGroups(d: Document): void {
  refuseAlike("group", sortedKeys(d.groups));
  for (const [name, group] of inOrder(d.groups)) {
    const path = joinPath("group", name);
    checkCustody(d, `${path}.authority`, group.authority);
    const names = group.parties.map((p) => p.name);
    refuseTwice(`${path}.party`, group.parties, "party");
    if (!isSorted(names)) throw fault(`${path}.party`, "order", names.join(", "));
    refuseAlike(`${path}.party`, names);
    refuseAlike(`${path}.role`, sortedKeys(group.roles));
    if (group.roles.size === 0) throw fault(`${path}.role`, "number of roles", 0);
    for (const [role, r] of inOrder(group.roles)) checkRole(d, joinPath(`${path}.role`, role), group, r);
  }
}

function checkRole(d: Document, path: string, group: Group, role: Role): void {
  role.members.forEach((m, i) => {
    const task = d.tasks.get(m.task);
    if (!group.parties.some((p) => p.name === m.party)) throw fault(`${path}.members`, "party", m.party);
    if (task === undefined) throw fault(`${path}.members`, "task", m.task);
    if (!task.releases.has(m.release)) throw fault(`${path}.members`, "release", m.release);
    if (i > 0 && compareMembers(role.members[i - 1]!, m) >= 0) throw fault(`${path}.members`, "order", `${m.party} ${m.task} ${m.release}`);
  });
  const unknown = role.calls.find((call) => !group.roles.has(call));
  if (unknown !== undefined) throw fault(`${path}.calls`, "role", unknown);
}

/** Orders members by party, task and release. */
export function compareMembers(a: Member, b: Member): number {
  const pairs = [[a.party, b.party], [a.task, b.task], [a.release, b.release]] as const;
  const pair = pairs.find(([x, y]) => x !== y);
  return pair === undefined ? 0 : pair[0] < pair[1] ? -1 : 1;
}

/** Refuses development platforms in other policies, and the code of a task: such a program would receive the group's root. */
function checkCustody(d: Document, path: string, custody: Group["authority"]): void {
  if (!d.development && [...custody.rules.keys()].some((p) => platforms.get(p)!.development)) {
    throw fault(`${path}.platform.soft`, "development", "soft without development = true");
  }
  for (const ref of allReferences(d)) {
    if (!ref.path.startsWith("authority.") && custody.references.some((r) => overlap(r, ref.value))) {
      throw fault(`${path}.reference`, "measurement", ref.value.platform);
    }
  }
}

/** Refuses two names that people could confuse. */
function refuseAlike(path: string, names: readonly string[]): void {
  const seen = new Map<string, string>();
  for (const name of names) {
    const look = lookOf(name);
    if (seen.has(look)) throw fault(path, "names alike", `${seen.get(look)} and ${name}`);
    seen.set(look, name);
  }
}

const lookalikes: Readonly<Record<string, string>> = { "0": "o", "1": "l", i: "l", "5": "s", rn: "m", vv: "w", cl: "d", "-": "" };

/** Returns a name with characters that look alike in common fonts mapped to one of them, and without -. */
function lookOf(name: string): string {
  return name.replace(/[01i5-]|rn|vv|cl/g, (found) => lookalikes[found]!);
}

/** Reports whether people could confuse two of the names. */
export function confusable(names: readonly string[]): boolean {
  return new Set(names.map(lookOf)).size < names.length;
}
