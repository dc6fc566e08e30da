import assert from "node:assert/strict";
import { test } from "node:test";
import { encodeRequest, encodeResponse, type Fields, parseRequest, parseResponse, responseLength, varint } from "../src/bhttp.js";
import { concat, fromHex, hex } from "../src/bytes.js";
import { reasonOf } from "../src/refusal.js";
import { readMessage } from "./exchange.js";
import { fuzz } from "./fuzz.js";
import { vector } from "./vectors.js";

interface Messages {
  accepted: {
    name: string;
    kind: "request" | "response";
    message: string;
    head: { method?: string; scheme?: string; authority?: string; path?: string; status?: number; fields: Record<string, string[]>; length: number };
    content: string;
    trailer: Record<string, string[]>;
  }[];
  refused: { name: string; kind: "request" | "response"; message: string; reason: string }[];
}

const messages = vector<Messages>("internal/bhttp/testdata/vectors/messages.json");

function grouped(fields: Fields): Record<string, string[]> {
  const out: Record<string, string[]> = {};
  for (const [name, value] of fields) (out[name] ??= []).push(value);
  return out;
}

for (const c of messages.accepted) {
  test("accepted: " + c.name, async () => {
    const got = await readMessage(c.kind, fromHex(c.message));
    const { fields, length, ...control } = got.head;
    const shown = Object.fromEntries(Object.entries(control).filter(([, v]) => v !== ""));
    assert.deepEqual({ ...shown, fields: grouped(fields), length: length ?? -1 }, c.head);
    assert.equal(hex(got.content), c.content);
    assert.deepEqual(grouped(got.trailer), c.trailer);
  });
}

for (const c of messages.refused) {
  test("refused: " + c.name, async () => {
    await assert.rejects(readMessage(c.kind, fromHex(c.message)), (e) => reasonOf(e) === c.reason);
  });
}

test("a message is read alike wherever it is cut", async () => {
  for (const text of ["0340c800016801690001610162", "0140c800026869" + "040161016200", "0340c8000000"]) {
    const message = fromHex(text);
    const { rest } = parseResponse(message, true)!;
    const want = await readMessage("response", message);
    for (let at = message.length - rest.length; at <= message.length; at++) {
      const got = await readMessage("response", message.subarray(0, at), message.subarray(at));
      assert.deepEqual([hex(got.content), got.trailer], [hex(want.content), want.trailer]);
    }
  }
});

test("the head may go on in another piece only where more is to come", () => {
  const message = fromHex("00034745540568747470730161012f0801610162016101630000");
  for (let at = 0; at < message.length - 1; at++) assert.equal(parseRequest(message.subarray(0, at), false), undefined, `cut at ${at}`);
  assert.ok(parseRequest(message, false));
});

test("trailers are bounded", async () => {
  await assert.rejects(readMessage("response", fromHex("0140c80000"), varint((16 << 10) + 1)), (e) => reasonOf(e) === "too-large");
  await assert.rejects(readMessage("response", fromHex("0340c80000"), varint(2 ** 40)), (e) => reasonOf(e) === "too-large");
});

test("the length of a response is that of its framing, or of its field", () => {
  const of = (status: number, length: number | undefined, ...values: string[]) => ({ status, length, fields: values.map((v): [string, string] => ["content-length", v]) });
  assert.equal(responseLength(of(200, 5), "GET"), 5);
  assert.equal(responseLength(of(200, undefined, "7"), "GET"), 7);
  assert.equal(responseLength(of(200, 0, "7"), "HEAD"), 0);
  assert.equal(responseLength(of(304, 0, "7"), "GET"), 0);
  for (const bad of [of(200, 5, "6"), of(200, 5, "5", "5"), of(200, 5, "05"), of(200, undefined, "-1"), of(200, undefined, "1e3"), of(200, undefined, "")]) {
    assert.throws(() => responseLength(bad, "GET"), (e) => reasonOf(e) === "malformed");
  }
});

test("what HTTP/1.1 could not carry is not written", () => {
  const good = { method: "GET", scheme: "https", authority: "a", path: "/", fields: [] as Fields, length: 0 };
  for (const bad of [{ method: "" }, { path: "/ " }, { fields: [["a", "b\r\nc"]] as Fields }, { fields: [["a b", "c"]] as Fields }, { fields: [["a", "b "]] as Fields }, { fields: [["a", "ł"]] as Fields }]) {
    assert.throws(() => encodeRequest({ ...good, ...bad }), (e) => reasonOf(e) === "request");
  }
});

test("integers have one encoding", () => {
  const cases: [number, string][] = [[0, "00"], [63, "3f"], [64, "4040"], [16383, "7fff"], [16384, "80004000"], [2 ** 30 - 1, "bfffffff"], [2 ** 30, "c000000040000000"], [2 ** 53 - 1, "c01fffffffffffff"]];
  for (const [value, want] of cases) assert.equal(hex(varint(value)), want);
});

// What is read is written as the same.
fuzz("bhttp", messages.accepted.map((c) => fromHex(c.message)), async (input) => {
    const kind = (input[0] ?? 0) % 2 === 0 ? "request" : "response";
    const got = await readMessage(kind, input);
    const fields = got.head.fields.filter(([name]) => name !== "host");
    const head = "status" in got.head ? encodeResponse({ ...got.head, fields }) : encodeRequest({ ...got.head, fields });
    const body = got.head.length !== undefined ? got.content : concat(...(got.content.length > 0 ? [varint(got.content.length), got.content] : []), Uint8Array.of(0));
    const again = await readMessage(kind, concat(head, body));
    assert.deepEqual([again.head, hex(again.content)], [{ ...got.head, fields }, hex(got.content)]);
});

