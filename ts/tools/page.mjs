/**
 * Builds the script of the chat page, with this package, into the folder that the page's program
 * embeds: `npm run page`. The files are part of the repository, so that the program is built
 * without npm; with --check it compares them, and writes nothing.
 */

import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { chunks } from "./bundle.mjs";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const page = join(root, "../examples/chat/page");
const compiled = mkdtempSync(join(tmpdir(), "page-"));
try {
  execFileSync(join(root, "node_modules/.bin/tsc"), ["-p", join(root, "tsconfig.page.json"), "--outDir", compiled], { stdio: "inherit" });
  const client = { name: "client", resolveId: (name) => (name === "@cohort/client" ? join(compiled, "ts/src/index.js") : null) };
  const files = await chunks(join(compiled, "examples/chat/page/app/app.js"), false, [client]);
  const differ = files.filter(({ name, code }) => {
    const path = join(page, "static", name);
    if (process.argv[2] === "--check") return readFileSync(path, "utf8") !== code;
    writeFileSync(path, code);
    return false;
  });
  if (differ.length > 0) {
    console.error(`examples/chat/page/static differs from what its source makes: ${differ.map((f) => f.name).join(", ")}; run \`npm run page\` in ts/`);
    process.exitCode = 1;
  }
} finally {
  rmSync(compiled, { recursive: true });
}
