/** Captured evidence of real hardware: every vector, its negatives, and alterations of each file. */
import type { Platform } from "../src/evidence/evidence.js";
import { judgeAll } from "./captured.js";

/** SHA-256 of the SubjectPublicKeyInfo of the vendors' roots, as policies name them. */
export const intelRoot = "sha256:a0af031289f5d5d4132f9186068a7fc13628633ba235777472e29b6b6c67a49e";
export const amdRoots = [
  "sha256:9f056bee44377e29308cb5ffa895bdfb62d18881fa6bed8d6f075b0204089cb9", // Milan
  "sha256:429a69c9422aa258ee4d8db5fcda9c6470ef15f8cd5a9cebd6cbc7d90b863831", // Genoa
  "sha256:4f125410563a2ab9a50356f9243f6fe0b6f73de98603f53f90339c70e9d7ad08", // Turin
];

for (const platform of ["tdx", "sgx"] satisfies Platform[]) {
  judgeAll({
    vectors: platform,
    platform,
    rules: (p) => ({
      roots: [intelRoot], debug: p.debug, crl: p.crlIfPresent ? "if-present" : "required", chips: "any",
      dcap: { statuses: p.tcb_status, advisories: p.advisories, serviceTd: "any" },
    }),
    // Any number of zeros may follow the quote.
    unsigned: (evidence, offset) => evidence.subarray(offset).every((b) => b === 0),
  });
}

judgeAll({
  vectors: "sev-snp",
  platform: "snp",
  rules: (p) => ({
    roots: amdRoots, debug: p.debug, crl: p.crlIfPresent ? "if-present" : "required", chips: "any",
    snp: {
      generations: new Map([["Milan", {}], ["Genoa", {}], ["Turin", {}]]), idKeys: "any", smt: true, provisional: p.provisional_firmware, vmpl: p.vmpl, hiddenChips: true,
      platformInfo: new Map([["ALIAS_CHECK_COMPLETE", "any"]]),
    },
  }),
});
