// Package bus is the protocol between units and a cluster manager, beside the
// requests of users: heartbeats, sealed sessions, ranges of session numbers.
// docs/spec/bus.md has it to the byte.
//
// [Connect] makes the [Conn] of a unit, [Listen] the [Server] of a manager. A
// unit holds one connection over mutual TLS 1.3 to each of its managers. What
// goes over it are hints and sealed bytes, and no decision rests on them: a
// heartbeat decides only where the gateway tries first, a sealed session opens
// under a ring key or not at all, and a range is a wish not to collide. A lost
// message costs time only: a unit that misses a session asks for it.
//
// The manager takes from the certificate alone which unit this is ([UnitOf]).
// Each side refuses frames that are not the one encoding, reads no more than
// one frame of memory ahead, gives every read and write a deadline, and bounds
// what waits for the other. A peer that breaks a rule loses its connection and
// nothing else happens. The package uses the standard library alone, because it
// runs inside a TEE on bytes of an untrusted manager.
//
// Managers reach one another over NATS, in package cluster below this one.
package bus

import (
	"encoding/hex"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Protocol is the name in ALPN (RFC 7301) that both sides demand.
const Protocol = "cohort-bus/1"

// Sizes in bytes.
const (
	MaxFrame   = 8 << 10  // size, kind and body
	MaxSealed  = 4 << 10  // sealed bytes of one session; they are below 1 KiB
	MaxBatch   = 64 << 10 // frames that are pushed together
	maxAddress = 255
)

// BeatEvery is how often a unit sends a heartbeat.
const BeatEvery = time.Second

// Cluster names, on the bus, all units of one identity: the first 16 bytes of
// the SHA-256 of the identity's public key (SubjectPublicKeyInfo, DER). It can
// be read off any certificate chain of the identity.
type Cluster [16]byte

// ClusterOf is the cluster of the identity whose public key is spki.
func ClusterOf(spki []byte) Cluster {
	d := wire.Sum(spki)
	return Cluster(d[:16])
}

// String is 32 lower-case hexadecimal digits.
func (c Cluster) String() string { return hex.EncodeToString(c[:]) }

// ParseCluster reads 32 lower-case hexadecimal digits.
func ParseCluster(text string) (c Cluster, ok bool) {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != len(c) || hex.EncodeToString(b) != text {
		return c, false
	}
	return Cluster(b), true
}

// Range is a run of numbers that no other unit was given.
type Range struct {
	First, Count uint64
}

// rangeEnd is the first number that no manager gives: those from 2^63 on are
// drawn by units without a manager.
const rangeEnd = 1 << 63

// valid reports whether the range is not empty and ends below [rangeEnd].
func (r Range) valid() bool {
	return r.Count > 0 && r.First < rangeEnd && r.Count <= rangeEnd-r.First
}
