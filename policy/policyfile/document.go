package policyfile

import (
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Document is one parsed policy file. That it parsed says nothing about who
// signed it; code that acts on policy takes [Approved]. A Document is immutable
// once parsed.
type Document struct {
	TrustDomain string
	Sequence    uint64        // 1 in the genesis
	Previous    attest.Digest // digest of the policy before; zero in the genesis
	Created     time.Time
	Development bool
	// MaxSilence is how long a unit in a group goes on without a proved head of the
	// history; zero is half of the life of the group's certificates: [Document.Silence].
	MaxSilence time.Duration
	Owners     Owners
	Platforms  map[attest.Platform]attest.Rules
	Authority  Authority
	Tasks      map[string]*Task
	Groups     map[string]*Group

	raw    []byte
	values map[string]any // raw as TOML tables; never changed
}

// Authority is what policy says of the authority itself.
type Authority struct {
	Root       attest.Digest // SHA-256 of the authority root's SubjectPublicKeyInfo
	Machines   Machines      // which may hold the root
	References []attest.ReferenceValue
}

// KeyMode says who holds the private key that serves TLS.
type KeyMode string

// The key modes.
const (
	Shared  KeyMode = "shared" // every unit of the identity holds the same pair
	PerUnit KeyMode = "unit"   // each unit makes its own key
)

// Task is a computing task.
type Task struct {
	Name     string
	KeyMode  KeyMode
	Names    []string      // DNS names its certificates carry
	Lifetime time.Duration // of leaf certificates
	Units    int           // most units that hold a place at once; 0 is unbounded
	Calls    []string      // tasks it may call
	CutUnits []string      // ids of units that get no further certificate
	Releases map[string]*Release
}

// Release is one build of a task. A release is an identity.
type Release struct {
	Name       string
	References []attest.ReferenceValue
	Continues  string            // the release whose follow-sessions move here
	Retired    bool              // gets no new certificates, and ends with those it has
	Dynamic    bool              // accepts programs that load unmeasured libraries
	Env        map[string]string // environment the agent gives the program
	OneOff     bool              // accepts one-off requests
	// Devices are how many devices of each platform a unit must have beside its
	// TEE, at least.
	Devices map[attest.Platform]int
}

// Raw is the file as it was signed. The caller does not change it.
func (d *Document) Raw() []byte { return d.raw }

// Digest is the SHA-256 of the file.
func (d *Document) Digest() attest.Digest { return wire.Sum(d.raw) }
