package unit

import (
	"io"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/limit"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/unit/unittest"
)

// crowded gives the unit room for two requests, and takes one place for this machine.
func crowded(t *testing.T, u *Unit) {
	t.Helper()
	u.requests = limit.NewShares(quotaRequests, 2)
	testworld.NoError(t, u.requests.Acquire(netip.MustParseAddr("127.0.0.1"), 1))
}

// TestCrowdedUnit: an address that already uses its share of concurrent requests is
// refused. The refusal names the quota, and the unit counts it. The address is served again
// when it uses less.
func TestCrowdedUnit(t *testing.T) {
	for _, protocol := range []string{"HTTP/1.1", "HTTP/2.0"} {
		t.Run(protocol, func(t *testing.T) {
			w := unittest.New(t, "1h")
			u := started(w, "scoring", w.Authority(w.AuthorityKeys))
			crowded(t, u)
			address, c := serve(t, u, hello), user(w, u, protocol)
			answer, err := c.Post("https://"+address+"/", "text/plain", strings.NewReader("x"))
			testworld.NoError(t, err)
			body, err := io.ReadAll(answer.Body)
			testworld.NoError(t, err)
			answer.Body.Close()
			if answer.StatusCode != http.StatusTooManyRequests || !strings.Contains(string(body), quotaRequests) {
				t.Errorf("got %d %s, want 429 and %q", answer.StatusCode, body, quotaRequests)
			}
			if got := u.Stats().Refused; len(got) != 1 || got[quotaRequests] != 1 {
				t.Errorf("counted %v, want one of %q", got, quotaRequests)
			}
			u.requests.Release(netip.MustParseAddr("127.0.0.1"), 1)
			get(t, c, address)
			if got := u.requests.InUse(); got != 0 {
				t.Errorf("got %d under way, want none", got)
			}
		})
	}
}

// TestStalledAtUnit: a unit's own listener ends a request that stalls, and a response that
// the client does not read.
func TestStalledAtUnit(t *testing.T) {
	if os.Getenv("COHORT_FULL") == "" {
		t.Skip("SKIPPED: the limits are a minute and half of one; COHORT_FULL=1 waits for them")
	}
	w := unittest.New(t, "1h")
	u := started(w, "scoring", w.Authority(w.AuthorityKeys))
	ended := make(chan string)
	address := serve(t, u, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for piece := make([]byte, 64<<10); r.Method == http.MethodGet; {
			if _, err := w.Write(piece); err != nil {
				ended <- "response, " + r.Proto
				return
			}
		}
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			ended <- "request, " + r.Proto
		}
	}))
	want := map[string]bool{}
	for _, protocol := range []string{"HTTP/1.1", "HTTP/2.0"} {
		c := user(w, u, protocol)
		c.Timeout = 0
		out, in := io.Pipe()
		defer in.Close()
		go func() {
			if answer, err := c.Post("https://"+address+"/", "text/plain", out); err == nil {
				answer.Body.Close()
			}
		}()
		go in.Write([]byte("x"))
		answer, err := c.Get("https://" + address + "/")
		testworld.NoError(t, err)
		defer answer.Body.Close()
		want["request, "+protocol], want["response, "+protocol] = true, true
	}
	for late := time.After(2 * readTime); len(want) > 0; {
		select {
		case which := <-ended:
			delete(want, which)
		case <-late:
			t.Fatalf("not ended: %v", want)
		}
	}
}
