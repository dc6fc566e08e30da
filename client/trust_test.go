package client_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

func TestFetchTrust(t *testing.T) {
	w := newWorld(t, "1", "2")
	all := w.fetch(nil)
	tests := []struct {
		name string
		edit func(*client.TrustConfig)
		want []string
	}{
		{"task", nil, []string{"scoring/1", "scoring/2"}},
		{"identity", func(c *client.TrustConfig) { c.Task, c.ID = "", all.Identities()[1].ID }, []string{"scoring/2"}},
		{"measurements", func(c *client.TrustConfig) {
			c.Task, c.Measurements = "", []attest.Measurement{attesttest.Measure("scoring 1")}
		}, []string{"scoring/1"}},
		{"second authority", func(c *client.TrustConfig) {
			c.Authorities = []string{"https://127.0.0.1:1", w.url}
		}, []string{"scoring/1", "scoring/2"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			trust := w.fetch(tt.edit)
			if got := ids(trust); !slices.Equal(got, tt.want) {
				t.Errorf("got identities %v, want %v", got, tt.want)
			}
			if got := trust.Policy().Genesis(); got != w.Genesis() {
				t.Errorf("got genesis %v, want %v", got, w.Genesis())
			}
			if got := wire.Sum(trust.AuthorityRoot().RawSubjectPublicKeyInfo); got != w.keys.RootDigest() {
				t.Errorf("got authority root %v, want %v", got, w.keys.RootDigest())
			}
			if !trust.Evidence().Appraised() {
				t.Error("got evidence that is not appraised")
			}
			rest := trust.RootPEM()
			for _, i := range trust.Identities() {
				var block *pem.Block
				if block, rest = pem.Decode(rest); block == nil || !bytes.Equal(block.Bytes, i.Root.Raw) {
					t.Errorf("PEM does not hold the root of %s", i.Release)
				}
			}
			if len(rest) > 0 {
				t.Errorf("PEM holds %d bytes more", len(rest))
			}
		})
	}
}

// TestFetchTrustRefuses is the refusal table: the smallest change to an authority, or to
// the pins, that must give exactly this reason.
func TestFetchTrustRefuses(t *testing.T) {
	stranger := newWorld(t, "1")
	tests := []struct {
		name   string
		reason error
		world  func(*world)
		pin    func(*client.TrustConfig)
	}{
		{"no authority", wire.BadRequest, nil, func(c *client.TrustConfig) { c.Authorities = nil }},
		{"plain HTTP", wire.BadRequest, nil, func(c *client.TrustConfig) { c.Authorities = []string{"http://127.0.0.1"} }},
		{"no genesis", wire.BadRequest, nil, func(c *client.TrustConfig) { c.Genesis = attest.Digest{} }},
		{"no pin", wire.BadRequest, nil, func(c *client.TrustConfig) { c.Task = "" }},
		{"two pins", wire.BadRequest, nil, func(c *client.TrustConfig) { c.ID = attest.Digest{1} }},
		{"no verifier", wire.BadRequest, nil, func(c *client.TrustConfig) { c.Verifier = nil }},
		{"state of another genesis", wire.WrongGenesis, nil, func(c *client.TrustConfig) { c.State = stranger.fetch(nil).State() }},
		{"another genesis", wire.WrongGenesis, nil, func(c *client.TrustConfig) { c.Genesis = attest.Digest{1} }},
		{"another authority", wire.WrongGenesis, nil, func(c *client.TrustConfig) { c.Authorities = []string{stranger.url} }},
		{"unknown task", wire.NotFound, nil, func(c *client.TrustConfig) { c.Task = "unknown" }},
		{"unknown identity", wire.WrongIdentity, nil, func(c *client.TrustConfig) { c.Task, c.ID = "", attest.Digest{1} }},
		{"measurement too many", wire.NotMeasured, nil, func(c *client.TrustConfig) {
			c.Task, c.Measurements = "", []attest.Measurement{attesttest.Measure("scoring 1"), attesttest.Measure("x")}
		}},
		{"older than the minimum", wire.Behind, nil, func(c *client.TrustConfig) { c.MinSequence = 2 }},
		{"platform not built in", wire.NoPlatform, nil, func(c *client.TrustConfig) { c.Verifier = attest.NewVerifier() }},

		{"no history", wire.Behind, func(w *world) { w.hollow = true }, nil},
		{"the same policy under another root", wire.WrongRoot, func(w *world) { w.keys, w.issuer = stranger.keys, stranger.issuer }, nil},
		{"another root in the response", wire.WrongRoot, tampered(func(a *api.TrustResponse) { a.Authority = stranger.issuer.AuthorityRoot() }), nil},
		{"no root in the response", wire.Malformed, tampered(func(a *api.TrustResponse) { a.Authority = nil }), nil},
		{"head of another policy", wire.Behind, tampered(func(a *api.TrustResponse) { a.History.Head[0] ^= 1 }), nil},
		{"evidence of another request", wire.BadNonce, faults(attesttest.Faults{OtherReportData: true}), nil},
		{"evidence of an unknown vendor", wire.UnknownRoot, faults(attesttest.Faults{OtherRoot: true}), nil},
		{"evidence with a flipped bit", wire.BadSignature, faults(attesttest.Faults{BadSignature: true}), nil},
		{"evidence of a TEE its host reads", wire.Debug, faults(attesttest.Faults{Debug: true}), nil},
		{"evidence with unmeasured libraries", wire.NotMeasured, faults(attesttest.Faults{Dynamic: true}), nil},
		{"evidence of other code", wire.NotMeasured, func(w *world) {
			w.device = w.Device("another authority")
		}, nil},
		{"evidence that is not JSON", wire.Malformed, tampered(func(a *api.TrustResponse) { a.Evidence = []byte(`1`) }), nil},
		{"no evidence", wire.Malformed, tampered(func(a *api.TrustResponse) { a.Evidence = nil }), nil},
		{"identity missing", wire.WrongIdentity, tampered(func(a *api.TrustResponse) { a.Identities = nil }), nil},
		{"identity root missing", wire.Malformed, tampered(func(a *api.TrustResponse) { a.Identities[0].Root = nil }), nil},
		{"cross-certificate missing", wire.Malformed, tampered(func(a *api.TrustResponse) { a.Identities[0].Cross = nil }), nil},
		{"roots of another task", wire.WrongIdentity, func(w *world) {
			w.tamper = func(a *api.TrustResponse) {
				other := testworld.Must(w.issuer.Identity("other", "1"))
				a.Identities[0].Root, a.Identities[0].Cross = other.Root, other.Cross
			}
		}, nil},
		{"root of another key", wire.WrongIdentity, func(w *world) {
			w.tamper = func(a *api.TrustResponse) {
				a.Identities[0].Root = testworld.Must(w.issuer.Identity("other", "1")).Root
			}
		}, nil},
		{"root that signed nothing", wire.WrongKind, tampered(func(a *api.TrustResponse) { a.Identities[0].Root = a.Identities[0].Cross }), nil},
		{"cross-certificate that is the root", wire.WrongKind, tampered(func(a *api.TrustResponse) { a.Identities[0].Cross = a.Identities[0].Root }), nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, "1")
			config := w.config()
			if tt.world != nil {
				w.mu.Lock()
				tt.world(w)
				w.mu.Unlock()
			}
			if tt.pin != nil {
				tt.pin(&config)
			}
			trust, err := client.FetchTrust(t.Context(), config)
			if trust != nil {
				t.Error("got trust beside the error")
			}
			if got := wire.ReasonOf(err); got != tt.reason {
				t.Errorf("got %v, want reason %q", err, tt.reason)
			}
		})
	}
}

