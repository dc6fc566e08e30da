/**
 * Intel's statements about platforms: TCB info and the identity of the quoting enclave, their
 * levels, and how the statuses of several parts are combined (docs/spec/evidence-dcap.md, TCB
 * status). What is read here is signed by Intel and verified before it is read.
 */

import { type Bytes, equal, fromHex, hex, text } from "../bytes.js";
import { refuse } from "../refusal.js";
import type { Validity } from "./pki.js";

/** What Intel certifies of a platform: which it is, and the versions that its PCK was derived from. */
export interface Pck {
  /** 16 bytes. */
  ppid: Uint8Array;
  /** 6 bytes: the model of the CPU and its platform. */
  fmspc: Uint8Array;
  /** 2 bytes. */
  pceId: Uint8Array;
  /** 16 components. */
  svns: readonly number[];
  pceSvn: number;
}

/** A set of least versions, and what Intel states about it. */
interface Level {
  sgx: readonly number[];
  tdx: readonly number[];
  pceSvn: number;
  isvSvn: number | undefined;
  /** Milliseconds since 1970; undefined where Intel states none. */
  date: number | undefined;
  status: number;
  advisories: readonly string[];
}

/** What TCB info and QE identity have in common. */
interface Statement {
  id: string;
  evaluation: number;
  validity: Validity;
  levels: readonly Level[];
}

/** What a TDX module is known by, and its levels. */
interface Module {
  id: string;
  signer: Bytes;
  attributes: Bytes;
  mask: Bytes;
  levels: readonly Level[];
}

/** Intel's statement about the TCB levels of one model of platforms (PCS API version 4). */
export interface TcbInfo extends Statement {
  fmspc: Bytes;
  pceId: Bytes;
  module: Module | undefined;
  modules: readonly Module[];
}

/** Intel's statement about the quoting enclave. */
export interface QeIdentity extends Statement {
  miscSelect: Bytes;
  miscMask: Bytes;
  attributes: Bytes;
  mask: Bytes;
  signer: Bytes;
  productId: number;
}

// A status is a set of what is the matter. 0 is no status and accepted nowhere.
const rated = 1, hardening = 2, configuration = 4, outOfDate = 8, revoked = 16, relaunch = 32;

/** Intel's words. The last two are in no document: a verifier concludes them. */
const statuses: readonly (readonly [word: string, status: number])[] = [
  ["UpToDate", rated],
  ["SWHardeningNeeded", rated | hardening],
  ["ConfigurationNeeded", rated | configuration],
  ["ConfigurationAndSWHardeningNeeded", rated | configuration | hardening],
  ["OutOfDate", rated | outOfDate],
  ["OutOfDateConfigurationNeeded", rated | outOfDate | configuration],
  ["Revoked", rated | revoked],
  ["TDRelaunchAdvised", rated | relaunch],
  ["TDRelaunchAdvisedConfigurationNeeded", rated | relaunch | configuration],
];

function statusText(status: number): string {
  return statuses.find(([, known]) => known === status)?.[0] ?? "none";
}

/**
 * Combines the statuses of two parts as Intel does: what is the matter with one is the matter with
 * both, but Revoked hides all else, and OutOfDate hides that software must be hardened.
 */
function worse(a: number, b: number): number {
  const joined = a | b;
  if (a === 0 || b === 0) return 0;
  if (joined & revoked) return rated | revoked;
  return joined & outOfDate ? joined & ~hardening : joined;
}

/**
 * Combines the status at a TD's launch with that of the module that it runs under now. Where a
 * module that was out of date was replaced by one that is not, Intel advises to launch the TD anew.
 */
function relaunched(launch: number, current: number): number {
  const joined = worse(launch, current);
  if (joined === 0 || joined & revoked || !(launch & outOfDate) || current & outOfDate) return joined;
  return rated | relaunch | (joined & configuration);
}

