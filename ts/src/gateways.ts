/** The gateways that forward the requests of a channel. None is trusted: the choice affects availability only. */

import type { Gateways } from "./channel/transport.js";
import { refuse } from "./refusal.js";

/**
 * What a request to a gateway never carries: cookies and credentials, a referrer, copies of a cache. A
 * redirect is a response like any other. (With "error", Node repeats a request after 421 without its
 * content, and reports a fault in place of the status.)
 */
const outer: RequestInit = { credentials: "omit", referrerPolicy: "no-referrer", redirect: "manual", cache: "no-store" };

/** Reports whether requests can be sent while they are made. Browsers send bodies that are whole. */
function streamsRequests(): boolean {
  return !("window" in globalThis) && !("WorkerGlobalScope" in globalThis);
}

/**
 * Reports whether a connection ended before a response, as one does that the gateway closed while it was
 * idle. Only runtimes that state the cause let this be known; browsers repeat such requests themselves.
 */
function isReset(e: unknown): boolean {
  const cause = e instanceof Error ? (e.cause as { code?: unknown } | undefined) : undefined;
  return ["UND_ERR_SOCKET", "ECONNRESET", "EPIPE"].includes(String(cause?.code));
}

/** Idle connections that were closed and that one request may meet. */
const maxResets = 3;

/** Parses the URLs of gateways. */
export function parseGateways(urls: readonly string[]): string[] {
  if (urls.length === 0) throw refuse("request", "channel: gateways", 0, "at least one URL");
  return urls.map((given) => {
    const url = URL.canParse(given) ? new URL(given) : undefined;
    if (!url || !/^https?:$/.test(url.protocol) || url.username || url.password || url.search || url.hash) {
      throw refuse("request", "channel: gateway", given, "an http or https URL");
    }
    return url.origin + url.pathname.replace(/\/+$/, "");
  });
}

/**
 * Returns gateways of which one is used as long as it responds, the first chosen at random to spread
 * clients. When it does not respond, or reaches no unit (502, 503), later requests go to the next one.
 */
export function makeGateways(urls: readonly string[], fetch: typeof globalThis.fetch): Gateways {
  const all = parseGateways(urls);
  const send = async (url: string, init: RequestInit) => {
    for (let resets = 0; ; resets++) {
      try {
        return await fetch(url, { ...outer, ...init });
      } catch (e) {
        // No unit executes the same sealed bytes twice: they may be sent again.
        if (!isReset(e) || init.body instanceof ReadableStream || init.signal?.aborted || resets === maxResets) throw e;
      }
    }
  };
  let current = Math.floor(Math.random() * all.length);
  return {
    streams: streamsRequests(),
    async fetch(path, init) {
      const used = current;
      const next = () => {
        if (current === used) current = (used + 1) % all.length;
      };
      try {
        const response = await send(all[used] + path, init);
        if (response.status === 502 || response.status === 503) next();
        return response;
      } catch (e) {
        if (!init.signal?.aborted) next();
        throw e;
      }
    },
  };
}
