/**
 * One-off requests over Oblivious HTTP (docs/spec/ohttp.md): each is encrypted by itself, and any unit of
 * the pinned identity can serve it. There is no session, and so no fresh evidence and no receipt. A
 * gateway can deliver a request to several units: each must be safe, or have an Idempotency-Key where
 * policy allows that.
 */

import { blind } from "./affinity.js";
import { Content, encodeRequest, parseResponse, type RequestHead, responseLength, varint } from "./bhttp.js";
import { concat, digestText, equal, fromU64, hex, parseDigest, sha256 } from "./bytes.js";
import { ByteReader, ChunkPlaintext, type ChunkSource, pad } from "./channel/chunk.js";
import { maxSmall } from "./channel/session.js";
import { type CallRequest, type CallResponse, type Clock, type Gateways, isMarked, isSafe, type TrustSource, Unreachable } from "./channel/transport.js";
import { checkSigner, encodePin, holdersOf, maxChain, type Pin, type RingHolders, ringCutSince, type Unit, type UnitTrust, verifyFields } from "./channel/unit.js";
import { unframe } from "./frame.js";
import { chunks, type Encapsulated, encapsulate, type Form, maxSent, maxWhole, MessageReader, parseKeys, type PublicKey, responseCrypt, sealChunks, sealFinal, sealWhole, whole } from "./ohttp.js";
import { cutOff, type Digest, type Policy } from "./policy/policy.js";
import { reasonOf, refuse } from "./refusal.js";

const maxSignedKeys = 32 << 10;
const keysTimeout = 10_000;
const maxKeyFetches = 6;
const keysPause = 100;
const maxGatewayResponse = 16 << 10;
const path = "/.well-known/cohort/oneoff";
const keyProblem = "https://iana.org/assignments/http-problem-types#ohttp-key";

/** A key configuration that a unit signed. */
export interface SignedKeys {
  /** application/ohttp-keys (RFC 9458, section 3). */
  plain: Uint8Array;
  /** The unit that signed it. */
  unit: Unit;
  /** In milliseconds. */
  expires: number;
  key: PublicKey;
  head: Digest;
  holders: RingHolders;
}

/** Verifies a signed key configuration for a pin, at a time in milliseconds. docs/spec/ohttp.md, section 2, has the order of the checks. */
export async function verifySignedKeys(bytes: Uint8Array, pin: Pin, trust: UnitTrust, at: number): Promise<SignedKeys> {
  if (bytes.length > maxSignedKeys) throw refuse("too-large", "one-off keys: size in bytes", bytes.length, maxSignedKeys);
  const f = unframe("cohort ohttp keys v1", bytes, 8);
  const [pinned, identity, ring, head, expiry, plain, chain, signature] = f as [Uint8Array, Uint8Array, Uint8Array, Uint8Array, Uint8Array, Uint8Array, Uint8Array, Uint8Array];
  for (const [field, size] of [[identity, 32], [ring, 16], [head, 32], [expiry, 8]] as const) {
    if (field.length !== size) throw refuse("malformed", "one-off keys: size of a field", field.length, size);
  }
  if (chain.length > maxChain) throw refuse("too-large", "one-off keys: size of the chain", chain.length, maxChain);
  if (!equal(pinned, encodePin(pin))) throw refuse("identity", "one-off keys: pin", hex(pinned), "that of the client");
  const unit = await checkSigner(trust, chain, pin, { head, identity, expiry }, at);
  const holders = holdersOf(pin, unit.facts);
  const headText = digestText(head);
  if (ringCutSince(trust.policy, holders, headText)) {
    throw refuse("behind", "one-off keys: policy head", headText, "a head since the last cut of a unit that may have the keys");
  }
  await verifyFields(unit.key, signature, "cohort ohttp keys v1", ...f.slice(0, 6), parseDigest(trust.policy.authority.root), await sha256(chain));
  return { plain: plain.slice(), unit, holders, head: headText, expires: Number(fromU64(expiry)) * 1000, key: await parseKeys(plain) };
}

/** Refuses, with `cut-off` or the reason of a group, keys that must not be used under a policy. */
function checkKeys(keys: SignedKeys, policy: Policy, at: number): void {
  cutOff(policy, keys.unit.facts, at);
  if (ringCutSince(policy, keys.holders, keys.head)) {
    throw refuse("cut-off", "one-off keys: cut of a unit that may have them", "after policy head " + keys.head, "keys since the cut");
  }
}

