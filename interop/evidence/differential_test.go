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
	"math"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
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
	"github.com/oasisprotocol/oasis-core/go/common/sgx/pcs"
)

// captured is one folder of evidence with what its vendor said.
type captured struct {
	name  string
	at    time.Time
	files map[string][]byte // by role
	neg   map[string]altered
	debug bool
}

// altered is one file of a folder with other content.
type altered struct {
	role    string
	content []byte
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
			Claims   struct{ Debug bool }
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
		c := captured{filepath.Base(folder), v.VerifyAt, map[string][]byte{}, map[string]altered{}, v.Claims.Debug}
		for role, name := range v.Files {
			c.files[role] = read(name)
		}
		for name, n := range v.Neg {
			c.neg[name] = altered{n.Replaces, read(name)}
		}
		all = append(all, c)
	}
	return all
}

// full asks about one bit of each byte. That every bit of a byte matters to us is
// shown in attest; asking others about it takes hours.
var full = os.Getenv("COHORT_FULL") != ""

// variants are the evidence itself, what must be refused, and changes of one bit
// of one in every so many bytes, or with COHORT_FULL=1 of each.
func (c captured) variants(roles []string) iter.Seq2[string, altered] {
	step := 61
	if full {
		step = 1
	}
	raw := c.files["evidence"]
	return func(yield func(string, altered) bool) {
		whole := map[string]altered{"as captured": {"evidence", raw}, "cut": {"evidence", raw[:len(raw)-1]}}
		for name, n := range c.neg {
			if slices.Contains(roles, n.role) {
				whole[name] = n
			}
		}
		for name, v := range whole {
			if !yield(name, v) {
				return
			}
		}
		for _, role := range roles {
			content := c.files[role]
			if role == "evidence" {
				content = bytes.TrimRight(content, "\x00") // what is behind it nobody signs
			}
			for at := 0; at < len(content); at += step {
				bit, b := 7-at/step%8, bytes.Clone(c.files[role])
				b[at] ^= 1 << bit
				if !yield(fmt.Sprintf("bit %d of byte %d of %s", bit, at, role), altered{role, b}) {
					return
				}
			}
		}
	}
}

// verdict is what a verifier says of the files of a folder.
type verdict func(files map[string][]byte) error

// comparison is of two verifiers. Where they disagree it is said why, by the role of
// what was changed, or "any", and our reason or a part of their error.
type comparison struct {
	roles     []string // whose changes are judged, the evidence first
	weAlone   map[string]string
	theyAlone map[string]string
	disagreed map[string]int
	both      int
}

// compare asks both about every variant of a folder.
func (d *comparison) compare(t *testing.T, c captured, ours, theirs verdict) {
	t.Helper()
	for name, v := range c.variants(d.roles) {
		files := maps.Clone(c.files)
		files[v.role] = v.content
		our, their := ours(files), refusedOrPanicked(theirs, files)
		switch {
		case our == nil && their == nil:
			d.both++
		case our != nil && their == nil:
			reason, _, _ := strings.Cut(our.Error(), ":")
			d.explain(t, c.name+", "+name+": we alone refuse", d.weAlone, v.role+" "+reason, our)
		case their != nil && our == nil:
			d.explain(t, c.name+", "+name+": they alone refuse", d.theyAlone, v.role+" "+their.Error(), their)
		}
	}
}

// explain counts a disagreement that has a reason, and fails one that has none.
func (d *comparison) explain(t *testing.T, what string, reasons map[string]string, key string, err error) {
	t.Helper()
	for known := range reasons {
		if role, part, _ := strings.Cut(known, " "); (role == "any" || strings.HasPrefix(key, role+" ")) && strings.Contains(key, part) {
			d.disagreed[known]++
			return
		}
	}
	t.Errorf("%s: %v", what, err)
}

