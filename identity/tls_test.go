package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// serve returns the server configuration of a leaf and the certificates above it.
func serve(leaf Leaf, key any, above ...[]byte) *tls.Config {
	c := &tls.Certificate{Certificate: append([][]byte{leaf.DER}, above...), PrivateKey: key}
	return ServerTLS(func() (*tls.Certificate, error) { return c, nil })
}

func (w *world) serveShared(t testing.TB) *tls.Config {
	t.Helper()
	leaf := testworld.Must(w.issuer.SharedLeaf(w.grant(t, "scoring", "2026.11"), noon))
	return serve(leaf, leaf.Key, testworld.Must(w.issuer.Identity("scoring", "2026.11")).Cross)
}

// talk runs a handshake over a pipe, after which the client sends five bytes. It returns the
// client's state and error, and how many bytes the server read.
func talk(t testing.TB, server, client *tls.Config) (state tls.ConnectionState, received int, err error) {
	t.Helper()
	a, b := net.Pipe()
	deadline := time.Now().Add(10 * time.Second)
	a.SetDeadline(deadline)
	b.SetDeadline(deadline)
	done := make(chan int)
	go func() {
		defer b.Close()
		n, _ := io.Copy(io.Discard, tls.Server(b, server))
		done <- int(n)
	}()
	conn := tls.Client(a, client)
	if _, err = conn.Write([]byte("hello")); err == nil {
		state = conn.ConnectionState()
	}
	conn.Close()
	a.Close()
	return state, <-done, err
}

func (w *world) dial(t testing.TB, name string, e Expect) *tls.Config {
	root := w.root(t)
	return ClientTLS(name, func() *x509.Certificate { return root }, func() Expect { return e })
}

func TestTLSAccepts(t *testing.T) {
	w := newWorld(t, 'a')
	authority := testworld.Must(w.issuer.AuthorityLeaf(noon))
	asAuthority := Expect{Policy: w.policy, Kinds: []Kind{KindAuthority}, Use: UseTLS, At: noon}
	unit := testworld.Must(w.issuer.UnitTLSLeaf(w.grant(t, "keys", "1.4"), &unitKey("tls").PublicKey, wire.UnitID{1}, noon))
	serveUnit := serve(unit, unitKey("tls"), testworld.Must(w.issuer.Identity("keys", "1.4")).Cross)
	asUnit := Expect{Policy: w.policy, Kinds: []Kind{KindUnit, KindShared}, Use: UseTLS, IDs: testworld.Must(LiveIDs(w.policy, "keys")), At: noon}
	tests := []struct {
		name           string
		server, client *tls.Config
	}{
		{"shared", w.serveShared(t), w.dial(t, "scoring.clinic.example", w.expectShared(t))},
		{"shared, second name", w.serveShared(t), w.dial(t, "score.clinic.example", w.expectShared(t))},
		{"shared, by URI", w.serveShared(t), w.dial(t, "", w.expectShared(t))},
		{"unit", serveUnit, w.dial(t, "keys.clinic.example", asUnit)},
		{"authority", serve(authority, authority.Key), w.dial(t, "authority.clinic.example", asAuthority)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			state, received, err := talk(t, tt.server, tt.client)
			if err != nil {
				t.Fatal(err)
			}
			if received != 5 || state.Version != tls.VersionTLS13 {
				t.Errorf("got %d bytes over version %x, want 5 over TLS 1.3", received, state.Version)
			}
		})
	}
}

