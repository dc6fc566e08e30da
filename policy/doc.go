// Package policy is what owners approve, and when it is approved.
//
// A policy is one TOML file that says who may vouch for hardware, which root
// the authority has, and which code may hold which identity. [Parse] reads it
// strictly and tells every fault at once; that a file parses says nothing about
// who wrote it. Owners sign the file as it stands with the SSH keys they have
// ([Sign], [Verify]). A [Document] becomes [Approved] only through [Genesis],
// [Approved.Next] and [Replay]: the first by the pinned digest and a quorum of
// its own owners, each other by a quorum of the owners before it. Code that acts
// on policy takes an Approved, whose zero value refuses everything.
//
// Between proposing and approving lies a [Proposal]: it waits for its quorum
// and, when it loosens the policy in force ([Loosens]), for the delay. It is a
// value without a clock or a store; the authority keeps it.
//
// The package trusts the genesis digest that its caller pins and the keys of
// the owners that follow from it. It refuses unknown keys, values that are not
// the one encoding, signatures of other keys, kinds or namespaces, and history
// that does not follow. It reads no clock, no file and no network.
package policy
