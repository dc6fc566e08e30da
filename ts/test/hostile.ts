/**
 * The client behind a hostile gateway (internal/hostilegateway): for each manipulation it fetches trust,
 * opens a session with fresh evidence and sends two requests that are not safe, and prints a line of JSON
 * with the stage and the reason of the first refusal. A test of internal/systest compares them with the
 * Go client's: COHORT_HOSTILE_CLIENT="node …/ts/build/test/hostile.js".
 */

import { fetchTrust, open, reasonOf, type Session } from "../src/index.js";

const env = (name: string): string => {
  const value = process.env[name];
  if (value === undefined) throw new Error(`${name} is not set`);
  return value;
};
const hostile = env("COHORT_HOSTILE_GATEWAY");
const genesis = env("COHORT_GENESIS");
const task = env("COHORT_TASK");
const host = env("COHORT_HOST");
const whole = "piece 0\npiece 1\npiece 2\npiece 3\n";

interface Refusal {
  name: string;
  stage: string;
  reason: string;
}

/** Does what a client does, through a gateway. */
async function manipulated(name: string): Promise<Refusal> {
  const gateway = `${hostile}/${name}`;
  let stage = "trust";
  let session: Session | undefined;
  try {
    const trust = await fetchTrust({ genesis: "sha256:" + genesis, task, gateways: [gateway] });
    stage = "open";
    session = await open({ gateway, genesis, task, trust, freshEvidence: true });
    for (let i = 0; i < 2; i++) {
      stage = "request";
      const response = await session.fetch(`https://${host}/${name}`, { method: "POST", body: "content" });
      stage = "content";
      const text = await response.text();
      if (text !== whole) throw new Error(`got ${JSON.stringify(text)} without an error`);
    }
    return { name, stage: "", reason: "" };
  } catch (e) {
    return { name, stage, reason: reasonOf(e) ?? String(e) };
  } finally {
    await session?.close({ signal: AbortSignal.timeout(1000) });
  }
}

const table = (await (await fetch(hostile + "/")).json()) as { name: string }[];
const honest = await manipulated("honest");
if (honest.stage !== "") throw new Error(`an honest gateway: ${JSON.stringify(honest)}`);
// A few at a time: each is a client of its own.
const names = table.map((row) => row.name);
await Promise.all(
  Array.from({ length: 4 }, async () => {
    for (let name = names.shift(); name !== undefined; name = names.shift()) console.log(JSON.stringify(await manipulated(name)));
  }),
);
