package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"time"
)

// Limits of one request, and the time a client may take for its part of it.
const (
	maxBody       = 64 << 10
	maxPrompt     = 8 << 10 // bytes
	maxTokens     = 2000
	defaultTokens = 64
	maxDelay      = 250 // ms
	readTime      = 15 * time.Second
	writeTime     = 15 * time.Second // for each token
)

// question is what is asked for.
type question struct {
	Prompt    string `json:"prompt"`
	MaxTokens int    `json:"max_tokens"` // how many come; 0 is the default
	Seed      uint64 `json:"seed"`
	DelayMS   int    `json:"delay_ms"` // before each token, as a larger model would take
}

// handler serves one model. It keeps no state.
func handler(m *model) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { describe(w, m) })
	mux.HandleFunc("POST /chat", func(w http.ResponseWriter, r *http.Request) { serveChat(w, r, m) })
	mux.HandleFunc("POST /v1/chat/completions", func(w http.ResponseWriter, r *http.Request) { serveCompletion(w, r, m) })
	mux.HandleFunc("GET /v1/models", serveModels)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	return mux
}

// describe says what the model is and what may be asked of it.
func describe(w http.ResponseWriter, m *model) {
	writeJSON(w, http.StatusOK, map[string]any{
		"service": "chat", "model": "harbour", "tokens": m.tokens, "digest": "sha256:" + m.digest,
		"max_tokens": maxTokens, "max_prompt": maxPrompt, "max_delay_ms": maxDelay,
	})
}

// serveChat streams the continuation of a prompt.
func serveChat(w http.ResponseWriter, r *http.Request, m *model) {
	q, status, err := readQuestion(w, r)
	if err != nil {
		writeJSON(w, status, map[string]string{"error": err.Error()})
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no") // nginx holds streams back otherwise
	// An error means that the client has disconnected.
	_ = stream(r.Context(), w, m, q)
}

// stream writes one event for each token and a last one that says how many
// there were: a stream without it is not whole.
func stream(ctx context.Context, w http.ResponseWriter, m *model, q question) error {
	sent := 0
	for token := range m.generate(q.Prompt, q.Seed) {
		if sent == q.MaxTokens {
			break
		}
		if err := pause(ctx, time.Duration(q.DelayMS)*time.Millisecond); err != nil {
			return err
		}
		if err := event(w, "token", map[string]any{"index": sent, "token": token}); err != nil {
			return err
		}
		sent++
	}
	return event(w, "done", map[string]any{"tokens": sent})
}

// event writes one server-sent event and pushes it out.
func event(w http.ResponseWriter, name string, data any) error {
	text, err := json.Marshal(data)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(w, "event: %s\n", name); err != nil {
		return err
	}
	return dataEvent(w, text)
}

// dataEvent writes the data of a server-sent event and pushes it out.
func dataEvent(w http.ResponseWriter, data []byte) error {
	out := http.NewResponseController(w)
	if err := out.SetWriteDeadline(time.Now().Add(writeTime)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	if _, err := fmt.Fprintf(w, "data: %s\n\n", data); err != nil {
		return err
	}
	return out.Flush()
}

// pause blocks for d, or until ctx is done.
func pause(ctx context.Context, d time.Duration) error {
	if d == 0 {
		return ctx.Err()
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// readQuestion reads a bounded, strict body. With an error it returns the status of
// the response.
func readQuestion(w http.ResponseWriter, r *http.Request) (question, int, error) {
	var q question
	if status, err := readJSON(w, r, func(body *json.Decoder) error {
		body.DisallowUnknownFields()
		return body.Decode(&q)
	}); err != nil {
		return q, status, err
	}
	if q.MaxTokens == 0 {
		q.MaxTokens = defaultTokens
	}
	return q, http.StatusUnprocessableEntity, q.check()
}

// readJSON reads a bounded body that is exactly one JSON value. With an error it returns the
// status of the response.
func readJSON(w http.ResponseWriter, r *http.Request, decode func(*json.Decoder) error) (status int, err error) {
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		return http.StatusUnsupportedMediaType, errors.New("want Content-Type: application/json")
	}
	// For the body only: a deadline that passes while it streams would end it.
	in := http.NewResponseController(w)
	if err := in.SetReadDeadline(time.Now().Add(readTime)); err == nil {
		defer func() { _ = in.SetReadDeadline(time.Time{}) }()
	}
	body := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	if err = decode(body); err == nil {
		err = end(body)
	}
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return http.StatusRequestEntityTooLarge, fmt.Errorf("body: want at most %d bytes", maxBody)
	case err != nil:
		return http.StatusBadRequest, fmt.Errorf("reading body: %w", err)
	}
	return 0, nil
}

// check tells the first thing that is wrong with a question.
func (q question) check() error {
	switch {
	case len(q.Prompt) > maxPrompt:
		return fmt.Errorf("prompt: got %d bytes, want at most %d", len(q.Prompt), maxPrompt)
	case q.MaxTokens < 0 || q.MaxTokens > maxTokens:
		return fmt.Errorf("max_tokens: got %d, want 1 to %d", q.MaxTokens, maxTokens)
	case q.DelayMS < 0 || q.DelayMS > maxDelay:
		return fmt.Errorf("delay_ms: got %d, want 0 to %d", q.DelayMS, maxDelay)
	}
	return nil
}

// end refuses what follows a JSON value.
func end(d *json.Decoder) error {
	switch _, err := d.Token(); {
	case err == io.EOF:
		return nil
	case err != nil:
		return fmt.Errorf("reading what follows the JSON value: %w", err)
	}
	return errors.New("something follows the JSON value")
}

// writeJSON writes a response. An error means that the client has disconnected.
func writeJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}
