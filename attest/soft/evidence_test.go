package soft

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"math/big"
	"reflect"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/soft/softrules"
	"github.com/cohort-tee/cohort/internal/wire"
)

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func rulesFor(t testing.TB, key *ecdsa.PrivateKey) attest.Rules {
	t.Helper()
	root, err := RootOf(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return attest.Rules{Roots: []attest.Digest{root}}
}

func goodStatement() Statement {
	return Statement{
		Agent: wire.Sum([]byte("agent")), Program: wire.Sum([]byte("program")), Arguments: Arguments([]string{"--model", "m.json"}),
		ReportData: attest.BindReportData(wire.LabelIssue, []byte("nonce")),
	}
}

func sign(t testing.TB, key *ecdsa.PrivateKey, s Statement) []byte {
	t.Helper()
	raw, err := Sign(key, s)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// appraise appraises evidence at the zero time: no check of this platform depends on time.
func appraise(raw []byte, rules attest.Rules) (attest.Claims, error) {
	return softAppraiser{}.Appraise(raw, nil, rules, time.Time{})
}

func TestEvidenceRoundTrip(t *testing.T) {
	key := newKey(t)
	for name, change := range map[string]func(*Statement){
		"agent":    func(*Statement) {},
		"no agent": func(s *Statement) { s.Agent = attest.Digest{} },
		"debug":    func(s *Statement) { s.Debug = true },
		"dynamic":  func(s *Statement) { s.Dynamic = true },
		"all":      func(s *Statement) { s.Debug, s.Dynamic = true, true },
	} {
		t.Run(name, func(t *testing.T) {
			want := goodStatement()
			change(&want)
			rules := rulesFor(t, key)
			got, err := appraise(sign(t, key, want), rules)
			if err != nil {
				t.Fatal(err)
			}
			expected := attest.Claims{
				Measurement: want.Measurement(), ReportData: want.ReportData[:],
				Debug: want.Debug, Dynamic: want.Dynamic, Chip: rules.Roots[0].Hex()[:16],
			}
			if !reflect.DeepEqual(got, expected) {
				t.Errorf("got %+v, want %+v", got, expected)
			}
		})
	}
}

func TestMeasurementHasEveryRegister(t *testing.T) {
	var got []string
	for _, r := range goodStatement().Measurement().Registers {
		got = append(got, r.Name)
	}
	if want := softrules.Rules.RegisterNames(); !reflect.DeepEqual(got, want) {
		t.Errorf("got registers %v, want %v", got, want)
	}
}

func TestArgumentsAreNotJoined(t *testing.T) {
	lists := [][]string{nil, {""}, {"a b"}, {"a", "b"}, {"b", "a"}, {"a", "b", ""}}
	seen := map[attest.Digest]int{}
	for i, args := range lists {
		if j, ok := seen[Arguments(args)]; ok {
			t.Errorf("%q and %q have one digest", args, lists[j])
		}
		seen[Arguments(args)] = i
	}
}

func TestEveryBitIsCovered(t *testing.T) {
	key := newKey(t)
	rules := rulesFor(t, key)
	raw := sign(t, key, goodStatement())
	for i := range raw {
		for bit := range 8 {
			raw[i] ^= 1 << bit
			if _, err := appraise(raw, rules); err == nil {
				t.Errorf("byte %d bit %d flipped: accepted", i, bit)
			}
			raw[i] ^= 1 << bit
		}
	}
	if _, err := appraise(raw, rules); err != nil {
		t.Errorf("nothing flipped: %v", err)
	}
}

func TestEveryTruncationIsMalformed(t *testing.T) {
	key := newKey(t)
	rules := rulesFor(t, key)
	raw := sign(t, key, goodStatement())
	for n := range raw {
		if _, err := appraise(raw[:n], rules); !errors.Is(err, wire.Malformed) {
			t.Errorf("first %d bytes: got %v, want %v", n, err, wire.Malformed)
		}
	}
	if _, err := appraise(append(raw, 0), rules); !errors.Is(err, wire.Malformed) {
		t.Errorf("one byte appended: got %v, want %v", err, wire.Malformed)
	}
}

// resign changes fields, frames them and signs the result, so that only the form of a field can
// be wrong.
func resign(t testing.TB, key *ecdsa.PrivateKey, change func(fields [][]byte) [][]byte) []byte {
	t.Helper()
	fields, err := wire.Unframe(wire.LabelSoftEvidence, sign(t, key, goodStatement()), evidenceParts)
	if err != nil {
		t.Fatal(err)
	}
	fields = change(fields[:evidenceParts-1])
	signed := wire.Frame(wire.LabelSoftEvidence, fields...)
	digest := wire.Sum(signed)
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	if s.Cmp(halfOrder) > 0 {
		s.Sub(elliptic.P256().Params().N, s)
	}
	return wire.AppendField(signed, append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...))
}

// field returns a change of one field, for resign.
func field(i int, value []byte) func([][]byte) [][]byte {
	return func(fields [][]byte) [][]byte {
		fields[i] = value
		return fields
	}
}

func same(fields [][]byte) [][]byte { return fields }

// otherS replaces the signature (r, s) by (r, n-s), which verifies too.
func otherS(raw []byte) []byte {
	at := len(raw) - scalarSize
	s := new(big.Int).SetBytes(raw[at:])
	s.Sub(elliptic.P256().Params().N, s)
	s.FillBytes(raw[at:])
	return raw
}

// derSignature replaces the signature by its ASN.1 encoding.
func derSignature(raw []byte) []byte {
	at := len(raw) - signatureSize
	b := []byte{0x30, 0, 0x02, 33, 0}
	b = append(append(b, raw[at:at+scalarSize]...), 0x02, scalarSize)
	b = append(b, raw[at+scalarSize:]...)
	b[1] = byte(len(b) - 2)
	return wire.AppendField(raw[:at-4:at-4], b)
}

func p384(t testing.TB) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return spkiOf(t, &key.PublicKey)
}

