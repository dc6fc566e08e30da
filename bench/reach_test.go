package bench

import (
	"context"
	"crypto/sha512"
	"crypto/tls"
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/testworld"
)

// opens is the number of sessions that one round opens.
const opens = 20

// reaching is a client that reaches a cluster, by sessions or by RA-TLS.
type reaching struct {
	*peer
	trust *client.Trust
	ra    *http.Transport // RA-TLS, one connection per request
}

func newReaching(b *testing.B) *reaching {
	r := &reaching{peer: start(b)}
	r.trust = r.peer.trust(b)
	r.ra = &http.Transport{DisableKeepAlives: true, TLSClientConfig: r.raTLS(verifier())}
	return r
}

// raTLS appraises the evidence in the server's certificate, of a chip that the verifier has
// seen.
func (r *reaching) raTLS(v *attest.Verifier) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, // evidence replaces the chain
		VerifyConnection: func(state tls.ConnectionState) error {
			leaf := state.PeerCertificates[0]
			for _, e := range leaf.Extensions {
				if e.Id.Equal(evidenceID) {
					evidence := r.Evidence
					evidence.Raw = e.Value
					_, err := v.Appraise(attest.Question{
						Evidence: evidence, ReportData: sha512.Sum512(leaf.RawSubjectPublicKeyInfo), Rules: r.trust.Policy().Rules(), At: time.Now(),
					})
					return err
				}
			}
			return errors.New("no evidence")
		},
	}
}

// open opens a session with fresh evidence.
func (r *reaching) open(ctx context.Context, gateway string) *client.Channel {
	return testworld.Must(client.Open(ctx, client.OpenConfig{Trust: r.trust, Gateway: gateway, FreshEvidence: true}))
}

// openAll measures the opening of sessions; it closes them outside of the measurement.
func (r *reaching) openAll(ctx context.Context, gateway string, cost func(func()) time.Duration) time.Duration {
	var open []*client.Channel
	took := cost(func() {
		for range opens {
			open = append(open, r.open(ctx, gateway))
		}
	})
	for _, c := range open {
		c.Close(ctx)
	}
	return took / opens
}

// get sends a request and reads only the header of the response.
func get(rt http.RoundTripper, url string) {
	answer := testworld.Must(rt.RoundTrip(testworld.Must(http.NewRequest(http.MethodGet, url, nil))))
	answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		panic(answer.Status)
	}
}

// alone returns the client's CPU time for f.
func alone(f func()) time.Duration {
	before := CPU()
	f()
	return CPU() - before
}

// BenchmarkReach is G13: a client reaches 100 units. "client" compares its CPU time, bytes
// and requests with those for one unit; "system" compares the CPU time of both ends with
// RA-TLS to each unit. The bus between the units is left out.
func BenchmarkReach(b *testing.B) {
	r := newReaching(b)
	ctx := b.Context()
	b.Run("client", func(b *testing.B) {
		Compare(b,
			Contender{"1-unit", func() time.Duration { return r.openAll(ctx, r.One, alone) }},
			Contender{"100-units", func() time.Duration { return r.openAll(ctx, r.All, alone) }})
		one, all := r.traffic(ctx, r.One), r.traffic(ctx, r.All)
		b.ReportMetric(float64(all.Bytes)/float64(one.Bytes), "bytes-100/1")
		b.ReportMetric(float64(all.Bytes), "bytes")
		b.ReportMetric(float64(all.Requests)/float64(one.Requests), "requests-100/1")
		b.ReportMetric(float64(all.Requests), "requests")
	})
	b.Run("system", func(b *testing.B) {
		Compare(b,
			Contender{"ra-tls-to-each", func() time.Duration {
				return r.pair(func() {
					for range replicas {
						get(r.ra, r.RATLS)
					}
				})
			}},
			Contender{"session", func() time.Duration { return r.openAll(ctx, r.All, r.pair) }})
	})
}

// traffic returns the bytes and requests of session openings.
func (r *reaching) traffic(ctx context.Context, gateway string) (s stats) {
	before := r.stats()
	r.openAll(ctx, gateway, func(open func()) time.Duration {
		open()
		s = r.stats()
		return 0
	})
	return stats{Bytes: (s.Bytes - before.Bytes) / opens, Requests: (s.Requests - before.Requests) / opens}
}

// BenchmarkFirst is G17: the first request to a replica that the client has never used, in
// a session that the replica has joined, against RA-TLS to it; the CPU time of both ends.
// One variant uses the client's existing connection to the gateway, the other a new
// connection, each with plain HTTP beside it.
func BenchmarkFirst(b *testing.B) {
	r := newReaching(b)
	plain, anew := &http.Transport{}, &http.Transport{DisableKeepAlives: true}
	const others = replicas - 1
	cost := func(f func()) time.Duration {
		return r.pair(func() {
			for range others {
				f()
			}
		}) / others
	}
	session := func(gateway string) func() time.Duration {
		return func() time.Duration {
			c := r.open(b.Context(), gateway)
			defer c.Close(b.Context())
			return cost(func() { get(c, "https://scoring.clinic.example/") })
		}
	}
	Compare(b,
		Contender{"ra-tls", func() time.Duration { return cost(func() { get(r.ra, r.RATLS) }) }},
		Contender{"session", session(r.All)},
		Contender{"session-new-connection", session(r.AllCold)},
		Contender{"plain", func() time.Duration { return cost(func() { get(plain, r.Plain) }) }},
		Contender{"plain-new-connection", func() time.Duration { return cost(func() { get(anew, r.Plain) }) }})
}
