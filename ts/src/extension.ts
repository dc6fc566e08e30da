/**
 * The private extension of certificates (docs/spec/identity.md, section 5): what they state about
 * identity, unit and policy. It has one encoding, and each kind its own fields.
 */

import { compare, digestText, fromU64, hex, text } from "./bytes.js";
import { DerReader, Tag } from "./der.js";
import { type Measurement, encodeMeasurement, parseMeasurement } from "./evidence/measurement.js";
import { unframe } from "./frame.js";
import { isName, isReleaseName } from "./policy/document.js";
import { type Digest, type KeyMode, zeroDigest } from "./policy/policy.js";
import { refuse } from "./refusal.js";

/** The purpose of a leaf certificate. */
export type LeafKind = "authority" | "shared" | "unit" | "group";

/** The purpose of a certificate. */
export type Kind = LeafKind | "authority-root" | "identity-root" | "cross" | "group-root" | "group-bus";

/** The program of a unit in a group, and the digest of the SSH key of its party. */
export interface GroupMember {
  task: string;
  release: string;
  party: Digest;
}

/** The fields of the private extension. Fields that a kind does not contain are empty, digests `zeroDigest`. */
export interface Fields {
  kind: Kind;
  /** The identity: of a release or of a group. */
  id: Digest;
  /** The task, or the name of the group. */
  task: string;
  keyMode: KeyMode | "";
  /** The head of the history under which the certificate was issued; in CA certificates the genesis. */
  head: Digest;
  development: boolean;
  debug: boolean;
  /** Unit id, 32 digits. */
  unit: string;
  platform: string;
  chip: string;
  measurements: Measurement[];
  role: string;
  /** End of the parties' approval, in milliseconds since 1970; undefined outside groups. */
  ends: number | undefined;
  member: GroupMember | undefined;
}

/** The object identifier of the private extension. */
export const extensionId = "1.2.840.113556.1.8000.2554.51898.5250.7156.19007.48674.10918900.16058849";

/** The largest private extension, in bytes. */
const maxExtension = 32 << 10;

/** Which fields a kind contains; all others are absent. */
interface Shape {
  /** Identity and task, or with "optional" both or neither. */
  identity?: true | "optional";
  keyModes?: readonly KeyMode[];
  /** Unit and platform, and perhaps a chip. */
  unit?: true;
  measurements?: true;
  /** Role and end, and perhaps unit, platform and member. */
  role?: true;
  /** Several units share the leaf, unless it names one. */
  shared?: true;
}

const shapes: ReadonlyMap<string, Shape> = new Map<Kind, Shape>([
  ["authority-root", {}],
  ["authority", { identity: "optional" }],
  ["identity-root", { identity: true, measurements: true }],
  ["cross", { identity: true, measurements: true }],
  ["shared", { identity: true, keyModes: ["shared"], shared: true }],
  ["unit", { identity: true, keyModes: ["shared", "unit"], unit: true }],
  ["group-root", { identity: true }],
  ["group-bus", { identity: true }],
  ["group", { identity: true, keyModes: ["shared", "unit"], role: true, shared: true }],
]);

const marks: ReadonlyMap<string, { development: boolean; debug: boolean }> = new Map([
  ["", { development: false, debug: false }],
  ["development", { development: true, debug: false }],
  ["debug", { development: false, debug: true }],
  ["development debug", { development: true, debug: true }],
]);

/** Parses the value of the private extension. Everything but the one encoding of fields that the kind allows is refused as `extension`. */
export function parseFields(value: Uint8Array): Fields {
  try {
    if (value.length > maxExtension) throw refuse("extension", "extension: size in bytes", value.length, maxExtension);
    const fields = decodeFields(value);
    checkShape(fields);
    return fields;
  } catch (e) {
    throw refuse("extension", "extension", e instanceof Error ? e.message : e, "the encoding of docs/spec/identity.md", e);
  }
}

/** The part of an encoding that has a wrong size or value. */
function broken(name: string, got: unknown) {
  return refuse("extension", `extension: ${name}`, got, "a value that the kind allows");
}

