package natsd_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/bus/bustest"
	"github.com/cohort-tee/cohort/internal/bus/natsd"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/nats-io/nats.go"
)

// start serves a bus for the units of an authority. The manager's own
// certificate is not what these tests are about.
func start(t *testing.T, a *bustest.Authority) *natsd.Server {
	t.Helper()
	own := a.Unit(bustest.Keys).Serving
	s, err := natsd.Start(natsd.Config{
		Address: "127.0.0.1:0", Certificate: func() (*tls.Certificate, error) { return &own, nil },
		Roots: a.Roots(), Clock: time.Now, Log: slog.New(slog.DiscardHandler), Connections: 20,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	return s
}

// config is the TLS of whoever holds a certificate.
func config(certificate tls.Certificate) *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{certificate}}
}

// raw connects without the manners of package bus, and collects what the server
// says against it.
func raw(t *testing.T, s *natsd.Server, certificate tls.Certificate) (*nats.Conn, chan error) {
	t.Helper()
	faults := make(chan error, 16)
	nc, err := nats.Connect("tls://"+s.Address(), nats.Secure(config(certificate)), nats.TLSHandshakeFirst(), nats.NoReconnect(),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { faults <- err }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc, faults
}

func TestOnlyUnitsComeIn(t *testing.T) {
	a, other := bustest.New(t), bustest.New(t)
	s := start(t, a)
	unit := a.Unit(bustest.Scoring)
	alone := unit.Signing
	alone.Certificate = alone.Certificate[:1]
	crossed := unit.Signing
	crossed.Certificate = [][]byte{crossed.Certificate[0], a.Unit(bustest.Keys).Signing.Certificate[1]}
	for _, c := range []struct {
		name        string
		certificate tls.Certificate
		in          bool
	}{
		{"a unit", unit.Signing, true},
		{"a unit of another authority", other.Unit(bustest.Scoring).Signing, false},
		{"the shared leaf", unit.Serving, false},
		{"the authority's own leaf", a.Leaf(), false},
		{"no cross-certificate", alone, false},
		{"another identity's cross-certificate", crossed, false},
		{"no certificate", tls.Certificate{}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			nc, err := nats.Connect("tls://"+s.Address(), nats.Secure(config(c.certificate)), nats.TLSHandshakeFirst(), nats.NoReconnect())
			if err == nil {
				nc.Close()
			}
			if (err == nil) != c.in {
				t.Errorf("got %v, want to come in: %v", err, c.in)
			}
		})
	}
}

func TestNobodyComesInWithoutTLS(t *testing.T) {
	s := start(t, bustest.New(t))
	if nc, err := nats.Connect("nats://"+s.Address(), nats.UserInfo("manager", s.Password()), nats.NoReconnect(), nats.Timeout(time.Second)); err == nil {
		nc.Close()
		t.Error("in plain text, with the manager's password: got a connection")
	}
	old := config(tls.Certificate{})
	old.MaxVersion = tls.VersionTLS12
	c, err := tls.Dial("tcp", s.Address(), old)
	if err == nil {
		c.Close()
		t.Error("over TLS 1.2: got a connection")
	}
}

func TestPasswordIsForTheProcessAlone(t *testing.T) {
	a := bustest.New(t)
	s := start(t, a)
	nc, err := nats.Connect("tls://"+s.Address(), nats.Secure(config(a.Unit(bustest.Scoring).Signing)), nats.TLSHandshakeFirst(),
		nats.UserInfo("manager", s.Password()), nats.NoReconnect())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if _, err := nc.SubscribeSync("cohort.>"); err != nil {
		t.Fatal(err)
	}
	if nc.Flush(); nc.LastError() == nil || !errors.Is(nc.LastError(), nats.ErrPermissionViolation) {
		t.Errorf("a unit with the manager's password: got %v, want %v", nc.LastError(), nats.ErrPermissionViolation)
	}
	for _, password := range []string{"", "wrong"} {
		if nc, err := nats.Connect("nats://x", nats.InProcessServer(s), nats.UserInfo("manager", password), nats.NoReconnect()); err == nil {
			nc.Close()
			t.Errorf("in process with password %q: got a connection", password)
		}
	}
}

