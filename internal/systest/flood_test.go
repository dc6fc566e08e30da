package systest

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/channel"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
)

// flood is the load that attackers on several addresses put on listeners.
type flood struct {
	Targets []target
	Garbage int    // connections per second that send noise
	Gateway string // host:port
	MadeUp  int    // requests per second to the gateway, in sessions that do not exist

	tried, failed, held atomic.Int64
}

// target is a listener.
type target struct {
	Address, Begin string // Begin is the start of the input that the listener waits for
	Half           int    // concurrent handshakes or requests that stop after Begin
	TLS            bool   // Begin follows a TLS handshake
}

// half returns the number of unfinished handshakes and requests over all targets.
func (f *flood) half() (n int) {
	for _, at := range f.Targets {
		n += at.Half
	}
	return n
}

// Beginnings of input that is never completed.
const (
	recordHead  = "\x16\x03\x01\x02\x00" // of a TLS handshake
	requestHead = "POST /.well-known/cohort/session HTTP/1.1\r\nHost: "
	openBody    = requestHead + "x\r\nContent-Type: " + wire.TypeSession + "\r\nContent-Length: 1400\r\n\r\nx"
	oneOffBody  = "POST /.well-known/cohort/oneoff?task=scoring HTTP/1.1\r\nHost: x\r\nContent-Type: " + wire.TypeOneOff + "\r\nContent-Length: 1400\r\n\r\nx"
	appBody     = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1400\r\n\r\nx"
)

// dial connects from one of the addresses 127.0.0.2 to 127.0.0.61.
func (f *flood) dial(ctx context.Context, n int, to target) (net.Conn, error) {
	f.tried.Add(1)
	d := net.Dialer{Timeout: time.Second, LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(2+n%60))}}
	c, err := d.DialContext(ctx, "tcp", to.Address)
	if err != nil {
		f.failed.Add(1)
	}
	return c, err
}

// run floods the targets until ctx ends.
func (f *flood) run(ctx context.Context) {
	var all sync.WaitGroup
	for _, to := range f.Targets {
		for n := range to.Half {
			all.Go(func() {
				for ctx.Err() == nil {
					select { // one second on average, spread over two
					case <-time.After(mathrand.N(2 * time.Second)):
						f.hold(ctx, n, to)
					case <-ctx.Done():
					}
				}
			})
		}
	}
	all.Go(func() { f.askInVain(ctx) })
	ticker := time.NewTicker(time.Second / time.Duration(f.Garbage))
	defer ticker.Stop()
	for n := 0; ctx.Err() == nil; n++ {
		select {
		case <-ticker.C:
			all.Go(func() { f.noise(ctx, n, f.Targets[n%len(f.Targets)]) })
		case <-ctx.Done():
		}
	}
	all.Wait()
}

// hold begins a handshake or a request, and waits until the server closes the connection.
func (f *flood) hold(ctx context.Context, n int, to target) {
	c, err := f.dial(ctx, n, to)
	if err != nil {
		time.Sleep(100 * time.Millisecond)
		return
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if to.TLS {
		c = tls.Client(c, insecure())
	}
	_, _ = io.WriteString(c, to.Begin)
	f.held.Add(1)
	defer f.held.Add(-1)
	_, _ = c.Read(make([]byte, 1))
}

// askInVain sends complete requests in sessions that do not exist, from all addresses.
func (f *flood) askInVain(ctx context.Context) {
	ticker := time.NewTicker(time.Second / time.Duration(f.MadeUp))
	defer ticker.Stop()
	var all sync.WaitGroup
	defer all.Wait()
	to := make([]*http.Client, 60)
	for n := range to {
		to[n] = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return f.dial(ctx, n, target{Address: f.Gateway})
		}}}
	}
	for n := 0; ctx.Err() == nil; n++ {
		select {
		case <-ticker.C:
		case <-ctx.Done():
		}
		all.Go(func() {
			h := wire.Header{Number: 1, NotAfter: time.Now().Add(time.Minute)}
			rand.Read(h.Session[:])
			first := h.Encode()
			if answer, err := to[n%len(to)].Post("http://"+f.Gateway+wire.PathRequest, wire.TypeRequest, bytes.NewReader(first[:])); err == nil {
				_, _ = io.Copy(io.Discard, answer.Body)
				answer.Body.Close()
			}
		})
	}
}

