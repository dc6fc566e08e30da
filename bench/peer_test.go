package bench

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/testworld"
)

// peer is the serving process as seen by the measuring process.
type peer struct {
	info
	estate estate
	ca     *x509.CertPool // roots of the listeners with TLS
}

// profileEnv is the environment variable that names a file for the serving process's CPU
// profile.
const profileEnv = "BENCH_PROFILE"

// start starts the serving process, which ends with the benchmark.
func start(b *testing.B) *peer {
	b.Helper()
	p := &peer{ca: x509.NewCertPool()}
	serving(b, "TestServer", &p.info)
	p.found(b)
	return p
}

// serving runs a test of this binary as the serving process until the benchmark ends, and
// reads its report into told.
func serving(b *testing.B, test string, told any) {
	b.Helper()
	command := exec.Command(os.Args[0], "-test.run=^"+test+"$")
	command.Env = append(os.Environ(), serverEnv+"=1")
	if file := os.Getenv(profileEnv); file != "" {
		command.Args = append(command.Args, "-test.cpuprofile="+file)
	}
	command.Stderr = os.Stderr
	in, out := testworld.Must(command.StdinPipe()), testworld.Must(command.StdoutPipe())
	if err := command.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { in.Close(); command.Wait() })
	if err := json.NewDecoder(out).Decode(told); err != nil {
		b.Fatal("reading what the server tells:", err)
	}
}

// found connects to the authority of the serving process.
func (p *peer) found(b *testing.B) {
	b.Helper()
	p.ca.AddCert(testworld.Must(x509.ParseCertificate(p.CA)))
	p.estate = estate{p.Authority, newAuthority(p.Authority), p.Genesis, p.Root, p.attester}
	b.Cleanup(p.estate.authority.Close)
}

// stats returns the counters of the serving process.
func (p *peer) stats() (s stats) {
	answer := testworld.Must(http.Get(p.Control))
	defer answer.Body.Close()
	if err := json.NewDecoder(answer.Body).Decode(&s); err != nil {
		panic(err)
	}
	return s
}

// serving returns the CPU time of the serving process for f.
func (p *peer) serving(f func()) time.Duration {
	before := p.stats()
	f()
	return p.stats().CPU - before.CPU
}

// pair returns the CPU time of both processes for f.
func (p *peer) pair(f func()) time.Duration {
	before := CPU()
	served := p.serving(f)
	return served + CPU() - before
}

// remote is a device in the serving process.
type remote string

func (p *peer) attester(of attest.Platform, task string) attest.Attester {
	return remote(fmt.Sprintf("%s/?platform=%s&task=%s", p.Control, of, task))
}

func (r remote) Attest(_ context.Context, data attest.ReportData) (e attest.Evidence, err error) {
	answer, err := http.Post(string(r), "application/octet-stream", bytes.NewReader(data[:]))
	if err != nil {
		return e, err
	}
	defer answer.Body.Close()
	return e, json.NewDecoder(answer.Body).Decode(&e)
}

// trust fetches the trust of a client of task scoring.
func (p *peer) trust(b *testing.B) *client.Trust {
	b.Helper()
	return testworld.Must(client.FetchTrust(b.Context(), client.TrustConfig{
		Authorities: []string{p.Authority}, Genesis: p.Genesis, Task: "scoring", Verifier: verifier(),
	}))
}
