package client_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/wire"
)

func TestOpenConfig(t *testing.T) {
	trust := newWorld(t, "1").fetch(nil)
	for _, row := range []struct {
		name    string
		trust   *client.Trust
		gateway string
	}{
		{"no trust", nil, "https://gateway.example"},
		{"no gateway", trust, ""},
		{"no host", trust, "https:///path"},
		{"another scheme", trust, "tls://gateway.example"},
		{"with a password", trust, "https://user:password@gateway.example"},
		{"an empty second one", trust, "https://gateway.example,"},
		{"a second one with another path", trust, "https://gateway.example,https://other.example/path"},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := client.Open(t.Context(), client.OpenConfig{Trust: row.trust, Gateway: row.gateway})
			if !errors.Is(err, wire.BadRequest) {
				t.Errorf("got %v, want reason %q", err, wire.BadRequest)
			}
		})
	}
}

// TestOpenWithoutUnit: the gateway returns something other than a unit's response. It opens
// no session, and Open returns.
func TestOpenWithoutUnit(t *testing.T) {
	trust := newWorld(t, "1").fetch(nil)
	for _, row := range []struct {
		name     string
		response http.HandlerFunc
		want     error
	}{
		{"no unit", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }, client.ErrUnreachable},
		{"nonsense", func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("200 OK")) }, wire.Malformed},
	} {
		t.Run(row.name, func(t *testing.T) {
			var asked atomic.Int64
			gateway := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked.Add(1)
				row.response(w, r)
			}))
			defer gateway.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			_, err := client.Open(ctx, client.OpenConfig{Trust: trust, Gateway: gateway.URL})
			if !errors.Is(err, row.want) {
				t.Errorf("got %v, want %v", err, row.want)
			}
			if asked.Load() == 0 {
				t.Error("the gateway was not asked")
			}
		})
	}
}

func ExampleOpen() {
	var trust *client.Trust // from client.FetchTrust
	channel, err := client.Open(context.Background(), client.OpenConfig{Trust: trust, Gateway: "https://gateway.example"})
	if err != nil {
		return
	}
	defer channel.Close(context.Background())
	user := &http.Client{Transport: channel}
	response, err := user.Get("https://scoring.clinic.example/") // any unit serves it
	if errors.Is(err, client.ErrOutcomeUnknown) {
		return // only for requests that may not be repeated
	}
	if err == nil {
		response.Body.Close()
	}
}
