package authority

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authority/admission"
	"github.com/cohort-tee/cohort/internal/limit"
)

// TestFullAuthority: an address with its share of the concurrent requests is refused before its
// body is read. Another address is served, and the metric names the quota.
func TestFullAuthority(t *testing.T) {
	a := newWorld(t).open()
	server := httptest.NewServer(a.Handler())
	defer server.Close()
	here := netip.MustParseAddr("127.0.0.1")
	a.requests = limit.NewShares(admission.QuotaRequests, 4)
	for range 2 {
		if err := a.requests.Acquire(here, 1); err != nil {
			t.Fatal(err)
		}
	}
	reader, writer := io.Pipe() // a body that never arrives
	defer writer.Close()
	response, err := http.Post(server.URL+api.PathChallenge, "application/json", reader)
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(response.Body)
	response.Body.Close()
	if response.StatusCode != http.StatusTooManyRequests || !strings.Contains(string(body), admission.QuotaRequests) {
		t.Errorf("got %d %s", response.StatusCode, body)
	}
	a.requests.Release(here, 2)
	_, metrics := ask(a.OperatorHandler(), http.MethodGet, api.PathMetrics, "", "")
	if want := fmt.Sprintf("cohort_authority_crowded_total{quota=%q} 1", admission.QuotaRequests); !strings.Contains(metrics, want) {
		t.Errorf("metrics: want %s", want)
	}
}