// end says what was seen, and with COHORT_FULL=1 fails reasons for what was not.
func (d *comparison) end(t *testing.T) {
	t.Helper()
	t.Logf("%d variants accepted by both", d.both)
	for who, reasons := range map[string]map[string]string{"us": d.weAlone, "them": d.theyAlone} {
		for _, known := range slices.Sorted(maps.Keys(reasons)) {
			t.Logf("%d refused by %s alone: %s: %s", d.disagreed[known], who, known, reasons[known])
			if full && d.disagreed[known] == 0 {
				t.Errorf("nothing is refused by %s alone as %q", who, known)
			}
		}
	}
}

// refusedOrPanicked takes another's panic for a refusal; one of ours fails the test.
func refusedOrPanicked(judge verdict, files map[string][]byte) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panicked: %v", p)
		}
	}()
	return judge(files)
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
		SMT: true, Migration: true, Provisional: true, VMPL: 3, HiddenChips: true,
		PlatformInfo: attest.Bits{"ALIAS_CHECK_COMPLETE": attest.DemandAny}, GuestPolicy: attest.Bits{"CXL_ALLOW": attest.DemandAny},
	}}
	d := comparison{
		roles: []string{"evidence"}, disagreed: map[string]int{},
		weAlone: map[string]string{
			"evidence malformed": "theirs drops the high half of the CPU's stepping, and checks the signature without it",
		},
	}
	for _, c := range load(t, "sev-snp") {
		appraiser := snp.Platform().Appraiser()
		d.compare(t, c, func(files map[string][]byte) error {
			_, err := appraiser.Appraise(files["evidence"], attest.Endorsements(files), rules, c.at)
			return err
		}, func(files map[string][]byte) error { return sevGuest(files, c.at) })
	}
	d.end(t)
}

// sevGuest is go-sev-guest's verdict.
func sevGuest(files map[string][]byte, at time.Time) error {
	report, err := abi.ReportToProto(files["evidence"])
	if err != nil {
		return err
	}
	ask, ark, err := kds.ParseProductCertChain(files["ask_ark"])
	if err != nil {
		return err
	}
	line := "Milan"
	if report.Version > 2 && report.Cpuid1EaxFms != 0 {
		line = kds.ProductLineFromFms(report.Cpuid1EaxFms)
	}
	root := sevtrust.AMDRootCertsProduct(line)
	if err := root.FromKDSCertBytes(files["ask_ark"]); err != nil {
		return err
	}
	chain := &sevpb.CertificateChain{VcekCert: files["vcek"], VlekCert: files["vlek"], AskCert: ask, ArkCert: ark}
	return sevverify.SnpAttestation(&sevpb.Attestation{Report: report, CertificateChain: chain}, &sevverify.Options{
		DisableCertFetching: true, Now: at, Product: &sevpb.SevProduct{Name: sevpb.SevProduct_SEV_PRODUCT_MILAN},
		TrustedRoots: map[string][]*sevtrust.AMDRootCerts{line: {root}},
	})
}

// intel is the root of Intel's chains, which every vector stands under.
const intel = "a0af031289f5d5d4132f9186068a7fc13628633ba235777472e29b6b6c67a49e"

var advisory = regexp.MustCompile(`INTEL-SA-\d+`)

// dcapRules are as wide as the other side's policy goes, which looks at no advisory.
func dcapRules(t *testing.T, c captured, statuses ...string) attest.Rules {
	return attest.Rules{Roots: []attest.Digest{digest(t, intel)}, Debug: true, CRL: attest.CRLIfPresent, DCAP: attest.DCAPRules{
		Chips: attest.List{Any: true}, ServiceTD: attest.List{Any: true}, Migration: true, Statuses: statuses, Advisories: advisory.FindAllString(string(c.files["tcb_info"])+string(c.files["qe_identity"]), -1),
	}}
}

