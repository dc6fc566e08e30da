/**
 * A channel to a whole cluster through untrusted gateways: it opens sessions, and the next ones ahead
 * of their end, and sends each request until a unit responds or nothing is left to try
 * (docs/spec/channel.md, sections 2 and 6).
 */

import type { Fields, RequestHead } from "../bhttp.js";
import { base64url, concat, hex } from "../bytes.js";
import { type Policy, zeroDigest } from "../policy/policy.js";
import { reasonOf, Refusal, refuse, type Reason } from "../refusal.js";
import { ByteReader } from "./chunk.js";
import { BeforeCut, finishHandshake, type Handshake, maxOpenResponse, parseOpenResponse, startHandshake } from "./handshake.js";
import { type Attempt, Budget, decide, type Hint, hintOf, Times } from "./hints.js";
import type { Receipt } from "./receipt.js";
import type { Record } from "./record.js";
import { ClientRequest, ClosedError, Flag, maxSmall, Session } from "./session.js";
import { checkPin, checkSkew, lastCutOf, type Pin, type UnitTrust } from "./unit.js";

/** The time: `now` in milliseconds since 1970, and pauses. */
export interface Clock {
  now(): number;
  /** Resolves after so many milliseconds, or when the signal is aborted. */
  sleep(milliseconds: number, signal?: AbortSignal): Promise<void>;
}

/** Trust, which is renewed while the channel is in use. */
export interface TrustSource {
  /** The newest trust. */
  current(): UnitTrust;
  /** Fetches trust again, after a response that the newest trust does not accept, and returns the newest. It is fetched at most once a second. */
  renew(signal: AbortSignal): Promise<UnitTrust>;
  /** The newest proved policy head, to send; undefined: none. */
  newestHead(): Uint8Array | undefined;
  /** Takes the value of a field `Cohort-Head`, unverified. */
  receivedHead(field: string): void;
}

/** Sends a request to one of several gateways. Gateways are untrusted. */
export interface Gateways {
  fetch(path: string, init: RequestInit & { duplex?: "half" }): Promise<globalThis.Response>;
  /** Whether bodies of requests can be sent while they are made. */
  readonly streams: boolean;
}

/** Configuration of a transport. */
export interface TransportOptions {
  gateways: Gateways;
  pin: Pin;
  trust: TrustSource;
  clock: Clock;
  freshEvidence?: boolean | undefined;
  receipts?: boolean | undefined;
  /** Milliseconds from the sending of a request until a unit may begin to execute it: at most 2 minutes, usually 30 seconds. */
  notAfter?: number | undefined;
}

/** Content of a request. */
export interface Body {
  /** Bytes, where all are there. */
  bytes?: Uint8Array;
  /** Size in bytes, where it is known. */
  length: number | undefined;
  /** Returns the content. Once only, unless `repeatable`. */
  open(): AsyncIterable<Uint8Array>;
  repeatable: boolean;
}

/** One call. */
export interface CallRequest {
  method: string;
  authority: string;
  path: string;
  fields: Fields;
  /** What the caller names as belonging together, any text: see affinity.ts. Empty: nothing. */
  affinity?: string | null | undefined;
  /** undefined: no content. */
  body: Body | undefined;
  signal: AbortSignal | undefined;
  /** Receives the record and its verified receipt at the end of the response, which fails without them. */
  receipt?: ((record: Record, receipt: Receipt) => void) | undefined;
}

/** A unit's response: status and fields, and content that is read piece by piece. */
export interface CallResponse {
  status: number;
  fields: Fields;
  unit: string;
  /** Returns the next piece; undefined at the end, once all of it is in order. */
  read(): Promise<Uint8Array | undefined>;
  cancel(reason?: unknown): Promise<void>;
}

/**
 * A request was cut off after a part of it may have been sent, and may not be repeated: it was executed
 * once or not at all.
 */
export class OutcomeUnknown extends Refusal {}

/** Units responded, authenticated, that they have not executed the request and will not. It is safe to send it again. */
export class NotExecuted extends Refusal {}

