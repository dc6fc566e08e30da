package client

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/history"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// StateSchema is the schema of a state file.
const StateSchema = "cohort/client-state/v1"

// State is the newest policy history that a client has seen. A client that starts
// with it never accepts an older one. It was replayed, so it is as trustworthy as
// the genesis digest at its start. The zero State has seen no history. It is
// immutable.
type State struct {
	history history.History
}

// stateFile is the one encoding of a State: JSON without spaces.
type stateFile struct {
	Schema   string             `json:"schema"`
	Genesis  attest.Digest      `json:"genesis"`
	Head     attest.Digest      `json:"head"`
	Sequence uint64             `json:"sequence"`
	Steps    []api.HistoryEntry `json:"steps"`
}

// ParseState reads a state file of at most 16 MiB and replays its history. It
// refuses any other encoding with "malformed", and an invalid history with the
// reason of [policy.Replay].
func ParseState(b []byte) (State, error) {
	if len(b) > wire.MaxResponse {
		return State{}, wire.Refuse(wire.TooLarge, "client state: size in bytes", len(b), wire.MaxResponse)
	}
	var unverified stateFile
	if err := json.Unmarshal(b, &unverified); err != nil {
		return State{}, wire.Refuse(wire.Malformed, "client state: JSON", err, StateSchema)
	}
	if unverified.Schema != StateSchema {
		return State{}, wire.Refuse(wire.Malformed, "client state: schema", unverified.Schema, StateSchema)
	}
	seen, err := history.History{}.Extend(unverified.Genesis, unverified.Steps)
	if err != nil {
		return State{}, fmt.Errorf("replaying client state: %w", err)
	}
	s := State{seen}
	// Head and sequence follow from the steps, so this compares them too.
	if !bytes.Equal(s.Bytes(), b) {
		return State{}, wire.Refuse(wire.Malformed, "client state: encoding", "not that of its steps", "JSON without spaces, head and sequence of the last step")
	}
	return s, nil
}

// Bytes returns the encoding that [ParseState] reads; nil for the zero State.
func (s State) Bytes() []byte {
	newest := s.history.Policy()
	if !newest.Genuine() {
		return nil
	}
	b, err := json.Marshal(stateFile{
		Schema:   StateSchema,
		Genesis:  newest.Genesis(),
		Head:     newest.PolicyHead(),
		Sequence: newest.Document().Sequence,
		Steps:    s.history.Entries(),
	})
	if err != nil {
		panic(err) // digests, numbers and bytes always have an encoding
	}
	return b
}

// Policy returns the newest policy seen; the zero Approved in the zero State.
func (s State) Policy() policy.Approved { return s.history.Policy() }
