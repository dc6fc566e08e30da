package nvidia

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"maps"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/attest/internal/closed"
	"github.com/cohort-tee/cohort/attest/vectortest"
)

// nvidiaRoot is the SHA-256 of the SubjectPublicKeyInfo of NVIDIA's root, as policies name it.
const nvidiaRoot = "sha256:a90c4eb5acfd3e3d03a25db6a26b84f720ad0503196c627c21ddd48dd85b06a4"

// printed is the appraiser of reports and chains in the vectors' form, which is text: a report in
// hexadecimal or base64, a chain in PEM or in base64 of PEM, as NVIDIA's tools put it into JSON.
// Lines may end anywhere.
type printed struct{ reportAppraiser }

func (p printed) Genuine() closed.Appraiser { return closed.VouchFor(p) }

func (p printed) Appraise(text []byte, endorsed attest.Endorsements, rules attest.Rules, at time.Time) (attest.Claims, error) {
	raw, encoding, err := decodeText(joined(text))
	if err != nil {
		return attest.Claims{}, err
	}
	if chain, encoding, err := decodeText(joined(endorsed[roleChain])); err == nil && encoding == "base64" {
		endorsed = maps.Clone(endorsed)
		endorsed[roleChain] = chain
	}
	claims, err := p.reportAppraiser.Appraise(raw, endorsed, rules, at)
	if err == nil {
		claims.Details["encoding"] = encoding
	}
	return claims, err
}

// joined returns text without line ends.
func joined(text []byte) []byte {
	return bytes.ReplaceAll(bytes.ReplaceAll(text, []byte("\r"), nil), []byte("\n"), nil)
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
				Modes: []string{modeSingle, modeMulti, modePPCIE, modeUnstated}, AnyMeasurements: true, Development: true,
			}}
			if p.CRLIfPresent {
				rules.CRL = attest.CRLIfPresent
			}
			return rules
		},
		Unsigned: func(text []byte, offset int) bool { return len(joined(text[offset:])) == 0 },
	}
}

func TestVectors(t *testing.T) { vectortest.Run(t, subject(t)) }

func TestVectorMutations(t *testing.T) { vectortest.Mutate(t, subject(t)) }

// TestVectorOfAnotherForm: a new folder is appraised by its vector.json alone. It has report and
// chain in base64, its own nonce, a second root, and cases that no policy may accept.
func TestVectorOfAnotherForm(t *testing.T) {
	vendor := attesttest.NewNVIDIAVendor(noon)
	gpu := vendor.GPU("GB100")
	nonce := [32]byte{9}
	report, chain, err := gpu.Report(t.Context(), nonce)
	if err != nil {
		t.Fatal(err)
	}
	certificates := func(chain []byte) (root []byte) {
		for block, rest := pem.Decode(chain); block != nil; block, rest = pem.Decode(rest) {
			root = pem.EncodeToMemory(block)
		}
		return root
	}
	_, strange, err := attesttest.NewNVIDIAVendor(noon).GPU("GB100").Report(t.Context(), nonce)
	if err != nil {
		t.Fatal(err)
	}
	flipped := append(report[:len(report)-1:len(report)-1], report[len(report)-1]^1)
	inBase64 := func(b []byte) (lines []byte) {
		for text := base64.StdEncoding.EncodeToString(b); text != ""; {
			line := text[:min(76, len(text))]
			lines, text = append(lines, line+"\n"...), text[len(line):]
		}
		return lines
	}
	s := subject(t)
	rules := s.Rules
	s.Rules = func(p vectortest.Policy, files map[string][]byte) attest.Rules {
		r := rules(p, files)
		r.Roots = []attest.Digest{vendor.Root()}
		return r
	}
	lists := gpu.Lists()
	for name, folder := range map[string]struct {
		claims map[string]any
		files  map[string][]byte
		expect map[string]any
		neg    map[string]any
	}{
		"accepted": {
			map[string]any{"nonce": hex.EncodeToString(nonce[:]), "encoding": "base64", "mode": "SPT"},
			map[string][]byte{"evidence": inBase64(report), "cert_chain": inBase64(chain), "root": certificates(chain)},
			map[string]any{"verdict": "accept", "reason": "", "policy": map[string]any{}},
			map[string]any{
				"flipped": map[string]any{"replaces": "evidence", "reason": "signature"},
				"strange": map[string]any{"replaces": "root", "reason": "unknown-root"},
			},
		},
		"another nonce": {
			map[string]any{"nonce": "00", "encoding": "base64"},
			map[string][]byte{"evidence": inBase64(report), "cert_chain": inBase64(chain), "root": certificates(chain)},
			map[string]any{"verdict": "refuse", "reason": "nonce", "policy_accepts": nil}, nil,
		},
		"another firmware's chain": {
			map[string]any{"nonce": hex.EncodeToString(nonce[:])},
			map[string][]byte{"evidence": inBase64(report), "cert_chain": inBase64(strange), "root": certificates(chain)},
			map[string]any{"verdict": "refuse", "reason": "unknown-root", "policy_accepts": nil}, nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			files, extra := map[string]string{}, map[string][]byte{}
			for role, content := range folder.files {
				files[role], extra[role+".txt"] = role+".txt", content
			}
			for role, content := range lists {
				files[role], extra[role+".der"] = role+".der", content
			}
			neg := map[string]any{}
			for file, n := range folder.neg {
				neg[file] = n
				extra[file] = map[string][]byte{"flipped": inBase64(flipped), "strange": certificates(strange)}[file]
			}
			text, err := json.Marshal(map[string]any{
				"schema": "cohort/vector/v1", "platform": "nvidia-gpu", "verify_at": noon,
				"window": map[string]any{"from": noon, "until": noon.AddDate(0, 0, 7)},
				"files":  files, "claims": folder.claims, "expected": folder.expect, "neg": neg,
			})
			if err != nil {
				t.Fatal(err)
			}
			extra["vector.json"] = text
			for file, content := range extra {
				if err := os.WriteFile(filepath.Join(dir, file), content, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			t.Setenv("COHORT_VECTORS", dir)
			vectortest.Run(t, s)
		})
	}
}
