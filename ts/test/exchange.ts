/** What a client concludes from recorded messages, for vectors: of tests here, and of interop/conformance. */

import { Content, parseRequest, parseResponse, responseLength } from "../src/bhttp.js";
import { base64, concat, digestText, fromBase64, fromU64, hex, sha256 } from "../src/bytes.js";
import { appraiseUnit } from "../src/channel/appraise.js";
import { ByteReader } from "../src/channel/chunk.js";
import { evidenceReportData, finishHandshake, makeTranscript, parseOpenResponse, sessionId, sessionSecret, startHandshake, transcriptDigest } from "../src/channel/handshake.js";
import { decapsulate, makeKemKeys } from "../src/channel/kem.js";
import { type Clock, type Gateways, Transport } from "../src/channel/transport.js";
import { ClientRequest, Session, type SessionFacts } from "../src/channel/session.js";
import { checkUnitChain } from "../src/channel/unit.js";
import { makeCall } from "../src/fetch.js";
import { History, parseSteps } from "../src/history.js";
import { reasonOf } from "../src/refusal.js";
import { parseCertificate } from "../src/x509.js";
import { FakeCluster, stream } from "./unit.js";

/** The input of internal/channel/testdata/vectors/session.json. */
export interface SessionInput {
  at: string;
  genesis: string;
  history: unknown;
  authority_root: string;
  pin: { task?: string; id?: string };
  wants: number;
  client_seed: string;
  nonce: string;
  response: string;
}

/** Checks the response of an input as a client does. */
export async function finishRecorded(input: SessionInput) {
  const steps = parseSteps(input.history);
  const history = await History.begin(digestText(await sha256(steps[0]!.policy))).extend(steps);
  const { policy } = history;
  const h = await startHandshake({
    pin: { genesis: input.genesis, ...input.pin },
    freshEvidence: (input.wants & 1) !== 0,
    keys: await makeKemKeys(fromBase64(input.client_seed)),
    nonce: fromBase64(input.nonce),
  });
  const trust = {
    policy,
    history,
    checkChain: (...given: [Uint8Array, typeof h.options.pin, typeof policy, number]) => checkUnitChain({ root: parseCertificate(fromBase64(input.authority_root)) }, ...given),
    appraise: (...given: [Uint8Array, Uint8Array, Parameters<typeof appraiseUnit>[3], number]) => appraiseUnit(policy, ...given),
  };
  const session = await finishHandshake(h, fromBase64(input.response), trust, Date.parse(input.at));
  const { id, unit, expires, evidence } = session.facts;
  const { secret } = await keysOf(h, fromBase64(input.response), digestText(parseOpenResponse(fromBase64(input.response)).identity), policy.authority.root);
  return {
    request: base64(h.request), session_id: base64(id), session_secret: base64(secret), unit: unit.unit, identity: unit.facts.identity,
    expires: new Date(expires).toISOString().replace(".000", ""), evidence_platform: evidence?.platform,
  };
}

/** What follows from an open request and its response without certificates. */
export async function keysOf(h: Awaited<ReturnType<typeof startHandshake>>, response: Uint8Array, identity: string, root: string) {
  const r = parseOpenResponse(response);
  const t = await makeTranscript(h, r, r.unit, identity, root);
  const id = await sessionId(t, fromU64(r.session.slice(0, 8)));
  const transcript = await transcriptDigest(t, id);
  const kemSecret = await decapsulate(h.keys, r.enc);
  const secret = await sessionSecret(kemSecret, transcript);
  return { r, id, transcript, kemSecret, secret, reportData: await evidenceReportData(secret, transcript) };
}

/** The request of a session with a secret whose header is known. */
export async function requestOf(secret: Uint8Array, header: Uint8Array): Promise<ClientRequest> {
  const session = await Session.make(secret, { id: header.subarray(1, 25) } as SessionFacts);
  return ClientRequest.ofHeader(session, header);
}

/** Reads a response as a client does. */
export async function readResponse(secret: Uint8Array, header: Uint8Array, message: Uint8Array) {
  const request = await requestOf(secret, header);
  const response = await request.open(new ByteReader(stream([message])), "POST");
  if (response.kind !== "response") return { request, response };
  return { request, response, content: await readAll(response.content) };
}

/** Reads content to its end. */
export async function readAll(content: Content): Promise<Uint8Array> {
  const all: Uint8Array[] = [];
  for (let piece = await content.read(); piece; piece = await content.read()) all.push(piece);
  return concat(...all);
}

/** Reads a message of binary HTTP whose head lies in the first piece. */
export async function readMessage(kind: "request" | "response", first: Uint8Array, ...rest: Uint8Array[]) {
  const parsed = kind === "request" ? parseRequest(first, true)! : parseResponse(first, true)!;
  const { head } = parsed;
  const length = "status" in head ? responseLength(head, "GET") : head.length;
  const pieces = { get done() { return rest.length === 0; }, next: async () => rest.shift() };
  const content = new Content(pieces, head.length, parsed.rest, length);
  return { head, content: await readAll(content), trailer: content.trailer };
}

/** A clock that stands still but for pauses. */
export function standing(cluster: FakeCluster): Clock & { slept: number } {
  return {
    slept: 0,
    now: () => cluster.now,
    async sleep(milliseconds, signal) {
      if (signal?.aborted) return;
      this.slept += milliseconds;
      cluster.now += milliseconds;
    },
  };
}

/** What a client does when each attempt of a call meets the same hint: a row of retries.json. */
export async function meetHint(hint: string, request: string) {
  const cluster = await FakeCluster.make(5);
  const clock = standing(cluster);
  const gateways: Gateways = { streams: true, fetch: (path, init) => cluster.fetch("https://gateway.example" + path, init) };
  const trust = { current: () => cluster.trust(), renew: async () => cluster.trust(), newestHead: () => undefined, receivedHead: () => {} };
  const transport = new Transport({ gateways, pin: cluster.pin, trust, clock });
  await transport.session();
  const got = { attempts: 0, bound: 0, units: 0, tickets: 0 };
  const units = new Set<string>();
  cluster.tamper = async (path, { body, headers }) => {
    if (!path.endsWith("/request")) return undefined;
    const target = hex((await body()).subarray(33, 49));
    got.attempts++;
    if (/[^0]/.test(target)) {
      got.bound++;
      units.add(target);
    }
    if (headers.has("cohort-ticket")) got.tickets++;
    if (hint === "a broken connection") throw new TypeError("fetch failed", { cause: { code: "ECONNRESET" } });
    return new Response(null, { status: parseInt(hint, 10) });
  };
  const headers = { "idempotency-key": request.includes("Idempotency-Key") ? "1" : "" };
  const init = request === "GET" ? {} : { method: "PUT", body: "content", headers };
  clock.slept = 0;
  const call = await makeCall("/", init, "https://scoring.clinic.example", () => {});
  const error: unknown = await transport.call(call.request).then(() => undefined, (e: unknown) => e);
  const sessions = transport.opens;
  if (sessions === 1) got.units = units.size; // the opener of the next session is any of them
  return { ...got, sessions, seconds: clock.slept / 1000, outcome: reasonOf(error), error };
}
