/**
 * Evidence of TEEs and its appraisal (docs/spec/evidence.md, section 2). An appraiser of each
 * platform is a module of its own and is loaded when evidence of the platform arrives. Platforms
 * without one are refused by name. Appraisal is pure: it reads no clock and no network.
 */

import type { Measurement } from "./measurement.js";
import type { Rules } from "./rules.js";
import { refuse } from "../refusal.js";

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

/**
 * Parses evidence: a conceptual message wrapper (RFC 9999) of at most 512 KiB around values of at
 * most 256 KiB, in its one encoding.
 */
export function parseEvidence(_json: string | Uint8Array): Evidence {
  throw refuse("internal", "not built", "", "");
}

/** Parses evidence that is part of a JSON document which is parsed already. */
export function evidenceOf(_json: unknown): Evidence {
  throw refuse("internal", "not built", "", "");
}

/** Encodes evidence as parseEvidence reads it. */
export function encodeEvidence(_evidence: Evidence): string {
  throw refuse("internal", "not built", "", "");
}

/**
 * Appraises evidence, and that of each device beside it, for one report data. The first check that
 * fails is thrown as a refusal, with the reason of docs/spec/evidence.md.
 */
export async function appraise(_question: Question): Promise<Result> {
  throw refuse("internal", "not built", "", "");
}

/** Refuses, with `device-missing`, a result with fewer devices of a platform than a release demands. */
export function checkDevices(result: Result, demanded: ReadonlyMap<string, number>, release: string): void {
  for (const [platform, least] of [...demanded].sort()) {
    const have = result.devices.filter((d) => d.platform === platform).length;
    if (have < least) throw refuse("device-missing", `admission: devices of platform ${platform}`, have, `at least ${least}, by release ${release}`);
  }
}
