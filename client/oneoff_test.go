package client_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestNewOneOffRefuses: without keys that a unit within the pin has signed, NewOneOff
// fails.
func TestNewOneOffRefuses(t *testing.T) {
	trust := newWorld(t, "1").fetch(nil)
	gateway := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/none" + wire.PathOneOff:
			w.WriteHeader(http.StatusServiceUnavailable)
		case "/long" + wire.PathOneOff:
			w.Write(make([]byte, 1<<20))
		default:
			w.Header().Set("Content-Type", wire.TypeSignedKeys)
			w.Write([]byte("keys, believe me"))
		}
	}))
	defer gateway.Close()
	for _, row := range []struct {
		name    string
		trust   *client.Trust
		gateway string
		want    error
	}{
		{"no trust", nil, gateway.URL, wire.BadRequest},
		{"no gateway", trust, "", wire.BadRequest},
		{"another scheme", trust, "tls://gateway.example", wire.BadRequest},
		{"no unit", trust, gateway.URL + "/none", client.ErrUnreachable},
		{"nonsense", trust, gateway.URL, wire.Malformed},
		{"no end of it", trust, gateway.URL + "/long", wire.TooLarge},
	} {
		t.Run(row.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			_, err := client.NewOneOff(ctx, client.OneOffConfig{Trust: row.trust, Gateway: row.gateway})
			if !errors.Is(err, row.want) {
				t.Errorf("got %v, want %v", err, row.want)
			}
		})
	}
}

func ExampleNewOneOff() {
	var trust *client.Trust // from client.FetchTrust
	o, err := client.NewOneOff(context.Background(), client.OneOffConfig{Trust: trust, Gateway: "https://gateway.example"})
	if err != nil {
		return
	}
	defer o.Close()
	user := &http.Client{Transport: o}
	response, err := user.Get("https://scoring.clinic.example/") // any unit serves it
	if err != nil {
		return
	}
	defer response.Body.Close()
}
