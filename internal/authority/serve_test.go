package authority

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// appraiseTrust appraises the evidence of a trust response as a client does.
func appraiseTrust(t *testing.T, w *world, response api.TrustResponse, approved policy.Approved, nonce []byte) {
	t.Helper()
	var evidence attest.Evidence
	if err := json.Unmarshal(response.Evidence, &evidence); err != nil {
		t.Fatal(err)
	}
	head := approved.PolicyHead()
	result, err := attesttest.Verifier().Appraise(attest.Question{
		Evidence: evidence, ReportData: attest.BindReportData(wire.LabelTrust, nonce, w.root[:], head[:]), Rules: approved.Rules(), At: noon,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := approved.AdmitAuthority(result); err != nil {
		t.Error(err)
	}
}

// slow is an attester that waits for a signal before it responds, so that a request stays in
// progress.
type slow struct {
	attest.Attester
	asked, answer chan struct{}
}

func (s *slow) Attest(ctx context.Context, data attest.ReportData) (attest.Evidence, error) {
	s.asked <- struct{}{}
	<-s.answer
	return s.Attester.Attest(ctx, data)
}

// TestShutdown shuts down the server during a request: the request is served, the listener is
// closed, and no goroutine is left.
func TestShutdown(t *testing.T) {
	w := newWorld(t)
	a := w.open()
	before := runtime.NumGoroutine()
	listener := testworld.Must(net.Listen("tcp", "127.0.0.1:0"))
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- a.Serve(ctx, listener) }()
	client := testworld.Must(api.NewAuthority("https://"+listener.Addr().String(), w.clientTLS(a)))
	testworld.Must(client.Policy(t.Context()))

	s := &slow{a.attester, make(chan struct{}), make(chan struct{})}
	a.attester = s
	answered := make(chan error, 1)
	go func() {
		_, err := client.Trust(t.Context(), api.TrustQuery{Task: "scoring"})
		answered <- err
	}()
	<-s.asked
	stop()
	for { // wait until the listener is closed
		c, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			break
		}
		c.Close()
	}
	select {
	case err := <-served:
		t.Fatalf("Serve returned %v with a request under way", err)
	default:
	}
	close(s.answer)
	if err := <-answered; err != nil {
		t.Errorf("the request under way: %v", err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	client.Close()
	for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<16)
			t.Fatalf("got %d goroutines, want %d:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
	}
}

// TestServeBadListener: serving on a closed listener returns an error.
func TestServeBadListener(t *testing.T) {
	w := newWorld(t)
	listener := testworld.Must(net.Listen("tcp", "127.0.0.1:0"))
	listener.Close()
	if err := w.open().Serve(t.Context(), listener); !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v, want %v", err, net.ErrClosed)
	}
}

// TestHalfOpen opens more connections than the bound and sends nothing on them. An honest client
// is still served.
func TestHalfOpen(t *testing.T) {
	w := newWorld(t)
	c := w.config("authority")
	c.Limits.Connections = 8
	a := testworld.Must(Open(t.Context(), c))
	client, address := w.serve(a)
	first := testworld.Must(net.Dial("tcp", strings.TrimPrefix(address, "https://")))
	defer first.Close()
	for range 40 {
		silent := testworld.Must(net.Dial("tcp", strings.TrimPrefix(address, "https://")))
		defer silent.Close()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second) // shorter than headerWait
	defer cancel()
	if _, err := client.Policy(ctx); err != nil {
		t.Errorf("an honest client: %v", err)
	}
	first.SetReadDeadline(time.Now().Add(4 * time.Second))
	if _, err := first.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !strings.Contains(fmt.Sprint(err), "reset") {
		t.Errorf("the connection that waited longest: %v, want it closed", err)
	}
}
