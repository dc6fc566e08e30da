/**
 * SSH signatures (docs/spec/policy.md, section 3; PROTOCOL.sshsig of OpenSSH) of the keys that owners
 * and parties may have. Every input has one encoding, and a key of small order is refused wherever
 * a key is read.
 */

import { type Bytes, base64, concat, digestText, equal, fromBase64, hex, own, sha256, sha512, utf8 } from "../bytes.js";
import { type Curve as Shape, curves as shape, onCurve } from "../curve.js";
import { framedField } from "../frame.js";
import { refuse } from "../refusal.js";
import type { Digest } from "./digest.js";

/** What a signature is for. */
export type Namespace = "cohort-policy" | "cohort-cancel" | "cohort-approve" | "cohort-withdraw" | "cohort-backup";

/** A public key that owners and parties may have. */
export interface SshKey {
  /** Such as `ssh-ed25519`. */
  type: string;
  /** Its wire form. Two keys are equal when these bytes are. */
  blob: Uint8Array;
  /** The curve and the point in hexadecimal digits. A key and its form for hardware have the same. */
  id: string;
  /** The point: 32 bytes for Ed25519, else uncompressed. */
  point: Uint8Array;
}

/** The most bytes of one armored signature. */
const maxSignature = 8192;

/** The only application of hardware keys: OpenSSH's default. */
const application = "ssh:";

interface Curve extends Shape {
  /** In WebCrypto. */
  name: string;
  hash: string;
}

/** The curves by their names in SSH. */
const curves: Readonly<Record<string, Curve>> = {
  nistp256: { ...shape["P-256"], name: "P-256", hash: "SHA-256" },
  nistp384: { ...shape["P-384"], name: "P-384", hash: "SHA-384" },
  nistp521: { ...shape["P-521"], name: "P-521", hash: "SHA-512" },
};

/** The types that owners may have, with the curve of each. */
const types: Readonly<Record<string, string>> = {
  "ssh-ed25519": "ed25519",
  "ecdsa-sha2-nistp256": "nistp256",
  "ecdsa-sha2-nistp384": "nistp384",
  "ecdsa-sha2-nistp521": "nistp521",
  "sk-ssh-ed25519@openssh.com": "ed25519",
  "sk-ecdsa-sha2-nistp256@openssh.com": "nistp256",
};

/** Types of SSH that owners may not have. Any other type is no key. */
const otherType = /^(?:ssh-rsa|ssh-dss|ssh-mldsa-.*|.*-cert-v01@openssh\.com)$/;

/**
 * The y coordinates, little-endian and without the bit for the sign of x, of the eight points of
 * edwards25519 whose order divides 8, with second encodings of two of them. Under such a key
 * some signatures verify without a private key.
 */
const smallOrder = [
  "0000000000000000000000000000000000000000000000000000000000000000",
  "0100000000000000000000000000000000000000000000000000000000000000",
  "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
  "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
  "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
  "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
  "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
];

/** Returns the SHA-256 of a key's wire form: its fingerprint as `ssh-keygen -l` prints it, as a digest. */
export async function keyDigest(key: SshKey): Promise<Digest> {
  return digestText(await sha256(key.blob));
}

/** Reads the line of a .pub file: type, base64, and an optional comment. */
export function parseKeyLine(line: string): SshKey {
  const [type, digits] = line.split(" ", 2);
  if (type === undefined || digits === undefined) throw refuse("malformed", "SSH key", line.slice(0, 80), "the line of a .pub file");
  const key = parseKey(fromBase64(digits));
  if (key.type !== type) throw refuse("malformed", "SSH key: type", type, key.type);
  return key;
}

