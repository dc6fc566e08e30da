package snp

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/attest/internal/closed"
	"github.com/cohort-tee/cohort/attest/snp/snprules"
	"github.com/cohort-tee/cohort/attest/vectortest"
	"github.com/cohort-tee/cohort/internal/wire"
)

var azureUse = attest.BindReportData(wire.LabelIssue, []byte("nonce"))

// azureTPMKey is the attestation key of the scenes, shared because generating one is slow.
var azureTPMKey = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})

// azureScene is an Azure machine, with a test vendor's chip and this test's TPM key. A row of the
// refusal table changes the smallest part of a good one.
type azureScene struct {
	chip    *attesttest.SNPChip
	device  *attesttest.SNPDevice
	rules   attest.Rules
	endorse attest.Endorsements
	runtime string
	extra   []byte
	pcrs    []byte // mask of the PCRs that the quote selects
	values  []byte
	after   func(e *azureEvidence) // applied after signing
}

func newAzureScene() *azureScene {
	vendor := attesttest.NewSNPVendor("Milan", now)
	chip := vendor.Chip(attest.SNPTCB{SNP: 1})
	bound := sha256.Sum256(azureUse[:])
	s := &azureScene{
		chip: chip, device: chip.Attester(attesttest.MeasureSNP("paravisor")), rules: vendor.Rules(), endorse: chip.Endorsements(),
		runtime: azureRuntime(azureTPMKey().N.Bytes()), extra: bound[:], pcrs: []byte{0xff, 0xff, 0xff},
		values: make([]byte, azurePCRs*pcrSize), after: func(*azureEvidence) {},
	}
	s.values[4*pcrSize] = 4
	return s
}

func azureRuntime(modulus []byte) string {
	return fmt.Sprintf(`{"keys":[{"kid":"HCLAkPub","kty":"RSA","e":"AQAB","n":%q},{"kid":"HCLEkPub","kty":"RSA","e":"AQAB","n":"AQ"}]}`,
		base64.RawURLEncoding.EncodeToString(modulus))
}

// quote returns a TPMS_ATTEST of the scene and its TPMT_SIGNATURE.
func (s *azureScene) quote(t testing.TB) (quote, signature []byte) {
	t.Helper()
	be := binary.BigEndian
	quote = be.AppendUint16([]byte{0xff, 'T', 'C', 'G', 0x80, 0x18, 0, 0}, uint16(len(s.extra)))
	quote = append(append(quote, s.extra...), make([]byte, 8+4+4+1+8)...)
	quote = append(quote, 0, 0, 0, 1, 0, azureBank, byte(len(s.pcrs)))
	digest := sha256.Sum256(s.values)
	quote = append(append(quote, s.pcrs...), 0, 32)
	quote = append(quote, digest[:]...)
	signed := sha256.Sum256(quote)
	raw, err := rsa.SignPKCS1v15(nil, azureTPMKey(), crypto.SHA256, signed[:])
	if err != nil {
		t.Fatal(err)
	}
	return quote, rsassa(raw)
}

// rsassa returns a TPMT_SIGNATURE with an RSASSA signature with SHA-256.
func rsassa(raw []byte) []byte {
	return append(binary.BigEndian.AppendUint16([]byte{0, 0x14, 0, 0x0b}, uint16(len(raw))), raw...)
}

func (s *azureScene) evidence(t testing.TB) azureEvidence {
	t.Helper()
	var bound attest.ReportData
	digest := wire.Sum([]byte(s.runtime))
	copy(bound[:], digest[:])
	report, err := s.device.Attest(t.Context(), bound)
	if err != nil {
		t.Fatal(err)
	}
	e := azureEvidence{report: report.Raw, runtime: []byte(s.runtime), values: s.values}
	e.quote, e.signature = s.quote(t)
	s.after(&e)
	return e
}

func (s *azureScene) appraise(t testing.TB) (attest.Result, error) {
	t.Helper()
	return attesttest.Appraise(t, attest.NewVerifier(new(azureAppraiser)), attest.Question{
		Evidence:     attest.Evidence{Platform: attest.AzureSNP, Raw: s.evidence(t).bytes()},
		Endorsements: s.endorse, ReportData: azureUse, At: now,
		Rules: map[attest.Platform]attest.Rules{attest.AzureSNP: s.rules},
	})
}

