import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";

const here = new URL("../../", import.meta.url).pathname;
const { sizes, integrity } = (await import(here + "tools/bundle.mjs")) as {
  sizes(entry: string): Promise<{ core: number; all: number; onDemand: Record<string, number> }>;
  integrity(code: string): string;
};

/** Bounds in bytes of gzip. The sources of tests are the same as those of the package. */
const bounds = { core: 60 << 10, all: 110 << 10 };

test("a page loads little", async (t) => {
  const measured = await sizes(here + "build/src/index.js");
  t.diagnostic(JSON.stringify(measured));
  assert.ok(measured.core <= bounds.core, `${measured.core} bytes at once, at most ${bounds.core}`);
  assert.ok(measured.all <= bounds.all, `${measured.all} bytes in all, at most ${bounds.all}`);
  for (const appraiser of ["soft", "snp", "dcap"]) {
    assert.ok(Object.keys(measured.onDemand).some((name) => name.startsWith(appraiser)), `${appraiser} is loaded on demand`);
  }
});

test("the digest for integrity attributes", () => {
  assert.equal(integrity("alert('Hello, world.');"), "sha384-H8BRh8j48O9oYatfu5AZzq6A9RINhZO5H16dQZngK7T62em8MUt1FLm52t+eX6xO");
});

test("nothing is built that is not published, and the lock file has digests and no addresses", () => {
  const manifest = JSON.parse(readFileSync(here + "package.json", "utf8")) as { dependencies: Record<string, string>; sideEffects: boolean; exports: object };
  assert.deepEqual(Object.keys(manifest.dependencies).sort(), ["@panva/hpke-noble", "hpke"]);
  assert.equal(manifest.sideEffects, false);
  const lock = JSON.parse(readFileSync(here + "package-lock.json", "utf8")) as { packages: Record<string, { integrity?: string; resolved?: string; hasInstallScript?: boolean }> };
  for (const [name, entry] of Object.entries(lock.packages)) {
    if (name === "") continue;
    assert.match(entry.integrity ?? "", /^sha512-/, name);
    assert.deepEqual([entry.resolved, entry.hasInstallScript], [undefined, undefined], name);
  }
});

test("the packed package is installed into an empty project, and its types are found", () => {
  const directory = mkdtempSync(join(tmpdir(), "package-"));
  const run = (command: string, args: string[], cwd: string) => execFileSync(command, args, { cwd, encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] });
  run(join(here, "node_modules/.bin/tsc"), ["-p", "tsconfig.json"], here);
  const [packed] = JSON.parse(run("npm", ["pack", "--json", "--ignore-scripts", "--pack-destination", directory], here)) as [{ filename: string; files: { path: string }[] }];
  const files = packed.files.map((f) => f.path);
  assert.ok(files.includes("README.md") && files.includes("LICENSE") && files.includes("dist/index.js") && files.includes("dist/index.d.ts"), files.join(" "));
  for (const path of files) assert.match(path, /^(package\.json|README\.md|LICENSE|dist\/[a-z0-9/]+\.(js|d\.ts))$/);

  const project = join(directory, "project");
  mkdirSync(project);
  writeFileSync(join(project, "package.json"), JSON.stringify({ name: "project", private: true, type: "module" }));
  run("npm", ["install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", join(directory, packed.filename.replace("@", "").replace("/", "-"))], project);
  writeFileSync(
    join(project, "use.ts"),
    `import { open, oneoff, OutcomeUnknown, type Session } from "@cohort/client";
     export async function use(): Promise<Session> {
       const session = await open({ gateway: "https://gateway.example", genesis: "00", task: "chat" });
       const fetchLike: typeof fetch = session.fetch;
       await fetchLike("/").catch((e: unknown) => e instanceof OutcomeUnknown);
       void oneoff;
       return session;
     }
     // @ts-expect-error: the pin is required
     void open({ gateway: "https://gateway.example" });`,
  );
  const options = { target: "es2022", module: "nodenext", moduleResolution: "nodenext", strict: true, lib: ["es2023", "dom", "dom.iterable", "dom.asynciterable"], types: [], skipLibCheck: false };
  writeFileSync(join(project, "tsconfig.json"), JSON.stringify({ compilerOptions: options, files: ["use.ts"] }));
  run(join(here, "node_modules/.bin/tsc"), ["-p", "."], project);
  const program = `import { open, reasonOf } from "@cohort/client";
    const no = (options) => open(options).then(() => "opened", (e) => reasonOf(e));
    console.log(await no({ gateway: "https://gateway.example", genesis: "11".repeat(32) }), await no({ genesis: "xx", task: "chat", gateway: "https://gateway.example" }));`;
  writeFileSync(join(project, "run.mjs"), program);
  assert.equal(run("node", ["run.mjs"], project).trim(), "request malformed");

  const description = process.env["COHORT_DEV"];
  if (description === undefined) return;
  const { gateway, genesis, task } = JSON.parse(readFileSync(description, "utf8")) as Record<string, string>;
  const pins = JSON.stringify({ gateway, genesis, task });
  const session = `import { open } from "@cohort/client";
    const session = await open(${pins});
    console.log((await (await session.fetch("/")).json()).service);
    await session.close();`;
  writeFileSync(join(project, "session.mjs"), session);
  assert.equal(run("node", ["session.mjs"], project).trim(), "chat");
});
