import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { History, parseSteps } from "../src/history.js";
import { text } from "../src/bytes.js";
import { parseDocument } from "../src/policy/document.js";
import { encodeRoster, parseRoster, parseStatement, type Roster } from "../src/policy/roster.js";
import { parseKeyLine, verifySshSignature } from "../src/policy/sshsig.js";
import { decodeToml, literal, parseDuration } from "../src/policy/toml.js";
import { fuzz } from "./fuzz.js";
import { digestOf, found, grouped, heard, keyLine, signed, statement } from "./policyhouse.js";
import { repository } from "./vectors.js";

const bytes = (source: string) => new TextEncoder().encode(source);
const read = (path: string) => new Uint8Array(readFileSync(`${repository}policy/${path}`));

const history = await heard(await found(), "north");
const signatures = ["ed25519", "ecdsa-256", "ecdsa-521", "sk-ed25519", "sk-ecdsa-256"].map((name) => {
  const source = text(read(`sshsig/testdata/vectors/signature/${name}.txt`));
  return source.slice(source.indexOf("\n\n") + 2);
});

fuzz(
  "TOML",
  ['a = 1\n[b]\nc = ["x", 2]\n[[d.e]]\nf = { g = true }\n', 'a = 2026-11-22T09:00:00Z # c\n"b c" = """\nx"""\n', "a.b = 0x1f\na.c = '''x'''\n", "__proto__ = { a = 1 }\n[__proto__.b]\n"].map(bytes),
  (input) => decodeToml(input),
  { accepted: (result) => literal(result as ReturnType<typeof decodeToml>) },
);
/** A policy that is as short as one can be, so that a run of all tests has time for many. */
const short = `schema = "cohort/policy/v1"
trust_domain = "a.b"
sequence = 2
previous = "${digestOf("1")}"
created = 2026-11-22T09:00:00Z
owners = { quorum = 1, approve_within = "1h", delay = "0s", keys = [ { name = "a", ssh = "${keyLine("ana")}" } ] }
platform.sgx = { roots = ["${digestOf("1")}"], chips = "any" }
authority = { root = "${digestOf("1")}", machines = "any", reference = [ { platform = "sgx", any = ["mrenclave", "mrsigner", "configid"], isvprodid = 1 } ] }
`;
fuzz("policy files", [bytes(short)], (input) => parseDocument(input));
fuzz("long policy files", [bytes(grouped), read("policyfile/testdata/vectors/policy/hardware.toml"), read("policyfile/testdata/vectors/policy/devices.toml")], (input) => parseDocument(input), { runs: 5000 });
fuzz("durations", ["1h30m", "0.5s", "-1.5ms", "100µs", "0"].map(bytes), (input) => parseDuration(new TextDecoder().decode(input)));
fuzz("lines of keys", ["ana", "ben"].map((name) => bytes(keyLine(name))), (input) => parseKeyLine(new TextDecoder().decode(input)));
fuzz("signatures", [signed("ana", "cohort-policy", bytes("m")), ...signatures].map(bytes), (input) => verifySshSignature(new TextDecoder().decode(input), "cohort-policy", bytes("m")));
fuzz("statements", [statement(history, "north"), statement(history, "south", { withdraws: true })].map(bytes), (input) => parseStatement(input));
fuzz("rosters", [encodeRoster(history.policy.groupStates.get("trial")!.roster), Uint8Array.from(Buffer.from(text(read("testdata/vectors/group/roster.hex")).trim(), "hex"))], (input) => parseRoster(input), {
  accepted: (result, input) => assert.deepEqual(encodeRoster(result as Roster), input),
});
fuzz("entries of pages", [bytes(JSON.stringify([{ policy: "YQ==", signatures: ["x", "y"] }, { policy: "", signatures: [], adopted: "z" }]))], (input) => {
  let parsed: unknown;
  try {
    parsed = JSON.parse(new TextDecoder().decode(input));
  } catch {
    return;
  }
  parseSteps(parsed);
});
fuzz("stored histories", [history.toBytes()], (input) => History.fromBytes(digestOf("1"), input));