/** No unit responds. Whether a request was executed is known by its method: see OutcomeUnknown. */
export class Unreachable extends Refusal {}

const openTime = 30_000;
const openPause = 100;
const openTries = 6;
const openWrongUnits = 4;
const probeTime = 100;
const probeWait = 10_000;
const maxProbes = 8;
const renewPause = 5_000;

const Path = { session: "/.well-known/cohort/session", request: "/.well-known/cohort/request" } as const;
const typeSession = "application/cohort-session";
const typeRequest = "application/cohort-request";
const typeResponse = "application/cohort-response";

/** A session in use. Times in milliseconds of the client's clock. */
interface ActiveSession {
  session: Session;
  /** When to open the next one. */
  renew: number;
  /** From then on no request uses it. */
  last: number;
}

/** The result of closing a session. */
export interface Closed {
  /** Units that confirmed, authenticated, that they erased the session: 32 digits each. */
  confirmed: string[];
  /** Until then other units may have it. */
  others: Date | undefined;
}

/** The refusal of a unit that trust cuts off. */
class CutUnit extends Error {
  constructor(
    readonly unit: string,
    cause: unknown,
  ) {
    super(`unit ${unit}: ${String(cause)}`, { cause });
  }
}

/** Fields of an open request that is sent again. */
interface Again {
  cookie?: string | undefined;
  unit?: string | undefined;
}

/** Reports whether a method is safe (RFC 9110, section 9.2.1). */
export function isSafe(method: string): boolean {
  return ["GET", "HEAD", "OPTIONS", "TRACE"].includes(method);
}

/** Reports whether a request has an Idempotency-Key that is not empty. */
export function isMarked(fields: Fields): boolean {
  return fields.some(([name, value]) => name.toLowerCase() === "idempotency-key" && value !== "");
}

function isCut(e: unknown): boolean {
  const reason = reasonOf(e);
  return reason === "cut-off" || reason === "withdrawn";
}

/** A transport. The caller closes it. */
export class Transport {
  private readonly times = new Times();
  private readonly lifetime = new AbortController();
  private readonly probes = new Probes();
  private active: ActiveSession | undefined;
  private opening: Promise<{ error?: unknown }> | undefined;
  private units: string[] = [];
  /** The newest hint named a unit that is cut off: a request that is not bound may reach it. */
  private wary = false;
  private readonly refused: string[] = [];
  private readonly affinitySecret = crypto.getRandomValues(new Uint8Array(32));
  private closed = false;
  /** Number of sessions opened so far. */
  opens = 0;
  /** The session that was opened last. */
  newest: Session | undefined;

  constructor(private readonly options: TransportOptions) {
    checkPin(options.pin);
    const after = options.notAfter ?? 30_000;
    if (!(after >= 1 && after <= 120_000)) throw refuse("request", "channel: not after, in milliseconds", after, "1 to 120000");
  }

  /** Returns the session in use, and opens one where there is none. */
  async session(signal?: AbortSignal): Promise<Session> {
    return (await this.acquire(signal)).session;
  }

  private get trust(): UnitTrust {
    return this.options.trust.current();
  }

  private now(): number {
    return this.options.clock.now();
  }

  private async acquire(signal?: AbortSignal): Promise<ActiveSession> {
    for (;;) {
      if (this.closed) throw new ClosedError("the channel is closed");
      signal?.throwIfAborted();
      const now = this.now();
      if (this.active && (now >= this.active.last || this.cutOff(this.active.session))) this.active = undefined;
      if (!this.opening && (!this.active || now >= this.active.renew)) {
        this.opening = this.openSession().finally(() => (this.opening = undefined));
      }
      if (this.active) return this.active;
      const { error } = await abortable(this.opening!, signal);
      if (error !== undefined) throw error;
    }
  }

  /** Returns the refusal of a session that a cut ended. */
  private cutOff(session: Session): Refusal | undefined {
    try {
      session.checkCutOff(this.trust.policy, this.now());
      return undefined;
    } catch (e) {
      if (!(e instanceof Refusal)) throw e;
      return e.reason === "cut-off" ? e : refuse("cut-off", "session: its opener", e.reason, "a unit that is not cut off", e);
    }
  }