func (f *flood) noise(ctx context.Context, n int, to target) {
	c, err := f.dial(ctx, n, to)
	if err != nil {
		return
	}
	defer c.Close()
	var b [256]byte
	rand.Read(b[:])
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	_, _ = c.Write(b[:])
	_, _ = io.Copy(io.Discard, c)
}

// flooded is the result of a flood.
type flooded struct {
	Tried, Failed int64 // connections: all, and those that failed
	Held          int64 // open connections at the end
}

// floodedFile is the file to which the flooding process writes its result.
const floodedFile = "flooded"

func beStrangers(t *testing.T) any {
	f := asked[*flood](t)
	ctx, cancel := context.WithCancel(context.Background())
	var flooding sync.WaitGroup
	flooding.Go(func() { f.run(ctx) })
	t.Cleanup(func() {
		held := f.held.Load()
		cancel()
		flooding.Wait()
		if err := os.WriteFile(floodedFile, testworld.Must(json.Marshal(flooded{f.tried.Load(), f.failed.Load(), held})), 0o600); err != nil {
			t.Error(err)
		}
	})
	return struct{}{}
}

// begin floods from a process of its own at the lowest priority, since real attackers use
// their own machines. The returned function ends the flood and returns its result.
func (f *flood) begin(t *testing.T) (end func() flooded) {
	t.Helper()
	var none struct{}
	strangers := startProcess(t, roleCommand("strangers", f, "nice", "-n", "19"), &none)
	return func() (did flooded) {
		strangers.end(nil)
		if err := json.Unmarshal(testworld.Must(os.ReadFile(filepath.Join(strangers.dir, floodedFile))), &did); err != nil {
			t.Errorf("strangers: %v", err)
		}
		return did
	}
}

// measured returns the latency and number of an honest client's calls, made one after the
// other.
func measured(t *testing.T, ch *client.Channel, length time.Duration) (p99 time.Duration, calls int) {
	t.Helper()
	var took []time.Duration
	for begin := time.Now(); time.Since(begin) < length; time.Sleep(5 * time.Millisecond) {
		at := time.Now()
		r := testworld.Must(http.NewRequestWithContext(t.Context(), http.MethodPost, scoringURL+"/", strings.NewReader("honest")))
		answer, err := ch.RoundTrip(r)
		if err != nil {
			t.Errorf("an honest request: %v", err)
			continue
		}
		answer.Body.Close()
		took = append(took, time.Since(at))
	}
	slices.Sort(took)
	if len(took) == 0 {
		t.Fatal("no honest request was answered")
	}
	return took[len(took)*99/100], len(took)
}

// memory returns the resident memory of a process in MiB.
func (p *process) memory(t *testing.T) (mib int) {
	t.Helper()
	m := regexp.MustCompile(`VmRSS:\s+(\d+) kB`).FindSubmatch(testworld.Must(os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))))
	fmt.Sscan(string(m[1]), &mib)
	return mib / 1024
}

func (p *process) descriptors() int {
	return len(testworld.Must(os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.pid))))
}

