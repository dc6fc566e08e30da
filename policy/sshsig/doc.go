// Package sshsig makes and verifies the SSH signatures of owners and parties, in the
// format of `ssh-keygen -Y sign` (PROTOCOL.sshsig of OpenSSH).
//
// [Verify] trusts nothing: it returns the key that signed, and its caller decides
// whose key that is. It refuses every encoding but one, other namespaces and hashes
// than ours, kinds of keys that owners cannot have, points of small order, and
// signatures of hardware keys without user presence.
//
// Files from the ground up: point.go, signature.go.
package sshsig
