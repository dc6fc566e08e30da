/**
 * Evidence of TEEs and its appraisal (docs/spec/evidence.md, section 2). An appraiser of each
 * platform is a module of its own and is loaded when evidence of the platform arrives. Platforms
 * without one are refused by name. Appraisal is pure: it reads no clock and no network.
 */

import { base64url, equal, fromBase64url, fromU64, sha256, text } from "../bytes.js";
import { unframe } from "../frame.js";
import { refuse } from "../refusal.js";
import type { Measurement } from "./measurement.js";
import type { Rules } from "./rules.js";

export * from "./measurement.js";
export type { Bits, DcapRules, Demand, List, Rules, SnpFloor, SnpRules, SnpTcb } from "./rules.js";

/** A kind of TEE, or of a device beside one, as policy files write it. */
export type Platform = "soft" | "tpm" | "snp" | "azure-snp" | "tdx" | "sgx" | "nitro" | "nvidia-gpu";

/** Statements of vendors beside evidence, by role. They are as unchecked as the evidence. */
export type Endorsements = ReadonlyMap<string, Uint8Array>;

/** Evidence of a TEE in the encoding of its platform. Nothing in it is checked. */
export interface Evidence {
  platform: Platform;
  raw: Uint8Array;
  endorsed: Endorsements;
  /** Evidence of devices beside the TEE, at most 16. None of them has devices. */
  devices: readonly Evidence[];
}

/** When a document was fetched from its vendor, as the party that passes it on states. Times in milliseconds since 1970. */
export interface Fetched {
  role: string;
  /** SHA-256 of the document. */
  digest: Uint8Array;
  checked: number;
  until: number;
}

/** What an appraiser read out of evidence whose signatures it checked. Neither the binding nor the debug state is checked yet. */
export interface Claims {
  measurement: Measurement;
  /** 64 bytes, or 32 on platforms with room for no more. */
  reportData: Uint8Array;
  /** The host can read the TEE. */
  debug: boolean;
  /** The program loads code that is not in its measurement. */
  dynamic: boolean;
  /** Names the device. */
  chip: string;
  /** When the newest of the vendor's signed documents was issued, in milliseconds since 1970. */
  issued?: number;
  /** Comparisons that a vendor would make and Cohort does not make. */
  notVerified: readonly string[];
  /** What else was read, by the names of docs/spec/evidence-*.md, for people. */
  details: Readonly<Record<string, unknown>>;
}

/** Appraises the evidence of one platform. Every fault is thrown as a refusal. */
export interface Appraiser {
  platform: Platform;
  appraise(raw: Uint8Array, endorsed: Endorsements, rules: Rules, at: number): Promise<Claims>;
}

/** Claims that are verified, bound to their use and accepted by the rules of their platform. */
export interface Result {
  platform: Platform;
  measurement: Measurement;
  chip: string;
  /** The host can read the TEE or a device beside it; policy allowed that. */
  debug: boolean;
  dynamic: boolean;
  /** What the party that passed the documents on states about the TEE's. */
  fetched: readonly Fetched[];
  issued?: number;
  notVerified: readonly string[];
  details: Readonly<Record<string, unknown>>;
  /** Devices beside the TEE, in the order of the evidence. */
  devices: readonly { platform: Platform; chip: string; debug: boolean; notVerified: readonly string[] }[];
  /** The time the evidence was appraised for, in milliseconds since 1970. */
  at: number;
}

/** Everything that an appraisal depends on. */
export interface Question {
  evidence: Evidence;
  /** Endorsements beside those that came with the evidence, which they replace. */
  endorsements?: Endorsements;
  /** The 64 bytes that the evidence must be bound to. */
  reportData: Uint8Array;
  /** Rules by platform, from policy. A platform without rules is refused. */
  rules: ReadonlyMap<string, Rules>;
  /** The time to appraise for. */
  at: Date | number;
  /** Appraisers to use in place of this package's own, by platform. */
  appraisers?: ReadonlyMap<string, Appraiser>;
}

/** The most bytes of one value, before encoding. */
const maxEvidence = 256 * 1024;
const maxDevices = 16;
/** How much the clocks of honest parties differ, in milliseconds. */
const clockSkew = 5 * 60_000;
/** The last second of the year 9999, after which no certificate is valid. */
const maxSecond = 253402300799n;

const mediaTypes: ReadonlyMap<string, Platform> = new Map(
  (["soft", "tpm", "snp", "azure-snp", "tdx", "sgx", "nitro", "nvidia-gpu"] as const).map((p) => [`application/vnd.cohort.${p}-evidence`, p]),
);
const endorsementType = "application/vnd.cohort.endorsement";
const memberType = "__cmwc_t";

/** Reports whether a platform is a device that a program uses, and not a TEE that it runs in. */
export function isDevice(platform: Platform): boolean {
  return platform === "nvidia-gpu";
}