/** Configuration of one-off requests. */
export interface OneOffConfig {
  gateways: Gateways;
  pin: Pin;
  trust: TrustSource;
  clock: Clock;
  /** Sends each request in one piece, for gateways that support RFC 9458 alone: at most 256 KiB each way. */
  whole?: boolean | undefined;
}

/** Sends one-off requests. */
export class OneOffTransport {
  private readonly affinitySecret = crypto.getRandomValues(new Uint8Array(32));
  private keys: SignedKeys | undefined;
  private fetching: Promise<SignedKeys> | undefined;

  constructor(private readonly config: OneOffConfig) {
    if (config.pin.group) throw refuse("group", "one-off: trust", "of a group", "of a task");
  }

  /** Returns valid keys other than `old`, and fetches them if necessary. */
  async currentKeys(signal: AbortSignal | undefined, old?: SignedKeys): Promise<SignedKeys> {
    const { keys, config } = this;
    if (keys && keys !== old && config.clock.now() < keys.expires && !this.isCut(keys)) return keys;
    this.fetching ??= this.fetchKeys().finally(() => (this.fetching = undefined));
    const fetched = await this.fetching;
    signal?.throwIfAborted();
    return fetched;
  }

  private isCut(keys: SignedKeys): boolean {
    try {
      checkKeys(keys, this.config.trust.current().policy, this.config.clock.now());
      return false;
    } catch {
      return true;
    }
  }

  /** Fetches keys; while a cut unit may have all, six times within 6 seconds. */
  private async fetchKeys(): Promise<SignedKeys> {
    const { pin, clock, trust, gateways } = this.config;
    const query = pin.task ? "task=" + encodeURIComponent(pin.task) : "id=" + pin.id!.replace("sha256:", "");
    for (let attempt = 1; ; attempt++) {
      try {
        const bytes = await this.fetchSigned(gateways, query);
        try {
          this.keys = await verifySignedKeys(bytes, pin, trust.current(), clock.now());
        } catch {
          // The keys may be of a release that the known policy does not name yet.
          this.keys = await verifySignedKeys(bytes, pin, await trust.renew(AbortSignal.timeout(keysTimeout)), clock.now());
        }
        return this.keys;
      } catch (e) {
        const reason = reasonOf(e instanceof Unreachable ? e.cause : e);
        if ((reason !== "behind" && reason !== "cut-off") || attempt === maxKeyFetches) throw e;
        await clock.sleep(attempt * attempt * keysPause);
      }
    }
  }

  private async fetchSigned(gateways: Gateways, query: string): Promise<Uint8Array> {
    try {
      const response = await gateways.fetch(`${path}?${query}`, { method: "GET", signal: AbortSignal.timeout(keysTimeout) });
      if (response.status !== 200) {
        void response.body?.cancel().catch(() => {});
        throw refuse(response.status === 412 ? "behind" : "unavailable", "one-off keys: status", response.status, 200);
      }
      return await new ByteReader(response.body).rest(maxSignedKeys);
    } catch (cause) {
      throw new Unreachable("unavailable", "one-off keys", String(cause), "a response", { cause });
    }
  }

  /**
   * Sends a request and returns the response of a unit. It refuses, without sending it, a request that
   * is not safe and has no Idempotency-Key ("not-allowed"). Where no unit has the key any more, or a cut
   * unit may have it, it fetches other keys and repeats the request once, if the content can be read again.
   */
  async call(request: CallRequest): Promise<CallResponse> {
    if (!isSafe(request.method) && !isMarked(request.fields)) {
      throw refuse("not-allowed", "one-off: method", request.method, "a safe one, or an Idempotency-Key");
    }
    const keys = await this.currentKeys(request.signal);
    try {
      return await this.send(request, keys);
    } catch (e) {
      const reason = reasonOf(e);
      if ((reason !== "ohttp-key" && reason !== "cut-off") || (request.body && !request.body.repeatable)) throw e;
      return this.send(request, await this.currentKeys(request.signal, keys));
    }
  }

