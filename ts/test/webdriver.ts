/**
 * WebKitGTK's MiniBrowser, driven by plain WebDriver (W3C Recommendation, sections 8 to 13): one
 * session, one page, one function that runs in it.
 */

import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { type AddressInfo, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** The browser, of Debian's package libwebkit2gtk-4.1-0. */
export const miniBrowser = "/usr/lib/x86_64-linux-gnu/webkit2gtk-4.1/MiniBrowser";

/** Whether Debian's packages webkit2gtk-driver and xvfb are installed, which `make tools-full` installs. */
export function webKitInstalled(): boolean {
  return ["/usr/bin/WebKitWebDriver", "/usr/bin/xvfb-run", miniBrowser].every((path) => existsSync(path));
}

/** Opens a page in the browser, runs a function in it, and returns its result with the browser's version. */
export async function inWebKit<A, R>(url: string, run: (argument: A) => Promise<R>, argument: A): Promise<{ got: R; version: string }> {
  const port = await freePort();
  const folder = mkdtempSync(join(tmpdir(), "cohort-webkit-"));
  // A process group of its own, which ends as a whole: xvfb-run starts the X server and the driver.
  const driver = spawn("xvfb-run", ["-a", "WebKitWebDriver", `--port=${port}`], {
    detached: true,
    stdio: "ignore",
    env: { ...process.env, TMPDIR: folder, WEBKIT_DISABLE_SANDBOX_THIS_IS_DANGEROUS: "1" },
  });
  try {
    await listens(port, driver);
    const base = `http://127.0.0.1:${port}/session`;
    const options = { binary: miniBrowser, args: ["--automation"] };
    const session = await command<{ sessionId: string; capabilities: { browserVersion: string } }>("POST", base, {
      capabilities: { alwaysMatch: { browserName: "MiniBrowser", "webkitgtk:browserOptions": options, timeouts: { script: 120_000 } } },
    });
    const path = `${base}/${session.sessionId}`;
    try {
      await command("POST", path + "/url", { url });
      const script = `const [argument, done] = arguments; (${run.toString()})(argument).then((got) => done({ got }), (e) => done({ fault: String(e) + "\\n" + e.stack }));`;
      const result = await command<{ got: R; fault?: string }>("POST", path + "/execute/async", { script, args: [argument] });
      if (result.fault !== undefined) throw new Error(result.fault);
      return { got: result.got, version: session.capabilities.browserVersion };
    } finally {
      await command("DELETE", path);
    }
  } finally {
    process.kill(-driver.pid!, "SIGTERM");
    if (driver.exitCode === null && driver.signalCode === null) await once(driver, "exit");
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Sends a command of WebDriver and returns its value. */
async function command<T>(method: string, url: string, body?: unknown): Promise<T> {
  const response = await fetch(url, { method, body: body === undefined ? null : JSON.stringify(body), signal: AbortSignal.timeout(150_000) });
  const { value } = (await response.json()) as { value: T };
  if (!response.ok) throw new Error(`WebDriver ${method} ${new URL(url).pathname}: status ${response.status}, ${JSON.stringify(value)}`);
  return value;
}

/** Waits until the driver takes commands. */
async function listens(port: number, driver: ChildProcess): Promise<void> {
  for (let tries = 0; tries < 300 && driver.exitCode === null; tries++) {
    const up = await fetch(`http://127.0.0.1:${port}/status`).then((r) => r.ok, () => false);
    if (up) return;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  throw new Error("WebKitWebDriver does not listen");
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, "close");
  return port;
}
