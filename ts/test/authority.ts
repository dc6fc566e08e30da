/**
 * An authority and gateway in memory, for tests of clients: the real formats and signatures, with the
 * keys of identity/testdata/vectors and a made-up vendor of the soft platform. It plays vendor and
 * authority, and verifies nothing.
 */

import { sign } from "node:crypto";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { base64, concat, digestText, fromHex, hex, parseDigest, sha256, u64, utf8 } from "../src/bytes.js";
import { encodeEvidence } from "../src/evidence/evidence.js";
import { encodeMeasurement } from "../src/evidence/measurement.js";
import { frame, framedField, reportData } from "../src/frame.js";
import type { History, Step } from "../src/history.js";
import type { Digest, Policy } from "../src/policy/policy.js";
import { refuse } from "../src/refusal.js";
import type { Source } from "../src/source.js";
import type { Certificate } from "../src/x509.js";
import { editField, editFields, forgeCertificate, namedKey, proveHead, signFields, type SigningKey } from "./forge.js";
import { certificateOf, groupVector, historyOf, identityVector, keys, nextText, signStep } from "./world.js";

const device = namedKey("soft device");
const order = 0xffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551n;

/** The key of the root of a roster. */
const groupKey = (roster: Digest) => namedKey("group root of " + roster);

/** An authority of the policy of identity.json or group.json, with another vendor key. */
export class Authority {
  /** Names of the requests that it served, in order. */
  readonly requests: string[] = [];
  /** The spread that it states in proved heads, in milliseconds. */
  spread = 0;
  /** Sends evidence of a TPM, which nothing appraises. */
  tpm = false;
  /** Changes a response before it is sent. */
  edit: (path: "history" | "trust", response: Record<string, unknown>) => unknown = (_, response) => response;
  private readonly steps: Step[] = [];
  private text = "";
  private waiting = new Set<() => void>();

  private constructor(
    public history: History,
    private readonly rootKey: SigningKey,
    private readonly leafKey: SigningKey,
    /** Its clock. */
    public now: () => number,
  ) {}

  /** Founds a trust domain, after edits of its policy. */
  static found(now: () => number, ...edits: [string, string][]): Promise<Authority> {
    return Authority.begin(now, identityVector.policy, edits);
  }

  /** Founds the trust domain of group.json, whose parties have approved nothing yet. */
  static foundGroups(now: () => number, ...edits: [string, string][]): Promise<Authority> {
    return Authority.begin(now, groupVector.steps[0]!, edits);
  }

  private static async begin(now: () => number, base: string, edits: [string, string][]): Promise<Authority> {
    let text = base.replaceAll("sha256:" + "1".repeat(64), digestText(await sha256(device.spki)));
    for (const [from, to] of edits) text = text.replace(from, to);
    const authority = new Authority(await historyOf(text), await keys.root(), await keys.authority(), now);
    authority.text = text;
    authority.steps.push(signStep(text));
    return authority;
  }

  get policy(): Policy {
    return this.history.policy;
  }

  get genesis(): Digest {
    return this.history.genesis;
  }

  /** Adopts the next policy: the newest, after edits. Polls that wait get it. */
  step(...edits: [string, string][]): Promise<void> {
    this.text = nextText(this.policy, this.text, ...edits);
    return this.append(signStep(this.text));
  }

  /** Adopts the statement of a party about a group. */
  async state(verb: "approve" | "withdraw", party: string, group: string, number: number, notAfter = "2026-12-20T00:00:00Z"): Promise<void> {
    const { id, roster } = this.policy.groupStates.get(group)!;
    const root = digestText(await sha256(groupKey(id).spki));
    const lines = [
      `schema = "cohort/${verb}/v1"`, `trust_domain = "${this.policy.trustDomain}"`, `genesis = "${this.genesis}"`, `group = "${id}"`,
      `group_root = "${root}"`, `party = "${party}"`, `key = "${roster.parties.find((p) => p.name === party)!.key}"`, `number = ${number}`,
      `not_after = ${notAfter}`,
    ];
    await this.append(signStep(lines.join("\n") + "\n"));
  }

  private async append(step: Step): Promise<void> {
    this.history = await this.history.extend([step]);
    this.steps.push(step);
    for (const wake of this.waiting) wake();
  }

  get root(): Certificate {
    return forgeCertificate(certificateOf("authority root"), this.rootKey, { extensions: editField(4, parseDigest(this.genesis)) });
  }

  get leaf(): Certificate {
    const like = certificateOf("authority");
    const begin = Math.floor(this.now() / 1000) * 1000 - 60_000;
    return forgeCertificate(like, this.rootKey, { extensions: editField(4, parseDigest(this.policy.head)), spki: this.leafKey.spki, notBefore: begin, notAfter: begin + 3_660_000 });
  }

  private page(from: number): Record<string, unknown> {
    const head = proveHead(this.leafKey, this.leaf.raw, parseDigest(this.policy.head), this.policy.steps, this.now(), this.spread);
    const entries = this.steps.slice(from).map(({ policy, signatures }) => ({ policy: base64(policy), signatures }));
    return { from, entries, head: this.policy.head, proved_head: base64(head) };
  }

  /** The proved head as a unit sends it. */
  provedHead(): Uint8Array {
    return proveHead(this.leafKey, this.leaf.raw, parseDigest(this.policy.head), this.policy.steps, this.now(), this.spread);
  }

