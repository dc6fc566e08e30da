// Package bus implements the protocol between units and a cluster manager that runs beside the
// requests of users: heartbeats, sealed sessions, ranges of session numbers. docs/spec/bus.md
// specifies every byte.
//
// [Connect] makes the [Conn] of a unit, [Listen] the [Server] of a manager. A unit has one
// connection over mutual TLS 1.3 to each of its managers. It carries hints and sealed bytes,
// and no security decision depends on them: a heartbeat decides only which unit the gateway
// tries first, a sealed session opens under a ring key or not at all, and a range helps to
// avoid collisions. A lost message costs time only: a unit that misses a session requests it.
//
// The manager identifies a unit by its certificate alone ([UnitOf]). Each side refuses frames
// that are not in the one encoding, buffers no more than one frame, gives every read and write
// a deadline, and bounds what is queued for the peer. A peer that breaks a rule loses its
// connection. The package uses the standard library alone, because it runs inside a TEE on
// bytes of an untrusted manager.
//
// Managers reach one another over NATS, in package cluster below this one.
//
// Files, each using those before it: limits.go, frame.go, item.go, bus.go, beat.go,
// unit.go, conn.go, link.go, server.go, station.go.
package bus

import (
	"encoding/hex"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Protocol is the name in ALPN (RFC 7301) that both sides require.
const Protocol = "cohort-bus/1"

// Sizes in bytes.
const (
	MaxFrame   = 8 << 10  // a frame with its size and kind
	MaxSealed  = 4 << 10  // sealed bytes of one session; ours are below 1 KiB
	MaxBatch   = 64 << 10 // frames of one push
	maxAddress = 255
)

// HeartbeatInterval is the interval between two heartbeats of a unit.
const HeartbeatInterval = time.Second

// Cluster names all units of one identity on the bus: the first 16 bytes of the SHA-256 of the
// identity's public key (SubjectPublicKeyInfo, DER). It follows from any certificate chain of
// the identity.
type Cluster [16]byte

// ClusterOf returns the cluster of the identity whose public key is spki.
func ClusterOf(spki []byte) Cluster {
	d := wire.Sum(spki)
	return Cluster(d[:16])
}

// String returns 32 lower-case hexadecimal digits.
func (c Cluster) String() string { return hex.EncodeToString(c[:]) }

// ParseCluster parses 32 lower-case hexadecimal digits.
func ParseCluster(text string) (c Cluster, ok bool) {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != len(c) || hex.EncodeToString(b) != text {
		return c, false
	}
	return Cluster(b), true
}

// Range is a range of session numbers that no other unit receives.
type Range struct {
	First, Count uint64
}

// rangeEnd is the first number that managers do not allocate: units without a manager draw
// numbers from 2^63 on.
const rangeEnd = 1 << 63

// isValid reports whether the range is not empty and ends below [rangeEnd].
func (r Range) isValid() bool {
	return r.Count > 0 && r.First < rangeEnd && r.Count <= rangeEnd-r.First
}
