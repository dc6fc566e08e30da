// Command scoring is an ordinary HTTP service that knows nothing of Cohort: a
// small credit model that scores JSON applicants. It listens on 127.0.0.1 at
// the port in PORT, where the agent `cohort unit` expects it.
//
//	POST /score    {"applicants": [{"id": "a-1", "features": {…}}]}
//	GET  /         what the model is
//	GET  /healthz  200 once it serves
//
// Scoring is a pure function of the request, so a repeated POST changes
// nothing: callers may mark it with an Idempotency-Key.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	path := flag.String("model", "", "model file (default: the embedded one)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *path, cmp.Or(os.Getenv("PORT"), "8080")); err != nil {
		fmt.Fprintln(os.Stderr, "scoring:", err)
		os.Exit(1)
	}
}

// run serves until ctx is done, then lets requests in flight finish.
func run(ctx context.Context, path, port string) error {
	file := embedded
	if path != "" {
		var err error
		if file, err = os.ReadFile(path); err != nil {
			return fmt.Errorf("reading model: %w", err)
		}
	}
	m, err := parseModel(file)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", port))
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler:           handler(m),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       15 * time.Second,
		WriteTimeout:      15 * time.Second,
		IdleTimeout:       time.Minute,
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err = server.Shutdown(grace)
	if serveErr := <-failed; !errors.Is(serveErr, http.ErrServerClosed) {
		err = errors.Join(err, serveErr)
	}
	return err
}
