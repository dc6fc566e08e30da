/**
 * Evidence captured on real hardware, in the schema "cohort/vector/v1", which lies beside the
 * project: COHORT_VECTORS, or ../shared/vectors from the root of the repository. The platform's
 * test states how a vector's policy maps to rules; vector.json contains all else.
 */

import assert from "node:assert/strict";
import { createHash, X509Certificate } from "node:crypto";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { isAbsolute, join } from "node:path";
import { before, test } from "node:test";
import { equal, fromHex, hex } from "../src/bytes.js";
import { type Claims, inspect, type Platform } from "../src/evidence/evidence.js";
import type { Rules } from "../src/evidence/rules.js";
import { reasonOf, refuse, Refusal } from "../src/refusal.js";
import { repository } from "./vectors.js";

const named = process.env["COHORT_VECTORS"];
/** The folder of the vectors. */
export const folder = named === undefined ? join(repository, "../shared/vectors") : isAbsolute(named) ? named : join(repository, named);
/** Why tests of captured evidence are skipped, false where they are not. */
export const missing = existsSync(folder) ? false : `NO VECTORS: ${folder} is not there, so NO CAPTURED EVIDENCE IS APPRAISED; set COHORT_VECTORS`;
if (missing && named !== undefined) throw new Error(missing);
if (missing) console.error(missing);

/** A vector's policy. */
export interface VectorPolicy {
  tcb_status: string[];
  advisories: string[];
  debug: boolean;
  vmpl: number;
  provisional_firmware: boolean;
  crlIfPresent: boolean;
}

interface Outcome {
  verdict: string;
  reason: string;
  also?: string[];
  reason_any?: boolean;
}

interface Vector {
  schema: string;
  platform: string;
  verify_at: string;
  window?: { from: string; until: string };
  files: Record<string, string>;
  claims: Record<string, unknown>;
  expected: Outcome & { policy?: object; policy_accepts?: object | null; crl: string; under_default?: Outcome };
  neg: Record<string, Outcome & { replaces: string }>;
}

/** An appraiser under test. */
export interface Subject {
  /** The folder of its vectors. */
  vectors: string;
  platform: Platform;
  /** The rules of a vector's policy. The roots are the vendor's, never taken from the vector. */
  rules(policy: VectorPolicy): Rules;
  /** Reports whether no signature covers the byte of evidence at an offset. */
  unsigned?(evidence: Uint8Array, offset: number): boolean;
}

/** SHA-256 of the SubjectPublicKeyInfo of the vendors' roots, as policies name them. */
export const intelRoot = "sha256:a0af031289f5d5d4132f9186068a7fc13628633ba235777472e29b6b6c67a49e";
export const amdRoots = [
  "sha256:9f056bee44377e29308cb5ffa895bdfb62d18881fa6bed8d6f075b0204089cb9", // Milan
  "sha256:429a69c9422aa258ee4d8db5fcda9c6470ef15f8cd5a9cebd6cbc7d90b863831", // Genoa
  "sha256:4f125410563a2ab9a50356f9243f6fe0b6f73de98603f53f90339c70e9d7ad08", // Turin
];

const shared = (p: VectorPolicy): Rules => ({ debug: p.debug, crl: p.crlIfPresent ? "if-present" : "required", chips: "any" });
const dcap = (platform: "tdx" | "sgx"): Subject => ({
  vectors: platform,
  platform,
  rules: (p) => ({ ...shared(p), roots: [intelRoot], dcap: { statuses: p.tcb_status, advisories: p.advisories, serviceTd: "any" } }),
  // Any number of zeros may follow the quote.
  unsigned: (evidence, offset) => evidence.subarray(offset).every((b) => b === 0),
});

/** The appraisers, with the rules of the vectors' default policy, which states nothing of chips, floors and settings. */
export const subjects: readonly Subject[] = [
  dcap("tdx"),
  dcap("sgx"),
  {
    vectors: "sev-snp",
    platform: "snp",
    rules: (p) => ({
      ...shared(p),
      roots: amdRoots,
      snp: {
        generations: new Map([["Milan", {}], ["Genoa", {}], ["Turin", {}]]), idKeys: "any", smt: true, provisional: p.provisional_firmware, vmpl: p.vmpl, hiddenChips: true,
        platformInfo: new Map([["ALIAS_CHECK_COMPLETE", "any"]]),
      },
    }),
  },
];

type Files = Map<string, Uint8Array>;

/** One vector with its files by role. */
export interface Loaded {
  name: string;
  vector: Vector;
  content: Files;
  file(name: string): Uint8Array;
}

