/**
 * One fetch of trust from its sources, and every check of it in the order of docs/spec/trust.md. The
 * first check that fails is thrown as a refusal.
 */

import { fromBase64, hex, parseDigest, utf8 } from "./bytes.js";
import { type Appraiser, type Evidence, type Result, appraise, evidenceOf } from "./evidence/evidence.js";
import { type Measurement, encodeMeasurement } from "./evidence/measurement.js";
import { type ProvedHead, checkProvedHead, maxHead } from "./head.js";
import { type History, parseSteps } from "./history.js";
import { check, checkRoot } from "./identity.js";
import { type Digest, type GroupState, type Policy, admitAuthority, checkApprovers, groupRoots, inForce, zeroDigest } from "./policy/policy.js";
import { type Refusal, reasonOf, refuse } from "./refusal.js";
import { type Fetch, type Source, member } from "./source.js";
import { checkTrustStatement, nonceSize, timedReportData, trustReportData } from "./statement.js";
import { type Certificate, parseCertificate } from "./x509.js";

/** What a client trusts: exactly one of task, id, group and measurements; only group and id may be combined. */
export interface TrustPin {
  /** The digest of the first policy, `sha256:…`. */
  genesis: Digest;
  /** All releases of a task that the owners approve. */
  task?: string;
  /** One release; with group one roster. */
  id?: Digest;
  /** The rosters of a group that its parties approve. */
  group?: string;
  /** With group: the role that serves. Trust itself is the same for all roles. */
  role?: string;
  /** One release by all of its reference values, in any order. */
  measurements?: readonly Measurement[];
  /** With group: digests of the SSH keys of the party that the client trusts. At least one must be of a party of the roster, and each such party must approve it. */
  partyKeys?: readonly Digest[];
}

/**
 * Keeps the newest history between starts, so that an older one is refused. A history has up to some
 * MiB. Store is never called twice at once. Where one of the functions fails, fetchTrust fails (`store`).
 */
export interface TrustStorage {
  load(): Promise<Uint8Array | undefined>;
  store(history: Uint8Array): Promise<void>;
}

/** Pins and sources of trust. */
export interface TrustOptions extends TrustPin {
  /** URLs of gateways, tried in order. They are believed in nothing. */
  gateways?: readonly string[];
  /** https URLs of authorities, tried before the gateways. */
  authorities?: readonly string[];
  /** Further sources, tried first. */
  sources?: readonly Source[];
  /** The least policy sequence that is accepted. */
  minSequence?: number;
  storage?: TrustStorage;
  /** Asks the authority for evidence made for this client, never for a copy that is up to 10 minutes old. */
  fresh?: boolean;
  /** Appraisers in place of this package's own, by platform. */
  appraisers?: ReadonlyMap<string, Appraiser>;
  /** Returns milliseconds since 1970; Date.now without it. */
  clock?: () => number;
  /** The platform's fetch without it. */
  fetch?: Fetch;
  /** Returns random bytes; those of crypto.getRandomValues without it. */
  random?: (size: number) => Uint8Array;
  /** Ends fetchTrust. */
  signal?: AbortSignal;
}

/** A pinned identity. */
export interface PinnedIdentity {
  id: Digest;
  /** Task and release, `""` for a group. */
  task: string;
  release: string;
  /** `""` outside groups. */
  group: string;
  /** The self-signed root; undefined until it is fetched. */
  root?: Certificate;
  /** The root's key, certified by the authority root; not of a group. */
  cross?: Certificate;
}

/** Everything that one fetch verified, under the newest history. It is immutable. */
export interface Snapshot {
  history: History;
  proved: ProvedHead;
  authorityRoot: Certificate;
  evidence: Result;
  evidenceAt: number;
  identities: readonly PinnedIdentity[];
  fetchedAt: number;
  /** Why the newest policy has no pinned identity. */
  pinFault: Refusal | undefined;
}

/** Options with every default. */
export interface Config extends TrustOptions {
  all: readonly Source[];
  now: () => number;
  randomBytes: (size: number) => Uint8Array;
}

/** The most time for one source, in milliseconds, so that the next one is tried if it does not respond. */
const sourceTimeout = 10_000;