  private drop(active: ActiveSession): void {
    if (this.active === active) this.active = undefined;
  }

  /** Opens one session for all who wait for it. It never rejects. */
  private async openSession(): Promise<{ error?: unknown }> {
    const limit = new AbortController();
    const timer = setTimeout(() => limit.abort(refuse("unavailable", "opening a session: time", `${openTime} ms`, "a response")), openTime);
    const end = () => limit.abort(this.lifetime.signal.reason);
    this.lifetime.signal.addEventListener("abort", end);
    try {
      const session = await this.negotiate(limit.signal);
      if (this.closed) throw new ClosedError("the channel is closed");
      const now = this.now();
      const { facts } = session;
      const lifetime = facts.expires - facts.openedAt;
      this.active = {
        session,
        // Of a session that is alone soon: units have reports since the cut by then.
        renew: facts.alone ? now + renewPause : now + lifetime * 0.75,
        last: facts.expires - Math.min(lifetime / 10, 5_000),
      };
      this.newest = session;
      this.opens++;
      return {};
    } catch (error) {
      if (this.active) this.active.renew = this.now() + renewPause;
      return { error };
    } finally {
      clearTimeout(timer);
      this.lifetime.signal.removeEventListener("abort", end);
    }
  }

  /**
   * Opens a session, and tries again after faults that may pass. After a cut it asks for a session that
   * all units can share; where no unit has renewed since, it accepts one that only its opener has.
   */
  private async negotiate(signal: AbortSignal): Promise<Session> {
    const { pin, freshEvidence, receipts, clock } = this.options;
    let handshake: Handshake | undefined;
    let again: Again = {};
    let shared = true;
    for (let attempt = 1; ; attempt++) {
      if (again.cookie === undefined || !handshake) {
        // A unit accepts a KEM key once, and a cookie is for one key.
        const least = shared ? lastCutOf(pin, this.trust.policy) : zeroDigest;
        handshake = await startHandshake({ pin, freshEvidence, receipts, least });
      }
      const result = await this.requestOpen(handshake, again, signal);
      if (result.session) return result.session;
      const { error } = result;
      const unreached = error instanceof Unreachable;
      const reason = reasonOf(error);
      // A unit that left its group, or whose release did, sends heartbeats until its certificate ends.
      const left = !unreached && (reason === "role" || reason === "identity") && attempt < openWrongUnits;
      const repeat = unreached || error instanceof BeforeCut || error instanceof CutUnit || reason === "expired" || left;
      if (!repeat || attempt === openTries || signal.aborted) throw signal.aborted ? signal.reason : error instanceof CutUnit ? error.cause : error;
      again = result.again ?? {};
      if (again.cookie !== undefined || left) continue;
      if (unreached && shared && result.behind && !this.active) {
        shared = false;
        continue;
      }
      if (error instanceof CutUnit) {
        this.refuseUnit(error.unit);
        again.unit = random(this.units);
        if (again.unit) continue;
      }
      await clock.sleep(attempt * attempt * openPause, signal);
    }
  }

