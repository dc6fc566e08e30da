package systest

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/loopback"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/cohort-tee/cohort/policy/policyfile"
	"github.com/cohort-tee/cohort/unit"
)

// refusedMember requires that a unit with this program, role and group is refused
// permanently, with the given reason.
func refusedMember(t *testing.T, c *Cluster, group, role, program string, want wire.Reason) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	config := c.MemberConfig(group, role, program)
	if config.PartyKeys == nil {
		config.PartyKeys = []attest.Digest{{1}} // of no party
	}
	u, err := unit.Start(ctx, config)
	if err == nil {
		u.Close()
	}
	if !errors.Is(err, want) || ctx.Err() != nil {
		t.Errorf("%s as %s of %s: got %v, want %q", program, role, group, err, want)
	}
}

// TestStrangersInAGroup: code that is not a member of the group is refused, and so is a
// member in another member's role.
func TestStrangersInAGroup(t *testing.T) {
	c := newFour(t, policyfile.Shared)
	c.ApproveGroup("trial", c.FormGroup(four))
	refusedMember(t, c, "trial", "holder", "stranger", wire.NotMeasured)
	refusedMember(t, c, "trial", "holder", "scorer 1", wire.WrongRole)
	refusedMember(t, c, "trial", "owner", "holder 1", wire.NotFound)
	refusedMember(t, c, "tribe", "holder", "holder 1", wire.NotFound)
}

// TestApprovalsAtTheAuthority: the authority refuses invalid statements of parties on
// submission, and they change nothing.
func TestApprovalsAtTheAuthority(t *testing.T) {
	c := newFour(t, policyfile.Shared)
	parties := c.FormGroup(four)
	head := c.Approved().PolicyHead()
	for _, tt := range []struct {
		name, party string
		key         string
		change      func(*policy.Statement)
		want        wire.Reason
	}{
		{"an owner in a party's place", "holder", "ana", nil, wire.NotOwner},
		{"a party in another's place", "holder", "adder", nil, wire.NotOwner},
		{"another digest", "holder", "holder", func(s *policy.Statement) { s.Group[0]++ }, wire.StaleRoster},
		{"another domain", "holder", "holder", func(s *policy.Statement) { s.TrustDomain = "else.example" }, wire.WrongDomain},
		{"another genesis", "holder", "holder", func(s *policy.Statement) { s.Genesis[0]++ }, wire.WrongGenesis},
		{"over", "holder", "holder", func(s *policy.Statement) { s.NotAfter = time.Now().Add(-time.Second).UTC().Truncate(time.Second) }, wire.Expired},
		{"longer than the group", "holder", "holder", func(s *policy.Statement) { s.NotAfter = s.NotAfter.Add(time.Hour) }, wire.Expired},
	} {
		t.Run(tt.name, func(t *testing.T) {
			key := c.owner
			if tt.key != "ana" {
				key = parties[tt.key]
			}
			_, err := c.SubmitStatement("trial", tt.party, key, tt.change)
			if !errors.Is(err, tt.want) || c.Approved().PolicyHead() != head {
				t.Errorf("got %v, want %q and the head unchanged", err, tt.want)
			}
		})
	}
}

// TestRosterChanges: the group's roster changes while its units run. They continue under
// the old roster until the parties approve the new one, then get it without a restart; the
// member that left is cut off.
func TestRosterChanges(t *testing.T) {
	waits(t)
	if testing.Short() {
		t.Skip("SKIPPED: a change of the roster is not shown; run without -short")
	}
	c := newFour(t, policyfile.Shared)
	g := four
	g.Life = 4 * time.Second
	parties := c.FormGroup(g)
	c.ApproveGroup("trial", parties)
	units := map[string]*Replica{}
	for _, role := range g.Roles {
		units[role] = c.StartMember("trial", role, role+" 1", whoCalled)
	}
	old := c.Approved().GroupByName("trial")
	c.Adopt("[group.trial.role]\n", "continues = \""+old.ID().String()+"\"\n[group.trial.role]\n",
		`scorer = { members = [ { party = "scorer", task = "scorer", release = "1" } ], calls = ["adder", "broker", "holder"] }`+"\n", "",
		`calls = ["broker", "holder"]`, `calls = ["holder"]`)
	meets := func(from, to string) error { _, err := callPeer(units[from], "trial", to, units[to]); return err }
	if err := meets("adder", "holder"); err != nil {
		t.Errorf("while nobody approved the new roster: %v", err)
	}
	time.Sleep(g.Life) // until every unit knows the policy
	if err := meets("adder", "broker"); err != nil {
		t.Errorf("a call of the old roster, while nobody approved the new one: %v", err)
	}
	for party, key := range parties {
		if party == "scorer" {
			continue // its member leaves
		}
		if _, err := c.SubmitStatement("trial", party, key, nil); err != nil {
			t.Fatal(err)
		}
	}
	next := c.Approved().GroupByName("trial").ID()
	// The new roster supersedes the old one, so a unit with a certificate for the old
	// roster is refused until it renews, which it does at once.
	begin, changed := time.Now(), time.Duration(0)
	for ; time.Since(begin) < 2*g.Life; time.Sleep(50 * time.Millisecond) {
		if err := meets("adder", "holder"); err != nil {
			if changed = time.Since(begin); changed > 5*time.Second {
				t.Fatalf("a call that both rosters allow, %v after the new one was agreed on: %v", changed, err)
			}
		}
	}
	t.Logf("units of both rosters met again %v after the new one was agreed on", changed)
	for _, role := range []string{"adder", "broker", "holder"} {
		if got := units[role].Unit.Identity().ID; got != next {
			t.Errorf("unit of role %s: got group %v, want %v", role, got, next)
		}
	}
	if err := meets("adder", "broker"); err == nil {
		t.Error("a call that the new roster does not allow goes on")
	}
	if err := units["scorer"].Unit.Ready(); !errors.Is(err, wire.CertExpired) {
		t.Errorf("the member that left, one certificate life later: got %v, want %q", err, wire.CertExpired)
	}
	if err := meets("scorer", "holder"); err == nil {
		t.Error("the member that left is still served")
	}
}

