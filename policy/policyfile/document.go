package policyfile

import (
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Document is one parsed policy file. Parsing does not show who signed it: code that acts
// on policy takes policy.Approved. A Document is immutable once parsed.
type Document struct {
	TrustDomain string
	Sequence    uint64        // 1 in the genesis
	Previous    attest.Digest // digest of the policy before; zero in the genesis
	Created     time.Time
	Development bool
	// MaxSilence is how long a unit of a group may continue without a proved head of the
	// history; zero is half of the lifetime of the group's certificates: [Document.Silence].
	MaxSilence time.Duration
	Owners     Owners
	Platforms  map[attest.Platform]attest.Rules
	Authority  Authority
	Tasks      map[string]*Task
	Groups     map[string]*Group

	raw    []byte
	values map[string]any // raw as TOML tables; never changed
}

// Authority is the table [authority]: the root, and the programs and machines that may
// have it.
type Authority struct {
	Root       attest.Digest // SHA-256 of the authority root's SubjectPublicKeyInfo
	Machines   Machines      // which may hold the root
	References []attest.ReferenceValue
}

// KeyMode says which units have the private key of a TLS certificate.
type KeyMode string

// The key modes.
const (
	Shared  KeyMode = "shared" // all units of the identity have the same key pair
	PerUnit KeyMode = "unit"   // each unit makes its own key
)

// Task is a computing task.
type Task struct {
	Name     string
	KeyMode  KeyMode
	Names    []string      // DNS names its certificates carry
	Lifetime time.Duration // of leaf certificates
	Units    int           // most units that run at once; 0 is unbounded
	Calls    []string      // tasks it may call
	CutUnits []string      // ids of units that get no further certificate
	Releases map[string]*Release
}

// Release is one build of a task. A release is an identity.
type Release struct {
	Name       string
	References []attest.ReferenceValue
	Continues  string            // the release whose follow-sessions move to this one
	Retired    bool              // gets no new certificates
	Dynamic    bool              // accepts programs that load unmeasured libraries
	Env        map[string]string // environment of the program
	OneOff     bool              // accepts one-off requests
	// Devices are the least numbers of devices of each platform that a unit has beside
	// its TEE.
	Devices map[attest.Platform]int
}

// Source returns the signed bytes of the file. The caller does not change them.
func (d *Document) Source() []byte { return d.raw }

// Digest returns the SHA-256 of the file.
func (d *Document) Digest() attest.Digest { return wire.Sum(d.raw) }
