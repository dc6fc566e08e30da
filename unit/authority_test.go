package unit

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authority"
	"github.com/cohort-tee/cohort/internal/authority/sealed"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/authority/trustedclock"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policydraft"
	"github.com/cohort-tee/cohort/unit/unittest"
)

// real is an authority as the product runs it, with its store in a directory.
type real struct {
	world   *unittest.World
	device  *attesttest.Device
	dir     string
	address string
	stop    func()
}

// newReal creates a root and a genesis policy that names it, and serves.
func newReal(t *testing.T, life string) *real {
	t.Helper()
	w := unittest.New(t, life)
	r := &real{world: w, device: w.Vendor.Chip().Attester(attesttest.Measure("authority")), dir: t.TempDir(), address: "127.0.0.1:0"}
	s, err := store.Create(t.Context(), r.dsn())
	testworld.NoError(t, err)
	draft, err := policydraft.Parse(w.Steps[0].Policy) // a draft has no root, so it is the same one
	testworld.NoError(t, err)
	made, err := sealed.CreateRoot(t.Context(), sealed.InitConfig{Store: s, Attester: r.device, Sealer: r.device, Draft: draft})
	testworld.NoError(t, err)
	testworld.NoError(t, s.Close())
	w.FoundAs(made.Root, life)
	r.serve()
	t.Cleanup(func() { r.stop() })
	return r
}

func (r *real) dsn() string { return "sqlite:" + filepath.Join(r.dir, "store") }

// serve runs the authority, always at the same address, until stop.
func (r *real) serve() {
	t := r.world.T
	t.Helper()
	s, err := store.Open(t.Context(), r.dsn())
	testworld.NoError(t, err)
	a, err := authority.Open(t.Context(), authority.Config{
		Store: s, Attester: r.device, Sealer: r.device, Verifier: attesttest.Verifier(),
		Clock: trustedclock.System(), Log: slog.New(slog.DiscardHandler),
		Genesis: &r.world.Steps[0],
	})
	testworld.NoError(t, err)
	l, err := net.Listen("tcp", r.address)
	testworld.NoError(t, err)
	r.address = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Serve(ctx, l) }()
	r.stop = func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("authority: %v", err)
		}
		s.Close()
		r.stop = func() {}
	}
}

func (r *real) start(task string) *Unit {
	r.world.T.Helper()
	c := configOf(r.world, task)
	c.Authorities = []string{"https://" + r.address}
	u, err := Start(r.world.T.Context(), c)
	testworld.NoError(r.world.T, err)
	r.world.T.Cleanup(u.Close)
	return u
}

// TestOneIdentity: replicas of a task have the same leaf, or in key mode unit one leaf each
// under one root. A unit calls another task.
func TestOneIdentity(t *testing.T) {
	r := newReal(t, "1h")
	leaf := func(u *Unit) string { return string(u.enrolled.Load().leaf.Certificate[0]) }
	one, two := r.start("scoring"), r.start("scoring")
	if leaf(one) != leaf(two) {
		t.Error("two units in key mode shared hold two leaves")
	}
	if one.ID() == two.ID() {
		t.Error("two units have one id")
	}
	three, four := r.start("keys"), r.start("keys")
	if leaf(three) == leaf(four) || string(three.Identity().Root) != string(four.Identity().Root) {
		t.Error("two units in key mode unit do not hold two leaves under one root")
	}
	config, err := one.ClientTLS("keys")
	testworld.NoError(t, err)
	caller := &http.Client{Transport: &http.Transport{TLSClientConfig: config}}
	defer caller.CloseIdleConnections()
	answer, err := caller.Get("https://" + serve(t, four, hello))
	testworld.NoError(t, err)
	defer answer.Body.Close()
	if body, err := io.ReadAll(answer.Body); err != nil || string(body) != "hello" {
		t.Errorf("got %q, %v, want hello", body, err)
	}
}

// TestAuthorityReturns: the authority is away for longer than a certificate's lifetime. The
// unit is ready within 10 s after it returns.
func TestAuthorityReturns(t *testing.T) {
	t.Parallel()
	r := newReal(t, "3s")
	u := r.start("scoring")
	r.stop()
	testworld.Within(t, 6*time.Second, "the certificate is over", func() bool { return wire.ReasonOf(u.Ready()) == wire.CertExpired })
	r.serve()
	testworld.Within(t, 10*time.Second, "the unit is ready again", func() bool { return u.Ready() == nil })
}

// TestRollback: the authority's store was restored to an older policy. The unit does not
// follow it, and the authority gets the newer policy from the unit.
func TestRollback(t *testing.T) {
	r := newReal(t, "1h")
	r.stop()
	old, err := os.ReadFile(filepath.Join(r.dir, "store"))
	testworld.NoError(t, err)
	r.serve()
	next := r.world.Edited(`LANG = "C"`, `LANG = "D"`).Steps[1]
	client, err := api.NewAuthority("https://"+r.address, &tls.Config{InsecureSkipVerify: true})
	testworld.NoError(t, err)
	defer client.Close()
	_, err = client.Propose(t.Context(), api.ProposeRequest{Policy: next.Policy, Signatures: next.Signatures})
	testworld.NoError(t, err)
	u := r.start("scoring")
	if got := u.Environment()["LANG"]; got != "D" {
		t.Fatalf("got LANG=%q, want that of the second policy", got)
	}

	r.stop()
	testworld.NoError(t, os.WriteFile(filepath.Join(r.dir, "store"), old, 0o600))
	r.serve()
	testworld.Refused(t, u.Attempt(testworld.ShortContext(t)), wire.Behind)
	testworld.NoError(t, u.Attempt(testworld.ShortContext(t)))
	if got := u.Environment()["LANG"]; got != "D" {
		t.Errorf("got LANG=%q, want that of the second policy", got)
	}
}
