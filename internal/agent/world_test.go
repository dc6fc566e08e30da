package agent

import (
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/unit"
	"github.com/cohort-tee/cohort/unit/unittest"
)

// started starts a unit of a task that the test closes.
func started(w *unittest.World, task string, at *unittest.Authority) *unit.Unit {
	w.T.Helper()
	return run(w, unit.Config{Task: task, Attester: w.Vendor.Chip().Attester(attesttest.Measure(task))}, at)
}

// join starts a unit of a role.
func join(w *unittest.World, role, program string, at *unittest.Authority) *unit.Unit {
	w.T.Helper()
	return run(w, unit.Config{
		Group: "trial", Role: role, PartyKeys: []attest.Digest{w.Policy().GroupByName("trial").Roster.Parties[0].Key},
		Attester: w.Vendor.Chip().Attester(attesttest.Measure(program)),
	}, at)
}

func run(w *unittest.World, c unit.Config, at *unittest.Authority) *unit.Unit {
	w.T.Helper()
	c.Genesis, c.Authorities = w.Genesis(), []string{at.URL}
	u, err := unit.Start(w.T.Context(), c)
	testworld.NoError(w.T, err)
	w.T.Cleanup(u.Close)
	return u
}

// user is an HTTP client that demands the unit's identity.
func user(w *unittest.World, u *unit.Unit, protocol string) *http.Client {
	root, id, p := w.AuthorityRoot(), u.Identity().ID, w.Policy()
	config := identity.ClientTLS("", func() *x509.Certificate { return root }, func() identity.Expect {
		return identity.Expect{
			Policy: p, Kinds: []identity.Kind{identity.KindShared, identity.KindUnit},
			Use: identity.UseTLS, IDs: []attest.Digest{id}, At: time.Now(),
		}
	})
	transport := &http.Transport{TLSClientConfig: config, Protocols: new(http.Protocols)}
	transport.Protocols.SetHTTP1(protocol == "HTTP/1.1")
	transport.Protocols.SetHTTP2(protocol == "HTTP/2.0")
	w.T.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 10 * time.Second}
}

// holders serves as a holder that tells the role of its caller, and returns the
// address.
func holders(t *testing.T, u *unit.Unit) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	testworld.NoError(t, err)
	done := make(chan error, 1)
	go func() {
		done <- u.Serve(t.Context(), l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			p, _ := unit.PeerOf(r.Context())
			fmt.Fprintf(w, "%s calls %s", p.RoleName(), r.URL.Path)
		}))
	}()
	t.Cleanup(func() { testworld.NoError(t, <-done) })
	return l.Addr().String()
}
