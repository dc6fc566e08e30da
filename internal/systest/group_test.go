package systest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policyfile"
	"github.com/cohort-tee/cohort/unit"
)

// four is a group of four roles, each of which may call some of the others.
var four = Group{
	Name: "trial", KeyMode: policyfile.Shared, Life: time.Minute, Quorum: 3, Roles: []string{"adder", "broker", "holder", "scorer"},
	Calls: map[string][]string{"adder": {"broker", "holder"}, "broker": {"broker"}, "scorer": {"adder", "broker", "holder"}},
}

// newFour starts a cluster with a task for each role of four.
func newFour(t *testing.T, mode policyfile.KeyMode) *Cluster {
	t.Helper()
	var tasks []Task
	for _, role := range four.Roles {
		tasks = append(tasks, Task{Name: role, KeyMode: mode, Life: time.Minute, Programs: []string{role + " 1"}})
	}
	return New(t, tasks...)
}

// whoCalled responds with the role of the peer.
var whoCalled = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	p, _ := unit.PeerOf(r.Context())
	fmt.Fprint(w, p.RoleName())
})

// callPeer sends a request from one unit to a unit of a role.
func callPeer(from *Replica, group, role string, to *Replica) (string, error) {
	config, err := from.Unit.PeerTLS(group, role)
	if err != nil {
		return "", err
	}
	transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	answer, err := (&http.Client{Transport: transport, Timeout: 10 * time.Second}).Get("https://" + to.Address + "/")
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	return string(body), err
}

// callBlindly sends a request with the caller's certificate but without checking the
// server, as a program without peer checks does.
func callBlindly(t *testing.T, from, to *Replica) (string, error) {
	t.Helper()
	var config *tls.Config
	for _, role := range four.Roles { // any role, for its certificate
		if may, err := from.Unit.PeerTLS("trial", role); err == nil {
			config = &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, GetClientCertificate: may.GetClientCertificate}
		}
	}
	return get(t, &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}, "https://"+to.Address)
}

// TestCallMatrix: of 4 callers and 4 servers, exactly those pairs connect that the parties
// approved. Both the caller and the server enforce it.
func TestCallMatrix(t *testing.T) {
	for _, mode := range []policyfile.KeyMode{policyfile.Shared, policyfile.PerUnit} {
		t.Run(string(mode), func(t *testing.T) {
			c := newFour(t, policyfile.Shared)
			g := four
			g.KeyMode = mode
			c.ApproveGroup("trial", c.FormGroup(g))
			units := map[string]*Replica{}
			for _, role := range g.Roles {
				units[role] = c.StartMember("trial", role, role+" 1", whoCalled)
			}
			for _, from := range g.Roles {
				for _, to := range g.Roles {
					got, err := callPeer(units[from], "trial", to, units[to])
					allowed := c.Approved().GroupByName("trial").Group.MayCall(from, to)
					if allowed && (err != nil || got != from) || !allowed && err == nil {
						t.Errorf("%s calling %s: got %q, %v; allowed: %v", from, to, got, err, allowed)
					}
					got, err = callBlindly(t, units[from], units[to])
					if allowed && got != from || !allowed && err == nil {
						t.Errorf("%s calling %s, checking nothing: got %q, %v; allowed: %v", from, to, got, err, allowed)
					}
				}
			}
		})
	}
}

// TestQuorumOfParties: the authority issues no certificate before a quorum of parties
// approves, and none after a withdrawal breaks the quorum.
func TestQuorumOfParties(t *testing.T) {
	c := newFour(t, policyfile.Shared)
	parties := c.FormGroup(four)
	try := func(patience time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		u, err := unit.Start(ctx, c.MemberConfig("trial", "holder", "holder 1"))
		if err == nil {
			u.Close()
		}
		return err
	}
	// A unit waits for its parties, so the test gives it little time, and more if that time
	// ends before the unit gets any response.
	start := func() (err error) {
		for patience := 300 * time.Millisecond; patience < 20*time.Second; patience *= 2 {
			if err = try(patience); err == nil || errors.Is(err, wire.NoQuorum) {
				break
			}
		}
		return err
	}
	for i, party := range []string{"adder", "broker", "holder"} {
		if err := start(); !errors.Is(err, wire.NoQuorum) {
			t.Fatalf("after %d approvals: got %v, want %q", i, err, wire.NoQuorum)
		}
		if _, err := c.SubmitStatement("trial", party, parties[party], nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := start(); err != nil {
		t.Fatalf("after 3 approvals: %v", err)
	}
	if _, err := c.SubmitStatement("trial", "broker", parties["broker"], Withdraw); err != nil {
		t.Fatal(err)
	}
	if err := start(); !errors.Is(err, wire.NoQuorum) {
		t.Fatalf("after a withdrawal: got %v, want %q", err, wire.NoQuorum)
	}
	c.ApproveGroup("trial", parties)
	if err := start(); err != nil {
		t.Fatalf("approved again: %v", err)
	}
}
