package channelhttp

import (
	"bytes"
	"io"
	"net/http"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/channel"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// impostor has a unit's signing key and certificates, a gateway, and its own ring keys, but
// no TEE that runs the unit's code.
type impostor struct {
	*world
	host     *channel.Host
	proof    func(attest.ReportData) attest.Evidence // the evidence that it presents on request
	requests atomic.Int64                            // received requests
}

func newImpostor(w *world, victim *channel.Host) *impostor {
	s := w.standing(w.keyOf(victim), "1")
	s.Ring = identity.Ring{Strict: identity.NewRingKeys(w.clock.Now(), time.Hour), Follow: identity.NewRingKeys(w.clock.Now(), time.Hour)}
	h := testworld.Must(channel.NewHost(w.keyOf(victim), channel.Limits{}))
	testworld.Must(0, h.Update(s))
	return &impostor{world: w, host: h}
}

func (f *impostor) RoundTrip(r *http.Request) (*http.Response, error) {
	body := testworld.Must(io.ReadAll(r.Body))
	r.Body.Close()
	if r.URL.Path == wire.PathRequest {
		f.requests.Add(1)
		return status(http.StatusServiceUnavailable), nil
	}
	a := testworld.Must(f.host.Accept(channel.OpenRequest{Body: body, Cookie: testworld.Must(f.host.Cookie(body, f.clock.Now())), Number: 1}, f.clock.Now()))
	var evidence attest.Evidence
	if data, wanted, err := a.Evidence(); err != nil {
		return nil, err
	} else if wanted {
		evidence = f.proof(data)
	}
	response, _, err := a.Finish(evidence, noon)
	if err != nil {
		return nil, err
	}
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(response))}, nil
}

func (f *impostor) client(wants channel.SessionOptions) *Transport {
	return testworld.Must(NewTransport(TransportConfig{Gateway: testworld.Must(url.Parse("http://gateway.example")), Inner: f, Pin: f.byTask(), Options: wants, Trust: f.world, Clock: f.clock.Now}))
}

// TestLeakedSigningKeyOfUnit: an impostor with a unit's signing key receives new clients.
// None that asks for fresh evidence sends it a request. A client that does not ask sends
// one, which shows that the test counts, and why clients ask for fresh evidence.
func TestLeakedSigningKeyOfUnit(t *testing.T) {
	w := newWorld(t)
	victim := w.host(channel.Limits{})
	f := newImpostor(w, victim)
	attested := func(program string) func(attest.ReportData) attest.Evidence {
		device := w.Device(program)
		return func(data attest.ReportData) attest.Evidence {
			return testworld.Must(device.Attest(t.Context(), data))
		}
	}
	genuine := w.Device("scoring 1")
	ways := []struct {
		name string
		show func(attest.ReportData) attest.Evidence
		want wire.Reason
	}{
		{"the unit's, for the impostor's own session", func(attest.ReportData) attest.Evidence {
			o := testworld.Must(channel.NewClientHandshake(w.byTask(), channel.WantEvidence))
			a := testworld.Must(victim.Accept(channel.OpenRequest{Body: o.Request(), Cookie: testworld.Must(victim.Cookie(o.Request(), noon))}, noon))
			data, _, err := a.Evidence()
			return testworld.Must(genuine.Attest(t.Context(), testworld.Must(data, err)))
		}, wire.BadNonce},
		{"of code of its own", attested("theft"), wire.NotMeasured},
		{"of another task", attested("other"), wire.NotMeasured},
		{"of another release", attested("scoring 2"), wire.WrongIdentity},
	}
	clients := 1000
	if testing.Short() {
		clients = 50
	}
	for i := range clients {
		way := ways[i%len(ways)]
		f.proof = way.show
		rt := f.client(channel.WantEvidence)
		got, err := say(t, rt, "POST", "/", "secret")
		if wire.ReasonOf(err) != way.want || got != "" {
			t.Fatalf("evidence: %s: got %q, %v, want %q", way.name, got, err, way.want)
		}
		rt.Close(t.Context())
	}
	if n := f.requests.Load(); n != 0 {
		t.Errorf("%d requests of %d clients came to the impostor, want 0", n, clients)
	}
	if _, err := say(t, f.client(0), "POST", "/", "secret"); err == nil || f.requests.Load() != 1 {
		t.Errorf("without evidence: got %v and %d requests, want 1", err, f.requests.Load())
	}
}
