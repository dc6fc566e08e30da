import assert from "node:assert/strict";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { test } from "node:test";
import { makeGateways, parseGateways } from "../src/gateways.js";
import { checkTarget, makeCall } from "../src/fetch.js";
import { reasonOf } from "../src/refusal.js";

test("URLs of gateways", () => {
  assert.deepEqual(parseGateways(["https://a.example", "http://127.0.0.1:80/", "https://a.example/base//"]), ["https://a.example", "http://127.0.0.1", "https://a.example/base"]);
  for (const bad of [[], ["a.example"], ["ftp://a.example"], ["https://u@a.example"], ["https://:p@a.example"], ["https://a.example/?x"], ["https://a.example/#x"], ["javascript:1"]]) {
    assert.throws(() => parseGateways(bad), (e) => reasonOf(e) === "request", String(bad));
  }
});

test("one gateway is used as long as it responds", async () => {
  const used: string[] = [];
  const broken = new Set<string>();
  const status = new Map<string, number>();
  const gateways = makeGateways(["https://a", "https://b"], async (input) => {
    const url = new URL(String(input)).hostname;
    used.push(url);
    if (broken.has(url)) throw new TypeError("fetch failed");
    return new Response(null, { status: status.get(url) ?? 200 });
  });
  for (let i = 0; i < 3; i++) await gateways.fetch("/x", {});
  const [first] = used;
  assert.deepEqual(new Set(used), new Set([first]));
  broken.add(first!);
  await assert.rejects(gateways.fetch("/x", {}), TypeError);
  await gateways.fetch("/x", {});
  const second = used.at(-1)!;
  assert.notEqual(second, first);
  broken.clear();
  status.set(second, 503);
  await gateways.fetch("/x", {});
  await gateways.fetch("/x", {});
  assert.equal(used.at(-1), first);
});

test("nothing of the platform is sent along, and no redirect is followed", async () => {
  let seen: RequestInit | undefined;
  const gateways = makeGateways(["https://a"], async (_, init) => {
    seen = init;
    return new Response();
  });
  await gateways.fetch("/x", { method: "POST", body: "x" });
  assert.deepEqual(seen, { credentials: "omit", referrerPolicy: "no-referrer", redirect: "manual", cache: "no-store", method: "POST", body: "x" });
});

test("a connection that the gateway closed is replaced, for bytes that are all there", async () => {
  for (const [code, body, requests] of [["UND_ERR_SOCKET", new Uint8Array(3), 4], ["ECONNRESET", undefined, 4], ["ECONNREFUSED", undefined, 1], ["ECONNRESET", new ReadableStream(), 1]] as const) {
    let n = 0;
    const gateways = makeGateways(["https://a"], async () => {
      n++;
      throw new TypeError("fetch failed", { cause: { code } });
    });
    await assert.rejects(gateways.fetch("/x", { method: "POST", ...(body && { body }) }), TypeError);
    assert.equal(n, requests, code);
  }
});

test("idle connections that a real server closes make no request fail", async () => {
  let served = 0;
  const server = createServer((request: IncomingMessage, response: ServerResponse) => {
    served++;
    request.resume().on("end", () => {
      response.end("x");
      response.on("close", () => request.socket.destroy()); // while the client keeps it for the next request
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const gateways = makeGateways([`http://127.0.0.1:${(server.address() as AddressInfo).port}`], (input, init) => fetch(input, init));
  for (let i = 0; i < 20; i++) assert.equal(await (await gateways.fetch("/x", { method: "POST", body: new Uint8Array(10) })).text(), "x");
  assert.ok(served >= 20);
  server.close();
  server.closeAllConnections();
});

test("a status of 421 arrives, and no redirect is followed", async () => {
  const server = createServer((request: IncomingMessage, response: ServerResponse) => {
    request.resume().on("end", () => response.writeHead(request.url === "/421" ? 421 : 302, { location: "/200" }).end());
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const gateways = makeGateways([`http://127.0.0.1:${(server.address() as AddressInfo).port}`], (input, init) => fetch(input, init));
  for (const status of [421, 302]) {
    const response = await gateways.fetch("/" + status, { method: "POST", body: new Uint8Array(10), signal: new AbortController().signal });
    assert.equal(response.status, status);
    await response.body?.cancel();
  }
  server.close();
  server.closeAllConnections();
});

test("what fetch takes becomes a call", async () => {
  const base = "https://chat.example";
  const call = (input: RequestInfo | URL, init?: RequestInit & { duplex?: "half" }) => makeCall(input, init, base, () => {});
  const text = async (body: { open(): AsyncIterable<Uint8Array> } | undefined) => {
    let all = "";
    for await (const piece of body?.open() ?? []) all += Buffer.from(piece).toString();
    return all;
  };
  const get = await call("/a?b=c#d");
  assert.deepEqual([get.request.method, get.request.authority, get.request.path, get.request.body, get.request.fields], ["GET", "chat.example", "/a?b=c", undefined, []]);
  assert.deepEqual((await call(new URL("https://CHAT.example:8443/x"))).request.authority, "chat.example:8443");
  const post = await call("https://chat.example/x", { method: "post", body: new URLSearchParams({ a: "b" }), headers: [["X-A", "1"], ["x-a", "2"]] });
  assert.deepEqual([post.request.method, await text(post.request.body), post.request.body!.length], ["POST", "a=b", 3]);
  assert.deepEqual(new Map(post.request.fields), new Map([["content-type", "application/x-www-form-urlencoded;charset=UTF-8"], ["x-a", "1, 2"]]));
  const given = new Request("https://chat.example/y", { method: "PUT", body: "small", headers: { "content-type": "a/b", cookie: "c=d" } });
  const put = await call(given);
  assert.deepEqual([put.request.method, await text(put.request.body), put.request.body!.repeatable], ["PUT", "small", true]);
  assert.ok(put.request.fields.some(([name]) => name === "cookie")); // as it was written
  const big = await call(new Request("https://chat.example/y", { method: "PUT", body: "x".repeat(40_000) }));
  assert.deepEqual([big.request.body!.repeatable, (await text(big.request.body)).length], [false, 40_000]);
  const empty = await call(new Request("https://chat.example/y", { method: "POST" }));
  assert.equal(empty.request.body, undefined);
  const generated = await call("/x", { method: "POST", body: (async function* () { yield Buffer.from("a"); yield Buffer.from("b"); })() as unknown as BodyInit });
  assert.deepEqual([generated.request.body!.length, await text(generated.request.body)], [undefined, "ab"]);
  const wrong = await call("/x", { method: "POST", body: (async function* () { yield "text"; })() as unknown as BodyInit });
  await assert.rejects(text(wrong.request.body), TypeError);
  const form = new FormData();
  form.append("file", new Blob(["content"]), "name");
  assert.match(await text((await call("/x", { method: "POST", body: form })).request.body), /content/);
  const controller = new AbortController();
  assert.equal((await call("/x", { signal: controller.signal })).request.signal, controller.signal);
  controller.abort("why");
  await assert.rejects(call("/x", { signal: controller.signal }), (e) => e === "why");
});

test("schemes and hosts", () => {
  const check = (url: string, serves: boolean, hosts = ["chat"]) => checkTarget(new URL(url), hosts, serves);
  check("https://chat/", true);
  check("https://other/", false, []);
  for (const [url, serves, reason] of [["http://chat/", true, "request"], ["https://other/", false, "name"]] as const) {
    assert.throws(() => check(url, serves), (e) => reasonOf(e) === reason);
  }
});
