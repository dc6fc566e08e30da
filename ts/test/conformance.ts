/**
 * The client as an implementation for interop/conformance: a line of JSON for each case, on standard
 * input and output. `go run ./interop/conformance -- node ts/build/test/conformance.js`
 */

import { createInterface } from "node:readline";
import type { Fields } from "../src/bhttp.js";
import { base64, concat, digestText, fromBase64, fromHex, sha256 } from "../src/bytes.js";
import { startHandshake } from "../src/channel/handshake.js";
import { ByteReader, ChunkReader, aesKey } from "../src/channel/chunk.js";
import { makeKemKeys } from "../src/channel/kem.js";
import { encodeMeasurement } from "../src/evidence/measurement.js";
import { soft } from "../src/evidence/soft.js";
import { hkdfExpand, unframe } from "../src/frame.js";
import { checkProvedHead, decodeHeadField } from "../src/head.js";
import { History, parseSteps } from "../src/history.js";
import { parseDocument } from "../src/policy/document.js";
import { parseRoster, parseStatement } from "../src/policy/roster.js";
import { type Namespace, verifySshSignature } from "../src/policy/sshsig.js";
import { reasonOf, Refusal } from "../src/refusal.js";
import type { Source } from "../src/source.js";
import { fetchTrust } from "../src/trust.js";
import { parseCertificate } from "../src/x509.js";
import { finishRecorded, keysOf, meetHint, readMessage, readResponse, requestOf, type SessionInput } from "./exchange.js";
import { stream } from "./unit.js";

/** The input of a case: each operation knows its members. */
type Input = any;

const bytes = (value: string) => fromBase64(value);
const time = (at: number) => new Date(at).toISOString().replace(".000Z", "Z");

/** Groups field lines by their names. */
function grouped(fields: Fields): Record<string, string[]> {
  const out: Record<string, string[]> = {};
  for (const [name, value] of fields) (out[name] ??= []).push(value);
  return out;
}

/** A history of the first policy alone, whose signatures are not checked: the cases are about what follows from it. */
async function genesisPolicy(policy: string) {
  const raw = bytes(policy);
  const genesis = digestText(await sha256(raw));
  return { document: await parseDocument(raw, genesis), genesis };
}