function decodeFields(value: Uint8Array): Fields {
  const parts = unframe("cohort certificate v1", octets(value));
  const [kind, id, task, keyMode, head, mark, unit, platform, chip] = parts;
  if (chip === undefined || parts.length < 9) throw broken("number of fields", parts.length);
  const set = marks.get(text(mark!));
  if (!set) throw broken("marks", text(mark!));
  if (chip.length > 256) throw broken("size of the chip", chip.length);
  const fields: Fields = {
    kind: text(kind!) as Kind, id: optional("identity", id!, 32, digestText, zeroDigest), task: text(task!), keyMode: text(keyMode!) as KeyMode,
    head: digestOf("head", head!), ...set, unit: optional("unit", unit!, 16, hex, ""), platform: text(platform!), chip: text(chip),
    measurements: [], role: "", ends: undefined, member: undefined,
  };
  const rest = parts.slice(9);
  if (fields.kind !== "group") return { ...fields, measurements: rest.map(parseMeasurement) };
  const [role, ends, program, release, party] = rest;
  if (!role || !ends || (rest.length !== 2 && rest.length !== 5)) throw broken("number of fields", parts.length);
  const seconds = fromU64(ends);
  if (seconds >= 1n << 63n) throw broken("end", seconds);
  fields.role = text(role);
  fields.ends = Number(seconds < 8_640_000_000_000n ? seconds : 8_640_000_000_000n) * 1000; // the last time of Date
  if (party) fields.member = { task: text(program!), release: text(release!), party: digestOf("party", party) };
  return fields;
}

/** Returns the content of an OCTET STRING that is all of the bytes. */
function octets(value: Uint8Array): Uint8Array {
  const reader = new DerReader(value);
  const { content } = reader.read(Tag.OctetString);
  reader.end();
  return content;
}

function digestOf(name: string, bytes: Uint8Array): Digest {
  if (bytes.length !== 32) throw broken(`size of ${name}`, bytes.length);
  return digestText(bytes);
}

/** Returns the text of a value that is empty or has a size and is not zero. */
function optional(name: string, bytes: Uint8Array, size: number, encode: (bytes: Uint8Array) => string, none: string): string {
  if (bytes.length === 0) return none;
  if (bytes.length !== size || bytes.every((b) => b === 0)) throw broken(name, hex(bytes.subarray(0, 64)));
  return encode(bytes);
}

/** Refuses fields that do not match the kind. */
function checkShape(f: Fields): void {
  const shape = shapes.get(f.kind);
  if (!shape) throw broken("kind", f.kind);
  const unit = f.unit !== "";
  const wantsUnit = shape.unit === true || (shape.role === true && unit);
  const wantsIdentity = shape.identity === true || (shape.identity === "optional" && f.id !== zeroDigest);
  const wantsMember = shape.role === true && unit;
  const named = (name: string, wanted: boolean) => (wanted ? isName(name) : name === "");
  const encoded = f.measurements.map(encodeMeasurement);
  const rules: [string, unknown, boolean][] = [
    ["identity", f.id, (f.id !== zeroDigest) === wantsIdentity],
    ["task", f.task, named(f.task, wantsIdentity)],
    ["key mode", f.keyMode, shape.keyModes ? shape.keyModes.some((m) => m === f.keyMode) : f.keyMode === ""],
    ["head", f.head, f.head !== zeroDigest || (shape.shared === true && !unit)],
    ["unit", f.unit, unit === wantsUnit && (unit || !shape.shared || f.keyMode === "shared")],
    ["platform", f.platform, (f.platform !== "") === wantsUnit],
    ["chip", f.chip, f.chip === "" || wantsUnit],
    ["measurements", encoded.length, (encoded.length > 0) === (shape.measurements === true) && encoded.every((m, i) => i === 0 || compare(encoded[i - 1]!, m) < 0)],
    ["role", f.role, named(f.role, shape.role === true)],
    ["member", f.member?.task, wantsMember ? !!f.member && isName(f.member.task) && isReleaseName(f.member.release) && f.member.party !== zeroDigest : !f.member],
  ];
  for (const [name, got, ok] of rules) {
    if (!ok) throw broken(name, `${String(got)} in kind ${f.kind}`);
  }
}