/**
 * Parses evidence: a conceptual message wrapper (RFC 9999) of at most 512 KiB around values of at
 * most 256 KiB, in its one encoding. An unknown media type is refused as `platform`, another fault
 * as `malformed`.
 */
export function parseEvidence(json: string | Uint8Array): Evidence {
  if (json.length > 2 * maxEvidence) throw refuse("too-large", "evidence: size in bytes", json.length, 2 * maxEvidence);
  const content = typeof json === "string" ? json : new TextDecoder("latin1").decode(json);
  return content.startsWith("{") ? parseCollection(content) : parseRecord(content);
}

/**
 * Parses evidence that is a member of a JSON document which is parsed already. Its spelling in the
 * document is not checked, for it is no longer there.
 */
export function evidenceOf(json: unknown): Evidence {
  return parseEvidence(JSON.stringify(json) ?? "");
}

/** Encodes evidence as parseEvidence reads it. */
export function encodeEvidence(evidence: Evidence): string {
  if (evidence.endorsed.size === 0 && evidence.devices.length === 0) return encodeRecord(evidence);
  const members = new Map([[memberType, JSON.stringify(collectionType(evidence))]]);
  [evidence, ...evidence.devices].forEach((part, i) => {
    const prefix = i === 0 ? "" : `${i - 1}.`;
    members.set(`${prefix}evidence`, encodeRecord(part));
    for (const [role, content] of part.endorsed) members.set(prefix + role, `["${endorsementType}","${base64url(content)}"]`);
  });
  return `{${[...members.keys()].sort().map((name) => `"${name}":${members.get(name)}`).join(",")}}`;
}

function encodeRecord(evidence: Evidence): string {
  return `["application/vnd.cohort.${evidence.platform}-evidence","${base64url(evidence.raw)}"]`;
}

function collectionType(evidence: Evidence): string {
  return evidence.devices.length > 0 ? "urn:cohort:composite-evidence" : "urn:cohort:endorsed-evidence";
}

function parseRecord(record: string): Evidence {
  const [mediaType, raw] = unwrapRecord(record);
  const platform = mediaTypes.get(mediaType);
  if (platform === undefined) throw refuse("platform", "evidence: media type", mediaType.slice(0, 80), "the type of a known platform");
  return { platform, raw, endorsed: new Map(), devices: [] };
}

/** Takes a record apart. Its value has one encoding, so the record has. */
function unwrapRecord(record: string): [mediaType: string, value: Uint8Array] {
  const middle = record.indexOf('","');
  if (!record.startsWith('["') || !record.endsWith('"]') || middle < 0 || middle + 3 > record.length - 2) {
    throw refuse("malformed", "evidence: wrapper", `${record.length} bytes that begin with ${record.slice(0, 16)}`, "a JSON record of RFC 9999");
  }
  const value = fromBase64url(record.slice(middle + 3, -2));
  if (value.length === 0 || value.length > maxEvidence) throw refuse("malformed", "evidence: size in bytes", value.length, `1 to ${maxEvidence}`);
  return [record.slice(2, middle), value];
}

/** Parses a collection: evidence and endorsements of the TEE, and of devices, whose members begin with their number. */
function parseCollection(content: string): Evidence {
  const members = splitMembers(content);
  const spelled = refuse("malformed", "evidence: wrapper", "text that is encoded in another way", "the one encoding");
  let canonical = true;
  const part = (prefix: string): Evidence => {
    const evidence = parseRecord(members.get(`${prefix}evidence`) ?? "");
    members.delete(`${prefix}evidence`);
    const endorsed = new Map<string, Uint8Array>();
    for (const [name, member] of members) {
      const role = name.slice(prefix.length);
      if (!name.startsWith(prefix) || !isRole(role)) continue;
      const [mediaType, value] = unwrapRecord(member);
      canonical &&= mediaType === endorsementType;
      endorsed.set(role, value);
      members.delete(name);
    }
    return { ...evidence, endorsed };
  };
  const tee = part("");
  const devices: Evidence[] = [];
  // One more than there may be is refused below. A sender could name thousands, and each takes a walk over all members.
  while (devices.length <= maxDevices && members.has(`${devices.length}.evidence`)) devices.push(part(`${devices.length}.`));
  const evidence = { ...tee, devices };
  checkDeviceParts(evidence);
  canonical &&= tee.endorsed.size > 0 || devices.length > 0;
  if (!canonical || members.size !== 1 || members.get(memberType) !== `"${collectionType(evidence)}"`) throw spelled;
  return evidence;
}