  private async send(request: CallRequest, keys: SignedKeys): Promise<CallResponse> {
    const { pin, trust, clock, gateways } = this.config;
    const form = this.config.whole ? whole : chunks;
    const sealed = await encapsulate(form, keys.key);
    const { body, signal, method, authority, path: target } = request;
    const fields = request.fields.filter(([name]) => name.toLowerCase() !== "content-length");
    const head: RequestHead = { method, scheme: "https", authority, path: target, fields, length: body ? body.length : 0 };
    const small = !body || (body.length !== undefined && body.length <= maxSmall);
    const stream = !form.chunked || small ? sealAll(form, sealed, head, body?.open()) : sealStream(sealed, head, body.open());
    const query = `id=${keys.unit.facts.identity.replace("sha256:", "")}` + (pin.task ? "&task=" + encodeURIComponent(pin.task) : "");
    const headers: { [name: string]: string } = { "content-type": form.requestType };
    if (request.affinity) headers["cohort-affinity"] = await blind(this.affinitySecret, request.affinity);
    const init: RequestInit & { duplex?: "half" } = { method: "POST", headers, signal: signal ?? null };
    if (gateways.streams && form.chunked && !small) {
      init.body = toStream(stream);
      init.duplex = "half";
      headers["incremental"] = "?1"; // so that no relay buffers the whole request
    } else {
      init.body = (await collect(stream)) as BodyInit;
    }
    let response: Response;
    try {
      response = await gateways.fetch(`${path}?${query}`, init);
    } catch (cause) {
      signal?.throwIfAborted();
      throw new Unreachable("unavailable", "one-off", String(cause), "a response", { cause });
    }
    const type = [whole, chunks].find((f) => f.responseType === response.headers.get("content-type"));
    if (response.status !== 200 || !type) throw await gatewayRefusal(response);
    const source = new ByteReader(response.body);
    try {
      const nonce = await source.exactly(keys.key.keySize);
      const open = await responseCrypt(type, { export: sealed.export, enc: sealed.enc, keySize: keys.key.keySize }, nonce);
      const reader = new MessageReader(type, source, open);
      const begun = await reader.head(parseResponse);
      const valid = () => checkKeys(keys, trust.current().policy, clock.now());
      valid();
      const plaintext = new ChunkPlaintext(begun.final ? ended : reader, { valid });
      const content = new Content(plaintext, begun.head.length, begun.rest, responseLength(begun.head, method));
      return { status: begun.head.status, fields: begun.head.fields, unit: "", read: () => content.read(), cancel: (reason) => source.cancel(reason) };
    } catch (e) {
      void source.cancel();
      throw e;
    }
  }
}

/** A message whose final chunk was read. */
const ended: ChunkSource = { next: async () => undefined };

/** Seals a request whose content is read whole first. */
async function* sealAll(form: Form, sealed: Encapsulated, head: RequestHead, content?: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  const pieces: Uint8Array[] = [];
  let size = 0;
  for await (const piece of content ?? []) {
    pieces.push(piece);
    if ((size += piece.length) > maxWhole) throw refuse("too-large", "one-off: size in bytes", size, maxWhole);
  }
  const message = pad(concat(encodeRequest({ ...head, length: size }), ...pieces));
  yield concat(sealed.prefix, await sealWhole(form, sealed.seal, message));
}

/** Seals a request in chunks, as its content arrives. */
async function* sealStream(sealed: Encapsulated, head: RequestHead, content: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  yield concat(sealed.prefix, await sealChunks(sealed.seal, encodeRequest({ ...head, length: undefined })));
  const room = maxSent - 4;
  for await (const given of content) {
    for (let at = 0; at < given.length; at += room) {
      const piece = given.subarray(at, at + room);
      yield await sealChunks(sealed.seal, concat(varint(piece.length), piece));
    }
  }
  yield await sealFinal(sealed.seal, Uint8Array.of(0));
}

function toStream(pieces: AsyncGenerator<Uint8Array>): ReadableStream<Uint8Array> {
  return new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        const { done, value } = await pieces.next();
        if (done) controller.close();
        else controller.enqueue(value);
      },
      cancel: async () => void (await pieces.return(undefined)),
    },
    { highWaterMark: 0 },
  );
}

async function collect(pieces: AsyncGenerator<Uint8Array>): Promise<Uint8Array> {
  const all: Uint8Array[] = [];
  for await (const piece of pieces) all.push(piece);
  return concat(...all);
}

/** Returns the refusal of an outer response without an inner one. It is not authenticated. */
async function gatewayRefusal(outer: Response): Promise<Error> {
  let type: unknown;
  try {
    const bytes = await new ByteReader(outer.body).rest(maxGatewayResponse);
    const problem: unknown = JSON.parse(new TextDecoder().decode(bytes));
    if (typeof problem === "object" && problem !== null && Object.hasOwn(problem, "type")) type = (problem as { type: unknown }).type;
  } catch {
    type = undefined;
  }
  if (type === keyProblem) return refuse("ohttp-key", "one-off: key", "not known to the units", "a key of the current key configuration");
  if (outer.status === 429) return refuse("rate", "one-off: requests of this address", "more than its quota", "fewer");
  return refuse("unavailable", "one-off: status of the outer response", outer.status, 200);
}
