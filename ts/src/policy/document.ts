/**
 * Policy files (docs/spec/policy.md, sections 1 and 2; docs/reference/policy.md lists every key). A
 * document is one parsed file. Parsing does not show who signed it: code that acts on policy takes
 * a Policy (policy.ts).
 */

import type { ReferenceValue } from "../evidence/measurement.js";
import type { Rules } from "../evidence/rules.js";
import { refuse } from "../refusal.js";
import type { SshKey } from "./sshsig.js";

/** A SHA-256 digest in text: `sha256:` and 64 digits. */
export type Digest = string;

/** The digest of 32 zero bytes, which means that there is none. */
export const zeroDigest: Digest = "sha256:" + "0".repeat(64);

/** Which units have the private key of a TLS certificate: all of an identity, or each its own. */
export type KeyMode = "shared" | "unit";

/** The machines that may have the authority's root: every one, or chips as appraisal names them. */
export type Machines = "any" | readonly string[];

/** One owner of policy. */
export interface Owner {
  name: string;
  key: SshKey;
}

/** The people who sign policy: `quorum` of `keys`. */
export interface Owners {
  quorum: number;
  keys: readonly Owner[];
}

/** The table `[authority]`, or the authority of a group: programs and machines that may have a root. */
export interface Custody {
  references: readonly ReferenceValue[];
  machines: Machines;
}

/** The table `[authority]`. `root` is the digest of the authority root's SubjectPublicKeyInfo. */
export interface Authority extends Custody {
  root: Digest;
}

/** One build of a task. It is an identity. */
export interface Release {
  name: string;
  /** The identity id (docs/spec/identity.md, section 1). */
  id: Digest;
  references: readonly ReferenceValue[];
  /** The release whose sessions by task name move to this one, or `""`. */
  continues: string;
  /** No certificate is issued for it any more. */
  retired: boolean;
  /** Accepts programs that load libraries which are not measured. */
  dynamic: boolean;
  /** Accepts one-off requests. */
  oneoff: boolean;
  /** The least number of devices beside the TEE, by platform. */
  devices: ReadonlyMap<string, number>;
}

/** A computing task. */
export interface Task {
  name: string;
  keyMode: KeyMode;
  /** DNS names of its certificates. */
  names: readonly string[];
  /** Lifetime of its leaf certificates in milliseconds. */
  lifetime: number;
  /** The most units at once; 0 is unbounded. */
  units: number;
  /** Tasks that it may call. */
  calls: readonly string[];
  /** Ids of units that are cut off, 32 digits each. */
  cutUnits: readonly string[];
  releases: ReadonlyMap<string, Release>;
}

/** A party of a group. */
export interface Party {
  name: string;
  key: SshKey;
}

/** A release that a party brings into a role. */
export interface Member {
  party: string;
  task: string;
  release: string;
}

/** A role of a group, with the roles that it may call. */
export interface Role {
  name: string;
  members: readonly Member[];
  calls: readonly string[];
}

/** A group of tasks of several parties, as the policy defines it. Its state is GroupState. */
export interface Group {
  name: string;
  keyMode: KeyMode;
  quorum: number;
  /** No certificate is valid after it; milliseconds since 1970. */
  until: number;
  names: readonly string[];
  /** Lifetime of its leaf certificates in milliseconds. */
  lifetime: number;
  parties: readonly Party[];
  roles: ReadonlyMap<string, Role>;
  /** Identity of the group that it continues, or zeroDigest. */
  continues: Digest;
  authority: Custody & {
    /** Rules of the platforms of its references, by name. */
    rules: ReadonlyMap<string, Rules>;
    /** The table as one line of TOML, as in a roster. */
    line: string;
  };
}

/** One parsed policy file. It is immutable. */
export interface Document {
  /** SHA-256 of the file. */
  digest: Digest;
  trustDomain: string;
  /** 1 in the genesis. */
  sequence: number;
  /** Digest of the policy before; zeroDigest in the genesis. */
  previous: Digest;
  /** Milliseconds since 1970. */
  created: number;
  development: boolean;
  owners: Owners;
  authority: Authority;
  tasks: ReadonlyMap<string, Task>;
  groups: ReadonlyMap<string, Group>;
  /** Rules of each platform that the policy names, for appraisal. */
  rules: ReadonlyMap<string, Rules>;
}

/**
 * Parses a policy file of at most 262,144 bytes. The first broken rule is refused as `policy`.
 * `genesis` is the digest of the first policy; without it the file itself is the first.
 */
export async function parseDocument(_raw: Uint8Array, _genesis?: Digest): Promise<Document> {
  throw refuse("internal", "not built", "", "");
}
