/**
 * Bundles the package for pages, with its dependencies.
 *
 *	node tools/bundle.mjs [DIR]     writes DIR/cohort.js, one file, and prints its digest for
 *	                                the attribute `integrity` (SRI)
 *
 * `sizes` measures what a page loads: the entry with what it always needs, and what it loads on demand.
 */

import { createHash } from "node:crypto";
import { mkdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { nodeResolve } from "@rollup/plugin-node-resolve";
import { rollup } from "rollup";
import { minify } from "terser";

const root = dirname(dirname(fileURLToPath(import.meta.url)));

/** Bundles an entry of compiled modules and returns its minified chunks. */
export async function chunks(entry, inline, plugins = []) {
  const onwarn = (warning) => {
    const theirs = warning.code === "CIRCULAR_DEPENDENCY" && warning.ids.every((id) => id.includes("node_modules"));
    if (!theirs) throw new Error(warning.message);
  };
  // Calls at import of a dependency that make what is not used here.
  const treeshake = { preset: "smallest", manualPureFunctions: ["QSF", "ecdhKem", "createKitchenSink"] };
  const plugin = nodeResolve({ browser: true, modulePaths: [join(root, "node_modules")] });
  const preserveEntrySignatures = inline ? "exports-only" : "allow-extension";
  const bundle = await rollup({ input: entry, preserveEntrySignatures, plugins: [...plugins, plugin], treeshake, onwarn });
  const { output } = await bundle.generate({ format: "es", inlineDynamicImports: inline, chunkFileNames: "[name].js" });
  await bundle.close();
  return Promise.all(
    output.map(async (chunk) => {
      const { code } = await minify(chunk.code, { module: true, compress: { passes: 3, unsafe_arrows: true, inline: 1, sequences: false }, ecma: 2022 });
      return { name: chunk.fileName, code, isEntry: chunk.isEntry, imports: chunk.imports };
    }),
  );
}

/** Returns the bytes, compressed by gzip, that a page loads at once and on demand. */
export async function sizes(entry = join(root, "dist/index.js")) {
  const all = await chunks(entry, false);
  const always = new Set();
  const add = (name) => {
    if (always.has(name)) return;
    always.add(name);
    all.find((c) => c.name === name).imports.forEach(add);
  };
  add(all.find((c) => c.isEntry).name);
  const size = (list) => list.reduce((sum, c) => sum + gzipSync(c.code, { level: 9 }).length, 0);
  const onDemand = all.filter((c) => !always.has(c.name));
  return {
    core: size(all.filter((c) => always.has(c.name))),
    all: size(all),
    onDemand: Object.fromEntries(onDemand.map((c) => [c.name, size([c])])),
  };
}

/** Returns the package as one module. */
export async function single(entry = join(root, "dist/index.js")) {
  return (await chunks(entry, true))[0].code;
}

/** Returns the value of the attribute `integrity`. */
export function integrity(code) {
  return "sha384-" + createHash("sha384").update(code).digest("base64");
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const directory = process.argv[2] ?? join(root, "dist");
  const code = await single();
  mkdirSync(directory, { recursive: true });
  writeFileSync(join(directory, "cohort.js"), code);
  const measured = await sizes();
  console.log(`cohort.js   ${integrity(code)}`);
  console.log(`gzip        ${measured.core} bytes at once, ${measured.all} with all appraisers`);
  for (const [name, size] of Object.entries(measured.onDemand)) console.log(`            ${size} ${name}`);
}
