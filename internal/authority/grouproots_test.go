package authority

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authority/records"
	"github.com/cohort-tee/cohort/internal/backup"
	"github.com/cohort-tee/cohort/internal/limit"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// named returns the line of a group that names programs as its authorities, and machines.
func named(machines string, programs ...string) string {
	var references []string
	for _, program := range programs {
		references = append(references, fmt.Sprintf(`{ platform = "soft", program = %q }`, wire.Sum([]byte(program))))
	}
	return fmt.Sprintf("authority = { machines = %s, platform = { soft = { roots = [\"VENDOR\"] } }, reference = [ %s ] }\n", machines, strings.Join(references, ", "))
}

// newcomer returns edits by which the policy names a second authority program.
func (w *world) newcomer() []string {
	own := fmt.Sprintf(`{ platform = "soft", program = %q } ]`, wire.Sum([]byte("authority")))
	return []string{"machines = \"any\"\nreference = [ " + own, fmt.Sprintf("machines = \"any\"\nreference = [ { platform = \"soft\", program = %q }, %s", wire.Sum([]byte("authority 2")), own)}
}

// openAs opens an authority of a different program over the world's store.
func (w *world) openAs(program string) *Authority {
	w.T.Helper()
	a, err := Open(w.T.Context(), w.config(program))
	if err != nil {
		w.T.Fatal(err)
	}
	return a
}

// askRoot requests the root of the group, as its party does.
func askRoot(t testing.TB, a *Authority, change func(*api.GroupRootRequest)) (api.GroupRoot, error) {
	t.Helper()
	request := api.GroupRootRequest{Nonce: slices.Repeat([]byte{7}, api.TrustNonce)}
	if change != nil {
		change(&request)
	}
	return a.groupRoot(t.Context(), limit.AddressOf(""), "trial", request)
}

// rootOf returns the group root that an authority has.
func rootOf(t testing.TB, a *Authority) wire.Digest {
	t.Helper()
	r, err := askRoot(t, a, nil)
	if err != nil {
		t.Fatal(err)
	}
	return wire.Sum(testworld.Must(x509.ParseCertificate(r.Root)).RawSubjectPublicKeyInfo)
}

// TestGroupRoot: a party appraises the response by the roster's reference values, and gets the
// root of a roster, fresh for its own nonce. The root stays the same over restarts and at every
// authority of the store.
func TestGroupRoot(t *testing.T) {
	w := grouped(t)
	a := w.open()
	r, err := askRoot(t, a, nil)
	if err != nil {
		t.Fatal(err)
	}
	p := a.inForce().approved.GroupByName("trial")
	root := testworld.Must(x509.ParseCertificate(r.Root))
	digest := wire.Sum(root.RawSubjectPublicKeyInfo)
	var evidence attest.Evidence
	if err := json.Unmarshal(r.Evidence, &evidence); err != nil {
		t.Fatal(err)
	}
	question := attest.Question{
		Evidence: evidence, ReportData: identity.GroupRootData(slices.Repeat([]byte{7}, api.TrustNonce), p.ID(), digest),
		Rules: p.Roster.AuthorityRules(), At: noon,
	}
	result, err := attesttest.Verifier().Appraise(question)
	if err := errors.Join(err, p.Roster.AdmitAuthority(result)); err != nil || r.Roster != p.ID() {
		t.Fatalf("got the root of roster %v, %v", r.Roster, err)
	}
	for name, data := range map[string]attest.ReportData{
		"another nonce":  identity.GroupRootData(slices.Repeat([]byte{8}, api.TrustNonce), p.ID(), digest),
		"another roster": identity.GroupRootData(slices.Repeat([]byte{7}, api.TrustNonce), wire.Digest{1}, digest),
		"another root":   identity.GroupRootData(slices.Repeat([]byte{7}, api.TrustNonce), p.ID(), wire.Digest{1}),
	} {
		question.ReportData = data
		if _, err := attesttest.Verifier().Appraise(question); err == nil {
			t.Errorf("the evidence holds for %s", name)
		}
	}
	w.agree(a)
	for name, other := range map[string]*Authority{"after a restart": w.open(), "another authority of the store": w.open()} {
		if got := rootOf(t, other); got != digest {
			t.Errorf("%s: got root %v, want %v", name, got, digest)
		}
		testworld.Must(w.holder().enrol(direct{other}))
	}
}

