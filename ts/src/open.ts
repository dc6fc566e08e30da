/**
 * What programs use: sessions and one-off requests with a cluster, behind functions as the platform's
 * fetch.
 */

import { base64, digestText, fromBase64, parseDigest } from "./bytes.js";
import { appraiseUnit } from "./channel/appraise.js";
import type { Receipt } from "./channel/receipt.js";
import type { Record } from "./channel/record.js";
import type { Session as ChannelSession } from "./channel/session.js";
import { type CallResponse, type Clock, type Closed, Transport, type TrustSource } from "./channel/transport.js";
import { checkUnitChain, type Pin, type UnitTrust } from "./channel/unit.js";
import type { Appraiser, Result } from "./evidence/evidence.js";
import { type Fetch, makeCall, makeResponse, checkTarget } from "./fetch.js";
import { makeGateways } from "./gateways.js";
import { decodeHeadField } from "./head.js";
import { type Fact, sessionFacts, trustFacts } from "./info.js";
import { type Digest, hosts, serves } from "./policy/policy.js";
import { refuse } from "./refusal.js";
import { fetchTrust, Trust, type TrustOptions, type TrustStorage } from "./trust.js";

/** The cluster, what is trusted, and what the platform provides. */
export interface ClusterOptions {
  /** URL of a gateway to the units, http or https: untrusted. Or several, in `gateways`. */
  gateway?: string | undefined;
  gateways?: readonly string[] | undefined;
  /** The pin: SHA-256 of the first policy, 64 hexadecimal digits, with or without `sha256:`. */
  genesis: string;
  /** Exactly one of task (all of its releases), id (one release), and group with role. */
  task?: string | undefined;
  id?: string | undefined;
  group?: string | undefined;
  /** With a group: only units of this role can read the session; `*`: all of the group. */
  role?: string | undefined;
  /** With a group: digests of the SSH keys of the party that is trusted. */
  partyKeys?: readonly string[] | undefined;
  /** Where trust comes from: URLs of authorities, or trust that is fetched already. Without it through the gateways. */
  trust?: string | readonly string[] | Trust | undefined;
  /** The least policy sequence that is accepted. */
  minSequence?: number | undefined;
  /** Keeps the newest policy history between starts, so that an older one is refused. */
  storage?: TrustStorage | undefined;
  /** Appraisers in place of this package's own, by platform. */
  appraisers?: ReadonlyMap<string, Appraiser> | undefined;
  /** The time, and pauses. */
  clock?: Partial<Clock> | undefined;
  /** The platform's fetch. */
  fetch?: Fetch | undefined;
  /** Ends opening. */
  signal?: AbortSignal | undefined;
}

/** Options of a session. */
export interface OpenOptions extends ClusterOptions {
  /** Requires new evidence of the unit that opens a session, which proves that it has the session's secret. */
  freshEvidence?: boolean | undefined;
  /** Announces that requests may ask for receipts. */
  receipts?: boolean | undefined;
  /** Milliseconds from the sending of a request until a unit may begin to execute it: 30000, at most 120000. */
  notAfter?: number | undefined;
}

/** What is known of the session in use. */
export interface SessionInfo {
  /** The unit that opened the session, 32 digits. */
  unit: string;
  /** The identity id of its release or group. */
  identity: Digest;
  expires: Date;
  /** Only the opener has the session: see docs/spec/channel.md, section 2. */
  alone: boolean;
  /** The appraisal of fresh evidence, where it was wanted. */
  evidence: Result | undefined;
  /** Everything that was verified, as a tree that a page can show. */
  verified: Fact[];
}

/** A receipt for one response: what `cohort verify --receipt` reads, and what it proves. */
export interface SignedReceipt {
  record: Record;
  receipt: Receipt;
  /** The file: record, authority root and policy history. */
  toJSON(): unknown;
}

const systemClock: Clock = {
  now: () => Date.now(),
  sleep: (milliseconds, signal) =>
    new Promise((resolve) => {
      const end = () => {
        clearTimeout(timer);
        signal?.removeEventListener("abort", end);
        resolve();
      };
      const timer = setTimeout(end, milliseconds);
      if (signal?.aborted) end();
      else signal?.addEventListener("abort", end);
    }),
};

/** Time from the begin until the policy history is followed: a program that ends at once needs no follower. */
const followDelay = 250;

/** After this time the trust is fetched again, with the next request. All in milliseconds. */
const refreshAfter = 60_000;
const minRefresh = 1_000;

