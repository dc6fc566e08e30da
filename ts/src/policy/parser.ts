/**
 * A parser for TOML as policy files use it. It reads what the Go code's library reads (TOML 1.1), with
 * the same rules of which tables and keys may follow which. Values that no policy has are refused:
 * fractions, numbers over 2^53, times other than whole seconds of UTC, more than 64 levels. A library
 * would leave times to the runtime's Date, and runtimes differ there.
 */

import { type Refusal, refuse } from "../refusal.js";

/** A value of TOML. Numbers are whole; a Date is a time in whole seconds of UTC from 2020 to 8999. */
export type TomlValue = string | number | boolean | Date | TomlValue[] | TomlTable;

/** A table of TOML. */
export type TomlTable = ReadonlyMap<string, TomlValue>;

type Table = Map<string, TomlValue>;

/** How a table came to be: by its own header, by the header of a table in it, or by a dotted key. Inline tables are closed and have none. */
type Origin = "header" | "implied" | "dotted";

const maxDepth = 64;

const bareKey = /[A-Za-z0-9_-]+/y;
const whole = /0x[\da-fA-F](?:_?[\da-fA-F])*|0o[0-7](?:_?[0-7])*|0b[01](?:_?[01])*|[+-]?(?:0|[1-9](?:_?\d)*)/y;
const utc = /(\d{4}-\d\d-\d\d)[Tt ]([01]\d|2[0-3]):([0-5]\d)(?::([0-5]\d)(?:\.0+)?)?(?:[Zz]|[+-]00:00)/y;
const escapes: Readonly<Record<string, string>> = { b: "\b", t: "\t", n: "\n", f: "\f", r: "\r", e: "\x1b", '"': '"', "\\": "\\" };

