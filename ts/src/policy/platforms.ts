/**
 * What a policy file may state about each platform: the registers of its reference values, the keys
 * of its table, and which change of a key accepts less (docs/spec/policy.md, sections 2 and 7;
 * docs/reference/policy.md). One table of each platform serves reading and comparing.
 */

import { type BitField, type Bits, type Demand, type List, type Rules, type SnpFloor, type SnpTcb, bitNames, accepts, snpGuestPolicy, snpPlatformInfo, tdAttributes, xfam } from "../evidence/rules.js";
import { isDigest } from "./digest.js";
import { type Form, Table, digits, fault, hour, prefixed, second, textForm, type TomlValue } from "./toml.js";

/** How a reference value writes a register: digests of code may not be zero, `any` and keys that may be missing aside. */
export type RegisterForm = "digest" | "needed" | "arguments" | "code384" | "extended384" | "bytes" | "number16" | "pcr";

/** A register, and how a reference value writes it. */
export interface Register {
  name: string;
  form: RegisterForm;
  /** Bytes, of form `bytes`. */
  size: number;
  /** It is never left open. */
  shut: boolean;
}

/** The type of a key's value. */
type Kind = "flag" | "number" | "duration" | "time" | "word" | "words" | "list" | "bytes" | "joined" | "bits" | "bit-numbers" | "table" | "named";

/**
 * Which change of a value accepts less. Every other change accepts more. `fixed`: none; `grants`:
 * each value accepts something; `flag`: true accepts something; `cuts`: each value refuses something;
 * `floor`, `ceiling`, `version`, `time`: the number, version or time bounds from below or above;
 * `bits`: demands on bits; `loosest`: one word accepts most; `age`: a duration, shorter refuses more;
 * `optional-age`: the same, and being there refuses something.
 */
export type Direction = "fixed" | "grants" | "flag" | "cuts" | "floor" | "ceiling" | "version" | "time" | "bits" | "loosest" | "age" | "optional-age";

/** One key of a platform's table. */
export interface Key {
  name: string;
  kind: Kind;
  direction: Direction;
  required?: boolean;
  is?: (value: string) => boolean;
  form?: Form;
  least?: bigint;
  most?: bigint;
  field?: BitField;
  keys?: readonly Key[];
  /** The names of tables of kind `named`, and the keys of one. */
  names?: readonly string[];
  named?: (name: string) => readonly Key[];
  /** A missing table means what an empty one means. */
  optional?: boolean;
  /** The word that accepts most. */
  loosest?: string;
  /** The value that a missing key means. */
  implied?: TomlValue;
  /** A leaf records what the key is about, so that it refuses exactly the units that it cuts off. */
  recorded?: boolean;
}

/** What a policy may state about one platform. */
export interface Platform {
  name: string;
  development: boolean;
  device: boolean;
  registers: readonly Register[];
  keys: readonly Key[];
  /** Reads a chip as results of appraisal name it; undefined for platforms whose chips authorities cannot name. */
  chip?: Form;
  /** Reads a chip of the lists `chips` and `cut_chips`; undefined where no rule names a chip. */
  listedChip?: Form;
}

const register = (name: string, form: RegisterForm, size = 0, shut = false): Register => ({ name, form, size, shut });
const pcrs = (...numbers: number[]): Register[] => numbers.map((n) => register(`pcr${n}`, "pcr"));
const program = [register("agent", "digest"), register("program", "needed"), register("args", "arguments")];

const oneOf = (...words: string[]) => ({ is: (s: string) => words.includes(s) });
const flag = (name: string): Key => ({ name, kind: "flag", direction: "flag" });
const floor = (name: string, most: number): Key => ({ name, kind: "number", direction: "floor", least: 0n, most: BigInt(most) });
const bits = (field: BitField): Key => ({ name: field.key, kind: "bits", direction: "bits", optional: true, field });
const cutChips = (form: Form): Key => ({ name: "cut_chips", kind: "bytes", direction: "cuts", recorded: true, form });
const chips = (form: Form): Key => ({ name: "chips", kind: "list", direction: "grants", required: true, recorded: true, form });