  /** Sends an open request once and verifies the response. */
  private async requestOpen(handshake: Handshake, with_: Again, signal: AbortSignal): Promise<{ session?: Session; error?: unknown; again?: Again; behind?: boolean }> {
    const headers: { [name: string]: string } = { "content-type": typeSession };
    if (with_.cookie) headers["cohort-cookie"] = with_.cookie;
    if (with_.unit) headers["cohort-unit"] = with_.unit;
    const head = this.options.trust.newestHead();
    if (head) headers["cohort-head"] = base64url(head);
    let bytes: Uint8Array;
    try {
      const response = await this.options.gateways.fetch(Path.session, { method: "POST", headers, body: handshake.request as BodyInit, signal });
      this.noteUnits(hintOf(response));
      this.receiveHead(response);
      if (response.status !== 200) {
        const next: Again = { cookie: response.headers.get("cohort-cookie") ?? undefined, unit: with_.unit };
        const introduced = handshake.options.freshEvidence && (await introduces(response));
        const behind = response.status === 412;
        const cause = introduced
          ? refuse("platform", "unit: platform", "one whose key no vendor certifies (TPM)", "a platform that this client appraises")
          : refuse(behind ? "behind" : "unavailable", "open request: status", response.status, 200);
        const error = new Unreachable(introduced ? "platform" : "unavailable", cause.rule, cause.got, cause.want, { cause });
        return { error, again: introduced ? {} : next, behind };
      }
      bytes = await new ByteReader(response.body).rest(maxOpenResponse);
    } catch (cause) {
      if (reasonOf(cause) === "too-large") return { error: cause };
      return { error: new Unreachable("unavailable", "open request", String(cause), "a response", { cause }) };
    }
    const now = this.now();
    try {
      let session: Session;
      try {
        session = await finishHandshake(handshake, bytes, this.trust, now);
      } catch (e) {
        if (isCut(e) || e instanceof BeforeCut) throw e;
        // Policy may have moved on.
        session = await finishHandshake(handshake, bytes, await this.options.trust.renew(signal), now);
      }
      const cut = this.cutOff(session);
      if (cut) throw cut;
      this.times.opened(session.facts.unit.unit, session.facts.openedAt, now);
      return { session };
    } catch (error) {
      return { error: isCut(error) ? new CutUnit(hex(parseOpenResponse(bytes).unit), error) : error };
    }
  }

  private receiveHead(response: globalThis.Response): void {
    const field = response.headers.get("cohort-head");
    if (field) this.options.trust.receivedHead(field);
  }

  /** Notes the units of a hint, without those that are cut off. */
  private noteUnits(hint: Hint): void {
    if (!hint.units) return;
    const cut = this.cutUnits(this.trust.policy);
    this.units = hint.units.filter((id) => !cut.has(id));
    this.wary = this.units.length < hint.units.length;
  }

  /** Units to which nothing is sent: those that policy lists, and those whose certificates were refused as cut off. */
  private cutUnits(policy: Policy): Set<string> {
    const cut = new Set(this.refused);
    for (const task of policy.tasks.values()) for (const id of task.cutUnits) cut.add(id);
    return cut;
  }

  private refuseUnit(unit: string): void {
    if (this.refused.length >= 1024) this.refused.shift();
    this.refused.push(unit);
    this.units = this.units.filter((id) => id !== unit);
  }

  /** Returns the unit to bind an attempt to: an untried one of the hint, the first for the affinity key or a random one, then the opener, then the one that was tried the longest ago. */
  private async chooseUnit(active: ActiveSession, { tried, affinity }: Call): Promise<string> {
    const opener = active.session.facts.unit.unit;
    const units = affinity ? await (await import("../affinity.js")).order(affinity, this.units) : shuffled(this.units);
    let unit = opener;
    let when = tried.length;
    for (const id of [...units, opener]) {
      const last = tried.lastIndexOf(id);
      if (last < when) [unit, when] = [id, last];
    }
    return unit;
  }

  private notAfter(session: Session, unit: string | undefined): number {
    return Math.min(this.times.notAfter(unit, this.now(), this.options.notAfter ?? 30_000), session.facts.expires);
  }

  /**
   * Sends a request, and returns the response of a unit to exactly this request, unchanged. A request
   * whose method is not safe is bound to one unit, which executes it at most once. One that is safe or
   * has an Idempotency-Key is sent again where an attempt ends without a response; any other only
   * where it certainly was not executed: else OutcomeUnknown.
   */
  async call(request: CallRequest): Promise<CallResponse> {
    const { affinity } = request;
    const call = new Call(request, affinity ? await (await import("../affinity.js")).blind(this.affinitySecret, affinity) : "");
    try {
      for (;;) {
        const outcome = await this.attempt(call);
        if ("response" in outcome) return outcome.response;
        await this.prepareNext(call, outcome.failure);
      }
    } finally {
      call.turn?.end();
    }
  }