/** Parses TOML without control characters but tab and LF. Every fault is refused as `policy`. */
export function parseToml(source: string): TomlTable {
  let p = 0;
  const origins = new Map<TomlValue, Origin>();
  /** Lists that headers `[[…]]` made. */
  const lists = new Set<TomlValue>();

  const fault = (want: string): Refusal => refuse("policy", `line ${source.slice(0, p).split("\n").length}: TOML`, JSON.stringify(source.slice(p, p + 20)), want);

  /** Reads what a sticky pattern matches, or returns null. */
  function scan(pattern: RegExp): RegExpExecArray | null {
    pattern.lastIndex = p;
    const found = pattern.exec(source);
    if (found !== null) p += found[0].length;
    return found;
  }

  function take(mark: string): boolean {
    const is = source.startsWith(mark, p);
    if (is) p += mark.length;
    return is;
  }

  function skipSpaces(): void {
    scan(/[ \t]*/y);
  }

  /** Skips white space, and comments. */
  function skipLines(): void {
    do scan(/[ \t\n]*/y);
    while (scan(/#[^\n]*/y) !== null);
  }

  function endLine(): void {
    skipSpaces();
    scan(/#[^\n]*/y);
    if (p < source.length && !take("\n")) throw fault("the end of the line");
  }

  /** Reads a string at its first quote. */
  function readString(multiline: boolean): string {
    const quote = source[p]!;
    const triple = multiline && take(quote.repeat(3));
    if (triple) take("\n");
    else p++;
    let out = "";
    for (;;) {
      out += scan(quote === "'" ? (triple ? /[^']*/y : /[^'\n]*/y) : triple ? /[^"\\]*/y : /[^"\\\n]*/y)![0];
      if (take("\\")) {
        out += readEscape(triple);
        continue;
      }
      let count = 0;
      while (source[p] === quote && count < (triple ? 5 : 1)) {
        p++;
        count++;
      }
      if (count === 0) throw fault("the end of the string");
      if (count >= 3) return out + quote.repeat(count - 3);
      if (!triple) return out;
      out += quote.repeat(count);
    }
  }

  function readEscape(triple: boolean): string {
    if (triple && scan(/[ \t]*\n[ \t\n]*/y) !== null) return "";
    const digits = scan(/x([\da-fA-F]{2})|u([\da-fA-F]{4})|U([\da-fA-F]{8})/y);
    if (digits !== null) {
      const code = parseInt(digits[0].slice(1), 16);
      if (code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff)) throw fault("a character of Unicode");
      return String.fromCodePoint(code);
    }
    const c = source[p] ?? "";
    if (!Object.hasOwn(escapes, c)) throw fault("an escape");
    p++;
    return escapes[c]!;
  }

  /** Reads a key of one or more parts, and the white space after it. */
  function readKey(): string[] {
    const parts: string[] = [];
    do {
      skipSpaces();
      const c = source[p];
      const bare = c === '"' || c === "'" ? readString(false) : scan(bareKey)?.[0];
      if (bare === undefined || parts.length === maxDepth) throw fault("a key");
      parts.push(bare);
      skipSpaces();
    } while (take("."));
    return parts;
  }

  function readTime(found: RegExpExecArray): Date {
    const normal = `${found[1]}T${found[2]}:${found[3]}:${found[4] ?? "00"}Z`;
    const at = new Date(normal);
    // Runtimes read a day that the month does not have as one of the next month, or not at all.
    if (Number.isNaN(at.getTime()) || `${at.toISOString().slice(0, 19)}Z` !== normal || normal < "2020" || normal >= "9000") throw fault("a time such as 2026-11-22T09:00:00Z");
    return at;
  }

  function readValue(depth: number): TomlValue {
    if (depth > maxDepth) throw fault(`at most ${maxDepth} levels`);
    const c = source[p];
    if (c === '"' || c === "'") return readString(true);
    if (take("true")) return true;
    if (take("false")) return false;
    if (take("[")) return readList(depth);
    if (take("{")) return readInline(depth);
    const time = scan(utc);
    if (time !== null) return readTime(time);
    // What follows a number of another kind is not the end of a value.
    const digits = scan(whole)?.[0].replaceAll("_", "");
    const number = digits === undefined ? NaN : Number(digits) + 0;
    if (!Number.isSafeInteger(number)) throw fault("a value that policy files have");
    return number;
  }

  function readList(depth: number): TomlValue[] {
    const list: TomlValue[] = [];
    for (skipLines(); !take("]"); skipLines()) {
      list.push(readValue(depth + 1));
      skipLines();
      if (!take(",") && source[p] !== "]") throw fault(", or ]");
    }
    return list;
  }

  function readInline(depth: number): Table {
    const table: Table = new Map();
    for (skipLines(); !take("}"); skipLines()) {
      readPair(table, depth + 1);
      skipLines();
      if (!take(",") && source[p] !== "}") throw fault(", or }");
    }
    return table;
  }

  /** Reads a key and its value into a table. Dotted keys enter only tables that dotted keys made. */
  function readPair(table: Table, depth: number): void {
    const parts = readKey();
    const last = parts.pop()!;
    for (const part of parts) {
      if (!table.has(part)) add(table, part, "dotted");
      const inner = table.get(part)!;
      if (origins.get(inner) !== "dotted") throw fault("a key that has no value yet");
      table = inner as Table;
    }
    if (table.has(last)) throw fault("a key that has no value yet");
    if (!take("=")) throw fault("=");
    skipSpaces();
    table.set(last, readValue(depth + parts.length));
  }

  function add(parent: Table, key: string, origin: Origin): Table {
    const table: Table = new Map();
    origins.set(table, origin);
    parent.set(key, table);
    return table;
  }

  /** Reads a header behind its `[`, and returns its table. */
  function readHeader(root: Table): Table {
    const isList = take("[");
    const parts = readKey();
    if (!take(isList ? "]]" : "]")) throw fault("] of the header");
    const last = parts.pop()!;
    let at = root;
    for (const part of parts) {
      const inner = at.get(part) ?? add(at, part, "implied");
      if (lists.has(inner)) at = (inner as Table[]).at(-1)!;
      else if (origins.has(inner)) at = inner as Table;
      else throw fault("the header of a table");
    }
    const found = at.get(last);
    if (isList) {
      const list = (found ?? []) as Table[];
      if (found === undefined) {
        lists.add(list);
        at.set(last, list);
      }
      if (!lists.has(list)) throw fault("a list of tables");
      const table: Table = new Map();
      origins.set(table, "header");
      list.push(table);
      return table;
    }
    if (found === undefined) return add(at, last, "header");
    if (origins.get(found) !== "implied") throw fault("a table that has no header yet");
    origins.set(found, "header");
    return found as Table;
  }

  const root: Table = new Map();
  let table = root;
  for (skipLines(); p < source.length; skipLines()) {
    if (take("[")) table = readHeader(root);
    else readPair(table, 0);
    endLine();
  }
  return root;
}
