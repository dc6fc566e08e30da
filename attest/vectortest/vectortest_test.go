package vectortest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/internal/closed"
	"github.com/cohort-tee/cohort/internal/wire"
)

// notes is a reporter that records the faults.
type notes struct{ faults []string }

func (*notes) Helper() {}

func (n *notes) Errorf(format string, args ...any) {
	n.faults = append(n.faults, fmt.Sprintf(format, args...))
}

func (n *notes) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }

// toy is an appraiser of evidence that ends with its own SHA-256. Its only endorsement is
// the word "good", and its root's key signs nothing.
type toy struct {
	broken string
	root   []byte // certificate of the vendor's root, PEM
}

func (a toy) Genuine() closed.Appraiser { return closed.VouchFor(a) }

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
	case a.broken != "ignores roots" && !slices.Contains(rules.Roots, rootOf(a.root)):
		return attest.Claims{}, wire.Refuse(wire.UnknownRoot, "toy", "", "")
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
		ReportData:  a.reportData(),
		Debug:       a.broken != "forgets debug",
		Details:     map[string]any{"svn": value, "word": string(endorsed["word"])},
	}, nil
}

// reportData returns the report data that evidence of a toy is bound to.
func (a toy) reportData() []byte {
	if a.broken == "reads another nonce" {
		return []byte{2, 4}
	}
	return []byte{2, 3}
}

func (a toy) subject() Subject {
	return Subject{
		Platform:  "toy",
		Appraiser: a,
		Rules: func(p Policy, _ map[string][]byte) attest.Rules {
			rules := attest.Rules{Roots: []attest.Digest{rootOf(a.root)}, Debug: p.Debug}
			if p.CRLIfPresent {
				rules.CRL = attest.CRLIfPresent
			}
			return rules
		},
	}
}

