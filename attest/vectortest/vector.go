// Package vectortest checks an appraiser with folders of evidence captured on real
// hardware, in the schema "cohort/vector/v1". It is for tests only.
//
// A platform's test states in a [Subject] which vectors belong to it and how a vector's
// policy maps to its rules, and calls [Run] and [Mutate]. No folder is special: its
// vector.json contains the time, policy, verdict, reason and claims.
//
//	COHORT_VECTORS=DIR go test ./attest/... -run Vector
//
// appraises every vector.json at or below DIR; a relative DIR starts at the root of the
// repository. Without the variable the folder is ../shared/vectors, and tests are skipped
// with a loud message when it does not exist.
package vectortest

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Policy is the content of a vector's policy. The appraiser ignores fields for which it has
// no rule.
type Policy struct {
	TCBStatus           []string `json:"tcb_status"`
	Advisories          []string `json:"advisories"`
	Debug               bool     `json:"debug"`
	VMPL                uint32   `json:"vmpl"`
	ProvisionalFirmware bool     `json:"provisional_firmware"`
	MaxAge              int64    `json:"max_age_s"` // seconds
	// CRLIfPresent permits the absence of a revocation list.
	CRLIfPresent bool `json:"-"`
}

// vector is one vector.json, with the folder's files.
type vector struct {
	Schema   string            `json:"schema"`
	Platform string            `json:"platform"`
	VerifyAt time.Time         `json:"verify_at"`
	Window   *window           `json:"window"`
	Files    map[string]string `json:"files"`
	Claims   map[string]any    `json:"claims"`
	Expected expected          `json:"expected"`
	Neg      map[string]neg    `json:"neg"`

	dir     string
	content map[string][]byte // by role
}

type window struct {
	From  time.Time `json:"from"`
	Until time.Time `json:"until"`
}

// outcome is a verdict with the accepted reasons.
type outcome struct {
	Verdict   string   `json:"verdict"`
	Reason    string   `json:"reason"`
	Also      []string `json:"also"`
	ReasonAny bool     `json:"reason_any"`
}

type expected struct {
	outcome
	Policy        json.RawMessage `json:"policy"`
	PolicyAccepts json.RawMessage `json:"policy_accepts"`
	CRL           string          `json:"crl"`
	UnderDefault  *outcome        `json:"under_default"`
}

type neg struct {
	outcome
	Replaces string `json:"replaces"`
}

// policy returns the default policy with the differences that the object states.
func (v *vector) policy(t reporter, differs json.RawMessage) Policy {
	t.Helper()
	p := defaultPolicy()
	p.CRLIfPresent = v.Expected.CRL == "absent-allowed"
	if len(differs) > 0 {
		if err := json.Unmarshal(differs, &p); err != nil {
			t.Fatalf("%s: reading policy: %v", v.dir, err)
		}
	}
	return p
}

func defaultPolicy() Policy { return Policy{TCBStatus: []string{"UpToDate"}} }

// good returns the policy under which only forgeries are refused: the accepting policy of
// the vector if it has one, else the expected policy.
func (v *vector) good(t reporter) Policy {
	t.Helper()
	if accepts := v.Expected.PolicyAccepts; len(accepts) > 0 && !v.never() {
		return v.policy(t, accepts)
	}
	return v.policy(t, v.Expected.Policy)
}

// never reports whether every policy must refuse the vector.
func (v *vector) never() bool { return string(v.Expected.PolicyAccepts) == "null" }

// accepted reports whether the good policy accepts the vector.
func (v *vector) accepted() bool {
	return v.Expected.Verdict == "accept" || len(v.Expected.PolicyAccepts) > 0 && !v.never()
}

// mildest returns the most permissive policy.
func (v *vector) mildest() Policy {
	p := Policy{
		TCBStatus: []string{"UpToDate", "SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded", "OutOfDate", "OutOfDateConfigurationNeeded"},
		Debug:     true, VMPL: 3, ProvisionalFirmware: true, CRLIfPresent: true, MaxAge: int64(100 * 365 * 24 * time.Hour / time.Second),
	}
	advisories, _ := v.Claims["advisories"].([]any)
	for _, a := range advisories {
		id, _ := a.(string)
		p.Advisories = append(p.Advisories, id)
	}
	return p
}

// rootOf returns the digest that names a root in policy, from a certificate in PEM or DER.
// It returns zero, which names no root, for anything else.
func rootOf(certificate []byte) attest.Digest {
	if block, _ := pem.Decode(certificate); block != nil {
		certificate = block.Bytes
	}
	root, err := x509.ParseCertificate(certificate)
	if err != nil {
		return attest.Digest{}
	}
	return wire.Sum(root.RawSubjectPublicKeyInfo)
}

// evidence lists the suffixes of the roles "evidence" and "evidence.SUFFIX".
func (v *vector) evidence() []string {
	var suffixes []string
	for role := range v.content {
		if role == "evidence" {
			suffixes = append(suffixes, "")
		} else if suffix, ok := strings.CutPrefix(role, "evidence."); ok {
			suffixes = append(suffixes, suffix)
		}
	}
	return suffixes
}

