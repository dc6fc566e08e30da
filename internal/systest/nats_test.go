package systest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/bus/natsd"
	"github.com/cohort-tee/cohort/internal/loopback"
	"github.com/cohort-tee/cohort/internal/manager"
	"github.com/cohort-tee/cohort/internal/opsserver"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/nats-io/nats-server/v2/server"
)

// natsWish is the configuration of an ordinary NATS server: its host, its ports for leaf
// nodes and for cluster routes, and the routes to the other servers.
type natsWish struct {
	Name, Host  string
	Leaf, Route int
	Routes      []string
	Certificate string // file with certificate and key
	Store       string // directory of its JetStream
}

func beNATS(t *testing.T) any {
	wish := asked[natsWish](t)
	certificate, err := tls.LoadX509KeyPair(wish.Certificate, wish.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	o := &server.Options{
		ServerName: wish.Name, Host: wish.Host, Port: server.RANDOM_PORT, NoSigs: true, JetStream: true, JetStreamDomain: "hub", StoreDir: wish.Store,
		Cluster: server.ClusterOpts{Name: "outside", Host: wish.Host, Port: wish.Route},
		LeafNode: server.LeafNodeOpts{
			Host: wish.Host, Port: wish.Leaf, TLSTimeout: 5,
			TLSConfig: &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{certificate}},
		},
	}
	for _, route := range wish.Routes {
		o.Routes = append(o.Routes, &url.URL{Scheme: "nats", Host: route})
	}
	s, err := server.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("the NATS server does not listen")
	}
	t.Cleanup(s.Shutdown)
	return struct{}{}
}

// joinedWish is the configuration of one of several managers.
type joinedWish struct {
	Root                      []byte // of the authority, DER
	Dir, Gateway, Bus         string
	Metrics                   string // host:port
	Certificate, Certificates string // files: its own with the key, and the certificates of all
	NATS                      []string
}

func beJoinedManager(t *testing.T) any {
	wish := asked[joinedWish](t)
	root := testworld.Must(x509.ParseCertificate(wish.Root))
	certificate := testworld.Must(tls.LoadX509KeyPair(wish.Certificate, wish.Certificate))
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(testworld.Must(os.ReadFile(wish.Certificates)))
	m, err := manager.New(manager.Config{
		DataDir: wish.Dir, Roots: []*x509.Certificate{root}, BusAddress: wish.Bus, Log: toStderr(),
		Certificate: func() (*tls.Certificate, error) { return &certificate, nil },
		NATS:        natsd.Join{URLs: wish.NATS, CA: pool, JetStream: "hub"},
	})
	if err != nil {
		t.Fatal(err)
	}
	l, operator := testworld.Must(net.Listen("tcp", wish.Gateway)), testworld.Must(net.Listen("tcp", wish.Metrics))
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := opsserver.RunBeside(ctx, operator, m.OperatorHandler(), toStderr(), func(ctx context.Context) error { return m.Serve(ctx, l) }); err != nil {
			t.Errorf("manager ended: %v", err)
		}
	})
	t.Cleanup(serving.Wait)
	t.Cleanup(cancel)
	return struct{}{}
}

// member is a process of the cluster at a place in the network.
type member struct {
	place   string // network namespace; if empty, its network cannot be cut
	host    string
	role    string
	wish    any
	process *process // nil while it is down
}

func (n *member) start(t *testing.T) {
	t.Helper()
	var none struct{}
	var by []string
	if n.place != "" {
		by = []string{"ip", "netns", "exec", n.place}
	}
	n.process = startProcess(t, roleCommand(n.role, n.wish, by...), &none)
}

func (n *member) kill() { n.process.end(syscall.SIGKILL) }

