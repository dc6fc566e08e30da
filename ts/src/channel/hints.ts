/**
 * What follows an attempt without a response (docs/spec/channel.md, section 6). Whether a call
 * continues depends only on what the client knows itself, or on authenticated data; hints of
 * untrusted parties decide only how.
 */

import type { Reason } from "../refusal.js";
import { checkSkew } from "./unit.js";

/** Unauthenticated claims in an outer response. */
export interface Hint {
  reason: Reason;
  /** Units that may serve, 32 digits each; undefined: no claim. */
  units?: string[];
  /** The unit's time with "expired", in milliseconds. */
  time?: number;
}

/** Most units in a hint. */
const maxUnits = 1024;

const reasons: { readonly [status: number]: Reason } = { 421: "misdirected", 410: "rekey", 428: "ticket-wanted", 409: "replayed", 412: "expired" };

/** Returns the hint in an outer response. Only its status counts, not its content. */
export function hintOf(response: { status: number; headers: Headers }): Hint {
  const hint: Hint = { reason: reasons[response.status] ?? "unavailable" };
  const list = response.headers.get("cohort-units");
  if (list) {
    const ids = list.slice(0, maxUnits * 40).split(",").map((id) => id.trim());
    hint.units = ids.filter((id) => /^[0-9a-f]{32}$/.test(id)).slice(0, maxUnits);
  }
  const time = response.headers.get("cohort-time");
  if (response.status === 412 && time && /^[0-9]{1,15}$/.test(time)) hint.time = Number(time);
  return hint;
}

/** What is known about an attempt that ended without a response: by the client itself, or authenticated by a unit. */
export interface Attempt {
  /** The method is safe (RFC 9110, section 9.2.1). */
  safe: boolean;
  /** The request has an Idempotency-Key that is not empty. */
  marked: boolean;
  /** A part of the request may have been sent. */
  left: boolean;
  /** The unit that it was bound to responded "not executed". */
  notExecuted: boolean;
  /** The content can be sent again. */
  whole: boolean;
}

/** Decides about a call after an attempt without a response. */
export function decide(a: Attempt): "outcome-unknown" | "give-up" | "repeat" {
  if (a.left && !a.notExecuted && !a.safe && !a.marked) return "outcome-unknown";
  return a.whole ? "repeat" : "give-up";
}

/** Most attempts of a call to find a unit that responds; the pauses between them double, to 5 seconds in all. */
const maxOthers = 8;
const firstPause = 20;

/** The further attempts that a call has left, by what was met. */
export class Budget {
  private readonly left = new Map<Reason, number>([
    ["misdirected", 3], ["rekey", 1], ["cut-off", 2], ["ticket-wanted", 1], ["not-executed", 2], ["expired", 2],
  ]);
  private others = maxOthers;

  /** Counts one more attempt, and reports whether it is allowed. */
  allow(reason: Reason): boolean {
    const left = this.left.get(reason);
    if (left === undefined) return --this.others >= 0;
    this.left.set(reason, left - 1);
    return left > 0;
  }

  /** Whether all attempts of a kind are used up. */
  isSpent(reason: Reason): boolean {
    return (this.left.get(reason) ?? this.others) <= 0;
  }

  /** The pause in milliseconds before an attempt of another kind that was just counted. */
  get pause(): number {
    return firstPause * 2 ** (maxOthers - 1 - this.others);
  }
}

const longest = 120_000;
const leastSpread = 30_000;

/** The known differences between the clocks of units and the client's. They decide only the end of attempts. All in milliseconds. */
export class Times {
  private ahead = new Map<string, number>();
  private opener = 0;
  private spread = 0;

  /** Notes the authenticated time of the unit that opened a session, and forgets all other times. */
  opened(unit: string, at: number, now: number): void {
    this.opener = at - now;
    this.spread = 0;
    this.ahead = new Map([[unit, this.opener]]);
  }

  /** Notes the time of a unit, from itself or from a hint. A time too far from the client's is ignored. */
  note(unit: string, at: number, now: number): void {
    try {
      checkSkew(at, now);
    } catch {
      return;
    }
    if (!this.ahead.has(unit) && this.ahead.size >= maxUnits) return;
    this.ahead.set(unit, at - now);
    this.spread = Math.max(this.spread, Math.abs(at - now - this.opener));
  }

  /** Returns the end of an attempt that is bound to a unit, or to none; `after` is what the caller allows. */
  notAfter(unit: string | undefined, now: number, after: number): number {
    const ahead = unit === undefined ? undefined : this.ahead.get(unit);
    if (ahead !== undefined) return now + ahead + after;
    return now + this.opener + Math.max(longest - Math.max(this.spread, leastSpread), 30_000);
  }
}