/** Finds the members of a collection, none of which needs an escape. Members in another order are refused. */
function splitMembers(content: string): Map<string, string> {
  const malformed = () => refuse("malformed", "evidence: collection", `${content.length} bytes that begin with ${content.slice(0, 16)}`, "a JSON collection of RFC 9999");
  const members = new Map<string, string>();
  let at = 0, before = "";
  const enclosed = (from: string, to: string): string => {
    const end = content[at] === from ? content.indexOf(to, at + 1) : -1;
    if (end < 0) throw malformed();
    const value = content.slice(at, end + 1);
    at = end + 1;
    return value;
  };
  do {
    at++; // the brace that begins the collection, or a comma
    const name = enclosed('"', '"').slice(1, -1);
    if (content[at++] !== ":" || (members.size > 0 && name <= before)) throw malformed();
    members.set(name, content[at] === "[" ? enclosed("[", "]") : enclosed('"', '"'));
    before = name;
  } while (content[at] === ",");
  if (content.slice(at) !== "}") throw malformed();
  return members;
}

/** Reports whether a name may be the role of an endorsement, and does not mean something else. */
function isRole(role: string): boolean {
  return role !== "evidence" && role !== memberType && /^[a-z_]{1,32}$/.test(role);
}

function checkDeviceParts(evidence: Evidence): void {
  if (evidence.devices.length > maxDevices) throw refuse("malformed", "evidence: number of devices", evidence.devices.length, maxDevices);
  for (const device of evidence.devices) {
    if (!isDevice(device.platform)) throw refuse("platform", "evidence: platform of a device", device.platform, "that of a device");
    if (device.devices.length > 0) throw refuse("malformed", "evidence: devices of a device", device.devices.length, 0);
  }
}

/** Parses the role `checked` of endorsements, which may be missing. Another encoding is refused as malformed. */
export function parseFetched(endorsed: Endorsements): Fetched[] {
  const framed = endorsed.get("checked");
  if (framed === undefined) return [];
  const fields = unframe("cohort checked v1", framed);
  if (fields.length % 4 !== 0) throw refuse("malformed", "collateral: fields of role checked", fields.length, "four for each document");
  const all: Fetched[] = [];
  for (let i = 0; i < fields.length; i += 4) {
    const [name, digest, checked, until] = fields.slice(i, i + 4) as [Uint8Array, Uint8Array, Uint8Array, Uint8Array];
    if (digest.length !== 32 || checked.length !== 8 || until.length !== 8) {
      throw refuse("malformed", "collateral: sizes in role checked", `${digest.length}, ${checked.length} and ${until.length}`, "32, 8 and 8 bytes");
    }
    const times = [checked, until].map((field) => {
      const seconds = fromU64(field);
      if (seconds > maxSecond) throw refuse("malformed", "collateral: time in role checked", seconds, `at most ${maxSecond}`);
      return Number(seconds) * 1000;
    });
    const role = text(name);
    if (!isRole(role) || role <= (all.at(-1)?.role ?? "")) throw refuse("malformed", "collateral: role checked", role, "each role once, in order");
    all.push({ role, digest: digest.slice(), checked: times[0]!, until: times[1]! });
  }
  return all;
}

/** Roles of what vendors withdraw or replace: lists and statements. */
const changingRoles = ["crl", "model_crl", "pck_crl", "qe_identity", "region_crl", "root_crl", "tcb_info", "zone_crl"];

/** Demands that lists and statements were fetched within the time of the rules, and none in the future. */
async function checkFetched(endorsed: Endorsements, fetched: readonly Fetched[], rules: Rules, at: number): Promise<void> {
  const date = (time: number) => new Date(time).toISOString();
  for (const f of fetched) {
    if (f.checked > at + clockSkew) throw refuse("clock", `collateral: ${f.role} checked`, date(f.checked), `not after ${date(at + clockSkew)}`);
  }
  if (!rules.checkedWithin) return;
  const least = at - rules.checkedWithin;
  for (const role of changingRoles) {
    const document = endorsed.get(role);
    if (document === undefined) continue; // the platform's own rules state what that means
    const digest = await sha256(document);
    const row = fetched.find((f) => f.role === role && equal(f.digest, digest));
    if (!row) throw refuse("expired", `collateral: ${role} checked`, "no time of fetching for this document", `within ${rules.checkedWithin} ms`);
    if (row.checked < least) throw refuse("expired", `collateral: ${role} checked`, date(row.checked), `not before ${date(least)}`);
  }
}

/** Loads the appraiser of a platform. */
async function loadAppraiser(platform: Platform): Promise<Appraiser | undefined> {
  switch (platform) {
    case "soft":
      return (await import("./soft.js")).soft;
    case "snp":
      return (await import("./snp.js")).snp;
    case "tdx":
      return (await import("./dcap.js")).tdx;
    case "sgx":
      return (await import("./dcap.js")).sgx;
    default:
      return undefined;
  }
}

