package bench

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/unit"
)

// serverEnv is set in the serving process.
const serverEnv = "BENCH_SERVER"

// replicas is the size of the large cluster.
const replicas = 100

// info is the report of the serving process to the measuring process.
type info struct {
	Authority     string // URL
	Genesis, Root wire.Digest
	Control       string // of [server.control]

	Plain, PlainTLS     string // the handler alone
	Sealed, Keyed       string // the handler behind an AEAD alone: under one key, and under one key per message
	Channel, ChannelTLS string // a unit with the same handler
	CA                  []byte // root of the two with TLS

	OneTDX   string // gateway of a unit on TDX
	Counted  string // TLS with the chain of RATLS, counted as gateways are
	One, All string // gateways of clusters of one unit and of 100
	AllCold  string // like All, with a new connection for each request
	RATLS    string // server with evidence in its certificate
	Evidence attest.Evidence

	Unit, Bare string // host:port of TLS with the same chain
}

// server is the state of the serving process.
type server struct {
	t        *testing.T
	vendors  *vendors
	estate   estate
	bytes    atomic.Int64 // through counted listeners
	requests atomic.Int64
}

// TestServer is the entry point of the benchmarks' second process. All servers run in it,
// so that its CPU time is the servers' alone. In an ordinary test run it tests nothing.
func TestServer(t *testing.T) {
	if os.Getenv(serverEnv) == "" {
		t.Skip("the benchmarks start it")
	}
	s := &server{t: t, vendors: newVendors(time.Now())}
	var i info
	var stop func()
	s.estate, stop = found(t, s.vendors).start(t)
	t.Cleanup(stop)
	i.Authority, i.Genesis, i.Root = s.estate.url, s.estate.genesis, s.estate.root
	i.Control = s.listen(listener(), http.HandlerFunc(s.control), nil)

	chain := s.selfSigned(nil)
	i.CA = chain.Certificate[0]
	withTLS := &tls.Config{MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true, Certificates: []tls.Certificate{chain}}
	direct := s.cluster(1)[0]
	i.Plain, i.PlainTLS = s.listen(listener(), http.HandlerFunc(echo), nil), s.listen(listener(), http.HandlerFunc(echo), withTLS)
	i.Sealed, i.Keyed = s.listen(listener(), sealedEcho(oneKey()), nil), s.listen(listener(), sealedEcho(keyEach), nil)
	i.Channel, i.ChannelTLS = s.listen(listener(), direct, nil), s.listen(listener(), direct, withTLS)

	all := gateway(s.cluster(replicas))
	i.One, i.All = s.listenCounted(gateway(s.cluster(1)), nil), s.listenCounted(all, nil)
	tdx := stapled{s.vendors.device(attest.TDX, "scoring"), s.vendors.intel.Endorsements(attest.TDX)}
	i.OneTDX, i.Counted = s.listenCounted(gateway(s.clusterOn(tdx, 1)), nil), s.listenCounted(http.HandlerFunc(echo), withTLS)
	i.AllCold = s.listen(listener(), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close")
		all.ServeHTTP(w, r)
	}), nil)
	i.RATLS, i.Evidence = s.raTLS()
	i.Unit, i.Bare = s.unit()
	if err := json.NewEncoder(os.Stdout).Encode(i); err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, os.Stdin) // ends with the parent
}

// counted counts the bytes that go through a connection.
type counted struct {
	net.Conn
	n *atomic.Int64
}

func (c counted) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.n.Add(int64(n))
	return n, err
}

func (c counted) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.n.Add(int64(n))
	return n, err
}

type countingListener struct {
	net.Listener
	n *atomic.Int64
}

func (l countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return counted{c, l.n}, nil
}

func listener() net.Listener { return testworld.Must(net.Listen("tcp", "127.0.0.1:0")) }

// listen serves a handler until the test ends and returns its URL.
func (s *server) listen(l net.Listener, h http.Handler, config *tls.Config) string {
	server := &http.Server{Handler: h, TLSConfig: config}
	s.t.Cleanup(func() { server.Close() })
	if config != nil {
		go server.ServeTLS(l, "", "")
		return "https://" + l.Addr().String()
	}
	go server.Serve(l)
	return "http://" + l.Addr().String()
}

// listenCounted is listen with traffic counted in [stats].
func (s *server) listenCounted(h http.Handler, config *tls.Config) string {
	return s.listen(countingListener{listener(), &s.bytes}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.requests.Add(1)
		h.ServeHTTP(w, r)
	}), config)
}

// stats are the counters of the serving process.
type stats struct {
	CPU      time.Duration
	Bytes    int64 // both directions, without TCP and IP
	Requests int64
}