// ip runs ip(8).
func ip(args ...string) error {
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// mustIP runs ip(8) and fails the test on an error.
func mustIP(t *testing.T, args ...string) {
	t.Helper()
	if err := ip(args...); err != nil {
		t.Fatal(err)
	}
}

// scaled is a cluster with three NATS servers and two managers beside it.
type scaled struct {
	*Cluster
	t *testing.T

	nats, managers []*member
	pool           *x509.CertPool
	web            *http.Client // of the managers' probes
}

// Hosts of the nodes in network namespaces, and of everything else.
const (
	bridge     = "cohort-test-br"
	bridgeHost = "10.203.88.1"
)

// newScaled starts NATS servers and managers, in network namespaces or all on loopback.
func newScaled(t *testing.T, apart bool) *scaled {
	t.Helper()
	s := &scaled{Cluster: New(t, scoring(time.Hour)), t: t, pool: x509.NewCertPool()}
	places := make([]member, 5)
	if apart {
		s.Host = bridgeHost
		_ = ip("link", "del", bridge) // left by a run that was killed
		mustIP(t, "link", "add", bridge, "type", "bridge")
		t.Cleanup(func() { _ = ip("link", "del", bridge) })
		mustIP(t, "addr", "add", bridgeHost+"/24", "dev", bridge)
		mustIP(t, "link", "set", bridge, "up")
	}
	for i := range places {
		places[i] = member{host: "127.0.0.1"}
		if apart {
			places[i] = member{place: fmt.Sprint("cohort-test", i), host: fmt.Sprint("10.203.88.", 11+i)}
			s.plug(places[i])
		}
	}
	dir := t.TempDir()
	certificate := s.certificate(dir)
	var leaves, routes []string
	for i := range 3 {
		leaves = append(leaves, "tls://"+places[i].host+":"+port(t))
		routes = append(routes, places[i].host+":"+port(t))
	}
	for i := range 3 {
		n := places[i]
		n.role, n.wish = "nats", natsWish{fmt.Sprint("n", i), n.host, number(leaves[i]), number(routes[i]), routes, certificate, t.TempDir()}
		s.nats = append(s.nats, &n)
	}
	root := trust(t, s.Cluster).AuthorityRoot().Raw
	s.manager = &gateway{ca: s.pool}
	for i := range 2 {
		n := places[3+i]
		wish := joinedWish{root, t.TempDir(), n.host + ":" + port(t), n.host + ":" + port(t), n.host + ":" + port(t), certificate, certificate, leaves}
		n.role, n.wish = "joined-manager", wish
		s.managers = append(s.managers, &n)
	}
	one, two := s.managers[0].wish.(joinedWish), s.managers[1].wish.(joinedWish)
	s.manager.listen, s.manager.bus = one.Gateway+",https://"+two.Gateway, one.Bus+",tls://"+two.Bus // as lists of URLs
	s.web = &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.pool}, DisableKeepAlives: true}}
	for _, n := range append(s.nats, s.managers...) {
		n.start(t)
	}
	return s
}

// plug creates a namespace and connects it to the bridge.
func (s *scaled) plug(n member) {
	s.t.Helper()
	_ = ip("netns", "del", n.place) // as above
	mustIP(s.t, "netns", "add", n.place)
	s.t.Cleanup(func() { _ = ip("netns", "del", n.place) })
	mustIP(s.t, "link", "add", n.place, "type", "veth", "peer", "name", "eth0", "netns", n.place)
	mustIP(s.t, "link", "set", n.place, "master", bridge, "up")
	mustIP(s.t, "-n", n.place, "addr", "add", n.host+"/24", "dev", "eth0")
	mustIP(s.t, "-n", n.place, "link", "set", "eth0", "up")
	mustIP(s.t, "-n", n.place, "link", "set", "lo", "up")
}

// certificate writes an operator's certificate for all nodes, with its key, to a file.
func (s *scaled) certificate(dir string) string {
	key := testworld.Must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "operator"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		BasicConstraintsValid: true, IsCA: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	for i := range 5 {
		template.IPAddresses = append(template.IPAddresses, net.IPv4(10, 203, 88, byte(11+i)))
	}
	der := testworld.Must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))
	private := testworld.Must(x509.MarshalPKCS8PrivateKey(key))
	text := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})...)
	s.pool.AddCert(testworld.Must(x509.ParseCertificate(der)))
	path := filepath.Join(dir, "operator.pem")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// port returns a port that is free on loopback, and so in a fresh namespace as well.
func port(t *testing.T) string {
	t.Helper()
	_, p, _ := net.SplitHostPort(loopback.FreeAddress(t))
	return p
}

// number returns the port of an address.
func number(address string) (n int) {
	fmt.Sscan(address[strings.LastIndex(address, ":")+1:], &n)
	return n
}

// units returns how many units a manager reports as ready, or -1 without a response.
func (s *scaled) units(m *member) int {
	answer, err := s.web.Get("https://" + m.wish.(joinedWish).Gateway + "/readyz")
	if err != nil {
		return -1
	}
	defer answer.Body.Close()
	var said struct{ Units int }
	if json.NewDecoder(answer.Body).Decode(&said) != nil {
		return -1
	}
	return said.Units
}

// whole waits until both managers report all six units.
func (s *scaled) whole(when string) {
	s.t.Helper()
	begin := time.Now()
	testworld.Within(s.t, 60*time.Second, "both managers know six units, "+when, func() bool {
		return s.units(s.managers[0]) == 6 && s.units(s.managers[1]) == 6
	})
	s.t.Logf("%s: whole after %v", when, time.Since(begin).Round(10*time.Millisecond))
}

// opens requires that a new session opens and serves a request, whichever gateway the
// client tries first.
func (s *scaled) opens(when string) {
	s.t.Helper()
	config := s.OpenConfig("scoring")
	for range 4 {
		begin := time.Now()
		ctx, cancel := context.WithTimeout(s.t.Context(), 30*time.Second)
		ch, err := client.Open(ctx, config)
		if err == nil {
			_, err = call(ctx, ch, http.MethodGet, "new", "")
			ch.Close(ctx)
		}
		cancel()
		if err != nil {
			s.t.Errorf("a new session, %s: %v after %v", when, err, time.Since(begin))
		}
	}
}

