import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { test } from "node:test";
import { base64, fromBase64 } from "../src/bytes.js";
import { frame, unframe } from "../src/frame.js";
import { reasonOf } from "../src/refusal.js";
import { finishRecorded, type SessionInput } from "./exchange.js";
import { repository, vector } from "./vectors.js";

interface SessionVector {
  input: SessionInput;
  accepted: Awaited<ReturnType<typeof finishRecorded>>;
  refused: { name: string; set?: { path: string; value: unknown }[]; fields?: Record<string, string>; reason: string }[];
}

const path = "internal/channel/testdata/vectors/session.json";
if (existsSync(repository + path)) {
  const v = vector<SessionVector>(path);
  test("a session response with real certificates", async () => {
    assert.deepEqual(await finishRecorded(v.input), v.accepted);
  });
  for (const c of v.refused) {
    test("refused: " + c.name, async () => {
      const input = { ...v.input, ...Object.fromEntries((c.set ?? []).map(({ path: at, value }) => [at.slice(1), value])) };
      if (c.fields) {
        const fields = unframe("cohort session response v1", fromBase64(input.response), 12);
        for (const [number, value] of Object.entries(c.fields)) fields[Number(number) - 1] = fromBase64(value);
        input.response = base64(frame("cohort session response v1", ...fields));
      }
      await assert.rejects(finishRecorded(input), (e) => {
        assert.equal(reasonOf(e), c.reason, String(e));
        return true;
      });
    });
  }
} else {
  test("a session response with real certificates", { skip: `SKIPPED: ${path} is missing` }, () => {});
}
