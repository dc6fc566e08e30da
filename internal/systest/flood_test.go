package systest

import (
	"bytes"
	"context"
	"crypto/rand"
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
	"github.com/cohort-tee/cohort/internal/wire"
)

// flood is what strangers on several addresses do to listeners.
type flood struct {
	Targets []target
	Garbage int // connections a second that send noise

	tried, failed, held atomic.Int64
}

// target is a listener.
type target struct {
	Address, Begin string // Begin is how what it waits for begins
	Half           int    // handshakes or requests that begin and go no further, at once
}

// half is how many begin and go no further at all targets together.
func (f *flood) half() (n int) {
	for _, at := range f.Targets {
		n += at.Half
	}
	return n
}

// Beginnings that are not gone on with.
const (
	recordHead  = "\x16\x03\x01\x02\x00" // of a TLS handshake
	requestHead = "POST /.well-known/cohort/session HTTP/1.1\r\nHost: "
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

// run floods until ctx ends.
func (f *flood) run(ctx context.Context) {
	var all sync.WaitGroup
	for _, to := range f.Targets {
		for n := range to.Half {
			all.Go(func() {
				for ctx.Err() == nil {
					select { // a second on average, and not all at once
					case <-time.After(mathrand.N(2 * time.Second)):
						f.hold(ctx, n, to)
					case <-ctx.Done():
					}
				}
			})
		}
	}
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

// hold begins a handshake or a request and waits until the other side has enough of
// it.
func (f *flood) hold(ctx context.Context, n int, to target) {
	c, err := f.dial(ctx, n, to)
	if err != nil {
		time.Sleep(100 * time.Millisecond)
		return
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	_, _ = io.WriteString(c, to.Begin)
	f.held.Add(1)
	defer f.held.Add(-1)
	_, _ = c.Read(make([]byte, 1))
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

// flooded is what strangers did.
type flooded struct {
	Tried, Failed int64 // connections: all, and those in vain
	Held          int64 // connections at the end
}

// floodedFile is where they write it at their end.
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
		if err := os.WriteFile(floodedFile, must(json.Marshal(flooded{f.tried.Load(), f.failed.Load(), held})), 0o600); err != nil {
			t.Error(err)
		}
	})
	return struct{}{}
}

// begin floods from a process of its own, which has what nobody else wants of the
// cores, as strangers have their own machines. It ends them when their result is asked
// for.
func (f *flood) begin(t *testing.T) (end func() flooded) {
	t.Helper()
	var none struct{}
	strangers := startProcess(t, roleCommand("strangers", f, "nice", "-n", "19"), &none)
	return func() (did flooded) {
		strangers.end(nil)
		if err := json.Unmarshal(must(os.ReadFile(filepath.Join(strangers.dir, floodedFile))), &did); err != nil {
			t.Errorf("strangers: %v", err)
		}
		return did
	}
}

// measured is how an honest client fared for a while: one call after the other.
func measured(t *testing.T, ch *client.Channel, length time.Duration) (p99 time.Duration, calls int) {
	t.Helper()
	var took []time.Duration
	for begin := time.Now(); time.Since(begin) < length; time.Sleep(5 * time.Millisecond) {
		at := time.Now()
		r := must(http.NewRequestWithContext(t.Context(), http.MethodPost, scoringURL+"/", strings.NewReader("honest")))
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

// memory is what a process holds, in MiB, and descriptors how many files.
func (p *process) memory(t *testing.T) (mib int) {
	t.Helper()
	m := regexp.MustCompile(`VmRSS:\s+(\d+) kB`).FindSubmatch(must(os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))))
	fmt.Sscan(string(m[1]), &mib)
	return mib / 1024
}

func (p *process) descriptors() int { return len(must(os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.pid)))) }

// TestFlood: half-open handshakes and noise from many addresses, at a unit, the
// authority and the gateway. Honest requests are answered all the while, memory
// stays within the bound on connections, and what was opened is closed again.
func TestFlood(t *testing.T) {
	f, tenth := &flood{Garbage: 100}, 30
	length, bound := 3*time.Second, 64 // MiB above what it was
	if full() {
		f.Garbage, tenth, length, bound = 1_000, 1_000, time.Minute, 400
	}
	a := newApart(t, time.Hour)
	u := a.start(buildUnit(t, ""))
	found := regexp.MustCompile(`"unit found" unit=\S+ task=scoring address=(\S+)`).FindSubmatch(must(os.ReadFile(filepath.Join(a.manager.dir, "log"))))
	f.Targets = []target{
		{string(found[1]), recordHead, 4 * tenth},
		{strings.TrimPrefix(a.place.URL, "https://"), recordHead, tenth}, // that noise fills up to its 1,024 connections
		{a.gateway.Gateway, requestHead, 5 * tenth},
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
		wait(t, 20*time.Second, name+" to close what strangers opened", func() bool { return p.descriptors() < files[name]+50 })
	}
}

// counting is a TEE that counts what it is asked for.
type counting struct {
	attest.Attester
	calls atomic.Int64
}

func (c *counting) Attest(ctx context.Context, data attest.ReportData) (attest.Evidence, error) {
	c.calls.Add(1)
	return c.Attester.Attest(ctx, data)
}

// TestCookieBeforeEvidence: however many ask for fresh evidence, a unit's TEE
// makes none for who has not come back with the cookie.
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
	pin := channel.Pin{Genesis: c.Genesis, Task: "scoring"}
	ask := func(body []byte, cookie string) int {
		rq := must(http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+c.manager.listen+wire.PathSession, bytes.NewReader(body)))
		rq.Header.Set("Content-Type", wire.TypeSession)
		rq.Header.Set(wire.FieldCookie, cookie)
		answer := must(gateway.Do(rq))
		defer answer.Body.Close()
		return answer.StatusCode
	}
	for n := range 300 {
		body := must(channel.NewOpening(pin, channel.WantEvidence)).Request()
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
	c.Open(open)
	if got := tee.calls.Load(); got != enrolled+1 {
		t.Errorf("evidence for a client with a cookie: got %d times, want 1", got-enrolled)
	}
}
