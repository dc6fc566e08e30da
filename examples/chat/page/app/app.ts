/** The chat page: it checks a cluster in the browser, shows what it checked, and streams. */

import { open, reasonOf, Refusal, servedBy, storageIn, type Session } from "@cohort/client";
import { show } from "./tree.js";

const field = <T extends HTMLElement>(id: string) => document.getElementById(id) as T;
const state = field("state");
const summary = field("summary");
const tree = field("tree");
const log = field("log");
const connect = field<HTMLFormElement>("connect");
const ask = field<HTMLFormElement>("ask");
const prompt = field<HTMLTextAreaElement>("prompt");
const send = field<HTMLButtonElement>("send");
const stop = field<HTMLButtonElement>("stop");
const settings = field<HTMLDetailsElement>("settings");
const checks = field<HTMLDetailsElement>("checks");
const input = (id: string) => field<HTMLInputElement>(id);

let session: Session | undefined;
let asking: AbortController | undefined;

function say(kind: "idle" | "busy" | "good" | "bad", text: string): void {
  state.dataset["state"] = kind;
  state.textContent = text;
}

/** What went wrong, in words of the user. */
function explain(error: unknown): string {
  if (error instanceof Refusal) return `${error.rule}: got ${error.got}, want ${error.want} (${error.reason})`;
  return error instanceof Error ? error.message : String(error);
}

async function connectTo(): Promise<void> {
  say("busy", "Checking the cluster");
  for (const b of [send, field<HTMLButtonElement>("open")]) b.disabled = true;
  prompt.disabled = true;
  field("development").hidden = true;
  await session?.close().catch(() => undefined); // the former session ends with its key in any case
  session = undefined;
  const began = performance.now();
  try {
    const task = input("task").value.trim();
    session = await open({
      gateway: input("gateway").value.trim(),
      genesis: input("genesis").value.trim(),
      task,
      freshEvidence: input("evidence").checked,
      storage: storageIn(localStorage, `cohort ${input("genesis").value.trim()} ${task}`),
    });
    const info = session.info;
    show(tree, info.verified);
    summary.classList.remove("bad");
    summary.textContent = `All of it was checked in this page, in ${Math.round(performance.now() - began)} ms. The gateway forwards what it cannot read.`;
    field("development").hidden = !info.verified.some((f) => f.facts?.some((g) => g.name === "development"));
    say("good", "Verified and connected");
    settings.open = false;
    checks.open = !matchMedia("(max-width: 56rem)").matches; // there the conversation is below
    prompt.disabled = send.disabled = false;
    prompt.focus();
  } catch (error) {
    const reason = reasonOf(error);
    summary.classList.add("bad");
    checks.open = true;
    if (reason === undefined) {
      show(tree, []);
      summary.textContent = `Nothing was verified: ${explain(error)}`;
      say("bad", "Not reachable");
    } else {
      show(tree, [], { rule: error instanceof Refusal ? error.rule : reason, detail: explain(error) });
      summary.textContent = "This page sends nothing to this cluster.";
      say("bad", `Refused: ${reason}`);
    }
  } finally {
    field<HTMLButtonElement>("open").disabled = false;
  }
}

function item(className: string, text: string): HTMLLIElement {
  field("empty").hidden = true;
  const li = document.createElement("li");
  li.className = className;
  li.textContent = text;
  log.append(li);
  li.scrollIntoView({ block: "nearest" });
  return li;
}

/** Yields the data of server-sent events as they arrive. */
async function* events(body: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  const decoder = new TextDecoder();
  const reader = body.getReader();
  let rest = "";
  for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
    const lines = (rest + decoder.decode(piece.value, { stream: true })).split("\n");
    rest = lines.pop()!;
    for (const line of lines) if (line.startsWith("data: ")) yield line.slice(6);
  }
}

async function stream(text: string): Promise<void> {
  if (!session) return;
  item("mine", text);
  const reply = item("theirs", "");
  const written = document.createElement("span");
  reply.append(text.trimEnd(), written);
  asking = new AbortController();
  send.disabled = true;
  stop.hidden = false;
  let tokens = 0;
  try {
    const response = await session.fetch("/v1/chat/completions", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ model: "harbour", stream: true, max_tokens: 60, seed: Date.now() % 1000, messages: [{ role: "user", content: text }] }),
      signal: asking.signal,
    });
    if (!response.ok || !response.body) throw new Error(`the service returned status ${response.status}: ${(await response.text()).slice(0, 200)}`);
    let whole = false;
    for await (const data of events(response.body)) {
      if (data === "[DONE]") {
        whole = true;
        continue;
      }
      written.textContent += JSON.parse(data).choices[0].delta.content ?? "";
      tokens++;
      reply.scrollIntoView({ block: "nearest" });
    }
    if (!whole) throw new Error("the response ended before its last event");
    const foot = document.createElement("span");
    foot.className = "foot";
    foot.textContent = `${tokens - 2} tokens of unit ${servedBy(response)?.slice(0, 8) ?? "unknown"}`;
    reply.append(foot);
  } catch (error) {
    if (asking.signal.aborted) reply.append(" (stopped)");
    else item("error", `The response is incomplete: ${explain(error)}`);
  } finally {
    asking = undefined;
    stop.hidden = true;
    send.disabled = false;
    prompt.focus();
  }
}

connect.addEventListener("submit", (e) => {
  e.preventDefault();
  void connectTo();
});
ask.addEventListener("submit", (e) => {
  e.preventDefault();
  const text = prompt.value.trim();
  if (!text || asking) return;
  prompt.value = "";
  void stream(text);
});
prompt.addEventListener("keydown", (e) => {
  if (e.key === "Enter" && !e.shiftKey && !e.isComposing) {
    e.preventDefault();
    ask.requestSubmit();
  }
});
stop.addEventListener("click", () => asking?.abort());
addEventListener("pagehide", () => void session?.close().catch(() => undefined)); // the page is gone, and its key with it

const proposed = (await (await fetch("settings.json")).json()) as Record<string, string>;
for (const id of ["gateway", "genesis", "task"]) input(id).value = proposed[id] ?? "";
show(tree, []);