const revocation = (implied?: string): Key[] => [
  { name: "crl", kind: "word", direction: "loosest", loosest: "if-present", ...oneOf("required", "if-present"), ...(implied === undefined ? {} : { implied }) },
  { name: "checked_within", kind: "duration", direction: "optional-age", least: 25n * hour, most: 8760n * hour },
];

const sha256Form = prefixed("sha256:", 32);
const sha384Form = prefixed("sha384:", 48);

/** Reads a SHA-384 digest, and one that is not zero. */
export const extended384: Form = sha384Form;
export const code384: Form = (s) => nonZero(sha384Form(s));
/** Reads the SHA-256 digest of a PCR, which may be zero. */
export const pcrForm: Form = sha256Form;

function nonZero(value: string | undefined): string | undefined {
  return value === undefined || /^0*$/.test(value) ? undefined : value;
}

/** Reads a chip of SNP. The 8 bytes of a Turin are before zeros in reports. Zeros are no id: a host writes them to hide one. */
const snpChip: Form = (s) => nonZero(digits(64)(s) ?? digits(8)(s)?.padEnd(128, "0"));

/** Reads two numbers of a byte each, in their one spelling. */
function version(s: string): [number, number] | undefined {
  const parts = /^(0|[1-9]\d{0,2})\.(0|[1-9]\d{0,2})$/.exec(s);
  const numbers: [number, number] = [Number(parts?.[1]), Number(parts?.[2])];
  return numbers.every((n) => n <= 255) ? numbers : undefined;
}

const components = ["bootloader", "tee", "snp", "microcode"];
const snpFloor = (generation: string, name: string, required: boolean): Key => ({
  name, kind: "table", direction: "cuts", required,
  keys: (generation === "Turin" ? [...components, "fmc"] : components).map((c) => ({ ...floor(c, 255), required: true })),
});

const snpKeys: readonly Key[] = [
  ...revocation(),
  {
    name: "generation", kind: "named", direction: "grants", required: true, names: ["Milan", "Genoa", "Turin"],
    named: (name) => [snpFloor(name, "committed", true), snpFloor(name, "reported", false), snpFloor(name, "launch", false)],
  },
  chips(snpChip),
  cutChips(snpChip),
  { name: "id_keys", kind: "list", direction: "grants", required: true, form: sha384Form },
  flag("smt"), flag("migration"), flag("provisional_firmware"),
  { name: "vmpl", kind: "number", direction: "ceiling", least: 0n, most: 3n },
  { ...flag("hidden_chips"), recorded: true },
  bits(snpPlatformInfo),
  { ...bits(snpGuestPolicy), keys: [{ name: "abi", kind: "word", direction: "version", is: (s) => version(s) !== undefined }] },
  {
    name: "mitigations", kind: "table", direction: "fixed", optional: true,
    keys: [{ name: "launch", kind: "bit-numbers", direction: "cuts" }, { name: "current", kind: "bit-numbers", direction: "cuts" }],
  },
];

const ppid = digits(16);
const statuses = ["SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded", "OutOfDate", "OutOfDateConfigurationNeeded"];
const relaunchStatuses = ["TDRelaunchAdvised", "TDRelaunchAdvisedConfigurationNeeded"];

const dcapKeys = (accepted: string[]): Key[] => [
  ...revocation(),
  { name: "statuses", kind: "words", direction: "grants", ...oneOf(...accepted) },
  { name: "advisories", kind: "words", direction: "grants", is: (s) => /^INTEL-[A-Z]{2}-[0-9]{5}$/.test(s) },
  floor("min_evaluation", 0xffffffff),
  { name: "min_tcb_date", kind: "time", direction: "time" },
  chips(ppid),
  cutChips(ppid),
  { name: "cut_models", kind: "bytes", direction: "cuts", form: digits(6) },
];

const mr = digits(48);
const zeroMr = "0".repeat(96);

