package manager

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"

	"github.com/cohort-tee/cohort/internal/bus/bustest"
	"github.com/cohort-tee/cohort/internal/testworld"
)

// The beginning of an HTTP/1.1 request, and of an HTTP/2 connection with an incomplete header:
// SETTINGS, then 4 of 64 bytes of HEADERS (RFC 9113, sections 4.1 and 6.2).
const (
	halfHead   = "POST /.well-known/cohort/session HTTP/1.1\r\nHost: "
	halfFrames = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + "\x00\x00\x00\x04\x00\x00\x00\x00\x00" + "\x00\x00\x40\x01\x04\x00\x00\x00\x01" + "\x82\x84\x87\x41"
)

// TestStalledHeads: more connections than the bound stall in the TLS handshake or in a request's
// head, over either protocol, from one address or from fifty. A new client is served, and the
// stalled connections are closed.
func TestStalledHeads(t *testing.T) {
	for _, major := range []int{1, 2} {
		for _, addresses := range []int{1, 50} {
			t.Run(fmt.Sprintf("HTTP/%d, %d addresses", major, addresses), func(t *testing.T) {
				w := narrow(t, major)
				w.named(bustest.Scoring)
				honest := w.from("127.0.0.1", major)
				for n := range 3 * stallers() {
					w.beginHead(t, major, fmt.Sprint("127.0.1.", 1+n%addresses), n%3 == 0)
					if n%50 > 0 {
						continue
					}
					for _, f := range flows() {
						response, err := f.send(t.Context(), honest, len(f.body))
						if err != nil {
							t.Fatal(err)
						}
						if status, body, _ := read(t, response); status != http.StatusOK {
							t.Errorf("beside %d: got %d %s", n, status, body)
						}
					}
				}
				testworld.Eventually(t, "the flood is closed", func() bool { return w.manager.clients.Crowded() >= int64(stallers())/2 })
			})
		}
	}
}

// beginHead opens a connection that stalls after the TLS handshake and half of a head or, if
// early, before that.
func (w *world) beginHead(t *testing.T, major int, address string, early bool) {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
	c, err := d.DialContext(t.Context(), "tcp", w.gateway)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	begin := halfHead
	if major == 2 {
		begin = halfFrames
		if !early {
			c = tls.Client(c, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
		}
	}
	if early {
		begin = "\x16\x03\x01\x02\x00" // start of a TLS handshake
		if major == 1 {
			begin = ""
		}
	}
	_, _ = io.WriteString(c, begin) // the gateway may have closed it already
}
