/**
 * Rules: what policy states about one platform. A policy table `[platform.X]` is decoded into
 * them; appraisal compares signed fields with them. A member that is missing has the strict value,
 * so the empty rules accept nothing.
 */

import { refuse } from "../refusal.js";

/** Values that policy accepts of one field, as lower-case hexadecimal digits; nothing where it is missing. */
export type List = "any" | readonly string[];

/** What policy demands of one bit: either value, 1, or 0. */
export type Demand = "any" | "set" | "clear";

/** Demands on the bits of one field, by their names. A bit that is not named is as its field's table states. */
export type Bits = ReadonlyMap<string, Demand>;

/** The rules of one platform. */
export interface Rules {
  /** Accepted roots: digests (`sha256:…`) of their SubjectPublicKeyInfo. */
  roots?: readonly string[];
  /** Accepts TEEs that their host can read (key `debug`). */
  debug?: boolean;
  /** What a missing revocation list means (key `crl`); `required` without it. */
  crl?: "required" | "if-present";
  /** How long ago documents may have been fetched, in milliseconds (key `checked_within`); any time without it. */
  checkedWithin?: number;
  /** Accepted chips (key `chips`): ids of 64 bytes for SNP, PPIDs of 16 bytes for TDX and SGX. */
  chips?: List;
  /** Chips that are refused (key `cut_chips`): as `chips`, for soft 8 bytes. */
  cutChips?: readonly string[];
  /** Rules of SEV-SNP alone. */
  snp?: SnpRules;
  /** Rules of TDX and SGX alone. */
  dcap?: DcapRules;
}

/** Versions of the firmware of an SNP platform, a byte each. `fmc` is 0 before Turin. */
export interface SnpTcb {
  fmc: number;
  bootloader: number;
  tee: number;
  snp: number;
  microcode: number;
}

/** The least firmware of one CPU generation. A missing TCB is zeros. */
export interface SnpFloor {
  committed?: SnpTcb;
  reported?: SnpTcb;
  launch?: SnpTcb;
}

/** Rules of SEV-SNP (docs/spec/evidence-snp.md, Rules). */
export interface SnpRules {
  /** Accepted generations: `Milan`, `Genoa`, `Turin` (key `generation`). */
  generations?: ReadonlyMap<string, SnpFloor>;
  /** Accepts reports whose host hides the chip id, while no chip is cut off. */
  hiddenChips?: boolean;
  /** Accepted digests of id keys, 48 bytes, zeros where there is none (key `id_keys`). */
  idKeys?: List;
  smt?: boolean;
  migration?: boolean;
  /** Accepts firmware that can be rolled back (key `provisional_firmware`). */
  provisional?: boolean;
  /** The highest accepted privilege level, 0 to 3. */
  vmpl?: number;
  platformInfo?: Bits;
  guestPolicy?: Bits;
  /** The least ABI that the guest's policy may state: major, minor (key `guest_policy.abi`). */
  guestAbi?: readonly [number, number];
  /** Numbers of bits, 0 to 63, that must be set in the mitigation vectors (key `mitigations`). */
  launchMitigations?: readonly number[];
  currentMitigations?: readonly number[];
}

/** Rules of TDX and SGX (docs/spec/evidence-dcap.md, Rules). */
export interface DcapRules {
  /** Accepted TCB statuses besides `UpToDate`. */
  statuses?: readonly string[];
  /** Accepted ids of advisories. */
  advisories?: readonly string[];
  /** The least `tcbEvaluationDataNumber`. */
  minEvaluation?: number;
  /** The least `tcbDate` of the platform's level, in milliseconds since 1970. */
  minTcbDate?: number;
  /** FMSPCs that are refused, 6 bytes (key `cut_models`). */
  cutModels?: readonly string[];
  /** The least SVN of an enclave (SGX). */
  minIsvSvn?: number;
  /** Accepts TDs that a migration TD may move (TDX). */
  migration?: boolean;
  attributes?: Bits;
  xfam?: Bits;
  /** Accepted MRSERVICETD, 48 bytes, and `""` for quotes without it (`unsaid`); zeros and `""` where it is missing. */
  serviceTd?: List;
  /** Accepted MROWNER and MROWNERCONFIG, joined, 96 bytes; zeros where it is missing. */
  owner?: List;
}

/** Reports whether a list names a value, in hexadecimal digits. */
export function accepts(list: List | undefined, value: string): boolean {
  return list === "any" || (list?.includes(value) ?? false);
}

/** One bit of a field. `demand` is what is demanded where policy states nothing, `rule` the policy key that decides in the field's place. */
export interface Bit {
  position: number;
  name: string;
  demand?: Demand;
  rule?: string;
}

/** A field of evidence whose bits the launcher or host of a TEE chooses, and no register contains. */
export interface BitField {
  /** For people, with the platform. */
  name: string;
  /** The key of the policy table with demands on it. */
  key: string;
  bits: readonly Bit[];
}