const soft8 = digits(8);
const nvidiaKeys: readonly Key[] = [
  ...revocation(),
  { name: "models", kind: "words", direction: "grants", required: true, is: (s) => /^G[A-Z][0-9]{2}[0-9X]$/.test(s) },
  chips(sha256Form),
  cutChips(sha256Form),
  { name: "drivers", kind: "list", direction: "grants", required: true, form: textForm(/^[0-9]+(?:\.[0-9]+)+$/) },
  { name: "vbios", kind: "list", direction: "grants", required: true, form: textForm(/^[0-9A-F]{2}(?:\.[0-9A-F]{2}){4}$/) },
  { name: "modes", kind: "words", direction: "grants", required: true, ...oneOf("SPT", "MPT", "PPCIE", "unstated") },
  { name: "measurements", kind: "word", direction: "fixed", required: true, is: (s) => s === "any" },
  { name: "mode", kind: "word", direction: "loosest", loosest: "development", ...oneOf("production", "development") },
];

function platform(name: string, registers: readonly Register[], keys: readonly Key[], chip: Form | undefined, listedChip: Form | undefined): Platform {
  return { name, development: name === "soft", device: registers.length === 0, registers, keys, ...(chip && { chip }), ...(listedChip && { listedChip }) };
}

const snpRegisters = (shut: boolean): Register[] => [register("measurement", "code384", 0, shut), register("host-data", "bytes", 32)];

/** All platforms that a policy may name, in the order of their names. */
export const platforms: ReadonlyMap<string, Platform> = /* @__PURE__ */ new Map(
  [
    platform("azure-snp", [...snpRegisters(true), ...pcrs(...Array(24).keys())], snpKeys, snpChip, snpChip),
    platform(
      "nitro",
      [register("pcr0", "code384"), register("pcr1", "code384"), register("pcr2", "code384"), register("pcr8", "extended384")],
      [...revocation("if-present"), { name: "max_age", kind: "duration", direction: "age", required: true, least: second, most: 3n * hour }],
      textForm(/^i-[0-9a-f]{8,32}-enc[0-9a-f]{8,32}$/), undefined,
    ),
    platform("nvidia-gpu", [], nvidiaKeys, undefined, sha256Form),
    platform(
      "sgx",
      [register("mrenclave", "needed"), register("mrsigner", "needed"), register("isvprodid", "number16"), register("configid", "bytes", 64)],
      [...dcapKeys(statuses), floor("min_isvsvn", 0xffff)],
      ppid, ppid,
    ),
    platform("snp", snpRegisters(false), snpKeys, snpChip, snpChip),
    platform("soft", program, [cutChips(soft8)], soft8, soft8),
    platform(
      "tdx",
      [register("mrtd", "code384"), register("mrconfigid", "bytes", 48), ...[0, 1, 2, 3].map((n) => register(`rtmr${n}`, "extended384"))],
      [
        ...dcapKeys([...statuses, ...relaunchStatuses]),
        flag("migration"),
        bits(tdAttributes),
        bits(xfam),
        { name: "servicetd", kind: "list", direction: "grants", form: (s) => (s === "unsaid" ? "" : mr(s)), implied: [zeroMr, "unsaid"] },
        {
          name: "owner", kind: "joined", direction: "grants", implied: [new Map([["mrowner", zeroMr], ["mrownerconfig", zeroMr]])],
          keys: ["mrowner", "mrownerconfig"].map((name) => ({ name, kind: "bytes", direction: "fixed", form: mr })),
        },
      ],
      ppid, ppid,
    ),
    platform(
      "tpm", [...pcrs(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14), ...program],
      [cutChips(sha256Form)], digits(32), digits(32),
    ),
  ].map((p) => [p.name, p]),
);

/** Values of a table, by key. */
type Values = ReadonlyMap<string, unknown>;

