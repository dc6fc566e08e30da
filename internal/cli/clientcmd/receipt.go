package clientcmd

import (
	"crypto/x509"
	"encoding/json"
	"fmt"
	"time"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/authorityclient"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

const receiptSchema = "cohort/receipt/v1"

// maxReceipt bounds a receipt's file, in bytes: it contains request and response.
const maxReceipt = 1 << 30

// receiptFile proves to any client that pins the genesis, without a network, which unit
// sent a response. Nothing in it is trusted as such: the owners' signatures lead from
// the genesis to the root, and the root to the unit's signature.
type receiptFile struct {
	Schema string    `json:"schema"`
	At     time.Time `json:"at"` // of the response
	client.Record
	Root    []byte          `json:"authority_root"` // certificate, DER
	History json.RawMessage `json:"policy_history"` // a client's state
}

// writeReceipt writes the receipt for a response that a client with this trust
// was given.
func writeReceipt(path string, r client.Record, t *client.Trust, at time.Time) error {
	b, err := json.Marshal(receiptFile{receiptSchema, at.UTC(), r, t.AuthorityRoot().Raw, t.State().Bytes()})
	if err != nil {
		return fmt.Errorf("writing the receipt: %w", err)
	}
	return frame.ReplaceFile(path, append(b, '\n'))
}

// receiptView is the content of a verified receipt.
type receiptView struct {
	Unit     string     `json:"unit"`
	Identity string     `json:"identity"`
	Task     string     `json:"task"`
	Session  string     `json:"session"`
	Number   uint64     `json:"number"`
	At       string     `json:"at"`
	Sequence uint64     `json:"policy_sequence"`
	Later    *laterView `json:"later,omitempty"`
}

// laterView is the step of policy that cuts off the unit of a receipt which is older.
type laterView struct {
	Sequence  uint64 `json:"policy_sequence"`
	Created   string `json:"created"`
	Statement bool   `json:"statement"` // the step is a party's statement after that policy
	Reason    string `json:"reason"`
	Cause     string `json:"cause"`
}

// String is the line of the human form, empty for none.
func (l *laterView) String() string {
	switch {
	case l == nil:
		return ""
	case l.Statement:
		return fmt.Sprintf("since then   refused by a party's statement after policy %d: %s\n", l.Sequence, l.Cause)
	}
	return fmt.Sprintf("since then   refused by policy %d of %s: %s\n", l.Sequence, l.Created, l.Cause)
}

// verifyReceipt verifies a receipt by what its file brings, the pins, and the newest
// policy that was seen here.
func verifyReceipt(a *frame.App, p authorityclient.Pins, path string) error {
	pin, err := p.ParsePin()
	if err != nil {
		return err
	}
	b, err := frame.ReadFile(path, maxReceipt)
	if err != nil {
		return err
	}
	f, trust, err := readReceipt(b)
	if err != nil {
		return fmt.Errorf("reading %s: %w", path, err)
	}
	if trust.Policy, err = newestPolicy(a, p, pin, trust.Policy); err != nil {
		return err
	}
	if trust.Approvers, err = authorityclient.Parties(a, p); err != nil {
		return err
	}
	sequence := trust.Policy.Document().Sequence
	if sequence < p.MinSequence {
		return wire.Refuse(wire.WrongSequence, "receipt: policy sequence", sequence, p.MinSequence)
	}
	r, err := unitauth.VerifyReceipt(f.Record, trust, unitauth.ReceiptExpect{Pin: pin, At: f.At})
	if err != nil {
		return err
	}
	then, _ := trust.Policy.AtHead(r.Head) // verifying found it
	v := receiptView{
		Unit: r.Unit.UnitID().String(), Identity: r.Unit.ID().String(), Task: r.Unit.TaskName(), Session: r.Session.String(), Number: r.Number,
		At: frame.RFC3339(r.At), Sequence: then.Document().Sequence,
	}
	if l := r.Later; l != nil {
		v.Later = &laterView{l.Sequence, frame.RFC3339(l.Created), l.Statement, string(wire.ReasonOf(l.Cause)), l.Cause.Error()}
	}
	return a.PrintResult("verify-receipt", v, fmt.Sprintf("signed by    unit %s of %s\nidentity     %s\nrequest      %d of session %s\nat           %s, under policy %d\n%s",
		v.Unit, v.Task, v.Identity, v.Number, v.Session, v.At, v.Sequence, v.Later))
}

// newestPolicy is the newer one of the policy that a receipt's file brings and the
// newest that was seen here. It refuses, with "genesis", a file of another history than
// the pin's, and with "behind" one that the history seen here does not follow.
func newestPolicy(a *frame.App, p authorityclient.Pins, pin unitauth.Pin, brought policy.Approved) (policy.Approved, error) {
	if brought.Genesis() != pin.Genesis {
		return policy.Approved{}, wire.Refuse(wire.WrongGenesis, "receipt: policy history", brought.Genesis(), pin.Genesis)
	}
	path, err := authorityclient.SeenFile(a, p)
	if err != nil {
		return policy.Approved{}, err
	}
	seen, err := authorityclient.ReadState(path)
	if err != nil {
		return policy.Approved{}, err
	}
	switch known := seen.Policy(); {
	case !known.Genuine() || brought.Knows(known.PolicyHead()):
		return brought, nil
	case known.Knows(brought.PolicyHead()):
		return known, nil
	default:
		return policy.Approved{}, wire.Refuse(wire.Behind, "receipt: head of the policy history", brought.PolicyHead(), "one of the history that was seen here, "+known.PolicyHead().String()+", or of one that follows it")
	}
}

// readReceipt reads a receipt's file, with the history that it brings replayed.
// Whose history that is, the pin decides.
func readReceipt(b []byte) (receiptFile, unitauth.Trust, error) {
	var f receiptFile
	if err := json.Unmarshal(b, &f); err != nil || f.Schema != receiptSchema {
		return f, unitauth.Trust{}, frame.Usage("want a receipt of schema %s", receiptSchema)
	}
	state, err := client.ParseState(f.History)
	if err != nil {
		return f, unitauth.Trust{}, fmt.Errorf("policy history: %w", err)
	}
	root, err := x509.ParseCertificate(f.Root)
	if err != nil {
		return f, unitauth.Trust{}, wire.Refuse(wire.Malformed, "receipt: authority root", err, "a certificate")
	}
	return f, unitauth.Trust{Policy: state.Policy(), Root: root}, nil
}