/** Parses TCB info, version 3, of an id: `SGX` or `TDX`. */
export function parseTcbInfo(signed: Uint8Array, id: "SGX" | "TDX"): TcbInfo {
  const o = parseObject("TCB info", signed);
  const statement = parseStatement(o, "TCB info", id, 3);
  const modules = o.list("tdxModuleIdentities").map(parseModule);
  const info = { ...statement, fmspc: o.octets("fmspc"), pceId: o.octets("pceId"), module: o.has("tdxModule") ? parseModule(o.object("tdxModule")) : undefined, modules };
  for (const { sgx, tdx } of statement.levels) {
    if (sgx.length !== 16 || tdx.length !== (id === "TDX" ? 16 : 0)) {
      throw refuse("malformed", "dcap: level of TCB info", `${sgx.length} and ${tdx.length} components`, "16 components of each kind");
    }
  }
  for (const m of modules) checkVersions(m.levels);
  if (o.number("tcbType", 0xffff) !== 0 || (id === "TDX" && !info.module)) throw refuse("malformed", "dcap: TCB info", `type ${o.number("tcbType", 0xffff)}`, "type 0, with its TDX module");
  return info;
}

/** Parses an identity of the quoting enclave, version 2, of an id: `QE` or `TD_QE`. */
export function parseQeIdentity(signed: Uint8Array, id: "QE" | "TD_QE"): QeIdentity {
  const o = parseObject("QE identity", signed);
  const statement = parseStatement(o, "QE identity", id, 2);
  checkVersions(statement.levels);
  return {
    ...statement,
    miscSelect: o.octets("miscselect"), miscMask: o.octets("miscselectMask"), attributes: o.octets("attributes"), mask: o.octets("attributesMask"),
    signer: o.octets("mrsigner"), productId: o.number("isvprodid", 0xffff),
  };
}

function parseStatement(o: Json, of: string, id: string, version: number): Statement {
  if (o.string("id") !== id) throw refuse("wrong-chip", "dcap: id of the collateral", o.string("id"), id);
  if (o.number("version", 0xffff) !== version) throw refuse("malformed", `dcap: version of ${id}`, o.number("version", 0xffff), version);
  return {
    id,
    evaluation: o.number("tcbEvaluationDataNumber", 0xffffffff),
    validity: { of, from: o.date("issueDate"), until: o.date("nextUpdate"), issued: true },
    levels: o.list("tcbLevels").map(parseLevel),
  };
}

function parseModule(o: Json): Module {
  return {
    id: o.has("id") ? o.string("id") : "",
    signer: o.octets("mrsigner"), attributes: o.octets("attributes"), mask: o.octets("attributesMask"),
    levels: o.list("tcbLevels").map(parseLevel),
  };
}

function parseLevel(o: Json): Level {
  const tcb = o.object("tcb"), word = o.string("tcbStatus");
  const status = statuses.find(([known, bits]) => known === word && !(bits & relaunch))?.[1];
  if (status === undefined) throw refuse("malformed", "dcap: TCB status", word.slice(0, 80), "one of Intel's");
  const svns = (name: string) => tcb.list(name).map((component) => component.number("svn", 0xff));
  return {
    sgx: svns("sgxtcbcomponents"), tdx: svns("tdxtcbcomponents"),
    pceSvn: tcb.number("pcesvn", 0xffff),
    isvSvn: tcb.has("isvsvn") ? tcb.number("isvsvn", 0xffff) : undefined,
    date: o.has("tcbDate") ? o.date("tcbDate") : undefined,
    status,
    advisories: o.strings("advisoryIDs"),
  };
}

function checkVersions(levels: readonly Level[]): void {
  if (levels.some((l) => l.isvSvn === undefined)) throw refuse("malformed", "dcap: level of one version", "none", "a version and a status");
}