/** Reads the tables of platforms: the key `platform` of a policy, or of a group's authority. */
export function readPlatforms(parent: Table): Map<string, Rules> {
  const all = new Map<string, Rules>();
  for (const [name, table] of parent.namedTables("platform", (s) => platforms.has(s))) {
    const own = platforms.get(name)!;
    table.require("roots");
    const debug = table.flag("debug");
    const roots = table.set("roots", isDigest);
    if (roots.length === 0) throw table.fault("roots", "number of roots", 0);
    const values = readKeys(table, own.keys);
    if (own.keys === snpKeys && values.get("hidden_chips") === true && values.get("chips") !== "any") {
      throw table.fault("hidden_chips", "chips", "a list of chips");
    }
    table.end();
    all.set(name, rulesOf(own, values, roots, debug));
  }
  return all;
}

/** Reads keys of a table. A missing key has no value, a missing flag is false. */
function readKeys(table: Table, keys: readonly Key[]): Map<string, unknown> {
  table.require(...keys.filter((k) => k.required).map((k) => k.name));
  const values = new Map<string, unknown>();
  for (const key of keys) {
    const value = readKey(table, key);
    if (value !== undefined) values.set(key.name, value);
  }
  return values;
}

function readKey(table: Table, key: Key): unknown {
  const { name, form = () => undefined, is = () => false } = key;
  const has = table.has(name);
  switch (key.kind) {
    case "flag":
      return table.flag(name);
    case "number":
      return orMissing(has, table.number(name, Number(key.least), Number(key.most)));
    case "duration":
      return table.duration(name, key.least!, key.most!);
    case "time":
      return table.time(name);
    case "word":
      return orMissing(has, table.text(name, is));
    case "words":
      return orMissing(has, table.set(name, is));
    case "list":
      return orMissing(has, anyOr(table, name, () => readForms(table, name, form)));
    case "bytes":
      return orMissing(has, readForms(table, name, form));
    case "joined":
      return orMissing(has, anyOr(table, name, () => readJoined(table, key)));
    case "bit-numbers":
      return orMissing(has, readBitNumbers(table, name));
    case "bits":
    case "table":
    case "named":
      return readInner(table, key);
  }
}

/** Reads a key that is a table. */
function readInner(table: Table, key: Key): Values | undefined {
  if (key.kind === "named") {
    const inner = table.namedTables(key.name, (s) => key.names!.includes(s));
    const all = new Map(inner.map(([name, t]) => {
      const values = readKeys(t, key.named!(name));
      t.end();
      return [name, values];
    }));
    if (table.has(key.name) && all.size === 0) throw table.fault(key.name, `number of ${key.name}s`, 0);
    return all;
  }
  const inner = table.table(key.name);
  if (inner === undefined) return undefined;
  const demands = key.field && readBits(inner, key.field);
  const values = readKeys(inner, key.keys ?? []);
  inner.end();
  if (demands !== undefined) values.set("bits", demands);
  return values;
}

function orMissing<T>(has: boolean, value: T): T | undefined {
  return has ? value : undefined;
}

/** Reads "any", or a list. */
function anyOr(table: Table, name: string, read: () => string[]): List {
  if (typeof table.values.get(name) !== "string") return read();
  return table.text(name, (s) => s === "any") as "any";
}

/** Reads a list of byte strings, each once, as hexadecimal digits. */
function readForms(table: Table, name: string, form: Form): string[] {
  return table.set(name, (s) => form(s) !== undefined).map((s) => form(s)!);
}

/** Reads a list of tables whose values are joined, each once. */
function readJoined(table: Table, key: Key): string[] {
  const list = table.tables(key.name).map((inner) => {
    const value = key.keys!.map((part) => readBytes(inner, part.name, part.form!)).join("");
    inner.end();
    return value;
  });
  table.refuseRepeated(key.name, list);
  return list;
}

/** Reads a byte string that is required, as hexadecimal digits. */
export function readBytes(table: Table, name: string, form: Form): string {
  table.require(name);
  return form(table.text(name, (s) => form(s) !== undefined))!;
}

