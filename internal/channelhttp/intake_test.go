package channelhttp

import (
	"bytes"
	"context"
	"encoding/base64"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/channel"
	"github.com/cohort-tee/cohort/internal/limit"
	"github.com/cohort-tee/cohort/internal/ohttp"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// busyTEE makes evidence only when goOn permits it, and signals each request on asked.
type busyTEE struct {
	device attest.Attester
	asked  chan struct{}
	goOn   chan struct{}
	calls  atomic.Int64
}

func (b *busyTEE) Attest(ctx context.Context, d attest.ReportData) (attest.Evidence, error) {
	b.calls.Add(1)
	b.asked <- struct{}{}
	<-b.goOn
	return b.device.Attest(context.WithoutCancel(ctx), d)
}

// fresh returns an open request from an address that asks for evidence and contains its
// cookie.
func (c *cluster) fresh(u *unit, from, sender string) *http.Request {
	body := testworld.Must(channel.NewClientHandshake(c.byTask(), channel.WantEvidence)).Request()
	r := testworld.Must(http.NewRequest(http.MethodPost, base+wire.PathSession, bytes.NewReader(body)))
	r.RemoteAddr = from + ":1"
	r.Header.Set("Content-Type", wire.TypeSession)
	r.Header.Set(wire.FieldCookie, base64.RawURLEncoding.EncodeToString(testworld.Must(u.Cookie(body, c.clock.Now()))))
	r.Header.Set(wire.FieldSender, sender)
	return r
}

// answered serves a request, and sends its status once the response is complete.
func answered(u *unit, r *http.Request) <-chan int {
	status := make(chan int, 1)
	go func() {
		a := serve(u.server, r)
		_, _ = io.Copy(io.Discard, a.Body)
		status <- a.StatusCode
	}()
	return status
}

// TestEvidenceInTurn: two hundred requests for evidence come from one address, from one
// sender behind a gateway. They delay another sender and another address by one piece of
// evidence each. Cancelled requests cost no evidence, and no more requests wait than there
// is room for.
func TestEvidenceInTurn(t *testing.T) {
	c := newCluster(t, 1, http.NotFoundHandler())
	u := c.units[0]
	tee := &busyTEE{device: c.Device("scoring 1"), asked: make(chan struct{}), goOn: make(chan struct{})}
	u.server.config.Attester = tee
	var refused atomic.Int64
	u.server.config.Crowded = func(err error) {
		if quota, ok := limit.QuotaOf(err); ok && quota == quotaEvidence {
			refused.Add(1)
		}
	}
	waiting := func(n int) {
		t.Helper()
		for range 2000 {
			if u.server.intake.evidence.Waiting() == n {
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
		t.Fatalf("got %d that wait, want %d", u.server.intake.evidence.Waiting(), n)
	}
	first := answered(u, c.fresh(u, "192.0.2.1", "a"))
	<-tee.asked
	ctx, leave := context.WithCancel(t.Context())
	for range 200 {
		answered(u, c.fresh(u, "192.0.2.1", "a").WithContext(ctx))
	}
	waiting(maxEvidence)
	sender := answered(u, c.fresh(u, "192.0.2.1", "b"))
	waiting(maxEvidence)
	address := answered(u, c.fresh(u, "192.0.2.2", ""))
	for range 2000 { // the newest of the two hundred make room
		if refused.Load() == 200+2-maxEvidence {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	waiting(maxEvidence)
	tee.goOn <- struct{}{} // the one in progress; then in turn: the busy address, the other address, the other sender
	for turn, who := range []<-chan int{first, nil, address, sender} {
		if who != nil {
			select {
			case got := <-who:
				if got != http.StatusOK {
					t.Errorf("turn %d: got %d, want 200", turn, got)
				}
			case <-time.After(10 * time.Second):
				t.Fatalf("turn %d: somebody else's", turn)
			}
		}
		<-tee.asked
		if turn < 3 {
			tee.goOn <- struct{}{}
		}
	}
	leave()
	waiting(0)
	tee.goOn <- struct{}{}
	if got := tee.calls.Load(); got != 5 {
		t.Errorf("the TEE was asked %d times, want 5", got)
	}
	if got := refused.Load(); got != 200+2-maxEvidence {
		t.Errorf("counted %d refusals, want %d", got, 200+2-maxEvidence)
	}
}

// stalledBody is a body that stalls at its end until over closes.
type stalledBody struct {
	io.Reader
	over <-chan struct{}
}

func (s stalledBody) Read(p []byte) (int, error) {
	if n, err := s.Reader.Read(p); err == nil {
		return n, nil
	}
	<-s.over
	return 0, io.EOF
}

// TestStalledOneOffs: stalled one-off requests occupy none of the places for one-off
// requests, wherever they stall, in one piece or in chunks, and however many they are.
// Requests from one address take at most half of the bytes that are read at a time.
func TestStalledOneOffs(t *testing.T) {
	c := newCluster(t, 0, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") }))
	c.limit.OneOffs = 2
	u := c.start()
	keys := c.keysOf(u, c.byTask())
	recorded := c.recorded()
	for _, whole := range []bool{true, false} {
		if _, err := say(t, c.oneOffs(keys, whole), "GET", "/", ""); err != nil {
			t.Fatal(err)
		}
	}
	bodies := recorded()
	c.tampers = nil
	over := make(chan struct{})
	var strangers []<-chan int
	for i, kind := range []string{wire.TypeOneOff, wire.TypeChunkedOneOff} {
		whole := bodies[i]
		for _, sent := range []int{0, 1, ohttp.HeaderSize, len(whole) / 2, len(whole) - 1} {
			for range 20 {
				r := testworld.Must(http.NewRequest(http.MethodPost, base+wire.PathOneOff, stalledBody{bytes.NewReader(whole[:sent]), over}))
				r.RemoteAddr, r.ContentLength = "192.0.2.1:1", int64(len(whole))
				r.Header.Set("Content-Type", kind)
				strangers = append(strangers, answered(u, r))
			}
		}
	}
	for range 200 {
		if u.server.intake.reading.InUse() > 0 {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	if got := u.server.intake.oneOffs.InUse(); got != 0 {
		t.Errorf("got %d places taken by what stalls, want none", got)
	}
	for _, whole := range []bool{true, false} {
		if got, err := say(t, c.oneOffs(keys, whole), "GET", "/", ""); err != nil || got != "ok" {
			t.Errorf("beside them: got %q, %v", got, err)
		}
	}
	close(over)
	for _, s := range strangers {
		if got := <-s; got != http.StatusBadRequest {
			t.Errorf("one that ended too soon: got %d, want 400", got)
		}
	}
	if in := u.server.intake; in.oneOffs.InUse() != 0 || in.reading.InUse() != 0 {
		t.Errorf("in the end: got %d places and %d bytes taken", in.oneOffs.InUse(), in.reading.InUse())
	}
}

// TestQuotasOfUnit: a refusal by a quota names the quota; other refusals name none.
func TestQuotasOfUnit(t *testing.T) {
	c := newCluster(t, 1, http.NotFoundHandler())
	u := c.units[0]
	var told []string
	u.server.config.Crowded = func(err error) { quota, _ := limit.QuotaOf(err); told = append(told, quota) }
	ask := func(kind string) (int, api.Problem) {
		r := testworld.Must(http.NewRequest(http.MethodPost, base+wire.PathOneOff, strings.NewReader("short")))
		r.Header.Set("Content-Type", kind)
		r.RemoteAddr = "192.0.2.1:1"
		a := serve(u.server, r)
		var p api.Problem
		_ = api.Decode(testworld.Must(io.ReadAll(a.Body)), &p)
		return a.StatusCode, p
	}
	if status, p := ask(wire.TypeOneOff); status != 400 || p.Rule != "" {
		t.Errorf("no quota: got %d %v, want no rule", status, p)
	}
	u.server.intake.reading = limit.NewShares(quotaReading, 3*leastReading)
	for _, from := range []string{"192.0.2.1", "192.0.2.2"} {
		if err := u.server.intake.reading.Acquire(netip.MustParseAddr(from), leastReading); err != nil {
			t.Fatal(err)
		}
	}
	if status, p := ask(wire.TypeOneOff); status != 429 || p.Reason != wire.TooMany || p.Rule != quotaReading+", of one address" {
		t.Errorf("more than its share: got %d %v", status, p)
	}
	if len(told) != 2 || told[1] != quotaReading {
		t.Errorf("told %q, want no quota and %q", told, quotaReading)
	}
}

// TestMadeUpSessions: requests in sessions that do not exist cause round trips to the
// manager at a bounded rate for each address.
func TestMadeUpSessions(t *testing.T) {
	c := newCluster(t, 1, http.NotFoundHandler())
	u := c.units[0]
	var pulls atomic.Int64
	u.server.intake.now = c.clock.Now
	u.server.config.Relay = countingRelay{u.server.config.Relay, &pulls}
	for n := range 4 * pullsEach {
		h := wire.Header{Number: 1, NotAfter: c.clock.Now().Add(time.Minute), Session: wire.SessionID{byte(n), byte(n >> 8), 1}}.Encode()
		r := testworld.Must(http.NewRequest(http.MethodPost, base+wire.PathRequest, bytes.NewReader(h[:])))
		r.Header.Set("Content-Type", wire.TypeRequest)
		r.RemoteAddr = "192.0.2.1:1"
		a := serve(u.server, r)
		io.Copy(io.Discard, a.Body)
		if a.StatusCode != http.StatusPreconditionRequired {
			t.Fatalf("request %d: got %d, want 428", n, a.StatusCode)
		}
	}
	if got := pulls.Load(); got != 2*pullsEach {
		t.Errorf("got %d pulls for %d requests at once, want %d", got, 4*pullsEach, 2*pullsEach)
	}
}

// countingRelay counts the requests for copies.
type countingRelay struct {
	Relay
	pulls *atomic.Int64
}

func (r countingRelay) RequestCopy(ctx context.Context, id wire.SessionID) ([]byte, error) {
	r.pulls.Add(1)
	return r.Relay.RequestCopy(ctx, id)
}
