/**
 * TOML of policy files, read strictly (docs/spec/policy.md, section 1). A Table reads one table: each
 * method reads one key and refuses a value that breaks its rule, and `end` refuses every key that
 * was not read. So a key exists exactly if code reads it. The first broken rule ends the reading,
 * with reason `policy`.
 */

import { parse, TomlDate } from "smol-toml";
import { hex, text } from "../bytes.js";
import { type Refusal, refuse } from "../refusal.js";
import { type Digest, isDigest, wantDigest, zeroDigest } from "./digest.js";

/** A value of TOML. Numbers are whole; a Date is a time in whole seconds of UTC. */
export type TomlValue = string | number | boolean | Date | TomlValue[] | TomlTable;

/** A table of TOML. */
export type TomlTable = ReadonlyMap<string, TomlValue>;

/** The most bytes of a policy file. */
const maxPolicy = 256 << 10;

/** Makes the refusal of a broken rule at a path. */
export function fault(path: string, rule: string, got: unknown, want: unknown): Refusal {
  return refuse("policy", path === "" ? rule : `${path}: ${rule}`, got, want);
}

/**
 * Characters that a reader cannot see or recognise: controls but tab and LF, marks of direction or
 * format, separators, default-ignorable code points, private use and non-characters of Unicode 15.0,
 * and all above U+3FFFD. The list is closed.
 */
const hidden = new RegExp(
  "[\\0-\\x08\\x0b-\\x1f\\x7f-\\x9f\\xad\\u034f\\u0600-\\u0605\\u061c\\u06dd\\u070f\\u0890\\u0891\\u08e2\\u115f\\u1160\\u17b4\\u17b5\\u180b-\\u180f" +
    "\\u200b-\\u200f\\u2028-\\u202e\\u2060-\\u206f\\u3164\\ud800-\\uf8ff\\ufdd0-\\ufdef\\ufe00-\\ufe0f\\ufeff\\uffa0\\ufff0-\\ufffb\\ufffe\\uffff" +
    "\\u{110bd}\\u{110cd}\\u{13430}-\\u{1343f}\\u{1bca0}-\\u{1bca3}\\u{1d173}-\\u{1d17a}\\u{1fffe}\\u{1ffff}\\u{2fffe}\\u{2ffff}\\u{3fffe}-\\u{10ffff}]",
  "u",
);

/** Decodes a file of at most 262,144 bytes. */
export function decodeToml(raw: Uint8Array): TomlTable {
  if (raw.length > maxPolicy) throw fault("", "size in bytes", raw.length, `at most ${maxPolicy}`);
  let source: string;
  try {
    source = text(raw);
  } catch (e) {
    throw refuse("policy", "encoding", "bytes that are not UTF-8", "UTF-8", e);
  }
  return decodeTomlText(source);
}

/** Decodes a file that is text already. */
export function decodeTomlText(source: string): TomlTable {
  const seen = hidden.exec(source);
  if (seen !== null) {
    if (seen[0] === "\ufeff" && seen.index === 0) throw fault("", "encoding", "a byte order mark", "none");
    if (source.includes("\r")) throw fault("", "line ends", "CR", "LF alone");
    const before = source.slice(0, seen.index).split("\n");
    const got = `U+${seen[0].codePointAt(0)!.toString(16).toUpperCase().padStart(4, "0")}`;
    throw fault(`line ${before.length}, column ${[...before[before.length - 1]!].length + 1}`, "character", got, "characters that are seen: no controls, marks of direction or format, or private use");
  }
  const { normal, times } = normalTimes(source);
  let parsed: unknown;
  try {
    parsed = parse(normal, { integersAsBigInt: true, maxDepth: 100 });
  } catch (e) {
    throw refuse("policy", "TOML", e instanceof Error ? e.message.split("\n")[0] : "another text", "TOML", e);
  }
  let found = 0;
  const values = valueOf(parsed, "", () => found++);
  // Each time is one that was put into its one form, and no other text that a runtime reads as a time.
  if (found !== times || !isTable(values)) throw fault("", "times", found, times);
  return values;
}

