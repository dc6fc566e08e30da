/**
 * The platform's fetch in front of a channel: it makes calls of what fetch takes, and the platform's
 * Response of what a unit responds. Fields are as the caller wrote them: nothing is added but the
 * type of the content. Redirects are returned, never followed. The content of a response is as the
 * unit sent it; a `content-encoding` is not undone.
 */

import type { Fields } from "./bhttp.js";
import { concat } from "./bytes.js";
import type { Body, CallRequest, CallResponse } from "./channel/transport.js";
import { maxSmall } from "./channel/session.js";
import { refuse } from "./refusal.js";

/** A function as the platform's fetch. */
export type Fetch = typeof globalThis.fetch;

/** Options of a request beside those of the platform. */
type Init = RequestInit & { duplex?: "half" };

/** A call, and what its response needs of its request. */
export interface Call {
  request: CallRequest;
  url: string;
  redirect: RequestRedirect;
}

/**
 * Makes a call of the arguments of fetch. A path alone is one at `base`. `check` refuses hosts that
 * are not served, before anything is read or sent.
 */
export async function makeCall(input: RequestInfo | URL, init: Init | undefined, base: string, check: (url: URL) => void): Promise<Call> {
  const target = typeof input === "string" && input.startsWith("/") ? base + input : input;
  const { body, ...rest } = init ?? {};
  const stream = asStream(body);
  // A stream is no part of the platform's Request: not every platform accepts one.
  const given = stream || body === undefined || body === null ? rest : { ...rest, body };
  const request = new Request(target, given);
  const url = new URL(request.url);
  check(url);
  const headers = new Headers(rest.headers ?? (target instanceof Request ? target.headers : undefined));
  const affinity = headers.get("cohort-affinity");
  headers.delete("cohort-affinity"); // only gateways receive a key
  const type = request.headers.get("content-type");
  if (type !== null && !headers.has("content-type")) headers.set("content-type", type);
  const signal = rest.signal ?? (target instanceof Request ? target.signal : undefined) ?? undefined;
  signal?.throwIfAborted();
  return {
    request: {
      method: request.method,
      authority: url.host,
      path: url.pathname + url.search,
      fields: [...headers] as Fields,
      affinity,
      body: stream ? streamed(stream) : await contentOf(request, body, target),
      signal,
    },
    url: request.url,
    redirect: request.redirect,
  };
}

function asStream(body: unknown): ReadableStream<Uint8Array> | AsyncIterable<Uint8Array> | undefined {
  if (body instanceof ReadableStream) return body;
  const iterable = typeof body === "object" && body !== null && Symbol.asyncIterator in body && !(body instanceof Blob);
  return iterable ? (body as AsyncIterable<Uint8Array>) : undefined;
}

/** Content that is there once, of a size that is not known. */
function streamed(stream: ReadableStream<Uint8Array> | AsyncIterable<Uint8Array>, before: Uint8Array[] = []): Body {
  return { length: undefined, repeatable: false, open: () => pieces(stream, before) };
}

async function* pieces(stream: ReadableStream<Uint8Array> | AsyncIterable<Uint8Array>, before: Uint8Array[]): AsyncGenerator<Uint8Array> {
  yield* before;
  const source = stream instanceof ReadableStream ? read(stream.getReader()) : stream;
  for await (const piece of source) {
    if (!(piece instanceof Uint8Array)) throw new TypeError("the content of a request is made of Uint8Array");
    if (piece.length > 0) yield piece;
  }
}

async function* read(reader: ReadableStreamDefaultReader<Uint8Array>): AsyncGenerator<Uint8Array> {
  let ended = false;
  try {
    for (let next = await reader.read(); !next.done; next = await reader.read()) yield next.value;
    ended = true;
  } finally {
    if (!ended) void reader.cancel().catch(() => {});
  }
}

function whole(bytes: Uint8Array): Body {
  return { bytes, length: bytes.length, repeatable: true, open: async function* () { if (bytes.length > 0) yield bytes; } };
}

/** Returns the content of a request that is no stream of the caller's. */
async function contentOf(request: Request, body: BodyInit | null | undefined, input: unknown): Promise<Body | undefined> {
  if (body instanceof Blob && body.size > maxSmall) {
    return { length: body.size, repeatable: true, open: () => pieces(body.stream(), []) };
  }
  const inherited = (body === undefined || body === null) && input instanceof Request;
  if (!inherited) return body === undefined || body === null ? undefined : whole(new Uint8Array(await request.arrayBuffer()));
  if (request.method === "GET" || request.method === "HEAD" || request.body === null) return undefined;
  if (request.body === undefined) return whole(new Uint8Array(await request.arrayBuffer())); // Firefox
  const reader = request.body.getReader();
  const begun: Uint8Array[] = [];
  let size = 0;
  for (let next = await reader.read(); ; next = await reader.read()) {
    if (next.done) return size === 0 ? undefined : whole(concat(...begun));
    begun.push(next.value);
    size += next.value.length;
    if (size > maxSmall) return streamed(read(reader), begun);
  }
}

/** Statuses whose responses have no content. */
const withoutContent = [204, 205, 304];

/** The units that made responses. */
const units = new WeakMap<Response, string>();

/** Returns the id of the unit that made a response of a session, 32 digits. */
export function servedBy(response: Response): string | undefined {
  return units.get(response);
}

/** Makes the platform's Response. Its body fails, and never ends early, where the rest does not arrive whole. */
export async function makeResponse(call: Call, response: CallResponse): Promise<Response> {
  const { signal, method } = call.request;
  const { status } = response;
  if (call.redirect === "error" && status >= 300 && status < 400 && status !== 304) {
    void response.cancel();
    throw new TypeError(`status ${status}: a redirect, which the request refuses`);
  }
  const headers = new Headers();
  for (const [name, value] of response.fields) headers.append(name, value);
  const next = async () => {
    try {
      return await response.read();
    } catch (e) {
      void response.cancel(e);
      throw signal?.aborted ? signal.reason : e;
    }
  };
  let body: ReadableStream<Uint8Array> | null = null;
  if (withoutContent.includes(status) || method === "HEAD") {
    while (await next()) continue;
  } else {
    body = new ReadableStream<Uint8Array>(
      {
        async pull(controller) {
          const piece = await next();
          if (piece) controller.enqueue(piece);
          else controller.close();
        },
        cancel: (reason) => response.cancel(reason),
      },
      { highWaterMark: 0 },
    );
  }
  const made = new Response(body, { status, headers });
  Object.defineProperty(made, "url", { value: call.url, configurable: true });
  units.set(made, response.unit);
  return made;
}

/** Refuses a request that no unit serves: another scheme than https ("request"), or another host ("name"). */
export function checkTarget(url: URL, hosts: readonly string[], serves: boolean): void {
  if (url.protocol !== "https:") throw refuse("request", "request: scheme", url.protocol.slice(0, -1), "https");
  if (!serves && hosts.length > 0) throw refuse("name", "request in the channel: host", url.host, hosts.join(", "));
}
