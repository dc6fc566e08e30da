package nitro

import (
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/vectortest"
)

// rootG1 is the SHA-256 of the SubjectPublicKeyInfo of AWS's root, as policies name it.
const rootG1 = "sha256:f2caf5ecc6190b4a8399b78bc58a2bbcd0382375db8a1bfd78a82743874fd225"

func awsRoots(t testing.TB) []attest.Digest {
	t.Helper()
	var d attest.Digest
	if err := d.UnmarshalText([]byte(rootG1)); err != nil {
		t.Fatal(err)
	}
	return []attest.Digest{d}
}

func subject(t testing.TB) vectortest.Subject {
	roots := awsRoots(t)
	return vectortest.Subject{
		Platform:  "aws-nitro",
		Appraiser: documentAppraiser{},
		Rules: func(p vectortest.Policy, _ map[string][]byte) attest.Rules {
			return attest.Rules{
				Roots: roots,
				Debug: p.Debug,
				Nitro: attest.NitroRules{MaxAge: time.Duration(p.MaxAge) * time.Second},
			}
		},
	}
}

func TestVectors(t *testing.T) { vectortest.Run(t, subject(t)) }

func TestVectorMutations(t *testing.T) { vectortest.Mutate(t, subject(t)) }