// TestFlood: half-open handshakes, requests that stall in their bodies, noise and requests
// in made-up sessions from many addresses, at a unit, the authority and the gateway. Honest
// requests are served throughout, memory stays within the bound on connections, and all
// connections of the attackers are closed again.
func TestFlood(t *testing.T) {
	f, tenth := &flood{Garbage: 100, MadeUp: 100}, 30
	length, bound := 3*time.Second, 64 // MiB above the memory before the flood
	if full() {
		f.Garbage, f.MadeUp, tenth, length, bound = 1_000, 2_000, 1_000, time.Minute, 400
	}
	a := newApart(t, time.Hour)
	u := a.start(buildUnit(t, ""))
	found := regexp.MustCompile(`"unit added" unit=\S+ task=scoring address=(\S+)`).FindSubmatch(testworld.Must(os.ReadFile(filepath.Join(a.manager.dir, "log"))))
	authority := strings.TrimPrefix(a.place.URL, "https://")
	f.Gateway = a.gateway.Gateway
	f.Targets = []target{
		{Address: string(found[1]), Begin: recordHead, Half: 2 * tenth},
		{Address: string(found[1]), Begin: appBody, Half: tenth / 5, TLS: true},
		{Address: string(found[1]), Begin: oneOffBody, Half: tenth, TLS: true},
		{Address: authority, Begin: recordHead, Half: tenth / 2}, // noise fills up to the authority's 1,024 connections
		{Address: authority, Begin: appBody, Half: tenth / 5, TLS: true},
		{Address: f.Gateway, Begin: requestHead, Half: tenth},
		{Address: f.Gateway, Begin: openBody, Half: 2 * tenth},
		{Address: f.Gateway, Begin: oneOffBody, Half: 2 * tenth},
	}
	ch, err := client.Open(t.Context(), client.OpenConfig{Trust: a.trust, Gateway: "http://" + a.gateway.Gateway})
	if err != nil {
		t.Fatal(err)
	}
	defer ch.Close(context.Background())
	processes := map[string]*process{"unit": u.process, "authority": a.authority, "manager": a.manager}
	before, files := map[string]int{}, map[string]int{}
	for name, p := range processes {
		before[name], files[name] = p.memory(t), p.descriptors()
	}
	quiet, _ := measured(t, ch, length/2)
	end := f.begin(t)
	loud, calls := measured(t, ch, length)
	for name, p := range processes {
		got := p.memory(t)
		t.Logf("%s: %d MiB before, %d MiB in the flood", name, before[name], got)
		if got > before[name]+bound {
			t.Errorf("%s: got %d MiB, want at most %d more than %d", name, got, bound, before[name])
		}
	}
	did := end()
	t.Logf("%d connections of strangers, %d of them in vain, %d held at the end; p99 of %d honest requests %v, %v before", did.Tried, did.Failed, did.Held, calls, loud, quiet)
	if half := int64(f.half()); did.Held < half/2 || did.Tried-did.Failed < half+int64(f.Garbage) {
		t.Errorf("got %d connections, %d held, want at least %d and %d: nothing was flooded", did.Tried-did.Failed, did.Held, half+int64(f.Garbage), half/2)
	}
	for name, p := range processes {
		testworld.Within(t, 20*time.Second, name+" to close what strangers opened", func() bool { return p.descriptors() < files[name]+50 })
	}
}

// counting is a TEE that counts its evidence requests.
type counting struct {
	attest.Attester
	calls atomic.Int64
}

func (c *counting) Attest(ctx context.Context, data attest.ReportData) (attest.Evidence, error) {
	c.calls.Add(1)
	return c.Attester.Attest(ctx, data)
}

// TestCookieBeforeEvidence: however many clients ask for fresh evidence, a unit asks its
// TEE only for clients that return the cookie.
func TestCookieBeforeEvidence(t *testing.T) {
	c := New(t, scoring(time.Hour))
	c.StartManager()
	config := c.UnitConfig("scoring", "scoring 1")
	tee := &counting{Attester: config.Attester}
	config.Attester = tee
	r := c.StartWith(config, hello("unit"))
	attended(t, r)
	enrolled := tee.calls.Load()
	gateway := &http.Client{Transport: &http.Transport{TLSClientConfig: insecure()}}
	defer gateway.CloseIdleConnections()
	pin := unitauth.Pin{Genesis: c.Genesis, Task: "scoring"}
	ask := func(body []byte, cookie string) int {
		rq := testworld.Must(http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+c.manager.listen+wire.PathSession, bytes.NewReader(body)))
		rq.Header.Set("Content-Type", wire.TypeSession)
		rq.Header.Set(wire.FieldCookie, cookie)
		answer := testworld.Must(gateway.Do(rq))
		defer answer.Body.Close()
		return answer.StatusCode
	}
	for n := range 300 {
		body := testworld.Must(channel.NewClientHandshake(pin, channel.WantEvidence)).Request()
		cookie := strings.Repeat("A", n%60)
		if status := ask(body, cookie); status != http.StatusPreconditionRequired {
			t.Fatalf("without a cookie that holds: got %d, want %d", status, http.StatusPreconditionRequired)
		}
	}
	if got := tee.calls.Load(); got != enrolled {
		t.Errorf("evidence for strangers: got %d times, want 0", got-enrolled)
	}
	open := c.OpenConfig("scoring")
	open.FreshEvidence = true
	c.OpenChannel(open)
	if got := tee.calls.Load(); got != enrolled+1 {
		t.Errorf("evidence for a client with a cookie: got %d times, want 1", got-enrolled)
	}
}