/** Time in which units are asked to close a session, in milliseconds. */
const closeTime = 5_000;

function digestOf(value: string): Digest {
  return digestText(parseDigest(value.startsWith("sha256:") ? value : "sha256:" + value));
}

/** What a session and one-off requests share. */
class Cluster {
  readonly clock: Clock;
  readonly pin: Pin;
  readonly gateways;
  readonly source: TrustSource;
  private readonly stop = new AbortController();
  private following: Promise<unknown> = Promise.resolve();

  private constructor(
    readonly options: ClusterOptions,
    readonly trust: Trust,
  ) {
    this.clock = clockOf(options);
    this.gateways = makeGateways(gatewaysOf(options), fetchOf(options));
    const { genesis, task, id, group, measurements } = trust.pin;
    const role = options.role === "*" ? undefined : options.role;
    this.pin = { genesis, task, group, role, id: id ?? (measurements ? trust.identities[0]?.id : undefined) };
    if (!!group !== !!options.role) throw refuse("role", "channel: role", options.role ?? "", group ? "a role of the group, or * for all" : "none without a group");
    if (group && role && !trust.policy.groups.get(group)?.roles.has(role)) {
      throw refuse("role", "channel: role", role, [...(trust.policy.groups.get(group)?.roles.keys() ?? [])].join(", ") + ", or * for the whole group");
    }
    this.source = this.makeSource();
  }

  static async make(options: ClusterOptions): Promise<Cluster> {
    const given = options.trust;
    const genesis = digestOf(options.genesis);
    if (!(given instanceof Trust)) return new Cluster(options, await fetchTrust(trustOptions(options, genesis)));
    const { pin } = given;
    const id = options.id === undefined ? undefined : digestOf(options.id);
    const same = pin.genesis === genesis && pin.task === options.task && pin.group === options.group && pin.id === id;
    if (!same) throw refuse("request", "channel: trust", "of another pin", "of the genesis, task, id and group given here");
    return new Cluster(options, given);
  }

  private makeSource(): TrustSource {
    const { trust, clock } = this;
    const current = (): UnitTrust => ({
      policy: trust.policy,
      history: trust.history,
      checkChain: (chain, pin, policy, at) => checkUnitChain({ root: trust.authorityRoot, approvers: trust.pin.partyKeys }, chain, pin, policy, at),
      appraise: (evidence, reportData, unit, at) => appraiseUnit(trust.policy, evidence, reportData, unit, at, this.options.appraisers),
    });
    return {
      current,
      renew: async (signal) => {
        await clock.sleep(Math.max(0, Math.min(minRefresh, minRefresh - (clock.now() - trust.fetchedAt))), signal);
        await trust.refresh().catch(() => {}); // the known trust stays in use
        return current();
      },
      newestHead: () => trust.proved.bytes,
      receivedHead: (field) => {
        try {
          void trust.hintHead(decodeHeadField(field));
        } catch {
          // A hint that is malformed is no hint.
        }
      },
    };
  }

  /** Begins to follow the policy history. */
  follow(): void {
    const { signal } = this.stop;
    const delayed = async () => {
      await this.clock.sleep(followDelay, signal);
      await this.trust.follow(signal);
    };
    this.following = delayed().catch(() => {});
  }

  /** Fetches trust again in the background where it is older than a minute. */
  keepFresh(): void {
    if (this.clock.now() - this.trust.fetchedAt > refreshAfter) void this.trust.refresh().catch(() => {});
  }

  async end(): Promise<void> {
    this.stop.abort();
    await this.following;
  }

  /** The names that requests inside the channel may be for. */
  private get task(): string {
    return this.pin.task ?? this.trust.identities[0]?.task ?? "";
  }

  get hosts(): string[] {
    return hosts(this.trust.policy, this.task, this.pin.group ?? "");
  }

  /** The URL that paths alone are relative to. */
  get base(): string {
    return "https://" + (this.hosts[1] ?? this.hosts[0] ?? "cluster.invalid");
  }

  /** Refuses a request that no unit serves, before anything is sent. */
  readonly check = (url: URL): void => {
    checkTarget(url, this.hosts, serves(this.trust.policy, this.task, this.pin.group ?? "", url.host));
  };
}

function gatewaysOf(options: ClusterOptions): string[] {
  return [...(options.gateway === undefined ? [] : [options.gateway]), ...(options.gateways ?? [])];
}

function fetchOf(options: ClusterOptions): Fetch {
  return options.fetch ?? ((input, init) => globalThis.fetch(input, init));
}

