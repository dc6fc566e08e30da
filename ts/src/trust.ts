/**
 * Trust (docs/spec/trust.md): from a pin and the digest of the first policy to the owners' newest
 * policy, the authority's root and code, and the roots of the pinned identities. Everything fetched is
 * untrusted until the step that checks it; the first check that fails is thrown as a refusal.
 *
 * fetchTrust fetches from gateways or authorities, and follow keeps the trust current. A runtime that
 * shows no TLS chain (all browsers) accepts the authority's evidence by its trust statement alone.
 */

import type { Result } from "./evidence/evidence.js";
import { type ProvedHead, checkProvedHead, maxHead, unverifiedSteps } from "./head.js";
import { History } from "./history.js";
import type { Expect } from "./identity.js";
import type { Policy } from "./policy/policy.js";
import { Refusal, reasonOf, refuse } from "./refusal.js";
import { type Fetch, type Source, authoritySource, gatewaySource } from "./source.js";
import { type Config, type PinnedIdentity, type Snapshot, type TrustOptions, type TrustPin, checkPin, checkProof, extendFully, fetchSnapshot, pinned } from "./trustfetch.js";
import type { Certificate } from "./x509.js";

export type { PinnedIdentity, TrustOptions, TrustPin, TrustStorage } from "./trustfetch.js";

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
