/**
 * A cluster of units in memory, for tests of the client: it opens sessions, serves requests, closes
 * sessions and joins them by their tickets, as docs/spec/channel.md specifies. Its certificates are
 * placeholders: `trust` accepts them without a check.
 */

import { createSign, createHash, createHmac, generateKeyPairSync, type KeyObject } from "node:crypto";
import { Content, encodeResponse, type Fields, parseRequest, type RequestHead, varint } from "../src/bhttp.js";
import { base64url, concat, equal, fromBase64url, fromHex, fromU64, hex, parseDigest, u64, utf8 } from "../src/bytes.js";
import { aesKey, ByteReader, ChunkPlaintext, ChunkReader, ChunkWriter, maxPlaintext, pad } from "../src/channel/chunk.js";
import { evidenceReportData, type Handshake, makeTranscript, type OpenResponse, sessionId, sessionSecret, transcriptDigest } from "../src/channel/handshake.js";
import { encapsulate, kemKeySize, suite } from "../src/channel/kem.js";
import { type Pin, type Unit, type UnitTrust } from "../src/channel/unit.js";
import { frame, hkdf, hkdfExpand, unframe } from "../src/frame.js";
import { History, parseSteps } from "../src/history.js";
import { type Policy, zeroDigest } from "../src/policy/policy.js";
import { Refusal, refuse } from "../src/refusal.js";
import { parsePublicKey } from "../src/x509.js";
import { vector } from "./vectors.js";

/** Parses an open request as a unit does. */
export function parseOpenRequest(body: Uint8Array) {
  if (body.length > 2 << 10) throw refuse("too-large", "open request: size", body.length, 2048);
  const [given, kemKey, nonce, pin, wants, least] = unframe("cohort session open v1", body, 6) as [Uint8Array, Uint8Array, Uint8Array, Uint8Array, Uint8Array, Uint8Array];
  const bits = wants[0] ?? 8;
  const bad = !equal(given, suite) || kemKey.length !== kemKeySize || nonce.length !== 32 || wants.length !== 1 || bits > 7;
  if (bad || least.length !== (bits & 4 ? 32 : 0)) throw refuse("malformed", "open request", "another form", "that of the specification");
  unframe("cohort pin v1", pin, 3);
  return { kemKey, nonce, pin, wants, least };
}

/** The outer header of a request. */
export interface Header {
  session: string;
  number: bigint;
  target: string;
  notAfter: number;
  flags: number;
}

export function parseHeader(b: Uint8Array): Header {
  if (b.length !== 58 || b[0] !== 1) throw refuse("malformed", "request: header", b.length, 58);
  const number = fromU64(b.slice(25, 33));
  const notAfter = fromU64(b.slice(49, 57));
  const flags = b[57]!;
  if (number < 1n || number >= 1n << 63n || notAfter >= 1n << 63n || flags > 2) throw refuse("malformed", "request: header", "", "");
  return { session: hex(b.subarray(1, 25)), number, target: hex(b.subarray(33, 49)), notAfter: Number(notAfter), flags };
}

/** What a sealed session or tombstone contains in the clear. */
export function parseSealed(label: string, header: string, bytes: Uint8Array) {
  const [ad, nonce, ciphertext] = unframe(label, bytes, 3) as [Uint8Array, Uint8Array, Uint8Array];
  const [, identity, ring, session, expiry, sealer] = unframe(header, ad, 6) as Uint8Array[];
  return { ad, nonce, ciphertext, identity: identity!, ring: ring!, session: session!, expiry: expiry!, sealer: sealer! };
}

/** A ring key: it seals and opens sessions. */
export class Ring {
  readonly id: Uint8Array;
  constructor(readonly key: Uint8Array) {
    this.id = sum(frame("cohort ring id v1", key)).subarray(0, 16);
  }

  private async keys(sealer: Uint8Array) {
    const both = await hkdf(this.key, 64, "cohort seal v1", this.id, sealer);
    return { seal: await aesKey(both.subarray(0, 32)), mac: both.subarray(32) };
  }

  async seal(label: string, ad: Uint8Array, plaintext: Uint8Array, sealer: Uint8Array): Promise<Uint8Array> {
    const { seal, mac } = await this.keys(sealer);
    const iv = new Uint8Array(createHmac("sha256", mac).update(ad).update(plaintext).digest().subarray(0, 12));
    const sealed = await crypto.subtle.encrypt({ name: "AES-GCM", iv, additionalData: new Uint8Array(ad) }, seal, new Uint8Array(plaintext));
    return frame(label, ad, iv, new Uint8Array(sealed));
  }

