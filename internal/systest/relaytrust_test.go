package systest

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// trustRelay passes trust and history on to an authority, and records the queries for trust.
type trustRelay struct {
	*httptest.Server
	mu      sync.Mutex
	queries []url.Values
}

func newTrustRelay(t *testing.T, authority string) *trustRelay {
	t.Helper()
	r := new(trustRelay)
	to := testworld.Must(url.Parse(authority))
	pass := &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(to)
			p.Out.URL.Path = map[string]string{wire.PathHistory: api.PathHistory, wire.PathTrust: api.PathTrust}[p.In.URL.Path]
		},
		Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true},
	}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		if request.URL.Path == wire.PathTrust {
			r.mu.Lock()
			r.queries = append(r.queries, request.URL.Query())
			r.mu.Unlock()
		}
		pass.ServeHTTP(w, request)
	}))
	t.Cleanup(r.Close)
	return r
}

// asked returns what each query so far had beside the pin, and forgets them.
func (r *trustRelay) asked() (all []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, q := range r.queries {
		var had []string
		for _, name := range []string{"nonce", "credential"} {
			if q.Has(name) {
				had = append(had, name)
			}
		}
		all = append(all, strings.Join(had, "+"))
	}
	r.queries = nil
	return all
}

// TestTrustThroughRelay: clients behind a relay trust an authority on each platform, with the time
// at which it fetched its vendor's documents. A TPM's key is bound by a credential for one client,
// so evidence that clients share is refused there and the client requests its own.
func TestTrustThroughRelay(t *testing.T) {
	for p, want := range map[attest.Platform][]string{
		attest.SNP: {""}, attest.TDX: {""}, attest.SGX: {""}, attest.Nitro: {""}, attest.TPM: {"", "nonce", "nonce+credential"},
	} {
		t.Run(string(p), func(t *testing.T) {
			start := newVendors
			if p == attest.TPM {
				start = newMachine
			}
			e := settle(t, start(t), p)
			dated := p == attest.SNP || p == attest.TDX || p == attest.SGX
			if dated {
				table := fmt.Sprintf("[platform.%s]\n", p)
				push(t, e.Cluster, e.NextPolicy(table, table+"checked_within = \"48h\"\n"))
			}
			relay := newTrustRelay(t, e.URL())
			pins := e.TrustConfig("scoring")
			pins.Authorities, pins.Gateways, pins.Verifier, pins.Clock = nil, []string{relay.URL}, verifier(), e.wall
			trust, err := client.FetchTrust(t.Context(), pins)
			if err != nil {
				t.Fatal(err)
			}
			if got := relay.asked(); !slices.Equal(got, want) {
				t.Errorf("got requests with %q, want %q", got, want)
			}
			if got := trust.Evidence().Fetched(); dated != (len(got) > 0) {
				t.Errorf("got %+v of vendors' documents", got)
			}
			pins.Fresh = true
			if _, err := client.FetchTrust(t.Context(), pins); err != nil {
				t.Error(err)
			}
			if got := relay.asked(); got[0] != "nonce" || p == attest.TPM && !slices.Equal(got, want[1:]) {
				t.Errorf("fresh: got requests with %q", got)
			}
			if !dated {
				return
			}
			e.vendors.mu.Lock()
			e.vendors.down = true
			e.vendors.mu.Unlock()
			e.pass(48*time.Hour + time.Minute)
			pins.Fresh = false
			_, err = client.FetchTrust(t.Context(), pins)
			testworld.Refused(t, err, wire.Expired)
		})
	}
}