function clockOf(options: ClusterOptions): Clock {
  return {
    now: options.clock?.now?.bind(options.clock) ?? systemClock.now,
    sleep: options.clock?.sleep?.bind(options.clock) ?? systemClock.sleep,
  };
}

/** Returns the options of trust that has to be fetched. */
function trustOptions(options: ClusterOptions, genesis: Digest): TrustOptions {
  const { task, id, group, role, partyKeys, minSequence, storage, appraisers, signal } = options;
  const authorities = typeof options.trust === "string" ? [options.trust] : ((options.trust ?? []) as readonly string[]);
  const clock = clockOf(options);
  return {
    genesis,
    gateways: gatewaysOf(options),
    authorities,
    fetch: fetchOf(options) as NonNullable<TrustOptions["fetch"]>,
    clock: clock.now,
    ...(task !== undefined && { task }),
    ...(id !== undefined && { id: digestOf(id) }),
    ...(group !== undefined && { group }),
    ...(role !== undefined && role !== "*" && { role }),
    ...(partyKeys && { partyKeys: partyKeys.map(digestOf) }),
    ...(minSequence !== undefined && { minSequence }),
    ...(storage && { storage }),
    ...(appraisers && { appraisers }),
    ...(signal && { signal }),
  };
}

/**
 * Opens a session with one unit, after trust and that unit were verified. Any unit of the cluster may
 * serve its requests. Fails with the refusal of the check that failed, and with Unreachable where no
 * unit responds. The caller closes the session.
 */
export async function open(options: OpenOptions): Promise<Session> {
  const cluster = await Cluster.make(options);
  const session = new Session(cluster, options);
  try {
    await session.connect(options.signal);
    return session;
  } catch (e) {
    await session.close();
    throw e;
  }
}

/** A session with a cluster, which is renewed ahead of its end. */
export class Session {
  private readonly transport: Transport;
  private newest: ChannelSession | undefined;

  /** @internal */
  constructor(
    private readonly cluster: Cluster,
    options: OpenOptions,
  ) {
    const { gateways, pin, source, clock } = cluster;
    const { freshEvidence, receipts, notAfter } = options;
    this.transport = new Transport({ gateways, pin, trust: source, clock, freshEvidence, receipts, notAfter });
    cluster.follow();
  }

  /** Opens a session where none is open. */
  async connect(signal?: AbortSignal): Promise<void> {
    this.newest = await this.transport.session(signal);
  }

  /**
   * As the platform's fetch, to units of the cluster alone: https, and the name of the task or group or
   * one of its DNS names; a path alone is one at the cluster. It can be passed on as it is, for example
   * to an SDK. A request that is safe or has an Idempotency-Key is sent again where an attempt ends
   * without a response; any other is executed at most once: where it was cut off, the error is
   * OutcomeUnknown.
   */
  readonly fetch: Fetch = async (input, init) => (await this.send(input, init)).response;

  /** As fetch; `receipt` resolves at the end of the response's body, which fails without a receipt that verifies. */
  async fetchWithReceipt(input: RequestInfo | URL, init?: RequestInit): Promise<{ response: Response; receipt: Promise<SignedReceipt> }> {
    let resolve!: (receipt: SignedReceipt) => void;
    let reject!: (reason: unknown) => void;
    const receipt = new Promise<SignedReceipt>((...settle) => ([resolve, reject] = settle));
    receipt.catch(() => {}); // the caller may not want it
    const { response } = await this.send(input, init, (record, verified) => resolve(this.signed(record, verified)), reject);
    return { response, receipt };
  }

  private async send(input: RequestInfo | URL, init?: RequestInit, receipt?: (record: Record, receipt: Receipt) => void, failed?: (e: unknown) => void): Promise<{ response: Response }> {
    const { cluster } = this;
    const call = await makeCall(input, init, cluster.base, cluster.check);
    cluster.keepFresh();
    call.request.receipt = receipt;
    const received = await this.transport.call(call.request);
    return { response: await makeResponse(call, failed ? reporting(received, failed) : received) };
  }

  private signed(record: Record, receipt: Receipt): SignedReceipt {
    const { trust, clock } = this.cluster;
    const at = clock.now();
    return { record, receipt, toJSON: () => receiptFile(record, trust, at) };
  }