// TestSubjects is the table of what a unit may not do, and of what it may.
func TestSubjects(t *testing.T) {
	a := bustest.New(t)
	s := start(t, a)
	unit, sibling, stranger := a.Unit(bustest.Scoring), a.Unit(bustest.Scoring), a.Unit(bustest.Keys)
	own, their := unit.Cluster.String(), stranger.Cluster.String()
	if unit.Cluster != sibling.Cluster || own == their {
		t.Fatal("clusters are not those of identities")
	}
	publish := func(nc *nats.Conn, subject string) error { return nc.Publish(subject, []byte("x")) }
	subscribe := func(nc *nats.Conn, subject string) error { _, err := nc.SubscribeSync(subject); return err }
	for _, c := range []struct {
		name    string
		do      func(*nats.Conn, string) error
		subject string
		may     bool
	}{
		{"beat", publish, "cohort.beat." + own + "." + unit.ID.String(), true},
		{"beat as a sibling", publish, "cohort.beat." + own + "." + sibling.ID.String(), false},
		{"beat in another cluster", publish, "cohort.beat." + their + "." + unit.ID.String(), false},
		{"seal", publish, "cohort.seal." + own, true},
		{"seal in another cluster", publish, "cohort.seal." + their, false},
		{"push, which is the manager's", publish, "cohort.push." + own, false},
		{"pull", publish, "cohort.pull." + own, true},
		{"pull from another cluster", publish, "cohort.pull." + their, false},
		{"range", publish, "cohort.range." + own, true},
		{"answer a sibling", publish, "cohort.inbox." + own + "." + sibling.ID.String() + ".x", false},
		{"system", publish, "$SYS.REQ.SERVER.PING", false},
		{"pushes", subscribe, "cohort.push." + own, true},
		{"pushes of another cluster", subscribe, "cohort.push." + their, false},
		{"pushes of all clusters", subscribe, "cohort.push.*", false},
		{"what siblings seal", subscribe, "cohort.seal." + own, false},
		{"beats", subscribe, "cohort.beat." + own + ".*", false},
		{"own inbox", subscribe, "cohort.inbox." + own + "." + unit.ID.String() + ".x", true},
		{"inbox of a sibling", subscribe, "cohort.inbox." + own + "." + sibling.ID.String() + ".>", false},
		{"inboxes", subscribe, "cohort.inbox." + own + ".>", false},
		{"everything", subscribe, ">", false},
		{"system events", subscribe, "$SYS.>", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			nc, faults := raw(t, s, unit.Signing)
			if err := c.do(nc, c.subject); err != nil {
				t.Fatal(err)
			}
			if err := nc.Flush(); err != nil {
				t.Fatal(err)
			}
			var got error
			select {
			case got = <-faults:
			case <-time.After(50 * time.Millisecond):
			}
			if (got == nil) != c.may || got != nil && !errors.Is(got, nats.ErrPermissionViolation) {
				t.Errorf("%s: got %v, want allowed %v", c.subject, got, c.may)
			}
		})
	}
}

