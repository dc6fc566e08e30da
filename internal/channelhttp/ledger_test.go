package channelhttp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/cohort-tee/cohort/internal/channel"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// ledger is the app: it counts executions by token, and records which users' tokens it
// received in which session.
type ledger struct {
	mu   sync.Mutex
	runs map[string]int
	tags map[string]map[string]bool // users by session's tag
}

func (l *ledger) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	token, _, _ := strings.Cut(string(b)+r.URL.Query().Get("token"), ".")
	caller, ok := CallerOf(r.Context())
	if !ok {
		panic("a request that came by no session")
	}
	l.note(token, caller.SessionTag())
	fmt.Fprintf(w, "ran %s", token)
	if r.URL.Path == "/long" {
		for range 3 {
			w.(http.Flusher).Flush()
			fmt.Fprint(w, strings.Repeat(".", 1000))
		}
	}
}

func (l *ledger) note(token, tag string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.runs == nil {
		l.runs, l.tags = map[string]int{}, map[string]map[string]bool{}
	}
	l.runs[token]++
	if l.tags[tag] == nil {
		l.tags[tag] = map[string]bool{}
	}
	user, _, _ := strings.Cut(token, " ")
	l.tags[tag][user] = true
}

func (l *ledger) of(token string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.runs[token]
}

// call makes one call of a user and checks what must be true whatever the manager does. A
// response is the right one, and an error is typed. A bound call ran at most once; it ran
// only if the client got a response or an error that permits execution.
func (m *hostile) call(user, kind, token string) error {
	m.T.Helper()
	method, path, body := "POST", "/", token
	switch kind {
	case "safe", "long":
		method, body, path = "GET", "", "/?token="+url.QueryEscape(token)
		if kind == "long" {
			path = "/long" + path[1:]
		}
	case "stream":
		body += strings.Repeat(".", channel.MaxSmall+1)
	}
	r := testworld.Must(http.NewRequestWithContext(context.WithValue(m.T.Context(), tryKey{}, new(atomic.Int64)), method, base+path, strings.NewReader(body)))
	if kind == "marked" {
		r.Header.Set("Idempotency-Key", token)
	}
	got, writer, err := exchangeOf(m.users[user], r)
	want := "ran " + token
	if kind == "long" {
		want += strings.Repeat(".", 3000)
	}
	if err == nil && got != want {
		m.T.Errorf("%s: wrong answer %q accepted", token, got)
	}
	if err != nil && wire.ReasonOf(err) == wire.Internal {
		m.T.Errorf("%s: error %v has no reason", token, err)
	}
	bound := kind == "bound" || kind == "stream"
	runs := m.app.of(token)
	if bound && runs > 1 {
		m.T.Errorf("%s: executed %d times", token, runs)
	}
	if bound && runs > 0 && err != nil && !writer && !errors.Is(err, ErrOutcomeUnknown) {
		m.T.Errorf("%s: executed, and the error says otherwise: %v", token, err)
	}
	if err == nil && runs == 0 {
		m.T.Errorf("%s: answered, and never executed", token)
	}
	return err
}

// exchangeOf sends a request and reads its response; writer reports whether a response
// began.
func exchangeOf(rt http.RoundTripper, r *http.Request) (body string, writer bool, err error) {
	response, err := rt.RoundTrip(r)
	if err != nil {
		return "", false, err
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	return string(b), true, err
}

// isBound reports whether a token belongs to a call that is bound to one unit and must not
// be repeated.
func isBound(token string) bool {
	return strings.Contains(token, "bound") || strings.Contains(token, "stream")
}