/** Refuses pins that are none, or several. */
export function checkPin(pin: TrustPin): void {
  parseDigest(pin.genesis);
  if (pin.id !== undefined) parseDigest(pin.id);
  const given = [pin.task, pin.group, pin.group ? undefined : pin.id, pin.measurements?.length].filter(Boolean).length;
  if (given !== 1) throw refuse("request", "trust: pins", given, "exactly one of task, group, id and measurements");
  if (pin.role && !pin.group) throw refuse("request", "trust: role", pin.role, "with a group only");
  if (pin.partyKeys?.length && (!pin.group || pin.partyKeys.includes(zeroDigest))) {
    throw refuse("request", "trust: party keys", pin.partyKeys, "digests of keys, with a group only");
  }
}

/** Tries the sources in order until one returns trust that is not older than the history. */
export async function fetchSnapshot(config: Config, seen: History, signal?: AbortSignal): Promise<Snapshot> {
  const faults: unknown[] = [];
  for (const source of config.all) {
    try {
      return await fetchFrom(source, config, seen, signal);
    } catch (e) {
      signal?.throwIfAborted();
      faults.push(e);
    }
  }
  if (faults.length === 1) throw faults[0];
  const texts = faults.map((e, i) => `${config.all[i]!.name}: ${e instanceof Error ? e.message : e}`);
  throw new AggregateError(faults, `no source of trust was accepted: ${texts.join("; ")}`, { cause: faults[0] });
}

/**
 * Fetches trust from one source. A relay's copy may be older than the newest step, too old, or of a
 * platform that needs a request of its own: then it starts again, once, with a nonce.
 */
async function fetchFrom(source: Source, config: Config, seen: History, signal?: AbortSignal): Promise<Snapshot> {
  const limit = AbortSignal.timeout(sourceTimeout);
  const ends = signal ? AbortSignal.any([signal, limit]) : limit;
  const nonce = config.fresh || source.chain ? config.randomBytes(nonceSize) : new Uint8Array(0);
  try {
    return await attempt(source, config, seen, nonce, ends);
  } catch (e) {
    const again = nonce.length === 0 && ["behind", "expired", "wrong-chip"].includes(reasonOf(e) ?? "");
    if (!again) throw e;
    return attempt(source, config, seen, config.randomBytes(nonceSize), ends).catch((second: unknown) => {
      throw reasonOf(second) === "unavailable" ? e : second;
    });
  }
}

/** Makes one fetch: the steps of docs/spec/trust.md, section 2, or through a relay those of section 7.2. */
async function attempt(source: Source, config: Config, seen: History, nonce: Uint8Array, signal: AbortSignal): Promise<Snapshot> {
  const { history, proof } = await extendFully(seen, (from) =>
    // A relay is asked by the head: one that does not have it is behind.
    from.length === 0 || source.chain ? source.history(from.length, signal) : source.poll(from.head, 0, signal),
  );
  const { policy } = history;
  const chain = source.chain?.();
  const authority = chain?.at(-1);
  let proved = chain && (await checkProof(history, proof, authority, config.now()));
  checkFreshness(config, policy);
  const wanted = pinned(config, policy, config.now());
  if (chain && authority) await checkConnection(chain, policy, config.now());

  const query = config.task ? { task: config.task } : config.group ? { group: config.group } : { id: wanted[0]!.id };
  const response = parseTrustResponse(await source.trust({ ...query, ...(nonce.length > 0 && { nonce }) }, signal));
  const at = config.now();
  const authorityRoot = parseCertificate(response.authority);
  proved ??= await checkProof(history, proof, authorityRoot, at);
  let expected = trustReportData(nonce, policy);
  let evidenceAt = at;
  if (!chain) {
    if (!response.statement) throw refuse("malformed", "trust: statement", "none", "that of the authority, because the response came through a relay");
    const evidence = utf8(JSON.stringify(response.evidence ?? null));
    const { time } = await checkTrustStatement(response.statement, { policy, authorityRoot, nonce, evidence, at });
    if (nonce.length === 0) [expected, evidenceAt] = [timedReportData(time, policy), time];
  }
  if (response.steps > 0) throw refuse("malformed", "trust: steps in the response", response.steps, "none: the history is fetched by itself");
  if (response.head !== policy.head) throw refuse("behind", "trust: policy head", response.head, policy.head);
  const evidence = await appraiseAuthority(config, evidenceOf(response.evidence), await expected, nonce, policy, at);
  const identities: PinnedIdentity[] = [];
  for (const identity of wanted) identities.push(await findIdentity(config, response.identities, identity, authorityRoot, policy, at));
  return { history, proved, authorityRoot, evidence, evidenceAt, identities, fetchedAt: at, pinFault: undefined };
}