  async open(s: ReturnType<typeof parseSealed>, identity: Uint8Array): Promise<Uint8Array> {
    if (!equal(s.ring, this.id)) throw refuse("ring", "sealed session: ring", hex(s.ring), hex(this.id));
    if (!equal(s.identity, identity)) throw refuse("identity", "sealed session: identity", hex(s.identity), hex(identity));
    const { seal } = await this.keys(s.sealer);
    try {
      return new Uint8Array(await crypto.subtle.decrypt({ name: "AES-GCM", iv: new Uint8Array(s.nonce), additionalData: new Uint8Array(s.ad) }, seal, new Uint8Array(s.ciphertext)));
    } catch {
      throw refuse("signature", "sealed session", "changed", "as sealed");
    }
  }
}

export function sum(bytes: Uint8Array): Uint8Array {
  return new Uint8Array(createHash("sha256").update(bytes).digest());
}

/** Signs fields with the lower s, or with the higher one. */
export function signFields(key: KeyObject, label: string, fields: Uint8Array[], high = false): Uint8Array {
  const order = 0xffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551n;
  const raw = createSign("SHA256").update(frame(label, ...fields)).sign({ key, dsaEncoding: "ieee-p1363" });
  let s = BigInt("0x" + raw.subarray(32).toString("hex"));
  if (s > order / 2n !== high) s = order - s;
  const integer = (value: bigint) => {
    let digits = value.toString(16);
    if (digits.length % 2) digits = "0" + digits;
    if (parseInt(digits[0]!, 16) >= 8) digits = "00" + digits;
    return concat(Uint8Array.of(2, digits.length / 2), fromHex(digits));
  };
  const pair = concat(integer(BigInt("0x" + raw.subarray(0, 32).toString("hex"))), integer(s));
  return concat(Uint8Array.of(0x30, pair.length), pair);
}

/** What a program does with a request. */
export type Handler = (
  head: RequestHead,
  content: Content,
) => Promise<{ status: number; fields?: Fields; body?: string | Uint8Array; parts?: AsyncIterable<Uint8Array> }>;

interface JoinedSession {
  secret: Uint8Array;
  expiry: number;
  numbers: Set<bigint>;
  closed?: boolean;
}

/** One unit. */
export class FakeUnit {
  readonly id: string;
  readonly pair = generateKeyPairSync("ec", { namedCurve: "P-256" });
  readonly sessions = new Map<string, JoinedSession>();
  /** KEM keys that were used. */
  readonly spent = new Set<string>();

  constructor(readonly cluster: FakeCluster) {
    this.id = hex(sum(this.spki).subarray(0, 16));
  }

  get spki(): Uint8Array {
    return new Uint8Array(this.pair.publicKey.export({ format: "der", type: "spki" }));
  }

  get chain(): Uint8Array {
    return this.cluster.chains?.(this) ?? frame("cohort chain v1", fromHex(this.id), utf8("cross-certificate"));
  }

  async open(body: Uint8Array, now: number): Promise<Uint8Array> {
    const o = parseOpenRequest(body);
    if (this.spent.has(hex(o.kemKey))) throw refuse("replayed", "open request: KEM key", "again", "a new one");
    this.spent.add(hex(o.kemKey));
    const c = this.cluster;
    const { enc, secret: shared } = await encapsulate(o.kemKey);
    const expiry = Math.floor(now / 1000) + c.lifetime;
    const r = { enc, chain: this.chain, ring: c.ring.id, head: parseDigest(c.head), expiry: u64(expiry) } as OpenResponse;
    const h = { keys: { publicBytes: o.kemKey }, nonce: o.nonce, pin: o.pin, wants: o.wants, least: o.least } as Handshake;
    const t = await makeTranscript(h, r, fromHex(this.id), c.identity, c.root);
    const id = await sessionId(t, BigInt(++c.opened));
    const transcript = await transcriptDigest(t, id);
    const secret = await sessionSecret(shared, transcript);
    this.sessions.set(hex(id), { secret, expiry, numbers: new Set() });
    const evidence = o.wants[0]! & 1 ? concat(utf8("evidence"), await evidenceReportData(secret, transcript)) : new Uint8Array(0);
    const ticket = c.alone ? new Uint8Array(0) : await this.sealSession(id, secret, o.pin, expiry);
    const time = u64(now);
    const signature = signFields(this.pair.privateKey, "cohort session signature v1", [transcript, sum(evidence), sum(ticket), time], c.highS);
    return frame("cohort session response v1", enc, id, fromHex(this.id), parseDigest(c.identity), r.ring, r.head, r.expiry, r.chain, signature, evidence, ticket, time);
  }

