package partystatement

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authorityclient"
	"github.com/cohort-tee/cohort/internal/cli/clitest"
	"github.com/cohort-tee/cohort/internal/cli/drafttext"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/cli/localtee"
	"github.com/cohort-tee/cohort/internal/cli/sshkey"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/cohort-tee/cohort/policy/policydraft"
	"github.com/cohort-tee/cohort/policy/sshsig"
	"golang.org/x/crypto/ssh"
)

// sshSigner makes an SSH key and returns it with its public line.
func sshSigner(t *testing.T, name string) (ssh.Signer, string) {
	t.Helper()
	o := sshkey.Pair{Name: name, Path: filepath.Join(t.TempDir(), name)}
	if err := sshkey.WritePair(o); err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(o.Path)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.ParsePrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return signer, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey())))
}

// trial is a history whose policy has a group of one party. Policy names two authority
// programs, the roster one of them.
func trial(t *testing.T, vendor *attesttest.Vendor) (approved policy.Approved, party ssh.Signer) {
	t.Helper()
	ana, line := sshSigner(t, "ana")
	party, partyLine := sshSigner(t, "north")
	program := func(name string) string {
		return localtee.Reference(attest.Soft, localtee.Measurement{Program: wire.Sum([]byte(name)).String()}, nil)
	}
	d := clitest.Draft(t)
	d.Owners, d.Quorum, d.SoftRoots, d.Authority = []drafttext.Owner{{Name: "ana", SSH: line}}, 1, []string{vendor.Root().String()}, []string{program("good"), program("owners")}
	text := d.PolicyText() + fmt.Sprintf(`
[group.trial]
key_mode = "shared"
quorum = 1
until = %s
authority = { reference = [ %s ], machines = "any", platform = { soft = { roots = [%q] } } }
party = [ { name = "north", ssh = %q } ]
[group.trial.role]
holder = { members = [ { party = "north", task = "scoring", release = "1" } ] }
`, d.Created.Add(20*24*time.Hour).Format(time.RFC3339), program("good"), vendor.Root(), partyLine)
	parsed, err := policydraft.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	raw := parsed.Document().Source()
	signature, err := sshsig.Sign(ana, sshsig.ForPolicy, raw)
	if err != nil {
		t.Fatal(err)
	}
	if approved, err = policy.Genesis(wire.Sum(raw), policy.Step{Policy: raw, Signatures: []string{signature}}); err != nil {
		t.Fatal(err)
	}
	return approved, party
}

// TestGroupRootIsAppraised: a party approves the root of a group only with fresh evidence
// of an authority that the roster names, whatever the policy of its owners contains.
func TestGroupRootIsAppraised(t *testing.T) {
	vendor := attesttest.NewVendor()
	approved, _ := trial(t, vendor)
	pact := approved.GroupByName("trial")
	other := httptest.NewTLSServer(nil)
	defer other.Close()
	made := other.TLS.Certificates[0]
	certificate, err := x509.ParseCertificate(made.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	root := wire.Sum(certificate.RawSubjectPublicKeyInfo)
	type answer struct {
		chip    *attesttest.Chip
		program string
		nonce   []byte
		roster  wire.Digest // in the evidence
		root    wire.Digest // in the evidence
		api.GroupRoot
	}
	for name, tt := range map[string]struct {
		spoil func(*answer)
		want  wire.Reason
	}{
		"as it is":                          {func(*answer) {}, ""},
		"a program that policy alone names": {func(a *answer) { a.program = "owners" }, wire.NotMeasured},
		"a program that neither names":      {func(a *answer) { a.program = "other" }, wire.NotMeasured},
		"another vendor's chip":             {func(a *answer) { a.chip = attesttest.NewVendor().Chip() }, wire.UnknownRoot},
		"evidence of another time":          {func(a *answer) { a.nonce = bytes.Repeat([]byte{1}, 32) }, wire.BadNonce},
		"evidence of another root":          {func(a *answer) { a.root[0]++ }, wire.BadNonce},
		"evidence of another roster":        {func(a *answer) { a.roster[0]++ }, wire.BadNonce},
		"another roster":                    {func(a *answer) { a.Roster[0]++ }, wire.StaleRoster},
		"no certificate":                    {func(a *answer) { a.Root = a.Root[1:] }, wire.Malformed},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				var request api.GroupRootRequest
				if err := json.NewDecoder(r.Body).Decode(&request); err != nil || r.URL.Path != "/v1/groups/trial/root" {
					t.Errorf("got %s, %v", r.URL.Path, err)
				}
				a := answer{
					chip: vendor.Chip(), program: "good", nonce: request.Nonce, roster: request.Roster, root: root,
					GroupRoot: api.GroupRoot{Roster: request.Roster, Root: made.Certificate[0]},
				}
				tt.spoil(&a)
				evidence, err := a.chip.Attester(attesttest.Measure(a.program)).Attest(r.Context(), identity.GroupRootData(a.nonce, a.roster, a.root))
				if err != nil {
					t.Error(err)
				}
				if a.Evidence, err = evidence.MarshalJSON(); err != nil {
					t.Error(err)
				}
				json.NewEncoder(w).Encode(a.GroupRoot)
			}))
			defer server.Close()
			authority, err := api.NewAuthority(server.URL, &tls.Config{InsecureSkipVerify: true})
			if err != nil {
				t.Fatal(err)
			}
			defer authority.Close()
			a := &frame.App{Now: func() time.Time { return approved.Document().Created.Add(time.Hour) }}
			got, err := AppraisedRoot(t.Context(), a, authorityclient.Client{Authority: authority, Approved: approved}, pact)
			switch {
			case tt.want == "" && (err != nil || got.Digest != root):
				t.Errorf("got %v, %v, want root %v", got.Digest, err, root)
			case tt.want != "" && !errors.Is(err, tt.want):
				t.Errorf("got %v, want reason %q", err, tt.want)
			}
		})
	}
}