// TestTDX compares with go-tdx-guest, which accepts UpToDate alone.
func TestTDX(t *testing.T) {
	d := comparison{
		roles: []string{"evidence"}, disagreed: map[string]int{},
		weAlone: map[string]string{
			"evidence tcb-status": "the worse of platform and module counts, and theirs drops the platform's for module versions above 0",
		},
	}
	for _, c := range load(t, "tdx") {
		appraiser, rules := dcap.TDXPlatform().Appraiser(), dcapRules(t, c)
		rules.CRL = ""
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(c.files["root"])
		times := &tdxverify.TimeSet{PckCertChain: c.at, TcbInfo: c.at, QeIdentity: c.at, PckCrl: c.at, RootCaCrl: c.at}
		d.compare(t, c, func(files map[string][]byte) error {
			_, err := appraiser.Appraise(files["evidence"], attest.Endorsements(files), rules, c.at)
			return err
		}, func(files map[string][]byte) error {
			return tdxverify.RawTdxQuote(files["evidence"], &tdxverify.Options{GetCollateral: true, CheckRevocations: true, Getter: service{files}, Now: times, TrustedRoots: roots})
		})
	}
	d.end(t)
}

// TestOasis compares with oasis-core, which judges quotes of SGX and TDX with TCB info
// and QE identity, accepts UpToDate and SWHardeningNeeded, and asks no revocation
// list; and then with its lax mode, which cannot be left again.
func TestOasis(t *testing.T) {
	strict := []string{"SWHardeningNeeded"}
	compareOasis(t, strict)
	pcs.SetUnsafeLaxVerify()
	compareOasis(t, append(strict, "OutOfDate", "ConfigurationNeeded", "OutOfDateConfigurationNeeded"))
}

func compareOasis(t *testing.T, statuses []string) {
	for platform, appraiser := range map[string]attest.Appraiser{"sgx": dcap.SGXPlatform().Appraiser(), "tdx": dcap.TDXPlatform().Appraiser()} {
		t.Run(fmt.Sprint(platform, " ", len(statuses)), func(t *testing.T) {
			d := comparison{
				roles: []string{"evidence", "tcb_info", "qe_identity", "tcb_info_chain"}, disagreed: map[string]int{},
				weAlone: map[string]string{
					"tcb_info malformed":    "the JSON around what is signed has one form here; theirs takes its names in any case",
					"qe_identity malformed": "the same",
				},
			}
			if platform == "tdx" {
				d.weAlone["evidence malformed"] = "text around the PCK certificates that is no white space, and sizes, that nobody signs have one form here"
				d.theyAlone = map[string]string{"any unsupported quote version 5": "it reads versions 3 and 4 alone"}
			}
			for _, c := range load(t, platform) {
				rules := dcapRules(t, c, statuses...)
				d.compare(t, c, func(files map[string][]byte) error {
					_, err := appraiser.Appraise(files["evidence"], attest.Endorsements(files), rules, c.at)
					return err
				}, func(files map[string][]byte) error { return oasis(files, c) })
			}
			d.end(t)
		})
	}
}

// oasis is oasis-core's verdict. Whether debuggers are let in is a switch of the
// whole process there, and either way it refuses the others.
func oasis(files map[string][]byte, c captured) error {
	pcs.UnsetAllowDebugEnclaves()
	if c.debug {
		pcs.SetAllowDebugEnclaves()
	}
	var (
		quote  pcs.Quote
		bundle pcs.TCBBundle
	)
	if _, err := quote.UnmarshalBinaryWithTrailing(files["evidence"], true); err != nil {
		return err
	}
	if err := json.Unmarshal(files["tcb_info"], &bundle.TCBInfo); err != nil {
		return err
	}
	if err := json.Unmarshal(files["qe_identity"], &bundle.QEIdentity); err != nil {
		return err
	}
	bundle.Certificates = files["tcb_info_chain"]
	_, err := quote.Verify(&pcs.QuotePolicy{TCBValidityPeriod: math.MaxUint16, TDX: &pcs.TdxQuotePolicy{}}, c.at, &bundle)
	return err
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
