package client_test

import (
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// impostor serves TLS with some certificate, and counts the bytes that clients send inside
// it.
type impostor struct {
	address string
	met     atomic.Int64 // handshakes started
	bytes   atomic.Int64
	conns   sync.WaitGroup
}

func newImpostor(t testing.TB, certificate *tls.Certificate) *impostor {
	t.Helper()
	l := testworld.Must(net.Listen("tcp", "127.0.0.1:0"))
	i := &impostor{address: l.Addr().String()}
	config := identity.ServerTLS(func() (*tls.Certificate, error) { return certificate, nil })
	config.NextProtos = nil
	i.conns.Go(func() {
		for raw, err := l.Accept(); err == nil; raw, err = l.Accept() {
			i.met.Add(1)
			i.conns.Go(func() { i.listen(tls.Server(raw, config)) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		i.conns.Wait()
	})
	return i
}

// listen reads until the client closes the connection.
func (i *impostor) listen(c *tls.Conn) {
	defer c.Close()
	b := make([]byte, 1024)
	for {
		n, err := c.Read(b) // does the handshake first
		i.bytes.Add(int64(n))
		if err != nil {
			return
		}
	}
}

// TestRefusesPeers is THREATS case 10: the client closes the connection to a peer that its
// trust does not contain before it sends any application data.
func TestRefusesPeers(t *testing.T) {
	w, stranger := newWorld(t, "1", "2"), newWorld(t, "1")
	old := newWorldOf(t, 3*time.Second, "1")
	now := time.Now()
	good := w.shared("scoring", "scoring 1", now)
	reroot := func(chain *tls.Certificate, cross []byte) *tls.Certificate {
		return &tls.Certificate{Certificate: [][]byte{chain.Certificate[0], cross}, PrivateKey: chain.PrivateKey}
	}
	tests := []struct {
		name        string
		world       *world
		pin         func(*client.TrustConfig)
		certificate *tls.Certificate
		reason      error
	}{
		{"another cluster's code", w, nil, w.shared("other", "other", now), wire.WrongIdentity},
		{"a release outside the pin", w, func(c *client.TrustConfig) {
			c.Task, c.ID = "", w.fetch(nil).Identities()[1].ID
		}, good, wire.WrongIdentity},
		{"the same code under another authority", w, nil, stranger.shared("scoring", "scoring 1", now), wire.WrongGenesis},
		{"another authority's leaf under our cross-certificate", w, nil, reroot(stranger.shared("scoring", "scoring 1", now), good.Certificate[1]), wire.BadChain},
		{"a leaf under another identity's cross-certificate", w, nil, reroot(good, w.shared("other", "other", now).Certificate[1]), wire.BadChain},
		{"the authority itself", w, nil, testworld.Must(w.certificate()), wire.WrongKind},
		{"a certificate that is over", old, nil, old.shared("scoring", "scoring 1", now.Add(-10*time.Second)), wire.Expired},
		{"a certificate of the future", old, nil, old.shared("scoring", "scoring 1", now.Add(70*time.Second)), wire.Expired},
		{"no cross-certificate", w, nil, &tls.Certificate{Certificate: good.Certificate[:1], PrivateKey: good.PrivateKey}, wire.BadChain},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			peer := newImpostor(t, tt.certificate)
			trust := tt.world.fetch(tt.pin)
			c := testworld.Must(client.New(client.Config{Trust: trust, Addresses: []string{peer.address}}))
			for kind, request := range kinds {
				_, err := do(c, soon(t, request()))
				if got := wire.ReasonOf(err); got != tt.reason {
					t.Errorf("%s: got %v, want reason %q", kind, err, tt.reason)
				}
				if errors.Is(err, client.ErrMaybeExecuted) || errors.Is(err, client.ErrUnreachable) {
					t.Errorf("%s: got %v, want the refusal alone", kind, err)
				}
			}
			c.Close()
			_, err := client.Verify(t.Context(), peer.address, client.Config{Trust: trust})
			if got := wire.ReasonOf(err); got != tt.reason {
				t.Errorf("verify: got %v, want reason %q", err, tt.reason)
			}
			if peer.met.Load() < int64(len(kinds)) {
				t.Errorf("%d handshakes, so nothing was tested", peer.met.Load())
			}
			if n := peer.bytes.Load(); n != 0 {
				t.Errorf("%d bytes of application data were sent, want 0", n)
			}
		})
	}
}

// TestImpostorCounts: a genuine peer receives the request, so the count above can differ
// from zero.
func TestImpostorCounts(t *testing.T) {
	w := newWorld(t, "1")
	peer := newImpostor(t, w.shared("scoring", "scoring 1", time.Now()))
	c := testworld.Must(client.New(client.Config{Trust: w.fetch(nil), Addresses: []string{peer.address}}))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = do(c, kinds["plain"]())
	}()
	testworld.Eventually(t, "a genuine peer is sent the request", func() bool { return peer.bytes.Load() > 0 })
	c.Close()
	<-done
}

// TestManInTheMiddle is THREATS case 25 for every call of this package: an attacker in the
// middle with certificates of their own receives no request.
func TestManInTheMiddle(t *testing.T) {
	w, own := newWorld(t, "1"), newWorld(t, "1")
	trust := w.fetch(nil)
	units := newImpostor(t, own.shared("scoring", "scoring 1", time.Now()))
	own.mu.Lock() // it relays the genuine history
	own.Steps = w.Steps
	own.mu.Unlock()
	calls := map[string]func() error{
		"FetchTrust": func() error {
			config := w.config()
			config.Authorities = []string{own.url}
			_, err := client.FetchTrust(t.Context(), config)
			return err
		},
		"FetchTrust with state": func() error {
			config := w.config()
			config.Authorities, config.State = []string{own.url}, trust.State()
			_, err := client.FetchTrust(t.Context(), config)
			return err
		},
		"Verify": func() error {
			_, err := client.Verify(t.Context(), units.address, client.Config{Trust: trust})
			return err
		},
	}
	for kind, request := range kinds {
		calls["RoundTrip "+kind] = func() error {
			_, err := do(w.clientOf(client.Config{Trust: trust, Addresses: []string{units.address}}), soon(t, request()))
			return err
		}
	}
	for name, call := range calls {
		t.Run(name, func(t *testing.T) {
			if err := call(); wire.ReasonOf(err) == wire.Internal {
				t.Errorf("got %v, want a refusal", err)
			}
		})
	}
	if own.asked != 0 || own.pushed != 0 || units.bytes.Load() != 0 {
		t.Errorf("the man in the middle saw %d questions, %d histories, %d bytes of requests, want none", own.asked, own.pushed, units.bytes.Load())
	}
}

// TestRefusesRequests: a request for another server is not sent to this cluster.
func TestRefusesRequests(t *testing.T) {
	w := newWorld(t, "1")
	r := w.replicas(1, "1")
	c := w.client(r...)
	for _, tt := range []struct {
		url    string
		reason error
	}{
		{"http://" + serverName + "/", wire.BadRequest},
		{"https://other.clinic.example/", wire.WrongName},
		{"https://127.0.0.1/", wire.WrongName},
	} {
		_, err := c.RoundTrip(&http.Request{Method: "GET", URL: testworld.Must(url.Parse(tt.url)), Header: http.Header{}})
		if got := wire.ReasonOf(err); got != tt.reason {
			t.Errorf("%s: got %v, want reason %q", tt.url, err, tt.reason)
		}
	}
	if n := executed(r); n != 0 {
		t.Errorf("%d requests arrived, want none", n)
	}
}

// TestTargets: a channel sends requests for the hosts of the pinned task alone.
func TestTargets(t *testing.T) {
	trust := newWorld(t, "1").fetch(nil)
	for _, tt := range []struct {
		url, host string
		reason    wire.Reason
	}{
		{"https://" + serverName + "/", "", ""},
		{"https://" + strings.ToUpper(serverName) + ":8443/", "", ""},
		{"https://scoring/", "", ""},
		{"https://scoring/", serverName + ":1", ""},
		{"https://other.clinic.example/", "", wire.WrongName},
		{"https://" + serverName + "/", "other.clinic.example", wire.WrongName},
		{"https://127.0.0.1/", "", wire.WrongName},
		{"https:///", "", wire.WrongName},
		{"http://" + serverName + "/", "", wire.BadRequest},
	} {
		err := trust.CheckTarget(&http.Request{Method: "GET", URL: testworld.Must(url.Parse(tt.url)), Host: tt.host})
		if got := wire.ReasonOf(err); err == nil && tt.reason != "" || err != nil && got != tt.reason {
			t.Errorf("%s for %q: got %v, want reason %q", tt.url, tt.host, err, tt.reason)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	trust := newWorld(t, "1").fetch(nil)
	for _, tt := range []struct {
		name   string
		config client.Config
		reason error
	}{
		{"no trust", client.Config{}, wire.BadRequest},
		{"a name that policy does not give", client.Config{Trust: trust, ServerName: "x.example"}, wire.WrongName},
		{"an address without port", client.Config{Trust: trust, Addresses: []string{"127.0.0.1"}}, wire.BadRequest},
	} {
		if _, err := client.New(tt.config); wire.ReasonOf(err) != tt.reason {
			t.Errorf("%s: got %v, want reason %q", tt.name, err, tt.reason)
		}
	}
}

// TestFollowsPolicy is the client's part of THREATS case 18: the client refuses a release
// that owners removed, on open connections too.
func TestFollowsPolicy(t *testing.T) {
	w := newWorld(t, "1", "2")
	one, two := w.replicas(1, "1")[0], w.replicas(1, "2")[0]
	leaf := w.shared("scoring", "scoring 1", time.Now())
	one.certificate = func() *tls.Certificate { return leaf }
	c := w.clientOf(client.Config{Refresh: 50 * time.Millisecond}, one, two)
	testworld.Eventually(t, "both releases serve", func() bool {
		get(t, c, "ok")
		return one.executed.Load() > 0 && two.executed.Load() > 0
	})
	w.adopt("2")
	head := func() bool { return c.Stats().PolicyHead == w.visibleHead() }
	testworld.Eventually(t, "the client follows policy", head)
	before := one.executed.Load()
	for range 20 {
		get(t, c, "ok")
	}
	if n := one.executed.Load() - before; n != 0 {
		t.Errorf("%d requests went to the removed release, want none", n)
	}
}

// TestRefusedHandshakeRefreshes: a replica runs code that is newer than the client's
// policy, so the client fetches the policy at once.
func TestRefusedHandshakeRefreshes(t *testing.T) {
	w := newWorld(t, "1")
	trust := w.fetch(nil)
	w.adopt("1", "2")
	c := w.clientOf(client.Config{Trust: trust, Refresh: time.Hour}, w.replicas(1, "2")...)
	_, err := do(c, kinds["safe"]())
	testworld.Refused(t, err, wire.CutOff) // trust was fetched less than a second ago
	time.Sleep(time.Until(trust.FetchedAt().Add(time.Second)))
	get(t, c, "ok")
	testworld.Eventually(t, "the root of the new release is fetched", func() bool { return len(c.Trust().Identities()) == 2 })
	w.mu.Lock()
	defer w.mu.Unlock()
	if got := w.asked; got != 2 {
		t.Errorf("authority was asked %d times, want 2", got)
	}
}

// TestAuthorityDown: without the authority a client continues under its current policy.
func TestAuthorityDown(t *testing.T) {
	w := newWorld(t, "1")
	trust := w.fetch(func(c *client.TrustConfig) { c.Authorities = []string{w.url} })
	w.stop()
	c := w.clientOf(client.Config{Trust: trust, Refresh: 20 * time.Millisecond}, w.replicas(2, "1")...)
	testworld.Eventually(t, "a refresh failed", func() bool {
		get(t, c, "ok")
		return c.Stats().RefreshFailed > 0
	})
	get(t, c, "ok")
}

func TestVerify(t *testing.T) {
	w := newWorld(t, "1", "2")
	one, two := w.replicas(1, "1")[0], w.replicas(1, "2")[0]
	resolver := fixed{"cluster.test": {one.host(), two.host()}}
	dial := byHost{one.host(): one.address, two.host(): two.address}
	config := client.Config{Trust: w.fetch(nil), Resolver: resolver, Dial: dial.dial}
	report, err := client.Verify(t.Context(), "cluster.test:443", config)
	if err != nil {
		t.Fatal(err)
	}
	if got := report.Cluster; got.OneIdentity || len(got.Addresses) != 2 {
		t.Errorf("got cluster %+v, want two addresses of two releases", got)
	}
	if got := report.Policy; got.Sequence != 1 || got.Genesis != w.Genesis() || got.Quorum != 1 {
		t.Errorf("got policy %+v", got)
	}
	if !report.Hardware.Development || report.Key.Kind != identity.KindShared {
		t.Errorf("got hardware %+v and key %+v", report.Hardware, report.Key)
	}
	two.kill()
	report = testworld.Must(client.Verify(t.Context(), "cluster.test:443", config))
	if got := report.Cluster; !got.OneIdentity || got.Addresses[0].Error == "" && got.Addresses[1].Error == "" {
		t.Errorf("got cluster %+v, want one address that does not response", got)
	}
	one.kill()
	if _, err := client.Verify(t.Context(), "cluster.test:443", config); !errors.Is(err, client.ErrUnreachable) {
		t.Errorf("got %v, want %v", err, client.ErrUnreachable)
	}
	if n := one.executed.Load() + two.executed.Load(); n != 0 {
		t.Errorf("%d requests were sent, want none", n)
	}
}

// TestDynamic: a release that may load unmeasured code is reported as such wherever it
// appears, and no other release is.
func TestDynamic(t *testing.T) {
	for release, want := range map[string][]string{"1": {}, "2-dynamic": {"scoring release 2-dynamic"}} {
		w := newWorld(t, release)
		trust := w.fetch(nil)
		for _, i := range trust.Identities() {
			if got := trust.Dynamic(i); !slices.Equal(got, want) {
				t.Errorf("release %s: got %q, want %q", release, got, want)
			}
		}
		one := w.replicas(1, release)[0]
		report, err := client.Verify(t.Context(), one.address, client.Config{Trust: trust})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(report.Code.Dynamic, want) {
			t.Errorf("release %s: got %q", release, report.Code.Dynamic)
		}
	}
}

// TestResolves: a name resolves to several addresses, and the client uses all of them.
func TestResolves(t *testing.T) {
	w := newWorld(t, "1")
	replicas := w.replicas(2, "1")
	resolver := fixed{"cluster.test": {replicas[0].host(), replicas[1].host()}}
	dial := byHost{}
	for _, r := range replicas {
		dial[r.host()] = r.address
	}
	c := w.clientOf(client.Config{Addresses: []string{"cluster.test:443"}, Resolver: resolver, Dial: dial.dial})
	testworld.Eventually(t, "both addresses serve", func() bool {
		get(t, c, "ok")
		return replicas[0].executed.Load() > 0 && replicas[1].executed.Load() > 0
	})
	unknown := w.clientOf(client.Config{Addresses: []string{"unknown.test:443"}, Resolver: resolver})
	_, err := do(unknown, kinds["safe"]())
	testworld.Refused(t, err, wire.Unavailable)
}