// TestStatementAgain: a statement whose response was lost is sent again as it was signed,
// and no number is used for two texts.
func TestStatementAgain(t *testing.T) {
	approved, party := trial(t, attesttest.NewVendor())
	key, root := sshsig.KeyDigest(party.PublicKey()), attest.Digest{1}
	want := func(p policy.Approved, change func(*policy.Statement)) policy.Statement {
		t.Helper()
		s, err := p.GroupByName("trial").Statement(key, root)
		if err != nil {
			t.Fatal(err)
		}
		change(&s)
		return s
	}
	same, withdraw := func(*policy.Statement) {}, func(s *policy.Statement) { s.Withdraws = true }
	hear := func(p policy.Approved, s policy.Statement) policy.Approved {
		t.Helper()
		signature, err := sshsig.Sign(party, s.Namespace(), s.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		if p, err = p.Next(policy.Step{Policy: s.Bytes(), Signatures: []string{signature}}); err != nil {
			t.Fatal(err)
		}
		return p
	}
	first := want(approved, same)
	receipt := hear(approved, first)
	gone := hear(receipt, want(receipt, withdraw))
	for name, tt := range map[string]struct {
		history policy.Approved
		change  func(*policy.Statement)
		kept    policy.Statement
		number  uint64
		again   bool
	}{
		"the first":                             {approved, same, policy.Statement{}, 1, false},
		"lost on its way":                       {approved, same, first, 1, true},
		"its response lost":                     {receipt, same, first, 1, true},
		"kept nowhere, heard":                   {receipt, same, policy.Statement{}, 2, false},
		"another text after a lost one":         {approved, withdraw, first, 2, false},
		"a withdrawal":                          {receipt, withdraw, first, 2, false},
		"approved again after a withdrawal":     {gone, same, first, 3, false},
		"another root after a lost approval":    {approved, func(s *policy.Statement) { s.GroupRoot[0]++ }, first, 2, false},
		"a history that was put back, the same": {approved, same, want(receipt, same), 2, true},
	} {
		got, again := numbered(want(tt.history, tt.change), tt.kept, tt.history.GroupByName("trial"))
		if got.Number != tt.number || again != tt.again || again && !bytes.Equal(got.Bytes(), tt.kept.Bytes()) {
			t.Errorf("%s: got number %d, again %v, want %d, %v", name, got.Number, again, tt.number, tt.again)
		}
	}

	path := filepath.Join(t.TempDir(), "statements", "one.json")
	if _, s, err := readStatement(path); err != nil || s.Number != 0 {
		t.Errorf("got %+v, %v of no file, want nothing", s, err)
	}
	kept := policy.SignedStatement{Statement: first.Bytes(), Signature: "signature"}
	if err := writeStatement(path, kept); err != nil {
		t.Fatal(err)
	}
	if signed, s, err := readStatement(path); err != nil || signed.Signature != kept.Signature || !bytes.Equal(s.Bytes(), first.Bytes()) {
		t.Errorf("got %+v, %v, want what was written", s, err)
	}
	for _, text := range []string{"", "{}", `{"schema":"cohort/statement/v1","statement":"aGVsbG8=","signature":"x"}`, `{"schema":"cohort/other/v1"}`} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := readStatement(path); err == nil {
			t.Errorf("file %q: accepted", text)
		}
	}
}