/** Parses the wire form of a public key that an owner may have. */
function parseKey(blob: Uint8Array): SshKey {
  const malformed = refuse("malformed", "SSH key", `${hex(blob.subarray(0, 16))}, of ${blob.length} bytes`, "a public key");
  // Certificates contain more than strings, so the type is read first.
  const type = blob.length < 4 ? "" : ascii(blob.subarray(4, 4 + blob[3]!));
  if (otherType.test(type) && equal(blob.subarray(0, 3), new Uint8Array(3))) throw refuse("signature", "SSH key: type", type, Object.keys(types).join(", "));
  const fields = readStrings(blob);
  if (fields === undefined || fields.length === 0 || ascii(fields[0]!) !== type) throw malformed;
  const curveName = Object.hasOwn(types, type) ? types[type]! : "";
  const hardware = type.startsWith("sk-");
  const edwards = curveName === "ed25519";
  if (curveName === "" || fields.length !== (edwards ? 2 : 3) + (hardware ? 1 : 0)) throw malformed;
  if (!edwards && ascii(fields[1]!) !== curveName) throw malformed;
  const point = fields[edwards ? 1 : 2]!;
  if (edwards ? point.length !== 32 : !onCurve(curves[curveName]!, point)) throw malformed;
  if (hardware && ascii(fields[fields.length - 1]!) !== application) {
    throw refuse("signature", "SSH key: application", ascii(fields[fields.length - 1]!), application);
  }
  if (edwards) checkEdwardsPoint(point);
  return { type, blob, point, id: `${curveName} ${hex(point)}` };
}

/** Refuses an Ed25519 key of small order, and one in a second encoding (RFC 8032, section 5.1.3). */
function checkEdwardsPoint(point: Uint8Array): void {
  const y = point.slice();
  y[31]! &= 0x7f;
  if (smallOrder.includes(hex(y))) throw refuse("signature", "SSH key: order of the point", `small: ${hex(point)}`, "a key that ssh-keygen makes");
  const reduced = y[31] !== 0x7f || y[0]! < 0xed || y.subarray(1, 31).some((b) => b !== 0xff);
  if (!reduced) throw refuse("signature", "SSH key: coordinate", `not below 2^255 - 19: ${hex(point)}`, "its one encoding");
}

/**
 * Verifies an armored signature over a message and returns the key that made it. It does not show
 * whose key it is. Another encoding is refused as `malformed` or `too-large`; another namespace,
 * hash or kind of key, and a signature that does not verify, as `signature`.
 */
export async function verifySshSignature(armored: string, namespace: Namespace, message: Uint8Array): Promise<SshKey> {
  if (armored.length > maxSignature) throw refuse("too-large", "signature: size in bytes", armored.length, maxSignature);
  const blob = openArmor(armored);
  const magic = utf8("SSHSIG");
  const fields = blob.length > 10 && ascii(blob.subarray(0, 6)) === "SSHSIG" ? readStrings(blob.subarray(10)) : undefined;
  if (fields === undefined || fields.length !== 5) {
    throw refuse("malformed", "signature: envelope", `${hex(blob.subarray(0, 16))}, of ${blob.length} bytes`, "an SSH signature");
  }
  const [publicKey, givenNamespace, reserved, hash, value] = fields as [Uint8Array, Uint8Array, Uint8Array, Uint8Array, Uint8Array];
  const version = new DataView(blob.buffer, blob.byteOffset + 6, 4).getUint32(0);
  if (version !== 1 || reserved.length > 0) throw refuse("malformed", "signature: version", version, 1);
  if (ascii(givenNamespace) !== namespace) throw refuse("signature", "signature: namespace", ascii(givenNamespace), namespace);
  if (ascii(hash) !== "sha512") throw refuse("signature", "signature: hash", ascii(hash), "sha512");
  const key = parseKey(publicKey);
  const signature = openSignature(key, value);
  const digest = await sha512(message);
  const covered = concat(magic, framedField(utf8(namespace)), framedField(new Uint8Array(0)), framedField(utf8("sha512")), framedField(digest));
  if (!(await verify(key, signature, covered))) {
    throw refuse("signature", `signature: by ${await keyDigest(key)}`, "one that does not verify", "a signature over these bytes");
  }
  return key;
}

const armorBegin = "-----BEGIN SSH SIGNATURE-----\n";
const armorEnd = "-----END SSH SIGNATURE-----\n";

/** Decodes the armor: base64 in lines of 70 between two marks. */
function openArmor(armored: string): Bytes {
  const malformed = () => refuse("malformed", "signature: armor", `${JSON.stringify(armored.slice(0, 40))}, of ${armored.length} bytes`, "the output of ssh-keygen -Y sign, whole");
  let blob: Bytes;
  try {
    blob = fromBase64(armored.slice(armorBegin.length, -armorEnd.length).replaceAll("\n", ""));
  } catch {
    throw malformed();
  }
  if (armorBegin + base64(blob).replace(/.{1,70}/g, "$&\n") + armorEnd !== armored) throw malformed();
  return blob;
}

