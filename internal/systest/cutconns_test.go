package systest

import (
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/policy/policyfile"
)

// flowingOn writes its response until the client is gone.
var flowingOn = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	flow := http.NewResponseController(w)
	for r.Context().Err() == nil {
		_, _ = io.WriteString(w, "more") // fails once the client is gone; the context ends the loop
		_ = flow.Flush()
		time.Sleep(10 * time.Millisecond)
	}
})

// TestCutEndsConnections: a policy cuts a peer off. Once it is adopted, the calls in
// progress with that peer end on both sides; calls with other peers continue.
func TestCutEndsConnections(t *testing.T) {
	t.Parallel()
	s := newCutScene(t, policyfile.PerUnit, false)
	twins := s.twinsOf(flowingOn)
	holder := s.StartMember("trial", "holder", "holder 1", flowingOn)
	ends := map[string]<-chan error{
		"a response of the twin": flowing(t, s.adder, twins.holder),
		"a response to the twin": flowing(t, twins.adder, holder),
	}
	other := flowing(t, s.adder, holder)
	twins.link.parted.Lock()
	defer twins.link.parted.Unlock()
	s.adoptCut(twins)
	for what, end := range ends {
		select {
		case <-end:
		case <-time.After(20 * time.Second):
			t.Errorf("%s goes on", what)
		}
	}
	select {
	case err := <-other:
		t.Errorf("a response of a unit that was not cut off ended: %v", err)
	default:
	}
}

// flowing starts a request and returns a channel with the error that ends the response.
func flowing(t *testing.T, from, to *Replica) <-chan error {
	t.Helper()
	transport := calls(t, from)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+to.Address, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := transport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(response.Body, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	end := make(chan error, 1)
	go func() {
		defer transport.CloseIdleConnections()
		defer response.Body.Close()
		_, err := io.Copy(io.Discard, response.Body)
		end <- err
	}()
	return end
}