  private async sealSession(id: Uint8Array, secret: Uint8Array, pin: Uint8Array, expiry: number): Promise<Uint8Array> {
    const c = this.cluster;
    const ad = frame("cohort sealed session header v1", suite, parseDigest(c.identity), c.ring.id, id, u64(expiry), fromHex(this.id));
    const body = frame("cohort sealed session body v1", secret, pin, parseDigest(c.head), fromHex(this.id));
    return c.ring.seal("cohort sealed session v1", ad, body, fromHex(this.id));
  }

  /** Joins a session by its sealed form. */
  async join(sealed: Uint8Array): Promise<void> {
    const s = parseSealed("cohort sealed session v1", "cohort sealed session header v1", sealed);
    const body = await this.cluster.ring.open(s, parseDigest(this.cluster.identity));
    const [secret] = unframe("cohort sealed session body v1", body, 4);
    if (!this.sessions.has(hex(s.session))) {
      this.sessions.set(hex(s.session), { secret: secret!.slice(), expiry: Number(fromU64(s.expiry.slice())), numbers: new Set() });
    }
  }

  /** Opens a request up to its head, in the order of the specification. */
  async request(source: ByteReader, ticket: string | null, now: number) {
    const raw = await source.exactly(58).catch(() => {
      throw refuse("malformed", "request: header", "cut", 58);
    });
    const header = parseHeader(raw);
    if (/[^0]/.test(header.target) && header.target !== this.id) throw refuse("misdirected", "request: target", header.target, this.id);
    if (!this.sessions.has(header.session) && ticket) {
      await this.join(fromBase64url(ticket)).catch((e: unknown) => {
        throw e instanceof Refusal && (e.reason === "ring" || e.reason === "identity") ? refuse("rekey", e.rule, e.got, e.want) : e;
      });
    }
    const session = this.sessions.get(header.session);
    if (!session) throw refuse("ticket-wanted", "request: session", header.session, "one of the unit");
    const closes = (header.flags & 2) !== 0;
    if (session.closed && !closes) throw refuse("rekey", "request: session", "closed", "open");
    const key = await aesKey(await hkdfExpand(session.secret, "cohort request key v1", raw));
    const plaintext = new ChunkPlaintext(new ChunkReader(source, key));
    const first = (await plaintext.next())!;
    if (now > header.notAfter || header.notAfter > now + 120_000) throw refuse("expired", "request: end", header.notAfter, now);
    if (session.numbers.has(header.number)) throw refuse("replayed", "request: number", header.number, "a new one");
    session.numbers.add(header.number);
    return { raw, header, session, plaintext, first, closes };
  }

  /** Returns what seals the response to a request. */
  async responder(raw: Uint8Array, secret: Uint8Array) {
    const nonce = crypto.getRandomValues(new Uint8Array(16));
    const key = await hkdfExpand(secret, "cohort response key v1", raw, fromHex(this.id), nonce);
    return { prefix: concat(fromHex(this.id), nonce), writer: new ChunkWriter(await aesKey(key)) };
  }

