// Package policy approves policy: it decides which document is in force, and what that
// document and its groups' parties admit.
//
// Package policyfile reads the files, package sshsig verifies their signatures. A
// document becomes [Approved] only through [Genesis], [Approved.Next] and [Replay]: the
// first by the pinned digest and a quorum of its own owners, each other by a quorum of
// the owners before it. Code that acts on policy takes an Approved, whose zero value
// refuses everything.
//
// Between proposing and approving lies a [Proposal]: it waits for its quorum and, when
// it loosens the policy in force, for the delay. It is a value without a clock or a
// store; the authority keeps it. The parties of a group approve its [Roster] by
// [Statement], each of which is a step of the same history.
//
// The package trusts the genesis digest that its caller pins and the keys of the
// owners that follow from it. It refuses history that does not follow, signatures of
// other keys, kinds or namespaces, and programs that no release names. It reads no
// clock, no file and no network.
//
// Files, each using those before it: roster.go, statement.go, groupstate.go, cutoff.go, approved.go, backup.go,
// admit.go, screen.go, concern.go, proposal.go, records.go.
package policy
