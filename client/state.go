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

// State is the newest policy history that a client has seen. A client that starts with a State
// never accepts an older history. All steps of a State were verified, so it is as trustworthy as
// its genesis digest. The zero State contains no history. A State is immutable.
type State struct {
	history history.History
}

// stateFile is the only encoding of a State: JSON without spaces.
type stateFile struct {
	Schema   string             `json:"schema"`
	Genesis  attest.Digest      `json:"genesis"`
	Head     attest.Digest      `json:"head"`
	Sequence uint64             `json:"sequence"`
	Steps    []api.HistoryEntry `json:"steps"`
}

// ParseState parses a state file of at most 16 MiB and verifies all steps of its history.
// It refuses any other encoding with "malformed", and an invalid history with the reason
// of [policy.Replay].
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
	// The steps determine head and sequence, so this comparison checks them too.
	if !bytes.Equal(s.Bytes(), b) {
		return State{}, wire.Refuse(wire.Malformed, "client state: encoding", "not that of its steps", "JSON without spaces, head and sequence of the last step")
	}
	return s, nil
}

// Bytes returns the encoding that [ParseState] parses, or nil for the zero State.
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

// Policy returns the newest policy of the history, or the zero Approved for the zero State.
func (s State) Policy() policy.Approved { return s.history.Policy() }
