/**
 * TOML of policy files, read strictly (docs/spec/policy.md, section 1). A Table reads one table: each
 * method reads one key and refuses a value that breaks its rule, and `end` refuses every key that
 * was not read. So a key exists exactly if code reads it. The first broken rule ends the reading,
 * with reason `policy`.
 */

import { hex, text } from "../bytes.js";
import { type Refusal, refuse } from "../refusal.js";
import { parseToml, type TomlTable, type TomlValue } from "./parser.js";
import { type Digest, isDigest, zeroDigest } from "./digest.js";

export type { TomlTable, TomlValue };

/** The most bytes of a policy file. */
const maxPolicy = 256 << 10;

/** Makes the refusal of a broken rule at a path. What each key accepts is in the reference, and owners see it before they sign. */
export function fault(path: string, rule: string, got: unknown): Refusal {
  return refuse("policy", path === "" ? rule : `${path}: ${rule}`, got, "what docs/reference/policy.md specifies");
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
  if (raw.length > maxPolicy) throw fault("", "size in bytes", raw.length);
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
    if (seen[0] === "\ufeff" && seen.index === 0) throw fault("", "encoding", "a byte order mark");
    if (source.includes("\r")) throw fault("", "line ends", "CR");
    const before = source.slice(0, seen.index).split("\n");
    const got = `U+${seen[0].codePointAt(0)!.toString(16).toUpperCase().padStart(4, "0")}`;
    throw fault(`line ${before.length}, column ${[...before[before.length - 1]!].length + 1}`, "character", got);
  }
  return parseToml(source);
}

/** Appends a key to a path, in quotes where TOML needs them. */
export function joinPath(path: string, key: string): string {
  const quoted = /^[a-zA-Z0-9_-]+$/.test(key) ? key : quote(key);
  return path === "" ? quoted : `${path}.${quoted}`;
}

const escapes: Readonly<Record<string, string>> = { "\x07": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v", '"': '\\"', "\\": "\\\\" };

/**
 * Returns a string in quotes. Quotes, backslashes and all but printable ASCII are escaped (Go's strconv.QuoteToASCII), so that the
 * identity of a group depends on no version of Unicode.
 */
export function quote(value: string): string {
  return '"' + value.replace(/["\\]|[^ -~]/gu, escaped) + '"';
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
  fault(key: string, rule: string, got: unknown): Refusal {
    return fault(this.keyPath(key), rule, got);
  }

  /** Reports whether the table has a key. */
  has(key: string): boolean {
    return this.values.has(key);
  }

  /** Refuses a table without one of the keys. */
  require(...keys: string[]): void {
    for (const key of keys) {
      if (!this.has(key)) throw this.fault(key, "required key", "a table without it");
    }
  }

  /** Marks keys that other code reads. */
  expect(...keys: string[]): void {
    for (const key of keys) this.known.add(key);
  }

  /** Refuses a key that must not occur with another. */
  forbid(key: string): void {
    this.known.add(key);
    const value = this.values.get(key);
    if (value !== undefined) throw this.fault(key, "key", describe(value));
  }

  /** Reads a value that `is` accepts. */
  value<T extends TomlValue>(key: string, is: (value: TomlValue) => value is T): T | undefined {
    this.known.add(key);
    const value = this.values.get(key);
    if (value !== undefined && !is(value)) throw this.fault(key, "value", describe(value));
    return value;
  }

  /** Reads a string that `ok` accepts; `""` where it is absent. */
  text(key: string, ok: (value: string) => boolean): string {
    return this.value(key, (v): v is string => typeof v === "string" && ok(v)) ?? "";
  }

  /** Reads a whole number in a range; 0 where it is absent. */
  number(key: string, least: number, most: number): number {
    return this.value(key, (v): v is number => typeof v === "number" && least <= v && v <= most) ?? 0;
  }

  /** Reads true or false; false where it is absent. */
  flag(key: string): boolean {
    return this.value(key, (v): v is boolean => typeof v === "boolean") ?? false;
  }

  /** Reads a time, in milliseconds since 1970. */
  time(key: string): number | undefined {
    return this.value(key, (v): v is Date => v instanceof Date)?.getTime();
  }

  /** Reads a duration in a range of nanoseconds, in milliseconds. */
  duration(key: string, least: bigint, most: bigint): number | undefined {
    const value = this.text(key, (s) => {
      const d = parseDuration(s);
      return d !== undefined && least <= d && d <= most;
    });
    return value === "" ? undefined : Number(parseDuration(value)) / 1e6;
  }

  /** Reads a digest; zeroDigest where it is absent. */
  digest(key: string): Digest {
    return this.text(key, isDigest) || zeroDigest;
  }

  /** Reads a list. */
  list(key: string): readonly TomlValue[] {
    return this.value(key, (v): v is TomlValue[] => Array.isArray(v)) ?? [];
  }

  /** Reads a list of strings that `ok` accepts. */
  texts(key: string, ok: (value: string) => boolean): string[] {
    return this.list(key).map((v, i) => {
      if (typeof v !== "string" || !ok(v)) throw fault(`${this.keyPath(key)}[${i}]`, "value", describe(v));
      return v;
    });
  }

  /** Reads a list of strings in which none occurs twice. */
  set(key: string, ok: (value: string) => boolean): string[] {
    const list = this.texts(key, ok);
    this.refuseRepeated(key, list);
    return list;
  }

  /** Refuses a value that occurs twice. */
  refuseRepeated(key: string, list: readonly unknown[]): void {
    const seen = new Set<unknown>();
    for (const v of list) {
      if (seen.has(v)) throw this.fault(key, "element twice", v);
      seen.add(v);
    }
  }

  /** Reads a table inside this one. */
  table(key: string): Table | undefined {
    const values = this.value(key, isTable);
    return values && new Table(this.keyPath(key), values);
  }

  /** Reads a list of tables. */
  tables(key: string): Table[] {
    return (this.value(key, (v): v is TomlValue[] => Array.isArray(v)) ?? []).map((v, i) => {
      const path = `${this.keyPath(key)}[${i}]`;
      if (!isTable(v)) throw fault(path, "value", describe(v));
      return new Table(path, v);
    });
  }

  /** Reads a table of tables whose keys `ok` accepts, in the order of the keys. */
  namedTables(key: string, ok: (name: string) => boolean): [name: string, table: Table][] {
    const all = this.table(key);
    if (all === undefined) return [];
    // All names first, as the tables are read in the order of the caller.
    return sortedKeys(all.values).map((name) => {
      if (!ok(name)) throw all.fault(name, "name", name);
      return [name, all.table(name)!];
    });
  }

  /** Refuses keys that were not read: what a reader does not know may restrict something. */
  end(): void {
    for (const key of sortedKeys(this.values)) {
      if (!this.known.has(key)) throw this.fault(key, "unknown key", key);
    }
  }
}
