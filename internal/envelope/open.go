package envelope

import (
	"encoding/binary"
	"strings"

	"github.com/cohort-tee/cohort/internal/wire"
)

// PinKind says how a pin names the units of a session.
type PinKind string

// The kinds of pins.
const (
	PinID    PinKind = "id"    // one release, by its identity id
	PinTask  PinKind = "task"  // a task, by name
	PinGroup PinKind = "group" // all roles of a group, by the group's name
	PinRole  PinKind = "role"  // one role of a group: GROUP/ROLE
)

// Pin names the units that a session stays with.
type Pin struct {
	Kind    PinKind
	Name    string // 32 bytes of [PinID]; else the name
	Genesis wire.Digest
}

// Encode returns Frame("cohort pin v1", kind, name, genesis).
func (p Pin) Encode() []byte {
	return wire.Frame(wire.LabelPin, []byte(p.Kind), []byte(p.Name), p.Genesis[:])
}

// ParsePin reads the pin of an open request.
func ParsePin(open []byte) (Pin, error) {
	var request [6][]byte // suite, KEM key, nonce, pin, wants, least policy head
	if err := wire.UnframeInto(request[:], wire.LabelSessionOpen, open); err != nil {
		return Pin{}, err
	}
	return parsePin(request[3])
}

func parsePin(raw []byte) (Pin, error) {
	var f [3][]byte
	if err := wire.UnframeInto(f[:], wire.LabelPin, raw); err != nil {
		return Pin{}, err
	}
	p := Pin{Kind: PinKind(f[0]), Name: string(f[1])}
	if !p.hasValidName() || len(f[2]) != len(p.Genesis) {
		return Pin{}, wire.Refuse(wire.Malformed, "pin", string(f[0])+" "+p.Name, "id, task, group or role, its name, and a genesis digest")
	}
	p.Genesis = wire.Digest(f[2])
	return p, nil
}

// hasValidName reports whether the pin has a name of its kind.
func (p Pin) hasValidName() bool {
	switch p.Kind {
	case PinID:
		return len(p.Name) == len(wire.Digest{})
	case PinTask, PinGroup:
		return wire.ValidName(p.Name)
	case PinRole:
		group, role, _ := strings.Cut(p.Name, "/")
		return wire.ValidName(group) && wire.ValidName(role)
	}
	return false
}

// OpenedSession reads the id of the session that a response to an open request opens, from
// the first bytes of the response. ok is false where the id is not among them.
func OpenedSession(response []byte) (id wire.SessionID, ok bool) {
	enc := 1 + len(wire.LabelSessionResponse) // where the KEM ciphertext begins, with its length
	if len(response) < enc+4 {
		return id, false
	}
	end := uint64(enc) + 4 + uint64(binary.BigEndian.Uint32(response[enc:])) + 4 + uint64(len(id))
	if end > uint64(len(response)) {
		return id, false
	}
	var fields [2][]byte // KEM ciphertext, session id
	if wire.UnframeInto(fields[:], wire.LabelSessionResponse, response[:end]) != nil || len(fields[1]) != len(id) {
		return id, false
	}
	return wire.SessionID(fields[1]), true
}