func TestAzure(t *testing.T) {
	s := newAzureScene()
	got, err := s.appraise(t)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, r := range got.Measurement().Registers {
		names = append(names, r.Name)
	}
	if want := snprules.Azure.RegisterNames(); !reflect.DeepEqual(names, want) {
		t.Errorf("got registers %q, want %q", names, want)
	}
	if r := got.Measurement().Registers[2+4]; r.Name != "pcr4" || !bytes.Equal(r.Value, s.values[4*pcrSize:5*pcrSize]) {
		t.Errorf("got %s = %x, want the quoted PCR 4", r.Name, r.Value)
	}
	told, err := new(azureAppraiser).UnverifiedClaims(s.evidence(t).bytes())
	if err != nil || !reflect.DeepEqual(told.Measurement, got.Measurement()) {
		t.Errorf("unverified: got %v, %v, want the same measurement", told.Measurement, err)
	}
}

func TestAzureRefuse(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(s *azureScene)
		want   attest.Reason
	}{
		{"a byte more", func(s *azureScene) { s.after = func(e *azureEvidence) { e.values = append(bytes.Clone(e.values), 0) } }, wire.Malformed},
		{"runtime data too large", func(s *azureScene) { s.runtime += string(bytes.Repeat([]byte{' '}, maxRuntime)) }, wire.Malformed},
		{"a report of no chip of AMD's", func(s *azureScene) { s.after = func(e *azureEvidence) { e.report[0x90] ^= 1 } }, wire.BadSignature},
		{"runtime data of another machine", func(s *azureScene) { s.after = func(e *azureEvidence) { e.runtime = append(e.runtime, ' ') } }, wire.BadDigest},
		{"more in report data", func(s *azureScene) { s.device.Edit = func(r []byte) { r[0x50+63] = 1 } }, wire.BadDigest},
		{"runtime data that is no JSON", func(s *azureScene) { s.runtime = "keys" }, wire.Malformed},
		{"no key", func(s *azureScene) { s.runtime = `{"keys":[]}` }, wire.Malformed},
		{"a key for something else", func(s *azureScene) {
			s.runtime = string(bytes.Replace([]byte(s.runtime), []byte("HCLAkPub"), []byte("HCLXkPub"), 1))
		}, wire.Malformed},
		{"two keys", func(s *azureScene) {
			s.runtime = string(bytes.ReplaceAll([]byte(s.runtime), []byte("HCLEkPub"), []byte("HCLAkPub")))
		}, wire.Malformed},
		{"another exponent", func(s *azureScene) {
			s.runtime = string(bytes.ReplaceAll([]byte(s.runtime), []byte("AQAB"), []byte("Aw")))
		}, wire.Malformed},
		{"a short key", func(s *azureScene) { s.runtime = azureRuntime(azureTPMKey().N.Bytes()[:255]) }, wire.Malformed},
		{"a quote by another key", func(s *azureScene) { n := azureTPMKey().N.Bytes(); n[255] ^= 2; s.runtime = azureRuntime(n) }, wire.BadSignature},
		{"a signature that is none", func(s *azureScene) { s.after = func(e *azureEvidence) { e.signature = e.signature[1:] } }, wire.Malformed},
		{"a quote that was altered", func(s *azureScene) { s.after = func(e *azureEvidence) { e.quote[len(e.quote)-1] ^= 1 } }, wire.BadSignature},
		{"a quote over fewer PCRs", func(s *azureScene) { s.pcrs = []byte{0xff, 0xff, 0x7f} }, wire.BadDigest},
		{"other PCR values", func(s *azureScene) { s.after = func(e *azureEvidence) { e.values = make([]byte, len(e.values)) } }, wire.BadDigest},
		{"a report for the guest, not the paravisor", func(s *azureScene) { s.rules.SNP.VMPL = 3; s.device.Edit = func(r []byte) { r[0x30] = 2 } }, wire.BadTCB},
		{"no revocation list", func(s *azureScene) { delete(s.endorse, "crl") }, wire.CRLMissing},
		{"a generation that policy does not name", func(s *azureScene) { s.rules.SNP.Generations = nil }, wire.NoPlatform},
		{"another use", func(s *azureScene) { s.extra = make([]byte, 32) }, wire.BadNonce},
		{"chip that is cut off", func(s *azureScene) { s.rules.SNP.CutChips = [][]byte{s.chip.ID()} }, wire.NoPlatform},
		{"generation without a row", func(s *azureScene) { delete(s.rules.SNP.Generations, "Milan") }, wire.NoPlatform},
		{"firmware below its floor", func(s *azureScene) {
			s.rules.SNP.Generations["Milan"] = attest.SNPFloor{Committed: attest.SNPTCB{SNP: 2}}
		}, wire.BadTCB},
		{"the use in full", func(s *azureScene) { s.extra = azureUse[:63] }, wire.BadNonce},
		{"debug", func(s *azureScene) { s.device.Edit = func(r []byte) { r[0x0a] |= 1 << 3 } }, wire.Debug},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newAzureScene()
			tt.change(s)
			_, err := s.appraise(t)
			var refusal *attest.Refusal
			if !errors.As(err, &refusal) || refusal.Reason != tt.want {
				t.Errorf("got %v, want reason %q", err, tt.want)
			}
		})
	}
}

