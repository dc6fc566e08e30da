package trustresponse

import (
	"bytes"
	"crypto/sha512"
	"crypto/x509"
	"encoding/hex"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

const tasks = `
[task.scoring]
key_mode = "shared"
names = ["scoring.clinic.example"]
[task.scoring.release."1"]
reference = [ { platform = "soft", program = "scoring" } ]
`

var noon = testworld.Noon

// world is an authority's keys under one policy.
type world struct {
	*testworld.World
	issuer *identity.Issuer
	leaf   identity.Leaf
	root   *x509.Certificate
	claim  Claim
}

func newWorld(t testing.TB) *world {
	keys := testworld.Must(identity.Derive(identity.NewSecret()))
	w := &world{World: testworld.New(t).SignFirst(keys.RootDigest(), tasks)}
	w.issuer = testworld.Must(keys.Issuer(w.Policy()))
	w.leaf = testworld.Must(w.issuer.AuthorityLeaf(noon))
	w.root = testworld.Must(x509.ParseCertificate(w.issuer.AuthorityRoot()))
	w.claim = Claim{
		Genesis: w.Genesis(), Root: keys.RootDigest(), Head: w.Policy().PolicyHead(), Steps: 1, At: noon, Nonce: make([]byte, 32), Evidence: wire.Sum([]byte("evidence")),
	}
	return w
}

func (w *world) expect() Expect {
	return Expect{Policy: w.Policy(), Root: w.root, Nonce: w.claim.Nonce, Evidence: []byte("evidence"), At: noon}
}

// TestStatement: a statement of an authority is accepted, however many of its fields are empty,
// and states the report data of its own kind of evidence.
func TestStatement(t *testing.T) {
	w := newWorld(t)
	for name, change := range map[string]func(*Claim, *Expect){
		"with a nonce":    func(*Claim, *Expect) {},
		"without":         func(c *Claim, e *Expect) { c.Nonce, e.Nonce = nil, nil },
		"a checkpoint":    func(c *Claim, _ *Expect) { c.Checkpoint = make([]byte, maxCheckpoint) },
		"half a second":   func(c *Claim, _ *Expect) { c.At = c.At.Add(time.Second / 2) },
		"10 minutes old":  func(_ *Claim, e *Expect) { e.At = e.At.Add(wire.TrustLifetime) },
		"5 minutes ahead": func(_ *Claim, e *Expect) { e.At = e.At.Add(-wire.MaxClockSkew) },
	} {
		claim, expect := w.claim, w.expect()
		change(&claim, &expect)
		b := testworld.Must(SignStatement(claim, w.leaf))
		s, err := ParseStatement(b, expect)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !s.SignedAt().Equal(noon) || len(b) > wire.MaxTrustStatement {
			t.Errorf("%s: got %v, %d bytes", name, s.SignedAt(), len(b))
		}
		claim.At = noon
		if s.ReportData() != claim.ReportData() {
			t.Errorf("%s: got report data %x, want %x", name, s.ReportData(), claim.ReportData())
		}
	}
}

// TestReportData compares the report data with the framing of docs/spec/trust.md, written out.
func TestReportData(t *testing.T) {
	c := Claim{Root: wire.Digest{1}, Head: wire.Digest{2}, At: time.Unix(0x65, 0), Nonce: bytes.Repeat([]byte{7}, 32)}
	framed := func(label string, fields ...string) attest.ReportData {
		b := append([]byte{byte(len(label))}, label...)
		for _, f := range fields {
			field := testworld.Must(hex.DecodeString(f))
			b = append(append(b, 0, 0, 0, byte(len(field))), field...)
		}
		return attest.ReportData(sha512.Sum512(b))
	}
	pad := "00000000000000000000000000000000000000000000000000000000000000"
	if got, want := c.ReportData(), framed("cohort trust v1", hex.EncodeToString(c.Nonce), "01"+pad, "02"+pad); got != want {
		t.Errorf("with a nonce: got %x, want %x", got, want)
	}
	c.Nonce = nil
	if got, want := c.ReportData(), framed("cohort timed trust v1", "01"+pad, "02"+pad, "0000000000000065"); got != want {
		t.Errorf("without: got %x, want %x", got, want)
	}
}

// TestSignStatementRefuses: values at both ends of their ranges that have no encoding. The
// refusals of a reader are in client/testdata/vectors/trust-statement.json.
func TestSignStatementRefuses(t *testing.T) {
	w := newWorld(t)
	for name, change := range map[string]func(*Claim){
		"no genesis":         func(c *Claim) { c.Genesis = wire.Digest{} },
		"no root":            func(c *Claim) { c.Root = wire.Digest{} },
		"no head":            func(c *Claim) { c.Head = wire.Digest{} },
		"no evidence":        func(c *Claim) { c.Evidence = wire.Digest{} },
		"no steps":           func(c *Claim) { c.Steps = 0 },
		"too many steps":     func(c *Claim) { c.Steps = wire.MaxHistory + 1 },
		"all steps":          func(c *Claim) { c.Steps = 1<<64 - 1 },
		"before 1970":        func(c *Claim) { c.At = time.Unix(-1, 0) },
		"after 2200":         func(c *Claim) { c.At = lastTime.Add(time.Second) },
		"a short nonce":      func(c *Claim) { c.Nonce = make([]byte, 31) },
		"a long nonce":       func(c *Claim) { c.Nonce = make([]byte, 33) },
		"a large checkpoint": func(c *Claim) { c.Checkpoint = make([]byte, maxCheckpoint+1) },
	} {
		claim := w.claim
		change(&claim)
		if b, err := SignStatement(claim, w.leaf); wire.ReasonOf(err) != wire.BadRequest || b != nil {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// FuzzParseStatement demands that a statement which is accepted is the one encoding of its claim.
func FuzzParseStatement(f *testing.F) {
	w := newWorld(f)
	expect := w.expect()
	f.Add(testworld.Must(SignStatement(w.claim, w.leaf)))
	claim := w.claim
	claim.Nonce, claim.Checkpoint = nil, []byte("checkpoint")
	f.Add(testworld.Must(SignStatement(claim, w.leaf)))
	f.Fuzz(func(t *testing.T, b []byte) {
		unverified, signed, err := decodeStatement(b)
		if err != nil {
			if wire.ReasonOf(err) != wire.Malformed && wire.ReasonOf(err) != wire.TooLarge {
				t.Fatalf("got %v", err)
			}
			if _, err := ParseStatement(b, expect); err == nil {
				t.Fatal("accepted what has another encoding")
			}
			return
		}
		if again := wire.AppendField(wire.AppendField(unverified.message(), signed.Leaf), signed.Signature); !bytes.Equal(again, b) {
			t.Fatalf("got %x of %x", again, b)
		}
	})
}