func TestGroupRootRefusals(t *testing.T) {
	w := grouped(t)
	a := w.open()
	for _, tt := range []struct {
		name   string
		change func(*api.GroupRootRequest)
		want   wire.Reason
	}{
		{"no nonce", func(r *api.GroupRootRequest) { r.Nonce = nil }, wire.BadRequest},
		{"a short nonce", func(r *api.GroupRootRequest) { r.Nonce = r.Nonce[1:] }, wire.BadRequest},
		{"a long credential", func(r *api.GroupRootRequest) { r.Credential = make([]byte, 1025) }, wire.BadRequest},
		{"another roster", func(r *api.GroupRootRequest) { r.Roster = wire.Digest{1} }, wire.StaleRoster},
		{"the roster itself", func(r *api.GroupRootRequest) { r.Roster = a.inForce().approved.GroupByName("trial").ID() }, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := askRoot(t, a, tt.change)
			if tt.want != "" {
				testworld.Refused(t, err, tt.want)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
	_, err := a.groupRoot(t.Context(), limit.AddressOf(""), "none", api.GroupRootRequest{Nonce: make([]byte, api.TrustNonce)})
	testworld.Refused(t, err, wire.NotFound)
}

// TestRosterNamesNoOther: the policy names an authority that the roster does not, by its program
// or its machine. That authority draws and opens no secret of the group, refuses requests for the
// group, and still serves its tasks.
func TestRosterNamesNoOther(t *testing.T) {
	for name, line := range map[string]string{
		"another program": named(`"any"`, "authority of the parties"),
		"another machine": named(`["chip:0123456789abcdef"]`, "authority"),
	} {
		t.Run(name, func(t *testing.T) {
			w := groupedUnder(t, 2, line)
			a := w.open()
			_, err := w.holder().enrol(direct{a})
			testworld.Refused(t, err, wire.GroupElsewhere)
			_, err = askRoot(t, a, nil)
			testworld.Refused(t, err, wire.GroupElsewhere)
			_, err = a.inForce().identitiesOfGroup("trial")
			testworld.Refused(t, err, wire.GroupElsewhere)
			if row, err := a.store.Group(t.Context(), a.inForce().approved.GroupByName("trial").ID()); err != nil || row.Key != nil {
				t.Errorf("got row %x of the group's secret, %v", row.Key, err)
			}
			if _, err := w.applicant("keys").enrol(direct{a}); err != nil {
				t.Errorf("a task: %v", err)
			}
			if signed := a.warnings(); len(signed) != 1 || !strings.Contains(signed[0], "no root of group trial") {
				t.Errorf("got warnings %q, want one of the group", signed)
			}
			if a.inForce().groups.Passing() {
				t.Error("the refusal is tried again each second, want it to stay until another policy")
			}
		})
	}
}

// TestAuthorityProgramChanges: the owners name a second authority program, which gets the
// domain's root at once. It serves a group only if the group's roster names it. Otherwise the old
// program serves the group, until the policy no longer names that program.
func TestAuthorityProgramChanges(t *testing.T) {
	for name, tt := range map[string]struct {
		line string
		want wire.Reason
	}{
		"the roster names it":     {named(`"any"`, "authority", "authority 2"), ""},
		"the roster does not":     {named(`"any"`, "authority"), wire.GroupElsewhere},
		"the line of the genesis": {"", wire.GroupElsewhere},
	} {
		t.Run(name, func(t *testing.T) {
			w := groupedUnder(t, 2, tt.line, `delay = "1h"`, `delay = "0s"`)
			former := w.agreed()
			root, id := rootOf(t, former), former.inForce().approved.GroupByName("trial").ID()
			w.change(former, w.newcomer()...)
			if got := former.inForce().approved.GroupByName("trial").ID(); got != id {
				t.Fatalf("got group %v, want %v: its roster has its own authorities", got, id)
			}
			testworld.Must(w.holder().enrol(direct{former}))

			second := w.openAs("authority 2")
			testworld.Must(w.applicant("keys").enrol(direct{second}))
			_, err := w.holder().enrol(direct{second})
			_, shown := askRoot(t, second, nil)
			if tt.want != "" {
				testworld.Refused(t, err, tt.want)
				testworld.Refused(t, shown, tt.want)
				row := testworld.Must(second.store.Group(t.Context(), id))
				_, err := w.Device("authority 2").Unseal(t.Context(), row.Content)
				testworld.Refused(t, err, wire.NotMeasured)
				return
			}
			if err := errors.Join(err, shown); err != nil {
				t.Fatal(err)
			}
			if got := rootOf(t, second); got != root {
				t.Errorf("got root %v, want %v as before", got, root)
			}
		})
	}
}

// TestGroupRootDamaged: a row that no authority wrote is reported and replaced. The new root does
// not count for a party that approved the old one, until the party approves again.
func TestGroupRootDamaged(t *testing.T) {
	w := grouped(t)
	a := w.agreed()
	root := rootOf(t, a)
	exec(t, w.dsn, `UPDATE groups SET mac = zeroblob(32)`)
	b := w.open()
	if named := b.damage.RowsOf(records.TableGroups); len(named) != 1 {
		t.Errorf("got damaged rows %q, want the one of the group", named)
	}
	if got := rootOf(t, b); got == root {
		t.Error("a row without a tag is believed")
	}
	_, err := w.holder().enrol(direct{b})
	testworld.Refused(t, err, wire.NoQuorum)
	if agreed := b.inForce().approved.GroupByName("trial").ApprovalStatus(rootOf(t, b), noon); len(agreed.OtherRoot) != 2 {
		t.Errorf("got parties of another root %v, want both", agreed.OtherRoot)
	}
	w.agree(b)
	testworld.Must(w.holder().enrol(direct{b}))
	if got, want := rootOf(t, w.open()), rootOf(t, b); got != want {
		t.Errorf("after a restart: got root %v, want %v", got, want)
	}
}

// TestGroupReportSigner: a report for a group is signed under the group root alone and is bound
// to it. Its certificates chain to the group root; it contains no leaf of the authority's root.
func TestGroupReportSigner(t *testing.T) {
	w := grouped(t)
	a := w.agreed()
	unit := w.holder()
	challenge := testworld.Must(direct{a}.Challenge(t.Context()))
	request := unit.request(challenge.Nonce, nil)
	sealed := testworld.Must(a.certify(t.Context(), request, ""))
	if root := rootOf(t, a); sealed.GroupRoot != root {
		t.Fatalf("sealed under group root %v, want %v", sealed.GroupRoot, root)
	}
	report := testworld.Must(unit.openReport(request, sealed))
	other := sealed
	other.GroupRoot = wire.Digest{}
	if _, err := unit.openReport(request, other); err == nil {
		t.Error("the report opens without its group root")
	}
	authority := testworld.Must(x509.ParseCertificate(a.inForce().issuer.AuthorityRoot()))
	expect := identity.Expect{Policy: a.inForce().approved, Kinds: []identity.Kind{identity.KindAuthority}, Use: identity.UseSigning, At: noon, Group: "trial"}
	signer := unit.signer
	if len(signer) != 3 || !signer[2].Equal(authority) || string(signer[1].Raw) != string(report.IdentityCA) {
		t.Fatalf("got a chain of %d", len(signer))
	}
	if _, err := identity.Check(signer[:2], authority, expect); err != nil {
		t.Errorf("the signer of the report: %v", err)
	}
	leaf := testworld.Must(x509.ParseCertificate(report.Unit))
	expect.Kinds, expect.Roles = []identity.Kind{identity.KindGroup}, []string{"holder"}
	p, err := identity.Check([]*x509.Certificate{leaf, signer[1]}, authority, expect)
	if err != nil || p.Party() != w.Keys["north"].Digest() {
		t.Errorf("the unit's leaf: party %v, %v", p.Party(), err)
	}
}

// TestGroupRootIsInNoBackup: owners who restore the domain's root from their shares do not get
// the root of a group. The restored authority draws a new group root, which issues nothing until
// the parties approve it.
func TestGroupRootIsInNoBackup(t *testing.T) {
	w := grouped(t)
	a := w.agreed()
	root := rootOf(t, a)
	shares := w.split(a)
	r := w.restoration(a, "authority")
	r.config.Shares = []backup.Share{testworld.Must(r.unlock(a, shares[0])), testworld.Must(r.unlock(a, shares[1]))}
	testworld.Must(Restore(t.Context(), r.config))
	tee := r.config.Attester.(*attesttest.Device)
	config := w.config("authority")
	config.Attester, config.Sealer, config.Genesis = tee, tee, nil
	restored := testworld.Must(Open(t.Context(), config))
	testworld.Must(w.applicant("keys").enrol(direct{restored}))
	if got := rootOf(t, restored); got == root {
		t.Error("the restored authority has the group's root")
	}
	if signed := restored.warnings(); len(signed) != 0 {
		t.Errorf("got warnings %q, want none: it has a root, which the parties have not approved", signed)
	}
	_, err := w.holder().enrol(direct{restored})
	testworld.Refused(t, err, wire.NoQuorum)
	w.agree(restored)
	testworld.Must(w.holder().enrol(direct{restored}))
}
