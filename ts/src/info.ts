/** What was verified, as a tree of facts that a page can show to people. Nothing in it is unverified. */

import type { SessionFacts } from "./channel/session.js";
import type { Result } from "./evidence/evidence.js";
import { registerText } from "./evidence/measurement.js";
import type { Measurement } from "./evidence/measurement.js";
import type { Trust } from "./trust.js";

/** One fact, and those that belong to it. */
export interface Fact {
  name: string;
  value?: string;
  /** A person should know this before they rely on the cluster: a development mark, a debug state, code that is not measured. */
  warning?: true;
  facts?: Fact[];
}

function fact(name: string, value: string | undefined, ...facts: (Fact | undefined)[]): Fact {
  const below = facts.filter((f) => f !== undefined);
  return { name, ...(value !== undefined && { value }), ...(below.length > 0 && { facts: below }) };
}

function warning(name: string, value: string, when: boolean): Fact | undefined {
  return when ? { name, value, warning: true } : undefined;
}

function time(at: number): string {
  return new Date(at).toISOString();
}

function measured(m: Measurement): Fact {
  return fact("measurement", `${m.platform} ${m.registers.map(registerText).join(" ")}`);
}

function appraised(name: string, result: Result): Fact {
  return fact(
    name,
    result.platform,
    measured(result.measurement),
    fact("chip", result.chip),
    warning("debug", "the host can read the memory of this TEE", result.debug),
    warning("dynamic", "loads code that is not in its measurement", result.dynamic),
    ...result.fetched.map((f) => fact(f.role, "checked with the vendor at " + time(f.checked))),
  );
}

/** Returns the facts of trust: hardware, code, policy and authority. */
export function trustFacts(trust: Trust): Fact[] {
  const { policy, evidence, identities, proved } = trust;
  const releases = identities.map((i) => {
    const release = policy.tasks.get(i.task)?.releases.get(i.release);
    const name = i.group ? `group ${i.group}` : `task ${i.task}, release ${i.release}`;
    return fact("identity", name, fact("id", i.id), warning("dynamic", "accepts code that is not measured", release?.dynamic ?? false), ...(release?.references ?? []).map(measured));
  });
  return [
    fact("hardware", undefined, appraised("authority", evidence), warning("development", "nothing is protected from the host", policy.development)),
    fact("code", undefined, ...releases),
    fact(
      "policy",
      `sequence ${policy.sequence} of ${policy.trustDomain}`,
      fact("genesis", policy.genesis),
      fact("digest", policy.digest),
      fact("head", policy.head, fact("steps", String(policy.steps)), fact("proved", time(proved.time))),
      fact("created", time(policy.created)),
      fact("owners", `${policy.owners.quorum} of ${policy.owners.keys.length}`, ...policy.owners.keys.map((o) => fact("owner", o.name))),
    ),
    fact("authority", undefined, fact("root", policy.authority.root), fact("fetched", time(trust.fetchedAt))),
  ];
}

/** Returns the facts of a session, and those of the trust it was opened under. */
export function sessionFacts(trust: Trust, session: SessionFacts): Fact[] {
  const { unit, alone, expires, openedAt, evidence, head } = session;
  const { facts } = unit;
  const key = fact(
    "key",
    "MLKEM768-X25519, AES-256-GCM, ECDSA P-256",
    fact("unit", unit.unit),
    fact("identity", facts.identity),
    fact("program", facts.group ? `role ${facts.role} of group ${facts.group}` : `task ${facts.task}`),
    fact("platform", facts.platform, fact("chip", facts.chip)),
    fact("certificate", `until ${time(unit.notAfter)}`),
    fact("policy head", head),
    fact("opened", time(openedAt)),
    fact("ends", time(expires)),
    alone ? fact("alone", "only the unit that opened the session has it") : undefined,
    evidence ? appraised("fresh evidence", evidence) : undefined,
  );
  return [...trustFacts(trust), key];
}
