// Command unit is a unit in a process of its own, for tests that read its
// memory. Its TEE is played by the test: an HTTP server signs its evidence.
//
// Its one argument is its configuration in JSON. It prints where it is, also in
// JSON, and ends with its standard input.
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/unit"
)

// config is what the test gives.
type config struct {
	Authority string        `json:"authority"`
	Genesis   attest.Digest `json:"genesis"`
	Task      string        `json:"task"`
	Device    string        `json:"device"` // URL of the TEE
	Manager   string        `json:"manager"`
	ManagerCA string        `json:"manager_ca"` // file
	HostClock bool          `json:"host_clock"` // the file "clock" says how far the host has set its clock off
}

// clock is the machine's clock as its host has set it.
func (c config) clock() func() (time.Time, time.Duration) {
	if !c.HostClock {
		return nil
	}
	begin := time.Now()
	return func() (time.Time, time.Duration) {
		now := time.Now()
		b, _ := os.ReadFile("clock") // none: it is right
		off, _ := time.ParseDuration(string(b))
		return now.Round(0).Add(off), now.Sub(begin)
	}
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	var c config
	if err := json.Unmarshal([]byte(os.Args[1]), &c); err != nil {
		return err
	}
	ca, err := os.ReadFile(c.ManagerCA)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	u, err := unit.Start(ctx, unit.Config{
		Authorities: []string{c.Authority}, Genesis: c.Genesis, Task: c.Task, Attester: device(c.Device),
		Manager:  unit.Manager{URL: c.Manager, CA: pool},
		Sessions: 1 << 21,
		Clock:    c.clock(),
		Log:      slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		return err
	}
	defer u.Close()
	served, collected, err := listen()
	if err != nil {
		return err
	}
	go http.Serve(collected, http.HandlerFunc(collect))
	done := make(chan error, 1)
	h, err := app()
	if err != nil {
		return err
	}
	go func() { done <- u.Serve(ctx, served, h) }()
	fmt.Printf("{\"unit\":%q,\"collect\":%q}\n", u.ID().String(), "http://"+collected.Addr().String())
	io.Copy(io.Discard, os.Stdin)
	cancel()
	return <-done
}

func listen() (served, collected net.Listener, err error) {
	if served, err = net.Listen("tcp", "127.0.0.1:0"); err == nil {
		collected, err = net.Listen("tcp", "127.0.0.1:0")
	}
	return served, collected, err
}

// collect lets the collector run until what nothing refers to is gone.
func collect(http.ResponseWriter, *http.Request) {
	for range 3 {
		runtime.GC()
	}
}

// app is what the unit serves.
func app() (http.Handler, error) {
	executed, err := os.OpenFile("executed", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	mux := http.NewServeMux()
	mux.Handle("/", &service{})
	mux.HandleFunc("/count", func(w http.ResponseWriter, r *http.Request) { count(w, r, executed) })
	mux.HandleFunc("/tokens", tokens)
	return mux, err
}

// count writes the request's mark into a file, which outlives the process, and
// answers with it and the unit's id.
func count(w http.ResponseWriter, r *http.Request, executed io.Writer) {
	caller, _ := unit.CallerOf(r.Context())
	mark := r.Header.Get("Mark")
	if _, err := io.WriteString(executed, mark+"\n"); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	fmt.Fprintf(w, "%s %s", caller.Unit, mark)
}

// tokens streams 2,000 tokens, one a millisecond.
func tokens(w http.ResponseWriter, r *http.Request) {
	caller, _ := unit.CallerOf(r.Context())
	w.Header().Set("Unit", caller.Unit.String())
	for i := range 2000 {
		fmt.Fprintf(w, "token-%d ", i)
		if http.NewResponseController(w).Flush() != nil {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// service answers with a digest of what it was sent, and keeps both.
type service struct {
	mu   sync.Mutex
	kept [][]byte // guarded by mu
}

func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<10))
	if err != nil {
		http.Error(w, "no body", http.StatusBadRequest)
		return
	}
	answer := sha256.Sum256(append([]byte("answer"), body...))
	s.mu.Lock()
	s.kept = append(s.kept, body, answer[:])
	s.mu.Unlock()
	w.Write(answer[:])
}

// device is the TEE.
type device string

func (d device) Attest(ctx context.Context, data attest.ReportData) (e attest.Evidence, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, string(d)+"/attest", bytes.NewReader(data[:]))
	if err != nil {
		return e, err
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return e, err
	}
	defer answer.Body.Close()
	return e, json.NewDecoder(answer.Body).Decode(&e)
}
