package soft

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

var update = flag.Bool("update", false, "write testdata/vectors anew, with new signatures")

const vectorFile = "testdata/vectors/evidence.json"

// vectors are test vectors for a second implementation of the appraiser.
type vectors struct {
	Schema  string          `json:"schema"` // "cohort/soft-vectors/v1"
	Roots   []attest.Digest `json:"roots"`
	Vectors []vector        `json:"vectors"`
}

type vector struct {
	Name        string         `json:"name"`
	Evidence    string         `json:"evidence"` // hex
	Expect      string         `json:"expect"`   // "accepted" or a reason
	Statement   *vectorClaims  `json:"statement,omitempty"`
	Measurement *attest.Digest `json:"measurement,omitempty"` // SHA-256 of the framed measurement
}

type vectorClaims struct {
	Agent      attest.Digest `json:"agent,omitzero"`
	Program    attest.Digest `json:"program"`
	Args       []string      `json:"args"`
	Arguments  attest.Digest `json:"arguments"`
	Debug      bool          `json:"debug"`
	Dynamic    bool          `json:"dynamic"`
	ReportData string        `json:"report_data"` // hex
}

const accepted = "accepted"

func TestVectors(t *testing.T) {
	if *update {
		writeVectors(t)
	}
	text, err := os.ReadFile(vectorFile)
	if err != nil {
		t.Fatal(err)
	}
	var file vectors
	if err := json.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	if len(file.Vectors) < 10 {
		t.Fatalf("got %d vectors, want all", len(file.Vectors))
	}
	for _, v := range file.Vectors {
		t.Run(v.Name, func(t *testing.T) { v.judge(t, attest.Rules{Roots: file.Roots}) })
	}
}

func (v vector) judge(t *testing.T, rules attest.Rules) {
	raw, err := hex.DecodeString(v.Evidence)
	if err != nil {
		t.Fatal(err)
	}
	claims, err := appraise(raw, rules)
	if v.Expect != accepted {
		if !errors.Is(err, wire.Reason(v.Expect)) {
			t.Errorf("got %v, want %v", err, v.Expect)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	s := v.Statement
	if got := Arguments(s.Args); got != s.Arguments {
		t.Errorf("arguments: got %v, want %v", got, s.Arguments)
	}
	if got := wire.Sum(claims.Measurement.Bytes()); got != *v.Measurement {
		t.Errorf("measurement: got %v, want %v", got, v.Measurement)
	}
	want := Statement{Agent: s.Agent, Program: s.Program, Arguments: s.Arguments}.Measurement()
	if err := attest.Match(want, claims.Measurement); err != nil {
		t.Error(err)
	}
	if claims.Debug != s.Debug || claims.Dynamic != s.Dynamic || hex.EncodeToString(claims.ReportData) != s.ReportData {
		t.Errorf("got %+v, want %+v", claims, s)
	}
}

// vectorKey returns the key of the vectors' daemon.
func vectorKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	seed := wire.Sum([]byte("the daemon of the soft vectors"))
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), seed[:])
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func writeVectors(t *testing.T) {
	t.Helper()
	key := vectorKey(t)
	file := vectors{Schema: "cohort/soft-vectors/v1", Roots: rulesFor(t, key).Roots}
	for _, s := range []struct {
		name      string
		statement Statement
		args      []string
	}{
		{"program", Statement{}, []string{}},
		{"program with arguments", Statement{}, []string{"--model", "m.json", "", "ä"}},
		{"agent", Statement{Agent: wire.Sum([]byte("agent"))}, []string{"x"}},
		{"debug", Statement{Debug: true}, []string{}},
		{"dynamic", Statement{Dynamic: true}, []string{}},
	} {
		file.Vectors = append(file.Vectors, acceptedVector(t, key, s.name, s.statement, s.args))
	}
	file.Vectors = append(file.Vectors, refusedVectors(t, key)...)
	text, err := json.MarshalIndent(file, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(vectorFile, append(text, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
}

func acceptedVector(t *testing.T, key *ecdsa.PrivateKey, name string, s Statement, args []string) vector {
	t.Helper()
	s.Program, s.Arguments = wire.Sum([]byte("program")), Arguments(args)
	s.ReportData = attest.BindReportData(wire.LabelTrust, []byte("nonce"), []byte("root"), []byte("head"))
	measurement := wire.Sum(s.Measurement().Bytes())
	return vector{
		Name: name, Evidence: hex.EncodeToString(sign(t, key, s)), Expect: accepted, Measurement: &measurement,
		Statement: &vectorClaims{
			Agent: s.Agent, Program: s.Program, Args: args, Arguments: s.Arguments,
			Debug: s.Debug, Dynamic: s.Dynamic, ReportData: hex.EncodeToString(s.ReportData[:]),
		},
	}
}

func refusedVectors(t *testing.T, key *ecdsa.PrivateKey) []vector {
	t.Helper()
	good := func() []byte { return sign(t, key, goodStatement()) }
	flipped := good()
	flipped[len(flipped)-1] ^= 1
	var all []vector
	for _, c := range []struct {
		name string
		raw  []byte
		want wire.Reason
	}{
		{"signature with its last bit flipped", flipped, wire.BadSignature},
		{"signature with the larger s", otherS(good()), wire.BadSignature},
		{"signature in ASN.1", derSignature(good()), wire.Malformed},
		{"last byte missing", good()[:len(good())-1], wire.Malformed},
		{"one byte more", append(good(), 0), wire.Malformed},
		{"one field more", wire.AppendField(good(), nil), wire.Malformed},
		{"an unknown flag", resign(t, key, field(4, []byte{4})), wire.Malformed},
		{"an agent of zeros", resign(t, key, field(1, make([]byte, 32))), wire.Malformed},
		{"no program", resign(t, key, field(2, nil)), wire.Malformed},
		{"report data of 32 bytes", resign(t, key, field(5, make([]byte, 32))), wire.Malformed},
		{"another daemon", sign(t, newKey(t), goodStatement()), wire.UnknownRoot},
	} {
		all = append(all, vector{Name: c.name, Evidence: hex.EncodeToString(c.raw), Expect: string(c.want)})
	}
	return all
}
