package vectortest

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// notes is a reporter that remembers.
type notes struct{ faults []string }

func (*notes) Helper() {}

func (n *notes) Errorf(format string, args ...any) {
	n.faults = append(n.faults, fmt.Sprintf(format, args...))
}

func (n *notes) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }

// toy is an appraiser of evidence that ends with its own SHA-256. Its
// endorsement is the word "good".
type toy struct{ broken string }

func (toy) Platform() attest.Platform { return attest.SGX }

func (a toy) Appraise(raw []byte, endorsed attest.Endorsements, rules attest.Rules, at time.Time) (attest.Claims, error) {
	size := len(raw) - sha256.Size
	switch {
	case a.broken == "refuses everything":
		return attest.Claims{}, wire.Refuse(wire.Malformed, "toy", "", "")
	case a.broken == "gives no reason":
		return attest.Claims{}, os.ErrInvalid
	case a.broken != "ignores signatures" && (size < 0 || sha256.Sum256(raw[:size]) != [32]byte(raw[size:])):
		return attest.Claims{}, wire.Refuse(wire.BadSignature, "toy", "", "")
	case a.broken != "ignores endorsements" && string(endorsed["word"]) != "good":
		return attest.Claims{}, wire.Refuse(wire.BadChain, "toy", "", "")
	case a.broken != "ignores time" && (at.Year() != 2026):
		return attest.Claims{}, wire.Refuse(wire.Expired, "toy", "", "")
	case a.broken != "ignores policy" && rules.CRL != attest.CRLIfPresent:
		return attest.Claims{}, wire.Refuse(wire.CRLMissing, "toy", "", "")
	}
	value := 7
	if a.broken == "reads another claim" {
		value = 8
	}
	return attest.Claims{
		Measurement: attest.Measurement{Platform: attest.SGX, Registers: []attest.Register{{Name: "mr", Value: []byte{1}}}},
		ReportData:  []byte{2, 3},
		Debug:       a.broken != "forgets debug",
		Details:     map[string]any{"svn": value, "word": string(endorsed["word"])},
	}, nil
}

func (a toy) subject() Subject {
	return Subject{
		Platform:  "toy",
		Appraiser: a,
		Rules: func(p Policy, _ map[string][]byte) attest.Rules {
			rules := attest.Rules{Debug: p.Debug}
			if p.CRLIfPresent {
				rules.CRL = attest.CRLIfPresent
			}
			return rules
		},
		Inputs: []string{"nonce"},
	}
}

// toyVector writes a vector of a debug TEE and loads it.
func toyVector(t *testing.T) *vector {
	t.Helper()
	dir := t.TempDir()
	body := []byte("evidence")
	sum := sha256.Sum256(body)
	evidence := append(body, sum[:]...)
	forged := bytes.Clone(evidence)
	forged[0]++
	text := `{"schema": "cohort/vector/v1", "platform": "toy", "verify_at": "2026-06-01T00:00:00Z",
		"window": {"from": "2026-01-01T00:00:00Z", "until": "2026-12-31T23:59:59Z"},
		"files": {"evidence.a": "e.bin", "word": "word.txt"},
		"claims": {"a": {"svn": 7, "measurement": "01", "mr": "01", "report_data": "0203", "debug": true, "nonce": "04"}},
		"expected": {"verdict": "refuse", "reason": "debug", "policy": {}, "crl": "absent-allowed",
			"policy_accepts": {"debug": true}, "under_default": {"verdict": "refuse", "reason": "crl-missing", "also": ["tcb-status"]}},
		"neg": {"forged.bin": {"replaces": "evidence.a", "reason": "signature"}, "bad.txt": {"replaces": "word", "reason": "chain"}}}`
	for name, content := range map[string][]byte{
		"vector.json": []byte(text), "e.bin": evidence, "word.txt": []byte("good"), "forged.bin": forged, "bad.txt": []byte("bad"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("COHORT_VECTORS", dir)
	return load(t, "toy")[0]
}

// TestJudge shows that a right appraiser passes and that each way to be wrong
// is seen.
func TestJudge(t *testing.T) {
	v := toyVector(t)
	for _, broken := range []string{
		"", "refuses everything", "gives no reason", "ignores signatures", "ignores endorsements",
		"ignores time", "ignores policy", "reads another claim", "forgets debug",
	} {
		t.Run("broken: "+broken, func(t *testing.T) {
			var n notes
			judge{Subject: toy{broken}.subject(), vector: v, suffix: "a"}.all(&n)
			if got, want := len(n.faults) > 0, broken != ""; got != want {
				t.Errorf("faults = %q, want some: %v", n.faults, want)
			}
		})
	}
}

// TestMutate shows that flips and cuts that are accepted are seen.
func TestMutate(t *testing.T) {
	v := toyVector(t)
	for _, broken := range []string{"", "ignores signatures", "ignores endorsements"} {
		t.Run("broken: "+broken, func(t *testing.T) {
			var n notes
			judge{Subject: toy{broken}.subject(), vector: v, suffix: "a"}.mutate(&n)
			if got, want := len(n.faults) > 0, broken != ""; got != want {
				t.Errorf("faults = %q, want some: %v", n.faults, want)
			}
		})
	}
	t.Run("documented bytes", func(t *testing.T) {
		var n notes
		s := toy{"ignores signatures"}.subject()
		s.Unsigned = func([]byte, int) bool { return true }
		judge{Subject: s, vector: v, suffix: "a"}.mutate(&n)
		if len(n.faults) > 0 {
			t.Errorf("faults = %q, want none", n.faults)
		}
	})
}

// TestPolicyDefaults shows that a policy object changes only what it says.
func TestPolicyDefaults(t *testing.T) {
	v := &vector{Expected: expected{CRL: "required"}}
	got := v.policy(t, json.RawMessage(`{"vmpl": 1, "unknown": 2}`))
	if got.VMPL != 1 || got.Debug || got.CRLIfPresent || strings.Join(got.TCBStatus, " ") != "UpToDate" {
		t.Errorf("policy = %+v, want the default with privilege level 1", got)
	}
}
