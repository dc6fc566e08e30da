/** Refusals: the error of every check. */

/** All reasons, as docs/api/reasons.json of the project lists them. A test compares the two. */
export const reasons = [
  "malformed",
  "unknown-root",
  "chain",
  "revoked",
  "wrong-chip",
  "signature",
  "digest",
  "nonce",
  "expired",
  "crl-missing",
  "tcb-status",
  "debug",
  "platform",
  "measurement",
  "device-missing",
  "not-this-device",
  "policy",
  "quorum",
  "not-owner",
  "sequence",
  "genesis",
  "trust-domain",
  "authority-root",
  "draft",
  "root-unbound",
  "behind",
  "not-found",
  "proposal-over",
  "withdrawn",
  "party",
  "request",
  "too-large",
  "rate",
  "nonce-used",
  "csr",
  "kind",
  "identity",
  "name",
  "group",
  "role",
  "roster",
  "extension",
  "clock",
  "store",
  "store-foreign",
  "ring-elsewhere",
  "group-authority",
  "unavailable",
  "certificate-expired",
  "not-enrolled",
  "not-allowed",
  "outcome-unknown",
  "cut-off",
  "retired",
  "units",
  "recipient",
  "share",
  "share-stale",
  "internal",
  "misdirected",
  "rekey",
  "ticket-wanted",
  "cookie-wanted",
  "not-executed",
  "replayed",
  "overload",
  "ring",
  "session-over",
  "truncated",
  "evidence-missing",
  "ohttp-key",
] as const;

/** One stable word for the cause of a refusal. */
export type Reason = (typeof reasons)[number];

/**
 * The error of every check: a reason of the closed list, the rule that was broken, the value seen
 * and the value wanted. It contains no secret.
 */
export class Refusal extends Error {
  override readonly name = "Refusal";

  constructor(
    readonly reason: Reason,
    readonly rule: string,
    readonly got: string,
    readonly want: string,
    options?: ErrorOptions,
  ) {
    super(`${rule}: got ${got}, want ${want} (${reason})`, options);
  }
}

/** Makes a refusal. */
export function refuse(reason: Reason, rule: string, got: unknown, want: unknown, cause?: unknown): Refusal {
  return new Refusal(reason, rule, String(got), String(want), cause === undefined ? undefined : { cause });
}

/** Returns the reason of an error: that of a refusal, also where the refusal is a cause. */
export function reasonOf(error: unknown): Reason | undefined {
  for (let e = error; e instanceof Error; e = e.cause) {
    if (e instanceof Refusal) return e.reason;
  }
  return undefined;
}
