package authority

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/limit"
)

// TestEvenParts: fifty addresses that ask for more than all may have leave one that
// asks little what it asks for, and get no more than twice the total.
func TestEvenParts(t *testing.T) {
	l := newLimiter(Limits{}.orDefault())
	at := time.Unix(1e9, 0)
	for second := range 5 {
		flood, honest := 0, 0
		for n := range 100 {
			now := at.Add(time.Duration(second)*time.Second + time.Duration(n)*10*time.Millisecond)
			for a := range 50 {
				if l.allow(fmt.Sprintf("198.51.100.%d:1", a), now) == nil {
					flood++
				}
			}
			if n%10 == 9 && l.allow("192.0.2.1:1", now) == nil {
				honest++
			}
		}
		if honest != 10 {
			t.Errorf("second %d: %d of 10 honest requests were allowed beside %d", second, honest, flood)
		}
		if most := 4 * l.most; flood > most || second > 2 && flood > 2*l.most {
			t.Errorf("second %d: %d requests of the flood were allowed", second, flood)
		}
	}
}

// TestFullAuthority: an address that has its share of the requests under way is
// refused before anything is read of it, another is served, and the metric names
// the quota.
func TestFullAuthority(t *testing.T) {
	a := newWorld(t).open()
	server := httptest.NewServer(a.Handler())
	defer server.Close()
	here := netip.MustParseAddr("127.0.0.1")
	a.requests = limit.NewShares(quotaRequests, 4)
	for range 2 {
		if err := a.requests.Acquire(here, 1); err != nil {
			t.Fatal(err)
		}
	}
	reader, writer := io.Pipe() // a body that never comes
	defer writer.Close()
	answer, err := http.Post(server.URL+api.PathChallenge, "application/json", reader)
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(answer.Body)
	answer.Body.Close()
	if answer.StatusCode != http.StatusTooManyRequests || !strings.Contains(string(body), quotaRequests) {
		t.Errorf("got %d %s", answer.StatusCode, body)
	}
	a.requests.Release(here, 2)
	answer, err = http.Get(server.URL + api.PathMetrics)
	if err != nil {
		t.Fatal(err)
	}
	body, _ = io.ReadAll(answer.Body)
	answer.Body.Close()
	if want := fmt.Sprintf("cohort_authority_crowded_total{quota=%q} 1", quotaRequests); !strings.Contains(string(body), want) {
		t.Errorf("metrics: want %s", want)
	}
}