// azureCaptured joins the parts of a captured folder, whose RSASSA signature has no TPM wrapper,
// and returns the claims by the vectors' names. It appraises with the product's code.
type azureCaptured struct{ azureAppraiser }

func (a *azureCaptured) Genuine() closed.Appraiser { return closed.VouchFor(a) }

func (a *azureCaptured) Appraise(raw []byte, files attest.Endorsements, rules attest.Rules, at time.Time) (attest.Claims, error) {
	e := azureEvidence{report: raw, runtime: files["runtime_data"], quote: files["quote"], signature: rsassa(files["quote_signature"]), values: files["pcrs"]}
	claims, err := a.azureAppraiser.Appraise(e.bytes(), files, rules, at)
	if err != nil {
		return claims, err
	}
	pcrs := map[string]any{}
	for i := range azurePCRs {
		pcrs[fmt.Sprint(i)] = hex.EncodeToString(claims.Measurement.Registers[2+i].Value)
	}
	digest := sha256.Sum256(e.values)
	claims.Details["pcrs"], claims.Details["pcr_selection"] = map[string]any{"sha256": pcrs}, "sha256:0-23"
	claims.Details["pcr_digest"], claims.Details["nonce"] = hex.EncodeToString(digest[:]), hex.EncodeToString(claims.ReportData)
	claims.ReportData = raw[0x50:0x90]
	return claims, nil
}

func azureSubject(t testing.TB) vectortest.Subject {
	s := subject(t)
	s.Platform, s.Appraiser = "azure-snp-vtpm", new(azureCaptured)
	return s
}

func TestAzureVectors(t *testing.T) { vectortest.Run(t, azureSubject(t)) }

func TestAzureVectorMutations(t *testing.T) { vectortest.Mutate(t, azureSubject(t)) }

// TestAzureEvidenceIsSigned: evidence in this package's encoding is refused if a bit is flipped
// or bytes are cut off.
func TestAzureEvidenceIsSigned(t *testing.T) {
	s := newAzureScene()
	raw := s.evidence(t).bytes()
	appraiser := new(azureAppraiser)
	refused := func(what string, altered []byte) {
		_, err := appraiser.Appraise(altered, s.endorse, s.rules, now)
		var refusal *attest.Refusal
		if !errors.As(err, &refusal) {
			t.Errorf("%s: got %v, want a refusal", what, err)
		}
	}
	step := 41
	if os.Getenv("COHORT_FULL") == "1" {
		step = 1
	}
	for bit := 0; bit < 8*len(raw); bit += step {
		altered := bytes.Clone(raw)
		altered[bit/8] ^= 1 << (bit % 8)
		refused(fmt.Sprintf("bit %d of byte %d", bit%8, bit/8), altered)
	}
	for size := 0; size < len(raw); size += step {
		refused(fmt.Sprintf("cut to %d bytes", size), raw[:size])
	}
}

// FuzzAzure: every accepted input encodes to the same bytes, and a key is accepted only from valid
// JSON.
func FuzzAzure(f *testing.F) {
	f.Add(azureEvidence{runtime: []byte(azureRuntime(bytes.Repeat([]byte{0xff}, 256))), values: make([]byte, azurePCRs*pcrSize)}.bytes())
	f.Fuzz(func(t *testing.T, raw []byte) {
		var refusal *attest.Refusal
		e, err := parseAzure(raw)
		if err != nil {
			if !errors.As(err, &refusal) {
				t.Fatalf("refused without a reason: %v", err)
			}
			return
		}
		if !bytes.Equal(e.bytes(), raw) {
			t.Fatalf("encoded again: got %x, want %x", e.bytes(), raw)
		}
		key, err := runtimeKey(e.runtime)
		if err != nil && !errors.As(err, &refusal) {
			t.Fatalf("refused without a reason: %v", err)
		}
		if err == nil && (key.N.BitLen() < minModulus || !json.Valid(e.runtime)) {
			t.Fatalf("accepted a key of %d bits out of %q", key.N.BitLen(), e.runtime)
		}
	})
}
