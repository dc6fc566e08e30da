/**
 * Comparison of policy files (docs/spec/policy.md, section 7), as far as it decides about leaves and
 * groups: which platforms accept less after a step, and whether the floors of a group fell. Files
 * are compared key by key, so that no key is forgotten: a change loosens unless a rule here, or the
 * platform that declares the key, says that it tightens.
 */

import { hex } from "../bytes.js";
import { bitNames } from "../evidence/rules.js";
import { encodeMeasurement, type ReferenceValue } from "../evidence/measurement.js";
import type { Document, Group } from "./document.js";
import { type Key, platforms } from "./platforms.js";
import { isTable, literal, parseDuration, quote, sortedTexts, type TomlTable, type TomlValue } from "./toml.js";

/** One difference. A kind is a path in which `*` is every name that the file chooses. */
interface Change {
  kind: string;
  loosens: boolean;
}

/** Keys of platforms by kind, and the kinds of tables whose keys the file chooses. */
interface Kinds {
  keys: ReadonlyMap<string, Key>;
  chosen: ReadonlySet<string>;
}

let memo: Kinds | undefined;

/** Returns the keys of all platforms by their kinds. */
function kinds(): Kinds {
  if (memo !== undefined) return memo;
  const keys = new Map<string, Key>();
  const chosen = new Set(["task", "task.*.release", "task.*.release.*.devices"]);
  const add = (parent: string, list: readonly Key[]) => {
    for (const key of list) {
      const kind = `${parent}.${key.name}`;
      if (key.kind === "named") {
        chosen.add(kind);
        keys.set(`${kind}.*`, key);
        for (const name of key.names!) add(`${kind}.*`, key.named!(name));
      } else if (key.kind === "bits") {
        keys.set(kind, { ...key, direction: "fixed" });
        for (const name of bitNames(key.field!)) keys.set(`${kind}.${name}`, { ...key, name, optional: false });
        add(kind, key.keys ?? []);
      } else {
        keys.set(kind, key);
        if (key.kind !== "joined") add(kind, key.keys ?? []);
      }
    }
  };
  for (const p of platforms.values()) {
    keys.set(`platform.${p.name}`, { name: p.name, kind: "table", direction: "grants" });
    add(`platform.${p.name}`, [{ name: "roots", kind: "bytes", direction: "grants" }, { name: "debug", kind: "flag", direction: "flag" }, ...p.keys]);
  }
  memo = { keys, chosen };
  return memo;
}

/** Compares two tables. A removed table is one change, an added table one for each of its values. */
function diffTables(parent: string, old: TomlTable | undefined, next: TomlTable): Change[] {
  const changes: Change[] = [];
  for (const key of sortedTexts([...new Set([...(old?.keys() ?? []), ...next.keys()])])) {
    const kind = (parent === "" ? "" : `${parent}.`) + (kinds().chosen.has(parent) ? "*" : key);
    let was = old?.get(key), is = next.get(key);
    if (old !== undefined) {
      was = meant(kind, was);
      is = meant(kind, is);
    }
    if (isTable(was) && isTable(is)) {
      changes.push(...diffTables(kind, was, is));
    } else if (was === undefined && isTable(is) && is.size > 0) {
      // Everything in an added table loosens, its limits too, unless the table itself is a limit.
      changes.push(...diffTables(kind, undefined, is).map((c) => ({ ...c, loosens: !cutsBy(kind) })));
    } else {
      changes.push(...diffValues(kind, was, is));
    }
  }
  return changes;
}

/** Returns a value, or the value that its absence means. */
function meant(kind: string, value: TomlValue | undefined): TomlValue | undefined {
  const key = kinds().keys.get(kind);
  return value ?? (key?.optional ? new Map() : key?.implied);
}

/** Compares two values, lists by their elements. */
function diffValues(kind: string, was: TomlValue | undefined, is: TomlValue | undefined): Change[] {
  const change = (before: string, after: string): Change => ({ kind, loosens: !tightens(kind, before, after) });
  const before = elements(was), after = elements(is);
  if (before === undefined || after === undefined) {
    const [a, b] = [literal(was), literal(is)];
    return a === b ? [] : [change(a, b)];
  }
  return [
    ...before.filter((v) => !after.includes(v)).map((v) => change(v, "")),
    ...after.filter((v) => !before.includes(v)).map((v) => change("", v)),
  ];
}

/** Returns the literals of a list, undefined for another value. A missing list has none. */
function elements(value: TomlValue | undefined): string[] | undefined {
  return value === undefined ? [] : Array.isArray(value) ? value.map(literal) : undefined;
}

/** Reports whether values of a kind accept less when they are added. */
function cutsBy(kind: string): boolean {
  return kind === "task.*.release.*.devices" || kinds().keys.get(kind)?.direction === "cuts";
}

/** Reports whether an added, removed or changed value accepts less. Values are literals, empty where there is none. */
function tightens(kind: string, was: string, is: string): boolean {
  const key = kinds().keys.get(kind);
  if (key !== undefined) return narrower(key, was, is);
  switch (kind) {
    case "task.*.release.*.dynamic":
    case "task.*.release.*.oneoff":
      return is !== "true";
    case "task.*.release.*.devices.*":
      return Number(is) >= Number(was);
    case "task.*":
    case "task.*.release.*":
      return was !== "" && is === "";
    case "task.*.release.*.devices":
      return was === "";
  }
  return false;
}