  /** Serves a request: the body of the outer response. */
  async serve(source: ByteReader, ticket: string | null, now: number, handler: Handler): Promise<ReadableStream<Uint8Array>> {
    const x = await this.request(source, ticket, now);
    if (x.closes) {
      x.session.closed = true;
      const { prefix, writer } = await this.responder(x.raw, await hkdfExpand(x.session.secret, "cohort close key v1"));
      return stream([concat(prefix, await writer.seal(pad(concat(Uint8Array.of(2), u64(now))), true))]);
    }
    const { prefix, writer } = await this.responder(x.raw, x.session.secret);
    const refusal = this.cluster.notExecuted?.(x.header);
    if (refusal) return stream([concat(prefix, await writer.seal(pad(concat(Uint8Array.of(1), u64(now), utf8(refusal))), true))]);
    const recorded = { request: [x.first], response: [] as Uint8Array[] };
    const { head, rest } = parseRequest(x.first, true)!;
    const counted = {
      get done() {
        return x.plaintext.done;
      },
      next: async () => {
        const piece = await x.plaintext.next();
        if (piece) recorded.request.push(piece);
        return piece;
      },
    };
    const content = new Content(counted, head.length, rest);
    const answer = await handler(head, content);
    while (await content.read()) continue;
    const wanted = (x.header.flags & 1) !== 0;
    const unit = this;
    async function* chunks(): AsyncGenerator<Uint8Array> {
      const seal = (plaintext: Uint8Array, final: boolean) => {
        recorded.response.push(plaintext);
        return writer.seal(plaintext, final && !wanted);
      };
      const begin = concat(Uint8Array.of(0), u64(now));
      const body = typeof answer.body === "string" ? utf8(answer.body) : (answer.body ?? new Uint8Array(0));
      const responseHead = { status: answer.status, fields: answer.fields ?? [], length: answer.parts ? undefined : body.length };
      if (answer.parts) {
        yield concat(prefix, await seal(concat(begin, encodeResponse(responseHead)), false));
        for await (const part of answer.parts) yield await seal(concat(varint(part.length), part), false);
        yield await seal(Uint8Array.of(0), true);
      } else {
        const all = pad(concat(begin, encodeResponse(responseHead), body));
        yield concat(prefix, await seal(all.subarray(0, maxPlaintext), all.length <= maxPlaintext));
        for (let at = maxPlaintext; at < all.length; at += maxPlaintext) yield await seal(all.subarray(at, at + maxPlaintext), at + maxPlaintext >= all.length);
      }
      if (wanted) yield await writer.seal(unit.receipt(x.header, concat(...recorded.request), concat(...recorded.response), now), true);
    }
    return stream(chunks());
  }

  receipt(header: Header, request: Uint8Array, response: Uint8Array, now: number): Uint8Array {
    const message = [fromHex(header.session), u64(header.number), sum(request), sum(response), fromHex(this.id), u64(now), parseDigest(this.cluster.head)];
    return frame("cohort receipt v1", ...message, this.chain, signFields(this.pair.privateKey, "cohort receipt v1", message));
  }
}

/** Returns a stream of pieces that are made as they are read. */
export function stream(parts: Iterable<Uint8Array> | AsyncIterable<Uint8Array>): ReadableStream<Uint8Array> {
  return (ReadableStream as unknown as { from(parts: unknown): ReadableStream<Uint8Array> }).from(parts);
}

const statuses: Record<string, number> = {
  misdirected: 421, rekey: 410, "ticket-wanted": 428, "cookie-wanted": 428, replayed: 409, expired: 412, behind: 412, unavailable: 503, overload: 503, "cut-off": 503, clock: 503,
};

/** Units behind a gateway. `fetch` is the gateway. */
export class FakeCluster {
  readonly units: FakeUnit[];
  ring = new Ring(sum(utf8("ring")));
  /** Makes the chains of units, where they are no placeholders. */
  chains: ((unit: FakeUnit) => Uint8Array) | undefined;
  identity: string;
  readonly genesis: string;
  readonly root: string;
  head: string;
  /** Seconds that a session is valid. */
  lifetime = 3600;
  alone = false;
  highS = false;
  opened = 0;
  now = Date.UTC(2026, 10, 22, 12);
  cookies = false;
  notExecuted: ((header: Header) => string | undefined) | undefined;
  handler: Handler = async (head) => ({ status: 200, fields: [["content-type", "text/plain"]], body: `${head.method} ${head.path}` });
  /** Answers in place of the gateway, where it returns a response. */
  tamper: ((path: string, request: { body: () => Promise<Uint8Array>; headers: Headers }) => Promise<Response | undefined>) | undefined;
  readonly log: { path: string; unit: string; target?: string; ticket?: boolean }[] = [];
  private turn = 0;

  /** Makes a cluster of so many units, under the newest policy of a history. */
  constructor(
    count: number,
    readonly history: History,
  ) {
    const { policy } = history;
    this.identity = [...policy.tasks.get("scoring")!.releases.values()].at(-1)!.id;
    this.genesis = policy.genesis;
    this.root = policy.authority.root;
    this.head = policy.head;
    this.units = Array.from({ length: count }, () => new FakeUnit(this));
  }

  /** Makes a cluster of so many units, under the policy of a vector. */
  static async make(count: number): Promise<FakeCluster> {
    const { input } = vector<{ input: { genesis: string; pages: { entries: unknown }[] } }>("client/testdata/vectors/trust.json");
    return new FakeCluster(count, await History.begin(input.genesis).extend(parseSteps(input.pages[0]!.entries)));
  }