// claims returns the claims of one piece of evidence.
func (v *vector) claims(suffix string) map[string]any {
	if suffix == "" {
		return v.Claims
	}
	claims, _ := v.Claims[suffix].(map[string]any)
	return claims
}

// roles returns the files that belong to the evidence of a suffix, by role without the
// suffix. A replacement takes the place of the file of its role.
func (v *vector) roles(suffix string, replace map[string][]byte) map[string][]byte {
	roles := make(map[string][]byte, len(v.content))
	for role, content := range v.content {
		if other, ok := replace[role]; ok {
			content = other
		}
		name, own, suffixed := strings.Cut(role, ".")
		if !suffixed || own == suffix {
			roles[name] = content
		}
	}
	return roles
}

// load reads every vector of a platform, or skips the test.
func load(t *testing.T, platform string) []*vector {
	t.Helper()
	all := loadAll(t)
	vectors := slices.DeleteFunc(all, func(v *vector) bool { return v.Platform != platform })
	if len(vectors) == 0 {
		t.Skipf("NO VECTORS of platform %s", platform)
	}
	return vectors
}

// platforms returns the platforms of all vectors.
func platforms(t *testing.T) []string {
	t.Helper()
	var names []string
	for _, v := range loadAll(t) {
		names = append(names, v.Platform)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func loadAll(t *testing.T) []*vector {
	t.Helper()
	root, named := vectorsDir(t)
	if _, err := os.Stat(root); errors.Is(err, fs.ErrNotExist) && !named {
		t.Skipf("NO VECTORS: %s is not there, so NO CAPTURED EVIDENCE IS JUDGED; set COHORT_VECTORS", root)
	}
	var vectors []*vector
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.Name() != "vector.json" {
			return err
		}
		vectors = append(vectors, read(t, path))
		return nil
	})
	if err != nil {
		t.Fatalf("reading vectors: %v", err)
	}
	return vectors
}

// Seeds returns captured evidence of a platform as seeds of a fuzz target, each piece of at
// most the given size in bytes. It returns none where the vectors do not exist.
func Seeds(f *testing.F, platform string, most int) (seeds [][]byte) {
	f.Helper()
	root, _ := vectorsDir(f)
	_ = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.Name() != "vector.json" {
			return err
		}
		v := read(f, path)
		for _, suffix := range v.evidence() {
			if evidence := v.roles(suffix, nil)["evidence"]; v.Platform == platform && len(evidence) <= most {
				seeds = append(seeds, evidence)
			}
		}
		return nil
	})
	return seeds
}

// Beside returns a folder next to the folder of the vectors, or the folder that the
// environment variable names. It skips the test with a loud message when the folder does
// not exist.
func Beside(t testing.TB, variable string, path ...string) string {
	t.Helper()
	dir, ok := Found(t, variable, path...)
	if !ok {
		t.Skipf("NO CASES: %s is not there; set %s", dir, variable)
	}
	return dir
}

// Found returns the folder of [Beside], and whether it exists or the variable names it.
func Found(t testing.TB, variable string, path ...string) (dir string, ok bool) {
	t.Helper()
	if dir, named := os.LookupEnv(variable); named {
		return dir, true
	}
	vectors, _ := vectorsDir(t)
	dir = filepath.Join(append([]string{vectors, ".."}, path...)...)
	_, err := os.Stat(dir)
	return dir, err == nil
}

// vectorsDir returns the folder of the vectors, and whether the environment names it.
func vectorsDir(t testing.TB) (dir string, named bool) {
	t.Helper()
	root, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(root, "go.mod")); err == nil {
			break
		}
		if root == filepath.Dir(root) {
			t.Fatal("no go.mod above the working directory")
		}
		root = filepath.Dir(root)
	}
	dir, named = os.LookupEnv("COHORT_VECTORS")
	switch {
	case !named:
		return filepath.Join(root, "..", "shared", "vectors"), false
	case filepath.IsAbs(dir):
		return dir, true
	}
	return filepath.Join(root, dir), true
}

func read(t testing.TB, path string) *vector {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	v := &vector{dir: filepath.Dir(path), content: make(map[string][]byte)}
	if err := json.Unmarshal(text, v); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	if v.Schema != "cohort/vector/v1" {
		t.Fatalf("%s: schema %q, want cohort/vector/v1", path, v.Schema)
	}
	for role, name := range v.Files {
		v.content[role] = v.file(t, name)
	}
	v.named(t)
	return v
}

// named requires that the vector names each file of its folder once.
func (v *vector) named(t testing.TB) {
	t.Helper()
	names := map[string]int{"vector.json": 1, "SOURCE.md": 1}
	for _, name := range v.Files {
		names[name]++
	}
	for name := range v.Neg {
		names[name]++
	}
	files, err := os.ReadDir(v.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if names[f.Name()] != 1 {
			t.Errorf("%s: %s is named %d times, want once", v.dir, f.Name(), names[f.Name()])
		}
	}
}

func (v *vector) file(t reporter, name string) []byte {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(v.dir, filepath.Base(name)))
	if err != nil {
		t.Fatalf("reading a vector's file: %v", err)
	}
	return content
}
