package bench

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/testworld"
)

// inFlight is how many requests are under way at a time.
const inFlight = 16

// BenchmarkRequest is G7: a request in a session and the same in plain HTTP/1.1
// to the same handler, the CPU time of both ends; client and unit direct, in
// cleartext on loopback. Beside it an AEAD around the plain request and nothing
// else, of one key and of a key for each message, both over TLS, and RA-TLS over
// connections that are kept.
func BenchmarkRequest(b *testing.B) {
	p := start(b)
	trust := p.trust(b)
	plain := &http.Transport{MaxIdleConnsPerHost: inFlight, DisableCompression: true, TLSClientConfig: &tls.Config{RootCAs: p.ca}}
	b.Cleanup(plain.CloseIdleConnections)
	attested := &http.Transport{MaxIdleConnsPerHost: inFlight, DisableCompression: true, TLSClientConfig: (&reaching{peer: p, trust: trust}).raTLS(verifier())}
	b.Cleanup(attested.CloseIdleConnections)
	open := func(gateway string) http.RoundTripper {
		c := testworld.Must(client.Open(b.Context(), client.OpenConfig{Trust: trust, Gateway: gateway, CA: p.ca}))
		b.Cleanup(func() { c.Close(context.Background()) })
		return c
	}
	inClear, inTLS := open(p.Channel), open(p.ChannelTLS)
	for _, size := range []struct {
		name     string
		bytes, n int
	}{{"64B", 64, 1600}, {"1KiB", 1 << 10, 1600}, {"16KiB", 16 << 10, 800}, {"1MiB", 1 << 20, 48}} {
		b.Run(size.name, func(b *testing.B) {
			body := make([]byte, size.bytes)
			cost := func(f func()) func() time.Duration {
				return func() time.Duration { return p.pair(func() { all(size.n, f) }) / time.Duration(size.n) }
			}
			through := func(rt http.RoundTripper, url string) func() time.Duration {
				return cost(func() { post(rt, url, body) })
			}
			Compare(b, Contender{"plain", through(plain, p.Plain)}, Contender{"channel", through(inClear, named)},
				Contender{"bare-aead", cost(sealedPost(plain, p.Sealed, body, oneKey()))},
				Contender{"keyed-aead", cost(sealedPost(plain, p.Keyed, body, keyEach))},
				Contender{"tls", through(plain, p.PlainTLS)}, Contender{"ra-tls", through(attested, p.RATLS)}, Contender{"channel-tls", through(inTLS, named)})
		})
	}
}

// BenchmarkOneOff is G9: a request of 1 KiB in a session beside the same as a
// one-off request over plain OHTTP with the hybrid KEM, the server's CPU time. The
// OHTTP gateway is ours, whose HPKE and AEAD are those of the session, so that
// what differs is what is done anew for each request.
func BenchmarkOneOff(b *testing.B) {
	p := start(b)
	trust := p.trust(b)
	session := testworld.Must(client.Open(b.Context(), client.OpenConfig{Trust: trust, Gateway: p.Channel}))
	b.Cleanup(func() { session.Close(context.Background()) })
	oneOff := testworld.Must(client.NewOneOff(b.Context(), client.OneOffConfig{Trust: trust, Gateway: p.Channel, Whole: true}))
	b.Cleanup(oneOff.Close)
	body := make([]byte, 1<<10)
	const n = 800
	through := func(rt http.RoundTripper) func() time.Duration {
		return func() time.Duration {
			return p.serving(func() { all(n, func() { send(rt, http.MethodGet, named, body) }) }) / n
		}
	}
	Compare(b, Contender{"one-off", through(oneOff)}, Contender{"channel", through(session)})
}

// all calls f n times, with some calls in flight.
func all(n int, f func()) {
	var group sync.WaitGroup
	for range inFlight {
		group.Go(func() {
			for range n / inFlight {
				f()
			}
		})
	}
	group.Wait()
}

func post(rt http.RoundTripper, url string, body []byte) { send(rt, http.MethodPost, url, body) }

// send sends a body and demands as much.
func send(rt http.RoundTripper, method, url string, body []byte) {
	r := testworld.Must(http.NewRequest(method, url+"/echo", bytes.NewReader(body)))
	answer := testworld.Must(rt.RoundTrip(r))
	defer answer.Body.Close()
	n := testworld.Must(io.Copy(io.Discard, answer.Body))
	if answer.StatusCode != http.StatusOK || n != int64(len(body)) {
		panic(fmt.Sprint(answer.Status, " with ", n, " bytes"))
	}
}

// sealedPost is post with nothing but an AEAD around it.
func sealedPost(rt http.RoundTripper, url string, body []byte, of ciphers) func() {
	var number atomic.Uint64
	var lent buffers
	return func() {
		p, q := lent.get(12+len(body)+16), lent.get(12+len(body)+16)
		defer lent.pool.Put(p)
		defer lent.pool.Put(q)
		sealed, got := *p, *q
		clear(sealed[:12])
		binary.BigEndian.PutUint64(sealed[4:], number.Add(1))
		of(sealed[:12]).Seal(sealed[:12], sealed[:12], body, nil)
		answer := testworld.Must(rt.RoundTrip(testworld.Must(http.NewRequest(http.MethodPost, url, bytes.NewReader(sealed)))))
		defer answer.Body.Close()
		testworld.Must(io.ReadFull(answer.Body, got))
		testworld.Must(io.Copy(io.Discard, answer.Body)) // the end, so that the connection is used again
		testworld.Must(of(got[:12]).Open(got[12:12], got[:12], got[12:], nil))
	}
}
