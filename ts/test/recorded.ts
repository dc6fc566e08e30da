/**
 * Appraisals recorded from the Go code: inputs, and its verdict with reason or claims. They are
 * one JSON object a line; documents stand apart, by names.
 */

import assert from "node:assert/strict";
import { fromBase64, fromHex, hex } from "../src/bytes.js";
import { appraise, type Evidence, encodeMeasurement, inspect, parseEvidence, parseMeasurement, type Platform, type Rules } from "../src/evidence/evidence.js";
import type { Bits, Demand, List, SnpTcb } from "../src/evidence/rules.js";
import { Refusal } from "../src/refusal.js";

interface GoList { Any: boolean; Values: string[] | null }
type GoTcb = Record<"FMC" | "Bootloader" | "TEE" | "SNP" | "Microcode", number>;

/** Rules as Go's encoding/json writes them. */
export interface GoRules {
  Roots: string[] | null;
  Debug: boolean;
  CRL: string;
  CheckedWithin: number;
  Soft: { CutChips: string[] | null };
  SNP: {
    Generations: Record<string, Record<"Committed" | "Reported" | "Launch", GoTcb>> | null;
    Chips: GoList; CutChips: string[] | null; IDKeys: GoList; SMT: boolean; Migration: boolean; Provisional: boolean; VMPL: number; HiddenChips: boolean;
    PlatformInfo: Record<string, number> | null; GuestPolicy: Record<string, number> | null; GuestABI: { Major: number; Minor: number };
    LaunchMitigations: number; CurrentMitigations: number;
  };
  DCAP: {
    Statuses: string[] | null; Advisories: string[] | null; MinEvaluation: number; Chips: GoList; CutChips: string[] | null; CutModels: string[] | null;
    MinISVSVN: number; Migration: boolean; MinTCBDate: string; Attributes: Record<string, number> | null; XFAM: Record<string, number> | null; ServiceTD: GoList; Owner: GoList;
  };
}

interface GoEvidence { platform: Platform; raw: string; endorsed: Record<string, string>; devices: GoEvidence[] | null }

/** One recorded appraisal. */
export interface Recorded {
  kind: "appraise" | "inspect";
  evidence: GoEvidence;
  endorsements: Record<string, string>;
  report_data: string;
  rules: Record<string, GoRules>;
  at: string;
  /** Empty where the evidence was accepted. */
  reason: string;
  rule?: string;
  claims: { measurement: string; report_data: string; debug: boolean; dynamic: boolean; chip: string; issued: string; details: Record<string, unknown> | null }[] | null;
}

const digits = (values: string[] | null): string[] => (values ?? []).map((v) => hex(fromBase64(v)));
const list = (l: GoList): List => (l.Any ? "any" : digits(l.Values));
const bits = (b: Record<string, number> | null): Bits => new Map(Object.entries(b ?? {}).map(([name, demand]) => [name, (["any", "any", "set", "clear"] as Demand[])[demand]!]));
const tcb = (t: GoTcb): SnpTcb => ({ fmc: t.FMC, bootloader: t.Bootloader, tee: t.TEE, snp: t.SNP, microcode: t.Microcode });
const setPositions = (vector: number): number[] => Array.from({ length: 64 }, (_, i) => i).filter((i) => (BigInt(vector) >> BigInt(i)) & 1n);

/** Returns the rules of a platform as this package has them. */
export function rulesOf(platform: string, go: GoRules): Rules {
  const own = platform === "snp" ? go.SNP : go.DCAP;
  const { SNP: s, DCAP: d } = go;
  return {
    roots: go.Roots ?? [], debug: go.Debug, crl: go.CRL === "if-present" ? "if-present" : "required", checkedWithin: go.CheckedWithin / 1e6,
    chips: list(own.Chips), cutChips: digits(platform === "soft" ? go.Soft.CutChips : own.CutChips),
    snp: {
      generations: new Map(Object.entries(s.Generations ?? {}).map(([name, f]) => [name, { committed: tcb(f.Committed), reported: tcb(f.Reported), launch: tcb(f.Launch) }])),
      idKeys: list(s.IDKeys), smt: s.SMT, migration: s.Migration, provisional: s.Provisional, vmpl: s.VMPL, hiddenChips: s.HiddenChips,
      platformInfo: bits(s.PlatformInfo), guestPolicy: bits(s.GuestPolicy), guestAbi: [s.GuestABI.Major, s.GuestABI.Minor],
      launchMitigations: setPositions(s.LaunchMitigations), currentMitigations: setPositions(s.CurrentMitigations),
    },
    dcap: {
      statuses: d.Statuses ?? [], advisories: d.Advisories ?? [], minEvaluation: d.MinEvaluation, cutModels: digits(d.CutModels), minIsvSvn: d.MinISVSVN, migration: d.Migration,
      ...(d.MinTCBDate.startsWith("0001") ? {} : { minTcbDate: Date.parse(d.MinTCBDate) }),
      attributes: bits(d.Attributes), xfam: bits(d.XFAM), serviceTd: list(d.ServiceTD), owner: list(d.Owner),
    },
  };
}

/** Appraises as recorded, and asserts the recorded verdict, reason and claims. */
export async function replay(c: Recorded, document: (name: string) => Uint8Array): Promise<void> {
  const documents = (of: Record<string, string>) => new Map(Object.entries(of).map(([role, name]) => [role, document(name)]));
  const evidenceFrom = (e: GoEvidence): Evidence => ({ platform: e.platform, raw: document(e.raw), endorsed: documents(e.endorsed), devices: (e.devices ?? []).map(evidenceFrom) });
  const question = {
    evidence: evidenceFrom(c.evidence),
    endorsements: documents(c.endorsements),
    reportData: fromHex(c.report_data),
    rules: new Map(Object.entries(c.rules).map(([platform, go]) => [platform, rulesOf(platform, go)])),
    at: new Date(c.at),
  };
  const outcome = await (c.kind === "appraise" ? appraise(question) : inspect(question).then((all) => all[0]!)).catch((e: unknown) => e);
  if (outcome instanceof Error) {
    assert.ok(outcome instanceof Refusal, outcome.stack);
    assert.equal(outcome.reason, c.reason, `got ${outcome}, want ${c.reason} (${c.rule})`);
    return;
  }
  assert.equal(c.reason, "", `accepted, want ${c.reason} (${c.rule})`);
  const got = outcome as Awaited<ReturnType<typeof appraise>>;
  const want = c.claims![0]!;
  assert.equal(hex(encodeMeasurement(got.measurement)), want.measurement);
  assert.deepEqual({ debug: got.debug, dynamic: got.dynamic, chip: got.chip }, { debug: want.debug, dynamic: want.dynamic, chip: want.chip });
  assert.equal(got.issued ?? Date.parse("0001-01-01T00:00:00Z"), Date.parse(want.issued));
  const { event_log: _, ...details } = want.details ?? {};
  assert.deepEqual(JSON.parse(JSON.stringify(got.details)), details);
}

/** Parses as recorded, and asserts the recorded reason. */
export function replayParse(kind: "evidence" | "measurement", input: Uint8Array, reason: string): void {
  let got = "";
  try {
    if (kind === "evidence") parseEvidence(input);
    else parseMeasurement(input);
  } catch (e) {
    assert.ok(e instanceof Refusal);
    got = e.reason;
  }
  assert.equal(got, reason, `${kind}: ${new TextDecoder("latin1").decode(input.subarray(0, 200))}`);
}