func rsaKey(t testing.TB) []byte {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return spkiOf(t, &key.PublicKey)
}

func spkiOf(t testing.TB, key any) []byte {
	t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return spki
}

// cutOff returns rules that accept the root and cut off its chip.
func cutOff(rules attest.Rules) attest.Rules {
	rules.Soft.CutChips = [][]byte{rules.Roots[0][:chipDigits/2]}
	return rules
}

func TestRefusals(t *testing.T) {
	key, other := newKey(t), newKey(t)
	rules := rulesFor(t, key)
	good := func() []byte { return sign(t, key, goodStatement()) }
	zero := make([]byte, 32)
	for _, c := range []struct {
		name  string
		raw   []byte
		rules attest.Rules
		want  wire.Reason
	}{
		{"nothing", nil, rules, wire.Malformed},
		{"another label", wire.Frame(wire.LabelSoftSeal, make([][]byte, evidenceParts)...), rules, wire.Malformed},
		{"no signature", func() []byte { b := good(); return b[:len(b)-4-signatureSize] }(), rules, wire.Malformed},
		{"a field more", wire.AppendField(good(), nil), rules, wire.Malformed},
		{"key: empty", resign(t, key, field(0, nil)), rules, wire.Malformed},
		{"key: P-384", resign(t, key, field(0, p384(t))), rules, wire.Malformed},
		{"key: RSA", resign(t, key, field(0, rsaKey(t))), rules, wire.Malformed},
		{"agent: 31 bytes", resign(t, key, field(1, zero[:31])), rules, wire.Malformed},
		{"agent: zero digest", resign(t, key, field(1, zero)), rules, wire.Malformed},
		{"program: none", resign(t, key, field(2, nil)), rules, wire.Malformed},
		{"program: zero digest", resign(t, key, field(2, zero)), rules, wire.Malformed},
		{"args: none", resign(t, key, field(3, nil)), rules, wire.Malformed},
		{"flags: none", resign(t, key, field(4, nil)), rules, wire.Malformed},
		{"flags: two bytes", resign(t, key, field(4, []byte{0, 0})), rules, wire.Malformed},
		{"flags: unknown", resign(t, key, field(4, []byte{4})), rules, wire.Malformed},
		{"report data: 32 bytes", resign(t, key, field(5, zero)), rules, wire.Malformed},
		{"signature: ASN.1", derSignature(good()), rules, wire.Malformed},
		{"signature: other s", otherS(good()), rules, wire.BadSignature},
		{"signature: by another key", resign(t, other, field(0, spkiOf(t, &key.PublicKey))), rules, wire.BadSignature},
		{"signature: of other evidence", func() []byte {
			b, s := good(), goodStatement()
			s.Debug = true
			return append(b[:len(b)-signatureSize], sign(t, key, s)[len(b)-signatureSize:]...)
		}(), rules, wire.BadSignature},
		{"root: another daemon", sign(t, other, goodStatement()), rules, wire.UnknownRoot},
		{"root: zero rules", good(), attest.Rules{}, wire.UnknownRoot},
		{"root: debug allowed, no root", good(), attest.Rules{Debug: true}, wire.UnknownRoot},
		{"chip: cut off", good(), cutOff(rules), wire.NoPlatform},
	} {
		t.Run(c.name, func(t *testing.T) {
			claims, err := appraise(c.raw, c.rules)
			if !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if !reflect.DeepEqual(claims, attest.Claims{}) {
				t.Errorf("refused with claims %+v", claims)
			}
		})
	}
	// The rows above rely on resign making good evidence when no field changes.
	if _, err := appraise(resign(t, key, same), rules); err != nil {
		t.Errorf("unchanged: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	key := newKey(f)
	f.Add(sign(f, key, goodStatement()))
	f.Add(sign(f, key, Statement{Program: wire.Sum(nil), Arguments: Arguments(nil)}))
	f.Add(resign(f, key, field(4, []byte{3})))
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, raw []byte) {
		e, err := parse(raw)
		if err != nil {
			if !errors.Is(err, wire.Malformed) {
				t.Fatalf("got %v, want reason %v", err, wire.Malformed)
			}
			return
		}
		if again := wire.AppendField(e.statement.signed(e.spki), e.signature); string(again) != string(raw) {
			t.Errorf("another encoding was read:\n got %x\nwant %x", raw, again)
		}
	})
}

func TestHugeLengthTakesNoMemory(t *testing.T) {
	raw := wire.Frame(wire.LabelSoftEvidence)
	raw = binary.BigEndian.AppendUint32(raw, 1<<32-1)
	allocated := testing.AllocsPerRun(1, func() { parse(raw) })
	if allocated > 20 {
		t.Errorf("got %v allocations, want a few", allocated)
	}
	if _, err := parse(raw); !errors.Is(err, wire.Malformed) {
		t.Errorf("got %v, want %v", err, wire.Malformed)
	}
}