  /** Sends a request once; and again with the ticket where the unit asks for it. */
  private async attempt(call: Call): Promise<{ response: CallResponse } | { failure: Failure }> {
    const { request } = call;
    const attempt: Attempt = { safe: isSafe(request.method), marked: isMarked(request.fields), left: false, notExecuted: false, whole: call.whole };
    const failure: Failure = { error: undefined, hint: undefined, attempt, active: undefined };
    const fail = (error: unknown) => {
      failure.error = error;
      return { failure };
    };
    try {
      failure.active = await this.acquire(request.signal);
    } catch (e) {
      return fail(e);
    }
    const { session } = failure.active;
    let target: string | undefined;
    let outgoing: Outgoing;
    let sealed: ClientRequest;
    try {
      target = await this.target(call, failure.active);
      if (target) call.tried.push(target);
      sealed = session.newRequest({
        target,
        notAfter: this.notAfter(session, target),
        flags: request.receipt ? Flag.receipt : 0,
        valid: () => {
          const cut = this.cutOff(session);
          if (cut) throw cut;
        },
      });
      outgoing = await call.seal(sealed, this.options.gateways.streams);
    } catch (e) {
      attempt.whole = false; // another attempt would fail too
      return fail(e);
    }
    try {
      // A stream cannot be sent again; a unit that wanted the ticket wants it again.
      const withTicket = outgoing.stream !== undefined || call.budget.isSpent("ticket-wanted");
      let outer = await this.send(session, outgoing, withTicket, failure, call, target);
      if (!outer && failure.hint?.reason === "ticket-wanted" && !session.facts.alone && !outgoing.stream && call.budget.allow("ticket-wanted")) {
        outer = await this.send(session, outgoing, true, failure, call, target);
      }
      if (outer) return { response: await this.open(call, sealed, outer, failure) };
    } catch (e) {
      failure.error = outgoing.fault ?? e;
      if (outgoing.fault !== undefined) attempt.whole = false;
    }
    attempt.left = outgoing.stream ? outgoing.begun : outgoing.left;
    attempt.whole = attempt.whole && call.whole;
    return { failure };
  }

  /** Returns the unit that the next attempt is bound to; undefined: none. */
  private async target(call: Call, active: ActiveSession): Promise<string | undefined> {
    const { unit, alone } = active.session.facts;
    if (alone) return unit.unit;
    // The opener certainly has the new session.
    if (call.budget.isSpent("rekey") && !call.tried.includes(unit.unit)) return unit.unit;
    return isSafe(call.request.method) && !this.wary ? undefined : this.chooseUnit(active, call);
  }

  /** Sends one outer request. Returns its response if that contains an inner one, else the hint is in `failure`. */
  private async send(
    session: Session,
    outgoing: Outgoing,
    withTicket: boolean,
    failure: Failure,
    { request: { signal }, affinity }: Call,
    target: string | undefined,
  ): Promise<globalThis.Response | undefined> {
    const headers: { [name: string]: string } = { "content-type": typeRequest };
    if (withTicket && session.facts.ticket.length > 0) headers["cohort-ticket"] = base64url(session.facts.ticket);
    const head = this.options.trust.newestHead();
    if (head && session.sentHead !== head) {
      session.sentHead = head;
      headers["cohort-head"] = base64url(head);
    }
    if (affinity) headers["cohort-affinity"] = affinity;
    failure.hint = { reason: "unavailable" };
    const init: RequestInit & { duplex?: "half" } = { method: "POST", headers, body: (outgoing.stream ?? outgoing.bytes) as BodyInit, signal: signal ?? null };
    if (outgoing.stream) init.duplex = "half";
    let response: globalThis.Response;
    try {
      response = await this.options.gateways.fetch(Path.request, init);
    } catch (e) {
      if (!isUnsent(e)) outgoing.left = true;
      throw e;
    }
    outgoing.left = true;
    const hint = (failure.hint = hintOf(response));
    this.noteUnits(hint);
    this.receiveHead(response);
    if (hint.time !== undefined && target) this.times.note(target, hint.time, this.now());
    if (response.status === 200 && response.headers.get("content-type") === typeResponse) return response;
    void response.body?.cancel().catch(() => {});
    failure.error = refuse(hint.reason, "outer response: status", response.status, 200);
    if (hint.time !== undefined) {
      try {
        checkSkew(hint.time, this.now());
      } catch (e) {
        failure.error = e;
      }
    }
    return undefined;
  }