/** Reads all vectors in a folder. */
export function load(vectors: string): Loaded[] {
  if (missing) return [];
  return readdirSync(join(folder, vectors)).sort().map((name) => {
    const path = (file: string) => join(folder, vectors, name, file);
    const file = (of: string) => new Uint8Array(readFileSync(path(of)));
    const vector = JSON.parse(readFileSync(path("vector.json"), "utf8")) as Vector;
    assert.equal(vector.schema, "cohort/vector/v1");
    const content = new Map(Object.entries(vector.files).map(([role, of]) => [role, file(of)]));
    return { name, vector, content, file };
  });
}

const mildestPolicy: VectorPolicy = {
  tcb_status: ["UpToDate", "SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded", "OutOfDate", "OutOfDateConfigurationNeeded"],
  advisories: [], debug: true, vmpl: 3, provisional_firmware: true, crlIfPresent: true,
};
const defaultPolicy: VectorPolicy = { tcb_status: ["UpToDate"], advisories: [], debug: false, vmpl: 0, provisional_firmware: false, crlIfPresent: false };

/** The digest that names a root in policy, of a certificate in PEM or DER; none for anything else. */
function rootOf(certificate: Uint8Array): string {
  try {
    const spki = new X509Certificate(certificate).publicKey.export({ type: "spki", format: "der" });
    return "sha256:" + createHash("sha256").update(spki).digest("hex");
  } catch {
    return "none";
  }
}

/** Checks an appraiser with one vector. */
export class CapturedCase {
  /** `by` appraises, here or in a browser. */
  constructor(readonly subject: Subject, readonly loaded: Loaded, private readonly by: typeof inspect = inspect) {}

  private policy(differs: object | null | undefined): VectorPolicy {
    return { ...defaultPolicy, crlIfPresent: this.loaded.vector.expected.crl === "absent-allowed", ...(differs ?? {}) };
  }

  private get never(): boolean {
    return this.loaded.vector.expected.policy_accepts === null;
  }

  /** Whether the good policy accepts the vector. */
  get accepted(): boolean {
    const { verdict, policy_accepts } = this.loaded.vector.expected;
    return verdict === "accept" || (policy_accepts !== undefined && policy_accepts !== null);
  }

  /** The policy under which only forgeries are refused. */
  get good(): VectorPolicy {
    const { policy, policy_accepts } = this.loaded.vector.expected;
    return this.policy(policy_accepts ?? policy);
  }

  get at(): number {
    return Date.parse(this.loaded.vector.verify_at);
  }

  /** Appraises with files replaced. Captured evidence was bound to other uses, so it is inspected, and then compared with the vector's nonce. */
  async appraise(policy: VectorPolicy, replace: Files, at: number): Promise<Claims> {
    const files = new Map([...this.loaded.content, ...replace]);
    const raw = files.get("evidence")!;
    files.delete("evidence");
    const { platform } = this.subject;
    const rules = this.subject.rules(policy);
    const other = replace.get("root");
    if (other) rules.roots = rules.roots!.map((root) => (root === rootOf(this.loaded.content.get("root")!) ? rootOf(other) : root));
    const [claims] = await this.by({ evidence: { platform, raw, endorsed: files, devices: [] }, rules: new Map([[platform, rules]]), at });
    const text = this.loaded.vector.claims["nonce"];
    const nonce = files.get("nonce") ?? (typeof text === "string" ? fromHex(text) : undefined);
    if (nonce && !(equal(claims!.reportData.subarray(0, nonce.length), nonce) && claims!.reportData.subarray(nonce.length).every((b) => b === 0))) {
      throw refuse("nonce", "vector: nonce", hex(claims!.reportData), hex(nonce));
    }
    return claims!;
  }

  private async check(what: string, want: Outcome, run: Promise<Claims>): Promise<void> {
    const outcome = await run.then(() => undefined, (e: unknown) => e);
    if (want.verdict === "accept") return assert.equal(outcome, undefined, `${what}: refused, want accepted: ${outcome}`);
    assert.ok(outcome instanceof Refusal, `${what}: accepted or no refusal, want ${want.reason}: ${outcome}`);
    assert.ok(want.reason_any || [want.reason, ...(want.also ?? [])].includes(outcome.reason), `${what}: refused with ${outcome}, want ${want.reason} or one of ${want.also}`);
  }

  async verdicts(): Promise<void> {
    const { expected, claims } = this.loaded.vector;
    const none: Files = new Map();
    await this.check("expected policy", expected, this.appraise(this.policy(expected.policy), none, this.at));
    if (this.accepted) {
      const got = flatten(await this.appraise(this.good, none, this.at));
      for (const [name, want] of Object.entries(claims)) {
        if (name === "nonce" && !(name in got)) continue;
        if (name === "event_log") continue; // not read
        assert.deepEqual(got[name], want, `claim ${name}`);
      }
    }
    if (this.never) {
      const advisories = (claims["advisories"] ?? []) as string[];
      await this.check("mildest policy", expected, this.appraise({ ...mildestPolicy, advisories }, none, this.at));
    }
    if (expected.under_default) await this.check("default policy", expected.under_default, this.appraise(defaultPolicy, none, this.at));
    const root = this.loaded.content.get("root");
    if (root) assert.ok(this.subject.rules(this.good).roots!.includes(rootOf(root)), "the folder's root is none of the vendor's");
  }