/** Reports whether a platform accepts less with another value of a key. */
function narrower(key: Key, was: string, is: string): boolean {
  switch (key.direction) {
    case "fixed":
      return false;
    case "grants": // a list may have been "any"
      return was !== "" && (is === "" || was === '"any"');
    case "flag":
      return is !== "true";
    case "cuts":
      return was === "";
    case "floor": // a missing number is 0
      return Number(is) >= Number(was);
    case "ceiling":
      return Number(is) <= Number(was);
    case "time": // literals have one form, in UTC
      return is >= was;
    case "version":
      return versionNumber(is) >= versionNumber(was);
    case "bits": {
      const before = demandOf(key, was);
      return before === "any" || before === demandOf(key, is);
    }
    case "loosest":
      return is !== quote(key.loosest!);
    case "age":
      return was !== "" && is !== "" && durationOf(is) < durationOf(was);
    case "optional-age":
      return is !== "" && (was === "" || durationOf(is) < durationOf(was));
  }
}

function demandOf(key: Key, value: string): string {
  if (value === "") return key.field!.bits.find((b) => b.name === key.name && b.rule === undefined)?.demand ?? "any";
  return value === "true" ? "set" : value === "false" ? "clear" : "any";
}

function durationOf(value: string): bigint {
  return parseDuration(value.slice(1, -1)) ?? 0n;
}

/** Returns a version of two numbers as one; a missing one is 0. */
function versionNumber(value: string): number {
  const [major, minor] = value.replaceAll('"', "").split(".").map(Number);
  return (major ?? 0) * 256 + (minor ?? 0);
}

/**
 * Returns the platforms that accept less after a step, or are gone, and those of them that accept
 * less in what leaf certificates do not record. A TPM measures every program since the machine
 * booted, so a reference value that is gone narrows its rule for all programs.
 */
export function tightened(old: Document, next: Document): { narrowed: Set<string>; raised: Set<string> } {
  const narrowed = new Set<string>(), raised = new Set<string>();
  const before = tableAt(old.source, "platform")!, after = tableAt(next.source, "platform")!;
  for (const [name, table] of before) {
    if (!after.has(name)) {
      narrowed.add(name);
      raised.add(name);
      continue;
    }
    const changes = diffTables("platform", new Map([[name, table]]), new Map([[name, after.get(name)!]]));
    for (const c of changes.filter((c) => !c.loosens)) {
      narrowed.add(name);
      if (platforms.get(name)!.device || !kinds().keys.get(c.kind)?.recorded) raised.add(name);
    }
  }
  const now = launches(next);
  if ([...launches(old)].some((r) => !now.has(r))) {
    narrowed.add("tpm");
    raised.add("tpm");
  }
  return { narrowed, raised };
}

/** Returns the reference values of TPMs. */
function launches(d: Document): Set<string> {
  const all: ReferenceValue[] = [...d.authority.references, ...[...d.tasks.values()].flatMap((t) => [...t.releases.values()].flatMap((r) => r.references))];
  return new Set(all.filter((r) => r.platform === "tpm").map((r) => hex(encodeMeasurement(r))));
}

/** Returns the table at a path, or undefined. */
function tableAt(root: TomlTable, ...path: string[]): TomlTable | undefined {
  let at: TomlValue | undefined = root;
  for (const key of path) at = isTable(at) ? at.get(key) : undefined;
  return isTable(at) ? at : undefined;
}

/**
 * Returns the floors of a group under a document: the tables of the members' platforms and devices,
 * and the settings of their releases. Members whose release the document does not have add none.
 */
export function floorsOf(d: Document, group: Group): TomlTable {
  const used = new Map<string, TomlValue>(), tasks = new Map<string, Map<string, TomlValue>>();
  for (const member of [...group.roles.values()].flatMap((r) => r.members)) {
    const release = d.tasks.get(member.task)?.releases.get(member.release);
    const table = tableAt(d.source, "task", member.task, "release", member.release);
    if (release === undefined || table === undefined) continue;
    const settings = new Map(table);
    // Measurements are in the identity; the others concern sessions by task name, and new certificates.
    for (const key of ["reference", "continues", "retired"]) settings.delete(key);
    tasks.set(member.task, (tasks.get(member.task) ?? new Map<string, TomlValue>()).set(member.release, settings));
    for (const name of [...release.references.map((r) => r.platform), ...release.devices.keys()]) {
      used.set(name, tableAt(d.source, "platform", name)!);
    }
  }
  const releases = new Map([...tasks].map(([name, inner]): [string, TomlValue] => [name, new Map([["release", inner]])]));
  return new Map<string, TomlValue>([["platform", used], ["task", releases]]);
}

/** Reports whether floors demand less than before. */
export function floorsFell(before: TomlTable, now: TomlTable): boolean {
  return diffTables("", before, now).some((c) => c.loosens);
}
