/**
 * Fuzzing of parsers: a seeded mutator. A parser may return, or throw a Refusal; another error and
 * an input that takes a second of the processor are faults. A fault prints the seed of the run and the input.
 *
 *	COHORT_FUZZ_SECONDS=N   10,000,000 inputs, or as many as take N seconds (`make fuzz-ts`)
 *	COHORT_FUZZ_SEED=N      repeats a run
 */

import { randomBytes } from "node:crypto";
import { test } from "node:test";
import { Refusal } from "../src/refusal.js";

/** Changes of a run of the fuzzer. */
export interface FuzzOptions {
  /** The number of inputs in `npm test`; 100,000 without it. */
  runs?: number;
  /** Called for every input that is accepted, for a property such as parse and encode. What it throws is a fault. */
  accepted?: (result: unknown, input: Uint8Array) => void;
}

/** The most bytes of an input, and the most inputs that are kept as further seeds. */
const maxInput = 1 << 16, maxKept = 512;

/** Registers a test that runs a parser on mutated seeds. */
export function fuzz(name: string, seeds: readonly Uint8Array[], parse: (input: Uint8Array) => unknown, options: FuzzOptions = {}): void {
  test(`fuzz: ${name}`, async (t) => {
    const seed = Number(process.env["COHORT_FUZZ_SEED"] ?? randomBytes(4).readUInt32LE());
    const seconds = Number(process.env["COHORT_FUZZ_SECONDS"] ?? 0);
    const runs = seconds > 0 ? 10_000_000 : (options.runs ?? 100_000);
    const end = seconds > 0 ? performance.now() + seconds * 1000 : Infinity;
    // Before the inputs, so that a run that does not end shows its seed.
    t.diagnostic(`COHORT_FUZZ_SEED=${seed}, ${runs} inputs`);
    const random = generator(seed);
    const corpus = seeds.filter((s) => s.length <= maxInput);
    const given = corpus.length;
    if (given === 0) throw new Error(`fuzz: ${name}: no seed of at most ${maxInput} bytes`);
    const seen = new Set<string>();
    let run = 0;
    for (; run < runs && performance.now() < end; run++) {
      // The seeds themselves come first, and the empty input last.
      const input = run < given ? corpus[run]!.slice() : run === runs - 1 ? new Uint8Array(0) : mutate(corpus, random);
      const begin = process.cpuUsage();
      let outcome = "accepted";
      try {
        let result = parse(input);
        if (result instanceof Promise) result = await result;
        options.accepted?.(result, input);
      } catch (e) {
        if (!(e instanceof Refusal)) throw new Error(`fuzz: ${name}: COHORT_FUZZ_SEED=${seed}, input ${run}: ${Buffer.from(input).toString("hex")}`, { cause: e });
        outcome = `${e.reason} ${e.rule.replace(/[0-9]+/g, "N").slice(0, 120)}`;
      }
      // Time of the processor, for the machine may be busy with other things.
      const { user } = process.cpuUsage(begin);
      if (user > 1_000_000) throw new Error(`fuzz: ${name}: COHORT_FUZZ_SEED=${seed}, input ${run} took ${user} µs: ${Buffer.from(input).toString("hex")}`);
      // An input with an outcome that is new leads to others.
      if (!seen.has(outcome) && corpus.length < maxKept) {
        seen.add(outcome);
        corpus.push(input);
      }
    }
    if (run < runs) t.diagnostic(`${run} inputs in ${seconds} s`);
  });
}

/** Returns a generator of numbers from 0 to n-1, the same for the same seed (mulberry32). */
export function generator(seed: number): (n: number) => number {
  let state = seed >>> 0;
  return (n) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let x = Math.imul(state ^ (state >>> 15), state | 1);
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
    return Math.floor((((x ^ (x >>> 14)) >>> 0) / 2 ** 32) * n);
  };
}

/** Returns one of the seeds after one to four changes. */
export function mutate(corpus: readonly Uint8Array[], random: (n: number) => number): Uint8Array {
  let bytes: Uint8Array = corpus[random(corpus.length)]!.slice();
  for (let changes = 1 + random(4); changes > 0; changes--) bytes = change(bytes, corpus, random);
  return bytes.slice(0, maxInput);
}

function change(bytes: Uint8Array, corpus: readonly Uint8Array[], random: (n: number) => number): Uint8Array {
  const at = random(bytes.length + 1);
  const few = () => 1 + random(random(4) === 0 ? 64 : 4);
  if (bytes.length === 0) return Uint8Array.of(random(256));
  switch (random(10)) {
    case 0: // one bit
    case 1:
      bytes[at % bytes.length]! ^= 1 << random(8);
      return bytes;
    case 2: // one byte
      bytes[at % bytes.length] = [0, 0xff, 0x7f, 0x80, 0x20, 0x22, random(256)][random(7)]!;
      return bytes;
    case 3: // a cut end
      return bytes.slice(0, random(2) === 0 ? at : Math.max(0, bytes.length - few()));
    case 4: // bytes inserted
      return join(bytes.subarray(0, at), Uint8Array.from({ length: few() }, () => random(256)), bytes.subarray(at));
    case 5: // text inserted
      return join(bytes.subarray(0, at), Buffer.from(tokens[random(tokens.length)]!), bytes.subarray(at));
    case 6: // bytes removed
      return join(bytes.subarray(0, at), bytes.subarray(at + few()));
    case 7: // bytes twice
      return join(bytes.subarray(0, at), bytes.subarray(Math.max(0, at - few())));
    case 8: { // a length
      const size = [1, 2, 4, 8][random(4)]!;
      if (bytes.length < size) return bytes;
      const from = random(bytes.length - size + 1);
      const value = BigInt([0, 1, size, bytes.length - from - size, bytes.length, random(1 << 16), 0x7fffffff, 0xffffffff][random(8)]! + random(3) - 1);
      const little = random(2) === 0;
      for (let i = 0; i < size; i++) bytes[from + (little ? i : size - 1 - i)] = Number((value >> BigInt(8 * i)) & 0xffn);
      return bytes;
    }
    default: { // the end of another seed
      const other = corpus[random(corpus.length)]!;
      return join(bytes.subarray(0, at), other.subarray(random(other.length + 1)));
    }
  }
}

/** Texts that mean something in some format. */
const tokens = ['"', "'", "\\", "{", "}", "[", "]", ",", ":", "=", "#", "\n", "\r\n", "\0", " ", ".", "-", "0", "-1", "1e999", "9007199254740993", "null", "true", '"""', "[[", "__proto__", "constructor", "\ufeff", "é", "\u2028", "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----", "=="];

function join(...parts: Uint8Array[]): Uint8Array {
  return new Uint8Array(Buffer.concat(parts));
}