/** Checks that a quoting enclave, by its report of 384 bytes, is Intel's. */
export function checkEnclave(identity: QeIdentity, qe: Uint8Array): void {
  const fault = (what: string, got: Uint8Array, want: Uint8Array) => refuse("chain", `dcap: ${what} of the QE`, hex(got), hex(want));
  const signer = qe.subarray(128, 160), attributes = qe.subarray(48, 64), miscSelect = qe.subarray(16, 20), productId = qe[256]! | (qe[257]! << 8);
  if (!equal(signer, identity.signer)) throw fault("signer", signer, identity.signer);
  if (productId !== identity.productId) throw refuse("chain", "dcap: product id of the QE", productId, identity.productId);
  if (!masked(attributes, identity.mask, identity.attributes)) throw fault("attributes", attributes, identity.attributes);
  if (!masked(miscSelect, identity.miscMask, identity.miscSelect)) throw fault("MISCSELECT", miscSelect, identity.miscSelect);
}

function masked(got: Uint8Array, mask: Uint8Array, want: Uint8Array): boolean {
  return got.length === mask.length && got.length === want.length && got.every((b, i) => (b & mask[i]!) === want[i]);
}

/** What Intel states about a platform, of each part and of all, in its words. */
export interface Verdict {
  platform: string;
  /** Missing where Intel rates no module. */
  module?: string;
  qe: string;
  overall: string;
  /** Of all with the TDX module that runs now, where it is another than at launch. */
  current?: string;
  revoked: boolean;
  /** `tcbDate` of the platform's level. */
  date: number | undefined;
  /** Of all matched levels, sorted. */
  advisories: readonly string[];
}

/**
 * Rates a platform. `guest` is the body of a TDX quote, undefined for SGX: it is rated with the
 * module that the TD was launched under and, where the quote names another, with the one that runs
 * now. A part that reaches no level is refused as `tcb-status`.
 */
export function assess(info: TcbInfo, identity: QeIdentity, pck: Pck, qe: Uint8Array, guest: Uint8Array | undefined): Verdict {
  const launchSvn = guest?.subarray(0, 16), currentSvn = guest?.subarray(584, 600);
  const launch = rate(info, identity, pck, qe, guest, launchSvn);
  const replaced = currentSvn?.length && !equal(currentSvn, launchSvn!);
  const now = replaced ? rate(info, identity, pck, qe, guest, currentSvn) : undefined;
  const overall = now ? relaunched(launch.overall, now.overall) : launch.overall;
  return {
    platform: statusText(launch.platform),
    ...(launch.module !== undefined ? { module: statusText(launch.module) } : {}),
    qe: statusText(launch.qe),
    overall: statusText(overall),
    ...(now ? { current: statusText(now.overall) } : {}),
    revoked: (overall & revoked) !== 0,
    date: launch.date,
    advisories: [...new Set([...launch.advisories, ...(now?.advisories ?? [])])].sort(),
  };
}

function rate(info: TcbInfo, identity: QeIdentity, pck: Pck, qe: Uint8Array, guest: Uint8Array | undefined, teeSvn: Uint8Array | undefined) {
  const platform = platformLevel(info, pck, teeSvn);
  const module = guest && teeSvn && moduleLevel(info, guest, teeSvn);
  const enclave = firstReached(identity.levels, qe[258]! | (qe[259]! << 8), identity.id);
  const withModule = module ? worse(platform.status, module.status) : platform.status;
  return {
    platform: platform.status, module: module?.status, qe: enclave.status,
    overall: worse(withModule, enclave.status),
    date: platform.date,
    advisories: [...platform.advisories, ...(module?.advisories ?? []), ...enclave.advisories],
  };
}

/** Returns the first level that a platform reaches. With a module of a version, it is rated by itself and left out here. */
function platformLevel(info: TcbInfo, pck: Pck, teeSvn: Uint8Array | undefined): Level {
  const from = teeSvn && teeSvn[1]! > 0 ? 2 : 0;
  const level = info.levels.find(
    (l) => l.sgx.every((svn, i) => pck.svns[i]! >= svn) && pck.pceSvn >= l.pceSvn && (!teeSvn || l.tdx.every((svn, i) => i < from || teeSvn[i]! >= svn)),
  );
  if (!level) throw refuse("tcb-status", "dcap: TCB of the platform", `${pck.svns} ${pck.pceSvn} ${teeSvn ? hex(teeSvn) : ""}`, "one of Intel's levels");
  return level;
}