func tampered(f func(*api.TrustResponse)) func(*world) { return func(w *world) { w.tamper = f } }

func faults(f attesttest.Faults) func(*world) { return func(w *world) { w.device.Faults = f } }

// TestNeverOlder: a client that knows a newer policy does not go back. It pushes its
// history to the authority.
func TestNeverOlder(t *testing.T) {
	w := newWorld(t, "1")
	w.adopt("1", "2")
	seen := testworld.Must(client.ParseState(w.fetch(nil).State().Bytes()))
	resume := func(c *client.TrustConfig) { c.State = seen }

	w.limit = 1
	if got := ids(w.fetch(nil)); len(got) != 1 {
		t.Fatalf("got %v, want the old policy for who knows no better", got)
	}
	if got := ids(w.fetch(resume)); len(got) != 2 {
		t.Errorf("got %v, want the policy that was seen", got)
	}
	if w.pushed != 1 {
		t.Errorf("history was pushed %d times, want once", w.pushed)
	}

	// An authority that keeps its old policy is refused.
	w.limit = 1
	config := w.config()
	resume(&config)
	w.stubborn = true
	_, err := client.FetchTrust(t.Context(), config)
	testworld.Refused(t, err, wire.Behind)

	// So is an authority with a different second policy.
	w.stubborn, w.limit = false, 1<<20
	w.Steps = w.Steps[:1]
	w.tasks = w.tasksOf([]string{"1"})
	w.adopt("1", "3")
	_, err = client.FetchTrust(t.Context(), config)
	testworld.Refused(t, err, wire.Behind)
}

func TestFollowsNewerPolicy(t *testing.T) {
	w := newWorld(t, "1")
	seen := w.fetch(nil).State()
	w.adopt("2")
	trust := w.fetch(func(c *client.TrustConfig) { c.State = seen })
	if got := ids(trust); !slices.Equal(got, []string{"scoring/2"}) {
		t.Errorf("got %v, want release 2 only", got)
	}
	if got := trust.Policy().Document().Sequence; got != 2 {
		t.Errorf("got sequence %d, want 2", got)
	}
}

func TestUnreachableAuthority(t *testing.T) {
	w := newWorld(t, "1")
	config := w.config()
	config.Authorities = []string{"https://127.0.0.1:1"}
	_, err := client.FetchTrust(t.Context(), config)
	var refusal *attest.Refusal
	if err == nil || errors.As(err, &refusal) {
		t.Errorf("got %v, want the network's error", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := client.FetchTrust(ctx, w.config()); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
}

// TestRootsServeOthers: a TLS client needs nothing but the PEM.
func TestRootsServeOthers(t *testing.T) {
	w := newWorld(t, "1")
	trust := w.fetch(nil)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(trust.RootPEM())
	chain := w.shared("scoring", "scoring 1", time.Now()).Certificate
	leaf := testworld.Must(x509.ParseCertificate(chain[0]))
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: serverName}); err != nil {
		t.Error(err)
	}
}
