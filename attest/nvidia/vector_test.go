package nvidia

import (
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/vectortest"
)

// nvidiaRoot is the SHA-256 of the SubjectPublicKeyInfo of NVIDIA's root, as policy
// names it.
const nvidiaRoot = "sha256:a90c4eb5acfd3e3d03a25db6a26b84f720ad0503196c627c21ddd48dd85b06a4"

// printed is the appraiser of reports as the vectors hold them, which is as text.
type printed struct{ Appraiser }

func (p printed) Appraise(text []byte, endorsed attest.Endorsements, rules attest.Rules, at time.Time) (attest.Claims, error) {
	raw, encoding, err := Decode(text)
	if err != nil {
		return attest.Claims{}, err
	}
	claims, err := p.Appraiser.Appraise(raw, endorsed, rules, at)
	if err == nil {
		claims.Details["encoding"] = encoding
	}
	return claims, err
}

func subject(t testing.TB) vectortest.Subject {
	t.Helper()
	var root attest.Digest
	if err := root.UnmarshalText([]byte(nvidiaRoot)); err != nil {
		t.Fatal(err)
	}
	return vectortest.Subject{
		Platform:  "nvidia-gpu",
		Appraiser: printed{},
		Rules: func(p vectortest.Policy, _ map[string][]byte) attest.Rules {
			rules := attest.Rules{Roots: []attest.Digest{root}, Debug: p.Debug, NVIDIA: attest.NVIDIARules{
				Models: []string{"GH100", "GB100"}, Chips: attest.List{Any: true}, Drivers: attest.List{Any: true}, VBIOS: attest.List{Any: true},
				Modes: []string{ModeSingle, ModeMulti, ModePPCIE, ModeUnstated}, AnyMeasurements: true,
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
