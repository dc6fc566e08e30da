package evidence

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/dcap"
	"github.com/cohort-tee/cohort/attest/snp"
	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/kds"
	sevpb "github.com/google/go-sev-guest/proto/sevsnp"
	sevverify "github.com/google/go-sev-guest/verify"
	sevtrust "github.com/google/go-sev-guest/verify/trust"
	tdxverify "github.com/google/go-tdx-guest/verify"
)

// captured is one folder of evidence with what its vendor said.
type captured struct {
	name  string
	at    time.Time
	files map[string][]byte // by role
	neg   map[string][]byte // evidence that must be refused, by file
}

// load reads the folders of a platform.
func load(t *testing.T, platform string) []captured {
	t.Helper()
	dir := os.Getenv("COHORT_VECTORS")
	if dir == "" {
		dir = "../../../shared/vectors"
	}
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		t.Skipf("NO VECTORS: %s is not there, so NO VERIFIERS ARE COMPARED; set COHORT_VECTORS", dir)
	}
	paths, err := filepath.Glob(filepath.Join(dir, platform, "*", "vector.json"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no vectors of %s: %v", platform, err)
	}
	var all []captured
	for _, path := range paths {
		var v struct {
			VerifyAt time.Time         `json:"verify_at"`
			Files    map[string]string `json:"files"`
			Neg      map[string]struct{ Replaces string }
		}
		text, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(text, &v)
		}
		if err != nil {
			t.Fatal(err)
		}
		folder := filepath.Dir(path)
		read := func(name string) []byte {
			b, err := os.ReadFile(filepath.Join(folder, name))
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		c := captured{filepath.Base(folder), v.VerifyAt, map[string][]byte{}, map[string][]byte{}}
		for role, name := range v.Files {
			c.files[role] = read(name)
		}
		for name, n := range v.Neg {
			if n.Replaces == "evidence" {
				c.neg[name] = read(name)
			}
		}
		all = append(all, c)
	}
	return all
}

// variants are the evidence itself, what must be refused, and changes of one bit
// of one in every so many bytes, or with COHORT_FULL=1 of each. That every bit of
// a byte matters to us is shown in attest; asking others about it takes hours.
func (c captured) variants(signed int) iter.Seq2[string, []byte] {
	raw := c.files["evidence"]
	step := 61
	if os.Getenv("COHORT_FULL") != "" {
		step = 1
	}
	return func(yield func(string, []byte) bool) {
		whole := map[string][]byte{"as captured": raw, "cut": raw[:len(raw)-1]}
		maps.Copy(whole, c.neg)
		for name, b := range whole {
			if !yield(name, b) {
				return
			}
		}
		for at := 0; at < min(signed, len(raw)); at += step {
			bit, b := 7-at/step%8, bytes.Clone(raw)
			b[at] ^= 1 << bit
			if !yield(fmt.Sprintf("bit %d of byte %d", bit, at), b) {
				return
			}
		}
	}
}

// compare asks both about every variant. allowed says why we refuse what they
// accept, by our reason; they never refuse what we accept.
func compare(t *testing.T, c captured, signed int, ours, theirs func([]byte) error, allowed map[string]string) {
	t.Helper()
	seen, both := map[string]int{}, 0
	for name, raw := range c.variants(signed) {
		our, their := ours(raw), refusedOrPanicked(theirs, raw)
		switch {
		case our == nil && their == nil:
			both++
		case our != nil && their != nil:
		case our == nil:
			t.Errorf("%s, %s: they refuse what we accept: %v", c.name, name, their)
		default:
			reason, _, _ := strings.Cut(our.Error(), ":")
			if allowed[reason] == "" {
				t.Errorf("%s, %s: we alone refuse: %v", c.name, name, our)
			}
			seen[reason]++
		}
	}
	t.Logf("%s: %d variants accepted by both", c.name, both)
	for _, reason := range slices.Sorted(maps.Keys(seen)) {
		t.Logf("%s: %d refused by us alone: %s: %s", c.name, seen[reason], reason, allowed[reason])
	}
}

// refusedOrPanicked takes another's panic for a refusal; one of ours fails the test.
func refusedOrPanicked(judge func([]byte) error, raw []byte) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panicked: %v", p)
		}
	}()
	return judge(raw)
}

func digest(t *testing.T, text string) attest.Digest {
	t.Helper()
	var d attest.Digest
	if err := d.UnmarshalText([]byte("sha256:" + text)); err != nil {
		t.Fatal(err)
	}
	return d
}

