/** Measurements and reference values (docs/spec/evidence.md, section 3). */

import { type Bytes, digestText, equal, hex, text, utf8 } from "../bytes.js";
import { frame, unframe } from "../frame.js";
import { refuse } from "../refusal.js";

/** One register that names code or configuration. In a reference value `any` accepts every value. */
export interface Register {
  name: string;
  value: Uint8Array;
  any?: boolean;
}

/** All registers of one platform, in its order. */
export interface Measurement {
  platform: string;
  registers: readonly Register[];
}

/** A measurement that policy accepts. */
export type ReferenceValue = Measurement;

/** Returns the framing of a measurement, equal exactly when the measurements are. */
export function encodeMeasurement(m: Measurement): Bytes {
  return frame("cohort measurement v1", utf8(m.platform), ...m.registers.map((r) => frame("cohort register v1", utf8(r.name), utf8(r.any ? "any" : "is"), r.value)));
}

/** Parses the framing of a measurement or reference value. Every other form is refused as malformed. */
export function parseMeasurement(bytes: Uint8Array): Measurement {
  const [platform, ...fields] = unframe("cohort measurement v1", bytes);
  if (platform === undefined || fields.length === 0) throw refuse("malformed", "measurement: registers", 0, "at least one");
  return { platform: text(platform), registers: fields.map(parseRegister) };
}

function parseRegister(field: Uint8Array): Register {
  const parts = unframe("cohort register v1", field, 3).map((part) => part.slice());
  const name = text(parts[0]!), kind = text(parts[1]!), value = parts[2]!;
  if (kind !== "is" && kind !== "any") throw refuse("malformed", `measurement: register ${name}`, kind, "is or any");
  if (kind === "is") return { name, value };
  if (value.length > 0) throw refuse("malformed", `measurement: register ${name}`, "any with a value", "any alone");
  return { name, value, any: true };
}

/** Returns the text of a register's value for people. */
export function registerText(r: Register): string {
  if (r.any) return "any";
  if (r.value.length === 0) return "none";
  return r.value.length === 32 ? digestText(r.value) : hex(r.value);
}

/**
 * Refuses, with reason `measurement` and both values of the first register that differs, a
 * measurement that is not the reference value's.
 */
export function match(reference: ReferenceValue, got: Measurement): void {
  if (reference.platform !== got.platform) throw refuse("measurement", "measurement: platform", got.platform, reference.platform);
  if (reference.registers.length === 0 || reference.registers.length !== got.registers.length) {
    throw refuse("measurement", "measurement: number of registers", got.registers.length, reference.registers.length);
  }
  reference.registers.forEach((want, i) => {
    const have = got.registers[i]!;
    if (have.name !== want.name || have.any) throw refuse("measurement", "measurement: register", have.name, want.name);
    if (!want.any && !equal(have.value, want.value)) throw refuse("measurement", `measurement: ${want.name}`, registerText(have), registerText(want));
  });
}