  /** Opens the inner response in an outer one. */
  private async open(call: Call, sealed: ClientRequest, outer: globalThis.Response, failure: Failure): Promise<CallResponse> {
    const source = new ByteReader(outer.body);
    try {
      const inner = await sealed.open(source, call.request.method);
      this.times.note(inner.unit, inner.time, this.now());
      if (inner.kind !== "response") {
        // A request that is not safe is bound to a unit, and this is that unit's response.
        failure.attempt.notExecuted = inner.kind === "not-executed";
        throw refuse("not-executed", "response: reason", inner.kind === "closed" ? "closed" : inner.reason, "a response");
      }
      const at = this.now();
      const { head, content, unit, plaintext } = inner;
      const read = async () => {
        const piece = await content.read();
        if (!piece && sealed.recorded && call.request.receipt) {
          const { request, response } = sealed.recorded;
          const record = { request: concat(...request), response: concat(...response), receipt: plaintext.receipt?.slice() };
          call.request.receipt(...(await this.verifyReceipt(record, sealed, unit, at)));
        }
        return piece;
      };
      return { status: head.status, fields: head.fields, unit, read, cancel: (reason) => source.cancel(reason) };
    } catch (e) {
      void source.cancel();
      throw e;
    }
  }

  private async verifyReceipt(record: Omit<Record, "receipt"> & { receipt: Uint8Array | undefined }, sealed: ClientRequest, unit: string, at: number): Promise<[Record, Receipt]> {
    if (!record.receipt) throw refuse("evidence-missing", "response: receipt", "no receipt after the content", "that of the unit");
    const whole = record as Record;
    const { pin, trust } = this.options;
    const { verifyReceipt } = await import("./receipt.js");
    let receipt: Receipt;
    try {
      receipt = await verifyReceipt(whole, trust.current(), pin, at);
    } catch {
      // The unit may be of a release that the known policy does not name yet.
      receipt = await verifyReceipt(whole, await trust.renew(this.lifetime.signal), pin, at);
    }
    if (receipt.later) throw receipt.later.cause;
    const session = hex(sealed.session.facts.id);
    if (receipt.session !== session || receipt.number !== sealed.number || receipt.unit.unit !== unit) {
      throw refuse("identity", "receipt: session, number and unit", [receipt.session, receipt.number, receipt.unit.unit], [session, sealed.number, unit]);
    }
    return [whole, receipt];
  }

  /** Returns when the call may make another attempt, or throws its error. */
  private async prepareNext(call: Call, f: Failure): Promise<void> {
    const { signal } = call.request;
    if (signal?.aborted) throw signal.reason;
    const { error } = f;
    let reason: Reason = f.hint?.reason ?? "unavailable";
    if (f.attempt.notExecuted) reason = "not-executed";
    else if (isCut(error)) reason = "cut-off";
    else if (f.active?.session.facts.alone && (reason === "misdirected" || reason === "ticket-wanted")) reason = "rekey";
    // Also where this call ends: the next one would meet the same.
    if (f.active && ["rekey", "ticket-wanted", "cut-off"].includes(reason)) this.drop(f.active);
    switch (decide(f.attempt)) {
      case "outcome-unknown":
        throw new OutcomeUnknown("outcome-unknown", "call", "cut off after it was sent: " + String(error), "a response", { cause: error });
      case "give-up":
        throw error;
    }
    if (!f.active || error instanceof ClosedError) throw error;
    const allowed = call.budget.allow(reason);
    switch (reason) {
      case "rekey":
      case "ticket-wanted":
        call.tried.length = 0; // no unit was tried with the next session
        if (!allowed) throw refuse("rekey", "call", "a session that no unit opens", "a session that the cluster has", error);
        return;
      case "cut-off":
        if (!allowed) throw error;
        return;
      case "misdirected":
        if (!allowed) throw refuse("misdirected", "call", "sent to a unit that it is not bound to", "the unit it is bound to", error);
        return;
      case "not-executed":
        if (!allowed) throw new NotExecuted("not-executed", "call", String(error), "a response", { cause: error });
        return;
      case "expired":
        if (!allowed) throw error;
        return;
      default:
        if (!allowed || !(await this.probes.take(call, this.options.clock, signal))) {
          signal?.throwIfAborted();
          throw new Unreachable("unavailable", "call", "no unit responds: " + String(error), "a response", { cause: error });
        }
    }
  }

