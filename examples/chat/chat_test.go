package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/loopback"
	"github.com/cohort-tee/cohort/internal/testworld/bubble"
)

const good = `{"prompt":"The keeper","max_tokens":12,"seed":7}`

// first are the first n tokens of a continuation, as one text.
func first(m *model, prompt string, seed uint64, n int) string {
	var text strings.Builder
	for token := range m.generate(prompt, seed) {
		if n--; n < 0 {
			break
		}
		text.WriteString(token)
	}
	return text.String()
}

func TestTokens(t *testing.T) {
	got := tokens("  The wind: north, they\nsay?! . ")
	want := []string{"The", "wind", ":", "north", ",", "they", "say", "?", "!", "."}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestGenerateIsAFunctionOfPromptAndSeed(t *testing.T) {
	m := train(embedded)
	one := first(m, "The keeper", 7, 200)
	if two := first(train(embedded), "The keeper", 7, 200); one != two {
		t.Errorf("got %q, then %q", one, two)
	}
	if other := first(m, "The keeper", 8, 200); one == other {
		t.Error("another seed gave the same text")
	}
	// Both prompts end in the same words.
	if other := first(m, "Now The keeper", 7, 200); one == other {
		t.Error("another prompt gave the same text")
	}
}

// TestGenerateFollowsTheText demands that each pair of tokens stands in the text.
func TestGenerateFollowsTheText(t *testing.T) {
	m := train("One day. Two days. One night, two nights. One day more.")
	for _, prompt := range []string{"", "One", "words it does not know", "Two days"} {
		said := tokens(prompt)
		last := "."
		if len(said) > 0 && m.after1[said[len(said)-1]] != nil {
			last = said[len(said)-1]
		}
		for _, next := range tokens(first(m, prompt, 3, 500)) {
			if !slices.Contains(m.after1[last], next) {
				t.Fatalf("prompt %q: got %q after %q, want one of %q", prompt, next, last, m.after1[last])
			}
			last = next
		}
	}
}

// TestStream reads a whole stream of the longest length.
func TestStream(t *testing.T) {
	srv := httptest.NewServer(handler(train(embedded)))
	defer srv.Close()
	resp, err := srv.Client().Post(srv.URL+"/chat", "application/json", strings.NewReader(`{"prompt":"The bay","max_tokens":2000,"seed":1}`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got := resp.Header.Get("Content-Type"); got != "text/event-stream" {
		t.Errorf("got content type %q, want text/event-stream", got)
	}
	var text strings.Builder
	count := 0
	events := events(t, resp)
	for name, data := range events {
		if name == "done" {
			if got := int(data["tokens"].(float64)); got != count || count != 2000 {
				t.Errorf("got %d tokens and %d in the last event, want 2000", count, got)
			}
			continue
		}
		if got := int(data["index"].(float64)); got != count {
			t.Fatalf("got index %d, want %d", got, count)
		}
		text.WriteString(data["token"].(string))
		count++
	}
	if want := first(train(embedded), "The bay", 1, 2000); text.String() != want {
		t.Errorf("got %.60q…, want %.60q…", text.String(), want)
	}
}

// events yields the events of a response up to the last; a stream that ends
// before it is an error.
func events(t *testing.T, resp *http.Response) func(func(string, map[string]any) bool) {
	return func(yield func(string, map[string]any) bool) {
		name := ""
		lines := bufio.NewScanner(resp.Body)
		for lines.Scan() {
			line := lines.Text()
			if n, ok := strings.CutPrefix(line, "event: "); ok {
				name = n
			}
			if text, ok := strings.CutPrefix(line, "data: "); ok {
				var data map[string]any
				if err := json.Unmarshal([]byte(text), &data); err != nil {
					t.Error(err)
				}
				if !yield(name, data) {
					return
				}
			}
		}
		if err := lines.Err(); err != nil || name != "done" {
			t.Errorf("the stream ended with event %q and error %v, want done", name, err)
		}
	}
}

// flushed is a writer that notes when it was flushed.
type flushed struct {
	*httptest.ResponseRecorder
	began time.Time
	at    []time.Duration
}

func (f *flushed) Flush() { f.at = append(f.at, time.Since(f.began)) }

// TestTokensComeOneByOne looks at when each token leaves, with a client that goes
// away meanwhile.
func TestTokensComeOneByOne(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 160*time.Millisecond)
		defer cancel()
		w := &flushed{ResponseRecorder: httptest.NewRecorder(), began: time.Now()}
		err := stream(ctx, w, train(embedded), question{MaxTokens: 2000, DelayMS: 50})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want the client's end", err)
		}
		if want := []time.Duration{50 * time.Millisecond, 100 * time.Millisecond, 150 * time.Millisecond}; !slices.Equal(w.at, want) {
			t.Errorf("got tokens at %v, want %v", w.at, want)
		}
		if body := w.Body.String(); strings.Count(body, "event: token") != 3 || strings.Contains(body, "event: done") {
			t.Errorf("got %q, want 3 tokens and no end", body)
		}
	})
}

