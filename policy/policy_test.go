package policy

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"golang.org/x/crypto/ssh"
)

// good is a policy that uses every key there is. Tests break it in one place.
const good = `# Policy of a clinic.
schema       = "cohort/policy/v1"
trust_domain = "clinic.example"
sequence     = 1
previous     = ""
created      = 2026-11-22T09:00:00Z   # UTC
development  = true

[owners]
quorum = 2
approve_within = "168h"
delay = "1h"
keys = [
  { name = "ana", ssh = "ANA" },
  { name = "ben", ssh = "BEN" },
  { name = "eva", ssh = "EVA" },
]

[platform.soft]
roots = ["sha256:1111111111111111111111111111111111111111111111111111111111111111"]
debug = true

[measured.agent-1]
sha256 = "2222222222222222222222222222222222222222222222222222222222222222"

[authority]
root = "sha256:3333333333333333333333333333333333333333333333333333333333333333"
machines = ["chip:0123456789abcdef"]
reference = [ { platform = "soft", program = "@agent-1" } ]

[task.keys]
key_mode = "unit"
[task.keys.release."1.4"]
reference = [ { platform = "soft", program = "sha256:4444444444444444444444444444444444444444444444444444444444444444", any = ["agent", "args"] } ]

[task.scoring]
key_mode = "shared"
names = ["scoring.clinic.example", "score.clinic.example"]
lifetime = "30m"
units = 50
calls = ["keys"]
[task.scoring.release."2026.10"]
reference = [ { platform = "soft", agent = "@agent-1", program = "sha256:5555555555555555555555555555555555555555555555555555555555555555" } ]
[task.scoring.release."2026.11"]
reference = [
  { platform = "soft", agent = "@agent-1", program = "sha256:6666666666666666666666666666666666666666666666666666666666666666", args = ["--model", "m.json"] },
  { platform = "soft", agent = "@agent-1", program = "sha256:7777777777777777777777777777777777777777777777777777777777777777" },
]
continues = "2026.10"
dynamic = true
env = { LANG = "C" }
oneoff = true
`

var start = time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC)

// digest is the digest whose text is one digit 64 times.
func digest(digit string) attest.Digest {
	d, err := wire.ParseDigest(strings.Repeat(digit, 64))
	if err != nil {
		panic(err)
	}
	return d
}

// fixed is an ed25519 key that is the same in every run.
func fixed(name string) ssh.Signer {
	seed := wire.Sum([]byte("test owner " + name))
	signer, err := ssh.NewSignerFromKey(ed25519.NewKeyFromSeed(seed[:]))
	if err != nil {
		panic(err)
	}
	return signer
}

func keyLine(key ssh.PublicKey) string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
}

// house is the three owners of the good policy: two with files, one with a
// hardware key.
type house struct {
	owners map[string]ssh.Signer
}

func newHouse() *house {
	return &house{map[string]ssh.Signer{"ana": fixed("ana"), "ben": fixed("ben"), "eva": newToken(ssh.KeyAlgoSKECDSA256)}}
}

// text is the good policy with the owners' keys, after edits "old → new".
func (h *house) text(t testing.TB, edits ...string) []byte {
	t.Helper()
	s := good
	for i := 0; i < len(edits); i += 2 {
		if strings.Count(s, edits[i]) == 0 {
			t.Fatalf("the good policy has no %q", edits[i])
		}
		s = strings.ReplaceAll(s, edits[i], edits[i+1])
	}
	for name, signer := range h.owners {
		s = strings.ReplaceAll(s, strings.ToUpper(name)+`"`, keyLine(signer.PublicKey())+`"`)
	}
	return []byte(s)
}

func (h *house) sign(t testing.TB, ns Namespace, raw []byte, names ...string) []string {
	t.Helper()
	var out []string
	for _, name := range names {
		sig, err := Sign(h.owners[name], ns, raw)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, sig)
	}
	return out
}

func (h *house) step(t testing.TB, raw []byte, names ...string) Step {
	t.Helper()
	return Step{raw, h.sign(t, ForPolicy, raw, names...)}
}

// found is the approved genesis.
func (h *house) found(t testing.TB, edits ...string) Approved {
	t.Helper()
	raw := h.text(t, edits...)
	a, err := Genesis(wire.Sum(raw), h.step(t, raw, "ana", "ben"))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// next is the text that follows a, after edits.
func (h *house) next(t testing.TB, a Approved, edits ...string) []byte {
	t.Helper()
	d := a.Document()
	place := []string{
		"sequence     = 1\n", fmt.Sprintf("sequence     = %d\n", d.Sequence+1),
		`previous     = ""`, fmt.Sprintf("previous     = %q", d.Digest()),
	}
	return h.text(t, append(place, edits...)...)
}

func mustParse(t testing.TB, raw []byte) *Document {
	t.Helper()
	d, err := Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// refused demands exactly this reason.
func refused(t testing.TB, err error, want attest.Reason) {
	t.Helper()
	if err == nil {
		t.Fatalf("got no error, want reason %q", want)
	}
	if got := wire.ReasonOf(err); got != want {
		t.Fatalf("got reason %q (%v), want %q", got, err, want)
	}
}

// token is an emulated hardware key: what the chip signs is flags, counter and
// two digests.
type token struct {
	key         ssh.PublicKey
	sign        func(data []byte) []byte // the blob of the inner signature
	flags       byte
	application string
}

func newToken(algorithm string) *token { return newTokenFor(algorithm, "ssh:") }

func newTokenFor(algorithm, application string) *token {
	k := &token{flags: 1, application: application}
	var blob []byte
	switch algorithm {
	case ssh.KeyAlgoSKED25519:
		public, private, _ := ed25519.GenerateKey(rand.Reader)
		k.sign = func(data []byte) []byte { return ed25519.Sign(private, data) }
		blob = ssh.Marshal(struct {
			Type        string
			Key         []byte
			Application string
		}{algorithm, public, application})
	case ssh.KeyAlgoSKECDSA256:
		private, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		inner, _ := ssh.NewSignerFromKey(private)
		k.sign = func(data []byte) []byte {
			sig, _ := inner.Sign(rand.Reader, data)
			return sig.Blob
		}
		point, _ := private.PublicKey.Bytes()
		blob = ssh.Marshal(struct {
			Type, Curve string
			Key         []byte
			Application string
		}{algorithm, "nistp256", point, application})
	}
	key, err := ssh.ParsePublicKey(blob)
	if err != nil {
		panic(err)
	}
	k.key = key
	return k
}

func (k *token) PublicKey() ssh.PublicKey { return k.key }

func (k *token) Sign(_ io.Reader, data []byte) (*ssh.Signature, error) {
	app, message := wire.Sum([]byte(k.application)), wire.Sum(data)
	rest := []byte{k.flags, 0, 0, 0, 9}
	signed := bytes.Join([][]byte{app[:], rest, message[:]}, nil)
	return &ssh.Signature{Format: k.key.Type(), Blob: k.sign(signed), Rest: rest}, nil
}

func TestGoodPolicy(t *testing.T) {
	h := newHouse()
	a := h.found(t)
	next, err := a.Next(h.step(t, h.next(t, a), "ben", "eva"))
	if err != nil {
		t.Fatal(err)
	}
	if got := next.Document().Sequence; got != 2 {
		t.Errorf("got sequence %d, want 2", got)
	}
}
