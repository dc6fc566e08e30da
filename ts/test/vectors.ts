import { readFileSync } from "node:fs";
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";

/** The root of the repository, with a slash. Compiled tests are in ts/build/test. */
export const repository = dirname(fileURLToPath(import.meta.url)) + "/../../../";

/** Reads one of the project's vector files. */
export function vector<T>(path: string): T {
  return JSON.parse(readFileSync(repository + path, "utf8")) as T;
}
