package client

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestGateways: requests stay with a gateway while it answers, and go to the
// next after it did not, or said that it reaches no unit.
func TestGateways(t *testing.T) {
	status := map[string]int{}
	var asked []string
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Host+r.URL.Path)
		if code := status[r.Host]; code != 0 {
			w.WriteHeader(code)
		}
	})
	one, two := httptest.NewServer(h), httptest.NewServer(h)
	defer two.Close()
	all, err := parseGateways(one.URL + "/p," + two.URL + "/p")
	if err != nil {
		t.Fatal(err)
	}
	g := &gateways{inner: newGateway(nil), all: all}
	defer g.inner.CloseIdleConnections()
	send := func() {
		r := httptest.NewRequest(http.MethodPost, one.URL+"/p/x", strings.NewReader("content"))
		r.RequestURI = ""
		if answer, err := g.RoundTrip(r); err == nil {
			answer.Body.Close()
		}
		if got := "http://" + r.URL.Host; got != one.URL {
			t.Errorf("the caller's request was changed: %s", got)
		}
	}
	first, second := strings.TrimPrefix(one.URL, "http://"), strings.TrimPrefix(two.URL, "http://")
	send()
	status[first] = http.StatusMisdirectedRequest
	send()
	status[first] = http.StatusServiceUnavailable
	send()
	send()
	status[second] = http.StatusBadGateway
	send()
	one.Close()
	send() // meets nobody
	status[second] = 0
	send()
	want := []string{first, first, first, second, second, second}
	for i := range want {
		want[i] += "/p/x"
	}
	if got := strings.Join(asked, " "); got != strings.Join(want, " ") {
		t.Errorf("asked: got %s, want %s", got, strings.Join(want, " "))
	}
}
