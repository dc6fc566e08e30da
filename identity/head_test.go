package identity

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// claim returns the claim of w's authority at a time.
func (w *world) claim(at time.Time) HeadClaim {
	return HeadClaim{Head: w.policy.PolicyHead(), Steps: uint64(len(w.policy.Heads())), At: at, Spread: 2 * time.Second}
}

// head returns the proved head of w at a time, after changes to the claim.
func (w *world) head(t testing.TB, at time.Time, changes ...func(*HeadClaim)) []byte {
	t.Helper()
	c := w.claim(at)
	for _, change := range changes {
		change(&c)
	}
	return testworld.Must(ProveHead(c, testworld.Must(w.issuer.AuthorityLeaf(at))))
}

func (w *world) rootCertificate(t testing.TB) *x509.Certificate {
	return parse(t, w.issuer.AuthorityRoot())[0]
}

func TestProvedHead(t *testing.T) {
	w := newWorld(t, 'a')
	b := w.head(t, noon.Add(1500*time.Millisecond), func(c *HeadClaim) { c.Spread += time.Microsecond })
	h, err := ParseHead(b, w.policy, w.rootCertificate(t), noon.Add(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	if h.PolicyHead() != w.policy.PolicyHead() || h.Steps() != 1 || !h.SignedAt().Equal(noon.Add(time.Second)) || h.Spread() != 2*time.Second || !h.Verified() {
		t.Errorf("got %v, %d steps, at %v, spread %v", h.PolicyHead(), h.Steps(), h.SignedAt(), h.Spread())
	}
	if !bytes.Equal(h.Bytes(), b) || len(b) > MaxHead {
		t.Errorf("got %d bytes, want the %d that were parsed", len(h.Bytes()), len(b))
	}
	if again, err := DecodeHeadField(h.Field()); err != nil || !bytes.Equal(again, b) {
		t.Errorf("got %x, %v from the field", again, err)
	}
	if (ProvedHead{}).Verified() || (ProvedHead{}).Field() != "" {
		t.Error("the zero ProvedHead proves something")
	}
}

// TestProvedHeadNewer: a head newer than the checker's history is accepted; that is the purpose
// of proved heads.
func TestProvedHeadNewer(t *testing.T) {
	w := newWorld(t, 'a')
	newer := w.next(`quorum = 1`, `quorum = 1 # changed`)
	h, err := ParseHead(newer.head(t, noon), w.policy, w.rootCertificate(t), noon)
	if err != nil || h.PolicyHead() != newer.policy.PolicyHead() || h.Steps() != 2 {
		t.Fatalf("got %v, %d steps, %v", h.PolicyHead(), h.Steps(), err)
	}
	if h, err = ParseHead(w.head(t, noon), newer.policy, w.rootCertificate(t), noon); err != nil || h.Steps() != 1 {
		t.Fatalf("an older head of the same history: got %d steps, %v", h.Steps(), err)
	}
}

func TestParseHeadRefuses(t *testing.T) {
	w, other := newWorld(t, 'a'), newWorld(t, 'b')
	fork := w.next(`quorum = 1`, `quorum = 1 # one`)
	twin := w.next(`quorum = 1`, `quorum = 1 # two`)
	good := w.head(t, noon)
	fields := testworld.Must(wire.Unframe(wire.LabelHead, good, 6))
	with := func(i int, field []byte) []byte {
		changed := append([][]byte(nil), fields...)
		changed[i] = field
		return wire.Frame(wire.LabelHead, changed...)
	}
	unit := testworld.Must(w.issuer.UnitLeaf(w.grant(t, "keys", "1.4"), &unitKey("signing").PublicKey, noon))
	unit.Key = unitKey("signing")
	leaf := testworld.Must(w.issuer.AuthorityLeaf(noon))
	zero := w.claim(noon)
	zero.Head = wire.Digest{}
	for name, c := range map[string]struct {
		head   []byte
		policy policy.Approved
		root   *x509.Certificate
		at     time.Time
		want   wire.Reason
	}{
		"nothing":                 {head: nil, want: wire.Malformed},
		"another label":           {head: wire.Frame(wire.LabelReport, fields...), want: wire.Malformed},
		"a field more":            {head: wire.AppendField(good, nil), want: wire.Malformed},
		"a short head":            {head: with(0, fields[0][1:]), want: wire.Malformed},
		"no head":                 {head: with(0, make([]byte, 32)), want: wire.Malformed},
		"no steps":                {head: with(1, wire.Uint64(0)), want: wire.Malformed},
		"steps beyond a history":  {head: with(1, wire.Uint64(wire.MaxHistory+1)), want: wire.Malformed},
		"a time beyond all":       {head: with(2, wire.Uint64(1<<63)), want: wire.Malformed},
		"a spread beyond all":     {head: with(3, wire.Uint64(1<<62)), want: wire.Malformed},
		"a short spread":          {head: with(3, fields[3][1:]), want: wire.Malformed},
		"no certificate":          {head: with(4, []byte("leaf")), want: wire.Malformed},
		"too many bytes":          {head: with(5, make([]byte, MaxHead)), want: wire.TooLarge},
		"another signature":       {head: with(5, append([]byte{fields[5][0], fields[5][1] ^ 1}, fields[5][2:]...)), want: wire.BadSignature},
		"no signature":            {head: with(5, nil), want: wire.BadSignature},
		"another head":            {head: with(0, append([]byte{1}, fields[0][1:]...)), want: wire.BadSignature},
		"another number of steps": {head: with(1, wire.Uint64(2)), want: wire.BadSignature},
		"another time":            {head: with(2, wire.Uint64(uint64(noon.Unix()+1))), want: wire.BadSignature},
		"another spread":          {head: with(3, wire.Uint64(1)), want: wire.BadSignature},
		"of another authority":    {head: other.head(t, noon), want: wire.BadChain},
		"under another root":      {head: other.head(t, noon), root: other.rootCertificate(t), want: wire.WrongRoot},
		"without a root":          {head: good, root: &x509.Certificate{}, want: wire.WrongRoot},
		"by a unit":               {head: testworld.Must(ProveHead(w.claim(noon), unit)), want: wire.WrongKind},
		"of a fork":               {head: twin.head(t, noon), policy: fork.policy, want: wire.Behind},
		"signed before its leaf":  {head: testworld.Must(ProveHead(w.claim(noon.Add(-2*time.Hour)), leaf)), want: wire.ClockSkew},
		"signed after its leaf":   {head: testworld.Must(ProveHead(w.claim(noon.Add(2*time.Hour)), leaf)), at: noon.Add(30 * time.Minute), want: wire.ClockSkew},
		"of the future":           {head: testworld.Must(ProveHead(w.claim(noon.Add(6*time.Minute)), leaf)), want: wire.ClockSkew},
		"after its leaf":          {head: good, at: noon.Add(2 * time.Hour), want: wire.ClockSkew},
		"long before its leaf":    {head: good, at: noon.Add(-2 * time.Hour), want: wire.ClockSkew},
		"under no policy":         {head: good, policy: policy.Approved{}, want: wire.BadPolicy},
	} {
		if !c.policy.Genuine() && c.want != wire.BadPolicy {
			c.policy = w.policy
		}
		if c.root == nil {
			c.root = w.rootCertificate(t)
		}
		if c.at.IsZero() {
			c.at = noon
		}
		h, err := ParseHead(c.head, c.policy, c.root, c.at)
		if got := wire.ReasonOf(err); err == nil || got != c.want || h.Verified() {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
	if _, err := ProveHead(zero, leaf); wire.ReasonOf(err) != wire.BadRequest {
		t.Errorf("proving no head: got %v", err)
	}
	for _, field := range []string{"", "=", "aGVhZA==", "a", strings.Repeat("A", 2*MaxHead)} {
		if _, err := DecodeHeadField(field); err == nil {
			t.Errorf("field %.10q: got no refusal", field)
		}
	}
}

// TestProvedHeadClocks: clocks may differ by 5 minutes. A head of an authority whose clock is
// ahead or behind is accepted.
func TestProvedHeadClocks(t *testing.T) {
	w := newWorld(t, 'a')
	begin := testworld.Must(windowAt(AuthorityLeafLifetime, noon)).notBefore()
	end := testworld.Must(windowAt(AuthorityLeafLifetime, noon)).notAfter()
	leaf := testworld.Must(w.issuer.AuthorityLeaf(noon))
	for _, c := range []struct {
		signed, at time.Time
		ok         bool
	}{
		{begin, begin.Add(-wire.MaxClockSkew), true},
		{begin, begin.Add(-wire.MaxClockSkew - time.Second), false},
		{end, end.Add(wire.MaxClockSkew), true},
		{end, end.Add(wire.MaxClockSkew + time.Second), false},
		{noon.Add(wire.MaxClockSkew), noon, true},
	} {
		_, err := ParseHead(testworld.Must(ProveHead(w.claim(c.signed), leaf)), w.policy, w.rootCertificate(t), c.at)
		if (err == nil) != c.ok {
			t.Errorf("signed %v, looked at %v: got %v", c.signed, c.at, err)
		}
	}
}

func FuzzParseHead(f *testing.F) {
	w := newWorld(f, 'a')
	root := w.rootCertificate(f)
	f.Add(w.head(f, noon))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseHead(b, w.policy, root, noon)
		if err != nil {
			return
		}
		if !bytes.Equal(h.Bytes(), b) {
			t.Fatalf("got %x of %x", h.Bytes(), b)
		}
		again, err := DecodeHeadField(h.Field())
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("got %x, %v of the field of %x", again, err, b)
		}
	})
}

// headVector is testdata/vectors/head.json. Byte strings are hexadecimal.
type headVector struct {
	Description string      `json:"description"`
	Policy      string      `json:"policy"`
	Root        string      `json:"authority_root_certificate"`
	Head        wire.Digest `json:"head"`
	Steps       int         `json:"steps"`
	Time        string      `json:"time"`
	Spread      int64       `json:"spread_ms"`
	Signed      string      `json:"signed"`
	ProvedHead  string      `json:"proved_head"`
	Field       string      `json:"field"`
}

func TestHeadVector(t *testing.T) {
	path, w := filepath.Join("testdata", "vectors", "head.json"), newWorld(t, 'a')
	if *update {
		h := testworld.Must(ParseHead(w.head(t, noon), w.policy, w.rootCertificate(t), noon))
		v := headVector{
			Description: "docs/spec/head.md; the world of identity.json. The signature is a fresh one each time that this file is made",
			Policy:      string(w.policy.Document().Source()), Root: hex.EncodeToString(w.issuer.AuthorityRoot()), Head: h.PolicyHead(), Steps: h.Steps(),
			Time: h.SignedAt().Format(time.RFC3339), Spread: h.Spread().Milliseconds(),
			Signed: hex.EncodeToString(w.claim(noon).message()), ProvedHead: hex.EncodeToString(h.Bytes()), Field: h.Field(),
		}
		if err := os.WriteFile(path, append(testworld.Must(json.MarshalIndent(v, "", "  ")), '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var v headVector
	if err := json.Unmarshal(testworld.Must(os.ReadFile(path)), &v); err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(w.claim(noon).message()); got != v.Signed || v.Policy != string(w.policy.Document().Source()) {
		t.Errorf("signed bytes: got %s, want %s", got, v.Signed)
	}
	h, err := ParseHead(testworld.Must(DecodeHeadField(v.Field)), w.policy, parse(t, testworld.Must(hex.DecodeString(v.Root)))[0], noon)
	if err != nil {
		t.Fatal(err)
	}
	if hex.EncodeToString(h.Bytes()) != v.ProvedHead || h.PolicyHead() != v.Head || h.Steps() != v.Steps || h.SignedAt().Format(time.RFC3339) != v.Time || h.Spread().Milliseconds() != v.Spread {
		t.Errorf("got another head than that of %s", path)
	}
}