// TestSNP compares with go-sev-guest, which judges signatures, chains and AMD's
// names, and no policy.
func TestSNP(t *testing.T) {
	roots := []attest.Digest{
		digest(t, "9f056bee44377e29308cb5ffa895bdfb62d18881fa6bed8d6f075b0204089cb9"),
		digest(t, "429a69c9422aa258ee4d8db5fcda9c6470ef15f8cd5a9cebd6cbc7d90b863831"),
	}
	rules := attest.Rules{Roots: roots, Debug: true, CRL: attest.CRLIfPresent, SNP: attest.SNPRules{
		Generations: map[string]attest.SNPFloor{"Milan": {}, "Genoa": {}}, Chips: attest.List{Any: true}, IDKeys: attest.List{Any: true},
		SMT: true, Migration: true, Provisional: true, VMPL: 3,
	}}
	for _, c := range load(t, "sev-snp") {
		endorsed, appraiser := attest.Endorsements(c.files), new(snp.Appraiser)
		ours := func(raw []byte) error {
			_, err := appraiser.Appraise(raw, endorsed, rules, c.at)
			return err
		}
		compare(t, c, abi.ReportSize, ours, func(raw []byte) error { return sevGuest(c, raw) }, map[string]string{
			"malformed": "theirs drops the high half of the CPU's stepping, and checks the signature without it",
		})
	}
}

// sevGuest is go-sev-guest's verdict.
func sevGuest(c captured, raw []byte) error {
	report, err := abi.ReportToProto(raw)
	if err != nil {
		return err
	}
	ask, ark, err := kds.ParseProductCertChain(c.files["ask_ark"])
	if err != nil {
		return err
	}
	line := "Milan"
	if report.Version > 2 && report.Cpuid1EaxFms != 0 {
		line = kds.ProductLineFromFms(report.Cpuid1EaxFms)
	}
	root := sevtrust.AMDRootCertsProduct(line)
	if err := root.FromKDSCertBytes(c.files["ask_ark"]); err != nil {
		return err
	}
	chain := &sevpb.CertificateChain{VcekCert: c.files["vcek"], VlekCert: c.files["vlek"], AskCert: ask, ArkCert: ark}
	return sevverify.SnpAttestation(&sevpb.Attestation{Report: report, CertificateChain: chain}, &sevverify.Options{
		DisableCertFetching: true, Now: c.at, Product: &sevpb.SevProduct{Name: sevpb.SevProduct_SEV_PRODUCT_MILAN},
		TrustedRoots: map[string][]*sevtrust.AMDRootCerts{line: {root}},
	})
}

// TestTDX compares with go-tdx-guest, which accepts UpToDate alone.
func TestTDX(t *testing.T) {
	rules := attest.Rules{Roots: []attest.Digest{digest(t, "a0af031289f5d5d4132f9186068a7fc13628633ba235777472e29b6b6c67a49e")}, Debug: true, DCAP: attest.DCAPRules{
		Chips: attest.List{Any: true}, Migration: true,
	}}
	for _, c := range load(t, "tdx") {
		endorsed, appraiser := attest.Endorsements(c.files), dcap.TDX()
		ours := func(raw []byte) error {
			_, err := appraiser.Appraise(raw, endorsed, rules, c.at)
			return err
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(c.files["root"])
		times := &tdxverify.TimeSet{PckCertChain: c.at, TcbInfo: c.at, QeIdentity: c.at, PckCrl: c.at, RootCaCrl: c.at}
		theirs := func(raw []byte) error {
			return tdxverify.RawTdxQuote(raw, &tdxverify.Options{GetCollateral: true, CheckRevocations: true, Getter: service{c.files}, Now: times, TrustedRoots: roots})
		}
		compare(t, c, len(bytes.TrimRight(c.files["evidence"], "\x00")), ours, theirs, map[string]string{
			"tcb-status": "the worse of platform and module counts, and theirs drops the platform's for module versions above 0",
		})
	}
}

// service plays Intel's with the files of a folder.
type service struct{ files map[string][]byte }

func (s service) Get(address string) (map[string][]string, []byte, error) {
	answer := func(role, chain, header string) (map[string][]string, []byte, error) {
		return map[string][]string{header: {url.QueryEscape(string(s.files[chain]))}}, s.files[role], nil
	}
	switch {
	case strings.Contains(address, "/tcb"):
		return answer("tcb_info", "tcb_info_chain", "Tcb-Info-Issuer-Chain")
	case strings.Contains(address, "/qe/identity"):
		return answer("qe_identity", "qe_identity_chain", "Sgx-Enclave-Identity-Issuer-Chain")
	case strings.Contains(address, "/pckcrl"):
		return answer("pck_crl", "pck_crl_chain", "Sgx-Pck-Crl-Issuer-Chain")
	}
	return nil, s.files["root_crl"], nil
}
