package systest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/localproxy"
	"github.com/cohort-tee/cohort/internal/testworld"
)

// sdkOutput is what interop/openai/sdk.py prints.
type sdkOutput struct {
	Token, Whole  string
	Error         string
	Status        int
	Reason, Retry string
}

// pythonSDK runs OpenAI's Python SDK on a base URL. It returns the streamed text, and the rest of its output.
func pythonSDK(t *testing.T, root debianRoot, url, key string) (streamed string, rest sdkOutput) {
	t.Helper()
	outside, inside := root.tempDir(t)
	program := testworld.Must(os.ReadFile("../../interop/openai/sdk.py"))
	testworld.NoError(t, os.WriteFile(filepath.Join(outside, "sdk.py"), program, 0o644))
	cmd := root.command(t.Context(), inside, "/usr/bin/python3", "sdk.py")
	cmd.Env = append(cmd.Env, "OPENAI_BASE_URL="+url+"/v1", "OPENAI_API_KEY="+key)
	var faults bytes.Buffer
	cmd.Stderr = &faults
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("sdk.py: %v\n%s%s", err, out, tail(faults.Bytes()))
	}
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		rest = sdkOutput{}
		testworld.NoError(t, json.Unmarshal(lines.Bytes(), &rest))
		streamed += rest.Token
	}
	return streamed, rest
}

// TestPythonSDK: OpenAI's Python SDK streams through `cohort proxy`, receives its errors as
// docs/how-to/python.md documents them, and repeats no request that may have been executed.
func TestPythonSDK(t *testing.T) {
	root := debian13(t)
	t.Run("streams", func(t *testing.T) {
		bin := Build(t, "./cmd/cohort", "./examples/chat")
		c, _ := shared(t, 2, time.Hour, programs(startChat(t, bin)))
		token := filepath.Join(t.TempDir(), "token")
		testworld.NoError(t, os.WriteFile(token, []byte("0123456789abcdef0123456789abcdef\n"), 0o600))
		p := startLocalProxy(t, bin, c.proxyArgs("--token-file", token)...)
		if streamed, rest := pythonSDK(t, root, p.start.URL, "0123456789abcdef0123456789abcdef"); streamed == "" || streamed != rest.Whole {
			t.Errorf("got %q streamed and %+v, want the same text whole", streamed, rest)
		}
		want := sdkOutput{Error: "AuthenticationError", Status: http.StatusUnauthorized, Reason: "not-allowed", Retry: "safe"}
		if _, got := pythonSDK(t, root, p.start.URL, "another"); got != want {
			t.Errorf("another key: got %+v, want %+v", got, want)
		}
	})
	for _, row := range []struct {
		name string
		end  error // of each request; nil is a stream that is cut
		want sdkOutput
		sent int64
	}{
		{"outcome unknown", client.ErrOutcomeUnknown, sdkOutput{Error: "InternalServerError", Status: http.StatusBadGateway, Reason: "outcome-unknown", Retry: "unsafe"}, 1},
		{"unreachable", client.ErrUnreachable, sdkOutput{Error: "InternalServerError", Status: http.StatusBadGateway, Reason: "unavailable", Retry: "safe"}, 3},
		{"a cut stream", nil, sdkOutput{Error: "RemoteProtocolError"}, 1},
	} {
		t.Run(row.name, func(t *testing.T) {
			var sent atomic.Int64
			p := testworld.Must(localproxy.NewProxy(localproxy.Config{
				Host: func() string { return ServerName("scoring") }, Log: slog.New(slog.DiscardHandler),
				Through: ending{&sent, row.end},
			}))
			server := httptest.NewServer(p)
			defer server.Close()
			streamed, got := pythonSDK(t, root, server.URL, "none")
			if got != row.want || sent.Load() != row.sent || (row.end == nil) != (streamed == "The") {
				t.Errorf("got %q, %+v in %d requests, want %+v in %d", streamed, got, sent.Load(), row.want, row.sent)
			}
		})
	}
}

// ending is a way to a cluster on which each request ends in an error, or without one in a stream
// that is cut after its first token.
type ending struct {
	sent *atomic.Int64
	err  error
}

func (e ending) RoundTrip(r *http.Request) (*http.Response, error) {
	e.sent.Add(1)
	if e.err != nil {
		return nil, e.err
	}
	first := strings.NewReader(`data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"harbour","choices":[{"index":0,"delta":{"content":"The"}}]}` + "\n\n")
	return &http.Response{
		StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"text/event-stream"}}, Request: r, ContentLength: -1,
		Body: io.NopCloser(io.MultiReader(first, failingReader{})),
	}, nil
}

// failingReader is the end of content that is cut.
type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, errors.New("the stream was cut") }
