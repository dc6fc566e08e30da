package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/soft"
	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/systest"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// BenchmarkTypeScript compares the TypeScript client, in Node and in a page of Chromium, with the
// Go client, over the same development cluster and gateway: the wall time of opening a session with
// fresh evidence, trust being there, of one request after the other, and of a streamed token. It
// counts the bytes of the first contact, trust and session, on the connections to the gateway, and
// the bytes of the bundle after gzip. It skips what is not installed.
func BenchmarkTypeScript(b *testing.B) {
	ts := testworld.Must(filepath.Abs("../ts"))
	for _, path := range []string{"/usr/bin/node", "/usr/bin/chromium", filepath.Join(ts, "node_modules")} {
		if _, err := os.Stat(path); err != nil {
			b.Skipf("SKIPPED: %v; run `make tools`", err)
		}
	}
	build := exec.Command("npm", "run", "--silent", "build-tests")
	build.Dir = ts
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("compiling ts: %v\n%s", err, out)
	}
	info := systest.StartDev(b, "../examples/chat/dev.toml").WaitInfo()
	direct := &goClient{b: b, info: info}
	direct.trust = direct.fetchTrust(info.Gateway)
	direct.session = direct.open(client.OpenConfig{Trust: direct.trust, Gateway: info.Gateway})
	inNode, inPage := startScript(b, ts, "node", info), startScript(b, ts, "chromium", info)

	for _, of := range []struct {
		what string
		n    int
	}{{"open", 5}, {"request", 100}, {"token", 1}} {
		b.Run(of.what, func(b *testing.B) {
			per := 1
			if of.what == "token" {
				per = streamTokens
			}
			script := func(s *script) func() time.Duration {
				return func() time.Duration { return s.measure(of.what, of.n, info.Gateway) / time.Duration(per) }
			}
			Compare(b, Contender{"go", func() time.Duration { return direct.measure(of.what, of.n) / time.Duration(per) }}, Contender{"node", script(inNode)}, Contender{"chromium", script(inPage)})
		})
	}
	b.Run("contact", func(b *testing.B) {
		for b.Loop() { // bytes do not differ between rounds
		}
		for name, contact := range map[string]func(url string){
			"go": func(url string) {
				direct.open(client.OpenConfig{Trust: direct.fetchTrust(url), Gateway: url, FreshEvidence: true})
			},
			"node":     func(url string) { inNode.measure("contact", 1, url) },
			"chromium": func(url string) { inPage.measure("contact", 1, url) },
		} {
			counted := countBytes(b, strings.TrimPrefix(info.Gateway, "http://"))
			contact("http://" + counted.address)
			b.ReportMetric(float64(counted.n.Load()), "bytes-"+name)
		}
		b.ReportMetric(0, "ns/op")
		b.ReportMetric(float64(inNode.sizes.Core), "gzip-core")
		b.ReportMetric(float64(inNode.sizes.All), "gzip-all")
	})
}

// goClient is the Go client of a development cluster.
type goClient struct {
	b       *testing.B
	info    systest.DevInfo
	trust   *client.Trust
	session *client.Channel
}

func (c *goClient) fetchTrust(gateway string) *client.Trust {
	return testworld.Must(client.FetchTrust(c.b.Context(), client.TrustConfig{
		Gateways: []string{gateway}, Genesis: testworld.Must(wire.ParseDigest(c.info.Genesis)), Task: c.info.Task,
		Verifier: attest.NewVerifier(soft.Platform().Appraiser()),
	}))
}

// open opens a session, which is closed with the benchmark.
func (c *goClient) open(config client.OpenConfig) *client.Channel {
	session := testworld.Must(client.Open(c.b.Context(), config))
	c.b.Cleanup(func() { session.Close(context.Background()) })
	return session
}

// measure returns the time of one of n operations.
func (c *goClient) measure(what string, n int) time.Duration {
	opened := make([]*client.Channel, 0, n)
	begin := time.Now()
	for range n {
		switch what {
		case "open":
			opened = append(opened, testworld.Must(client.Open(c.b.Context(), client.OpenConfig{Trust: c.trust, Gateway: c.info.Gateway, FreshEvidence: true})))
		case "request":
			c.read(http.MethodGet, "/", "")
		case "token":
			c.read(http.MethodPost, "/chat", `{"prompt":"The keeper","max_tokens":2000,"delay_ms":0}`)
		}
	}
	cost := time.Since(begin) / time.Duration(n)
	for _, session := range opened {
		session.Close(c.b.Context())
	}
	return cost
}

// read sends a request and reads the whole response.
func (c *goClient) read(method, path, body string) {
	r := testworld.Must(http.NewRequest(method, c.info.URL()+path, strings.NewReader(body)))
	r.Header.Set("Content-Type", "application/json")
	response := testworld.Must(c.session.RoundTrip(r))
	defer response.Body.Close()
	if n := testworld.Must(io.Copy(io.Discard, response.Body)); response.StatusCode != http.StatusOK || n == 0 {
		panic(response.Status)
	}
}

// script is a running ts/test/bench.ts.
type script struct {
	info    systest.DevInfo
	in      io.Writer
	results *json.Decoder
	sizes   struct{ Core, All int } // of the bundle, gzip
}

func startScript(b *testing.B, ts, where string, info systest.DevInfo) *script {
	b.Helper()
	cmd := exec.Command("node", filepath.Join(ts, "build/test/bench.js"), where)
	cmd.Stderr = os.Stderr
	in, out := testworld.Must(cmd.StdinPipe()), testworld.Must(cmd.StdoutPipe())
	testworld.NoError(b, cmd.Start())
	b.Cleanup(func() {
		in.Close() // ends the script
		if err := cmd.Wait(); err != nil {
			b.Errorf("%s: %v", where, err)
		}
	})
	s := &script{info: info, in: in, results: json.NewDecoder(bufio.NewReader(out))}
	testworld.NoError(b, s.results.Decode(&s.sizes))
	return s
}

// measure returns the time of one of n operations.
func (s *script) measure(what string, n int, gateway string) time.Duration {
	command := map[string]any{"what": what, "n": n, "gateway": gateway, "genesis": s.info.Genesis, "task": s.info.Task}
	if err := json.NewEncoder(s.in).Encode(command); err != nil {
		panic(err)
	}
	var milliseconds float64
	if err := s.results.Decode(&milliseconds); err != nil {
		panic(err)
	}
	return time.Duration(milliseconds * float64(time.Millisecond))
}

// byteCounter forwards connections and counts the bytes in both directions.
type byteCounter struct {
	address string
	n       atomic.Int64
}

func (c *byteCounter) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return len(p), nil
}

// countBytes forwards connections to an address until the benchmark ends.
func countBytes(b *testing.B, to string) *byteCounter {
	b.Helper()
	l := testworld.Must(net.Listen("tcp", "127.0.0.1:0"))
	b.Cleanup(func() { l.Close() })
	c := &byteCounter{address: l.Addr().String()}
	go func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			go c.forward(from, to)
		}
	}()
	return c
}

func (c *byteCounter) forward(from net.Conn, to string) {
	defer from.Close()
	there, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer there.Close()
	end := sync.OnceFunc(func() { from.Close(); there.Close() })
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{from, there}, {there, from}} {
		both.Go(func() {
			defer end()
			io.Copy(io.MultiWriter(way[1], c), way[0])
		})
	}
	both.Wait()
}