// TestCertificateEndsConnection needs real time: a certificate's end is a date.
func TestCertificateEndsConnection(t *testing.T) {
	a := bustest.New(t)
	s := start(t, a)
	unit := a.Unit(bustest.Short)
	leaf, err := x509.ParseCertificate(unit.Signing.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	closed := make(chan time.Time, 1)
	nc, err := nats.Connect("tls://"+s.Address(), nats.Secure(config(unit.Signing)), nats.TLSHandshakeFirst(), nats.NoReconnect(),
		nats.ClosedHandler(func(*nats.Conn) { closed <- time.Now() }))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	select {
	case at := <-closed:
		if at.Before(leaf.NotAfter) || at.After(leaf.NotAfter.Add(time.Second)) {
			t.Errorf("cut at %v, want at %v", at, leaf.NotAfter)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("a connection outlives its unit's certificate")
	}
	if nc, err := nats.Connect("tls://"+s.Address(), nats.Secure(config(unit.Signing)), nats.TLSHandshakeFirst(), nats.NoReconnect()); err == nil {
		nc.Close()
		t.Error("an expired certificate: got a connection")
	}
}

// TestRepliesStayInTheCluster: the manager may publish everywhere, and a unit
// must not have it speak to strangers.
func TestRepliesStayInTheCluster(t *testing.T) {
	a := bustest.New(t)
	s := start(t, a)
	asked := make(chan bus.Cluster, 8)
	hub, err := bus.Attach(s, bus.Duties{
		Beat: func(bus.Cluster, wire.UnitID, bus.Beat) {}, Item: func(bus.Cluster, bus.Item) {},
		Pull: func(c bus.Cluster, _ wire.SessionID) (bus.Item, bool) {
			asked <- c
			return bus.Item{Kind: bus.Sealed, Bytes: []byte("x")}, true
		},
		Range: func() (bus.Range, error) { return bus.Range{First: 1, Count: 1}, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer hub.Close()
	unit, victim := a.Unit(bustest.Scoring), a.Unit(bustest.Keys)
	listening, _ := raw(t, s, victim.Signing)
	heard, err := listening.SubscribeSync("cohort.push." + victim.Cluster.String())
	if err != nil {
		t.Fatal(err)
	}
	listening.Flush()
	nc, _ := raw(t, s, unit.Signing)
	for _, reply := range []string{"cohort.push." + victim.Cluster.String(), "cohort.inbox." + victim.Cluster.String() + ".x", "cohort.push." + unit.Cluster.String()} {
		if err := nc.PublishRequest("cohort.pull."+unit.Cluster.String(), reply, make([]byte, 24)); err != nil {
			t.Fatal(err)
		}
		if err := nc.PublishRequest("cohort.range."+unit.Cluster.String(), reply, nil); err != nil {
			t.Fatal(err)
		}
	}
	c := connect(t, s, unit)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := c.Pull(ctx, wire.SessionID{}); err != nil { // behind all of the above
		t.Fatal(err)
	}
	if got := <-asked; got != unit.Cluster || len(asked) != 0 {
		t.Errorf("asked by %v and %d more, want %v alone", got, len(asked), unit.Cluster)
	}
	if m, err := heard.NextMsg(100 * time.Millisecond); err == nil {
		t.Errorf("the manager was made to say %q to another cluster", m.Data)
	}
}

// connect is a unit's own way in.
func connect(t *testing.T, s *natsd.Server, u bustest.Unit) *bus.Conn {
	t.Helper()
	c, err := bus.Connect(bus.Config{URL: "tls://" + s.Address(), Cluster: u.Cluster, Unit: u.ID, TLS: config(u.Signing)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	for range 500 {
		if c.Connected() {
			return c
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("not connected within 5 s")
	return nil
}

func TestStartRefusals(t *testing.T) {
	a := bustest.New(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, address := range []string{"", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:70000", taken.Addr().String()} {
		s, err := natsd.Start(natsd.Config{Address: address, Roots: a.Roots(), Clock: time.Now, Log: slog.New(slog.DiscardHandler), Connections: 1,
			Certificate: func() (*tls.Certificate, error) { return nil, errors.New("none") }})
		if err == nil {
			s.Stop()
			t.Errorf("%q: got no error", address)
		}
	}
	// The one that is taken says so.
	_, err = natsd.Start(natsd.Config{Address: taken.Addr().String(), Roots: a.Roots(), Clock: time.Now, Log: slog.New(slog.DiscardHandler), Connections: 1,
		Certificate: func() (*tls.Certificate, error) { return nil, errors.New("none") }})
	if err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("got %v, want the cause", err)
	}
}

func TestRightsNameNoWildcardToPublish(t *testing.T) {
	rights := bus.RightsOf(bus.Cluster{1}, wire.UnitID{2})
	if slices.ContainsFunc(rights.Publish, func(s string) bool { return strings.ContainsAny(s, "*>") }) {
		t.Errorf("got %q", rights.Publish)
	}
}
