package snp

import (
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/vectortest"
)

// The SHA-256 of the SubjectPublicKeyInfo of AMD's roots, as policies name them.
const (
	arkMilan = "sha256:9f056bee44377e29308cb5ffa895bdfb62d18881fa6bed8d6f075b0204089cb9"
	arkGenoa = "sha256:429a69c9422aa258ee4d8db5fcda9c6470ef15f8cd5a9cebd6cbc7d90b863831"
	arkTurin = "sha256:4f125410563a2ab9a50356f9243f6fe0b6f73de98603f53f90339c70e9d7ad08"
)

func amdRoots(t testing.TB) []attest.Digest {
	t.Helper()
	var roots []attest.Digest
	for _, text := range []string{arkMilan, arkGenoa, arkTurin} {
		var d attest.Digest
		if err := d.UnmarshalText([]byte(text)); err != nil {
			t.Fatal(err)
		}
		roots = append(roots, d)
	}
	return roots
}

// subject returns the rules for the vectors' default policy, which states nothing about firmware
// floors, chips, launch keys, SMT and the settings of the host.
func subject(t testing.TB) vectortest.Subject {
	roots := amdRoots(t)
	return vectortest.Subject{
		Platform:  "sev-snp",
		Appraiser: new(reportAppraiser),
		Rules: func(p vectortest.Policy, _ map[string][]byte) attest.Rules {
			rules := attest.Rules{Roots: roots, Debug: p.Debug, SNP: attest.SNPRules{
				Generations:  map[string]attest.SNPFloor{milan: {}, genoa: {}, turin: {}},
				Chips:        attest.List{Any: true},
				IDKeys:       attest.List{Any: true},
				SMT:          true,
				Provisional:  p.ProvisionalFirmware,
				VMPL:         p.VMPL,
				HiddenChips:  true,
				PlatformInfo: attest.Bits{"ALIAS_CHECK_COMPLETE": attest.DemandAny},
			}}
			if p.CRLIfPresent {
				rules.CRL = attest.CRLIfPresent
			}
			return rules
		},
	}
}

func TestVectors(t *testing.T) { vectortest.Run(t, subject(t)) }

func TestVectorMutations(t *testing.T) { vectortest.Mutate(t, subject(t)) }
