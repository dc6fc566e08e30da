// Package bus implements the protocol between units and a cluster manager: heartbeats, sealed
// sessions and ranges of session numbers. It does not carry users' requests. docs/spec/bus.md
// specifies every byte.
//
// [Connect] makes the [Conn] of a unit, [Listen] the [Server] of a manager. A unit has one
// connection over mutual TLS 1.3 to each of its managers. The connection carries hints and
// sealed bytes, and no security decision depends on them: a heartbeat only affects which unit
// the gateway tries first, a sealed session can be decrypted only with a ring key, and a range
// only avoids collisions. A lost message costs only time: a unit that lacks a session requests
// it.
//
// The manager identifies a unit only by its certificate ([UnitOf]). Each side accepts exactly
// one encoding of a frame, buffers at most one incoming frame, sets a deadline on every read and
// write, and limits the queue of outgoing frames. It closes the connection of a peer that breaks
// a rule. The package imports no third-party library, because it parses bytes from an untrusted
// manager inside a TEE.
//
// Managers exchange messages over NATS: see the subpackage cluster.
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
	MaxSealed  = 4 << 10  // sealed bytes of one session, which today has at most 1 KiB
	MaxBatch   = 64 << 10 // all frames of one push
	maxAddress = 255
)

// HeartbeatInterval is the interval between two heartbeats of a unit.
const HeartbeatInterval = time.Second

// Cluster identifies the units of one identity on the bus. It is the first 16 bytes of the
// SHA-256 of the identity's public key (SubjectPublicKeyInfo, DER), so that it can be computed
// from any certificate chain of the identity.
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

// Range is a range of session numbers that a manager allocates to one unit.
type Range struct {
	First, Count uint64
}

// rangeEnd is the first number that managers do not allocate. Units without a manager choose
// random numbers from 2^63 on.
const rangeEnd = 1 << 63

// isValid reports whether the range is not empty and ends below [rangeEnd].
func (r Range) isValid() bool {
	return r.Count > 0 && r.First < rangeEnd && r.Count <= rangeEnd-r.First
}