/** Step 1: extends a history by pages until it is complete. Returns the unverified proof of its head. */
export async function extendFully(seen: History, fetchPage: (from: History) => Promise<unknown>): Promise<{ history: History; proof: Uint8Array }> {
  for (let history = seen; ; ) {
    const page = await fetchPage(history);
    const from = member(page, "from");
    if (from !== history.length) throw refuse("malformed", "policy history: first step", from, history.length);
    const head = digestIn(page, "head");
    const entries = parseSteps(member(page, "entries") ?? []);
    if (entries.length === 0) {
      if (history.length === 0 || head !== history.head) throw refuse("behind", "policy history: head", head, history.head);
    } else {
      history = await extendOrFork(history, entries);
    }
    if (history.head === head) return { history, proof: bytesIn(page, "proved_head", maxHead) ?? new Uint8Array(0) };
  }
}

/** Extends a history. Where already the first step does not follow it, the server has another history: `behind`. */
async function extendOrFork(history: History, entries: ReturnType<typeof parseSteps>): Promise<History> {
  try {
    return await history.extend(entries);
  } catch (e) {
    const forks = history.length > 0 && (await history.extend(entries.slice(0, 1)).then(() => false, () => true));
    if (!forks) throw e;
    throw refuse("behind", "policy history: step after the newest seen", e instanceof Error ? e.message : e, `a step after ${history.head}`, e);
  }
}

/** Step 2: the proof is of the head of the history. */
export async function checkProof(history: History, proof: Uint8Array, authorityRoot: Certificate | undefined, at: number): Promise<ProvedHead> {
  if (proof.length === 0) throw refuse("behind", "policy history: size of the proof of its head", 0, "the authority's signature");
  if (!authorityRoot) throw refuse("authority-root", "authority root", "no certificate", history.policy.authority.root);
  const proved = await checkProvedHead(proof, history.policy, authorityRoot, at);
  if (proved.head !== history.head) throw refuse("behind", "policy history: proved head", proved.head, history.head);
  return proved;
}

/** Step 3, but for the pin. */
function checkFreshness({ minSequence = 0 }: TrustOptions, policy: Policy): void {
  if (policy.sequence < minSequence) throw refuse("behind", "policy: sequence", policy.sequence, `at least ${minSequence}`);
}

/** Step 4 on a direct connection: the chain is that of the authority. */
async function checkConnection(chain: readonly Certificate[], policy: Policy, at: number): Promise<void> {
  if (chain.length !== 2) throw refuse("chain", "authority: certificates presented", chain.length, 2);
  await check(chain, chain[1]!, { policy, kinds: ["authority"], use: "tls", at });
}

/** Steps 6 and 7: the authority runs code that policy names. */
async function appraiseAuthority(config: Config, evidence: Evidence, reportData: Uint8Array, nonce: Uint8Array, policy: Policy, at: number): Promise<Result> {
  if (evidence.platform === "tpm" && nonce.length === 0) {
    throw refuse("wrong-chip", "trust: evidence for many clients", evidence.platform, "a platform whose key needs no credential for each client");
  }
  const result = await appraise({ evidence, reportData, rules: policy.rules, at, ...(config.appraisers && { appraisers: config.appraisers }) });
  admitAuthority(policy.authority, result);
  return result;
}

/** Step 8: returns the pinned identities under a policy, without their roots. */
export function pinned(pin: TrustPin, policy: Policy, at: number): PinnedIdentity[] {
  if (pin.group) return pinnedRosters(pin, pin.group, policy, at);
  const encode = (list: readonly Measurement[]) => list.map((m) => hex(encodeMeasurement(m))).sort().join();
  const measured = pin.measurements?.length ? encode(pin.measurements) : undefined;
  const found = [...policy.tasks.values()].flatMap((task) =>
    [...task.releases.values()]
      .filter((r) => task.name === pin.task || r.id === pin.id || (measured !== undefined && encode(r.references) === measured))
      .map((r): PinnedIdentity => ({ id: r.id, task: task.name, release: r.name, group: "" })),
  );
  if (found.length > 0) return found;
  if (pin.task) throw refuse("not-found", "trust: task", pin.task, [...policy.tasks.keys()]);
  if (pin.id) throw refuse("identity", "trust: identity", pin.id, "a release of the policy");
  throw refuse("measurement", "trust: measurements", measured, "those of a release of the policy");
}

