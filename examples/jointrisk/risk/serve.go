package risk

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"time"
)

// pathRecords is where a holder answers the joiner.
const pathRecords = "/records"

// Holder serves one side's table to the joiner.
//
//	GET /records?salt=HEX  the records under that salt; each is a line of the log
//	GET /                  what the table is, without any of it
//	GET /healthz           200 once it serves
//
// Whoever reaches it may have the records: the agent before it lets in the one
// role of the group that may call this one.
func Holder(side Side, t Table) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+pathRecords, func(w http.ResponseWriter, r *http.Request) {
		salt, err := hex.DecodeString(r.URL.Query().Get("salt"))
		if err != nil || len(salt) != SaltSize {
			answer(w, http.StatusBadRequest, map[string]string{"error": fmt.Sprintf("salt: want %d hexadecimal digits", 2*SaltSize)})
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		log.Printf("%s: records handed out", side)      // so that it can be counted what leaves
		_, _ = w.Write(t.Records([SaltSize]byte(salt))) // a joiner that has gone is nobody to tell
	})
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]string{"service": "jointrisk", "side": string(side)})
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	return mux
}

// Joiner computes the statistic from the holders at the two base URLs.
//
//	GET /statistic  a [Statistic], computed anew
//	GET /           what this is
//	GET /healthz    200 once it serves
func Joiner(bank, insurer string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /statistic", func(w http.ResponseWriter, r *http.Request) {
		s, err := run(r.Context(), bank, insurer)
		if err != nil {
			answer(w, http.StatusBadGateway, map[string]string{"error": err.Error()})
			return
		}
		answer(w, http.StatusOK, s)
	})
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]any{"service": "jointrisk", "least_cell": LeastCell})
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	return mux
}

// run asks both holders under a salt of its own and joins what they answer.
func run(ctx context.Context, bank, insurer string) (Statistic, error) {
	var salt [SaltSize]byte
	_, _ = rand.Read(salt[:]) // never fails
	query := pathRecords + "?salt=" + hex.EncodeToString(salt[:])
	type opened struct {
		body io.ReadCloser
		err  error
	}
	other := make(chan opened, 1)
	go func() {
		body, err := open(ctx, insurer+query)
		other <- opened{body, err}
	}()
	left, err := open(ctx, bank+query)
	right := <-other
	if left != nil {
		defer left.Close()
	}
	if right.body != nil {
		defer right.body.Close()
	}
	if err := errors.Join(err, right.err); err != nil {
		return Statistic{}, err
	}
	return Join(left, right.body)
}

// open asks a holder for its records.
func open(ctx context.Context, url string) (io.ReadCloser, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("asking a holder: %w", err)
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, fmt.Errorf("asking a holder: %w", err)
	}
	if answer.StatusCode != http.StatusOK {
		answer.Body.Close()
		return nil, fmt.Errorf("asking a holder: got status %s, want 200", answer.Status)
	}
	return answer.Body, nil
}

// answer writes JSON. A client that has gone is nobody to tell.
func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

// Serve serves on 127.0.0.1 at a port until ctx is done, then lets requests in
// flight finish.
func Serve(ctx context.Context, port string, h http.Handler) error {
	listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", port))
	if err != nil {
		return err
	}
	server := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: time.Minute, WriteTimeout: time.Minute, IdleTimeout: time.Minute}
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
