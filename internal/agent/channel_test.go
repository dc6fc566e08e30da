package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/channelhttp"
	"github.com/cohort-tee/cohort/internal/testworld"
)

// trusts is a client of the world that trusts an authority.
type trusts struct{ trust unitauth.Trust }

func (t trusts) Trust() unitauth.Trust { return t.trust }

func (t trusts) Renew(context.Context) unitauth.Trust { return t.trust }

// TestAgentServesChannel: a program that knows nothing of Cohort answers the
// requests of sessions, streams included.
func TestAgentServesChannel(t *testing.T) {
	a := runAgent(t, "http", nil)
	a.text("/hups") // accepts
	gateway, err := url.Parse("https://" + a.address)
	testworld.NoError(t, err)
	inner := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} // the channel checks, not TLS
	defer inner.CloseIdleConnections()
	rt, err := channelhttp.NewTransport(channelhttp.TransportConfig{
		Gateway: gateway, Inner: inner, Clock: time.Now,
		Pin:   unitauth.Pin{Genesis: a.world.Genesis(), Task: "scoring"},
		Trust: trusts{unitauth.Trust{Policy: a.world.Policy(), Root: a.world.AuthorityRoot()}},
	})
	testworld.NoError(t, err)
	defer rt.Close(t.Context())
	for _, path := range []string{"/echo", "/stream"} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://scoring.clinic.example"+path, strings.NewReader("hello"))
		testworld.NoError(t, err)
		answer, err := rt.RoundTrip(r)
		testworld.NoError(t, err)
		b, err := io.ReadAll(answer.Body)
		testworld.NoError(t, errors.Join(err, answer.Body.Close()))
		if !strings.HasSuffix(string(b), "hello") {
			t.Errorf("%s: got %q", path, b)
		}
	}
	if got := a.Stats().Sessions; got != 1 {
		t.Errorf("got %d sessions, want 1", got)
	}
}