/** A signature of a key, in the form that WebCrypto verifies, and what a hardware key adds. */
interface OpenedSignature {
  /** r and s at the size of the curve, or the 64 bytes of Ed25519; undefined where no signature has the numbers. */
  raw: Uint8Array | undefined;
  /** Flags in one byte and a counter in four, of hardware keys. */
  rest: Uint8Array;
}

function openSignature(key: SshKey, value: Uint8Array): OpenedSignature {
  const malformed = refuse("malformed", "signature: value", `${hex(value.subarray(0, 16))}, of ${value.length} bytes`, `a signature of ${key.type}`);
  const restSize = key.type.startsWith("sk-") ? 5 : 0;
  const fields = readStrings(value.subarray(0, value.length - restSize));
  const rest = value.subarray(value.length - restSize);
  if (fields === undefined || fields.length !== 2 || ascii(fields[0]!) !== key.type) throw malformed;
  const curve = curveOf(key);
  if (curve === undefined) return { raw: fields[1]!, rest };
  const numbers = readStrings(fields[1]!);
  if (numbers === undefined || numbers.length !== 2 || !numbers.every(isShortest)) throw malformed;
  const raw = numbers.map((n) => fixedSize(n, curve.size));
  return { raw: raw[0] && raw[1] && concat(raw[0], raw[1]), rest };
}

function curveOf(key: SshKey): Curve | undefined {
  return curves[types[key.type]!];
}

/** Reports whether bytes are the shortest encoding of a number in two's complement (RFC 4251, mpint). */
function isShortest(n: Uint8Array): boolean {
  const [first, second = 0] = n;
  if (first === 0) return n.length > 1 && second >= 0x80;
  return !(first === 0xff && n.length > 1 && second >= 0x80);
}

/** Returns a positive number at a fixed size, undefined for others. */
function fixedSize(n: Uint8Array, size: number): Uint8Array | undefined {
  if (n.length === 0 || n[0]! >= 0x80) return undefined;
  const digits = n[0] === 0 ? n.subarray(1) : n;
  return digits.length > size ? undefined : concat(new Uint8Array(size - digits.length), digits);
}

async function verify(key: SshKey, signature: OpenedSignature, covered: Uint8Array): Promise<boolean> {
  let message = covered;
  if (signature.rest.length > 0) {
    if ((signature.rest[0]! & 1) === 0) throw refuse("signature", "signature: user presence", "no flag", "the flag that the key was touched");
    message = concat(await sha256(utf8(application)), signature.rest, await sha256(covered));
  }
  if (signature.raw === undefined) return false;
  const curve = curveOf(key);
  const algorithm = curve === undefined ? { name: "Ed25519" } : { name: "ECDSA", namedCurve: curve.name, hash: curve.hash };
  try {
    const imported = await crypto.subtle.importKey("raw", own(key.point), algorithm, false, ["verify"]);
    return await crypto.subtle.verify(algorithm, imported, own(signature.raw), own(message));
  } catch (e) {
    // A point that is on no curve cannot be imported: such a key signs nothing.
    if (!(e instanceof DOMException) || e.name !== "NotSupportedError") return false;
    throw refuse("internal", `signature: algorithm ${algorithm.name}`, "a runtime without it", "a browser or Node that has it in WebCrypto", e);
  }
}

/** Reads strings of SSH, four bytes of length and the bytes, to the end; undefined where the last one is cut. */
function readStrings(bytes: Uint8Array): Uint8Array[] | undefined {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const strings: Uint8Array[] = [];
  for (let at = 0; at < bytes.length; ) {
    if (bytes.length - at < 4 || bytes.length - at - 4 < view.getUint32(at)) return undefined;
    const end = at + 4 + view.getUint32(at);
    strings.push(bytes.subarray(at + 4, end));
    at = end;
  }
  return strings;
}

function ascii(bytes: Uint8Array): string {
  return String.fromCharCode(...bytes.subarray(0, maxSignature));
}