  /** What is known of the session in use. */
  get info(): SessionInfo {
    const session = (this.newest = this.transport.newest ?? this.newest);
    if (!session) throw refuse("session-over", "session", "none is open", "an open session");
    const { unit, expires, alone, evidence } = session.facts;
    return {
      unit: unit.unit,
      identity: unit.facts.identity,
      expires: new Date(expires),
      alone,
      evidence,
      verified: sessionFacts(this.cluster.trust, session.facts),
    };
  }

  /** The trust under which units are verified. */
  get trust(): Trust {
    return this.cluster.trust;
  }

  /**
   * Closes the session at all known units and gives up its secret. Returns the units that confirmed, and
   * the time until which others may have the session. Responses that have begun continue. It takes at
   * most 5 seconds, or until the signal.
   */
  async close(options?: { signal?: AbortSignal }): Promise<Closed> {
    const closed = await this.transport.close(options?.signal ?? AbortSignal.timeout(closeTime));
    await this.cluster.end();
    return closed;
  }
}

/** Reports the failure of a response's body. */
function reporting(response: CallResponse, failed: (e: unknown) => void): CallResponse {
  return {
    ...response,
    read: () =>
      response.read().catch((e: unknown) => {
        failed(e);
        throw e;
      }),
    cancel: (reason) => {
      failed(reason ?? new Error("the response was cancelled"));
      return response.cancel(reason);
    },
  };
}

/** Options of one-off requests. */
export interface OneOffOptions extends ClusterOptions {
  /** Sends each request in one piece (RFC 9458), at most 256 KiB each way. */
  whole?: boolean | undefined;
}

/** One-off requests to a cluster: see oneoff. */
export interface OneOff {
  /** As the platform's fetch: see Session.fetch. Requests are safe, or have an Idempotency-Key. */
  readonly fetch: Fetch;
  readonly trust: Trust;
  /** What was verified, as a tree that a page can show. */
  readonly verified: Fact[];
  /** Ends following the policy history. */
  close(): Promise<void>;
}

/** Fetches a key configuration that a unit signed, verifies it, and returns one-off requests under it. */
export async function oneoff(options: OneOffOptions): Promise<OneOff> {
  const [cluster, { OneOffTransport }] = await Promise.all([Cluster.make(options), import("./oneoff.js")]);
  const { gateways, pin, source, clock, trust } = cluster;
  const transport = new OneOffTransport({ gateways, pin, trust: source, clock, whole: options.whole });
  await transport.currentKeys(options.signal);
  cluster.follow();
  return {
    trust,
    fetch: async (input, init) => {
      const call = await makeCall(input, init, cluster.base, cluster.check);
      cluster.keepFresh();
      return makeResponse(call, await transport.call(call.request));
    },
    get verified() {
      return trustFacts(trust);
    },
    close: () => cluster.end(),
  };
}

/**
 * Verifies a record of a receipt offline, by trust that is there, at the time of the response in
 * milliseconds. See docs/spec/channel.md, section 5.
 */
export async function verifyRecord(record: Record, trust: Trust, at: number): Promise<Receipt> {
  const { genesis, task, id, group, role } = trust.pin;
  const source: UnitTrust = {
    policy: trust.policy,
    history: trust.history,
    checkChain: (chain, pin, policy, time) => checkUnitChain({ root: trust.authorityRoot, approvers: trust.pin.partyKeys }, chain, pin, policy, time),
  };
  const { verifyReceipt } = await import("./channel/receipt.js");
  return verifyReceipt(record, source, { genesis, task, group, role, id: id ?? (task || group ? undefined : trust.identities[0]?.id) }, at);
}

/** Returns the file that `cohort verify --receipt` reads: the record, the authority root and the policy history. */
function receiptFile(record: Record, trust: Trust, at: number): unknown {
  const { policy, history, authorityRoot } = trust;
  return {
    schema: "cohort/receipt/v1",
    at: new Date(at).toISOString(),
    request: base64(record.request),
    response: base64(record.response),
    receipt: base64(record.receipt),
    authority_root: base64(authorityRoot.raw),
    policy_history: {
      schema: "cohort/client-state/v1",
      genesis: policy.genesis,
      head: policy.head,
      sequence: policy.sequence,
      steps: history.steps.map((step) => ({ policy: base64(step.policy), signatures: step.signatures })),
    },
  };
}

/** Keeps state in a store of the platform, such as localStorage, under a key. */
export function storageIn(store: { getItem(key: string): string | null; setItem(key: string, value: string): void }, key: string): TrustStorage {
  return {
    load: async () => {
      const text = store.getItem(key);
      return text === null ? undefined : fromBase64(text);
    },
    store: async (state) => store.setItem(key, base64(state)),
  };
}