// TestTLSRefuses: the client refuses the server before it sends a byte.
func TestTLSRefuses(t *testing.T) {
	w, other := newWorld(t, 'a'), newWorld(t, 'b')
	good := w.expectShared(t)
	edit := func(f func(*Expect)) Expect {
		e := good
		f(&e)
		return e
	}
	otherRoot := other.root(t)
	authority := testworld.Must(w.issuer.AuthorityLeaf(noon))
	const name = "scoring.clinic.example"
	tests := []struct {
		name           string
		server, client *tls.Config
		want           wire.Reason
	}{
		{"zero expectation", w.serveShared(t), w.dial(t, name, Expect{}), wire.BadPolicy},
		{"zero expectation, no name", w.serveShared(t), w.dial(t, "", Expect{}), wire.BadPolicy},
		{"another identity", w.serveShared(t), w.dial(t, name, edit(func(e *Expect) { e.IDs = []attest.Digest{{1}} })), wire.WrongIdentity},
		{"another kind", w.serveShared(t), w.dial(t, name, edit(func(e *Expect) { e.Kinds = []Kind{KindUnit} })), wire.WrongKind},
		{"authority for a unit", serve(authority, authority.Key), w.dial(t, "authority.clinic.example", good), wire.WrongKind},
		{"expired", w.serveShared(t), w.dial(t, name, edit(func(e *Expect) { e.At = noon.Add(2 * time.Hour) })), wire.Expired},
		{"another name", w.serveShared(t), w.dial(t, "keys.clinic.example", good), wire.WrongName},
		{"no root", w.serveShared(t), ClientTLS(name, func() *x509.Certificate { return nil }, func() Expect { return good }), wire.WrongRoot},
		{"another root", w.serveShared(t), ClientTLS(name, func() *x509.Certificate { return otherRoot }, func() Expect { return good }), wire.WrongRoot},
		{"another authority's unit of the same code", other.serveShared(t), w.dial(t, name, good), wire.WrongGenesis},
		{"and the other way round", w.serveShared(t), other.dial(t, name, other.expectShared(t)), wire.WrongGenesis},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, received, err := talk(t, tt.server, tt.client)
			testworld.Refused(t, err, tt.want)
			if received != 0 {
				t.Errorf("got %d bytes at the server, want 0", received)
			}
		})
	}
}

func TestTLSVersions(t *testing.T) {
	w := newWorld(t, 'a')
	old := func(c *tls.Config) *tls.Config {
		c = c.Clone()
		c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
		return c
	}
	name := "scoring.clinic.example"
	if _, received, err := talk(t, w.serveShared(t), old(w.dial(t, name, w.expectShared(t)))); err == nil || received != 0 {
		t.Errorf("client of TLS 1.2: got %d bytes and %v, want a refusal", received, err)
	}
	if _, received, err := talk(t, old(w.serveShared(t)), w.dial(t, name, w.expectShared(t))); err == nil || received != 0 {
		t.Errorf("server of TLS 1.2: got %d bytes and %v, want a refusal", received, err)
	}
}

// TestTLSNeverResumes: the server sends no ticket to a client that would resume, and the client
// checks the server at every handshake.
func TestTLSNeverResumes(t *testing.T) {
	w := newWorld(t, 'a')
	server, client := w.serveShared(t), w.dial(t, "scoring.clinic.example", w.expectShared(t))
	if !server.SessionTicketsDisabled || client.ClientSessionCache != nil {
		t.Fatal("got session tickets, want none at either side")
	}
	client.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	for range 2 {
		state, _, err := talk(t, server, client)
		if err != nil {
			t.Fatal(err)
		}
		if state.DidResume {
			t.Error("got a resumed session, want a whole handshake")
		}
	}
}

func TestTLSCertificateError(t *testing.T) {
	w := newWorld(t, 'a')
	server := ServerTLS(func() (*tls.Certificate, error) { return nil, errors.New("no certificate yet") })
	if _, received, err := talk(t, server, w.dial(t, "scoring.clinic.example", w.expectShared(t))); err == nil || received != 0 {
		t.Errorf("got %d bytes and %v, want a refusal", received, err)
	}
}

// TestPlainTLSClient: a standard TLS client with only the identity root accepts the chain, and
// refuses chains of another authority or release.
func TestPlainTLSClient(t *testing.T) {
	w, other := newWorld(t, 'a'), newWorld(t, 'b')
	plain := func(root []byte) *tls.Config {
		pool := x509.NewCertPool()
		pool.AddCert(parse(t, root)[0])
		return &tls.Config{RootCAs: pool, ServerName: "scoring.clinic.example", Time: func() time.Time { return noon }}
	}
	if _, _, err := talk(t, w.serveShared(t), plain(testworld.Must(w.issuer.Identity("scoring", "2026.11")).Root)); err != nil {
		t.Errorf("identity root: %v", err)
	}
	if _, _, err := talk(t, w.serveShared(t), plain(w.issuer.AuthorityRoot())); err != nil {
		t.Errorf("authority root: %v", err)
	}
	for name, root := range map[string][]byte{
		"another release":     testworld.Must(w.issuer.Identity("scoring", "2026.10")).Root,
		"another task":        testworld.Must(w.issuer.Identity("keys", "1.4")).Root,
		"another authority":   other.issuer.AuthorityRoot(),
		"its identity's root": testworld.Must(other.issuer.Identity("scoring", "2026.11")).Root,
	} {
		if _, received, err := talk(t, w.serveShared(t), plain(root)); err == nil || received != 0 {
			t.Errorf("%s: got %d bytes and %v, want a refusal", name, received, err)
		}
	}
}
