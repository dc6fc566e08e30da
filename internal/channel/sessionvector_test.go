package channel

import (
	"bytes"
	"crypto/hpke"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/envelope"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// sessionVector is testdata/vectors/session.json: a session response with real certificates and
// fresh evidence, what the client concludes, and changes for which it refuses.
type sessionVector struct {
	Description string           `json:"description"`
	Input       map[string]any   `json:"input"`
	Accepted    sessionAccepted  `json:"accepted"`
	Refused     []sessionRefused `json:"refused"`
}

// sessionInput is what a client has before it checks the response, and the response.
type sessionInput struct {
	At         time.Time          `json:"at"` // the client's time
	Genesis    attest.Digest      `json:"genesis"`
	History    []api.HistoryEntry `json:"history"`
	Root       []byte             `json:"authority_root"` // X.509, DER
	Pin        sessionPin         `json:"pin"`
	Wants      byte               `json:"wants"`
	ClientSeed []byte             `json:"client_seed"` // the client's KEM key is DeriveKeyPair of it
	Nonce      []byte             `json:"nonce"`
	Response   []byte             `json:"response"`
}

// sessionPin has one member.
type sessionPin struct {
	Task string        `json:"task,omitempty"`
	ID   attest.Digest `json:"id,omitzero"`
}

type sessionAccepted struct {
	Request  []byte        `json:"request"`
	ID       []byte        `json:"session_id"`
	Secret   []byte        `json:"session_secret"`
	Unit     wire.UnitID   `json:"unit"`
	Identity attest.Digest `json:"identity"`
	Expires  time.Time     `json:"expires"`
	Platform string        `json:"evidence_platform"`
}

// sessionRefused is a change of the input: members with other values, and fields of the response,
// by their numbers in channel.md, with other values.
type sessionRefused struct {
	Name   string            `json:"name"`
	Set    []sessionSet      `json:"set,omitempty"`
	Fields map[string][]byte `json:"fields,omitempty"`
	Reason wire.Reason       `json:"reason"`
}

type sessionSet struct {
	Path  string `json:"path"` // JSON Pointer, RFC 6901
	Value any    `json:"value"`
}

// TestSessionVector: the recorded response is accepted with the recorded conclusions, and each
// change is refused with its reason.
func TestSessionVector(t *testing.T) {
	path := filepath.Join("testdata", "vectors", "session.json")
	if *update {
		if err := os.WriteFile(path, append(testworld.Must(json.MarshalIndent(newSessionVector(t), "", "  ")), '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var v sessionVector
	if err := json.Unmarshal(testworld.Must(os.ReadFile(path)), &v); err != nil {
		t.Fatal(err)
	}
	got, err := finishRecorded(v.Input, sessionRefused{})
	if err != nil {
		t.Fatal(err)
	}
	if a, b := testworld.Must(json.Marshal(got)), testworld.Must(json.Marshal(v.Accepted)); !bytes.Equal(a, b) {
		t.Errorf("got %s, want %s", a, b)
	}
	for _, c := range v.Refused {
		t.Run(c.Name, func(t *testing.T) {
			if _, err := finishRecorded(v.Input, c); wire.ReasonOf(err) != c.Reason {
				t.Errorf("got %v, want reason %q", err, c.Reason)
			}
		})
	}
}

// finishRecorded checks a recorded response as a client does, after a change.
func finishRecorded(input map[string]any, change sessionRefused) (got sessionAccepted, err error) {
	var changed map[string]any
	testworld.Must(0, json.Unmarshal(testworld.Must(json.Marshal(input)), &changed))
	for _, s := range change.Set {
		changed[s.Path[1:]] = s.Value
	}
	var in sessionInput
	testworld.Must(0, json.Unmarshal(testworld.Must(json.Marshal(changed)), &in))
	if len(change.Fields) > 0 {
		fields := testworld.Must(wire.Unframe(wire.LabelSessionResponse, in.Response, 12))
		for number, value := range change.Fields {
			var i int
			fmt.Sscan(number, &i)
			fields[i-1] = value
		}
		in.Response = wire.Frame(wire.LabelSessionResponse, fields...)
	}
	var steps []policy.Step
	for _, e := range in.History {
		steps = append(steps, policy.Step{Policy: e.Policy, Signatures: e.Signatures})
	}
	p, err := policy.Replay(wire.Sum(steps[0].Policy), steps)
	if err != nil {
		return got, err
	}
	o := recordedHandshake(in.ClientSeed, in.Nonce, unitauth.Pin{Genesis: in.Genesis, Task: in.Pin.Task, ID: in.Pin.ID}, SessionOptions(in.Wants))
	s, err := o.Finish(in.Response, unitauth.Trust{Policy: p, Root: testworld.Must(x509.ParseCertificate(in.Root)), Verifier: attesttest.Verifier()}, in.At)
	if err != nil {
		return got, err
	}
	id := s.ID()
	return sessionAccepted{
		Request: o.Request(), ID: id[:], Secret: s.secret[:], Unit: s.OpenedBy().UnitID(), Identity: s.OpenedBy().ID(),
		Expires: s.Expires().UTC(), Platform: string(s.Evidence().Measurement().Platform),
	}, nil
}

// recordedHandshake is a handshake with a known key and nonce.
func recordedHandshake(seed, nonce []byte, pin unitauth.Pin, wants SessionOptions) *ClientHandshake {
	o := &ClientHandshake{key: testworld.Must(hpke.MLKEM768X25519().DeriveKeyPair(seed)), pin: pin, nonce: nonce, wants: wants}
	o.request = wire.Frame(wire.LabelSessionOpen, []byte{envelope.Suite}, o.kemKey(), o.nonce, pin.Encode(), []byte{byte(wants)}, o.least)
	return o
}

// newSessionVector records a session by task name with fresh evidence.
func newSessionVector(t *testing.T) sessionVector {
	t.Helper()
	w := newWorld(t)
	seed, nonce := wire.Sum([]byte("client")), wire.Sum([]byte("nonce"))
	respond := func(device *attesttest.Device) (*Host, []byte) {
		h := w.host(Limits{})
		o := recordedHandshake(seed[:], nonce[:], w.byTask(), WantEvidence)
		a := testworld.Must(h.Accept(OpenRequest{Body: o.Request(), Number: 7, Cookie: testworld.Must(h.Cookie(o.Request(), noon))}, noon))
		data, _, err := a.Evidence()
		testworld.NoError(t, err)
		response, _, err := a.Finish(testworld.Must(device.Attest(t.Context(), data)), noon)
		testworld.NoError(t, err)
		return h, response
	}
	h, response := respond(w.Device("scoring 1"))
	in := sessionInput{
		At: noon.UTC(), Genesis: w.Genesis(), History: w.Entries(), Root: w.issuer.AuthorityRoot(), Pin: sessionPin{Task: "scoring"},
		Wants: byte(WantEvidence), ClientSeed: seed[:], Nonce: nonce[:], Response: response,
	}
	v := sessionVector{Description: "a session response with real certificates and fresh evidence of the soft platform, what its client concludes, and changes of the input (set) or of fields of the response, by number (fields), each refused with the reason"}
	testworld.Must(0, json.Unmarshal(testworld.Must(json.Marshal(in)), &v.Input))
	v.Accepted = testworld.Must(finishRecorded(v.Input, sessionRefused{}))

	field := func(name string, reason wire.Reason, number int, change func([]byte) []byte) {
		value := append([]byte{}, change(bytes.Clone(testworld.Must(wire.Unframe(wire.LabelSessionResponse, response, 12))[number-1]))...)
		v.Refused = append(v.Refused, sessionRefused{Name: name, Fields: map[string][]byte{fmt.Sprint(number): value}, Reason: reason})
	}
	is := func(b []byte) func([]byte) []byte { return func([]byte) []byte { return b } }
	set := func(name string, reason wire.Reason, path string, value any) {
		v.Refused = append(v.Refused, sessionRefused{Name: name, Set: []sessionSet{{path, value}}, Reason: reason})
	}
	other := newWorld(t)
	strange := other.host(Limits{}).credentials.chain
	short := func(b []byte) []byte { return b[1:] }
	seconds := func(at time.Time) func([]byte) []byte { return is(wire.Uint64(uint64(at.Unix()))) }

	field("another KEM ciphertext", wire.BadDigest, 1, flip)
	field("a short KEM ciphertext", wire.Malformed, 1, short)
	field("another session id", wire.BadDigest, 2, flip)
	field("the range of another session id", wire.BadSignature, 2, func(b []byte) []byte { b[0] ^= 1; return b })
	field("another unit", wire.WrongIdentity, 3, flip)
	field("another identity", wire.WrongIdentity, 4, flip)
	field("another ring", wire.BadDigest, 5, flip)
	field("a policy head that is not in the history", wire.Behind, 6, flip)
	field("another expiry", wire.BadDigest, 7, seconds(noon.Add(time.Minute)))
	field("an expiry in the past", wire.Expired, 7, seconds(noon))
	field("an expiry beyond the certificate", wire.Expired, 7, seconds(noon.Add(61*time.Minute)))
	field("the largest expiry", wire.Expired, 7, is(bytes.Repeat([]byte{0xff}, 8)))
	field("no chain", wire.Malformed, 8, empty)
	field("a chain of one certificate", wire.Malformed, 8, is(wire.Frame(wire.LabelChain, nil)))
	field("a chain that is no certificates", wire.BadChain, 8, is(wire.Frame(wire.LabelChain, nil, nil)))
	field("the chain of a unit of another authority", wire.WrongGenesis, 8, is(strange))
	field("another signature", wire.BadSignature, 9, flip)
	field("the other signature that the key allows", wire.BadSignature, 9, highS)
	field("no signature", wire.BadSignature, 9, empty)
	field("no evidence", wire.BadSignature, 10, empty)
	field("another ticket", wire.BadSignature, 11, flip)
	field("no ticket", wire.BadSignature, 11, empty)
	field("another time", wire.BadSignature, 12, flip)
	set("a field more", wire.Malformed, "/response", wire.AppendField(bytes.Clone(response), nil))
	set("a byte after the last field", wire.Malformed, "/response", append(bytes.Clone(response), 0))
	set("the last byte cut off", wire.Malformed, "/response", response[:len(response)-1])
	set("another nonce", wire.BadDigest, "/nonce", make([]byte, 32))
	set("other wants", wire.BadDigest, "/wants", 0)
	set("another KEM key", wire.BadDigest, "/client_seed", make([]byte, 32))
	set("a pin to the unit's release", wire.BadDigest, "/pin", sessionPin{ID: w.id("1")})
	set("a pin to another release", wire.WrongIdentity, "/pin", sessionPin{ID: w.id("2")})
	set("a pin to another task", wire.WrongIdentity, "/pin", sessionPin{Task: "other"})
	set("a pin to a task that policy does not have", wire.NotFound, "/pin", sessionPin{Task: "none"})
	set("another genesis", wire.WrongGenesis, "/genesis", other.Genesis())
	set("another history", wire.Behind, "/history", other.Entries())
	set("another authority root", wire.WrongRoot, "/authority_root", other.issuer.AuthorityRoot())
	set("after the certificate", wire.Expired, "/at", noon.Add(2*time.Hour).UTC())
	set("six minutes later than the unit", wire.ClockSkew, "/at", noon.Add(6*time.Minute).UTC())
	set("six minutes before the unit", wire.ClockSkew, "/at", noon.Add(-6*time.Minute).UTC())
	for _, c := range []struct {
		name    string
		program string
		faults  attesttest.Faults
		reason  wire.Reason
	}{
		{"evidence for another secret", "scoring 1", attesttest.Faults{OtherReportData: true}, wire.BadNonce},
		{"evidence of an unknown vendor", "scoring 1", attesttest.Faults{OtherRoot: true}, wire.UnknownRoot},
		{"evidence with debug on", "scoring 1", attesttest.Faults{Debug: true}, wire.Debug},
		{"evidence of unknown code", "mallory", attesttest.Faults{}, wire.NotMeasured},
		{"evidence of another release", "scoring 2", attesttest.Faults{}, wire.WrongIdentity},
	} {
		device := w.Device(c.program)
		device.Faults = c.faults
		_, response := respond(device)
		set(c.name, c.reason, "/response", response)
	}
	set("the response to another open request, of the same unit", wire.BadDigest, "/response", w.accepted(h, w.byTask(), WantEvidence, w.Device("scoring 1")).answer)
	return v
}