/**
 * Appraises evidence, and that of each device beside it, for one report data. The first check that
 * fails is thrown as a refusal, in the order of docs/spec/evidence.md: a report data to compare
 * with, platform known and ruled, the platform's own appraisal, the platform of the measurement,
 * report data, debug, times of fetching.
 */
export async function appraise(question: Question): Promise<Result> {
  const { evidence } = question;
  if (isDevice(evidence.platform)) throw refuse("platform", "appraisal: platform", `${evidence.platform} alone`, "a TEE that runs a program");
  const [tee, ...devices] = await appraiseEach(question, (part) => appraiseBound(question, part));
  const issued = Math.max(...[tee!, ...devices].map((part) => part.claims.issued ?? 0));
  const { measurement, chip, dynamic, notVerified, details } = tee!.claims;
  return {
    platform: evidence.platform, measurement, chip, dynamic, notVerified, details,
    debug: [tee!, ...devices].some((part) => part.claims.debug),
    fetched: tee!.fetched,
    ...(issued > 0 ? { issued } : {}),
    devices: devices.map((d) => ({ platform: d.platform, chip: d.claims.chip, debug: d.claims.debug, notVerified: d.claims.notVerified })),
    at: Number(question.at),
  };
}

/**
 * Makes the checks of appraise but for the report data, and returns claims and no result: genuine
 * evidence may be a copy of another TEE's. It is for people who examine evidence.
 */
export async function inspect(question: Omit<Question, "reportData">): Promise<Claims[]> {
  return (await appraiseEach(question, (part) => appraisePart(question, part))).map((part) => part.claims);
}

/** One part of evidence that is appraised. */
interface Appraised {
  platform: Platform;
  claims: Claims;
  fetched: Fetched[];
}

/** Appraises the TEE, with the endorsements of the question, and then each device. Two of one chip are refused. */
async function appraiseEach(question: Omit<Question, "reportData">, one: (part: Evidence) => Promise<Claims>): Promise<Appraised[]> {
  const { evidence, endorsements, rules } = question;
  const at = Number(question.at);
  if (!Number.isFinite(at)) throw refuse("clock", "appraisal: time", question.at, "a time to appraise for");
  checkDeviceParts(evidence);
  const all: Appraised[] = [];
  for (const part of [{ ...evidence, endorsed: new Map([...evidence.endorsed, ...(endorsements ?? [])]) }, ...evidence.devices]) {
    const claims = await one(part);
    const ruled = rules.get(part.platform) ?? {};
    if (claims.debug && !ruled.debug) throw refuse("debug", "appraisal: debug", "a TEE its host can read", "debug off");
    const fetched = parseFetched(part.endorsed);
    await checkFetched(part.endorsed, fetched, ruled, at);
    if (all.some((other) => other.platform === part.platform && other.claims.chip === claims.chip)) {
      throw refuse("wrong-chip", "appraisal: device", `${claims.chip} twice`, "each once");
    }
    all.push({ platform: part.platform, claims, fetched });
  }
  return all;
}

/** Appraises one part, and refuses evidence that was made for another use than the question's. */
async function appraiseBound(question: Question, part: Evidence): Promise<Claims> {
  const { reportData } = question;
  if (reportData.length !== 64 || reportData.every((b) => b === 0)) {
    throw refuse("nonce", "appraisal: report data", `${reportData.length} bytes, or zeros`, "the 64 bytes that the evidence must be bound to");
  }
  const claims = await appraisePart(question, part);
  const bound = claims.reportData.length === 32 ? await sha256(reportData) : reportData;
  if (!equal(claims.reportData, bound)) throw refuse("nonce", "appraisal: report data", "evidence made for another use", "this request's");
  return claims;
}

async function appraisePart(question: Omit<Question, "reportData">, part: Evidence): Promise<Claims> {
  const rules = question.rules.get(part.platform);
  const appraiser = rules && (question.appraisers ? question.appraisers.get(part.platform) : await loadAppraiser(part.platform));
  if (!rules || !appraiser) throw refuse("platform", "appraisal: platform", part.platform, rules ? "one whose evidence this client can appraise" : "a platform that policy names");
  const claims = await appraiser.appraise(part.raw, part.endorsed, rules, Number(question.at));
  if (claims.measurement.platform !== part.platform) {
    throw refuse("platform", "appraisal: platform of the measurement", claims.measurement.platform, part.platform);
  }
  return claims;
}

/** Refuses, with `device-missing`, a result with fewer devices of a platform than a release demands. */
export function checkDevices(result: Result, demanded: ReadonlyMap<string, number>, release: string): void {
  for (const [platform, least] of [...demanded].sort()) {
    const have = result.devices.filter((d) => d.platform === platform).length;
    if (have < least) throw refuse("device-missing", `admission: devices of platform ${platform}`, have, `at least ${least}, by release ${release}`);
  }
}