  /** Closes the session at all known units and gives up its secret. Responses that have begun continue. */
  async close(signal?: AbortSignal): Promise<Closed> {
    const { active } = this;
    this.closed = true;
    this.active = undefined;
    this.lifetime.abort(new ClosedError("the channel is closed"));
    if (!active) return { confirmed: [], others: undefined };
    const { session } = active;
    const units = [...new Set([...this.units, session.facts.unit.unit])];
    const confirmed = await Promise.all(units.map((unit) => this.closeAt(session, unit, signal).catch(() => false)));
    session.close();
    return { confirmed: units.filter((_, i) => confirmed[i]), others: new Date(session.facts.expires) };
  }

  /** Asks one unit to close the session, and reports whether it confirmed. */
  private async closeAt(session: Session, unit: string, signal: AbortSignal | undefined): Promise<boolean> {
    const request = session.newRequest({ target: unit, notAfter: this.notAfter(session, unit), flags: Flag.close });
    const body = (await request.whole()) as BodyInit;
    const init: RequestInit = { method: "POST", headers: { "content-type": typeRequest }, body, signal: signal ?? null };
    const response = await this.options.gateways.fetch(Path.request, init);
    const source = new ByteReader(response.body);
    try {
      return (await request.open(source, "POST")).kind === "closed";
    } finally {
      void source.cancel();
    }
  }
}

/** An attempt that ended without a response. */
interface Failure {
  error: unknown;
  hint: Hint | undefined;
  attempt: Attempt;
  /** undefined: there was no session. */
  active: ActiveSession | undefined;
}

/** A sealed request of one attempt. */
interface Outgoing {
  bytes?: Uint8Array;
  stream?: ReadableStream<Uint8Array>;
  /** A part of the stream was read. */
  begun: boolean;
  /** The bytes may have been sent. */
  left: boolean;
  /** The fault of the caller's own content. */
  fault?: unknown;
}

/** One call with all its attempts. */
class Call {
  readonly budget = new Budget();
  readonly tried: string[] = [];
  turn: Turn | undefined;
  private taken = false;

  constructor(
    readonly request: CallRequest,
    /** The affinity key; empty: none. */
    readonly affinity: string,
  ) {}

  /** Whether the content can be sent, for the first time or again. */
  get whole(): boolean {
    return !this.taken || this.request.body === undefined || this.request.body.repeatable;
  }

  /** Seals the request: in one chunk where it is small, else chunk by chunk, as it is sent where the platform can. */
  async seal(sealed: ClientRequest, streams: boolean): Promise<Outgoing> {
    const { method, authority, path, fields, body } = this.request;
    const head: RequestHead = { method, scheme: "https", authority, path, length: body ? body.length : 0, fields: fields.filter(([name]) => name.toLowerCase() !== "content-length") };
    if (!body || (body.bytes && body.bytes.length <= maxSmall)) return { bytes: await sealed.whole(head, body?.bytes), begun: false, left: false };
    this.taken = true;
    const outgoing: Outgoing = { begun: false, left: false };
    const pieces = sealed.stream(head, body.open());
    if (!streams) {
      const all: Uint8Array[] = [];
      for await (const piece of pieces) all.push(piece);
      return { bytes: concat(...all), begun: false, left: false };
    }
    outgoing.stream = new ReadableStream<Uint8Array>(
      {
        async pull(controller) {
          outgoing.begun = true;
          try {
            const { done, value } = await pieces.next();
            if (done) controller.close();
            else controller.enqueue(value);
          } catch (e) {
            outgoing.fault = e;
            controller.error(e);
          }
        },
        async cancel() {
          await pieces.return();
        },
      },
      { highWaterMark: 0 },
    );
    return outgoing;
  }
}

