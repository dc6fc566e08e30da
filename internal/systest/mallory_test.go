package systest

import (
	"bytes"
	"crypto/tls"
	"encoding/pem"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/cohort-tee/cohort/policy/sshsig"
)

// mallory is everything that an attacker can create herself in order to imitate a cluster:
// a root secret, an owner, and a policy that differs from the genuine one in these two
// only. Code, names and even the TEE vendor are the same.
type mallory struct {
	c        *Cluster
	approved policy.Approved
	issuer   *identity.Issuer
}

func newMallory(t *testing.T, c *Cluster) *mallory {
	t.Helper()
	keys := testworld.Must(identity.Derive(identity.NewSecret()))
	owner := testworld.NewKey()
	text := strings.NewReplacer(c.Root.String(), keys.RootDigest().String(), c.owner.AuthorizedKey(), owner.AuthorizedKey()).Replace(string(c.Steps[0].Policy))
	step := policy.Step{Policy: []byte(text), Signatures: []string{testworld.Must(sshsig.Sign(owner, sshsig.ForPolicy, []byte(text)))}}
	approved := testworld.Must(policy.Genesis(wire.Sum(step.Policy), step))
	return &mallory{c: c, approved: approved, issuer: testworld.Must(keys.Issuer(approved))}
}

// authority returns an authority certificate under her root.
func (m *mallory) authority() *tls.Certificate {
	leaf := testworld.Must(m.issuer.AuthorityLeaf(time.Now()))
	return &tls.Certificate{Certificate: [][]byte{leaf.DER, m.issuer.AuthorityRoot()}, PrivateKey: leaf.Key}
}

// shared returns the shared certificate of a task's units under her root.
func (m *mallory) shared(t *testing.T, task, program string) *tls.Certificate {
	t.Helper()
	data := attest.BindReportData(wire.LabelIssue, []byte("mallory"))
	evidence := testworld.Must(m.c.Chip.Attester(attesttest.Measure(program)).Attest(t.Context(), data))
	result := testworld.Must(attesttest.Verifier().Appraise(attest.Question{Evidence: evidence, ReportData: data, Rules: m.approved.Rules(), At: time.Now()}))
	grant := testworld.Must(m.approved.Admit(task, result))
	leaf := testworld.Must(m.issuer.SharedLeaf(grant, time.Now()))
	cross := testworld.Must(m.issuer.Identity(task, grant.Release.Name)).Cross
	return &tls.Certificate{Certificate: [][]byte{leaf.DER, cross}, PrivateKey: leaf.Key}
}

// pem returns her authority root, for programs that trust roots from a file.
func (m *mallory) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: m.issuer.AuthorityRoot()})
}

// relay is a man in the middle: it terminates TLS with a certificate, and forwards what it
// decrypts to the genuine server.
type relay struct {
	address string
	close   func()

	mu      sync.Mutex // guards the fields below
	asked   []string   // method and path of each request
	answers bytes.Buffer
	edit    func(path string, body []byte) []byte // changes each request's body; nil: unchanged
}

func newRelay(t *testing.T, listen string, certificate *tls.Certificate, target string) *relay {
	t.Helper()
	l, err := net.Listen("tcp", listen)
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{address: l.Addr().String()}
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	config := identity.ServerTLS(func() (*tls.Certificate, error) { return certificate, nil })
	config.NextProtos = []string{"http/1.1"}
	quiet := log.New(io.Discard, "", 0)
	server := &http.Server{TLSConfig: config, ErrorLog: quiet, Handler: &httputil.ReverseProxy{
		Transport: transport, ErrorLog: quiet, Rewrite: func(p *httputil.ProxyRequest) { r.pass(p.Out, target) }, ModifyResponse: r.keep,
	}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.ServeTLS(l, "", "") // ended by close
	}()
	r.close = sync.OnceFunc(func() {
		server.Close()
		transport.CloseIdleConnections()
		<-done
	})
	t.Cleanup(r.close)
	return r
}

func (r *relay) pass(out *http.Request, target string) {
	out.URL.Scheme, out.URL.Host = "https", target
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = append(r.asked, out.Method+" "+out.URL.Path)
	if out.Body == nil {
		return
	}
	body, _ := io.ReadAll(out.Body)
	if r.edit != nil {
		body = r.edit(out.URL.Path, body)
	}
	out.Body, out.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
}

// keep records the genuine server's responses.
func (r *relay) keep(answer *http.Response) error {
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answers.Write(body)
	answer.Body = io.NopCloser(bytes.NewReader(body))
	return nil
}

// set replaces edit.
func (r *relay) set(edit func(path string, body []byte) []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.edit = edit
}

// carried returns the content of all responses so far.
func (r *relay) carried() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.answers.String()
}

func (r *relay) url() string { return "https://" + r.address }

// saw returns all requests except the given ones.
func (r *relay) saw(but ...string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(r.asked), func(asked string) bool { return slices.Contains(but, asked) })
}