// TestWithdrawalAfterARollback: the store is restored to a state before a withdrawal. Once
// the newer statement is presented, the authority issues nothing.
func TestWithdrawalAfterARollback(t *testing.T) {
	c := newFour(t, policyfile.Shared)
	parties := c.FormGroup(four)
	for _, party := range []string{"adder", "broker", "holder"} {
		if _, err := c.SubmitStatement("trial", party, parties[party], nil); err != nil {
			t.Fatal(err)
		}
	}
	before := c.copyStore()
	withdrawal := c.Statement("trial", "holder", parties["holder"], Withdraw)
	if _, err := authorityOf(t, c).SubmitStatement(t.Context(), "trial", withdrawal); err != nil {
		t.Fatal(err)
	}
	rollBack := func() {
		c.StopAuthority()
		c.restoreStore(before)
		c.StartAuthority()
	}
	certified := func(config unit.Config) error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		u, err := unit.Start(ctx, config)
		if err == nil {
			u.Close()
		}
		return err
	}
	config := c.MemberConfig("trial", "holder", "holder 1")
	rollBack()
	if err := certified(config); err != nil {
		t.Fatalf("nobody has shown the withdrawal yet: %v", err)
	}
	if _, err := authorityOf(t, c).SubmitStatement(t.Context(), "trial", withdrawal); err != nil {
		t.Fatalf("showing the statement: %v", err)
	}
	if err := certified(config); !errors.Is(err, wire.NoQuorum) {
		t.Errorf("after the party showed it: got %v, want %q", err, wire.NoQuorum)
	}
	history, err := authorityOf(t, c).History(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	rollBack()
	if _, err := authorityOf(t, c).PushHistory(t.Context(), history); err != nil {
		t.Fatalf("showing the history: %v", err)
	}
	if err := certified(config); !errors.Is(err, wire.NoQuorum) {
		t.Errorf("after anybody showed the history: got %v, want %q", err, wire.NoQuorum)
	}
}

// TestRoleSessions: in a session with a role, only units of that role respond; in a session
// with the whole group, units of all roles do. A request outside a session is refused.
func TestRoleSessions(t *testing.T) {
	c := newFour(t, policyfile.Shared)
	c.ApproveGroup("trial", c.FormGroup(four))
	c.StartManager()
	var units []*Replica
	for _, role := range four.Roles {
		for range 2 {
			units = append(units, c.StartMember("trial", role, role+" 1", hello(role)))
		}
	}
	attended(t, units...)
	trust := c.GroupTrust("trial")
	answers := func(role string) map[string]int {
		config := client.OpenConfig{Trust: trust, Role: role, Gateway: "https://" + c.manager.listen, CA: c.manager.ca, FreshEvidence: true}
		ch, err := client.OpenGroup(t.Context(), config)
		if err != nil {
			t.Fatalf("opening a session with %q: %v", role, err)
		}
		defer ch.Close(context.Background())
		seen := map[string]int{}
		for range 60 {
			r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://trial/", nil)
			answer, err := ch.RoundTrip(r)
			if err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 32)
			n, _ := answer.Body.Read(b)
			answer.Body.Close()
			seen[string(b[:n])]++
		}
		t.Logf("session with %q: %d handshakes", role, ch.Opens()) // over 1 only if a unit waited too long
		return seen
	}
	if got := answers("holder"); len(got) != 1 || got["holder"] == 0 {
		t.Errorf("session with the role holder: got answers of %v", got)
	}
	if got := answers(client.Whole); len(got) != 4 {
		t.Errorf("session with the whole group: got answers of %v, want all four roles", got)
	}
	for _, role := range []string{"", "nobody"} {
		if _, err := client.OpenGroup(t.Context(), client.OpenConfig{Trust: trust, Role: role, Gateway: "https://" + c.manager.listen}); !errors.Is(err, wire.WrongRole) {
			t.Errorf("a session with role %q: got %v, want %q", role, err, wire.WrongRole)
		}
	}
	plain := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	answer, err := plain.Get("https://" + units[0].Address + "/")
	if err != nil || answer.StatusCode != http.StatusForbidden {
		t.Errorf("a plain request: got %v, %v, want status 403", answer, err)
	}
}

