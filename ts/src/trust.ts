/**
 * Trust (docs/spec/trust.md): from a pin and the digest of the first policy to the owners' newest
 * policy, the authority's root and code, and the roots of the pinned identities. Everything fetched is
 * untrusted until the step that checks it; the first check that fails is thrown as a refusal.
 *
 * fetchTrust fetches from gateways or authorities, and follow keeps the trust current. A runtime that
 * shows no TLS chain (all browsers) accepts the authority's evidence by its trust statement alone.
 */

import { fromBase64, hex, parseDigest, utf8 } from "./bytes.js";
import { type Appraiser, type Evidence, type Result, appraise, evidenceOf } from "./evidence/evidence.js";
import { type Measurement, encodeMeasurement } from "./evidence/measurement.js";
import { type ProvedHead, checkProvedHead, maxHead, unverifiedSteps } from "./head.js";
import { History, parseSteps } from "./history.js";
import { type Expect, check, checkApprovers, checkGroupRoot, checkRoot } from "./identity.js";
import { type Digest, type GroupState, type Policy, admitAuthority, groupRoots, inForce, zeroDigest } from "./policy/policy.js";
import { Refusal, reasonOf, refuse } from "./refusal.js";
import { type Fetch, type Source, authoritySource, gatewaySource, member } from "./source.js";
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
interface Snapshot {
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
interface Config extends TrustOptions {
  all: readonly Source[];
  now: () => number;
  randomBytes: (size: number) => Uint8Array;
}

/** The most time for one source, in milliseconds, so that the next one is tried if it does not respond. */
const sourceTimeout = 10_000;

/** The longest wait of a poll, and the time for its response beyond that, in milliseconds. */
const pollWait = 30_000;
const pollMargin = 10_000;

/** The least time between two polls without a step, in milliseconds. */
const minPollInterval = 250;

/** The first and the longest pause while no source responds, in milliseconds. */
const backoff = { first: 50, most: 5_000 };

/** The follower returns to its first source after this time, in milliseconds. */
const returnToFirst = 60_000;

/** The wait after all sources had no place for a poll, in milliseconds: from half of it to one and a half. */
const pollRetry = 10_000;

/** Polls because of hinted heads: a burst, then one in each period; and hints a second whose signature is verified. */
const hints = { burst: 3, period: 5_000, checked: 20 };

/** The least time between two fetches of trust, and the pause after one that failed, in milliseconds. */
const minRefresh = 1_000;
const missingRetry = 15_000;

/**
 * Fetches trust and verifies all of it. Sources are tried in order; where all fail, the error of one
 * source is thrown as it is, and those of several as an AggregateError with the first as its cause.
 */
export async function fetchTrust(options: TrustOptions): Promise<Trust> {
  checkPin(options);
  const fetch: Fetch = options.fetch ?? ((input, init) => globalThis.fetch(input, init));
  const all = [
    ...(options.sources ?? []),
    ...(options.authorities ?? []).map((url) => authoritySource(url, fetch)),
    ...(options.gateways ?? []).map((url) => gatewaySource(url, fetch)),
  ];
  if (all.length === 0) throw refuse("request", "trust: gateways and authorities", 0, "at least one URL");
  const config: Config = {
    ...options, all, now: options.clock ?? Date.now,
    randomBytes: options.random ?? ((size) => crypto.getRandomValues(new Uint8Array(size))),
  };
  const stored = await options.storage?.load().catch((e: unknown) => {
    throw refuse("store", "trust: loading the newest history", e, "the bytes that were stored, or undefined", e);
  });
  const seen = stored ? await History.fromBytes(options.genesis, stored) : History.begin(options.genesis);
  const first = await fetchSnapshot(config, seen, options.signal);
  const trust = new Trust(config, first);
  if (first.history.length > seen.length) await trust.save();
  return trust;
}

function checkPin(pin: TrustPin): void {
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
async function fetchSnapshot(config: Config, seen: History, signal?: AbortSignal): Promise<Snapshot> {
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
  if (response.head !== policy.head) throw refuse("behind", "trust: policy head", response.head, policy.head);
  const evidence = await appraiseAuthority(config, evidenceOf(response.evidence), await expected, nonce, policy, at);
  const identities: PinnedIdentity[] = [];
  for (const identity of wanted) identities.push(await findIdentity(config, response.identities, identity, authorityRoot, policy, at));
  return { history, proved, authorityRoot, evidence, evidenceAt, identities, fetchedAt: at, pinFault: undefined };
}

/** Step 1: extends a history by pages until it is complete. Returns the unverified proof of its head. */
async function extendFully(seen: History, fetchPage: (from: History) => Promise<unknown>): Promise<{ history: History; proof: Uint8Array }> {
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
async function checkProof(history: History, proof: Uint8Array, authorityRoot: Certificate | undefined, at: number): Promise<ProvedHead> {
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
function pinned(pin: TrustPin, policy: Policy, at: number): PinnedIdentity[] {
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
  return {
    authority: bytesIn(value, "authority", maxCertificate) ?? new Uint8Array(0),
    head: digestIn(member(value, "history"), "head"),
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

/**
 * Verified trust that its users share and that follow keeps current. Each getter returns the newest
 * value. Only {@link fetchTrust} makes one.
 */
export class Trust {
  private readonly listeners = new Set<() => void>();
  private fetching: Promise<void> | undefined;
  private lastFetch: number;
  private saving: Promise<void> = Promise.resolve();
  private followers = 0;
  private loop: { stop: AbortController; done: Promise<unknown> } | undefined;
  /** Ends the wait of the current poll. */
  private waiting: AbortController | undefined;
  private hinted = false;
  private tokens = 0;
  private filled = 0;
  private second = 0;
  private checks = 0;

  /** @internal */
  constructor(
    private readonly config: Config,
    private current: Snapshot,
  ) {
    this.lastFetch = current.fetchedAt;
  }

  /** The pin. */
  get pin(): TrustPin {
    return this.config;
  }

  /** The policy in force. */
  get policy(): Policy {
    return this.current.history.policy;
  }

  /** The newest history. */
  get history(): History {
    return this.current.history;
  }

  /** The newest proof of the history's head. */
  get proved(): ProvedHead {
    return this.current.proved;
  }

  /** The certificate of the authority root that policy names. */
  get authorityRoot(): Certificate {
    return this.current.authorityRoot;
  }

  /** The appraisal of the authority's own evidence. */
  get evidence(): Result {
    return this.current.evidence;
  }

  /** When the authority's evidence was made: the time of its statement, or of the fetch where it was made for this client. Milliseconds since 1970. */
  get evidenceAt(): number {
    return this.current.evidenceAt;
  }

  /** The pinned identities whose roots are fetched: all releases of a task, one release, or the rosters of a group. */
  get identities(): readonly PinnedIdentity[] {
    return this.current.pinFault ? [] : this.current.identities.filter((identity) => identity.root);
  }

  /** When trust was fetched, milliseconds since 1970. */
  get fetchedAt(): number {
    return this.current.fetchedAt;
  }

  /** Returns what a unit that signs for this pin must be, at a time in milliseconds since 1970. Where the newest policy has no pinned identity, that is refused. */
  expect(at: number): Expect {
    const { policy, current, config } = this;
    if (current.pinFault) throw current.pinFault;
    const ids = config.group && !config.id ? undefined : current.identities.map((identity) => identity.id);
    const base: Expect = { policy, at, use: "signing", kinds: [config.group ? "group" : "unit"], ...(ids && { ids }), ...(config.measurements && { measurements: config.measurements }) };
    if (!config.group) return base;
    const roles = config.role ? [config.role] : [...(policy.groups.get(config.group)?.roles.keys() ?? [])];
    return { ...base, group: config.group, roles, approvers: config.partyKeys ?? [] };
  }

  /** Calls a function after each change of the policy in force or of the identities. Returns a function that ends this. */
  subscribe(changed: () => void): () => void {
    this.listeners.add(changed);
    return () => this.listeners.delete(changed);
  }

  /**
   * Fetches trust again, for example after a unit was refused that newer trust may accept. There is one
   * fetch at a time, which all callers share, and at most one in a second: within that, the trust stays
   * as it is. Where it fails, the trust that is there remains, and the error is thrown.
   */
  async refresh(): Promise<void> {
    if (!this.fetching && this.config.now() - this.lastFetch < minRefresh && this.config.now() >= this.lastFetch) return;
    this.fetching ??= this.fetchAgain().finally(() => (this.fetching = undefined));
    await this.fetching;
  }

  private async fetchAgain(): Promise<void> {
    this.lastFetch = this.config.now();
    this.adopt(await fetchSnapshot(this.config, this.current.history));
  }

  /** Makes a snapshot the current one, with the steps that this trust has and the snapshot lacks. */
  private adopt(next: Snapshot): void {
    const known = this.current;
    if (!next.history.knows(known.history.head)) next = this.withHistory(next, known.history, known.proved);
    this.current = next;
    if (next.history.length > known.history.length) void this.save().catch(() => undefined); // the next step stores it
    const changed = next.history.head !== known.history.head || next.fetchedAt !== known.fetchedAt;
    if (changed) for (const listener of [...this.listeners]) listener();
  }

  /** Returns a snapshot with a newer history. It keeps what the authority sent. */
  private withHistory(snapshot: Snapshot, history: History, proved: ProvedHead): Snapshot {
    const next = { ...snapshot, history, proved, pinFault: undefined };
    try {
      const wanted = pinned(this.config, history.policy, this.config.now());
      const identities = wanted.map((want) => snapshot.identities.find((known) => known.id === want.id) ?? want);
      return { ...next, identities };
    } catch (e) {
      if (!(e instanceof Refusal)) throw e;
      return { ...next, pinFault: e };
    }
  }

  /** Reports whether a step left a part of trust to be fetched. */
  private get incomplete(): boolean {
    return !this.current.pinFault && this.current.identities.some((identity) => !identity.root);
  }

  /** Stores the newest history. @internal */
  async save(): Promise<void> {
    const { storage } = this.config;
    if (!storage) return;
    this.saving = this.saving.catch(() => undefined).then(() => storage.store(this.current.history.toBytes()));
    await this.saving.catch((e: unknown) => {
      throw refuse("store", "trust: storing the newest history", e, "that it is stored, so that no older one is accepted later", e);
    });
  }

  /**
   * Keeps the trust current until the signal: polls the sources for steps, one poll at a time, and
   * fetches what a step leaves missing (docs/spec/head.md, sections 2 and 3). Several callers share
   * the polls. It fails only by the signal, and then returns.
   */
  async follow(signal: AbortSignal): Promise<void> {
    if (signal.aborted) return;
    this.followers++;
    if (!this.loop) {
      const stop = new AbortController();
      this.loop = { stop, done: Promise.all([this.poll(stop.signal), this.fetchMissing(stop.signal)]) };
    }
    const { loop } = this;
    await new Promise((resolve) => signal.addEventListener("abort", resolve, { once: true }));
    if (--this.followers > 0) return;
    this.loop = undefined;
    loop.stop.abort();
    await loop.done;
  }

  /** Polls until the signal: the first source that accepts polls, and another one while that one does not respond. */
  private async poll(stop: AbortSignal): Promise<void> {
    const sources = [...this.config.all];
    const first = sources[0]!;
    const rotate = () => sources.push(sources.shift()!);
    let tried = 0; // sources that failed since the last success
    let full = false; // one of them had no place for a poll
    let failing = false; // the last poll failed
    let rounds = 0; // over all sources in a row without a success
    let leftFirst = 0;
    while (!stop.aborted) {
      const began = this.config.now();
      if (sources[0] !== first && began - leftFirst > returnToFirst) {
        leftFirst = began;
        while (sources[0] !== first) rotate();
      }
      const { hinted, history } = this;
      this.hinted = false;
      this.waiting = new AbortController();
      const waiting = AbortSignal.any([stop, this.waiting.signal]);
      try {
        // After a failure the first request does not wait: the newest proof may be old by now. Where all
        // sources are full, it is the only news until the next try.
        await this.pollOnce(sources[0]!, hinted || failing ? 0 : pollWait, waiting);
        let pause = minPollInterval - (this.config.now() - began);
        if (this.history.head !== history.head) pause = 0;
        if (full && tried >= sources.length) pause = pollRetry * (0.5 + Math.random());
        [tried, full, failing, rounds] = [0, false, false, 0];
        await sleep(Math.min(pause, 2 * pollRetry), waiting);
      } catch (e) {
        if (waiting.aborted) continue;
        tried++;
        full ||= reasonOf(e) === "overload" || reasonOf(e) === "rate";
        failing = true;
        if (sources[0] === first) leftFirst = this.config.now();
        rotate();
        if (tried < sources.length || (full && tried === sources.length)) continue;
        await sleep(Math.min(backoff.first * 2 ** rounds++, backoff.most) * (0.5 + Math.random() / 2), waiting);
        [tried, full] = [0, false];
      }
    }
  }

  /** Makes one poll and adopts what it brings. */
  private async pollOnce(source: Source, wait: number, signal: AbortSignal): Promise<void> {
    const ends = AbortSignal.any([signal, AbortSignal.timeout(wait + pollMargin)]);
    const { history, proof } = await extendFully(this.current.history, (from) => source.poll(from.head, wait, ends));
    const proved = await checkProof(history, proof, this.current.authorityRoot, this.config.now());
    this.adopt(this.withHistory(this.current, history, proved));
    if (this.incomplete) this.missing?.();
  }

  /** Wakes fetchMissing. */
  private missing: (() => void) | undefined;

  /** Fetches trust after each step that leaves a part of it missing, at a random time within the spread of the proved head. */
  private async fetchMissing(stop: AbortSignal): Promise<void> {
    const stopped = new Promise<void>((resolve) => stop.addEventListener("abort", () => resolve(), { once: true }));
    while (!stop.aborted) {
      if (!this.incomplete) {
        await Promise.race([stopped, new Promise<void>((resolve) => (this.missing = resolve))]);
      }
      await sleep(Math.random() * this.current.proved.spread, stop);
      while (this.incomplete && !stop.aborted) {
        await sleep(minRefresh, stop);
        // A fetch that takes long does not keep its callers from ending.
        await Promise.race([stopped, this.refresh().catch(() => sleep(missingRetry, stop))]);
      }
    }
  }

  /**
   * Takes an unverified policy head that a unit sent in `Cohort-Head`. Where the authority has signed it
   * and it is newer, the follower polls at once: three times, then once in 5 s.
   */
  async hintHead(unverified: Uint8Array): Promise<void> {
    const now = this.config.now();
    if (unverified.length > maxHead || unverifiedSteps(unverified) <= this.current.history.length || !this.mayCheck(now)) return;
    try {
      await checkProvedHead(unverified, this.policy, this.authorityRoot, now);
    } catch {
      return;
    }
    const restored = Math.floor((now - this.filled) / hints.period);
    if (restored !== 0) [this.tokens, this.filled] = [Math.max(0, this.tokens - Math.abs(restored)), now];
    if (this.tokens >= hints.burst) return;
    this.tokens++;
    this.hinted = true;
    this.waiting?.abort();
  }

  /** Reports whether one more hint may be verified in this second: any stranger can send hints. */
  private mayCheck(now: number): boolean {
    const second = Math.floor(now / 1000);
    if (second !== this.second) [this.second, this.checks] = [second, 0];
    return ++this.checks <= hints.checked;
  }
}

/** Waits some milliseconds, at most until the signal. */
function sleep(milliseconds: number, signal: AbortSignal): Promise<void> {
  if (milliseconds <= 0 || signal.aborted) return Promise.resolve();
  return new Promise((resolve) => {
    const end = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", end);
      resolve();
    };
    const timer = setTimeout(end, milliseconds);
    signal.addEventListener("abort", end, { once: true });
  });
}
