import assert from "node:assert/strict";
import { test } from "node:test";
import { fromHex } from "../src/bytes.js";
import { isSignedBy, parseCertificate, verifySignedBy } from "../src/x509.js";
import { vector } from "./vectors.js";

const { certificates } = vector<{ certificates: Record<string, string> }>("identity/testdata/vectors/identity.json");
const certificate = (name: string) => parseCertificate(fromHex(certificates[name]!));

test("certificates of an authority", async () => {
  for (const name of Object.keys(certificates)) certificate(name);
  const root = certificate("authority root");
  assert.equal(root.isCA, true);
  assert.equal(root.pathLength, 1);
  await verifySignedBy(root, root);
  await verifySignedBy(certificate("authority"), root);
  await verifySignedBy(certificate("cross"), root);
  await verifySignedBy(certificate("unit of scoring"), certificate("cross"));
  await assert.rejects(verifySignedBy(certificate("unit of keys"), certificate("cross")), { reason: "chain" });
  const leaf = certificate("authority");
  leaf.tbs = leaf.tbs.slice();
  leaf.tbs[20]! ^= 1;
  assert.equal(await isSignedBy(leaf, root.key), false);
});