// TestGroupByOtherTools: openssl, given the exported roots, accepts and refuses the same
// certificates as we do, as far as X.509 can express it.
func TestGroupByOtherTools(t *testing.T) {
	c := newFour(t, policyfile.Shared)
	c.ApproveGroup("trial", c.FormGroup(four))
	other := four
	other.Name = "audit"
	c.ApproveGroup("audit", c.FormGroup(other))
	dir := t.TempDir()
	holder, adder := c.StartMember("trial", "holder", "holder 1", whoCalled), c.StartMember("trial", "adder", "adder 1", whoCalled)
	stranger := c.StartMember("audit", "adder", "adder 1", whoCalled)
	root := func(group string) string { return file(t, dir, group+".pem", c.GroupTrust(group).RootPEM()) }
	trial, audit := root("trial"), root("audit")
	pair := func(r *Replica, name string) (leaf, key string) {
		config, err := r.Unit.PeerTLS(r.Unit.Identity().Group, "holder")
		if err != nil {
			t.Fatal(err)
		}
		p, err := config.GetClientCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		for i, name := range []string{name + ".crt", name + ".crt.chain"} {
			file(t, dir, name, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.Certificate[i]}))
		}
		pkcs8, err := x509.MarshalPKCS8PrivateKey(p.PrivateKey.(*ecdsa.PrivateKey))
		if err != nil {
			t.Fatal(err)
		}
		return filepath.Join(dir, name+".crt"), file(t, dir, name+".key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
	}
	mine, key := pair(adder, "adder")
	theirs, strangeKey := pair(stranger, "stranger")
	wants := func(name string, want bool, args ...string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		cmd := exec.CommandContext(ctx, "openssl", args...)
		cmd.Stdin = strings.NewReader("GET / HTTP/1.1\r\nHost: trial.test.example\r\nConnection: close\r\n\r\n")
		out, err := cmd.CombinedOutput()
		got := err == nil && (args[0] != "s_client" || strings.Contains(string(out), "HTTP/1.1 200"))
		if got != want {
			t.Errorf("%s: openssl accepts: %v, want %v\n%s", name, got, want, out)
		}
	}
	wants("our leaf under our root", true, "verify", "-CAfile", trial, mine)
	wants("our leaf under another group's root", false, "verify", "-CAfile", audit, mine)
	wants("another group's leaf under our root", false, "verify", "-CAfile", trial, theirs)
	dial := func(cert, key, root string) []string {
		return []string{"s_client", "-connect", holder.Address, "-verify_hostname", "trial.test.example", "-CAfile", root,
			"-cert", cert, "-cert_chain", cert + ".chain", "-key", key, "-verify_return_error", "-ign_eof", "-quiet"}
	}
	wants("a member calls a member", true, dial(mine, key, trial)...)
	wants("a member of another group calls", false, dial(theirs, strangeKey, trial)...)
	wants("a member who trusts another group", false, dial(mine, key, audit)...)
	for _, tt := range []struct {
		name, chain, key string
		want             bool
	}{{"openssl serves as a member", mine, key, true}, {"openssl serves as a member of another group", theirs, strangeKey, false}} {
		address := loopback.FreeAddress(t)
		ctx, stop := context.WithCancel(t.Context())
		server := exec.CommandContext(ctx, "openssl", "s_server", "-accept", address, "-cert", tt.chain, "-cert_chain", tt.chain+".chain", "-key", tt.key, "-CAfile", trial, "-Verify", "2", "-www")
		if err := server.Start(); err != nil {
			t.Fatal(err)
		}
		testworld.Within(t, 10*time.Second, "openssl to listen", func() bool {
			probe, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true})
			if err == nil {
				probe.Close()
			}
			return err == nil || !strings.Contains(err.Error(), "refused")
		})
		scorer := c.StartMember("trial", "scorer", "scorer 1", whoCalled)
		_, err := callPeer(scorer, "trial", "adder", &Replica{Address: address})
		if (err == nil) != tt.want {
			t.Errorf("%s: we accept: %v (%v), want %v", tt.name, err == nil, err, tt.want)
		}
		stop()
		_ = server.Wait()
	}
}

func file(t *testing.T, dir, name string, b []byte) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
