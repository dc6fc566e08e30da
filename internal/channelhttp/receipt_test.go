package channelhttp

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/channel"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestNoReceiptOfACutUnit: a unit learns of its own cut while it responds. It signs no
// receipt.
func TestNoReceiptOfACutUnit(t *testing.T) {
	var c *cluster
	c = newCluster(t, 1, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		h := c.units[0].Host
		c.mu.Unlock()
		h.Follow(c.cutOff(h.ID()))
		io.WriteString(w, "it")
	}))
	w := c.trust()
	rt := testworld.Must(NewTransport(TransportConfig{Gateway: noGateway, Inner: c, Pin: c.byTask(), Options: channel.WantReceipts, Trust: still{w}, Clock: c.clock.Now}))
	defer rt.Close(t.Context())
	var record unitauth.Record
	r := testworld.Must(http.NewRequest(http.MethodPost, base+"/", nil))
	response, err := rt.RoundTrip(r.WithContext(WithRecord(t.Context(), &record)))
	if err == nil {
		_, err = io.ReadAll(response.Body)
		response.Body.Close()
	}
	if err == nil || record.Receipt != nil {
		t.Errorf("got %v and a receipt of %d bytes, want an answer that is cut off", err, len(record.Receipt))
	}
}

// still is trust that does not change.
type still struct{ trust unitauth.Trust }

func (s still) Trust() unitauth.Trust { return s.trust }

func (s still) Renew(context.Context) unitauth.Trust { return s.trust }

// TestReceiptLeftOut: a unit sends a complete response without its receipt. The client
// refuses it.
func TestReceiptLeftOut(t *testing.T) {
	w := newWorld(t)
	h := w.host(channel.Limits{})
	s, _ := w.opened(h, w.byTask())
	x := testworld.Must(s.NewRequest(channel.RequestConfig{NotAfter: noon.Add(time.Minute), Flags: wire.FlagReceipt}))
	c := &call{t: testworld.Must(NewTransport(TransportConfig{Gateway: noGateway, Inner: http.DefaultTransport, Pin: w.byTask(), Trust: w, Clock: w.clock.Now}))}
	testworld.Refused(t, c.verifyReceipt(x, channel.Response{}, noon), wire.EvidenceMissing)
}

// shut is the body of an outer request as net/http provides it: it cannot be read once it
// is closed.
type shut struct {
	io.ReadCloser
	closed bool
}

func (s *shut) Read(p []byte) (int, error) {
	if s.closed {
		return 0, http.ErrBodyReadAfterClose
	}
	return s.ReadCloser.Read(p)
}

func (s *shut) Close() error {
	s.closed = true
	return s.ReadCloser.Close()
}

// TestReceiptOfUnreadRequest: the app closes a request without reading it, as a reverse
// proxy does with a request without content. The response still has a receipt.
func TestReceiptOfUnreadRequest(t *testing.T) {
	c := newCluster(t, 1, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body.Close()
		io.WriteString(w, "fine")
	}))
	inner := roundTrip(func(r *http.Request) (*http.Response, error) {
		if r.Body != nil {
			r.Body = &shut{ReadCloser: r.Body}
		}
		return c.RoundTrip(r)
	})
	rt := testworld.Must(NewTransport(TransportConfig{Gateway: noGateway, Inner: inner, Pin: c.byTask(), Options: channel.WantReceipts, Trust: c.world, Clock: c.clock.Now}))
	defer rt.Close(t.Context())
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		var record unitauth.Record
		r := testworld.Must(http.NewRequest(method, base+"/", strings.NewReader("a few words")))
		response, err := rt.RoundTrip(r.WithContext(WithRecord(t.Context(), &record)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(response.Body); err != nil {
			t.Errorf("%s: %v", method, err)
		}
		response.Body.Close()
		if _, err := unitauth.VerifyReceipt(record, c.trust(), unitauth.ReceiptExpect{Pin: c.byTask(), At: noon}); err != nil {
			t.Errorf("%s: verifying the receipt: %v", method, err)
		}
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