/** A time with date, or the beginning of a string or comment. */
const token = /[#"']|\d{4}-\d\d-\d\d[Tt ]\d\d:[\d:.]*(?:[Zz]|[+-][\d:]*)?/g;

/** A time in whole seconds of UTC, in each form that TOML has for it. */
const utc = /^(\d{4}-\d\d-\d\d)[Tt ]([01]\d|2[0-3]):([0-5]\d)(?::([0-5]\d)(?:\.0+)?)?(?:[Zz]|[+-]00:00)$/;

/**
 * Returns the source with each time in the one form that every runtime reads in the same way:
 * runtimes differ in lower case, fractions and days that a month does not have. Policy files have
 * no other times than whole seconds of UTC from 2020 to 8999.
 */
function normalTimes(source: string): { normal: string; times: number } {
  let out = "";
  let from = 0;
  let times = 0;
  for (let at: RegExpExecArray | null; (token.lastIndex = from), (at = token.exec(source)) !== null; ) {
    const found = at[0];
    if (found.length > 1) {
      out += source.slice(from, at.index) + normalTime(found);
      times++;
      from = at.index + found.length;
      continue;
    }
    const end = found === "#" ? endOf(source, "\n", at.index) : endOfString(source, at.index);
    out += source.slice(from, end);
    from = end;
  }
  return { normal: out + source.slice(from), times };
}

function normalTime(found: string): string {
  const parts = utc.exec(found);
  const normal = parts === null ? "" : `${parts[1]}T${parts[2]}:${parts[3]}:${parts[4] ?? "00"}Z`;
  const at = new Date(normal);
  // A day that the month does not have is read as one of the next month, or not at all.
  if (Number.isNaN(at.getTime()) || `${at.toISOString().slice(0, 19)}Z` !== normal || normal < "2020" || normal >= "9000") {
    throw fault("", "value", found, "a time such as 2026-11-22T09:00:00Z");
  }
  return normal;
}

/** Returns the place behind the string that begins at a quote. */
function endOfString(source: string, begin: number): number {
  const quote = source[begin]!;
  const triple = source.startsWith(quote.repeat(3), begin);
  for (let i = begin + (triple ? 3 : 1); i < source.length; i++) {
    const c = source[i]!;
    if (c === "\\" && quote === '"') {
      i++;
    } else if (c === "\n" && !triple) {
      break;
    } else if (c === quote) {
      let count = 1;
      while (triple && count < 5 && source[i + count] === quote) count++;
      if (!triple || count >= 3) return i + count;
      i += count - 1;
    }
  }
  throw fault("", "TOML", "a string without its end", "TOML");
}

function endOf(source: string, mark: string, from: number): number {
  const end = source.indexOf(mark, from);
  return end < 0 ? source.length : end;
}

/** Converts a value of the parser, and reports each time. Tables become maps, so that no key is special. */
function valueOf(value: unknown, path: string, onTime: () => void): TomlValue {
  if (typeof value === "string" || typeof value === "boolean") return value;
  if (typeof value === "bigint" && Number.isSafeInteger(Number(value))) return Number(value);
  if (value instanceof TomlDate && value.isDateTime() && !value.isLocal()) {
    onTime();
    return new Date(value.getTime());
  }
  if (Array.isArray(value)) return value.map((v, i) => valueOf(v, `${path}[${i}]`, onTime));
  if (typeof value === "object" && value !== null && !(value instanceof Date)) {
    return new Map(Object.entries(value).map(([key, v]) => [key, valueOf(v, joinPath(path, key), onTime)]));
  }
  throw fault(path, "value", value, "a value that policy files have: no fraction, local time, or number over 2^53");
}

/** Appends a key to a path, in quotes where TOML needs them. */
export function joinPath(path: string, key: string): string {
  const quoted = /^[a-zA-Z0-9_-]+$/.test(key) ? key : quote(key);
  return path === "" ? quoted : `${path}.${quoted}`;
}

const escapes: Readonly<Record<string, string>> = { "\x07": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v", '"': '\\"', "\\": "\\\\" };

/** Returns a string in quotes, with escapes for quotes, backslashes and characters that are not printed (Go's strconv.Quote). */
export function quote(value: string): string {
  return '"' + value.replace(/["\\]|[^\p{L}\p{M}\p{N}\p{P}\p{S} ]/gu, escaped) + '"';
}

function escaped(c: string): string {
  const code = c.codePointAt(0)!;
  const digits = (count: number) => code.toString(16).padStart(count, "0");
  return escapes[c] ?? (code < 0x80 ? `\\x${digits(2)}` : code < 0x10000 ? `\\u${digits(4)}` : `\\U${digits(8)}`);
}

/** Returns a value as TOML in one line, with sorted keys; undefined is the empty string. */
export function literal(value: TomlValue | undefined): string {
  if (value === undefined) return "";
  if (typeof value === "string") return quote(value);
  if (value instanceof Date) return `${value.toISOString().slice(0, 19)}Z`;
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value !== "object") return String(value);
  return `{ ${sortedKeys(value).map((key) => `${joinPath("", key)} = ${literal(value.get(key))}`).join(", ")} }`;
}

/** Returns the keys of a map in the order of their bytes. */
export function sortedKeys(map: ReadonlyMap<string, unknown>): string[] {
  return sortedTexts([...map.keys()]);
}

/** Sorts texts by their bytes in UTF-8, which is the order of their code points. */
export function sortedTexts(list: string[]): string[] {
  return list.sort((a, b) => {
    // UTF-16 orders surrogates before U+E000 to U+FFFF, and UTF-8 after them.
    const x = [...a], y = [...b];
    const i = x.findIndex((c, j) => c !== y[j]);
    if (i < 0) return x.length - y.length;
    return i >= y.length ? 1 : x[i]!.codePointAt(0)! - y[i]!.codePointAt(0)!;
  });
}

/** Reports whether a value is a table. */
export function isTable(value: TomlValue | undefined): value is TomlTable {
  return value instanceof Map;
}

function describe(value: TomlValue): string {
  if (isTable(value)) return "a table";
  if (Array.isArray(value)) return "a list";
  return typeof value === "string" ? value : literal(value);
}

/** Returns a form that reads so many bytes in lower-case hexadecimal digits. A form returns digits, or undefined for other text. */
export function digits(size: number): Form {
  return (s) => (s.length === 2 * size && /^[0-9a-f]*$/.test(s) ? s : undefined);
}

/** Reads text of a value into the hexadecimal digits of its bytes, undefined for text of another form. */
export type Form = (text: string) => string | undefined;

/** Returns a form that reads a prefix, and so many bytes in digits. */
export function prefixed(prefix: string, size: number): Form {
  const rest = digits(size);
  return (s) => (s.startsWith(prefix) ? rest(s.slice(prefix.length)) : undefined);
}

/** Returns a form that reads text of a pattern as its bytes. */
export function textForm(pattern: RegExp): Form {
  return (s) => (pattern.test(s) ? hex(new TextEncoder().encode(s)) : undefined);
}

/** Nanoseconds of the units of durations. */
const units: Readonly<Record<string, number>> = { ns: 1, us: 1e3, "µs": 1e3, "μs": 1e3, ms: 1e6, s: 1e9, m: 6e10, h: 3.6e12 };

/** Parses a duration such as 1h30m into nanoseconds, as Go's time.ParseDuration; undefined for other text. */
export function parseDuration(value: string): bigint | undefined {
  const sign = /^[-+]/.test(value) ? value[0] : "";
  const rest = value.slice(sign!.length);
  if (rest === "0") return 0n;
  const part = /(\d*)(\.\d*)?(ns|us|µs|μs|ms|s|m|h)/y;
  let total = 0n;
  let end = 0;
  for (let at: RegExpExecArray | null; end < rest.length; end = part.lastIndex) {
    at = part.exec(rest);
    if (at === null || (at[1] === "" && (at[2] ?? ".") === ".")) return undefined;
    const unit = units[at[3]!]!;
    // 19 digits are more than any duration that a policy accepts.
    if (at[1]!.length > 30) return undefined;
    const fraction = (at[2] ?? "").slice(1, 19);
    total += BigInt(at[1] === "" ? 0 : at[1]!) * BigInt(unit);
    if (fraction !== "") total += BigInt(Math.trunc(Number(fraction) * (unit / 10 ** fraction.length)));
  }
  if (end === 0) return undefined;
  return sign === "-" ? -total : total;
}

/** Nanoseconds of the units that bounds are written in. */
export const second = 10n ** 9n;
export const hour = 3600n * second;

/** Reads one table. Absent keys read as undefined; `require` refuses a table without them. */
export class Table {
  private readonly known = new Set<string>();

  constructor(
    readonly path: string,
    readonly values: TomlTable,
  ) {}

  /** Returns the path of a key. */
  keyPath(key: string): string {
    return joinPath(this.path, key);
  }

  /** Makes the refusal of a key. */
  fault(key: string, rule: string, got: unknown, want: unknown): Refusal {
    return fault(this.keyPath(key), rule, got, want);
  }

  /** Reports whether the table has a key. */
  has(key: string): boolean {
    return this.values.has(key);
  }

  /** Refuses a table without one of the keys. */
  require(...keys: string[]): void {
    for (const key of keys) {
      if (!this.has(key)) throw this.fault(key, "required key", "a table without it", "a value");
    }
  }

  /** Marks keys that other code reads. */
  expect(...keys: string[]): void {
    for (const key of keys) this.known.add(key);
  }

  /** Refuses a key that must not occur with another. */
  forbid(key: string, other: string): void {
    this.known.add(key);
    const value = this.values.get(key);
    if (value !== undefined) throw this.fault(key, "key", describe(value), `no value beside ${other}`);
  }

  /** Reads a value that `is` accepts. */
  value<T extends TomlValue>(key: string, want: string, is: (value: TomlValue) => value is T): T | undefined {
    this.known.add(key);
    const value = this.values.get(key);
    if (value !== undefined && !is(value)) throw this.fault(key, "value", describe(value), want);
    return value;
  }

  /** Reads a string that `ok` accepts; `""` where it is absent. */
  text(key: string, want: string, ok: (value: string) => boolean): string {
    return this.value(key, want, (v): v is string => typeof v === "string" && ok(v)) ?? "";
  }

  /** Reads a whole number in a range; 0 where it is absent. */
  number(key: string, least: number, most: number): number {
    return this.value(key, `a whole number from ${least} to ${most}`, (v): v is number => typeof v === "number" && least <= v && v <= most) ?? 0;
  }

  /** Reads true or false; false where it is absent. */
  flag(key: string): boolean {
    return this.value(key, "true or false", (v): v is boolean => typeof v === "boolean") ?? false;
  }

  /** Reads a time, in milliseconds since 1970. */
  time(key: string): number | undefined {
    return this.value(key, "a time such as 2026-11-22T09:00:00Z", (v): v is Date => v instanceof Date)?.getTime();
  }

  /** Reads a duration in a range of nanoseconds, in milliseconds. */
  duration(key: string, least: bigint, most: bigint): number | undefined {
    const want = `a duration from ${least} ns to ${most} ns`;
    const value = this.text(key, want, (s) => {
      const d = parseDuration(s);
      return d !== undefined && least <= d && d <= most;
    });
    return value === "" ? undefined : Number(parseDuration(value)) / 1e6;
  }

  /** Reads a digest; zeroDigest where it is absent. */
  digest(key: string): Digest {
    return this.text(key, wantDigest, isDigest) || zeroDigest;
  }

  /** Reads a list. */
  list(key: string): readonly TomlValue[] {
    return this.value(key, "a list", (v): v is TomlValue[] => Array.isArray(v)) ?? [];
  }

  /** Reads a list of strings that `ok` accepts. */
  texts(key: string, want: string, ok: (value: string) => boolean): string[] {
    return this.list(key).map((v, i) => {
      if (typeof v !== "string" || !ok(v)) throw fault(`${this.keyPath(key)}[${i}]`, "value", describe(v), want);
      return v;
    });
  }

  /** Reads a list of strings in which none occurs twice. */
  set(key: string, want: string, ok: (value: string) => boolean): string[] {
    const list = this.texts(key, want, ok);
    this.refuseRepeated(key, list);
    return list;
  }

  /** Refuses a value that occurs twice. */
  refuseRepeated(key: string, list: readonly unknown[]): void {
    const seen = new Set<unknown>();
    for (const v of list) {
      if (seen.has(v)) throw this.fault(key, "element twice", v, "each once");
      seen.add(v);
    }
  }

  /** Reads a table inside this one. */
  table(key: string): Table | undefined {
    const values = this.value(key, "a table", isTable);
    return values && new Table(this.keyPath(key), values);
  }

  /** Reads a list of tables. */
  tables(key: string): Table[] {
    return (this.value(key, "a list of tables", (v): v is TomlValue[] => Array.isArray(v)) ?? []).map((v, i) => {
      const path = `${this.keyPath(key)}[${i}]`;
      if (!isTable(v)) throw fault(path, "value", describe(v), "a table");
      return new Table(path, v);
    });
  }

  /** Reads a table of tables whose keys `ok` accepts, in the order of the keys. */
  namedTables(key: string, want: string, ok: (name: string) => boolean): [name: string, table: Table][] {
    const all = this.table(key);
    if (all === undefined) return [];
    // All names first, as the tables are read in the order of the caller.
    return sortedKeys(all.values).map((name) => {
      if (!ok(name)) throw all.fault(name, "name", name, want);
      return [name, all.table(name)!];
    });
  }

  /** Refuses keys that were not read. */
  end(): void {
    for (const key of sortedKeys(this.values)) {
      if (!this.known.has(key)) throw this.fault(key, "unknown key", key, `one of ${sortedTexts([...this.known]).join(", ")}`);
    }
  }
}