/** Checks that the TDX module is Intel's, and returns its level; undefined for versions that are rated with the platform. */
function moduleLevel(info: TcbInfo, guest: Uint8Array, teeSvn: Uint8Array): Level | undefined {
  const version = teeSvn[1]!;
  const id = "TDX_" + hex(teeSvn.subarray(1, 2)).toUpperCase();
  const module = version === 0 ? info.module : info.modules.find((m) => m.id === id);
  if (!module) throw refuse("tcb-status", "dcap: TDX module", id, "one that TCB info names");
  if (!equal(guest.subarray(64, 112), module.signer) || !masked(guest.subarray(112, 120), module.mask, module.attributes)) {
    throw refuse("tcb-status", "dcap: signer and attributes of the TDX module", hex(guest.subarray(64, 120)), hex(module.signer) + hex(module.attributes));
  }
  return version === 0 ? undefined : firstReached(module.levels, teeSvn[0]!, `TDX module ${id}`);
}

function firstReached(levels: readonly Level[], svn: number, of: string): Level {
  const level = levels.find((l) => svn >= l.isvSvn!);
  if (!level) throw refuse("tcb-status", `dcap: security version of ${of}`, svn, "one of Intel's levels");
  return level;
}

/** Members of a JSON object, each checked for its type. Every fault is refused as malformed. */
interface Json {
  has(name: string): boolean;
  string(name: string): string;
  /** A whole number from 0 to `most`; 0 where there is none. */
  number(name: string, most: number): number;
  /** Bytes in hexadecimal digits, of either case; none where there are none. */
  octets(name: string): Bytes;
  /** A time in UTC, in milliseconds since 1970; before all others where there is none. */
  date(name: string): number;
  object(name: string): Json;
  list(name: string): Json[];
  strings(name: string): string[];
}

function parseObject(of: string, bytes: Uint8Array): Json {
  let value: unknown;
  try {
    value = JSON.parse(text(bytes));
  } catch (e) {
    throw refuse("malformed", `dcap: ${of}`, `${bytes.length} bytes that are no JSON`, "Intel's JSON", e);
  }
  return members(of, value);
}

function members(of: string, value: unknown): Json {
  const bad = (got: unknown, want: string) => refuse("malformed", `dcap: ${of}`, String(got).slice(0, 80), want);
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw bad(typeof value, "an object");
  const get = (name: string): unknown => (Object.hasOwn(value, name) ? (value as Record<string, unknown>)[name] ?? undefined : undefined);
  const string = (name: string): string => {
    const member = get(name);
    if (typeof member !== "string") throw bad(typeof member, `text in ${name}`);
    return member;
  };
  const list = (name: string): unknown[] => {
    const member = get(name) ?? [];
    if (!Array.isArray(member)) throw bad(typeof member, `a list in ${name}`);
    return member;
  };
  return {
    has: (name) => get(name) !== undefined,
    string,
    number(name, most) {
      const member = get(name) ?? 0;
      if (typeof member !== "number" || !Number.isInteger(member) || member < 0 || member > most) throw bad(member, `a number up to ${most} in ${name}`);
      return member;
    },
    octets: (name) => (get(name) === undefined ? new Uint8Array(0) : fromHex(string(name).toLowerCase())),
    date(name) {
      if (get(name) === undefined) return -Infinity;
      const word = string(name);
      const time = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z$/.test(word) ? Date.parse(word) : NaN;
      if (Number.isNaN(time) || !new Date(time).toISOString().startsWith(word.slice(0, 19))) throw bad(word, `a time in ${name}`);
      return time;
    },
    object: (name) => members(`${of}: ${name}`, get(name)),
    list: (name) => list(name).map((item) => members(`${of}: ${name}`, item)),
    strings: (name) =>
      list(name).map((item) => {
        if (typeof item !== "string") throw bad(typeof item, `texts in ${name}`);
        return item;
      }),
  };
}