/** Reads demands on bits. It leaves other keys of the table unread. */
function readBits(table: Table, field: BitField): Bits {
  const demands = new Map<string, Demand>();
  for (const name of bitNames(field)) {
    table.expect(name);
    const value = table.values.get(name);
    if (value === undefined) continue;
    const demand = value === true ? "set" : value === false ? "clear" : value === "any" ? "any" : undefined;
    if (demand === undefined) throw table.fault(name, "value", String(value));
    demands.set(name, demand);
  }
  return demands;
}

/** Reads a list of numbers of bits, each once. */
function readBitNumbers(table: Table, name: string): number[] {
  const numbers = table.list(name).map((v, i) => {
    if (typeof v !== "number" || v < 0 || v > 63) throw fault(`${table.keyPath(name)}[${i}]`, "value", String(v));
    return v;
  });
  table.refuseRepeated(name, numbers);
  return numbers;
}

/** Converts the values of a table into rules for appraisal. */
function rulesOf(own: Platform, values: Values, roots: string[], debug: boolean): Rules {
  const inner = (key: string, name: string) => (values.get(key) as Values | undefined)?.get(name);
  const snp = own.keys === snpKeys && present({
    generations: floorsOf(values.get("generation") as ReadonlyMap<string, Values>),
    hiddenChips: values.get("hidden_chips"),
    idKeys: values.get("id_keys"),
    smt: values.get("smt"),
    migration: values.get("migration"),
    provisional: values.get("provisional_firmware"),
    vmpl: values.get("vmpl"),
    platformInfo: inner("platform_info", "bits"),
    guestPolicy: inner("guest_policy", "bits"),
    guestAbi: version((inner("guest_policy", "abi") as string | undefined) ?? ""),
    launchMitigations: inner("mitigations", "launch"),
    currentMitigations: inner("mitigations", "current"),
  });
  const dcap = (own.name === "tdx" || own.name === "sgx") && present({
    statuses: values.get("statuses"),
    advisories: values.get("advisories"),
    minEvaluation: values.get("min_evaluation"),
    minTcbDate: values.get("min_tcb_date"),
    cutModels: values.get("cut_models"),
    minIsvSvn: values.get("min_isvsvn"),
    migration: values.get("migration"),
    attributes: inner("attributes", "bits"),
    xfam: inner("xfam", "bits"),
    serviceTd: values.get("servicetd"),
    owner: values.get("owner"),
  });
  return present({
    roots, debug,
    crl: values.get("crl"),
    checkedWithin: values.get("checked_within"),
    chips: values.get("chips"),
    cutChips: values.get("cut_chips"),
    snp: snp || undefined,
    dcap: dcap || undefined,
  }) as Rules;
}

function floorsOf(generations: ReadonlyMap<string, Values>): Map<string, SnpFloor> {
  return new Map([...generations].map(([name, floors]) => [name, Object.fromEntries([...floors].map(([floor, tcb]) => [floor, tcbOf(tcb as Values)]))]));
}

function tcbOf(values: Values): SnpTcb {
  return { fmc: 0, ...Object.fromEntries(values) } as SnpTcb;
}

/** Returns an object without the members that are undefined. */
function present(members: Record<string, unknown>): object {
  return Object.fromEntries(Object.entries(members).filter(([, value]) => value !== undefined));
}

/** Returns the key of the platform's rules that refuses a chip, as results of appraisal name it, and "" where the rules accept it. */
export function chipRefused(name: string, rules: Rules, chip: string): string {
  const own = platforms.get(name);
  if (own?.listedChip === undefined) return "";
  const id = own.listedChip(chip);
  const cut = rules.cutChips ?? [];
  if (own.keys === snpKeys) {
    if (id === undefined && (rules.snp?.hiddenChips !== true || cut.length > 0)) return "hidden_chips";
  } else if (id === undefined && cut.length > 0) {
    return "cut_chips";
  }
  if (id !== undefined && cut.includes(id)) return "cut_chips";
  const accepted = own.keys.some((k) => k.name === "chips") ? rules.chips : "any";
  return accepts(accepted, id ?? "hidden") ? "" : "chips";
}