/** Returns the rosters of a group that its parties approve, the trusted party among them: the one in force, and those that it continues. */
function pinnedRosters(pin: TrustPin, group: string, policy: Policy, at: number): PinnedIdentity[] {
  const newest = policy.groupStates.get(group);
  if (!newest) throw refuse("not-found", "trust: group", group, [...policy.groupStates.keys()]);
  const first = inForce(newest, at);
  if (pin.id && pin.id !== first.id) throw refuse("roster", `trust: identity of group ${group}`, first.id, pin.id);
  const found: PinnedIdentity[] = [];
  let fault: unknown;
  for (let state: GroupState | undefined = first; state; state = state.predecessor) {
    for (const root of groupRoots(state, at)) {
      try {
        checkApprovers(state, root, pin.partyKeys ?? [], at);
      } catch (e) {
        fault ??= e;
        continue;
      }
      if (!pin.id || pin.id === state.id) found.push({ id: state.id, task: "", release: "", group });
      break;
    }
  }
  if (found.length > 0) return found;
  throw fault ?? refuse("roster", `trust: identity of group ${group}`, first.id, "a roster that its parties approve");
}

/** Step 9: returns an identity with its root out of a response. */
async function findIdentity(config: Config, unverified: readonly ResponseIdentity[], want: PinnedIdentity, authorityRoot: Certificate, policy: Policy, at: number): Promise<PinnedIdentity> {
  const found = unverified.find((identity) => identity.id === want.id);
  if (!found) throw refuse("identity", "trust: identity", "not in the response", want.id);
  const root = parseCertificate(found.root);
  if (want.group) {
    const { checkGroupRoot } = await import("./groupidentity.js");
    await checkGroupRoot(root, { policy, at, group: want.group, ids: [want.id], approvers: config.partyKeys ?? [] });
    return { ...want, root };
  }
  const cross = parseCertificate(found.cross);
  await checkRoot(root, cross, authorityRoot, { policy, at, kinds: ["shared", "unit"], use: "tls", ids: [want.id] });
  return { ...want, root, cross };
}

/** A trust response in its form. Nothing in it is verified. */
interface TrustResponse {
  authority: Uint8Array;
  head: Digest;
  /** The number of steps in the response. */
  steps: number;
  /** Parsed JSON. The authority signs the one encoding of evidence, which is that of its parts in their order, without spaces. */
  evidence: unknown;
  identities: readonly ResponseIdentity[];
  statement: Uint8Array | undefined;
}

interface ResponseIdentity {
  id: Digest;
  root: Uint8Array;
  cross: Uint8Array;
}

/** The largest certificate and the largest statement that are decoded, in bytes. */
const maxCertificate = 64 << 10;

function parseTrustResponse(value: unknown): TrustResponse {
  const history = member(value, "history");
  return {
    authority: bytesIn(value, "authority", maxCertificate) ?? new Uint8Array(0),
    head: digestIn(history, "head"),
    steps: arrayIn(history, "entries").length,
    evidence: member(value, "evidence"),
    identities: arrayIn(value, "identities").map((identity) => ({
      id: digestIn(identity, "identity"),
      root: bytesIn(identity, "root", maxCertificate) ?? new Uint8Array(0),
      cross: bytesIn(identity, "cross", maxCertificate) ?? new Uint8Array(0),
    })),
    statement: bytesIn(value, "statement", maxCertificate),
  };
}

/** Reads a member that is a list, or is missing or null and then empty. */
function arrayIn(value: unknown, name: string): unknown[] {
  const list = member(value, name) ?? [];
  if (!Array.isArray(list)) throw refuse("malformed", `response: ${name}`, typeof list, "a list");
  return list;
}

/** Reads a member that is base64 of at most `most` bytes, or is missing. */
function bytesIn(value: unknown, name: string, most: number): Uint8Array | undefined {
  const digits = member(value, name) ?? undefined;
  if (digits === undefined) return undefined;
  if (typeof digits !== "string") throw refuse("malformed", `response: ${name}`, typeof digits, "base64");
  if (digits.length > Math.ceil(most / 3) * 4) throw refuse("too-large", `response: size of ${name}`, digits.length, most);
  return fromBase64(digits);
}

function digestIn(value: unknown, name: string): Digest {
  const digest = member(value, name);
  if (typeof digest !== "string") throw refuse("malformed", `response: ${name}`, typeof digest, "a digest");
  parseDigest(digest);
  return digest;
}