func TestRequests(t *testing.T) {
	srv := httptest.NewServer(handler(train(embedded)))
	defer srv.Close()
	tests := []struct {
		name, method, path, kind, body string
		status                         int
		want                           string
	}{
		{"describe", "GET", "/", "", "", 200, `"service":"chat"`},
		{"health", "GET", "/healthz", "", "", 200, "ok"},
		{"chat", "POST", "/chat", "application/json", good, 200, `{"tokens":12}`},
		{"charset", "POST", "/chat", "application/json; charset=utf-8", good, 200, `"index":0`},
		{"nothing given", "POST", "/chat", "application/json", "{}", 200, `{"tokens":64}`},
		{"longest prompt", "POST", "/chat", "application/json", prompt(maxPrompt), 200, "event: done"},
		{"no such path", "GET", "/other", "", "", 404, ""},
		{"wrong method", "GET", "/chat", "", "", 405, ""},
		{"wrong type", "POST", "/chat", "text/plain", good, 415, "application/json"},
		{"not json", "POST", "/chat", "application/json", "{", 400, "reading body"},
		{"trailing", "POST", "/chat", "application/json", good + "{}", 400, "follows"},
		{"unknown field", "POST", "/chat", "application/json", `{"promt":""}`, 400, "promt"},
		{"prompt too long", "POST", "/chat", "application/json", prompt(maxPrompt + 1), 422, "8193 bytes"},
		{"too many tokens", "POST", "/chat", "application/json", `{"max_tokens":2001}`, 422, "2001"},
		{"tokens below none", "POST", "/chat", "application/json", `{"max_tokens":-1}`, 422, "max_tokens"},
		{"delay too long", "POST", "/chat", "application/json", `{"delay_ms":251}`, 422, "251"},
		{"delay below none", "POST", "/chat", "application/json", `{"delay_ms":-1}`, 422, "delay_ms"},
		{"seed below none", "POST", "/chat", "application/json", `{"seed":-1}`, 400, "seed"},
		{"models", "GET", "/v1/models", "", "", 200, `"id":"harbour"`},
		{"completion", "POST", "/v1/chat/completions", "application/json", `{"model":"harbour","messages":[{"role":"user","content":"The keeper"}],"max_tokens":3,"temperature":0}`, 200, `"completion_tokens":3`},
		{"completion of parts", "POST", "/v1/chat/completions", "application/json", `{"model":"harbour","messages":[{"role":"user","content":[{"type":"text","text":"The "},{"type":"text","text":"keeper"}]}],"max_completion_tokens":3}`, 200, `"prompt_tokens":2`},
		{"completion, streamed", "POST", "/v1/chat/completions", "application/json", `{"model":"harbour","messages":[{"role":"user","content":"The keeper"}],"max_tokens":2,"stream":true}`, 200, "data: [DONE]"},
		{"an image", "POST", "/v1/chat/completions", "application/json", `{"model":"harbour","messages":[{"role":"user","content":[{"type":"image_url"}]}]}`, 400, "image_url"},
		{"another model", "POST", "/v1/chat/completions", "application/json", `{"model":"other","messages":[]}`, 404, "harbour"},
		{"too many tokens in a completion", "POST", "/v1/chat/completions", "application/json", `{"model":"harbour","messages":[],"max_completion_tokens":2001}`, 422, "2001"},
		{"a completion that is text", "POST", "/v1/chat/completions", "text/plain", good, 415, "application/json"},
		{"a completion and more", "POST", "/v1/chat/completions", "application/json", `{"model":"harbour","messages":[]}{}`, 400, "follows"},
		{"too large", "POST", "/chat", "application/json", good + strings.Repeat(" ", maxBody), 413, "at most"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, _ := http.NewRequestWithContext(t.Context(), tt.method, srv.URL+tt.path, strings.NewReader(tt.body))
			r.Header.Set("Content-Type", tt.kind)
			resp, err := srv.Client().Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			var body bytes.Buffer
			if _, err := body.ReadFrom(resp.Body); err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != tt.status || !strings.Contains(body.String(), tt.want) {
				t.Errorf("got %d %.200s, want %d with %q", resp.StatusCode, body.String(), tt.status, tt.want)
			}
		})
	}
}

