// Command chat is an ordinary HTTP service that knows nothing of Cohort: a small
// text generator that streams its tokens as server-sent events. It listens on
// 127.0.0.1 at the port in PORT, where the agent `cohort unit` expects it.
//
//	POST /chat     {"prompt": "The keeper", "max_tokens": 40, "seed": 7}
//	POST /v1/chat/completions, GET /v1/models   the same for OpenAI's SDKs
//	GET  /         what the model is
//	GET  /healthz  200 once it serves
//
// What it generates is a pure function of the request, so a repeated POST
// changes nothing: callers may mark it with an Idempotency-Key.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// graceTime is how long streams under way may still take when the program is
// told to stop. What takes longer is cut off, without its last event.
const graceTime = 5 * time.Second

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, cmp.Or(os.Getenv("PORT"), "8080")); err != nil {
		fmt.Fprintln(os.Stderr, "chat:", err)
		os.Exit(1)
	}
}

// run serves until ctx is done, then lets streams under way finish.
func run(ctx context.Context, port string) error {
	listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", port))
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler:           handler(train(embedded)),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       readTime,             // a handler that has read its request takes it off
		WriteTimeout:      readTime + writeTime, // a stream moves it on with each token
		IdleTimeout:       time.Minute,
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.Background(), graceTime)
	defer cancel()
	if err = server.Shutdown(grace); err != nil {
		err = errors.Join(fmt.Errorf("cutting off streams after %v: %w", graceTime, err), server.Close())
	}
	if serveErr := <-failed; !errors.Is(serveErr, http.ErrServerClosed) {
		err = errors.Join(err, serveErr)
	}
	return err
}