// newRoot returns a root certificate with a new key, in PEM.
func newRoot(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

const toyText = `{"schema": "cohort/vector/v1", "platform": "toy", "verify_at": "2026-06-01T00:00:00Z",
		"window": {"from": "2026-01-01T00:00:00Z", "until": "2026-12-31T23:59:59Z"},
		"files": {"evidence.a": "e.bin", "word": "word.txt", "root": "root.pem"},
		"claims": {"a": {"svn": 7, "measurement": "01", "mr": "01", "report_data": "0203", "debug": true, "nonce": "0203"}},
		"expected": {"verdict": "refuse", "reason": "debug", "policy": {}, "crl": "absent-allowed",
			"policy_accepts": {"debug": true}, "under_default": {"verdict": "refuse", "reason": "crl-missing", "also": ["tcb-status"]}},
		"neg": {"forged.bin": {"replaces": "evidence.a", "reason": "signature"}, "bad.txt": {"replaces": "word", "reason": "chain"},
			"other.pem": {"replaces": "root", "reason": "unknown-root"}, "none.pem": {"replaces": "root", "reason": "unknown-root"}}}`

// toyVector writes a vector of a debug TEE and loads it. Edits are pairs of old and new
// text in its vector.json.
func toyVector(t *testing.T, edits ...string) *vector {
	t.Helper()
	dir, text := t.TempDir(), toyText
	for i := 0; i < len(edits); i += 2 {
		if !strings.Contains(text, edits[i]) {
			t.Fatalf("the vector has no %q", edits[i])
		}
		text = strings.Replace(text, edits[i], edits[i+1], 1)
	}
	body := []byte("evidence")
	sum := sha256.Sum256(body)
	evidence := append(body, sum[:]...)
	forged := bytes.Clone(evidence)
	forged[0]++
	for name, content := range map[string][]byte{
		"vector.json": []byte(text), "e.bin": evidence, "word.txt": []byte("good"), "forged.bin": forged, "bad.txt": []byte("bad"),
		"root.pem": newRoot(t), "other.pem": newRoot(t), "none.pem": []byte("no certificate"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("COHORT_VECTORS", dir)
	return load(t, "toy")[0]
}

// TestJudge: a correct appraiser passes, and each kind of wrong appraiser is found.
func TestJudge(t *testing.T) {
	v := toyVector(t)
	for _, broken := range []string{
		"", "refuses everything", "gives no reason", "ignores signatures", "ignores endorsements",
		"ignores time", "ignores policy", "reads another claim", "forgets debug", "ignores roots", "reads another nonce",
	} {
		t.Run("broken: "+broken, func(t *testing.T) {
			var n notes
			judge{Subject: toy{broken, v.content["root"]}.subject(), vector: v, suffix: "a"}.all(&n)
			if got, want := len(n.faults) > 0, broken != ""; got != want {
				t.Errorf("faults = %q, want some: %v", n.faults, want)
			}
		})
	}
}

// TestJudgeFolders: a correct appraiser fails on folders whose vector.json states something
// else about the same evidence.
func TestJudgeFolders(t *testing.T) {
	const (
		accepts = `"policy_accepts": {"debug": true}`
		never   = `"policy_accepts": null`
		refused = `"reason": "debug"`
		nonce   = `"debug": true, "nonce": "0203"`
	)
	for name, c := range map[string]struct {
		edits []string
		fault string // empty where the folder is correct
	}{
		"as it is":                            {nil, ""},
		"a nonce with zeros behind it":        {[]string{nonce, `"debug": true, "nonce": "020300"`}, "accepting policy"},
		"another nonce":                       {[]string{nonce, `"debug": true, "nonce": "04"`}, "accepting policy"},
		"another nonce, said to be refused":   {[]string{nonce, `"debug": true, "nonce": "04"`, refused, `"reason": "debug", "also": ["nonce"]`, accepts, never}, ""},
		"no policy, though one accepts it":    {[]string{accepts, never}, "the mildest policy: accepted"},
		"another reason":                      {[]string{refused, `"reason": "revoked"`}, "expected policy"},
		"accepted by a policy that does not":  {[]string{accepts, `"policy_accepts": {"vmpl": 3}`}, "accepting policy: refused"},
		"a verdict that is none":              {[]string{`"verdict": "refuse", "reason": "debug"`, `"verdict": "refused", "reason": "debug"`}, `got verdict "refused"`},
		"no claims of the evidence":           {[]string{`"claims": {"a"`, `"claims": {"b"`}, "no claims of evidence"},
		"a root that is not the vendor's":     {[]string{`"root": "root.pem"`, `"root": "other.pem"`, `"other.pem": {`, `"root.pem": {`}, "none of the vendor's"},
		"a negative of what the folder lacks": {[]string{`"replaces": "word"`, `"replaces": "wort"`}, "the folder does not have"},
	} {
		t.Run(name, func(t *testing.T) {
			v := toyVector(t, c.edits...)
			vendor, err := os.ReadFile(filepath.Join(v.dir, "root.pem"))
			if err != nil {
				t.Fatal(err)
			}
			var n notes
			judge{Subject: toy{"", vendor}.subject(), vector: v, suffix: "a"}.all(&n)
			if found := strings.Join(n.faults, "\n"); c.fault == "" && found != "" || !strings.Contains(found, c.fault) {
				t.Errorf("got faults %q, want %q", n.faults, c.fault)
			}
		})
	}
}

// TestMutate: an appraiser that accepts flipped or truncated files is found.
func TestMutate(t *testing.T) {
	v := toyVector(t)
	for _, broken := range []string{"", "ignores signatures", "ignores endorsements"} {
		t.Run("broken: "+broken, func(t *testing.T) {
			var n notes
			judge{Subject: toy{broken, v.content["root"]}.subject(), vector: v, suffix: "a"}.mutate(&n)
			if got, want := len(n.faults) > 0, broken != ""; got != want {
				t.Errorf("faults = %q, want some: %v", n.faults, want)
			}
		})
	}
	t.Run("documented bytes", func(t *testing.T) {
		var n notes
		s := toy{"ignores signatures", v.content["root"]}.subject()
		s.Unsigned = func([]byte, int) bool { return true }
		judge{Subject: s, vector: v, suffix: "a"}.mutate(&n)
		if len(n.faults) > 0 {
			t.Errorf("faults = %q, want none", n.faults)
		}
	})
}

// TestEveryFolderIsJudged: each platform among the vectors has a test that runs its
// vectors.
func TestEveryFolderIsJudged(t *testing.T) {
	judged := []string{
		"sev-snp", "azure-snp-vtpm", "tdx", "sgx", "aws-nitro", "nvidia-gpu", "tpm-gce", "tpm-eventlog", "tpm-swtpm",
	}
	for _, platform := range platforms(t) {
		if !slices.Contains(judged, platform) {
			t.Errorf("platform %q is judged by no test", platform)
		}
	}
}

// TestPolicyDefaults: a policy object changes only the fields that it contains.
func TestPolicyDefaults(t *testing.T) {
	v := &vector{Expected: expected{CRL: "required"}}
	got := v.policy(t, json.RawMessage(`{"vmpl": 1, "unknown": 2}`))
	if got.VMPL != 1 || got.Debug || got.CRLIfPresent || strings.Join(got.TCBStatus, " ") != "UpToDate" {
		t.Errorf("policy = %+v, want the default with privilege level 1", got)
	}
}
