package bench

import (
	"crypto/tls"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/testworld"
)

// BenchmarkContact is G14: a client's first contact with a unit, which opens a session with
// fresh evidence of a chip that the client has seen, against one hybrid TLS handshake. Each
// uses a new connection. It measures bytes and the CPU time of both ends, without the CPU
// time of the played chip.
func BenchmarkContact(b *testing.B) {
	r := newReaching(b)
	hybrid := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: r.ca, CurvePreferences: []tls.CurveID{tls.X25519MLKEM768}}
	handshakes := func() {
		for range opens {
			testworld.Must(tls.Dial("tcp", r.Counted[len("https://"):], hybrid)).Close()
		}
	}
	played := newVendors(time.Now())
	contact := func(gateway string, of attest.Platform) func() time.Duration {
		chip := played.device(of, "scoring")
		alone := Repeat(opens, func() { testworld.Must(chip.Attest(b.Context(), attest.ReportData{1})) })
		return func() time.Duration { return r.openAll(b.Context(), gateway, r.pair) - alone() }
	}
	Compare(b,
		Contender{"tls", func() time.Duration { return r.pair(handshakes) / opens }},
		Contender{"snp", contact(r.One, attest.SNP)},
		Contender{"tdx", contact(r.OneTDX, attest.TDX)})
	before := r.stats().Bytes
	handshakes()
	bare := float64(r.stats().Bytes-before) / opens
	for name, gateway := range map[string]string{"snp": r.One, "tdx": r.OneTDX} {
		bytes := float64(r.traffic(b.Context(), gateway).Bytes)
		b.ReportMetric(bytes/bare, "bytes-"+name+"/tls")
		b.ReportMetric(bytes, "bytes-"+name)
	}
	b.ReportMetric(bare, "bytes-tls")
}