  /** Appraises just outside each end of the window, and at each end. */
  async window(): Promise<void> {
    const { window, expected } = this.loaded.vector;
    if (!window) return;
    const expired: Outcome = { verdict: "refuse", reason: "expired", also: this.accepted ? [] : [expected.reason, ...(expected.also ?? [])] };
    const inside: Outcome = this.accepted ? { verdict: "accept", reason: "" } : expected;
    const from = Date.parse(window.from), until = Date.parse(window.until);
    // Documents are valid from 2 minutes before their issue, because clocks differ.
    await this.check("before the window", expired, this.appraise(this.good, new Map(), from - 121_000));
    await this.check("after the window", expired, this.appraise(this.good, new Map(), until + 1000));
    await this.check("first second", inside, this.appraise(this.good, new Map(), from));
    await this.check("last second", inside, this.appraise(this.good, new Map(), until));
  }

  async negatives(): Promise<void> {
    for (const [name, neg] of Object.entries(this.loaded.vector.neg)) {
      assert.ok(this.loaded.content.has(neg.replaces), `${name} replaces a role that the folder does not have`);
      await this.check(name, { ...neg, verdict: "refuse" }, this.appraise(this.good, new Map([[neg.replaces, this.loaded.file(name)]]), this.at));
    }
  }

  /**
   * Flips bits in and truncates every file. Altered evidence must be refused, but for bytes that no
   * signature covers; an altered endorsement must be refused or change no claim.
   */
  async mutate(samples: number): Promise<number> {
    const good = this.accepted ? await this.appraise(this.good, new Map(), this.at) : undefined;
    let tried = 0;
    const attempt = async (role: string, altered: Uint8Array, offset: number) => {
      tried++;
      const what = `${role} altered at ${offset}, ${altered.length} bytes`;
      const outcome = await this.appraise(this.good, new Map([[role, altered]]), this.at).catch((e: unknown) => e as Error);
      if (outcome instanceof Error) return assert.ok(reasonOf(outcome), `${what}: ${outcome.stack}`);
      assert.ok(good, `${what}: accepted, and the vector is not`);
      if (role === "evidence") assert.ok(this.subject.unsigned?.(this.loaded.content.get("evidence")!, offset), `${what}: accepted`);
      else assert.deepEqual(outcome, good, `${what}: accepted with other claims`);
    };
    for (const [role, content] of this.loaded.content) {
      if (role === "root" || role === "pck_crl_chain" || role.startsWith("event_log") || role === "hcl_report") continue; // not read
      const count = role === "evidence" ? samples : Math.ceil(samples / 4);
      const stride = (n: number) => (samples === Infinity ? 1 : Math.floor(n / count) | 1);
      for (let bit = 0; bit < 8 * content.length; bit += stride(8 * content.length)) {
        const flipped = content.slice();
        flipped[bit >> 3]! ^= 1 << (bit & 7);
        await attempt(role, flipped, bit >> 3);
      }
      for (let size = 0; size < content.length; size += stride(content.length)) await attempt(role, content.slice(0, size), size);
      await attempt(role, Uint8Array.of(...content, 0), content.length - 1);
    }
    return tried;
  }
}

/** Claims as vector.json has them: details, registers by their names, the first as the measurement. */
function flatten(claims: Claims): Record<string, unknown> {
  const flat: Record<string, unknown> = { ...claims.details };
  for (const r of claims.measurement.registers) flat[r.name.replaceAll("-", "_")] = hex(r.value);
  flat["measurement"] = hex(claims.measurement.registers[0]!.value);
  flat["report_data"] = hex(claims.reportData);
  flat["debug"] = claims.debug;
  return JSON.parse(JSON.stringify(flat)) as Record<string, unknown>;
}

/** Registers tests of every vector of a subject. */
export function testCaptured(subject: Subject): void {
  const full = process.env["COHORT_FULL"] === "1";
  const all = load(subject.vectors);
  if (missing) return void test(`captured evidence: ${subject.vectors}`, { skip: missing }, () => {});
  before(() => assert.ok(all.length > 0));
  for (const loaded of all) {
    const captured = new CapturedCase(subject, loaded);
    test(`${subject.vectors}/${loaded.name}`, async () => {
      await captured.verdicts();
      await captured.window();
      await captured.negatives();
    });
    test(`${subject.vectors}/${loaded.name}: alterations`, async (t) => {
      t.diagnostic(`${await captured.mutate(full ? Infinity : 60)} alterations`);
    });
  }
}