  get policy(): Policy {
    return this.history.policy;
  }

  get pin(): Pin {
    return { genesis: this.genesis, task: "scoring" };
  }

  /** Trust that accepts the chains of these units. */
  trust(): UnitTrust {
    return {
      policy: this.policy,
      history: this.history,
      checkChain: async (bytes) => {
        const [id] = unframe("cohort chain v1", bytes, 2);
        const unit = this.units.find((u) => u.id === hex(id!));
        if (!unit) throw refuse("signature", "chain", hex(id!), "a unit of the cluster");
        return this.peer(unit);
      },
      appraise: async (evidence, reportData) => {
        if (!equal(evidence, concat(utf8("evidence"), reportData))) throw refuse("nonce", "evidence", "other", "this session's");
        return { platform: "soft" } as never;
      },
    };
  }

  peer(unit: FakeUnit): Unit {
    const facts = {
      task: "scoring", release: "", identity: this.identity, group: "", role: "", party: zeroDigest, root: zeroDigest,
      unit: unit.id, platform: "soft", chip: "", head: this.head, shared: false,
    };
    return { kind: "unit", id: this.identity, unit: unit.id, key: parsePublicKey(unit.spki), notBefore: this.now - 60_000, notAfter: this.now + 7_200_000, facts, platform: "soft" } as unknown as Unit;
  }

  /** The gateway. */
  fetch = async (input: string | URL | Request, init: RequestInit & { duplex?: string } = {}): Promise<Response> => {
    init.signal?.throwIfAborted();
    const path = new URL(String(input)).pathname;
    const headers = new Headers(init.headers);
    const given = init.body;
    const body = given instanceof ReadableStream ? given : new Blob([given as BlobPart]).stream();
    let read: Promise<Uint8Array> | undefined;
    const all = () => (read ??= new Response(body).arrayBuffer().then((b) => new Uint8Array(b)));
    const tampered = await this.tamper?.(path, { body: all, headers });
    if (tampered) return tampered;
    const source = read ? stream([await read]) : (body as ReadableStream<Uint8Array>);
    const hinted = { "cohort-units": this.units.map((u) => u.id).join(",") };
    try {
      if (path.endsWith("/session")) return await this.serveOpen(new Uint8Array(await new Response(source).arrayBuffer()), headers, hinted);
      const reader = new ByteReader(source);
      const start = await reader.exactly(58);
      const target = hex(start.subarray(33, 49));
      const bound = /[^0]/.test(target);
      const unit = (bound ? this.units.find((u) => u.id === target) : this.units[this.turn++ % this.units.length]) ?? this.units[0]!;
      this.log.push({ path, unit: unit.id, ...(bound ? { target } : {}), ticket: headers.has("cohort-ticket") });
      const replayed = new ByteReader(stream((async function* () {
        yield start;
        for (let piece = await reader.some(1 << 16); piece; piece = await reader.some(1 << 16)) yield piece;
      })()));
      const answer = await unit.serve(replayed, headers.get("cohort-ticket"), this.now, this.handler);
      return new Response(answer, { status: 200, headers: { "content-type": "application/cohort-response", ...hinted } });
    } catch (e) {
      if (!(e instanceof Refusal)) throw e;
      return problem(statuses[e.reason] ?? 400, e.reason, { ...hinted, ...(e.reason === "expired" ? { "cohort-time": String(this.now) } : {}) });
    }
  };

  private async serveOpen(body: Uint8Array, headers: Headers, hinted: Record<string, string>): Promise<Response> {
    const cookie = base64url(sum(parseOpenRequest(body).kemKey));
    if (this.cookies && headers.get("cohort-cookie") !== cookie) {
      return problem(428, "cookie-wanted", { ...hinted, "cohort-cookie": cookie });
    }
    const wanted = headers.get("cohort-unit");
    const unit = this.units.find((u) => u.id === wanted) ?? this.units[this.turn++ % this.units.length]!;
    this.log.push({ path: "session", unit: unit.id });
    return new Response(new Uint8Array(await unit.open(body, this.now)), { headers: { "content-type": "application/cohort-session", ...hinted } });
  }
}

/** A problem of the gateway or a unit. */
export function problem(status: number, reason: string, headers: Record<string, string> = {}): Response {
  const body = JSON.stringify({ type: "urn:cohort:problem:" + reason, title: reason, status, reason });
  return new Response(body, { status, headers: { "content-type": "application/problem+json", ...headers } });
}