// TestCompletionStreams: the chunks of a streamed completion are those of the whole one.
func TestCompletionStreams(t *testing.T) {
	srv := httptest.NewServer(handler(train(embedded)))
	defer srv.Close()
	ask := func(stream bool) *bufio.Scanner {
		body, _ := json.Marshal(map[string]any{"model": modelName, "stream": stream, "max_tokens": 5, "seed": 9, "messages": []map[string]string{{"role": "user", "content": "The bay"}}})
		resp, err := srv.Client().Post(srv.URL+"/v1/chat/completions", "application/json", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		return bufio.NewScanner(resp.Body)
	}
	var text strings.Builder
	var last string
	for lines := ask(true); lines.Scan(); {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		if last = data; data == "[DONE]" {
			break
		}
		var c completion
		if err := json.Unmarshal([]byte(data), &c); err != nil {
			t.Fatal(err)
		}
		text.WriteString(c.Choices[0].Delta.Content)
	}
	whole := ask(false)
	whole.Scan()
	var c completion
	if err := json.Unmarshal(whole.Bytes(), &c); err != nil {
		t.Fatal(err)
	}
	if got, want := text.String(), first(train(embedded), "The bay", 9, 5); got != want || c.Choices[0].Message.Content != want || last != "[DONE]" {
		t.Errorf("got %q streamed and %q whole, want %q; the last event %q", got, c.Choices[0].Message.Content, want, last)
	}
}

func prompt(size int) string { return `{"prompt":"` + strings.Repeat("a", size) + `"}` }

// TestRunFinishesStreams tells the program to stop while it streams.
func TestRunFinishesStreams(t *testing.T) {
	_, port, _ := net.SplitHostPort(loopback.FreeAddress(t))
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	done := make(chan error, 1)
	go func() { done <- run(ctx, port) }()
	ask := func() (*http.Response, error) {
		return http.Post("http://127.0.0.1:"+port+"/chat", "application/json", strings.NewReader(`{"max_tokens":20,"delay_ms":10}`))
	}
	resp, err := ask()
	for ; err != nil; resp, err = ask() {
		time.Sleep(10 * time.Millisecond)
	}
	defer resp.Body.Close()
	count := 0
	for name := range events(t, resp) {
		stop()
		if name == "token" {
			count++
		}
	}
	if count != 20 {
		t.Errorf("got %d tokens, want 20", count)
	}
	if err := <-done; err != nil {
		t.Errorf("got %v, want a clean end", err)
	}
}

func FuzzReadQuestion(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte(`{"prompt":"\u0000","max_tokens":2000,"seed":18446744073709551615,"delay_ms":0}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		r := httptest.NewRequest("POST", "/chat", bytes.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		q, _, err := readQuestion(httptest.NewRecorder(), r)
		if err == nil && (len(q.Prompt) > maxPrompt || q.MaxTokens < 1 || q.MaxTokens > maxTokens || q.DelayMS < 0 || q.DelayMS > maxDelay) {
			t.Errorf("accepted %+v", q)
		}
	})
}
