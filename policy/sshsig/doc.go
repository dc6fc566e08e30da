// Package sshsig makes and verifies the SSH signatures of owners and parties, in the
// format of `ssh-keygen -Y sign` (PROTOCOL.sshsig of OpenSSH).
//
// [Verify] trusts nothing: it returns the key that signed, and the caller decides who
// owns that key. It refuses every encoding but one, namespaces and hashes other than those
// of Cohort, types of keys that owners cannot have, points of small order, and signatures
// of hardware keys without user presence.
//
// Files from the ground up: point.go, signature.go.
package sshsig
