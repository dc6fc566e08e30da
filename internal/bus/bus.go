// Package bus is how units and the cluster manager talk beside the requests of
// users: heartbeats, sealed sessions, identifier ranges. It is the only
// importer of the NATS client, and the only place that knows subjects.
//
// [Connect] makes the [Conn] of a unit, [Attach] the [Hub] of a manager. What
// goes over it are hints and sealed bytes. Nobody believes anything read from
// here: a beat decides only where the gateway tries first, a sealed session
// opens under a ring key or not at all, and a range is a wish not to collide.
// Nothing is lost for ever when a message is: whoever misses one asks again.
//
// Subjects carry the [Cluster] and the unit id, and the server
// (internal/bus/natsd) lets a unit use only its own, which it takes from the
// unit's certificate. The package refuses messages beyond their size, items
// that are not the one encoding, and a unit that asks for an answer outside the
// inboxes of its cluster.
package bus

import (
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Sizes in bytes. MaxMessage bounds every message, and with it a batch.
const (
	MaxMessage = 128 << 10
	MaxBeat    = 4 << 10
	MaxSealed  = 4 << 10 // a sealed session is below 1 KiB
)

// BeatEvery is how often a unit says that it lives.
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

// CheckChain verifies a leaf under an identity's cross-certificate under one of
// the authority roots, and says whose cluster the leaf belongs to. It demands
// exactly that shape, so a leaf directly under the root belongs to no cluster.
// It says nothing about code or policy: that is identity.Check, which a manager
// does not have. Its error has the reason [wire.BadChain].
func CheckChain(chain []*x509.Certificate, roots *x509.CertPool, at time.Time) (Cluster, error) {
	if len(chain) != 2 || chain[0].IsCA || roots == nil {
		return Cluster{}, wire.Refuse(wire.BadChain, "chain: certificates", len(chain), "a leaf and its cross-certificate")
	}
	crosses := x509.NewCertPool()
	crosses.AddCert(chain[1])
	ways, err := chain[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: crosses, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return Cluster{}, fmt.Errorf("%w: %w", wire.Refuse(wire.BadChain, "chain", "one that does not hold", "one under the authority root"), err)
	}
	for _, way := range ways {
		if len(way) == 3 && way[1].Equal(chain[1]) {
			return ClusterOf(chain[1].RawSubjectPublicKeyInfo), nil
		}
	}
	return Cluster{}, wire.Refuse(wire.BadChain, "chain: issuer of the leaf", "the authority root", "an identity")
}

// Beat is what a unit says of itself every [BeatEvery]. All of it is a hint.
type Beat struct {
	Address  string      `json:"address"`         // host:port of its listener
	Names    []string    `json:"names,omitempty"` // DNS names of its TLS leaf
	Task     string      `json:"task"`            // or GROUP/ROLE
	Identity wire.Digest `json:"identity"`
	Inherits wire.Digest `json:"inherits,omitzero"` // identity whose sessions the unit opens as well
	InFlight int         `json:"in_flight"`
	Sessions int         `json:"sessions"`
	Ready    bool        `json:"ready"`
}

// Range is a run of numbers that no other unit was given.
type Range struct {
	First, Count uint64
}