// control returns the stats, and evidence over a body of 64 bytes.
func (s *server) control(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodGet {
		json.NewEncoder(w).Encode(stats{CPU(), s.bytes.Load(), s.requests.Load()})
		return
	}
	var data attest.ReportData
	testworld.Must(io.ReadFull(r.Body, data[:]))
	device := s.vendors.device(attest.Platform(r.FormValue("platform")), r.FormValue("task"))
	json.NewEncoder(w).Encode(testworld.Must(device.Attest(r.Context(), data)))
}

// echo responds with the content of the request, or at /stream with tokens.
func echo(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/stream" {
		writeTokens(w)
		return
	}
	body := make([]byte, r.ContentLength)
	if _, err := io.ReadFull(r.Body, body); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Write(body)
}

// newAEAD returns AES-256-GCM under a key that both processes know.
func newAEAD() cipher.AEAD {
	return testworld.Must(cipher.NewGCM(testworld.Must(aes.NewCipher(make([]byte, 32)))))
}

// ciphers returns the AEAD for the message with a nonce.
type ciphers func(nonce []byte) cipher.AEAD

// oneKey returns ciphers with one key for all messages.
func oneKey() ciphers {
	aead := newAEAD()
	return func([]byte) cipher.AEAD { return aead }
}

// keyEach derives a key for each message, as a session does, but by a single hash: any key
// derivation costs more.
func keyEach(nonce []byte) cipher.AEAD {
	key := sha256.Sum256(nonce)
	return testworld.Must(cipher.NewGCM(testworld.Must(aes.NewCipher(key[:]))))
}

// buffers lends byte slices.
type buffers struct{ pool sync.Pool }

func (b *buffers) get(n int) *[]byte {
	p, ok := b.pool.Get().(*[]byte)
	if !ok {
		p = new([]byte)
	}
	*p = slices.Grow((*p)[:0], n)[:n]
	return p
}

// sealedEcho is the floor of any channel: one open and one seal. The nonce is the body's
// first 12 bytes; the response flips its first bit.
func sealedEcho(of ciphers) http.HandlerFunc {
	var lent buffers
	return func(w http.ResponseWriter, r *http.Request) {
		p := lent.get(int(r.ContentLength))
		defer lent.pool.Put(p)
		body := *p
		testworld.Must(io.ReadFull(r.Body, body))
		plaintext := testworld.Must(of(body[:12]).Open(body[12:12], body[:12], body[12:], nil))
		body[0] ^= 0x80
		of(body[:12]).Seal(plaintext[:0], body[:12], plaintext, nil)
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Write(body)
	}
}

// evidenceID is the certificate extension with the evidence of RA-TLS.
var evidenceID = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 1}

// selfSigned returns a certificate for the loopback address.
func (s *server) selfSigned(more func(spki []byte) pkix.Extension) tls.Certificate {
	key := testworld.Must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	if more != nil {
		template.ExtraExtensions = []pkix.Extension{more(testworld.Must(x509.MarshalPKIXPublicKey(&key.PublicKey)))}
	}
	der := testworld.Must(x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key))
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// raTLS starts a server whose certificate contains SNP evidence over its key, and returns
// that evidence with its endorsements.
func (s *server) raTLS() (string, attest.Evidence) {
	var evidence attest.Evidence
	config := &tls.Config{MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true}
	config.Certificates = []tls.Certificate{s.selfSigned(func(spki []byte) pkix.Extension {
		evidence = testworld.Must(s.vendors.device(attest.SNP, "scoring").Attest(s.t.Context(), attest.ReportData(sha512.Sum512(spki))))
		return pkix.Extension{Id: evidenceID, Value: evidence.Raw}
	})}
	return s.listenCounted(http.HandlerFunc(echo), config), evidence.WithEndorsements(s.vendors.chip.Endorsements())
}

// unit serves a real unit, and beside it bare crypto/tls with the same chain.
func (s *server) unit() (withUnit, bare string) {
	u := testworld.Must(unit.Start(s.t.Context(), unit.Config{
		Authorities: []string{s.estate.url}, Genesis: s.estate.genesis, Task: "scoring", Attester: s.vendors.device(attest.SNP, "scoring"),
	}))
	l := listener()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- u.Serve(ctx, l, http.HandlerFunc(echo)) }()
	s.t.Cleanup(func() { stop(); <-done; u.Close() })

	chain := testworld.Must(u.ServerTLS().GetCertificate(&tls.ClientHelloInfo{}))
	config := &tls.Config{MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true, Certificates: []tls.Certificate{*chain}}
	beside := listener()
	go func() {
		for {
			c, err := beside.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(io.Discard, tls.Server(c, config)) // until the client disconnects
			}()
		}
	}()
	s.t.Cleanup(func() { beside.Close() })
	return l.Addr().String(), beside.Addr().String()
}
