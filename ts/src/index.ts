/**
 * Attested sessions and one-off requests with a Cohort cluster, for browsers and Node.
 *
 * `open` verifies a cluster from one pinned value, the digest of its first policy, and returns a session
 * whose `fetch` reaches units of the pinned code alone, encrypted end to end. `oneoff` sends single
 * requests without a session. All that arrives from gateways and authorities is checked here: the
 * owners' signatures of the policy history, the evidence of the authority, certificates of units, and
 * each response.
 */

export {
  open,
  oneoff,
  verifyRecord,
  storageIn,
  Session,
  type ClusterOptions,
  type OneOff,
  type OneOffOptions,
  type OpenOptions,
  type SessionInfo,
  type SignedReceipt,
} from "./open.js";
export { type Closed, type Clock, NotExecuted, OutcomeUnknown, Unreachable } from "./channel/transport.js";
export { ClosedError } from "./channel/session.js";
export type { Receipt } from "./channel/receipt.js";
export { encodeRecord, parseRecord, type Record } from "./channel/record.js";
export type { Unit } from "./channel/unit.js";
export { servedBy, type Fetch } from "./fetch.js";
export type { Fact } from "./info.js";
export { fetchTrust, Trust, type PinnedIdentity, type TrustOptions, type TrustPin, type TrustStorage } from "./trust.js";
export type { Appraiser, Result } from "./evidence/evidence.js";
export { type Reason, reasonOf, reasons, Refusal } from "./refusal.js";
