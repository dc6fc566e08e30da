import assert from "node:assert/strict";
import { test } from "node:test";
import { KEM_MLKEM768_X25519 } from "@panva/hpke-noble";
import { AEAD_AES_128_GCM, AEAD_AES_256_GCM, AEAD_EXPORT_ONLY, CipherSuite, KDF_HKDF_SHA256, KEM_DHKEM_X25519_HKDF_SHA256, type KeyPair } from "hpke";
import { concat, fromHex, hex, own, utf8 } from "../src/bytes.js";
import { Aead, readPublicKey, receive, sendTo, type Suite } from "../src/hpke.js";

/** The examples of RFC 9180, appendices A.1.1 and A.7.1, in base mode: private and public key of the receiver are those of the RFC. */
const examples = [
  {
    name: "A.1.1", aead: Aead.aes128, key: "4612c550263fc8ad58375df3f557aac531d26850903e55a9f23f21d8534e8ac8",
    enc: "37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431",
    sealed: "f938558b5d72f1a23810b4be2ab4f84331acc02fc97babc53a52ae8218a355a96d8770ac83d07bea87e13c512a",
    exports: ["3853fe2b4035195a573ffc53856e77058e15d9ea064de3e59f4961d0095250ee", "2e8f0b54673c7029649d4eb9d5e33bf1872cf76d623ff164ac185da9e88c21a5", "e9e43065102c3836401bed8c3c3c75ae46be1639869391d62c61f1ec7af54931"],
  },
  {
    name: "A.7.1", aead: Aead.exportOnly, key: "33d196c830a12f9ac65d6e565a590d80f04ee9b19c83c87f2c170d972a812848",
    enc: "e5e8f9bfff6c2f29791fc351d2c25ce1299aa5eaca78a757c0b4fb4bcd830918", sealed: "",
    exports: ["7a36221bd56d50fb51ee65edfd98d06a23c4dc87085aa5866cb7087244bd2a36", "d5535b87099c6c3ce80dc112a2671c6ec8e811a2f284f948cec6dd1708ee33f0", "ffaabc85a776136ca0c378e5d084c9140ab552b78f039d2e8775f26efff4c70e"],
  },
] as const;

for (const e of examples) {
  test("RFC 9180, " + e.name, async () => {
    const suite: Suite = { kem: KEM_DHKEM_X25519_HKDF_SHA256(), aead: e.aead };
    const privateKey = await suite.kem.DeserializePrivateKey(fromHex(e.key), true);
    const jwk = await crypto.subtle.exportKey("jwk", privateKey as CryptoKey);
    const publicKey = await readPublicKey(suite, new Uint8Array(Buffer.from(jwk.x!, "base64url")));
    const context = await receive(suite, { privateKey, publicKey }, fromHex(e.enc), utf8("Ode on a Grecian Urn"));
    for (const [i, label] of [new Uint8Array(0), Uint8Array.of(0), utf8("TestContext")].entries()) {
      assert.equal(hex(await context.export(label, 32)), e.exports[i]);
    }
    if (e.sealed === "") return assert.deepEqual([context.key.length, context.nonce.length], [0, 0]);
    const key = await crypto.subtle.importKey("raw", context.key, "AES-GCM", false, ["decrypt"]);
    const opened = await crypto.subtle.decrypt({ name: "AES-GCM", iv: context.nonce, additionalData: own(utf8("Count-0")) }, key, fromHex(e.sealed));
    assert.equal(Buffer.from(opened).toString(), "Beauty is truth, truth beauty");
  });
}

test("both sides derive what the library's suites derive", async () => {
  const aeads = [[Aead.aes128, AEAD_AES_128_GCM], [Aead.aes256, AEAD_AES_256_GCM], [Aead.exportOnly, AEAD_EXPORT_ONLY]] as const;
  for (const factory of [KEM_MLKEM768_X25519, KEM_DHKEM_X25519_HKDF_SHA256]) {
    for (const [aead, library] of aeads) {
      const suite: Suite = { kem: factory(), aead };
      const other = new CipherSuite(factory, KDF_HKDF_SHA256, library);
      const pair = (await suite.kem.GenerateKeyPair(false)) as KeyPair;
      const info = crypto.getRandomValues(new Uint8Array(100));
      const { enc, context } = await sendTo(suite, pair.publicKey, info);
      const theirs = await other.SetupRecipient(pair, enc, { info });
      const label = utf8("a label");
      assert.equal(hex(await context.export(label, 100)), hex(await theirs.Export(label, 100)));
      assert.equal(hex(await (await receive(suite, pair, enc, info)).export(label, 100)), hex(await context.export(label, 100)));
      const sent = await other.SetupSender(pair.publicKey, { info });
      const ours = await receive(suite, pair, sent.encapsulatedSecret, info);
      assert.equal(hex(await ours.export(label, 32)), hex(await sent.ctx.Export(label, 32)));
      if (aead === Aead.exportOnly) continue;
      const key = await crypto.subtle.importKey("raw", ours.key, "AES-GCM", false, ["decrypt"]);
      const sealed = await sent.ctx.Seal(utf8("text"), utf8("data"));
      const opened = await crypto.subtle.decrypt({ name: "AES-GCM", iv: ours.nonce, additionalData: own(utf8("data")) }, key, own(sealed));
      assert.equal(hex(new Uint8Array(opened)), hex(utf8("text")));
    }
  }
});

test("keys and encapsulated secrets of other sizes are refused", async () => {
  const suite: Suite = { kem: KEM_MLKEM768_X25519(), aead: Aead.exportOnly };
  const pair = (await suite.kem.GenerateKeyPair(false)) as KeyPair;
  const bytes = await suite.kem.SerializePublicKey(pair.publicKey);
  const { enc } = await sendTo(suite, await readPublicKey(suite, bytes), utf8("info"));
  for (const given of [new Uint8Array(0), bytes.subarray(1), concat(bytes, Uint8Array.of(0))]) await assert.rejects(readPublicKey(suite, given), RangeError);
  for (const given of [new Uint8Array(0), enc.subarray(1), concat(enc, Uint8Array.of(0))]) await assert.rejects(receive(suite, pair, given, utf8("info")), RangeError);
});