const operations: Record<string, (input: Input) => Promise<unknown>> = {
  async signature({ signature, namespace, message }) {
    const key = await verifySshSignature(signature as string, namespace as Namespace, bytes(message as string));
    return { key: `${key.type} ${base64(key.blob)}` };
  },
  async policy({ policy }) {
    const d = await parseDocument(bytes(policy as string));
    const all = [...d.authority.references, ...[...d.tasks.values()].flatMap((t) => [...t.releases.values()].flatMap((r) => r.references))];
    return { references: await Promise.all(all.map(async (r) => digestText(await sha256(encodeMeasurement(r))))) };
  },
  async history({ genesis, history }) {
    return { head: (await History.begin(genesis as string).extend(parseSteps(history))).head };
  },
  async statement({ statement }) {
    parseStatement(bytes(statement as string));
    return {};
  },
  async roster({ roster }) {
    await parseRoster(bytes(roster as string));
    return {};
  },
  async "identity-id"({ policy, task, release }) {
    const { document } = await genesisPolicy(policy as string);
    return { id: document.tasks.get(task as string)?.releases.get(release as string)?.id.slice("sha256:".length) };
  },
  async head({ policy, authority_root, at, field }) {
    const { document, genesis } = await genesisPolicy(policy as string);
    const unverified = { ...document, genesis, founded: document.created, heads: [], steps: 0, head: "", groupStates: new Map() } as unknown as Parameters<typeof checkProvedHead>[1];
    const proved = await checkProvedHead(decodeHeadField(field as string), unverified, parseCertificate(bytes(authority_root as string)), Date.parse(at as string));
    return { head: proved.head, steps: proved.steps, time: time(proved.time), spread_ms: proved.spread };
  },
  async "soft-evidence"({ roots, evidence }) {
    const claims = await soft.appraise(bytes(evidence as string), new Map(), { roots: roots as string[] }, 0);
    return { measurement: digestText(await sha256(encodeMeasurement(claims.measurement))), debug: claims.debug };
  },
  async trust(input) {
    const pages = [...(input.pages as unknown[])];
    const page = async () => {
      if (pages.length === 0) throw new Refusal("unavailable", "pages", "none", "a further page");
      return pages.shift();
    };
    const chain = input.chain as string[] | undefined;
    const nonce = input.nonce as string;
    const source: Source = {
      name: "case", history: page, poll: page, trust: async () => input.trust as unknown,
      ...(chain && { chain: () => chain.map((der) => parseCertificate(fromBase64(der))) }),
    };
    const trust = await fetchTrust({
      sources: [source], genesis: input.genesis as string, task: input.task as string, minSequence: input.min_sequence as number,
      clock: () => Date.parse(input.at as string), fresh: nonce !== "", random: () => fromHex(nonce),
    });
    return {
      sequence: trust.policy.sequence, policy_head: trust.policy.head, authority_root: digestText(await sha256(trust.authorityRoot.key.spki)),
      identities: Object.fromEntries(trust.identities.map((i) => [i.release, i.id])) as unknown,
    };
  },
  session: (input) => finishRecorded(input as SessionInput),
  async "session-keys"({ client_seed, request, response, authority_root }) {
    const f = unframe("cohort session open v1", bytes(request as string), 6);
    const [kind, what, genesis] = unframe("cohort pin v1", f[3]!, 3) as [Uint8Array, Uint8Array, Uint8Array];
    const pin = { genesis: digestText(genesis), [new TextDecoder().decode(kind)]: new TextDecoder().decode(what) };
    const h = await startHandshake({ pin, keys: await makeKemKeys(bytes(client_seed as string)), nonce: f[2]!, freshEvidence: (f[4]![0]! & 1) !== 0, receipts: (f[4]![0]! & 2) !== 0, least: f[5]!.length > 0 ? digestText(f[5]!) : undefined });
    const unverified = bytes(response as string);
    const identity = unframe("cohort session response v1", unverified, 12)[3]!;
    const { r, id, transcript, kemSecret, secret, reportData } = await keysOf(h, unverified, digestText(identity), digestText(bytes(authority_root as string)));
    const out = { pin: h.pin, kem_secret: kemSecret, session_id: id, transcript, session_secret: secret, evidence_report_data: reportData, ticket: r.ticket, unit: r.unit, unit_time: r.time };
    return Object.fromEntries(Object.entries(out).map(([name, value]) => [name, base64(value)])) as unknown;
  },
  async "seal-request"({ session_secret, header, content }) {
    const request = await requestOf(bytes(session_secret as string), bytes(header as string));
    return { request: base64(await request.whole(undefined, bytes(content as string))) };
  },
  async "open-response"({ session_secret, header, response }) {
    const [secret, head, message] = [bytes(session_secret as string), bytes(header as string), bytes(response as string)];
    const opened = async (key: Uint8Array) => {
      const reader = new ChunkReader(new ByteReader(stream([message.subarray(32)])), await aesKey(await hkdfExpand(key, "cohort response key v1", head, message.subarray(0, 16), message.subarray(16, 32))));
      const all: Uint8Array[] = [];
      for (let chunk = await reader.next(); chunk; chunk = await reader.next()) all.push(chunk.plaintext);
      return all;
    };
    try {
      const { request } = await readResponse(secret, head, message);
      const closes = (head[57]! & 2) !== 0;
      const parts = await opened(closes ? await hkdfExpand(secret, "cohort close key v1") : secret);
      const receipt = request.recorded !== undefined && parts.length > 1;
      const all = concat(...(receipt ? parts.slice(0, -1) : parts));
      return { content: base64(closes ? trimmed(all) : all) };
    } catch (e) {
      // "Not executed" to a request that closes is under the session's secret; this client leaves that attempt out.
      const parts = (head[57]! & 2) !== 0 ? await opened(secret).catch(() => undefined) : undefined;
      if (parts?.[0]?.[0] !== 1) throw e;
      return { content: base64(trimmed(concat(...parts))) };
    }
  },
  async "binary-http"({ kind, message }) {
    const { head, content, trailer } = await readMessage(kind as "request" | "response", bytes(message as string));
    const { fields, length, ...control } = head;
    const shown = Object.fromEntries(Object.entries(control).filter(([, v]) => v !== ""));
    return { head: { ...shown, fields: grouped(fields), length: length ?? -1 }, content: base64(content), trailer: grouped(trailer) };
  },
  async retry({ hint, request }) {
    const { error: _, ...row } = await meetHint(hint as string, request as string);
    return row;
  },
};

/** Returns bytes without the zeros at their end: the padding of responses without content. */
function trimmed(padded: Uint8Array): Uint8Array {
  let end = padded.length;
  while (end > 9 && padded[end - 1] === 0) end--;
  return padded.subarray(0, end);
}

for await (const line of createInterface({ input: process.stdin })) {
  const { id, op, input } = JSON.parse(line) as { id: number; op: string; input: unknown };
  const operation = operations[op];
  let response: object;
  if (!operation) response = { id, unsupported: true };
  else {
    response = await operation(input).then(
      (output) => ({ id, output }),
      (e: unknown) => {
        const reason = reasonOf(e);
        if (reason === undefined) console.error(e);
        return { id, refused: reason ?? "internal" };
      },
    );
  }
  process.stdout.write(JSON.stringify(response) + "\n");
}
