package channel

import (
	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// Pin is what a session stays with: one release by its identity id, or a task
// by name through the releases that its owners approve. Exactly one of ID and
// Task is given.
type Pin struct {
	Genesis attest.Digest
	ID      attest.Digest
	Task    string
}

// The kinds of pin on the wire.
const (
	pinID   = "id"
	pinTask = "task"
)

// bytes is Frame("cohort pin v1", kind, identity id or task name, genesis).
func (p Pin) bytes() []byte {
	if p.Task != "" {
		return wire.Frame(wire.LabelPin, []byte(pinTask), []byte(p.Task), p.Genesis[:])
	}
	return wire.Frame(wire.LabelPin, []byte(pinID), p.ID[:], p.Genesis[:])
}

// check refuses, with "request", a pin that is not exactly one.
func (p Pin) check() error {
	if p.Genesis.IsZero() || p.ID.IsZero() == (p.Task == "") || p.Task != "" && !wire.NameOK(p.Task) {
		return wire.Refuse(wire.BadRequest, "session: pin", p, "a genesis, and an identity id or a task")
	}
	return nil
}

// ids are the identities that the pin stands for under a policy.
func (p Pin) ids(approved policy.Approved) ([]attest.Digest, error) {
	if !approved.OK() || approved.Genesis() != p.Genesis {
		return nil, wire.Refuse(wire.WrongGenesis, "session: policy", approved.Genesis(), p.Genesis)
	}
	if p.Task != "" {
		return identity.LiveIDs(approved, p.Task)
	}
	return []attest.Digest{p.ID}, nil
}

// Wants is what a client asks of a session.
type Wants byte

// The wants; all other bits are zero.
const (
	WantEvidence Wants = 1 << iota // fresh evidence, bound to the session's secret
	WantReceipts                   // receipts for requests of this session
)
