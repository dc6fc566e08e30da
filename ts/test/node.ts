/** Sources of trust in Node: the TLS chain of an authority is known here. */

import { request } from "node:https";
import type { TLSSocket } from "node:tls";
import { type Source, type TrustQuery } from "../src/source.js";
import { hex } from "../src/bytes.js";
import { type Certificate, parseCertificate } from "../src/x509.js";

/** An authority over a connection whose chain is checked by fetchTrust. */
export function authorityOverTls(url: string): Source {
  let chain: Certificate[] = [];
  const get = (path: string, signal: AbortSignal) =>
    new Promise<unknown>((resolve, reject) => {
      const sent = request(url + path, { rejectUnauthorized: false, signal, agent: false }, (response) => {
        let peer = (response.socket as TLSSocket).getPeerCertificate(true);
        chain = [];
        for (;;) {
          chain.push(parseCertificate(new Uint8Array(peer.raw)));
          if (!peer.issuerCertificate || peer.issuerCertificate === peer) break;
          peer = peer.issuerCertificate;
        }
        const parts: Buffer[] = [];
        response.on("data", (part: Buffer) => parts.push(part));
        response.on("error", reject);
        response.on("end", () => {
          const body = Buffer.concat(parts).toString();
          if (response.statusCode === 200) resolve(JSON.parse(body));
          else reject(new Error(`${path}: ${response.statusCode} ${body}`));
        });
      });
      sent.on("error", reject);
      sent.end();
    });
  return {
    name: url,
    chain: () => chain,
    history: (from, signal) => get(`/v1/policy/history?from=${from}`, signal),
    poll: (head, wait, signal) => get(`/v1/policy/history?from=${head.replace("sha256:", "")}&wait=${wait}ms`, signal),
    trust: ({ nonce, ...pin }: TrustQuery, signal) => get(`/v1/trust?${new URLSearchParams(pin as Record<string, string>)}&nonce=${hex(nonce!)}`, signal),
  };
}