/**
 * Turns of attempts after an attempt that found no unit. While the gateway or all units are away, 8
 * calls try at a time and the others wait: else units that return would receive all calls at once. A
 * turn ends with its call, or after 100 ms, when a unit probably serves the attempt.
 */
class Probes {
  private free = maxProbes;
  private readonly waiting: (() => void)[] = [];

  /** Pauses and takes a turn. Reports whether there was one in time. */
  async take(call: Call, clock: Clock, signal: AbortSignal | undefined): Promise<boolean> {
    const begin = clock.now();
    const pause = call.budget.pause;
    if (!call.turn?.active) {
      if (!(await this.wait(clock, signal))) return false;
      call.turn = new Turn(() => this.release());
    }
    call.turn.hold();
    await clock.sleep(Math.max(0, pause - (clock.now() - begin)), signal);
    call.turn.endAfter(probeTime);
    return !signal?.aborted;
  }

  private async wait(clock: Clock, signal: AbortSignal | undefined): Promise<boolean> {
    if (this.free > 0) {
      this.free--;
      return true;
    }
    let mine: (() => void) | undefined;
    const place = new Promise<boolean>((resolve) => this.waiting.push((mine = () => resolve(true))));
    const got = await Promise.race([place, clock.sleep(probeWait, signal).then(() => false)]);
    const at = this.waiting.indexOf(mine!);
    if (!got && at < 0) return true; // it was given in the same moment
    if (!got) this.waiting.splice(at, 1);
    return got;
  }

  private release(): void {
    const next = this.waiting.shift();
    if (next) next();
    else this.free++;
  }
}

/** One turn. */
class Turn {
  active = true;
  private timer: ReturnType<typeof setTimeout> | undefined;

  constructor(private readonly release: () => void) {}

  hold(): void {
    clearTimeout(this.timer);
  }

  endAfter(milliseconds: number): void {
    this.timer = setTimeout(() => this.end(), milliseconds);
  }

  end(): void {
    this.hold();
    if (this.active) this.release();
    this.active = false;
  }
}

/** Reports whether a problem for an open request has an introduction: the unit's key is certified by no vendor. */
async function introduces(response: globalThis.Response): Promise<boolean> {
  try {
    const problem: unknown = JSON.parse(new TextDecoder().decode(await new ByteReader(response.body).rest(16 << 10)));
    return typeof problem === "object" && problem !== null && Object.hasOwn(problem, "introduction");
  } catch {
    return false;
  }
}

/**
 * Reports whether a fault of fetch means that nothing was sent: the connection could not be made. Only
 * runtimes that state the cause (Node) let this be known.
 */
function isUnsent(e: unknown): boolean {
  const cause = e instanceof Error ? (e.cause as { code?: unknown } | undefined) : undefined;
  return ["ECONNREFUSED", "ENOTFOUND", "EAI_AGAIN", "UND_ERR_CONNECT_TIMEOUT"].includes(String(cause?.code));
}

/** Waits for a promise, or until the signal is aborted. */
async function abortable<T>(promise: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (!signal) return promise;
  let stop = () => {};
  const aborted = new Promise<never>((_, reject) => {
    stop = () => reject(signal.reason);
    signal.addEventListener("abort", stop, { once: true });
  });
  try {
    return await Promise.race([promise, aborted]);
  } finally {
    signal.removeEventListener("abort", stop);
  }
}

function random<T>(list: readonly T[]): T | undefined {
  return list[Math.floor(Math.random() * list.length)];
}

function shuffled<T>(list: readonly T[]): T[] {
  const all = [...list];
  for (let i = all.length - 1; i > 0; i--) {
    const j = Math.floor(Math.random() * (i + 1));
    [all[i], all[j]] = [all[j]!, all[i]!];
  }
  return all;
}