  /** Responds to a request for history; a head waits for the next step. */
  async historyResponse(from: string, wait: number, signal?: AbortSignal): Promise<unknown> {
    this.requests.push(`history ${from.length === 64 ? `after ${this.policy.heads.indexOf("sha256:" + from) + 1} steps, ${wait} ms` : from}`);
    if (from.length !== 64) return this.edit("history", this.page(Number(from)));
    const at = this.policy.heads.indexOf("sha256:" + from) + 1;
    if (at === 0) throw refuse("behind", "history: head", from, "a head of this history");
    if (at === this.steps.length && wait > 0) {
      await new Promise<void>((resolve) => {
        const wake = () => {
          clearTimeout(timer);
          this.waiting.delete(wake);
          resolve();
        };
        const timer = setTimeout(wake, wait);
        this.waiting.add(wake);
        signal?.addEventListener("abort", wake, { once: true });
      });
    }
    return this.edit("history", this.page(at));
  }

  /** Responds to a request for trust. */
  async trustResponse(nonce: Uint8Array): Promise<unknown> {
    this.requests.push(nonce.length > 0 ? "trust with a nonce" : "trust");
    const { policy } = this;
    const [root, head] = [parseDigest(policy.authority.root), parseDigest(policy.head)];
    const time = Math.floor(this.now() / 1000);
    const data = nonce.length > 0 ? await reportData("cohort trust v1", nonce, root, head) : await reportData("cohort timed trust v1", root, head, u64(time));
    const evidence = encodeEvidence({ platform: this.tpm ? "tpm" : "soft", raw: this.softEvidence(data), endorsed: new Map(), devices: [] });
    const statement = signFields(
      "cohort trust statement v1", this.leafKey, this.leaf.raw, parseDigest(this.genesis), root, head, u64(policy.steps), u64(time), nonce, await sha256(utf8(evidence)), new Uint8Array(0),
    );
    const identities = [];
    for (const task of policy.tasks.values()) {
      for (const release of task.releases.values()) {
        const id = parseDigest(release.id);
        const key = await keys.identity(hex(id));
        const like = task.name === "keys" ? ["cross of keys", "identity root of keys"] : ["cross", "identity root"];
        const encoded = release.references.map(encodeMeasurement).sort(Buffer.compare);
        const fields = (kind: string) => editFields((l) => [utf8(kind), id, ...l.slice(2, 4), parseDigest(this.genesis), ...l.slice(5, 9), ...encoded]);
        const cross = forgeCertificate(certificateOf(like[0]!), this.rootKey, { spki: key.spki, extensions: fields("cross") });
        const own = forgeCertificate(certificateOf(like[1]!), key, { spki: key.spki, extensions: fields("identity-root") });
        identities.push({ task: task.name, release: release.name, identity: release.id, root: base64(own.raw), cross: base64(cross.raw) });
      }
    }
    for (let state of policy.groupStates.values()) {
      for (let next: typeof state | undefined = state; next; next = next.predecessor) {
        state = next;
        const key = groupKey(state.id);
        const like = certificateOf("group root", groupVector);
        const fields = editFields((l) => [l[0]!, parseDigest(state.id), utf8(state.group.name), l[3]!, parseDigest(this.genesis), ...l.slice(5)]);
        const own = forgeCertificate(like, key, { spki: key.spki, extensions: fields });
        identities.push({ group: state.group.name, identity: state.id, root: base64(own.raw) });
      }
    }
    const response = { authority: base64(this.root.raw), identities, history: { from: 0, entries: [], head: policy.head }, evidence: JSON.parse(evidence) as unknown, statement: base64(statement) };
    return this.edit("trust", response);
  }

  private softEvidence(data: Uint8Array): Uint8Array {
    const registers = this.policy.authority.references[0]!.registers.map((r) => r.value);
    const signed = frame("cohort soft evidence v1", device.spki, ...registers, Uint8Array.of(0), data);
    const signature = sign("sha256", signed, { key: device.key, dsaEncoding: "ieee-p1363" });
    const s = BigInt("0x" + signature.subarray(32).toString("hex"));
    const low = s > order / 2n ? order - s : s;
    return concat(signed, framedField(concat(signature.subarray(0, 32), fromHex(low.toString(16).padStart(64, "0")))));
  }

  /** A source of a relay, without HTTP. */
  source(name = "relay"): Source {
    return {
      name,
      history: (from) => this.historyResponse(String(from), 0),
      poll: (head, wait, signal) => this.historyResponse(head.slice(7), wait, signal),
      trust: ({ nonce }) => this.trustResponse(nonce ?? new Uint8Array(0)),
    };
  }

  /** Serves the paths of a gateway on loopback. */
  async serve(): Promise<{ url: string; close: () => void; server: Server }> {
    const respond = async (request: IncomingMessage, response: ServerResponse) => {
      const url = new URL(request.url!, "http://localhost");
      const ended = new AbortController();
      response.on("close", () => ended.abort());
      const query = url.searchParams;
      const body = url.pathname.endsWith("/trust")
        ? await this.trustResponse(fromHex(query.get("nonce") ?? ""))
        : await this.historyResponse(query.get("from")!, parseInt(query.get("wait") ?? "0"), ended.signal);
      response.setHeader("content-type", "application/json");
      response.end(JSON.stringify(body));
    };
    const refused = (response: ServerResponse) => (e: unknown) => {
      response.writeHead(409, { "content-type": "application/problem+json" });
      response.end(JSON.stringify(e));
    };
    const server = createServer((request, response) => void respond(request, response).catch(refused(response)));
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    return {
      server,
      url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
      close: () => {
        server.close();
        server.closeAllConnections();
      },
    };
  }
}