// TestManyManagers: three NATS servers, two managers and six units under load. One NATS
// server is killed, then another, then a manager, and all restart. The long form also cuts
// the network: of a manager, between a manager and NATS, and of a NATS server. Open
// sessions continue, new ones open, and the cluster recovers without intervention.
func TestManyManagers(t *testing.T) {
	waits(t)
	apart, step := false, time.Second
	app := &service{seen: map[string]int{}}
	st := &storm{executed: app.executed, rate: 60, length: 8 * step}
	if full() {
		if err := ip("netns", "add", "cohort-test-try"); err != nil {
			t.Skipf("SKIPPED: nothing was cut, no network namespaces here: %v", err)
		}
		mustIP(t, "netns", "del", "cohort-test-try")
		apart, step = true, 5*time.Second
		st.rate, st.length = 200, 8*step+4*70*time.Second
	}
	s := newScaled(t, apart)
	for range 6 {
		s.Start("scoring", "scoring 1", app)
	}
	s.whole("at the start")
	testworld.Within(t, 30*time.Second, "NATS to keep copies", func() bool {
		return s.metric(s.managers[0], "recalled") == 1 && s.metric(s.managers[1], "recalled") == 1
	})
	st.channels = channels(s.Cluster, 20)
	var faults sync.WaitGroup
	faults.Go(func() { s.lose(step); s.cutAll(60 * time.Second) })
	out := st.run(t)
	faults.Wait()
	s.whole("at the end")
	st.judge(t, out)
	for i, ch := range st.channels {
		if got := ch.Opens(); got != 1 {
			t.Errorf("channel %d opened %d sessions, want the first to go on through every gateway", i, got)
		}
	}
	s.forget(len(st.channels))
}

// forget replaces both managers by new ones, which get the earlier copies from NATS.
func (s *scaled) forget(sessions int) {
	for _, m := range s.managers {
		m.kill()
		wish := m.wish.(joinedWish)
		wish.Dir = s.t.TempDir()
		m.wish = wish
	}
	for _, m := range s.managers {
		m.start(s.t)
		testworld.Within(s.t, 30*time.Second, "a new manager has the copies of those before", func() bool { return s.metric(m, "copies") >= sessions })
	}
}

// metric returns one metric of a manager, or 0 without a response.
func (s *scaled) metric(m *member, name string) (n int) {
	answer, err := s.web.Get("http://" + m.wish.(joinedWish).Metrics + "/metrics")
	if err != nil {
		return 0
	}
	defer answer.Body.Close()
	found := regexp.MustCompile(`(?m)^cohort_manager_` + name + ` (\d+)$`).FindSubmatch(testworld.Must(io.ReadAll(answer.Body)))
	if found != nil {
		fmt.Sscan(string(found[1]), &n)
	}
	return n
}

// lose kills servers one after another and restarts them.
func (s *scaled) lose(step time.Duration) {
	for _, victim := range []struct {
		name string
		*member
	}{{"one NATS server killed", s.nats[0]}, {"two NATS servers killed", s.nats[1]}, {"a manager killed too", s.managers[0]}} {
		time.Sleep(step)
		victim.kill()
		s.opens(victim.name)
	}
	if s.units(s.managers[0]) >= 0 {
		s.t.Error("the killed manager answers")
	}
	for _, n := range []*member{s.nats[0], s.nats[1], s.managers[0]} {
		n.start(s.t)
	}
	s.opens("all started again")
}

// cutAll cuts the network in one place after another.
func (s *scaled) cutAll(length time.Duration) {
	first := s.managers[0]
	if first.place == "" {
		return
	}
	link := func(n *member, state string) func() error {
		return func() error { return ip("link", "set", n.place, state) }
	}
	away := func(verb string) func() error {
		return func() error {
			for _, n := range s.nats {
				if err := ip("-n", first.place, "route", verb, "blackhole", n.host+"/32"); err != nil {
					return err
				}
			}
			return nil
		}
	}
	for _, c := range []struct {
		name      string
		cut, heal func() error
	}{
		{"a manager without network", link(first, "down"), link(first, "up")},
		{"a manager without NATS", away("add"), away("del")},
		{"a NATS server without network", link(s.nats[2], "down"), link(s.nats[2], "up")},
	} {
		s.whole("before " + c.name)
		if err := c.cut(); err != nil {
			s.t.Error(err)
		}
		begin := time.Now()
		for time.Since(begin) < length {
			s.opens(c.name)
			time.Sleep(time.Second)
		}
		if err := c.heal(); err != nil {
			s.t.Error(err)
		}
		s.whole("after " + c.name)
	}
}
