/** The tree of what was verified, for people: one branch for each question that they have. */

import type { Fact } from "@cohort/client";

/** A branch: its title, the question that it answers, and its facts. */
interface Branch {
  title: string;
  question: string;
  /** Names of the facts at the top of the tree. */
  of: string[];
  /** The facts in one or two sentences. */
  sentence(find: Find): string;
}

/** Returns the values of all facts with a name, below one of the others where `under` is given. */
type Find = (name: string, under?: string) => string[];

const platforms: Readonly<Record<string, string>> = {
  soft: "the simulated TEE for development",
  snp: "AMD SEV-SNP",
  "azure-snp": "AMD SEV-SNP on Azure",
  tdx: "Intel TDX",
  sgx: "Intel SGX",
  nitro: "AWS Nitro",
  tpm: "a machine with a TPM",
};

const platform = (name = "") => platforms[name] ?? name;
const time = (iso = "") => iso.replace("T", " ").replace(/(:\d\d)?(\.\d+)?Z$/, " UTC");

const branches: readonly Branch[] = [
  {
    title: "Hardware",
    question: "What isolates the program from the machine's operator?",
    of: ["hardware"],
    sentence: (find) => {
      const [fresh] = find("fresh evidence");
      const unit = fresh ? `proved itself for this session on ${platform(fresh)}` : `has a certificate for ${platform(find("platform", "key")[0])}`;
      return `The authority proved itself on ${platform(find("authority", "hardware")[0])}. The unit ${unit}.`;
    },
  },
  {
    title: "Code",
    question: "Which program can read what you send?",
    of: ["code"],
    sentence: (find) => `Only ${find("identity", "code").join(", or ")}, as measured below.`,
  },
  {
    title: "Policy",
    question: "Who decided that, and since when?",
    of: ["policy"],
    sentence: (find) => `${find("owners")[0]} owners must sign: ${find("owner").join(", ")}. This policy, ${find("policy")[0]}, is of ${time(find("created")[0])}.`,
  },
  {
    title: "Key",
    question: "Which key encrypts this session?",
    of: ["key"],
    sentence: (find) => `A new one, agreed on with unit ${find("unit", "key")[0]?.slice(0, 8)}. It ends at ${time(find("ends")[0])}.`,
  },
  {
    title: "Cluster",
    question: "Why may other units serve this session?",
    of: ["authority"],
    sentence: () => "One authority, whose root the policy names, attests each of them, and gives keys of this session to units of this code alone.",
  },
];

/** Which branch a refusal belongs to, by the rule that was broken. */
const faults: readonly [RegExp, string][] = [
  [/evidence|platform|tcb|chip|debug|authority's/i, "Hardware"],
  [/measure|identity|reference/i, "Code"],
  [/policy|history|quorum|owner|genesis|sequence|head/i, "Policy"],
  [/session|leaf|certificate|chain|signature/i, "Key"],
];

/** Returns the title of the branch that a refusal belongs to. */
export function branchOf(rule: string): string {
  return faults.find(([pattern]) => pattern.test(rule))?.[1] ?? "Cluster";
}

function element<K extends keyof HTMLElementTagNameMap>(tag: K, className = "", text = ""): HTMLElementTagNameMap[K] {
  const e = document.createElement(tag);
  if (className) e.className = className;
  if (text) e.textContent = text;
  return e;
}

/** Shows a value. Digests are shortened to both ends, which people can compare; the title has all of it. */
function value(dd: HTMLElement, text: string): void {
  dd.textContent = time(text.replace(/\b(sha256:)?([0-9a-f]{10})[0-9a-f]{40,}([0-9a-f]{6})\b/g, "$1$2…$3"));
  if (/…/.test(dd.textContent)) dd.title = text;
  if (/[0-9a-f]{16}|sha256:/.test(text)) dd.classList.add("digest");
}

/** Appends a fact and those below it as rows of a list. */
function rows(list: HTMLDListElement, fact: Fact): void {
  if (fact.value !== undefined) {
    list.append(element("dt", "", fact.name));
    const dd = element("dd");
    value(dd, fact.value);
    list.append(dd);
  }
  for (const below of fact.facts ?? []) rows(list, below);
}

/** Yields a fact and all below it. */
function* all(facts: readonly Fact[]): Generator<Fact> {
  for (const f of facts) {
    yield f;
    yield* all(f.facts ?? []);
  }
}

function finder(facts: readonly Fact[]): Find {
  return (name, under) => {
    const from = under === undefined ? facts : (facts.find((f) => f.name === under)?.facts ?? []);
    return [...all(from)].filter((f) => f.name === name && f.value !== undefined).map((f) => f.value!);
  };
}

/** Shows what was verified, or where verification was refused. */
export function show(tree: HTMLElement, facts: readonly Fact[], refused?: { rule: string; detail: string }): void {
  const fault = refused && branchOf(refused.rule);
  tree.replaceChildren(
    ...branches.map((b) => {
      const found = facts.filter((f) => b.of.includes(f.name));
      const warnings = [...all(found)].filter((f) => f.warning);
      const verdict = b.title === fault ? "bad" : found.length === 0 ? "open" : warnings.length > 0 ? "warn" : "good";
      const section = element("section", `branch ${verdict}`);
      const title = element("h3", "", b.title);
      title.append(" ", element("span", "verdict", { good: "verified", warn: "verified, with a warning", bad: "refused", open: "not verified" }[verdict]));
      section.append(title, element("p", "question", b.question));
      if (verdict === "bad") section.append(element("p", "fault", refused!.detail));
      if (found.length === 0) return section;
      section.append(element("p", "", b.sentence(finder(facts))));
      for (const w of warnings) section.append(element("p", "warning", `${w.name}: ${w.value}`));
      const details = element("details");
      const list = element("dl");
      for (const f of found) rows(list, f);
      details.append(element("summary", "", `Details of ${b.title.toLowerCase()}`), list);
      section.append(details);
      return section;
    }),
  );
}
