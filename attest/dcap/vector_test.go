package dcap

import (
	"bytes"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/vectortest"
)

// intelRoot is the SHA-256 of the SubjectPublicKeyInfo of the Intel SGX Root CA,
// as policy names it.
const intelRoot = "sha256:a0af031289f5d5d4132f9186068a7fc13628633ba235777472e29b6b6c67a49e"

func intelRoots(t testing.TB) []attest.Digest {
	t.Helper()
	var d attest.Digest
	if err := d.UnmarshalText([]byte(intelRoot)); err != nil {
		t.Fatal(err)
	}
	return []attest.Digest{d}
}

// subject says what the vectors' default policy means here: it is silent on
// chips, evaluation numbers and enclave versions.
func subject(t testing.TB, a *Appraiser) vectortest.Subject {
	roots := intelRoots(t)
	return vectortest.Subject{
		Platform:  string(a.Platform()),
		Appraiser: a,
		Rules: func(p vectortest.Policy, _ map[string][]byte) attest.Rules {
			rules := attest.Rules{Roots: roots, Debug: p.Debug, DCAP: attest.DCAPRules{
				Statuses:   p.TCBStatus,
				Advisories: p.Advisories,
				Chips:      attest.List{Any: true},
			}}
			if p.CRLIfPresent {
				rules.CRL = attest.CRLIfPresent
			}
			return rules
		},
		Inputs: []string{"nonce", "event_log"},
		// The zeros at the end, of which there may be any number.
		Unsigned: func(evidence []byte, offset int) bool {
			return offset >= len(bytes.TrimRight(evidence, "\x00"))
		},
	}
}

func TestVectors(t *testing.T) {
	t.Run("tdx", func(t *testing.T) { vectortest.Run(t, subject(t, TDX())) })
	t.Run("sgx", func(t *testing.T) { vectortest.Run(t, subject(t, SGX())) })
}

func TestVectorMutations(t *testing.T) {
	t.Run("tdx", func(t *testing.T) { vectortest.Mutate(t, subject(t, TDX())) })
	t.Run("sgx", func(t *testing.T) { vectortest.Mutate(t, subject(t, SGX())) })
}
