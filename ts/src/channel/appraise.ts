/** The appraisal of fresh evidence of a unit: it must prove code that policy admits as the identity in the unit's certificate. */

import { type Appraiser, appraise, parseEvidence, type Result } from "../evidence/evidence.js";
import { admit, admitMember, inForce, type Policy } from "../policy/policy.js";
import { refuse } from "../refusal.js";
import type { Unit } from "./unit.js";

/**
 * Appraises fresh evidence of a unit under a policy, for report data that only the session's secret
 * gives: the reasons of appraisal and admission, and `identity` for another identity than the certificate's.
 */
export async function appraiseUnit(
  policy: Policy,
  evidence: Uint8Array,
  reportData: Uint8Array,
  unit: Unit,
  at: number,
  appraisers?: ReadonlyMap<string, Appraiser>,
): Promise<Result> {
  const result = await appraise({ evidence: parseEvidence(evidence), reportData, rules: policy.rules, at, ...(appraisers && { appraisers }) });
  const { facts } = unit;
  if (facts.group) {
    admitMember(policy, facts.group, facts.role, result, facts.party, at);
    const id = inForce(policy.groupStates.get(facts.group)!, at).id;
    if (id !== facts.identity) throw refuse("roster", "fresh evidence: group", facts.identity, id);
    return result;
  }
  const { release } = admit(policy, facts.task, result);
  if (release.id !== facts.identity) throw refuse("identity", "fresh evidence: identity", release.id, facts.identity);
  return result;
}
