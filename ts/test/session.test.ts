import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { test } from "node:test";
import { base64, digestText, fromBase64, sha256 } from "../src/bytes.js";
import { appraiseUnit } from "../src/channel/appraise.js";
import { finishHandshake, startHandshake } from "../src/channel/handshake.js";
import { makeKemKeys } from "../src/channel/kem.js";
import { checkUnitChain } from "../src/channel/unit.js";
import { frame, unframe } from "../src/frame.js";
import { History, parseSteps } from "../src/history.js";
import { reasonOf } from "../src/refusal.js";
import { parseCertificate } from "../src/x509.js";
import { repository, vector } from "./vectors.js";

interface Input {
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

interface SessionVector {
  input: Input;
  accepted: { request: string; session_id: string; unit: string; identity: string; expires: string; evidence_platform: string };
  refused: { name: string; set?: { path: string; value: unknown }[]; fields?: Record<string, string>; reason: string }[];
}

/** Checks the response of an input as a client does. */
async function finish(input: Input) {
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
  return {
    request: base64(h.request), session_id: base64(id), unit: unit.unit, identity: unit.facts.identity,
    expires: new Date(expires).toISOString().replace(".000", ""), evidence_platform: evidence?.platform,
  };
}

const path = "internal/channel/testdata/vectors/session.json";
if (existsSync(repository + path)) {
  const v = vector<SessionVector>(path);
  test("a session response with real certificates", async () => {
    const { session_secret: _, ...accepted } = v.accepted as SessionVector["accepted"] & { session_secret: string };
    assert.deepEqual(await finish(v.input), accepted);
  });
  for (const c of v.refused) {
    test("refused: " + c.name, async () => {
      const input = { ...v.input, ...Object.fromEntries((c.set ?? []).map(({ path: at, value }) => [at.slice(1), value])) };
      if (c.fields) {
        const fields = unframe("cohort session response v1", fromBase64(input.response), 12);
        for (const [number, value] of Object.entries(c.fields)) fields[Number(number) - 1] = fromBase64(value);
        input.response = base64(frame("cohort session response v1", ...fields));
      }
      await assert.rejects(finish(input), (e) => {
        assert.equal(reasonOf(e), c.reason, String(e));
        return true;
      });
    });
  }
} else {
  test("a session response with real certificates", { skip: `SKIPPED: ${path} is missing` }, () => {});
}