const bit = (position: number, name: string, demand?: Demand): Bit => (demand ? { position, name, demand } : { position, name });
const ruled = (position: number, name: string, rule: string): Bit => ({ position, name, rule });

/** TD attributes (Intel TDX module, ATTRIBUTES). */
export const tdAttributes: BitField = {
  name: "dcap: TD attributes",
  key: "attributes",
  bits: [
    ruled(0, "DEBUG", "debug"), ruled(4, "HGS_PLUS_PROF", "debug"), ruled(5, "PERF_PROF", "debug"), ruled(6, "PMT_PROF", "debug"),
    bit(16, "ICSSD"), bit(27, "LASS"),
    // Without it the host makes any access of the guest raise an exception.
    bit(28, "SEPT_VE_DISABLE", "set"),
    ruled(29, "MIGRATABLE", "migration"), bit(30, "PKS"), bit(31, "KL"),
    // An agent that provisions devices is not a guest.
    bit(62, "TPA", "clear"),
    bit(63, "PERFMON"),
  ],
};

/** Extended features of a TD (XFAM). */
export const xfam: BitField = {
  name: "dcap: XFAM",
  key: "xfam",
  bits: [
    bit(0, "X87", "set"), bit(1, "SSE", "set"), bit(2, "AVX"), bit(5, "AVX512_OPMASK"), bit(6, "AVX512_ZMM_HI256"), bit(7, "AVX512_HI16_ZMM"),
    bit(8, "PT"), bit(9, "PKRU"), bit(11, "CET_U"), bit(12, "CET_S"), bit(14, "UINTR"), bit(15, "LBR"),
    bit(17, "AMX_TILECFG"), bit(18, "AMX_TILEDATA"), bit(19, "APX"),
  ],
};

/** PLATFORM_INFO of an SNP report (AMD 56860). */
export const snpPlatformInfo: BitField = {
  name: "snp: platform info",
  key: "platform_info",
  bits: [
    bit(0, "SMT_EN"), bit(1, "TSME_EN"), bit(2, "ECC_EN"), bit(3, "RAPL_DIS"), bit(4, "CIPHERTEXT_HIDING_DRAM_EN"),
    // Without it two addresses may be one cell of memory (AMD-SB-3015).
    bit(5, "ALIAS_CHECK_COMPLETE", "set"),
    bit(6, "IOMMU_WRITE_SAFE"), bit(7, "TIO_EN"),
  ],
};

/** The guest policy of an SNP report (AMD 56860), without the ABI in its low 16 bits. */
export const snpGuestPolicy: BitField = {
  name: "snp: guest policy",
  key: "guest_policy",
  bits: [
    ruled(16, "SMT", "smt"), ruled(18, "MIGRATE_MA", "migration"), ruled(19, "DEBUG", "debug"), bit(20, "SINGLE_SOCKET"),
    // Memory outside the machine's own.
    bit(21, "CXL_ALLOW", "clear"),
    bit(22, "MEM_AES_256_XTS"), bit(23, "RAPL_DIS"), bit(24, "CIPHERTEXT_HIDING_DRAM"), bit(25, "PAGE_SWAP_DISABLE"),
  ],
};

/** Returns the names of the bits that policy may have demands on. */
export function bitNames(field: BitField): string[] {
  return field.bits.filter((b) => b.rule === undefined).map((b) => b.name);
}

/** Returns the names of the bits of a value that are 1, of a bit without a name its number. */
export function setBits(field: BitField, value: bigint): string[] {
  const names: string[] = [];
  for (let position = 0; position < 64; position++) {
    if ((value >> BigInt(position)) & 1n) names.push(field.bits.find((b) => b.position === position)?.name ?? `bit ${position}`);
  }
  return names;
}

/**
 * Compares a value with demands. The first bit that is not as demanded is refused as `tcb-status`,
 * and then a bit that is in no table. Bits under a rule of their own are left to it.
 */
export function checkBits(field: BitField, value: bigint, demands?: Bits): void {
  let unknown = value;
  for (const b of field.bits) {
    const set = ((value >> BigInt(b.position)) & 1n) === 1n;
    unknown &= ~(1n << BigInt(b.position));
    if (b.rule !== undefined) continue;
    const demand = demands?.get(b.name) ?? b.demand ?? "any";
    if (demand !== "any" && set !== (demand === "set")) {
      throw refuse("tcb-status", `${field.name}: ${b.name}`, set ? "set" : "clear", `${demand}, or ${field.key} = { ${b.name} = "any" } in policy`);
    }
  }
  if (unknown !== 0n) throw refuse("tcb-status", `${field.name}: ${setBits(field, unknown)[0]}`, "set", "clear: no rule knows what it does");
}
