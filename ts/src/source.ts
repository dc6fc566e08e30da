/**
 * Sources of trust: servers from which a client fetches the policy history and trust responses
 * (docs/spec/trust.md, sections 1 and 7). Every response is untrusted. Each request has a deadline,
 * each body a bound; no redirect is followed and no credential is sent.
 */

import { hex, text } from "./bytes.js";
import type { Digest } from "./policy/policy.js";
import { type Reason, Refusal, reasons, refuse } from "./refusal.js";
import type { Certificate } from "./x509.js";

/** The largest body of a response, in bytes. */
export const maxResponse = 16 << 20;

/** The largest problem (RFC 9457), in bytes. */
const maxProblem = 16 << 10;

/** What a trust response is requested for: exactly one of task, group and id. */
export interface TrustQuery {
  task?: string;
  group?: string;
  id?: Digest;
  /** 32 bytes. Without it the response may come from a cache. */
  nonce?: Uint8Array;
}

/** A server of policy history and trust. Its responses are parsed JSON, unchecked. */
export interface Source {
  /** Names the server in errors. */
  readonly name: string;
  /** Fetches the steps from a number of steps on. */
  history(from: number, signal: AbortSignal): Promise<unknown>;
  /** Waits at most `wait` milliseconds for the step after a head, and returns the steps after it. */
  poll(head: Digest, wait: number, signal: AbortSignal): Promise<unknown>;
  /** Fetches a trust response. */
  trust(query: TrustQuery, signal: AbortSignal): Promise<unknown>;
  /**
   * The chain that the server presented in TLS, where the runtime shows it. With it the checks are
   * those of a direct connection to an authority, without it those through a relay.
   */
  chain?(): readonly Certificate[];
}

/** A function as the platform's fetch. */
export type Fetch = (input: string, init?: RequestInit) => Promise<Response>;

/** Returns an authority at an https URL. The runtime must accept its TLS certificate. */
export function authoritySource(url: string, fetch: Fetch): Source {
  return httpSource(parseUrl(url, ["https:"]), "/v1/policy/history", "/v1/trust", fetch);
}

/** Returns a gateway at an https or http URL: nothing that it sends is believed. */
export function gatewaySource(url: string, fetch: Fetch): Source {
  return httpSource(parseUrl(url, ["https:", "http:"]), "/.well-known/cohort/history", "/.well-known/cohort/trust", fetch);
}

function parseUrl(value: string, schemes: readonly string[]): string {
  const url = URL.canParse(value) ? new URL(value) : undefined;
  if (!url || !schemes.includes(url.protocol) || url.username || url.password || url.search || url.hash) {
    throw refuse("request", "trust: address", value, `a URL with ${schemes.join(" or ")}//`);
  }
  return url.origin + url.pathname.replace(/\/$/, "");
}

function httpSource(base: string, historyPath: string, trustPath: string, fetch: Fetch): Source {
  return {
    name: base,
    history: (from, signal) => fetchJson(fetch, `${base}${historyPath}?from=${from}`, { signal }),
    poll: (head, wait, signal) => fetchJson(fetch, `${base}${historyPath}?from=${head.replace("sha256:", "")}&wait=${wait}ms`, { signal }),
    trust({ nonce, ...pin }, signal) {
      const query = new URLSearchParams(pin);
      if (nonce) query.set("nonce", hex(nonce));
      // A copy for many clients may come from the platform's cache, for as long as the authority states.
      return fetchJson(fetch, `${base}${trustPath}?${query}`, { signal, cache: nonce ? "no-store" : "default" });
    },
  };
}

/** Fetches JSON of at most 16 MiB. A problem of the server is thrown as a refusal with its reason; a server that cannot be reached is `unavailable`. */
export async function fetchJson(fetch: Fetch, url: string, init: RequestInit & { signal: AbortSignal }): Promise<unknown> {
  const response = await reach(init.signal, () =>
    fetch(url, { cache: "no-store", ...init, redirect: "error", credentials: "omit", referrerPolicy: "no-referrer", headers: { accept: "application/json" } }),
  );
  const problem = response.headers.get("content-type")?.split(";")[0]!.trim().toLowerCase() === "application/problem+json";
  if (response.status !== 200 && !problem) {
    await response.body?.cancel().catch(() => undefined);
    throw refuse("unavailable", "response: status", response.status, "a response of a Cohort server");
  }
  const body = await reach(init.signal, () => readBody(response, problem ? maxProblem : maxResponse));
  let value: unknown;
  try {
    value = JSON.parse(text(body));
  } catch (e) {
    throw refuse("malformed", "response: JSON", e instanceof Error ? e.name : e, "a response of a Cohort server", e);
  }
  if (problem) throw problemOf(value);
  return value;
}

/** Turns each fault of the network into a refusal as `unavailable`. What the caller aborted is thrown as its reason. */
async function reach<T>(signal: AbortSignal, request: () => Promise<T>): Promise<T> {
  try {
    return await request();
  } catch (e) {
    if (e instanceof Refusal) throw e;
    const late = signal.aborted && (signal.reason as { name?: unknown } | undefined)?.name === "TimeoutError";
    if (signal.aborted && !late) throw signal.reason;
    throw refuse("unavailable", "request", late ? "no response in time" : e, "a response", e);
  }
}

/** Reads a body of at most `most` bytes. */
export async function readBody(response: Response, most: number): Promise<Uint8Array> {
  const parts: Uint8Array[] = [];
  let size = 0;
  const reader = response.body?.getReader();
  for (let part = await reader?.read(); part && !part.done; part = await reader!.read()) {
    size += part.value.length;
    if (size > most) {
      await reader!.cancel().catch(() => undefined);
      throw refuse("too-large", "response: size in bytes", `more than ${most}`, most);
    }
    parts.push(part.value);
  }
  const body = new Uint8Array(size);
  let at = 0;
  for (const part of parts) {
    body.set(part, at);
    at += part.length;
  }
  return body;
}

/** Returns the refusal of a problem: the server's own, unverified. Its texts are cut and filtered, since they are shown to people. */
function problemOf(value: unknown): Refusal {
  const shown = (name: string) => {
    const of = member(value, name);
    return typeof of === "string" ? of.slice(0, 1000).replace(/[^\x20-\x7e\u00a0-\ud7ff]/g, "") : "";
  };
  const reason = reasons.find((r): r is Reason => r === member(value, "reason")) ?? "internal";
  return refuse(reason, `the server's refusal: ${shown("rule")}`, shown("got"), shown("want"));
}

/** Returns an own member of a JSON object, or undefined. */
export function member(value: unknown, name: string): unknown {
  return typeof value === "object" && value !== null && Object.hasOwn(value, name) ? (value as Record<string, unknown>)[name] : undefined;
}
