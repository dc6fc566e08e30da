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

// inFlight is the number of concurrent requests.
const inFlight = 16

// BenchmarkRequest is G7: a request in a session against the same request in plain HTTP/1.1
// to the same handler, without a gateway and in cleartext on loopback; the CPU time of both
// ends. It also measures a plain request with only an AEAD around it, under one key and
// under a key per message, both over TLS, and RA-TLS over kept-alive connections.
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

// BenchmarkOneOff is G9: the server's CPU time for a request of 1 KiB in a session, against
// the same as a one-off request over plain OHTTP with the hybrid KEM. The OHTTP gateway is
// ours and uses the same HPKE and AEAD as the session, so that they differ only in the work
// that each request repeats.
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

// send sends a body, and requires as many bytes in the response.
func send(rt http.RoundTripper, method, url string, body []byte) {
	r := testworld.Must(http.NewRequest(method, url+"/echo", bytes.NewReader(body)))
	answer := testworld.Must(rt.RoundTrip(r))
	defer answer.Body.Close()
	n := testworld.Must(io.Copy(io.Discard, answer.Body))
	if answer.StatusCode != http.StatusOK || n != int64(len(body)) {
		panic(fmt.Sprint(answer.Status, " with ", n, " bytes"))
	}
}

// sealedPost returns post with only an AEAD around it.
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
		testworld.Must(io.Copy(io.Discard, answer.Body)) // read to the end, so that the connection is reused
		testworld.Must(of(got[:12]).Open(got[12:12], got[:12], got[12:], nil))
	}
}
